//! Gives memory that is free back to the system, for as long as a daemon runs.
//!
//! glibc's allocator gives back only what is free at the end of its heaps. After a peer that made an agent hold a window full
//! of packets has gone, 24 MiB stayed with the agent for good, though nothing was in them. An attack may not leave
//! growth behind (security.md 5, rules G), and idle memory of one daemon is what another program of the host lacks.
//!
//! Other C libraries (musl) give pages back by themselves; there nothing is done.
//!
//! Unsafe: the allocator gives pages back when `malloc_trim` is called, which is a function of C, and no crate wraps it.

use std::{thread, time::Duration};

use weft_api::fault::Fault;
use weft_policy::code;

use crate::error::{CliError, Exit};

/// The memory of an attack must be back within a minute, and the tunnel of a peer that fell silent stands for half of it.
/// Whoever allocates from another arena does not wait for a pass.
const EVERY: Duration = Duration::from_secs(15);

/// Left at the end of each heap, so that the next allocations need no system call: less than one tunnel's buffers.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: usize = 256 * 1024;

/// Starts the thread that does it; it ends with the process.
///
/// # Errors
///
/// When the system has no thread to give.
pub(crate) fn give_back() -> Result<(), CliError> {
    let run = || loop {
        thread::sleep(EVERY);
        trim();
    };
    let builder = thread::Builder::new().name("weft-memory".to_owned()).stack_size(64 * 1024);
    builder.spawn(run).map(drop).map_err(|e| CliError::new(Exit::Internal, none(&e)))
}

fn none(error: &std::io::Error) -> Fault {
    let what = format!("no thread to give memory back: {error}");
    Fault::new(code::TASK_FAILED, what).fix("name the build in the report:   weft version")
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "see the module")]
fn trim() {
    // SAFETY: it takes a number, touches only pages in which nothing is allocated, and takes the allocator's locks itself
    // (malloc_trim(3): MT-Safe).
    let _gave = unsafe { libc::malloc_trim(KEPT_BYTES) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
