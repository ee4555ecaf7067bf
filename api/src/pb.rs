//! The generated messages, clients and servers, one module per proto package.
//!
//! Made from `api/proto` and committed under `src/gen`; the test `generated` proves that they are fresh. Messages stop at
//! the planes' borders: inward travel the types of `weft-policy` and `weft-identity`.

/// Declares the module of one proto package; the generator's style is its own.
macro_rules! package {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, unused_qualifications, unnameable_types, reason = "written by tonic")]
        #[allow(clippy::all, clippy::nursery, clippy::restriction, clippy::style, reason = "written by tonic")]
        pub mod $name {
            include!(concat!("gen/", $file, ".rs"));
        }
    };
}

package! {
    /// What an agent needs to know, and what it announces.
    discovery, "weft.discovery.v1"
}
package! {
    /// How identities are got and kept.
    identity, "weft.identity.v1"
}
package! {
    /// What a person does.
    management, "weft.management.v1"
}
package! {
    /// What local people and `weft run` ask of their agent.
    agent, "weft.agent.v1"
}
package! {
    /// What the registry's store says to etcd: the part of etcd's API that it uses.
    etcd, "etcdserverpb"
}

/// Every service and message of the four packages, as an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/weft.fds.bin");

/// The path of every method, such as `/weft.management.v1.Management/Apply`, sorted.
///
/// A server checks its table of roles against it, so that a new method cannot be served without a role.
#[must_use]
pub fn methods() -> Vec<String> {
    let set: prost_types::FileDescriptorSet = prost::Message::decode(FILE_DESCRIPTOR_SET)
        .expect("the committed descriptor set decodes: the test `generated` made it");
    let mut paths: Vec<_> = set.file.iter().flat_map(methods_of_file).collect();
    paths.sort();
    paths
}

fn methods_of_file(file: &prost_types::FileDescriptorProto) -> Vec<String> {
    let path = |service: &prost_types::ServiceDescriptorProto,
                method: &prost_types::MethodDescriptorProto| {
        format!("/{}.{}/{}", file.package(), service.name(), method.name())
    };
    file.service.iter().flat_map(|s| s.method.iter().map(move |m| path(s, m))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_listed_by_its_path() {
        let methods = methods();
        for path in [
            "/weft.agent.v1.Agent/Run",
            "/weft.discovery.v1.Discovery/Stream",
            "/weft.identity.v1.Identity/Join",
            "/weft.management.v1.Management/Apply",
        ] {
            assert!(methods.iter().any(|m| m == path), "{path} not in {methods:?}");
        }
    }
}
