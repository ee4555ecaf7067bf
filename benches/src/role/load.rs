//! The program that calls: bulk, requests on kept connections, short flows.
//!
//! Owns the loads and what they count. Every load is closed-loop (the next request leaves after the answer) and
//! ends at its deadline; any failed connection or wrong answer fails the whole load, so that a rate never hides
//! errors.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::say;
use super::serve::{ECHO, MESSAGE_BYTES, SINK};
use crate::clock::now;
use crate::stats::quantile;

/// Write size of bulk; that of iperf3.
const BULK_WRITE_BYTES: usize = 128 * 1024;

/// Connect, request or drain at most: far beyond anything but a hang.
const STEP: Duration = Duration::from_secs(20);

/// Latencies kept per connection at most (4 bytes each); later ones count in the rate alone.
const MAX_SAMPLES: usize = 4_000_000;

/// What the load does.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// Sends as fast as it can.
    Bulk,
    /// Requests on kept connections.
    Echo,
    /// Connect, one request, close.
    Flows,
}

/// Arguments of the load role.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long, value_enum)]
    pub(crate) shape: Shape,
    #[arg(long)]
    pub(crate) to: SocketAddr,
    /// Connections, or workers of short flows, at once.
    #[arg(long)]
    pub(crate) parallel: u16,
    #[arg(long)]
    pub(crate) seconds: u16,
}

/// What a load counted.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Outcome {
    /// Bytes that the far end confirmed.
    pub(crate) bytes: u64,
    /// Answers.
    pub(crate) requests: u64,
    /// From the first send to the last confirmation.
    pub(crate) elapsed_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Congestion control of the load's own TCP leg.
    pub(crate) congestion: String,
}

/// What one connection or worker counted.
#[derive(Default)]
struct Share {
    bytes: u64,
    requests: u64,
    latencies_ns: Vec<u32>,
}

/// Runs the load and prints its [`Outcome`].
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { shape, to, parallel, seconds } = arguments;
    let mut streams = Vec::new();
    for _ in 0..parallel {
        streams.push(greet(to).await?);
    }
    let first = streams.first().context("no connection asked for")?;
    let congestion = congestion_control(first)?;

    let start = now();
    let until = start + Duration::from_secs(seconds.into());
    let mut workers = JoinSet::new();
    for stream in streams {
        match shape {
            Shape::Bulk => workers.spawn(bulk(stream, until)),
            Shape::Echo => workers.spawn(echo(stream, until)),
            Shape::Flows => workers.spawn(flows(to, until)),
        };
    }
    let mut total = Share::default();
    while let Some(share) = workers.join_next().await {
        let share = share??;
        total.bytes += share.bytes;
        total.requests += share.requests;
        total.latencies_ns.extend(share.latencies_ns);
    }
    let elapsed_s = now().duration_since(start).as_secs_f64();
    let mut microseconds = |q| f64::from(quantile(&mut total.latencies_ns, q)) / 1e3;
    let (p50_us, p99_us) = (microseconds(0.5), microseconds(0.99));
    let outcome =
        Outcome { bytes: total.bytes, requests: total.requests, elapsed_s, p50_us, p99_us, congestion };
    say(&serde_json::to_string(&outcome)?)
}

/// One connection, one request, one answer, closed.
pub(crate) async fn short_flow(to: SocketAddr) -> Result<()> {
    let mut stream = connect(to).await?;
    request(&mut stream, &mut message(ECHO)).await
}

/// Opens a connection and makes sure that it reaches the far end, so that the time counted holds no set-up.
async fn greet(to: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(to).await?;
    request(&mut stream, &mut message(ECHO)).await?;
    Ok(stream)
}

async fn bulk(mut stream: TcpStream, until: Instant) -> Result<Share> {
    stream.write_all(&message(SINK)).await?;
    let block = vec![0x5a; BULK_WRITE_BYTES];
    let mut sent_bytes = 0_u64;
    while now() < until {
        timeout(STEP, stream.write_all(&block)).await.context("bulk stalled")??;
        sent_bytes += block.len() as u64;
    }
    stream.shutdown().await?;
    let bytes = timeout(STEP, stream.read_u64()).await.context("no count came back")??;
    ensure!(bytes == sent_bytes, "sent {sent_bytes} bytes, {bytes} arrived");
    Ok(Share { bytes, ..Share::default() })
}

async fn echo(mut stream: TcpStream, until: Instant) -> Result<Share> {
    let mut share = Share::default();
    let mut message = message(ECHO);
    let mut before = now();
    while before < until {
        request(&mut stream, &mut message).await?;
        let after = now();
        share.record(after.duration_since(before));
        before = after;
    }
    Ok(share)
}

async fn flows(to: SocketAddr, until: Instant) -> Result<Share> {
    let mut share = Share::default();
    let mut before = now();
    while before < until {
        short_flow(to).await?;
        let after = now();
        share.record(after.duration_since(before));
        before = after;
    }
    Ok(share)
}

impl Share {
    /// Counts an answer that took `latency` (kept up to 4.29 s, the range of its 32 bits).
    fn record(&mut self, latency: Duration) {
        self.requests += 1;
        if self.latencies_ns.len() < MAX_SAMPLES {
            self.latencies_ns.push(u32::try_from(latency.as_nanos()).unwrap_or(u32::MAX));
        }
    }
}

fn message(kind: u8) -> [u8; MESSAGE_BYTES] {
    [kind; MESSAGE_BYTES]
}

async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let connected = timeout(STEP, TcpStream::connect(to)).await.context("connecting hangs")?;
    let stream = connected.with_context(|| format!("cannot connect to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends `message` and reads the answer, which must be the same.
async fn request(stream: &mut TcpStream, message: &mut [u8; MESSAGE_BYTES]) -> Result<()> {
    let exchange = async {
        stream.write_all(message).await?;
        stream.read_exact(message).await
    };
    timeout(STEP, exchange).await.context("no answer")?.context("the flow broke")?;
    if message[MESSAGE_BYTES - 1] != ECHO {
        bail!("the answer is not what was sent");
    }
    Ok(())
}

fn congestion_control(stream: &TcpStream) -> Result<String> {
    let name = SockRef::from(stream).tcp_congestion()?;
    let name: Vec<u8> = name.into_iter().take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8(name)?)
}
