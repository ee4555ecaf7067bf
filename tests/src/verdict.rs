//! What came of one hostile handshake, on both ends of it.
//!
//! A refusal is whole only if the victim says a reason from its fixed set, the attacker gets the alert, and no
//! tunnel, so no stream, ever existed on the victim.

use std::sync::Arc;

use quinn::ConnectionError;
use weft_identity::tls::{ExpectedPeer, PeerIdentity};
use weft_overlay::{AcceptError, CloseCode, CloseReason, DialError, Overlay};

use crate::forge::Forged;
use crate::handshake::{Lab, SERVER_NAME, address, connecting, listen};

/// TLS alerts stand in QUIC error codes from here on (RFC 9001 section 4.8).
const CRYPTO_ERROR: u64 = 0x100;

/// `certificate_unknown`: what Weft says of every chain that proves nothing.
pub const CERTIFICATE_UNKNOWN: u8 = 46;

/// What came of a handshake.
pub type Verdict = Result<PeerIdentity, Refusal>;

/// A handshake that failed.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The victim's reason, one of a fixed set: the label of its counter.
    pub reason: &'static str,
    /// The victim's reason in full.
    pub detail: String,
    /// The alert by which the attacker was told, if it was one.
    pub told: Option<u8>,
    /// Whether the attacker got to see the certificate of a victim that dialled.
    pub seen: bool,
}

/// Calls `victim` with `config` and opens a stream at once.
///
/// # Panics
///
/// If the victim refuses and yet has a tunnel.
pub(crate) async fn judge_caller(victim: &Overlay, config: rustls::ClientConfig) -> Verdict {
    let hostile = async {
        let connection =
            connecting(address(victim), config).expect("a configuration that can be dialled with").await?;
        // A client of TLS 1.3 has finished before it is judged; what it sends then must reach nobody.
        if let Ok((mut send, _receive)) = connection.open_bi().await {
            let _ = send.write_all(b"before the verdict").await;
            return Err(connection.closed().await);
        }
        Err(connection.closed().await)
    };
    let judged = async {
        let accepted = victim.accept().await.expect("the endpoint is open").finish().await;
        match accepted {
            Ok(tunnel) => {
                let peer = tunnel.peer().clone();
                tunnel.close(CloseCode::Done, "the test has seen enough");
                Ok(peer)
            }
            Err(error) => Err(accept_reason(error)),
        }
    };
    let (told, judged) = tokio::join!(hostile, judged);
    let told: Result<(), ConnectionError> = told;
    let refusal = |(reason, detail)| Refusal { reason, detail, told: alert(told), seen: true };
    judged.map_err(refusal).inspect_err(|refusal| assert_no_tunnel(victim, refusal))
}

/// Lets `victim` dial a server with `config`.
///
/// # Panics
///
/// If the victim refuses and yet has a tunnel.
pub(crate) async fn judge_callee(
    victim: &Overlay,
    client: rustls::ClientConfig,
    config: rustls::ServerConfig,
) -> Verdict {
    let attacker = listen(config);
    let targets = [attacker.local_addr().expect("it is bound")];
    let hostile = async {
        let connection = attacker.accept().await.expect("the victim dials").await?;
        let seen = connection.peer_identity().is_some();
        let _ = connection.open_bi().await;
        let _ = connection.closed().await;
        Ok(seen)
    };
    let judged = async {
        match victim.dial(&targets, SERVER_NAME, Arc::new(client)).await {
            Ok(tunnel) => {
                let peer = tunnel.peer().clone();
                tunnel.close(CloseCode::Done, "the test has seen enough");
                Ok(peer)
            }
            Err(error) => Err(dial_reason(error)),
        }
    };
    let (told, judged) = tokio::join!(hostile, judged);
    let seen = matches!(told, Ok(true));
    let refusal = |(reason, detail)| Refusal { reason, detail, told: alert(told.map(drop)), seen };
    judged.map_err(refusal).inspect_err(|refusal| assert_no_tunnel(victim, refusal))
}

fn assert_no_tunnel(victim: &Overlay, refusal: &Refusal) {
    assert!(victim.tunnels().is_empty(), "a refused peer has a tunnel: {refusal:?}");
}

fn accept_reason(error: AcceptError) -> (&'static str, String) {
    match error {
        AcceptError::Refused(reason) => close_reason(&reason),
        error @ (AcceptError::Timeout { .. }
        | AcceptError::Identity(_)
        | AcceptError::Protocol
        | AcceptError::Displaced
        | AcceptError::OverLimit { .. }) => ("not_tls", error.to_string()),
    }
}

fn dial_reason(error: DialError) -> (&'static str, String) {
    match error {
        DialError::Refused { reason, .. } => close_reason(&reason),
        error @ (DialError::NoAddress
        | DialError::Blocked { .. }
        | DialError::HandshakeTimeout { .. }
        | DialError::Identity { .. }
        | DialError::Invalid { .. }
        | DialError::Config(_)
        | DialError::Closing) => ("not_tls", error.to_string()),
    }
}

fn close_reason(reason: &CloseReason) -> (&'static str, String) {
    (reason.label(), reason.to_string())
}

fn alert(told: Result<(), ConnectionError>) -> Option<u8> {
    match told {
        Err(ConnectionError::ConnectionClosed(close)) => {
            u8::try_from(u64::from(close.error_code).wrapping_sub(CRYPTO_ERROR)).ok()
        }
        _ => None,
    }
}

impl Lab {
    /// Checks that `forged` is refused in both roles, for `reason` and with words that contain `says`; that the
    /// attacker hears an alert; that a victim that dials never shows its own certificate.
    ///
    /// # Panics
    ///
    /// If not.
    pub async fn refuses(&self, case: &str, forged: &Forged, reason: &str, says: &str) {
        let caller = self.judge_caller(forged).await.expect_err(case);
        caller.check(&format!("{case}, as caller"), reason, says);
        let callee = self.judge_callee(forged, ExpectedPeer::Anyone).await.expect_err(case);
        callee.check(&format!("{case}, as callee"), reason, says);
        assert!(!callee.seen, "{case}: the attacker saw the certificate of the victim");
    }

    /// Checks that `forged` is accepted in both roles.
    ///
    /// # Panics
    ///
    /// If not.
    pub async fn accepts(&self, case: &str, forged: &Forged) -> PeerIdentity {
        let called = self.judge_caller(forged).await;
        let called = called.unwrap_or_else(|refusal| panic!("{case}, as caller: {refusal:?}"));
        let dialled = self.judge_callee(forged, ExpectedPeer::Anyone).await;
        let dialled = dialled.unwrap_or_else(|refusal| panic!("{case}, as callee: {refusal:?}"));
        assert_eq!(called, dialled, "{case}");
        called
    }
}

impl Refusal {
    /// Checks that it was a judgement of the certificate, with these words.
    ///
    /// # Panics
    ///
    /// If not.
    pub fn check(&self, case: &str, reason: &str, says: &str) {
        assert_eq!(self.reason, reason, "{case}: {self:?}");
        assert!(self.detail.contains(says), "{case}: not {says:?} in {self:?}");
        assert_eq!(self.told, Some(CERTIFICATE_UNKNOWN), "{case}: {self:?}");
    }

    /// Checks that TLS itself refused, before or after the certificate, with `alert`.
    ///
    /// # Panics
    ///
    /// If not.
    pub fn check_alert(&self, case: &str, alert: u8) {
        assert_eq!((self.reason, self.told), ("tls_refused", Some(alert)), "{case}: {self:?}");
    }
}
