//! The program that is called, which knows nothing of any mesh.
//!
//! Owns the toy protocol of the benches. A connection starts with a message of [`MESSAGE_BYTES`]; its first byte
//! chooses: [`ECHO`] messages are answered one for one, after [`SINK`] everything up to the end is counted and the
//! count is the answer. So one port serves every row, and a bulk flow proves that half-close works and that no
//! byte was lost.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::listen;

/// Size of a request and of its answer.
pub(crate) const MESSAGE_BYTES: usize = 100;

/// First byte of a message that is sent back.
pub(crate) const ECHO: u8 = b'E';

/// First byte of a message that announces bulk.
pub(crate) const SINK: u8 = b'S';

/// Read size of the sink; that of iperf3, so that direct figures can be compared.
const SINK_READ_BYTES: usize = 128 * 1024;

/// Serves until cancelled. A connection that breaks ends alone.
pub(crate) async fn run(address: SocketAddr) -> Result<()> {
    let listener = listen(address)?;
    let mut flows = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                flows.spawn(serve(stream));
            }
            Some(_) = flows.join_next() => {}
        }
    }
}

async fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE_BYTES];
    while stream.read_exact(&mut message).await.is_ok() {
        match message[0] {
            ECHO => stream.write_all(&message).await?,
            SINK => return sink(stream).await,
            other => bail!("unknown message {other}"),
        }
    }
    Ok(())
}

async fn sink(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; SINK_READ_BYTES];
    let mut total_bytes = 0_u64;
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            n => total_bytes += n as u64,
        }
    }
    stream.write_u64(total_bytes).await?;
    Ok(stream.shutdown().await?)
}
