//! When a server that was let in signs itself; until then it has another one sign, as agents may not know its root.
//!
//! Everything else is decided and written down here; the other server lends its key for what an admitted server asks
//! (`SignFor`). What comes back is read as if a stranger had sent it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;
use tokio::sync::Mutex;
use tonic::{Code, transport::Channel};
use tracing::warn;
use weft_api::{
    channel::{self, ALPN_H2},
    pb::identity::{SignForRequest, identity_client::IdentityClient},
};
use weft_identity::{
    ca::IssuedSvid,
    csr::SigningRequest,
    spiffe::SpiffeId,
    tls::{BundleSlot, ExpectedPeer, SvidSlot, client_config},
};
use weft_policy::{code, model::HostPort, name::NodeName};

use crate::{
    core::Core,
    liveness::GRACE,
    records::ServerRecord,
    refusal::{Refusal, catalogued},
};

/// How long the other server may take; an agent waits for the answer meanwhile.
const WITHIN: Duration = Duration::from_secs(5);

/// The part of a leaf's life for which a server that may sign waits for agents that do not acknowledge its root. Every
/// certificate has more left at any moment (0.45), so nobody's ends in the wait when no other server is there to sign.
const PATIENCE: u32 = 4;

/// Whether the server that was let in with `record` begins to sign itself at `now`: a leaf's life has passed since, in which
/// every agent that was away came back, and `lacking`, the connected agents without its root, names none. An agent that
/// never acknowledges holds it up for a quarter of that life and no longer; that is told, by a server that has `served`
/// for long enough to know its agents.
pub(crate) fn begins(
    record: &ServerRecord,
    now: SystemTime,
    served: Duration,
    lacking: impl FnOnce() -> Vec<NodeName>,
) -> bool {
    if now < record.signs_from {
        return false;
    }
    let lacking = lacking();
    let life = record.signs_from.duration_since(record.admitted).unwrap_or_default();
    let is_over = record.signs_from + life / PATIENCE <= now;
    if is_over
        && served >= GRACE
        && let Some(first) = lacking.first()
    {
        let (code, count) = (code::ROTATION_FORCED, lacking.len());
        warn!(%code, count, %first, "this server signs although agents have not acknowledged its root");
    }
    is_over || lacking.is_empty()
}

/// Asks servers that sign. One connection is kept and shared.
#[derive(Debug)]
pub struct Elsewhere {
    slot: SvidSlot,
    bundles: BundleSlot,
    channel: Mutex<Option<Channel>>,
}

impl Elsewhere {
    /// Nobody was asked yet. `slot` and `bundles` are this server's own.
    #[must_use]
    pub fn new(slot: SvidSlot, bundles: BundleSlot) -> Self {
        Self { slot, bundles, channel: Mutex::default() }
    }

    /// Has `csr` signed for `id`.
    ///
    /// # Errors
    ///
    /// A refusal: no server that signs is there or answers, or what it sent is not what was asked for.
    pub async fn sign(
        &self,
        core: &Core,
        csr: &SigningRequest,
        id: &SpiffeId,
        ttl: Duration,
    ) -> Result<IssuedSvid, Refusal> {
        let none = |what: String| Refusal::new(Code::Unavailable, catalogued(code::SERVER_TOO_NEW, what));
        let channel = self.channel(core).await.map_err(none)?;
        let request = SignForRequest {
            spiffe_id: id.to_string(),
            csr: csr.der().to_vec(),
            ttl_seconds: ttl.as_secs().max(1),
        };
        let asked = tokio::time::timeout(WITHIN, IdentityClient::new(channel).sign_for(request)).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                self.forget().await;
                return Err(none(format!("another server does not sign for this one: {}", status.message())));
            }
            Err(_elapsed) => {
                self.forget().await;
                return Err(none(format!("no server has signed for this one within {WITHIN:?}")));
            }
        };
        let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
        let root = <[u8; 32]>::try_from(answer.root).unwrap_or_default();
        IssuedSvid::read(chain, id, csr, root).map_err(|error| {
            warn!(%error, %id, "another server signed something else than it was asked for");
            none("another server signed something else than it was asked for".to_owned())
        })
    }

    async fn channel(&self, core: &Core) -> Result<Channel, String> {
        let mut kept = self.channel.lock().await;
        if let Some(channel) = &*kept {
            return Ok(channel.clone());
        }
        let addresses: Vec<HostPort> = {
            let servers = core.servers.borrow();
            let others = servers.iter().filter(|server| server.signs && server.instance != core.instance);
            others.flat_map(|server| server.addresses.clone()).collect()
        };
        let Some(first) = addresses.first() else {
            return Err("no server that signs is there".to_owned());
        };
        let expected = ExpectedPeer::AnyServerOf(core.trust_domain.clone());
        let tls = client_config(Some(self.slot.clone()), self.bundles.clone(), expected, &[ALPN_H2]);
        let connected = channel::connect(&addresses, Arc::new(tls), &first.host).await;
        let channel = connected.map_err(|error| format!("no server that signs can be reached: {error}"))?;
        *kept = Some(channel.clone());
        Ok(channel)
    }

    /// The next one is asked over a new connection.
    async fn forget(&self) {
        *self.channel.lock().await = None;
    }
}

