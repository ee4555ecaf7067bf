//! Status: one look at everything, problems first.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use weft_api::pb::management::{
    AgentStatus, PendingChange, Problem, ServerStatus, ServiceStatus, StatusResponse,
};
use weft_policy::{
    code::{self, CodeId},
    model::EndpointState,
    name::NodeName,
};

use super::unconfirmed;
use crate::{
    core::{Authority, Core, VERSION},
    denied::{self, DeniedRecord},
    presence::{Link, Report},
    refusal::Refusal,
    replicas::Seat,
    roles::{Caller, Role},
    seal::{Group, group::Closes},
    world::World,
};

/// How long an agent may take to answer an update before it is told (cli.md 7, sync lag).
const MAX_LAG: Duration = Duration::from_secs(5);
/// The most problems that are told; more say nothing more.
const MAX_PROBLEMS: usize = 100;

pub(super) async fn status(core: &Core, caller: &Caller, authority: &dyn Authority) -> StatusResponse {
    // A store that does not answer is a problem to be told, no reason to tell nothing.
    let (pending, unread) = match unconfirmed::told(core, caller).await {
        Ok(pending) => (pending, None),
        Err(refusal) => (Vec::new(), Some(unread(&refusal))),
    };
    let world = core.world.current();
    let seats = Seats {
        own: core.instance.clone(),
        reports: core.presence.reports(),
        elsewhere: core.presence.connected_elsewhere(),
    };
    let services = services(&world, caller);
    let mut problems = authority.problems();
    problems.extend(core.store.stale_for().map(of_store));
    problems.extend(of_groups(core, &world, caller).await);
    problems.extend(unread);
    problems.extend(core.audit.problems());
    problems.extend(of_changes(&pending));
    problems.extend(of_agents(&world, &seats, core.clock.uptime()));
    problems.extend(of_services(&services));
    problems.extend(of_records(&world, caller));
    problems.truncate(MAX_PROBLEMS);
    StatusResponse {
        trust_domain: core.trust_domain.to_string(),
        cluster: core.cluster.to_string(),
        instance: core.instance.clone(),
        version: VERSION.to_owned(),
        revision: world.catalog().revision().0,
        agents: agents(&world, &seats),
        servers: servers(core, &seats),
        services,
        authority: Some(authority.status()),
        uptime_seconds: core.clock.uptime().as_secs(),
        problems,
        pending,
        denied: u64::try_from(world.denied().len()).unwrap_or(u64::MAX),
    }
}

fn unread(refusal: &Refusal) -> Problem {
    let fault = &refusal.faults()[0];
    let what = format!("cannot read which changes wait for their confirmation: {}", fault.what);
    Problem { code: fault.code.to_string(), what, fix: fault.fix.clone() }
}

/// The store has not answered for `age`.
fn of_store(age: Duration) -> Problem {
    let what = format!(
        "the store has not answered for {} s: what is shown is as of then, and nothing can be changed or issued",
        age.as_secs()
    );
    problem(code::STORE_UNAVAILABLE, what)
}

/// Changes that could not be taken back. Those that wait in good order are no problem.
fn of_changes(pending: &[PendingChange]) -> Vec<Problem> {
    let failed = pending.iter().filter(|pending| !pending.failed.is_empty());
    failed
        .map(|pending| {
            let what = format!("change {} of {}: {}", pending.change, pending.author, pending.failed);
            problem(code::NOT_TAKEN_BACK, what)
        })
        .collect()
}

/// Where agents are connected, and what those of this server said.
struct Seats {
    own: String,
    reports: BTreeMap<NodeName, Report>,
    elsewhere: BTreeMap<NodeName, Seat>,
}

impl Seats {
    /// The server that an agent is connected to.
    fn of(&self, node: &NodeName) -> Option<&str> {
        let here = self.reports.get(node).is_some_and(is_connected);
        if here { Some(&self.own) } else { self.elsewhere.get(node).map(|seat| seat.server.as_str()) }
    }
}

fn servers(core: &Core, seats: &Seats) -> Vec<ServerStatus> {
    let agents = |instance: &str| {
        let own = seats.reports.keys().chain(seats.elsewhere.keys()).collect::<BTreeSet<_>>();
        let there = own.into_iter().filter(|node| seats.of(node) == Some(instance)).count();
        u32::try_from(there).unwrap_or(u32::MAX)
    };
    let servers = core.servers.borrow().clone();
    servers
        .iter()
        .map(|server| ServerStatus {
            instance: server.instance.clone(),
            addresses: server.addresses.iter().map(ToString::to_string).collect(),
            version: server.version.clone(),
            signs: server.signs,
            agents: agents(&server.instance),
        })
        .collect()
}

fn agents(world: &World, seats: &Seats) -> Vec<AgentStatus> {
    let nodes = world.catalog().nodes().keys().chain(seats.reports.keys()).chain(seats.elsewhere.keys());
    nodes.collect::<BTreeSet<_>>().into_iter().map(|node| agent(world, node, seats)).collect()
}

