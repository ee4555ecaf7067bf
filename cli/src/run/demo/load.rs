//! Calls in a row and side by side, counted: what "0 failed" in the demo means.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use aws_lc_rs::digest;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// How long one call of the demo may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Failed calls after which a row of calls is given up.
const ENOUGH_FAILURES: u32 = 3;

/// Runs a future of the demo's driver on a runtime of its own.
pub(super) fn wait_for<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    Ok(runtime.block_on(future))
}

/// One `POST /api/v1/charge` on a new connection to `address`.
pub(super) async fn charge(address: SocketAddr) -> Result<u16, String> {
    let call = async {
        let stream = TcpStream::connect(address).await.map_err(|e| format!("cannot connect: {e}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        let request = Request::post("/api/v1/charge")
            .header("host", "charge.shop")
            .header("connection", "close")
            .body(Full::new(Bytes::from_static(b"{\"cents\": 1250}")))
            .map_err(|e| e.to_string())?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = response.status().as_u16();
            response.into_body().collect().await.map_err(|e| e.to_string())?;
            Ok(status)
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            outcome = &mut exchange => outcome,
            _ = &mut connection => exchange.await,
        }
    };
    tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| Err("no answer within 5 s".to_owned()))
}

/// Makes `count` calls one after the other and says how many failed, and why the last one did; ends early after three.
pub(super) fn calls(address: SocketAddr, count: u32) -> Result<(u32, Option<String>), String> {
    wait_for(async {
        let (mut failed, mut last) = (0, None);
        for _ in 0..count {
            match charge(address).await {
                Ok(200) => {}
                Ok(status) => (failed, last) = (failed + 1, Some(format!("status {status}"))),
                Err(why) => (failed, last) = (failed + 1, Some(why)),
            }
            // More failures would say nothing new, and each may take its whole timeout.
            if failed >= ENOUGH_FAILURES {
                break;
            }
        }
        (failed, last)
    })
}

/// Calls that go on until stopped.
pub(super) struct Background {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Background {
    /// Starts `side_by_side` callers.
    pub(super) fn start(address: SocketAddr, side_by_side: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (done, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let caller = |_| {
            let (stop, done, failed) = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&failed));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match calls(address, 1) {
                        Ok((0, _)) => done.fetch_add(1, Ordering::Relaxed),
                        Ok(_) | Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                    };
                }
            })
        };
        let threads = (0..side_by_side).map(caller).collect();
        Self { stop, done, failed, threads }
    }

    /// Calls that succeeded so far.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Stops the callers and says how many calls succeeded and failed.
    pub(super) fn finish(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A caller cannot panic on what it meets; if it did, its calls are missing from the count.
            let _ = thread.join();
        }
        (self.done.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

/// Whether an echo service gives a byte back, whichever.
pub(super) fn answers(address: SocketAddr) -> Result<(), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"?").await?;
        stream.read_exact(&mut [0]).await
    };
    let answered = wait_for(async { tokio::time::timeout(CALL_TIMEOUT, exchange).await })?;
    let answered = answered.map_err(|_| "no byte came back within 5 s".to_owned())?;
    answered.map(drop).map_err(|error| format!("order → ledger broke: {error}"))
}

/// Sends `bytes` of a known pattern to an echo service and compares SHA-256 of both directions.
pub(super) fn echo(address: SocketAddr, bytes: usize) -> Result<String, String> {
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|e| format!("cannot connect: {e}"))?;
        let (mut reader, mut writer) = stream.into_split();
        let send = async {
            let mut sent = digest::Context::new(&digest::SHA256);
            let mut pattern = Pattern(0x9e37_79b9_7f4a_7c15);
            let mut left = bytes;
            let mut buffer = vec![0; 256 * 1024];
            while left > 0 {
                let size = left.min(buffer.len());
                pattern.fill(&mut buffer[..size]);
                sent.update(&buffer[..size]);
                writer.write_all(&buffer[..size]).await.map_err(|e| format!("sending broke: {e}"))?;
                left -= size;
            }
            writer.shutdown().await.map_err(|e| format!("closing the sending half broke: {e}"))?;
            Ok::<_, String>(sent.finish())
        };
        let receive = async {
            let mut received = digest::Context::new(&digest::SHA256);
            let mut total = 0;
            let mut buffer = vec![0; 256 * 1024];
            loop {
                match reader.read(&mut buffer).await.map_err(|e| format!("receiving broke: {e}"))? {
                    0 => return Ok::<_, String>((received.finish(), total)),
                    read => {
                        received.update(&buffer[..read]);
                        total += read;
                    }
                }
            }
        };
        let (sent, (received, total)) = tokio::try_join!(send, receive)?;
        if total != bytes {
            return Err(format!("{total} of {bytes} bytes came back"));
        }
        if sent.as_ref() != received.as_ref() {
            return Err("SHA-256 of what came back differs from what was sent".to_owned());
        }
        Ok(sent.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
    };
    let limit = Duration::from_secs(60);
    wait_for(async { tokio::time::timeout(limit, exchange).await })?
        .unwrap_or_else(|_| Err("not done within 60 s".to_owned()))
}

/// Bytes that do not repeat soon (xorshift64), the same in every run.
struct Pattern(u64);

impl Pattern {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}
