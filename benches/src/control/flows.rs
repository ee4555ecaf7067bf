//! Long flows through the mesh, each watched by a thread that notes when it ends.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::clock;
use crate::mesh::Way;

/// Between two looks at flows that have not ended, and two tries to open one.
const PAUSE: Duration = Duration::from_millis(5);
/// The longest wait for one byte to come back.
const EXCHANGE: Duration = Duration::from_secs(5);

/// Flows that are open, until they are dropped.
pub(crate) struct Flows(Vec<Flow>);

struct Flow {
    service: String,
    socket: TcpStream,
    ended: Arc<Mutex<Option<Instant>>>,
    watcher: Option<JoinHandle<()>>,
}

impl Flows {
    /// Opens one for each way; what is refused is tried again for a while.
    pub(crate) fn open(ways: &[Way], within: Duration) -> Result<Self> {
        let until = clock::now() + within;
        ways.iter().map(|way| Flow::open(way, until)).collect::<Result<_>>().map(Self)
    }

    /// Waits for the end of every flow that `which` names, and says how long after `began` each ended.
    pub(crate) fn wait(
        &self,
        which: impl Fn(&str) -> bool,
        began: Instant,
        within: Duration,
    ) -> Result<Vec<Duration>> {
        let until = clock::now() + within;
        let concerned: Vec<&Flow> = self.0.iter().filter(|flow| which(&flow.service)).collect();
        loop {
            let ended: Vec<_> = concerned.iter().filter_map(|flow| flow.ended()).collect();
            if ended.len() == concerned.len() {
                return Ok(ended.into_iter().map(|end| end.saturating_duration_since(began)).collect());
            }
            ensure!(clock::now() < until, "{} flows live on", concerned.len() - ended.len());
            thread::sleep(PAUSE);
        }
    }

    /// How many are open.
    pub(crate) fn open_now(&self) -> usize {
        self.0.iter().filter(|flow| flow.ended().is_none()).count()
    }
}

impl Flow {
    fn open(way: &Way, until: Instant) -> Result<Self> {
        loop {
            match exchange(way.at) {
                Ok(socket) => return Self::watch(way.service.clone(), socket),
                Err(error) => {
                    ensure!(clock::now() < until, "no flow to {} at {}: {error}", way.service, way.at);
                    thread::sleep(PAUSE * 4);
                }
            }
        }
    }

    fn watch(service: String, socket: TcpStream) -> Result<Self> {
        let ended = Arc::new(Mutex::new(None));
        let (mut reader, note) = (socket.try_clone()?, Arc::clone(&ended));
        reader.set_read_timeout(None)?;
        let watcher = thread::Builder::new().stack_size(64 << 10).spawn(move || {
            // Nothing is sent, so whatever comes is the end.
            let _ = reader.read(&mut [0; 1]);
            *note.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock::now());
        });
        let watcher = Some(watcher.context("cannot watch a flow")?);
        Ok(Self { service, socket, ended, watcher })
    }

    fn ended(&self) -> Option<Instant> {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        // Fails only for a socket that has ended already.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// A connection on which one byte went there and back.
fn exchange(at: SocketAddr) -> std::io::Result<TcpStream> {
    let mut socket = TcpStream::connect(at)?;
    socket.set_read_timeout(Some(EXCHANGE))?;
    socket.write_all(b"a")?;
    socket.read_exact(&mut [0; 1])?;
    Ok(socket)
}

/// A program that sends back what it gets, for as long as the process lives.
pub(crate) fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let at = listener.local_addr()?;
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let serve = move || {
                let Ok(mut back) = socket.try_clone() else { return };
                let _ = std::io::copy(&mut &socket, &mut back);
            };
            // One that cannot be served is closed, and its caller tries again.
            drop(thread::Builder::new().stack_size(64 << 10).spawn(serve));
        }
    });
    Ok(at)
}