fn agent(world: &World, node: &NodeName, seats: &Seats) -> AgentStatus {
    let server = seats.of(node);
    // What an agent said here before it went to another server is out of date.
    let here = server.is_none_or(|server| server == seats.own);
    let report = seats.reports.get(node).filter(|_| here);
    let record = world.catalog().nodes().get(node).map(|kept| &kept.record);
    let nack = report.and_then(|report| report.nack.as_ref());
    AgentStatus {
        node: node.to_string(),
        connected: server.is_some(),
        server: server.unwrap_or_default().to_owned(),
        acked_revision: report.map_or(0, |report| report.acked.0),
        last_nack: nack
            .map(|nack| format!("revision {}: {}", nack.revision, nack.reason))
            .unwrap_or_default(),
        version: record.map(|record| record.version.clone()).unwrap_or_default(),
        workloads: world.hosted(node).map_or(0, |hosted| hosted.workloads),
        last_seen: report.map(|report| rfc3339(report.last_seen)).unwrap_or_default(),
        advertise: record.into_iter().flat_map(|record| &record.advertise).map(ToString::to_string).collect(),
        boot: record.map_or(0, |record| record.boot),
        banned: denied::banned(world.catalog(), node).map(DeniedRecord::because).unwrap_or_default(),
    }
}

fn is_connected(report: &Report) -> bool {
    matches!(report.state.link, Link::Up(_))
}

/// A time as people and machines read it.
#[must_use]
pub(crate) fn rfc3339(time: SystemTime) -> String {
    // Only a year beyond 9999 has no such form.
    OffsetDateTime::from(time)
        .replace_nanosecond(0)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

fn services(world: &World, caller: &Caller) -> Vec<ServiceStatus> {
    let names = world.catalog().services().keys();
    let visible = names.filter(|name| caller.role_in(Some(&name.namespace)) >= Role::Viewer);
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    visible
        .map(|name| {
            let endpoints = world.endpoints(name);
            let confirmed = endpoints.iter().filter(|found| found.state == EndpointState::Confirmed).count();
            ServiceStatus {
                service: name.to_string(),
                endpoints: count(endpoints.len()),
                confirmed: count(confirmed),
            }
        })
        .collect()
}

fn problem(code: CodeId, what: String) -> Problem {
    Problem { code: code.to_string(), what, fix: code.row().fix.iter().map(|&fix| fix.to_owned()).collect() }
}

fn of_agents(world: &World, seats: &Seats, now: Duration) -> Vec<Problem> {
    let mut problems = Vec::new();
    let here = seats.reports.iter().filter(|(node, _)| !seats.elsewhere.contains_key(*node));
    for (node, report) in here {
        if let Some(sent) = report.outstanding.filter(|sent| sent.since + MAX_LAG < now) {
            let what = format!("agent {node} has not answered revision {} yet", sent.revision);
            problems.push(problem(code::CHANGE_WITHOUT_EFFECT, what));
        }
        if let Some(nack) = &report.nack {
            let what = format!("agent {node} refuses revision {}: {}", nack.revision, nack.reason);
            problems.push(problem(code::SNAPSHOT_REFUSED, what));
        }
    }
    for node in world.catalog().nodes().keys() {
        if let Some(ban) = denied::banned(world.catalog(), node) {
            // It is away because somebody wants it to be.
            let what = format!("agent {node} is banned: {}", ban.because());
            problems.push(problem(code::IDENTITY_BANNED, what));
            continue;
        }
        if seats.of(node).is_none() {
            let what = format!("agent {node} is not connected; its calls go on with what it knows");
            problems.push(problem(code::CONTROL_LOST, what));
        }
    }
    problems
}

fn of_services(services: &[ServiceStatus]) -> Vec<Problem> {
    let empty = services.iter().filter(|service| service.endpoints == 0);
    empty.map(|found| problem(code::NO_ENDPOINT, format!("{} has no endpoint", found.service))).collect()
}

/// Groups of records that are not as the server wrote them. That of a namespace is told to whoever may read it.
async fn of_groups(core: &Core, world: &World, caller: &Caller) -> Vec<Problem> {
    let mut broken: Vec<_> = world.catalog().broken().clone().into_iter().collect();
    match core.records.broken_beside().await {
        Ok(beside) => broken.extend(beside),
        Err(failure) => return vec![problem(failure.code(), format!("cannot add records up: {failure}"))],
    }
    let visible = |group: &Group| match group.closes() {
        Closes::Namespace(namespace) => caller.role_in(Some(&namespace)) >= Role::Viewer,
        Closes::People | Closes::Nodes | Closes::Everything => caller.role_in(None) >= Role::Viewer,
    };
    let told = broken.into_iter().filter(|(group, _)| visible(group));
    told.map(|(group, why)| problem(code::RECORDS_REFUSED, format!("{group} is closed: {why}"))).collect()
}

fn of_records(world: &World, caller: &Caller) -> Vec<Problem> {
    let unreadable = world.catalog().unreadable().iter();
    let visible = unreadable.filter(|(key, _)| caller.role_in(key.namespace.as_ref()) >= Role::Viewer);
    visible
        .map(|(key, aside)| match aside.refused {
            true => problem(code::RECORDS_REFUSED, format!("{key} is refused: {}", aside.why)),
            false => problem(code::UNREADABLE_RECORD, format!("{key} cannot be read: {}", aside.why)),
        })
        .collect()
}
