//! Destinations outside the mesh: connected directly, by an explicit mode, never by accident.
//!
//! Outside is never inward: this host, its link and the metadata services of clouds are refused by the address that is
//! about to be dialled, whatever name led to it (security.md 5.4, HTTP-15). There the agent would be taken for a program
//! of its own user.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tracing::info;
use weft_policy::model::EgressMode;

use super::{refuse, resolve::Outside};
use crate::{
    access::Record,
    app::AppStream,
    carry::within_host,
    error::FlowError,
    flows::EgressFacts,
    local::LocalWorkload,
    own_sockets::{OwnSockets, OwnStream},
    relay::Transfer,
    shared::{Shared, canonical},
};

/// How long a destination outside may take to accept.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Without a byte in either direction for so long, the connection ends: the default of services.
const IDLE: Duration = Duration::from_secs(3_600);
/// Metadata services that are on no link-local address: Amazon over IPv6, Alibaba, Azure (their documentation).
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(std::net::Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(std::net::Ipv4Addr::new(168, 63, 129, 16)),
];

/// Carries a connection to `outside`, when the workload's namespace may go there.
pub(super) async fn carry(
    shared: &Shared,
    app: AppStream,
    workload: &LocalWorkload,
    outside: &Outside,
    record: &mut Record,
) -> Result<Transfer, FlowError> {
    record.path = "egress";
    record.outside = Some(outside.to_string());
    let denied = || FlowError::EgressDenied { destination: outside.to_string() };
    let facts = EgressFacts { source: workload.identity.clone(), namespace: workload.namespace.clone() };
    let place = match shared.egress.enter(facts) {
        Ok(place) => place,
        Err(full) => return Err(refuse(app, FlowError::from(full)).await),
    };
    if let Err(error) = shared.check_identity(&workload.identity) {
        return Err(refuse(app, error).await);
    }
    // Loaded after the flow entered the table: a newer snapshot will find it there.
    let mode = shared.state.load().map_or(EgressMode::Deny, |snapshot| snapshot.egress(&workload.namespace));
    match mode {
        EgressMode::Deny => return Err(refuse(app, denied()).await),
        EgressMode::Log => info!(source = %workload.identity, destination = %outside, "egress"),
        EgressMode::Allow => {}
    }
    let timed = tokio::time::timeout(CONNECT_WITHIN, dial(&shared.own_sockets, outside)).await;
    let late = || FlowError::EgressUnreachable {
        destination: outside.to_string(),
        source: io::ErrorKind::TimedOut.into(),
    };
    let io = match timed.unwrap_or_else(|_| Err(late())) {
        Ok(io) => io,
        Err(error) => return Err(refuse(app, error).await),
    };
    record.begins(shared);
    record.connected(shared);
    within_host(shared, app, io, IDLE, &[&place.cut]).await
}

/// Connects to the first address of `outside` that takes the connection, of those that are outside.
async fn dial(own: &OwnSockets, outside: &Outside) -> Result<OwnStream, FlowError> {
    let destination = outside.to_string();
    let unreachable =
        |source: io::Error| FlowError::EgressUnreachable { destination: destination.clone(), source };
    let addresses: Vec<SocketAddr> = match outside {
        Outside::Host(host, port) => {
            let found = tokio::net::lookup_host((host.as_str(), *port)).await;
            let unknown = |source| FlowError::NameNotResolved { host: host.clone(), source };
            found.map_err(unknown)?.map(canonical).collect()
        }
        Outside::Address(address) => vec![canonical(*address)],
    };
    let mut last = None;
    for address in addresses {
        if is_inward(address.ip()) {
            last = Some(FlowError::EgressInward { destination: destination.clone(), address: address.ip() });
            continue;
        }
        match own.connect(address).await {
            Ok(io) => return Ok(io),
            Err(error) => last = Some(unreachable(error)),
        }
    }
    Err(last.unwrap_or_else(|| unreachable(io::ErrorKind::NotFound.into())))
}

/// Whether an address leads to this host, to its link or to what a cloud tells only this host.
pub(crate) fn is_inward(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let special = match ip {
        IpAddr::V4(ip) => {
            ip.octets()[0] == 0
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified() || ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast()
        }
    };
    special || METADATA.contains(&ip) || is_of_this_host(ip)
}

/// Whether an interface of this host has the address. A host that does not tell counts as having it.
fn is_of_this_host(ip: IpAddr) -> bool {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return true };
    interfaces.filter_map(|interface| interface.address).any(|address| {
        let v4 = address.as_sockaddr_in().map(|found| IpAddr::V4(found.ip()));
        let v6 = || address.as_sockaddr_in6().map(|found| IpAddr::V6(found.ip()));
        v4.or_else(v6) == Some(ip)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_15_this_host_its_link_and_metadata_services_are_not_outside() {
        for inward in [
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            assert!(is_inward(inward.parse().unwrap()), "{inward}");
        }
        for outside in ["192.0.2.1", "203.0.113.7", "10.250.250.250", "2001:db8::1"] {
            assert!(!is_inward(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn http_15_every_address_of_this_host_is_its_own() {
        let own = nix::ifaddrs::getifaddrs().unwrap().filter_map(|one| one.address);
        let own: Vec<IpAddr> =
            own.filter_map(|address| Some(IpAddr::V4(address.as_sockaddr_in()?.ip()))).collect();
        assert!(!own.is_empty() && own.into_iter().all(is_inward));
    }

    #[tokio::test]
    async fn http_15_a_name_that_leads_to_loopback_is_refused_by_its_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let inward = Outside::Host("localhost".to_owned(), port);
        let refused = dial(&OwnSockets::default(), &inward).await.unwrap_err();
        assert!(matches!(refused, FlowError::EgressInward { .. }), "{refused}");
    }
}
