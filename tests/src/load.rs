//! Clients that count: many short calls, calls without a pause, flows that stay open.
//!
//! They stand on a host of the network and speak plain TCP, as a program that knows nothing of Weft.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::eventually::Stopwatch;
use crate::netns::Host;

/// How long one call may take before it counts as failed.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Between two calls of [`Traffic`] and two bytes of a [`Flow`].
const PACE: Duration = Duration::from_millis(10);

/// Reads the answer of a call to nginx's `/ok`.
///
/// # Errors
///
/// What went wrong, and at which step.
pub fn call(target: SocketAddr) -> Result<(), String> {
    let answer = answer(target, b"GET /ok HTTP/1.0\r\nHost: test\r\n\r\n")?;
    let answer = String::from_utf8_lossy(&answer);
    if answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok") {
        Ok(())
    } else {
        Err(format!("answer: {answer:?}"))
    }
}

/// One GET over a connection of its own from `host`; returns status and body.
///
/// # Errors
///
/// If there is no answer, or none of HTTP.
pub fn http_get(host: &Host, target: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    let answer = host.enter(|| answer(target, request.as_bytes()))?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    status.map(|status| (status, body.to_owned())).ok_or_else(|| format!("answer: {answer:?}"))
}

/// Makes `total` calls from `host`, one connection each, `parallel` at a time; returns the failures.
pub fn short_calls(host: &Host, target: SocketAddr, total: u32, parallel: u32) -> Vec<String> {
    let next = AtomicU32::new(0);
    let worker = || {
        let mut failures = Vec::new();
        while next.fetch_add(1, Ordering::Relaxed) < total {
            failures.extend(call(target).err());
        }
        failures
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..parallel).map(|_| scope.spawn(|| host.enter(worker))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker only returns")).collect()
    })
}

/// Lets this process hold as many sockets as the system allows it; programs started later inherit that.
///
/// # Panics
///
/// If the system refuses.
pub fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit is allowed");
}

/// An open connection to an echo server.
#[derive(Debug)]
pub struct Echo(TcpStream);

impl Echo {
    /// Connects from `host`.
    ///
    /// # Errors
    ///
    /// If nothing answers.
    pub fn open(host: &Host, target: SocketAddr) -> Result<Self, String> {
        host.enter(|| connect(target)).map(Self)
    }

    /// Sends `word` and reads it back.
    ///
    /// # Errors
    ///
    /// If the connection ends or other bytes come back.
    pub fn exchange(&mut self, word: &[u8]) -> Result<(), String> {
        self.0.write_all(word).map_err(|error| format!("write: {error}"))?;
        let mut back = vec![0; word.len()];
        self.0.read_exact(&mut back).map_err(|error| format!("read: {error}"))?;
        if back == word { Ok(()) } else { Err(format!("sent {word:?}, got {back:?}")) }
    }

    /// Waits at most `within` for the other side to end the connection.
    ///
    /// # Errors
    ///
    /// If it is still open then.
    pub fn ended(&mut self, within: Duration) -> Result<(), String> {
        self.0.set_read_timeout(Some(within)).map_err(|error| error.to_string())?;
        match self.0.read(&mut [0; 1]) {
            Ok(0) => Ok(()),
            Ok(_) => Err("a byte came".to_owned()),
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                Err(format!("still open after {within:?}"))
            }
            Err(_) => Ok(()),
        }
    }
}

/// Sends all of `bytes`, ends its own direction, and returns what comes back until the other ends.
///
/// # Errors
///
/// If the connection breaks.
pub fn send_then_read(host: &Host, target: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, String> {
    host.enter(|| {
        let mut stream = connect(target)?;
        stream.write_all(bytes).map_err(|error| format!("write: {error}"))?;
        stream.shutdown(Shutdown::Write).map_err(|error| format!("shutdown: {error}"))?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back).map_err(|error| format!("read: {error}"))?;
        Ok(back)
    })
}

