//! The explicit proxy: what a client says on the proxy port until its caller and its destination are known.
//!
//! Owns the conversation; the messages are [`super::socks5`]'s, [`super::connect`]'s and [`super::forward`]'s. The first
//! byte tells the protocol: 5 begins SOCKS5, an upper-case letter the method of an HTTP request. One deadline holds for
//! all of it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    InterceptError, Interception, Protocol,
    caller::{self, LocalWorkload, LocalWorkloads, Unproven},
    connect::connect,
    credential::Credential,
    destination::Destination,
    exchange::exchange,
    forward::{self, ForwardError, forward},
    http_head::{self, HeadLimits, RequestHead},
    sock_diag::SocketEntry,
    socks5::{self, Parsed, SocksError},
};
use crate::app::{Answer, AppStream};

/// Whom a proxy port speaks for.
#[derive(Clone, Debug)]
pub enum Owner {
    /// The one workload it was opened for.
    Workload(Arc<LocalWorkload>),
    /// Whoever of these the caller is.
    Shared(LocalWorkloads),
}

impl Owner {
    /// Proves the caller. A credential counts on the shared port only: elsewhere there is nothing to select.
    fn prove(
        &self,
        entry: Option<SocketEntry>,
        presented: Option<&Credential>,
    ) -> Result<Arc<LocalWorkload>, Unproven> {
        match (self, presented) {
            (Self::Workload(owner), _) => caller::prove_owner(entry, owner),
            (Self::Shared(all), Some(credential)) => caller::prove_selected(entry, credential, &all.load()),
            (Self::Shared(all), None) => caller::prove(entry, all.load().iter().map(|one| &one.workload)),
        }
    }
}

/// A connection with caller and destination.
pub(super) struct Opened {
    pub(super) app: AppStream,
    pub(super) source: Arc<LocalWorkload>,
    pub(super) destination: Destination,
    pub(super) protocol: Protocol,
    /// Method and path of a plain HTTP request.
    pub(super) request: Option<String>,
}

/// Reads the first bytes of `app` until caller and destination are known, and tells the client if that fails.
pub(super) async fn open(
    app: AppStream,
    owner: &Owner,
    entry: Option<SocketEntry>,
    shared: &Interception,
) -> Result<Opened, InterceptError> {
    let mut talk = Talk { app, buffer: BytesMut::new(), answer: Answer::Raw };
    let limit = shared.limits.timeout;
    let opened = tokio::time::timeout(limit, talk.open(owner, entry, shared)).await;
    let error = match opened.unwrap_or(Err(InterceptError::Timeout(limit))) {
        Ok(Request { source, destination, protocol, forward }) => {
            return Ok(talk.opened(source, destination, protocol, forward, shared));
        }
        Err(error) => error,
    };
    talk.refuse(&error).await;
    Err(error)
}

/// What was read of a client.
struct Request {
    source: Arc<LocalWorkload>,
    destination: Destination,
    protocol: Protocol,
    forward: Option<forward::Forward>,
}

/// The conversation up to the request.
struct Talk {
    app: AppStream,
    buffer: BytesMut,
    /// How a failure is told by now.
    answer: Answer,
}

impl Talk {
    async fn open(
        &mut self,
        owner: &Owner,
        entry: Option<SocketEntry>,
        shared: &Interception,
    ) -> Result<Request, InterceptError> {
        while self.buffer.is_empty() {
            self.more().await?;
        }
        match self.buffer[0] {
            socks5::VERSION => self.socks(owner, entry, &shared.own_ports).await,
            b'A'..=b'Z' => self.http(owner, entry, shared).await,
            other => Err(InterceptError::Unknown(other)),
        }
    }