#[cfg(test)]
mod tests {
    use weft_identity::bundle::TrustBundles;

    use super::*;
    use crate::{clock::Clock, layout, records::Record, samples::Rig, store::Expected};

    const LIFE: Duration = Duration::from_secs(3_600);

    #[test]
    fn an_agent_that_never_acknowledges_holds_a_server_up_for_a_quarter_of_a_leafs_life() {
        let admitted = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let record = ServerRecord {
            root: String::new(),
            record_key: String::new(),
            admitted_by: String::new(),
            token: String::new(),
            admitted,
            signs_from: admitted + LIFE,
            bundle: 7,
        };
        let begins = |after: Duration, lacking: &[&str]| {
            let lacking = || lacking.iter().map(|name| name.parse().unwrap()).collect();
            begins(&record, admitted + after, GRACE, lacking)
        };
        let second = Duration::from_secs(1);
        for (after, lacking, expected) in [
            (LIFE - second, &[][..], false),
            (LIFE, &[], true),
            (LIFE, &["hosta"], false),
            (LIFE + LIFE / 4 - second, &["hosta"], false),
            (LIFE + LIFE / 4, &["hosta"], true),
        ] {
            assert_eq!(begins(after, lacking), expected, "{after:?} {lacking:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_too_new_has_others_sign_and_says_so_when_nobody_does() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (clock, hands) = Clock::test(now);
        let rig = Rig::with_clock(clock).await;
        assert!(rig.core.signs(), "the first server was let in by nobody");
        let record = ServerRecord {
            root: "0a".to_owned(),
            record_key: "0b".repeat(32),
            admitted_by: "s-1".to_owned(),
            token: "t-1".to_owned(),
            admitted: now,
            signs_from: now + LIFE,
            bundle: 7,
        };
        let key = layout::server(&rig.core.instance).unwrap();
        let revision = rig.core.store.put(key, record.encode(), Expected::Absent, None).await.unwrap();
        rig.core.world.wait_for(revision).await;
        assert!(!rig.core.signs());

        let elsewhere = Elsewhere::new(SvidSlot::empty(), BundleSlot::new(TrustBundles::default()));
        let (_, csr) = SigningRequest::create().unwrap();
        let csr = SigningRequest::parse(&csr).unwrap();
        let id = SpiffeId::node(&rig.core.trust_domain, "hosta").unwrap();
        let refused = elsewhere.sign(&rig.core, &csr, &id, Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(&*refused.faults()[0].code, code::SERVER_TOO_NEW.as_str());

        // Its time has come, and an agent is connected that has not said that it has the root.
        let node = "hosta".parse().unwrap();
        let agent = rig.core.presence.connect(&node, 1, "0.1.0".to_owned()).unwrap();
        hands.set_wall(now + LIFE);
        assert!(!rig.core.signs());
        agent.has_bundle(6);
        assert!(!rig.core.signs(), "an older bundle is without it");
        agent.has_bundle(7);
        assert!(rig.core.signs());
        rig.core.presence.connect(&"hostb".parse().unwrap(), 1, "0.1.0".to_owned()).unwrap();
        assert!(rig.core.signs(), "it does not stop again");
    }
}
