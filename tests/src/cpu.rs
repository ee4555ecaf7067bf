//! CPU time of the calling thread: what a test may bound on a machine that has other work too.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

/// Does `work` and tells how much CPU the calling thread spent on it.
///
/// The kernel may count in ticks of some milliseconds: repeat what is short, and divide.
///
/// # Panics
///
/// If the kernel does not tell, which Linux does.
pub fn spent<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = thread();
    let done = work();
    (done, thread() - before)
}

fn thread() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("the kernel counts threads");
    let times = [usage.user_time(), usage.system_time()];
    times
        .iter()
        .map(|time| {
            let seconds = u64::try_from(time.tv_sec()).expect("time is not negative");
            let micros = u64::try_from(time.tv_usec()).expect("time is not negative");
            Duration::from_secs(seconds) + Duration::from_micros(micros)
        })
        .sum()
}
