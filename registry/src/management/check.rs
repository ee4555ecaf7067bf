//! `policy check`: the decision that the destination's agent would make, by the same code from the same view.

use std::{net::IpAddr, sync::Arc};

use weft_api::{
    convert::management as convert,
    pb::management::{CheckPolicyRequest, CheckPolicyResponse},
};
use weft_identity::spiffe::SpiffeId;
use weft_policy::{
    authz::{Authorization, CallRequest, Impact, Principal, RuleRef, ShadowVerdict, explain::Explanation},
    code,
    model::{DefaultAuthorization, Key, Kind, Resource},
    name::ServiceName,
    snapshot::{Revision, Snapshot, SnapshotContext},
};

use super::{change::MAX_OBJECTS, require_for};
use crate::{
    catalog::Catalog,
    core::Core,
    discovery::service_name,
    refusal::{Refusal, catalogued},
    roles::{Caller, Role},
    view::{self, Interest},
    world::World,
};

pub(super) fn check(
    core: &Core,
    caller: &Caller,
    request: &CheckPolicyRequest,
) -> Result<CheckPolicyResponse, Refusal> {
    let service = service_name(&request.service)
        .ok_or_else(|| Refusal::bad_value("service", "a service is name.namespace"))?;
    let key =
        Key { kind: Kind::Service, namespace: Some(service.namespace.clone()), name: service.name.clone() };
    require_for(caller, &key, Role::Viewer)?;
    let source = source(&request.source)?;
    let network = network(&request.source_ip)?;
    let snapshot = snapshot(core, request, &service)?;
    let port = port(&snapshot, &service, request.port)?;
    let principal = source.as_ref().map_or(Principal::Unauthenticated, Principal::Spiffe);
    let call = CallRequest { source: principal, service: &service, port, network };
    let (authorization, explanation) = snapshot.explain(&call);
    Ok(answer(&snapshot, &service, &authorization, explanation))
}

fn source(text: &str) -> Result<Option<SpiffeId>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| {
        Refusal::invalid(vec![catalogued(code::BAD_SPIFFE_ID, format!("{error}")).at("source", None)])
    })
}

fn network(text: &str) -> Result<Option<IpAddr>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let address: IpAddr = text
        .parse()
        .map_err(|_| Refusal::invalid(vec![catalogued(code::BAD_ADDRESS, "sourceIp is an IP address")]))?;
    Ok(Some(address.to_canonical()))
}

/// What an agent that hosts the service would have in force, with the request's objects laid over.
fn snapshot(core: &Core, request: &CheckPolicyRequest, service: &ServiceName) -> Result<Snapshot, Refusal> {
    let world = core.world.current();
    let world = if request.overlay.is_empty() {
        world
    } else {
        let catalog = overlaid(core, request, world.catalog())?;
        Arc::new(World::derive(Arc::new(catalog), world.standings().clone(), Some(&world)))
    };
    let view = view::build(&world, &Interest::of_destination(service));
    let context = SnapshotContext { trust_domain: core.trust_domain.clone() };
    Snapshot::build(Arc::new(view), Revision(world.catalog().revision().0), context).map_err(|error| {
        let faults = error.faults.iter().map(|fault| catalogued(fault.code(), fault.to_string()));
        Refusal::invalid(faults.collect())
    })
}

fn overlaid(core: &Core, request: &CheckPolicyRequest, catalog: &Catalog) -> Result<Catalog, Refusal> {
    if request.overlay.len() > MAX_OBJECTS {
        let what = format!("{} objects to lay over, at most {MAX_OBJECTS}", request.overlay.len());
        return Err(Refusal::invalid(vec![catalogued(code::OVER_LIMIT, what)]));
    }
    let mut catalog = catalog.clone();
    for resource in convert::resources(&request.overlay, None).map_err(Refusal::invalid)? {
        if let Resource::Mesh(mesh) = &resource
            && mesh.trust_domain != core.trust_domain
        {
            let what = format!("the trust domain is {} for good", core.trust_domain);
            return Err(Refusal::invalid(vec![catalogued(code::IMMUTABLE, what)]));
        }
        catalog.put(resource);
    }
    Ok(catalog)
}

/// The port that is meant: the service's default one when none is named.
fn port(snapshot: &Snapshot, service: &ServiceName, asked: u32) -> Result<u16, Refusal> {
    let asked = u16::try_from(asked).map_err(|_| Refusal::bad_value("port", "a port is 1 to 65535"))?;
    let Some(destination) = snapshot.destination(service).filter(|_| asked == 0) else { return Ok(asked) };
    destination.service().default_port().map(|port| port.number).ok_or_else(|| {
        let ports: Vec<_> = destination.service().ports.iter().map(|port| port.number.to_string()).collect();
        let what =
            format!("{service} has several ports and none is named http: name one of {}", ports.join(", "));
        Refusal::invalid(vec![catalogued(code::UNKNOWN_PORT, what).at("port", None)])
    })
}

fn answer(
    snapshot: &Snapshot,
    service: &ServiceName,
    authorization: &Authorization,
    explanation: Explanation,
) -> CheckPolicyResponse {
    let allowed = authorization.decision.is_allowed();
    let rule = authorization.decision.rule();
    let default = snapshot.destination(service).map(|destination| destination.default_authorization());
    let (default_from, default_mode) = default.map_or(("", ""), |(origin, default)| {
        let mode = match default {
            DefaultAuthorization::Deny => "deny",
            DefaultAuthorization::Audit => "audit",
            DefaultAuthorization::Allow => "allow",
        };
        (origin.name(), mode)
    });
    CheckPolicyResponse {
        allowed,
        code: explanation.code.map(|code| code.to_string()).unwrap_or_default(),
        what: explanation.what,
        why: explanation.why,
        fix: explanation.fix,
        policy: rule.map(policy).unwrap_or_default(),
        rule: rule.map(|rule| rule.name().to_string()).unwrap_or_default(),
        default_mode: default_mode.to_owned(),
        default_from: default_from.to_owned(),
        shadow: authorization.shadow.iter().map(shadow).collect(),
        revision: snapshot.revision().0,
    }
}

fn policy(rule: &RuleRef) -> String {
    let metadata = &rule.policy().metadata;
    format!("{}.{}", metadata.name, metadata.owner())
}

fn shadow(verdict: &ShadowVerdict) -> String {
    let effect = match verdict.impact {
        Impact::WouldDeny => "would deny",
        Impact::WouldAllow => "would allow",
        Impact::None => "would change nothing",
    };
    format!("{}: rule {} {effect}", policy(&verdict.found.rule), verdict.found.rule.name())
}
