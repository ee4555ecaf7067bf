//! Whether a workload may run as the server's own user (decisions.md, speaking as a workload).
//!
//! Such a workload can reach `server.sock` and act as an admin. On a single host that is the price of `weft up`; once a
//! second node has joined it would be a way from one program to the whole mesh, so it is refused unless the
//! configuration accepts it. A token alone, or an enrollment of a node that never came, changes nothing. Only workloads of the server's own host are meant: a number means nothing elsewhere.

use std::net::{IpAddr, UdpSocket};

use nix::unistd::geteuid;
use weft_policy::code;

use crate::{
    core::Core,
    records::NodeRecord,
    refusal::Refusal,
    roles::{Caller, Source},
};

/// What the configuration says of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SharedUid {
    /// Refused once a second node has joined.
    #[default]
    Refused,
    /// Accepted, whoever has joined.
    Accepted,
}

/// Whether `caller`'s agent may register a workload that runs as `uid`.
///
/// # Errors
///
/// A refusal when the workload would share the server's user, on its host, in a mesh of more than one node.
pub fn check(core: &Core, caller: &Caller, uid: Option<u32>) -> Result<(), Refusal> {
    let shares = uid == Some(geteuid().as_raw()) && core.shared_uid == SharedUid::Refused;
    if !shares || !is_here(caller) || joined(core) < 2 {
        return Ok(());
    }
    let what = format!("uid {} is the server's own, and other nodes have joined", geteuid());
    Err(Refusal::denied(code::SHARED_UID, what))
}

/// How many nodes hold a certificate of their own, or once did.
fn joined(core: &Core) -> usize {
    let has_joined = |record: &NodeRecord| record.serial.is_some() || !record.banned.is_empty();
    core.world.catalog().all_nodes().values().filter(|kept| has_joined(&kept.record)).count()
}

/// Whether the caller's agent runs on the server's host.
fn is_here(caller: &Caller) -> bool {
    match caller.source {
        Source::Local { .. } => true,
        Source::Remote { addr } => is_own(addr.ip()),
    }
}

/// Whether an address is one of this host: only such can be bound.
fn is_own(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use weft_policy::model::Resource;

    use super::*;
    use crate::{harness, layout, records::Record, samples, store::Expected};

    #[test]
    fn an_address_of_another_host_is_not_ours() {
        assert!(is_own("127.0.0.1".parse().unwrap()) && is_own("::1".parse().unwrap()));
        assert!(!is_own("192.0.2.1".parse().unwrap()), "addresses of documentation are nobody's (RFC 5737)");
    }

    #[tokio::test]
    async fn the_servers_uid_is_refused_here_once_a_second_node_has_joined() {
        let rig = samples::Rig::start().await;
        let uid = Some(geteuid().as_raw());
        let elsewhere = harness::agent("hostb", samples::far());
        let here =
            Caller { source: Source::Remote { addr: "127.0.0.1:9".parse().unwrap() }, ..elsewhere.clone() };
        let enrollment = samples::enrollment("both", "shop", &["hosta", "hostb"], "**");
        rig.put(&Resource::WorkloadEnrollment(enrollment)).await;
        let heard_of = samples::node("192.0.2.7:7443", 1);
        let joined = NodeRecord { serial: Some("0a".to_owned()), ..heard_of.clone() };
        let replaced = NodeRecord { banned: vec!["0a".to_owned()], ..heard_of.clone() };
        for (node, record, refused) in [
            ("hosta", &joined, false),
            ("hostb", &heard_of, false),
            ("hostb", &joined, true),
            ("hostb", &replaced, true),
        ] {
            let key = layout::node(&node.parse().unwrap());
            let put = rig.core.store.put(key, record.encode(), Expected::Anything, None).await.unwrap();
            rig.core.world.wait_for(put).await;
            assert_eq!(check(&rig.core, &here, uid).is_err(), refused, "{node} {record:?}");
            check(&rig.core, &elsewhere, uid).unwrap();
            check(&rig.core, &here, uid.map(|uid| uid + 1)).unwrap();
            check(&rig.core, &here, None).unwrap();
        }
        let accepted = Core { shared_uid: SharedUid::Accepted, ..rig.core.as_ref().clone() };
        check(&accepted, &here, uid).unwrap();
    }
}
