//! Bad input: each has a code of the catalogue, what was wrong and where, and a next command.

use std::net::TcpListener;
use std::time::Duration;

use weft_tests::app::loopback;
use weft_tests::eventually::eventually;
use weft_tests::manifest::{NAMESPACE, allow, service};
use weft_tests::mesh::{CTL, Mesh};
use weft_tests::process::Finished;

/// Exit codes of the command line.
const CONFLICT: i32 = 5;
const INVALID: i32 = 8;

/// What a person may get wrong in a manifest: name of the case, text, code, and what the message must name.
const MANIFESTS: &[(&str, &str, &str, &str)] = &[
    (
        "malformed YAML",
        "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {name: a\n",
        "W4002",
        "line",
    ),
    ("not YAML at all", "\u{0}\u{1}\u{2}", "W4002", ""),
    (
        "an unknown kind",
        "apiVersion: weft.mesh/v1alpha1\nkind: Servise\nmetadata: {name: a}\n",
        "W4003",
        "Service",
    ),
    (
        "an unknown field",
        "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {portz: [{port: 80}]}\n",
        "W4004",
        "ports",
    ),
    (
        "an unknown field of a port",
        "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {name: a, namespace: shop}\n\
         spec: {ports: [{port: 80, protokol: http}]}\n",
        "W4004",
        "ports[0]",
    ),
    (
        "a missing field",
        "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {}\n",
        "W4005",
        "ports",
    ),
    (
        "a rule with an empty list",
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\n\
         spec: {targetRefs: [{group: \"\", kind: Service, name: charge}], action: ALLOW, rules: [{name: r, sources: []}]}\n",
        "W4006",
        "rules[0].sources",
    ),
    (
        "a policy with no rule",
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\n\
         spec: {targetRefs: [{group: \"\", kind: Service, name: charge}], action: ALLOW, rules: []}\n",
        "W4006",
        "rules",
    ),
    (
        "a value of the wrong type",
        "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {ports: [{port: many}]}\n",
        "W4007",
        "ports[0].port",
    ),
    (
        "a key that stands twice",
        "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {name: a, namespace: shop}\n\
         spec: {ports: [{port: 80}], ports: [{port: 81}]}\n",
        "W4008",
        "ports",
    ),
    (
        "a field of a later step",
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\n\
         spec:\n  targetRefs: [{group: \"\", kind: Service, name: charge}]\n  action: ALLOW\n  \
         enforcementLevel: Application\n  rules: [{name: r, sources: [{type: Any}], http: [{methods: [GET]}]}]\n",
        "W4009",
        "",
    ),
    (
        "a name that is none",
        "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {name: Not_A_Name, namespace: shop}\nspec: {ports: [{port: 80}]}\n",
        "W4014",
        "name",
    ),
    (
        "a trust domain by wildcard",
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\n\
         spec: {targetRefs: [{group: \"\", kind: Service, name: charge}], action: ALLOW, \
         rules: [{name: r, sources: [{type: SPIFFE, spiffe: \"spiffe://*/ns/shop/sa/order\"}]}]}\n",
        "W4015",
        "sources[0]",
    ),
    (
        "an apiVersion of another kind",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {ports: [{port: 80}]}\n",
        "W4017",
        "",
    ),
    ("nothing at all", "# only a comment\n", "W4018", ""),
];

#[test]
fn every_bad_manifest_is_refused_with_its_code_its_place_and_a_next_command() {
    let mesh = Mesh::builder().start();
    for (case, manifest, code, place) in MANIFESTS {
        let applied = mesh.weft(CTL, &["apply", "-f", "-", "-n", NAMESPACE]).input(manifest).run();
        refused(case, &applied, code, place);
        assert_eq!(applied.code(), Some(INVALID), "{case}: {applied}");
    }
    let every = ["get", "services,authorizationpolicies", "-A", "-o", "name"];
    let stored = mesh.on_server(&every).expect_success();
    let both = mesh.on_server(&["get", "services", "-A", "-n", NAMESPACE]);
    assert_eq!(both.code(), Some(2), "one namespace or all of them: {both}");
    assert!(!stored.stdout.contains("/a"), "a refused object was stored: {stored}");
}

#[test]
fn one_bad_object_keeps_its_whole_file_from_being_stored() {
    let mesh = Mesh::builder().start();
    let file = format!("{}---\n{}", service("charge", &[("http", 80, "http")]), MANIFESTS[2].1);

    refused("one of two", &mesh.weft(CTL, &["apply", "-f", "-"]).input(&file).run(), "W4003", "");
    let stored = mesh.on_server(&["get", "service/charge", "-n", NAMESPACE]);
    assert_eq!(stored.code(), Some(3), "not found is exit 3: {stored}");
}

#[test]
fn conflicting_resources_are_refused() {
    let mesh = Mesh::builder().manifest(service("charge", &[("http", 80, "http")])).start();
    let twice = format!("{0}---\n{0}", service("order", &[("http", 80, "http")]));
    refused("one object twice", &mesh.weft(CTL, &["apply", "-f", "-"]).input(&twice).run(), "W4022", "order");

    let same_port = service("order", &[("one", 80, "http"), ("two", 80, "http")]);
    let applied = mesh.weft(CTL, &["apply", "-f", "-"]).input(&same_port).run().expect_code(INVALID);
    assert!(applied.stderr.contains("error[W4") && applied.stderr.contains("ports[1]"), "{applied}");

    let shown =
        mesh.on_server(&["get", "service/charge", "-n", NAMESPACE, "-o", "yaml"]).expect_success().stdout;
    mesh.apply(&service("charge", &[("http", 81, "http")]));
    let stale = mesh.weft(CTL, &["apply", "-f", "-"]).input(&shown).run().expect_code(CONFLICT);
    assert!(stale.stderr.contains("error[W"), "an older resourceVersion is a conflict: {stale}");
}

#[test]
fn an_upstream_port_that_is_taken_is_named() {
    let mut mesh = Mesh::builder()
        .manifest(service("charge", &[("http", 80, "http")]))
        .manifest(allow("order", "charge"))
        .host("hosta")
        .start();
    let lines = "workloads:\n  - {service: order, namespace: shop, ports: {}, uid: 0, \
                 upstreams: [{service: charge, port: 80, listen: \"127.0.0.1:9001\"}]}\n";
    mesh.write_agent_config("hosta", "hosta", lines);
    mesh.join("hosta", &mesh.token("hosta", &[])).expect_success();
    let _taken = mesh.host("hosta").enter(|| TcpListener::bind(loopback(9001))).unwrap();

    mesh.start_agent("hosta");
    let log = eventually("the agent names the port", Duration::from_secs(10), || {
        let log = mesh.agent_log("hosta");
        if log.contains("W5006") { Ok(log) } else { Err(log) }
    });
    assert!(log.contains("127.0.0.1:9001"), "{log}");
}

#[test]
fn a_bad_configuration_stops_the_start_and_names_the_nearest_key() {
    let mesh = Mesh::builder().host("hosta").start();
    for (case, lines, code, place) in [
        ("an unknown key", "advertize: []\n", "W5002", "advertise"),
        ("a public proxy", "", "W5024", "proxy"),
        ("a value of the wrong type", "workers: many\n", "W5", "workers"),
    ] {
        let config = mesh.write_agent_config("hosta", "hosta", lines);
        if code == "W5024" {
            let open = std::fs::read_to_string(&config).unwrap().replace("127.0.0.1:7480", "0.0.0.0:7480");
            std::fs::write(&config, open).unwrap();
        }
        let started = mesh.weft("hosta", &["agent", "run", "--config"]).arg(config).run();
        refused(case, &started, code, place);
    }
}

/// Checks the five parts of an error: the code, what happened, a place, a next command, where to read on.
#[track_caller]
fn refused(case: &str, finished: &Finished, code: &str, place: &str) {
    assert_ne!(finished.code(), Some(0), "{case}: {finished}");
    let text = format!("{}{}", finished.stdout, finished.stderr);
    assert!(text.contains(&format!("error[{code}")), "{case}: expected {code}: {finished}");
    assert!(text.contains(place), "{case}: does not name {place:?}: {finished}");
    assert!(text.contains("  fix ") && text.contains("weft "), "{case}: no next command: {finished}");
    assert!(text.contains("weft explain W"), "{case}: nowhere to read on: {finished}");
}
