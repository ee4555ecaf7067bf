//! A further server of the mesh: let in once, by a token of an admin.
//!
//! What it gets is a place for its root in the trust bundle, so that agents learn it while another server signs. From when on
//! it signs itself stands in its record: once every agent has come back for a certificate, and so for the bundle, and those
//! that are connected have acknowledged it (decisions.md, certificates).

use tonic::Code;
use tracing::info;
use weft_api::pb::identity::{GetBundleResponse, JoinRequest, JoinResponse};
use weft_identity::{bundle::TrustBundle, ca::SiblingRoot, spiffe::SpiffeId};
use weft_policy::code;

use super::{
    join_token::{JoinTokens, put, unchanged},
    record::{State, TokenRecord},
};
use crate::{
    layout,
    records::{Record, ServerRecord},
    refusal::{Refusal, catalogued},
    seal::RecordPublicKey,
    store::{Compare, Entry, StoreError},
};

impl JoinTokens {
    /// Lets the server in that `request` is of; `None` when something moved meanwhile.
    ///
    /// # Errors
    ///
    /// A refusal: its root is none, its name is taken, or this server is itself too new to vouch for others.
    pub(super) async fn admit_server(
        &self,
        token: &TokenRecord,
        entry: &Entry,
        request: &JoinRequest,
    ) -> Result<Option<JoinResponse>, Refusal> {
        let now = self.core.clock.now();
        if !self.core.signs() {
            let what = format!("server {} is itself too new to let another one in", self.core.instance);
            return Err(Refusal::new(Code::Unavailable, catalogued(code::SERVER_TOO_NEW, what)));
        }
        let refused = |what: String| Refusal::denied(code::SERVER_NOT_ADMITTED, what);
        let root = SiblingRoot::parse(&request.root, &self.core.trust_domain, now)
            .map_err(|error| refused(format!("its root cannot stand in the bundle: {error}")))?;
        let instance = &request.instance;
        let key = layout::server(instance).filter(|_| *instance != self.core.instance);
        let key = key.ok_or_else(|| refused("its name is taken, or is none".to_owned()))?;
        if self.core.store.get(&key).await?.is_some() {
            return Err(refused(format!("a server {instance} was let in already")));
        }
        let record_key = <[u8; 32]>::try_from(request.record_key.as_slice()).map(RecordPublicKey);
        let record_key = record_key.map_err(|_| refused("its record key is none".to_owned()))?;
        let fingerprint = root.fingerprint;
        let added = self.issuer.authority().with_root(&*self.core.store, root.certificate).await;
        let (bundle, published) = added.map_err(|failure| {
            Refusal::new(Code::Internal, catalogued(failure.code(), failure.to_string()))
        })?;
        let record = ServerRecord {
            record_key: record_key.to_hex(),
            root: fingerprint.iter().map(|byte| format!("{byte:02x}")).collect(),
            admitted_by: self.core.instance.clone(),
            token: token.id.clone(),
            admitted: now,
            signs_from: now + self.issuer.leaf_ttl(),
            bundle: bundle.sequence(),
        };
        let used = TokenRecord { state: State::Used, ..token.clone() };
        let compares = vec![unchanged(entry), Compare::Absent(key.clone()), published.0];
        let ops = vec![put(entry.key.clone(), used.encode()), put(key, record.encode()), published.1];
        let revision = match self.core.store.txn(compares, ops.clone()).await {
            Ok(revision) => revision,
            Err(StoreError::Conflict(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.core
            .records
            .trust(record_key)
            .map_err(|error| Refusal::new(Code::Internal, catalogued(error.code(), error.to_string())))?;
        self.core.world.wait_for_commit(revision, &ops).await;
        info!(
            target: "audit", instance, root = record.root, token = token.id, %revision,
            "a further server was let in; it signs itself when agents have taken its root, one leaf lifetime from now at the earliest"
        );
        let id = SpiffeId::server(&self.core.trust_domain, instance)
            .map_err(|error| refused(format!("its name is none: {error}")))?;
        Ok(Some(JoinResponse {
            chain: Vec::new(),
            bundle: Some(message(&bundle)),
            spiffe_id: id.to_string(),
            namespace: String::new(),
            cluster: self.core.cluster.to_string(),
            record_keys: self.core.records.ring().trusted().iter().map(|key| key.0.to_vec()).collect(),
        }))
    }
}

/// A bundle as agents and servers are told it.
pub(super) fn message(bundle: &TrustBundle) -> GetBundleResponse {
    GetBundleResponse {
        trust_domain: bundle.trust_domain().to_string(),
        sequence: bundle.sequence(),
        roots: bundle.roots().map(|root| root.to_vec()).collect(),
    }
}
