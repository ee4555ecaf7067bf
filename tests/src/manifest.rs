//! Resources as a person writes them: the YAML of the scenarios.

/// The namespace of every scenario that does not name its own.
pub const NAMESPACE: &str = "shop";

/// The trust domain of every scenario.
pub const TRUST_DOMAIN: &str = "corp.example";

/// A port of a service: name, number, `appProtocol`.
pub type Port<'a> = (&'a str, u16, &'a str);

/// A `Service` of [`NAMESPACE`].
pub fn service(name: &str, ports: &[Port<'_>]) -> String {
    let ports: Vec<String> = ports
        .iter()
        .map(|(name, number, protocol)| format!("{{name: {name}, port: {number}, appProtocol: {protocol}}}"))
        .collect();
    object("Service", name, &format!("{{ports: [{}]}}", ports.join(", ")))
}

/// An `AuthorizationPolicy` that lets `source` call every port of `destination`, both of [`NAMESPACE`].
pub fn allow(source: &str, destination: &str) -> String {
    authorization(&format!("allow-{source}-{destination}"), "ALLOW", source, destination)
}

/// An `AuthorizationPolicy` that forbids what [`allow`] permits; DENY wins.
pub fn deny(source: &str, destination: &str) -> String {
    authorization(&format!("deny-{source}-{destination}"), "DENY", source, destination)
}

/// The SPIFFE ID of a service account of [`NAMESPACE`].
pub fn spiffe_id(service_account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{service_account}")
}

/// Several objects in one text.
pub fn documents(objects: &[String]) -> String {
    objects.join("---\n")
}

fn authorization(name: &str, action: &str, source: &str, destination: &str) -> String {
    let target = format!("{{group: \"\", kind: Service, name: {destination}}}");
    let id = spiffe_id(source);
    let rule = format!("{{name: {source}, sources: [{{type: SPIFFE, spiffe: \"{id}\"}}]}}");
    object(
        "AuthorizationPolicy",
        name,
        &format!("{{targetRefs: [{target}], action: {action}, rules: [{rule}]}}"),
    )
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec: {spec}\n"
    )
}
