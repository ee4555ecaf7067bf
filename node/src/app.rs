//! The connection of a program: a TCP socket, how its program is answered, and how it ends.
//!
//! Owns the difference between a clean end and a broken one. A program must see a reset when bytes may be missing, so a
//! socket that is dropped before it was closed in good order is reset; only [`crate::relay`] and a written answer close
//! it cleanly. Both corridors use it: for the calling program and for the program behind a service.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_api::fault::Fault;

pub use crate::refusal::{fault_of, text_of};
use crate::{
    intercept::{
        exchange::{RequestGate, ResponseGate},
        socks5,
    },
    refusal::{Asked, http_answer, socks_reply},
};

/// How long an answered client may go on sending before its socket is closed: closing it earlier would reset the
/// connection and could take the answer from the client's hands (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(1);
/// How much it may send meanwhile.
const LINGER_BYTES: u64 = 256 * 1024;

/// How a program is told that its connection stands or failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Not at all: it speaks to its peer directly, and a failure is a reset.
    Raw,
    /// By a SOCKS5 reply.
    Socks5,
    /// By the status of a CONNECT response.
    Connect,
    /// By an HTTP response in the service's stead; success is the service's own response.
    Http,
}

/// The TCP connection of a program.
#[derive(Debug)]
pub struct AppStream {
    pub(crate) io: TcpStream,
    answer: Answer,
    /// Bytes for the other end that no gate looks at: a rewritten head.
    pub(crate) head: Bytes,
    /// Bytes the program sent behind what was read of it.
    pub(crate) behind: Bytes,
    pub(crate) gates: Option<(RequestGate, ResponseGate)>,
    /// Who asked for what, for the words of a refusal.
    asked: Option<Box<Asked>>,
    ended: bool,
}

impl AppStream {
    /// The connection to a program behind a service, or of one that is spoken to directly.
    #[must_use]
    pub fn raw(io: TcpStream) -> Self {
        let none = Bytes::new();
        let (head, behind) = (none.clone(), none);
        Self { io, answer: Answer::Raw, head, behind, gates: None, asked: None, ended: false }
    }

    /// The same connection, now that it is known how its program is answered and what came `behind` its request.
    pub(crate) fn answered_by(mut self, answer: Answer, behind: Bytes) -> Self {
        self.answer = answer;
        self.behind = behind;
        self
    }

    /// Makes it one HTTP exchange that starts with `head`.
    pub(crate) fn with_exchange(mut self, head: Bytes, gates: (RequestGate, ResponseGate)) -> Self {
        self.head = head;
        self.gates = Some(gates);
        self
    }

    /// The same connection, now that it is known who asked for what.
    pub(crate) fn asked_by(mut self, asked: Asked) -> Self {
        self.asked = Some(Box::new(asked));
        self
    }

    /// How the program is answered.
    #[must_use]
    pub const fn answer(&self) -> Answer {
        self.answer
    }

    /// Whether the program waits to be told that its connection stands before it sends (SOCKS5, CONNECT).
    #[must_use]
    pub const fn awaits_success(&self) -> bool {
        match self.answer {
            Answer::Socks5 | Answer::Connect => true,
            Answer::Raw | Answer::Http => false,
        }
    }

    /// Waits until the program has something to say, or is gone; nothing is read. One that waits for success says
    /// nothing before, so that this never ends. Cancel-safe.
    pub async fn speaks(&self) {
        if self.awaits_success() {
            std::future::pending::<()>().await;
        }
        if self.head.is_empty() && self.behind.is_empty() {
            // A socket that fails is for the one who reads from it.
            let _ = self.io.readable().await;
        }
    }