/// Reads until the other side ends its direction, then sends `bytes` and ends; returns what was read.
///
/// # Errors
///
/// If the connection breaks.
pub fn read_then_send(host: &Host, target: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, String> {
    host.enter(|| {
        let mut stream = connect(target)?;
        let mut read = Vec::new();
        stream.read_to_end(&mut read).map_err(|error| format!("read: {error}"))?;
        stream.write_all(bytes).map_err(|error| format!("write: {error}"))?;
        stream.shutdown(Shutdown::Write).map_err(|error| format!("shutdown: {error}"))?;
        Ok(read)
    })
}

/// Calls one after another until [`Traffic::stop`].
#[derive(Debug)]
pub struct Traffic {
    watch: Stopwatch,
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Vec<Call>>,
}

/// One call of [`Traffic`].
#[derive(Clone, Debug)]
pub struct Call {
    /// When it began, since the start of the traffic.
    pub began: Duration,
    /// When it ended, since the start of the traffic.
    pub ended: Duration,
    /// What went wrong.
    pub outcome: Result<(), String>,
}

impl Traffic {
    /// Starts to call nginx's `/ok` at `target` from `host`.
    pub fn start(host: &Host, target: SocketAddr) -> Self {
        let (host, watch, stop) = (host.clone(), Stopwatch::start(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let worker = std::thread::spawn(move || {
            host.enter(|| {
                let mut calls = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    let began = watch.elapsed();
                    let outcome = call(target);
                    calls.push(Call { began, ended: watch.elapsed(), outcome });
                    std::thread::sleep(PACE);
                }
                calls
            })
        });
        Self { watch, stop, worker }
    }

    /// The time since its start.
    pub fn now(&self) -> Duration {
        self.watch.elapsed()
    }

    /// Ends it and returns every call.
    ///
    /// # Panics
    ///
    /// If no call was made.
    pub fn stop(self) -> Vec<Call> {
        self.stop.store(true, Ordering::Relaxed);
        let calls = self.worker.join().expect("the worker only returns");
        assert!(!calls.is_empty(), "no call was made");
        calls
    }
}

/// The calls of `calls` that failed, and began at or after `from`.
pub fn failed_since(calls: &[Call], from: Duration) -> Vec<Call> {
    calls.iter().filter(|call| call.began >= from && call.outcome.is_err()).cloned().collect()
}

/// When a flow ended and how, once it did.
type Ended = Arc<Mutex<Option<(Duration, String)>>>;

/// A flow that carries a byte back and forth all the time, and notes when it ended.
#[derive(Debug)]
pub struct Flow {
    ended: Ended,
    stop: Arc<AtomicBool>,
    watch: Stopwatch,
    worker: Option<JoinHandle<()>>,
}

impl Flow {
    /// Opens it to the echo server at `target`.
    ///
    /// # Panics
    ///
    /// If it cannot be opened or the first byte does not come back.
    #[track_caller]
    pub fn open(host: &Host, target: SocketAddr) -> Self {
        let mut echo = Echo::open(host, target).expect("the flow opens");
        echo.exchange(b"a").expect("the first byte comes back");
        let (ended, stop, watch) = (Ended::default(), Arc::new(AtomicBool::new(false)), Stopwatch::start());
        let (note, stopped) = (Arc::clone(&ended), Arc::clone(&stop));
        let worker = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = echo.exchange(b"a") {
                    *note.lock().expect("no holder panics") = Some((watch.elapsed(), error));
                    return;
                }
                std::thread::sleep(PACE);
            }
        });
        Self { ended, stop, watch, worker: Some(worker) }
    }

    /// The time since it was opened.
    pub fn now(&self) -> Duration {
        self.watch.elapsed()
    }

    /// When it ended and how, if it did.
    ///
    /// # Panics
    ///
    /// Never: no holder of the lock panics.
    pub fn ended(&self) -> Option<(Duration, String)> {
        self.ended.lock().expect("no holder panics").clone()
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// Sends `request` and reads to the end, with the own direction left open.
fn answer(target: SocketAddr, request: &[u8]) -> Result<Vec<u8>, String> {
    let mut stream = connect(target)?;
    stream.write_all(request).map_err(|error| format!("write: {error}"))?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back).map_err(|error| format!("read: {error}"))?;
    Ok(back)
}

fn connect(target: SocketAddr) -> Result<TcpStream, String> {
    let stream =
        TcpStream::connect_timeout(&target, CALL_LIMIT).map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(CALL_LIMIT)).map_err(|error| error.to_string())?;
    stream.set_write_timeout(Some(CALL_LIMIT)).map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    Ok(stream)
}
