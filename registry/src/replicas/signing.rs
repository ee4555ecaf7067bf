//! Has another server sign, for as long as agents may not know this one's root.
//!
//! Everything else is decided and written down here; the other server lends its key for what an admitted server asks
//! (`SignFor`). What comes back is read as if a stranger had sent it.

use std::{sync::Arc, time::Duration};

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
use weft_policy::{code, model::HostPort};

use crate::{
    core::Core,
    refusal::{Refusal, catalogued},
};

/// How long the other server may take; an agent waits for the answer meanwhile.
const WITHIN: Duration = Duration::from_secs(5);

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
    use std::time::Duration;

    use weft_identity::bundle::TrustBundles;

    use super::*;
    use crate::{
        clock::Clock,
        layout,
        records::{Record, ServerRecord},
        samples::Rig,
        store::Expected,
    };

    #[tokio::test]
    async fn a_server_that_is_too_new_has_others_sign_and_says_so_when_nobody_does() {
        let now = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (clock, hands) = Clock::test(now);
        let rig = Rig::with_clock(clock).await;
        assert!(rig.core.signs(), "the first server was let in by nobody");
        let record = ServerRecord {
            root: "0a".to_owned(),
            record_key: "0b".repeat(32),
            admitted_by: "s-1".to_owned(),
            token: "t-1".to_owned(),
            admitted: now,
            signs_from: now + Duration::from_secs(3_600),
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

        hands.set_wall(now + Duration::from_secs(3_600));
        assert!(rig.core.signs(), "its time has come");
    }
}
