//! A peer that shakes hands like any other and then says what the input tells it to.
//!
//! TLS, packet numbers and encryption are real. Between quinn and the key stands [`Script`], which rewrites the frames of
//! a packet before they are sealed. So what arrives is authentic, and malformed or hostile at the level of frames.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::crypto::{
    ClientConfig, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError};

/// What happens to the packets of this peer, first to last.
#[derive(Debug)]
pub(crate) struct Script {
    from: From,
    steps: Mutex<VecDeque<Step>>,
}

/// Which packet is the first to be rewritten.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum From {
    /// The one with the certificate: frames of the handshake, and TLS messages in them.
    Handshake,
    /// The first under the keys of the application.
    Application,
}

/// What happens to one packet.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Nothing.
    Pass,
    /// These bytes stand from this offset on.
    Overwrite(u16, Vec<u8>),
    /// Nothing but these bytes, and padding.
    Replace(Vec<u8>),
}

impl Script {
    pub(crate) fn new(steps: VecDeque<Step>, from: From) -> Arc<Self> {
        Arc::new(Self { from, steps: Mutex::new(steps) })
    }

    /// Whether every step was taken.
    pub(crate) fn is_over(&self) -> bool {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Takes no further step: the packets from here on go out as they are.
    pub(crate) fn stop(&self) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn rewrite(&self, frames: &mut [u8]) {
        let step = self.steps.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let (from, bytes, rest) = match step.unwrap_or(Step::Pass) {
            Step::Pass => return,
            Step::Overwrite(from, bytes) => (usize::from(from) % frames.len().max(1), bytes, None),
            Step::Replace(bytes) => (0, bytes, Some(0)),
        };
        let count = bytes.len().min(frames.len() - from);
        frames[from..from + count].copy_from_slice(&bytes[..count]);
        if let Some(padding) = rest {
            frames[count..].fill(padding);
        }
    }
}

/// The configuration of such a peer.
pub(crate) struct Hostile {
    pub(crate) inner: Arc<QuicClientConfig>,
    pub(crate) script: Arc<Script>,
}

impl ClientConfig for Hostile {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let inner = Arc::clone(&self.inner).start_session(version, server_name, params)?;
        Ok(Box::new(HostileSession { inner, script: Arc::clone(&self.script), flights: 0 }))
    }
}

struct HostileSession {
    inner: Box<dyn Session>,
    script: Arc<Script>,
    /// Keys come twice: for the handshake and for the application.
    flights: u32,
}

impl HostileSession {
    fn sealed(&self, inner: Box<dyn PacketKey>) -> Box<dyn PacketKey> {
        Box::new(Sealer { inner, script: Arc::clone(&self.script) })
    }
}

impl Session for HostileSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.inner.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let mut keys = self.inner.write_handshake(buf)?;
        self.flights += 1;
        if self.flights == 2 || self.script.from == From::Handshake {
            keys.packet.local = self.sealed(keys.packet.local);
        }
        Some(keys)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.inner.next_1rtt_keys()?;
        Some(KeyPair { local: self.sealed(keys.local), remote: keys.remote })
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}

struct Sealer {
    inner: Box<dyn PacketKey>,
    script: Arc<Script>,
}

impl PacketKey for Sealer {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let end = buf.len() - self.inner.tag_len();
        self.script.rewrite(&mut buf[header_len..end]);
        self.inner.encrypt(packet, buf, header_len);
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        self.inner.decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.inner.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.inner.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.inner.integrity_limit()
    }
}
