//! What a person applies, deletes and asks for: W4, and what the rules say of it.

use weft_tests::manifest::{NAMESPACE, service};
use weft_tests::mesh::CTL;
use weft_tests::told::Told;

use crate::case::{Case, case};
use crate::inventory::{id, object, traffic};
use crate::scene::{Scene, told_by};

/// In this order: what one writes, a later one may need.
pub(crate) const CASES: &[Case] = &[
    case("W4001", "a flag that no command has", |s| s.told(CTL, &["get", "services", "--al"], "W4001")),
    case("W4002", "YAML that is cut", |s| {
        s.applied("apiVersion: weft.mesh/v1alpha1\nmetadata: {name: a\n", "W4002")
    }),
    case("W4003", "a kind that is misspelt", |s| s.applied(&good().replace("Service", "Servise"), "W4003")),
    case("W4004", "a field that is misspelt", |s| s.applied(&good().replace("ports:", "portz:"), "W4004")),
    case("W4005", "a field that is missing", |s| s.applied(&object("Service", "a", ""), "W4005")),
    case("W4006", "a list that is empty", |s| s.applied(&object("Service", "a", "ports: []"), "W4006")),
    case("W4007", "a text for a number", |s| {
        s.applied(&object("Service", "a", "ports: [{port: many}]"), "W4007")
    }),
    case("W4008", "a key that stands twice", |s| {
        s.applied(&object("Service", "a", "ports: [{port: 80}], ports: [{port: 81}]"), "W4008")
    }),
    case("W4009", "a field of a later version", |s| {
        s.applied(&policy("name: r, sources: [{type: Any}], http: [{methods: [GET]}]"), "W4009")
    }),
    case("W4010", "another trust domain", |s| {
        let mesh = "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {name: mesh}\n\
                    spec: {trustDomain: other.example, defaultAuthorization: Deny, egress: Deny}\n";
        s.applied(mesh, "W4010")
    }),
    case("W4012", "more rules than a policy may have", |s| {
        let rules: Vec<_> = (0..300).map(|n| format!("{{name: r{n}, sources: [{{type: Any}}]}}")).collect();
        let target = "targetRefs: [{group: \"\", kind: Service, name: charge}], action: ALLOW";
        s.applied(
            &object("AuthorizationPolicy", "a", &format!("{target}, rules: [{}]", rules.join(", "))),
            "W4012",
        )
    }),
    case("W4013", "two TrafficPolicies for one service", |s| {
        s.applied(&traffic("one", "timeouts: {idle: 2s}").replace("name: one, ", "name: other, "), "W4013")
    }),
    case("W4014", "a name with upper case", |s| {
        s.applied(&good().replace("name: a,", "name: Not_A_Name,"), "W4014")
    }),
    case("W4015", "a wildcard for a trust domain", |s| {
        s.applied(
            &policy("name: r, sources: [{type: SPIFFE, spiffe: \"spiffe://*/ns/shop/sa/order\"}]"),
            "W4015",
        )
    }),
    case("W4016", "a word that is none of the allowed", |s| {
        s.applied(&policy("name: r, sources: [{type: Any}]").replace("ALLOW", "MAYBE"), "W4016")
    }),
    case("W4017", "the version of another kind", |s| {
        s.applied(&good().replace("apiVersion: weft.mesh/v1alpha1", "apiVersion: v1"), "W4017")
    }),
    case("W4018", "nothing but a comment", |s| s.applied("# nothing\n", "W4018")),
    case("W4019", "a policy for another namespace", |s| {
        let other = policy("name: r, sources: [{type: Any}]")
            .replace("kind: Service, name: charge", "kind: Namespace, name: bank");
        s.applied(&other.replace("group: \"\", ", ""), "W4019")
    }),
    case("W4020", "a network that is none", |s| {
        s.applied(&policy("name: r, sources: [{type: Any}], networks: [\"everywhere\"]"), "W4020")
    }),
    case("W4021", "an object that is not there", |s| {
        s.told(CTL, &["get", "service/nobody", "-n", NAMESPACE], "W4021")
    }),
    case("W4022", "one object twice", |s| s.applied(&format!("{0}---\n{0}", good()), "W4022")),
    case("W4023", "an enrollment for another namespace", |s| {
        let spec = "nodes: [hosta], identities: [\"spiffe://corp.example/ns/bank/sa/a\"]";
        s.applied(&object("WorkloadEnrollment", "a", spec), "W4023")
    }),
    case("W4024", "a duration without a unit", |s| {
        s.applied(&traffic("echo", "timeouts: {idle: soon}"), "W4024")
    }),
    case("W4026", "a service that others refer to", deleted_under_others),
    case("W4027", "a network beside nobody", |s| {
        s.applied(&policy("name: r, sources: [{type: Unauthenticated}], networks: [\"10.0.0.0/8\"]"), "W4027")
    }),
    case("W4028", "an allow for everybody", |s| {
        s.applied(&policy("name: r, sources: [{type: Any}]"), "W4028")
    }),
    case("W4029", "a value that is null", |s| s.applied(&object("Service", "a", "ports: null"), "W4029")),
    case("W4030", "an anchor", |s| s.applied("apiVersion: &x weft.mesh/v1alpha1\nkind: Service\n", "W4030")),
    case("W4031", "a policy for a service to come", |s| {
        s.applied(
            &policy("name: r, sources: [{type: Any}], ports: [http]").replace("name: charge", "name: later"),
            "W4031",
        )
    }),
    case("W2301", "a workload that serves what it may not", |s| {
        let enrolled = format!("nodes: [hosta], identities: [\"{}\"], services: [charge]", id("forger"));
        let workload =
            format!("node: hosta, identity: \"{}\", services: [charge], ports: {{http: 9}}", id("forger"));
        let both = object("WorkloadEnrollment", "forger", &enrolled)
            + "---\n"
            + &object("Workload", "forger", &workload);
        let told = s.applied(&both, "W2301");
        s.mesh.delete(&object("Workload", "forger", &workload));
        told
    }),
    case("W2103", "a call that only the audit lets pass", |s| checked(s, &["order", "watched"], "W2103")),
    case("W2106", "a caller from another network", |s| {
        checked(s, &["twin-a", "portly:80", "--source-ip", "10.0.0.1"], "W2106")
    }),
    case("W2109", "a caller without an identity", |s| checked(s, &["", "charge"], "W2109")),
    case("W2111", "a call that a policy in rehearsal would refuse", |s| {
        checked(s, &["order", "rehearsed"], "W2111")
    }),
    case("W3022", "a caller that is no SPIFFE ID", |s| checked(s, &["spiffe://NOT/x", "charge"], "W3022")),
    case("W6007", "a change made from an older one", |s| {
        let shown = s
            .mesh
            .on_server(&["get", "service/empty", "-n", NAMESPACE, "-o", "yaml"])
            .expect_success()
            .stdout;
        s.mesh.apply(&service("empty", &[("http", 8_080, "http")]));
        let told = s.applied(&shown, "W6007");
        s.mesh.apply(&service("empty", &[("http", 80, "http")]));
        told
    }),
    case("W6010", "more than one transaction takes", larger_than_a_transaction),
];

