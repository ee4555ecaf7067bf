//! Whole files, right and wrong.

use super::*;

const WHOLE: &str = "
cluster: local
node: hostB
servers: [hostA.example:7444]
listen: {tunnels: \"[::]:7443\", proxy: \"127.0.0.1:7480\", admin: \"127.0.0.1:7401\", metrics: \"127.0.0.1:7402\"}
advertise: []
workers: 1
workloads:
  - {service: charge, namespace: shop, ports: {http: \"127.0.0.1:8081\"}, uid: 1000,
     upstreams: [{service: ledger, port: 80, listen: \"127.0.0.1:9001\"}]}
limits: {tunnels: {streamWindow: 1MiB}, requests: {headTimeout: 2s}, flows: {total: 100}}
stateDir: /var/lib/weft
";

fn host() -> Host {
    Host { name: "Web_1".to_owned(), uid: 1_000, state_dir: "/state".into(), runtime_dir: None }
}

fn read(text: &str) -> Result<Config, Vec<Fault>> {
    Config::read(text, "agent.yaml", &Overrides::default(), &host())
}

fn fault(text: &str) -> Fault {
    let mut faults = read(text).unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0)
}

#[test]
fn the_example_of_the_decisions_is_read() {
    let config = read(WHOLE).unwrap();
    assert_eq!((config.cluster.as_str(), config.node.as_str()), ("local", "hostb"));
    assert_eq!(config.servers[0].to_string(), "hostA.example:7444");
    assert_eq!(config.listen.tunnels.to_string(), "[::]:7443");
    let charge = &config.workloads[0];
    assert_eq!((charge.service.as_str(), charge.uid), ("charge", Some(1_000)));
    assert_eq!(charge.ports["http"].to_string(), "127.0.0.1:8081");
    assert_eq!(charge.upstreams[0].listen.to_string(), "127.0.0.1:9001");
    assert_eq!(config.transport().stream_window_bytes, 1 << 20);
    assert_eq!(config.head_limits().timeout.as_secs(), 2);
    assert_eq!((config.max_flows(), config.connections()), (100, 16_384));
    assert_eq!(config.run_dir, Path::new("/var/lib/weft/run"));
    assert_eq!(config.access_log(), Some(Path::new("/var/lib/weft/access.log")));
}

#[test]
fn an_empty_file_has_every_default() {
    let config = read("").unwrap();
    assert_eq!((config.node.as_str(), config.cluster.as_str(), config.workers), ("web-1", "local", 1));
    assert_eq!(config.listen.proxy.to_string(), "127.0.0.1:7480");
    assert_eq!(config.transport(), TransportSettings::default());
    assert!(config.origins().iter().all(|setting| setting.origin == Origin::Default));
    let in_runtime = Host { runtime_dir: Some("/run/user/1000".into()), ..host() };
    let config = Config::read("", "", &Overrides::default(), &in_runtime).unwrap();
    assert_eq!(config.run_dir, Path::new("/run/user/1000/weft"));
}

#[test]
fn each_value_knows_its_origin() {
    let overrides = Overrides {
        environment: BTreeMap::from([("WEFT_LISTEN_PROXY".to_owned(), "7481".to_owned())]),
        flags: BTreeMap::from([(
            "advertise".to_owned(),
            ("--advertise".to_owned(), "a.example, b.example:9".to_owned()),
        )]),
    };
    let config = Config::read(WHOLE, "agent.yaml", &overrides, &host()).unwrap();
    let of = |key: &str| config.origins().iter().find(|setting| setting.key == key).unwrap();
    assert_eq!(of("node").origin.to_string(), "file agent.yaml");
    assert_eq!(of("workers").value, "1");
    assert_eq!(of("runDir").origin, Origin::Default);
    assert_eq!(of("listen.proxy").value, "127.0.0.1:7481");
    assert_eq!(of("listen.proxy").origin.to_string(), "environment WEFT_LISTEN_PROXY");
    assert_eq!(of("advertise").value, "a.example, b.example:9");
    assert_eq!(of("limits.tunnels.streamWindow").value, "1MiB");
    let told: Vec<String> = config.advertise.iter().map(|host| host.with_port(7_443).to_string()).collect();
    assert_eq!(told, ["a.example:7443", "b.example:9"]);
}

#[test]
fn an_unknown_key_is_told_with_its_place_and_the_nearest_known_one() {
    let fault = fault("node: a\nlisten:\n  tunels: \"[::]:7443\"\n");
    assert_eq!((fault.code.as_ref(), fault.path()), ("W5002", "listen.tunels"));
    let place = fault.place().unwrap();
    assert_eq!((place.line, place.column), (3, 3));
    assert!(fault.fix[0].contains("tunnels"), "{:?}", fault.fix);
    for text in ["nodes: a", "limits: {tunnel: {}}", "limits: {flows: {totals: 1}}", "logs: {level: info}"] {
        assert_eq!(read(text).unwrap_err()[0].code.as_ref(), "W5002", "{text}");
    }
}

#[test]
fn a_value_that_cannot_be_used_is_told_with_its_place() {
    for (text, path, line) in [
        ("cluster: a\nworkers: many", "workers", 2),
        ("listen: {proxy: \"127.0.0.1\"}", "listen.proxy", 1),
        ("servers:\n  - a:1\n  - nowhere", "servers[1]", 3),
        ("workloads: [{service: Charge}]", "workloads[0].service", 1),
        ("limits: {tunnels: {idleTimeout: 30}}", "limits.tunnels.idleTimeout", 1),
    ] {
        let fault = fault(text);
        assert_eq!((fault.code.as_ref(), fault.path()), ("W5004", path), "{text}");
        assert_eq!(fault.place().unwrap().line, line, "{text}");
    }
    assert_eq!(fault("node: [").code.as_ref(), "W5001");
}

#[test]
fn a_listener_for_others_needs_an_address_for_others() {
    let refused = fault("advertise: [127.0.0.1, localhost, \"[::1]:7443\"]");
    assert_eq!((refused.code.as_ref(), refused.path()), ("W5011", "advertise"));
    assert!(refused.what.contains("[::]:7443"), "{}", refused.what);
    assert!(read("advertise: [127.0.0.1, hostB.example]").is_ok());
    assert!(read("advertise: [127.0.0.1]\nlisten: {tunnels: \"127.0.0.1:0\"}").is_ok());
    assert!(check_advertised(TUNNELS, &["127.0.0.1:7443".parse().unwrap()]).is_err());
}

#[test]
fn listeners_without_encryption_stay_on_loopback() {
    for (text, key) in [
        ("listen: {proxy: \"0.0.0.0:7480\"}", "listen.proxy"),
        ("listen: {admin: \"[::]:7401\"}", "listen.admin"),
        (
            "workloads: [{service: a, upstreams: [{service: b, port: 80, listen: \"10.0.0.1:9001\"}]}]",
            "workloads[0].upstreams[0].listen",
        ),
    ] {
        let fault = fault(text);
        assert_eq!((fault.code.as_ref(), fault.path()), ("W5024", key));
    }
    assert!(read("listen: {proxy: \"[::1]:7480\", metrics: \"0.0.0.0:7402\"}").is_ok());
}

#[test]
fn every_fault_of_the_values_is_told_at_once() {
    let text =
        "listen: {proxy: \"0.0.0.0:1\"}\nworkers: 65\nlimits: {tunnels: {keepAlive: 40s, flowsCeiling: 8}}\n";
    let faults = read(text).unwrap_err();
    let paths: Vec<&str> = faults.iter().map(|fault| fault.path()).collect();
    assert_eq!(paths, ["workers", "limits.tunnels.keepAlive", "limits.tunnels.flowsCeiling", "listen.proxy"]);
}

#[test]
fn two_upstreams_cannot_share_a_listener() {
    let upstream = "{service: b, port: 80, listen: 9001}";
    let shared = fault(&format!(
        "workloads: [{{service: a, upstreams: [{upstream}]}}, {{service: c, upstreams: [{upstream}]}}]"
    ));
    assert!(shared.what.contains("127.0.0.1:9001 is given to two"), "{}", shared.what);
    let chosen = "{service: b, port: 80, listen: 0}";
    assert!(read(&format!("workloads: [{{service: a, upstreams: [{chosen}, {chosen}]}}]")).is_ok());
}

#[test]
fn an_agent_of_root_must_be_told_whose_connections_are_whose() {
    let text = "workloads: [{service: a, upstreams: [{service: b.bank, port: 80, listen: 9001}]}]";
    assert_eq!(read(text).unwrap().workloads[0].upstreams[0].namespace.as_ref().unwrap().as_str(), "bank");
    let root = Host { uid: 0, ..host() };
    let faults = Config::read(text, "agent.yaml", &Overrides::default(), &root).unwrap_err();
    assert_eq!((faults[0].code.as_ref(), faults[0].path()), ("W5005", "workloads[0].uid"));
}

#[test]
fn a_port_of_a_workload_is_a_name_or_a_number() {
    assert!(read("workloads: [{service: a, ports: {http: 8081, \"9090\": \"10.0.0.1:9\"}}]").is_ok());
    for port in ["Http", "0", "70000", "a_b"] {
        assert!(
            read(&format!("workloads: [{{service: a, ports: {{\"{port}\": 8081}}}}]")).is_err(),
            "{port}"
        );
    }
    assert!(read("workloads: [{service: a, ports: {http: 0}}]").is_err());
}

#[test]
fn the_access_log_may_be_off_or_elsewhere() {
    assert_eq!(read("logs: {access: off}").unwrap().access_log(), None);
    assert_eq!(read("logs: {access: \"-\"}").unwrap().access_log(), Some(Path::new("-")));
}