    async fn socks(
        &mut self,
        owner: &Owner,
        entry: Option<SocketEntry>,
        own_ports: &[u16],
    ) -> Result<Request, InterceptError> {
        let method = self.message(socks5::greeting).await.inspect_err(|_| self.answer = Answer::Raw);
        let method = match method {
            Err(InterceptError::Socks(SocksError::NoMethod)) => {
                self.app.close_with(&socks5::NO_METHOD).await;
                return Err(SocksError::NoMethod.into());
            }
            method => method?,
        };
        self.app.io.write_all(&socks5::choose(method)).await?;
        let credential = match method {
            socks5::Method::None => None,
            socks5::Method::Password => Some(self.message(socks5::credential).await?),
        };
        let proven = owner.prove(entry, credential.as_ref());
        if credential.is_some() {
            if let Err(unproven) = proven {
                self.app.close_with(&socks5::verdict(false)).await;
                return Err(unproven.into());
            }
            self.app.io.write_all(&socks5::verdict(true)).await?;
        }
        self.answer = Answer::Socks5;
        let destination = self.message(socks5::request).await;
        // Without a credential the refusal is the answer to the request: SOCKS5 has no earlier place for it.
        let source = proven?;
        let destination = destination?.without_own_port(own_ports);
        Ok(Request { source, destination, protocol: Protocol::Socks5, forward: None })
    }

    async fn http(
        &mut self,
        owner: &Owner,
        entry: Option<SocketEntry>,
        shared: &Interception,
    ) -> Result<Request, InterceptError> {
        self.answer = Answer::Http;
        let head = self.head(&shared.limits).await?;
        let credential = basic(&head)?;
        let source = owner.prove(entry, credential.as_ref())?;
        if head.method == "CONNECT" {
            self.answer = Answer::Connect;
            let destination = connect(&head, &shared.own_ports)?;
            return Ok(Request { source, destination, protocol: Protocol::Connect, forward: None });
        }
        let forward = forward(&head, &shared.own_ports)?;
        let destination = forward.destination.clone();
        Ok(Request { source, destination, protocol: Protocol::Http, forward: Some(forward) })
    }

    /// Reads one message of SOCKS5 and leaves what is behind it in the buffer.
    async fn message<T>(&mut self, parse: fn(&[u8]) -> Parsed<T>) -> Result<T, InterceptError> {
        loop {
            if let Some((message, used)) = parse(&self.buffer)? {
                let _ = self.buffer.split_to(used);
                return Ok(message);
            }
            self.more().await?;
        }
    }

    /// Reads one HTTP head and leaves what is behind it in the buffer.
    async fn head(&mut self, limits: &HeadLimits) -> Result<RequestHead, InterceptError> {
        let mut seen = 0;
        loop {
            let end = http_head::find_end(&self.buffer, seen, limits).map_err(ForwardError::Head)?;
            if let Some(end) = end {
                let head = self.buffer.split_to(end).freeze();
                return Ok(http_head::parse_request(&head, limits).map_err(ForwardError::Head)?);
            }
            seen = self.buffer.len();
            self.more().await?;
        }
    }

    /// Reads what has arrived. Every message is bounded, so the buffer is.
    async fn more(&mut self) -> Result<(), InterceptError> {
        self.buffer.reserve(1_024);
        if self.app.io.read_buf(&mut self.buffer).await? == 0 {
            return Err(InterceptError::Closed);
        }
        Ok(())
    }

    fn opened(
        self,
        source: Arc<LocalWorkload>,
        destination: Destination,
        protocol: Protocol,
        forward: Option<forward::Forward>,
        shared: &Interception,
    ) -> Opened {
        let behind = self.buffer.freeze();
        let app = self.app.answered_by(self.answer, behind);
        let request = forward.as_ref().map(|forward| forward.request.clone());
        let app = match forward {
            Some(forward) => {
                let gates = exchange(forward.body, forward.upgrades, shared.limits);
                app.with_exchange(forward.head, gates)
            }
            None => app,
        };
        Opened { app, source, destination, protocol, request }
    }

    async fn refuse(self, error: &InterceptError) {
        self.app.answered_by(self.answer, Bytes::new()).refuse(&error.fault()).await;
    }
}

fn basic(head: &RequestHead) -> Result<Option<Credential>, InterceptError> {
    let twice = "it has two Proxy-Authorization headers";
    let value = head.headers.only("proxy-authorization", twice).map_err(ForwardError::Head)?;
    value.map(Credential::parse_basic).transpose().map_err(|_| InterceptError::Credential)
}