fn good() -> String {
    object("Service", "a", "ports: [{port: 80}]")
}

/// A policy for "charge" with one rule.
fn policy(rule: &str) -> String {
    let target = "targetRefs: [{group: \"\", kind: Service, name: charge}]";
    object("AuthorizationPolicy", "a", &format!("{target}, action: ALLOW, rules: [{{{rule}}}]"))
}

fn checked(scene: &Scene, args: &[&str], code: &str) -> Result<Told, String> {
    let check = scene.mesh.weft(CTL, &["policy", "check", "-n", NAMESPACE]);
    told_by(&check.args(args).run(), code)
}

fn deleted_under_others(scene: &mut Scene) -> Result<Told, String> {
    let gone = service("brief", &[("http", 80, "http")]);
    scene.mesh.apply(&format!("{gone}---\n{}", traffic("brief", "timeouts: {idle: 2s}")));
    let deleted = scene.mesh.weft(CTL, &["delete", "service/brief", "-n", NAMESPACE, "--yes"]).run();
    scene.mesh.delete(&traffic("brief", "timeouts: {idle: 2s}"));
    told_by(&deleted.expect_success(), "W4026")
}

fn larger_than_a_transaction(scene: &mut Scene) -> Result<Told, String> {
    let note = "x".repeat(200 * 1024);
    let large = |n: usize| {
        good().replace("{name: a,", &format!("{{name: a{n}, annotations: {{example.com/note: {note}}},"))
    };
    let folder = scene.host(CTL).folder().join("large");
    std::fs::create_dir(&folder).map_err(|error| error.to_string())?;
    for n in 0..8 {
        std::fs::write(folder.join(format!("{n}.yaml")), large(n)).map_err(|error| error.to_string())?;
    }
    told_by(&scene.mesh.weft(CTL, &["apply", "-f"]).arg(&folder).run(), "W6010")
}
