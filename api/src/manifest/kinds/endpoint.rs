//! Endpoints: records only, since nobody writes them by hand.

use std::collections::BTreeMap;

use serde_json::Value;
use weft_policy::{
    model::{Endpoint, EndpointState, HostPort},
    name::ServiceName,
};

use super::workload;
use crate::manifest::{
    fields::At,
    metadata::{MAX_LABELS, label},
    output::Output,
};

/// The most addresses of an endpoint.
const MAX_ADDRESSES: usize = 8;
/// The largest weight.
const MAX_WEIGHT: u32 = 10_000;

const STATES: [(&str, EndpointState); 2] =
    [("Confirmed", EndpointState::Confirmed), ("Unconfirmed", EndpointState::Unconfirmed)];

pub(in crate::manifest) fn read(at: &At<'_>) -> Option<Endpoint> {
    let mut object = at.object()?;
    let namespace = object.required("namespace").and_then(|at| at.parse());
    let service = object.required("service").and_then(|at| at.parse());
    let workload = object.required("workload").and_then(|at| at.parse());
    let node = object.required("node").and_then(|at| at.parse());
    let identity = object.required("identity").and_then(|at| at.parse());
    let label_ = object.required("label").and_then(|at| at.parse());
    let addresses =
        object.required("addresses").and_then(|at| at.each(MAX_ADDRESSES, |at| at.parse::<HostPort>()));
    let weight = object.required("weight").and_then(|at| at.small(0..=MAX_WEIGHT));
    let locality = object.required("locality").and_then(|at| workload::locality(&at));
    let labels: Option<BTreeMap<_, _>> = object.required("labels").and_then(|at| at.texts(MAX_LABELS, label));
    let boot = object.required("boot").and_then(|at| at.integer(0..=u64::MAX));
    let state = object.required("state").and_then(|at| at.choice(&STATES));
    object.finish();
    Some(Endpoint {
        service: ServiceName::new(namespace?, service?),
        workload: workload?,
        node: node?,
        identity: identity?,
        label: label_?,
        addresses: addresses?,
        weight: weight?,
        locality: locality?,
        labels: labels?,
        boot: boot?,
        state: state?,
    })
}

pub(in crate::manifest) fn write(endpoint: &Endpoint, out: Output) -> Value {
    let locality = workload::write_locality(&endpoint.locality, out.inner());
    let state = match endpoint.state {
        EndpointState::Confirmed => "Confirmed",
        EndpointState::Unconfirmed => "Unconfirmed",
    };
    out.text("namespace", &endpoint.service.namespace)
        .text("service", &endpoint.service.name)
        .text("workload", &endpoint.workload)
        .text("node", &endpoint.node)
        .text("identity", &endpoint.identity)
        .text("label", &endpoint.label)
        .texts("addresses", &endpoint.addresses)
        .put("weight", endpoint.weight)
        .put("locality", locality)
        .map("labels", &endpoint.labels)
        .put("boot", endpoint.boot)
        .put("state", state)
        .done()
}
