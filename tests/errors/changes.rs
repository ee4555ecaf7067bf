//! Changes that the server holds back, or that wait and cannot be taken back any more: W6 of changes under control.

use weft_tests::manifest::{NAMESPACE, service};
use weft_tests::mesh::CTL;

use crate::case::{Case, case};
use crate::inventory::object;
use crate::scene::{Scene, told_by};

/// In this order: the change that waits is taken back by the next one.
pub(crate) const CASES: &[Case] = &[
    case("W6031", "a rule that refuses everybody who calls now", |s| {
        let target = "targetRefs: [{group: \"\", kind: Service, name: charge}], action: DENY";
        s.applied(
            &object(
                "AuthorizationPolicy",
                "shut",
                &format!("{target}, rules: [{{name: all, sources: [{{type: Any}}]}}]"),
            ),
            "W6031",
        )
    }),
    case("W6050", "a change of what another change holds", |s| {
        apply(s, &["--confirm-within", "10m"], 80).expect_success();
        told_by(&apply(s, &[], 81), "W6050")
    }),
    case("W6051", "a change that cannot be taken back as a whole", |s| {
        told_by(&s.mesh.on_server(&["confirm", "--abort"]), "W6051")
    }),
    case("W6052", "a confirmation of nothing", |s| s.told(CTL, &["confirm", "999999"], "W6052")),
    case("W6053", "a revision that never was", |s| {
        s.told(CTL, &["rollback", "service/charge", "-n", NAMESPACE, "--yes", "--to", "999999"], "W6053")
    }),
];

/// Applies a service of its own with that port.
fn apply(scene: &Scene, args: &[&str], port: u16) -> weft_tests::process::Finished {
    let apply = scene.mesh.weft(CTL, &["apply", "-n", NAMESPACE, "-f", "-"]).args(args);
    apply.input(service("shifty", &[("http", port, "http")])).run()
}