    /// The program's own address.
    ///
    /// # Errors
    ///
    /// When the socket is not connected any more.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.io.peer_addr()
    }

    /// Tells the program that its connection stands, where it waits for that.
    ///
    /// # Errors
    ///
    /// When the program is gone.
    pub async fn established(&mut self) -> io::Result<()> {
        match self.answer {
            Answer::Socks5 => self.io.write_all(&socks5::answer(socks5::Reply::Succeeded)).await?,
            Answer::Connect => self.io.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
            Answer::Raw | Answer::Http => {}
        }
        // What follows is the far end's: from here on only a reset can tell of a failure.
        if self.awaits_success() {
            self.answer = Answer::Raw;
        }
        Ok(())
    }

    /// Whether the program waits for a response to its request, of which nothing has been passed on yet.
    pub(crate) fn awaits_response(&self) -> bool {
        self.gates.as_ref().is_some_and(|(_, response)| response.is_silent())
    }

    /// Tells the program why there is no connection, and ends.
    ///
    /// May be called until a byte of the far end was passed on. A program that speaks directly sees a reset.
    pub async fn refuse(mut self, fault: &Fault) {
        let told = |asked: Option<&Asked>| asked.map_or_else(|| fault.clone(), |asked| asked.about(fault));
        let answer = match self.answer {
            Answer::Raw => return,
            Answer::Socks5 => socks5::answer(socks_reply(&fault.code)).to_vec(),
            Answer::Connect | Answer::Http => http_answer(&told(self.asked.as_deref())).into_bytes(),
        };
        self.close_with(&answer).await;
    }

    /// Sends the last bytes of a conversation and closes in good order.
    pub(crate) async fn close_with(&mut self, last: &[u8]) {
        let told = async {
            self.io.write_all(last).await?;
            self.io.shutdown().await?;
            let mut rest = (&mut self.io).take(LINGER_BYTES);
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
        };
        // Whether the program listens to the end is its own affair: it was told.
        let _ = tokio::time::timeout(LINGER, told).await;
        self.ended = true;
    }

    /// Both directions ended in good order: closing needs no reset.
    pub(crate) const fn ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for AppStream {
    fn drop(&mut self) {
        if !self.ended {
            // An error means that the socket is closed already.
            let _ = self.io.set_zero_linger();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use weft_policy::code;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    fn denied() -> Fault {
        Fault::new(code::NO_ALLOW, "no policy allows this caller\x1b[2J")
            .fix("allow exactly this:   weft policy allow <caller> <service>")
    }

    async fn refused(answer: Answer) -> io::Result<Vec<u8>> {
        let (mut client, accepted) = pair().await;
        let app = AppStream::raw(accepted).answered_by(answer, Bytes::new()).asked_by(Asked {
            caller: "order.default".parse().unwrap(),
            service: Some("charge.default".parse().unwrap()),
            destination: "charge.weft.localhost".to_owned(),
            request: Some("GET /".to_owned()),
        });
        let mut seen = Vec::new();
        let (read, ()) = tokio::join!(
            async {
                let read = client.read_to_end(&mut seen).await;
                drop(client);
                read
            },
            async {
                app.refuse(&denied()).await;
            }
        );
        read.map(|_| seen)
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_programs_own_protocol() {
        let http = String::from_utf8(refused(Answer::Http).await.unwrap()).unwrap();
        assert!(http.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{http}");
        assert!(http.contains("\r\nX-Weft-Code: W2101\r\n"), "{http}");
        assert!(http.ends_with("      allow exactly this:   weft policy allow order charge\n"), "{http}");
        assert!(http.contains("\r\n\r\nW2101 denied  order → charge GET /   no policy allows"), "{http}");
        assert!(!http.contains('\x1b'), "{http}");
        assert!(refused(Answer::Connect).await.unwrap().starts_with(b"HTTP/1.1 403 "));
        assert_eq!(refused(Answer::Socks5).await.unwrap()[..2], [5, 2]);
        assert_eq!(refused(Answer::Raw).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn success_is_told_once() {
        let (mut client, accepted) = pair().await;
        let mut app = AppStream::raw(accepted).answered_by(Answer::Connect, Bytes::new());
        assert!(app.awaits_success());
        app.established().await.unwrap();
        app.established().await.unwrap();
        app.ended();
        drop(app);
        let mut seen = String::new();
        client.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "HTTP/1.1 200 Connection established\r\n\r\n");
    }
}
