//! The code under `src/gen` is what the protos say, so users need neither protoc nor a build script.
//!
//! `WEFT_REGENERATE=1 cargo test -p weft-api --test generated` writes it anew.

#![expect(clippy::unwrap_used, reason = "a test; the lint's exemption does not reach its helpers")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const PROTOS: [&str; 4] = [
    "weft/discovery/v1/discovery.proto",
    "weft/identity/v1/identity.proto",
    "weft/management/v1/management.proto",
    "weft/agent/v1/agent.proto",
];

/// What is spoken to etcd; no service of ours, so it is not among those that the server enumerates.
const ETCD: &str = "etcd/etcd.proto";

/// Every service and message, without comments: what the server enumerates its methods from.
const DESCRIPTOR_FILE: &str = "weft.fds.bin";

#[test]
fn the_generated_code_is_fresh() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen");
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path());
    if std::env::var_os("WEFT_REGENERATE").is_some() {
        replace(&committed, fresh.path());
    }
    let (committed, fresh) = (contents(&committed), contents(fresh.path()));
    assert_eq!(committed.keys().collect::<Vec<_>>(), fresh.keys().collect::<Vec<_>>());
    for (name, bytes) in &fresh {
        assert!(
            committed.get(name) == Some(bytes),
            "{name} is stale: run WEFT_REGENERATE=1 cargo test -p weft-api --test generated"
        );
    }
}

fn generate(out: &Path) {
    let mut compiler = protox::Compiler::new([proto_root()]).unwrap();
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(PROTOS).unwrap();
    tonic_prost_build::configure()
        .out_dir(out)
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .compile_fds(compiler.file_descriptor_set())
        .unwrap();
    generate_etcd(out);
    compiler.include_source_info(false);
    fs::write(out.join(DESCRIPTOR_FILE), compiler.encode_file_descriptor_set()).unwrap();
}

fn generate_etcd(out: &Path) {
    let mut compiler = protox::Compiler::new([proto_root()]).unwrap();
    compiler.include_source_info(true).open_file(ETCD).unwrap();
    tonic_prost_build::configure()
        .out_dir(out)
        .build_server(false)
        .bytes(".")
        .emit_rerun_if_changed(false)
        .compile_fds(compiler.file_descriptor_set())
        .unwrap();
}

fn proto_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proto")
}

fn replace(committed: &Path, fresh: &Path) {
    for name in contents(committed).keys() {
        fs::remove_file(committed.join(name)).unwrap();
    }
    for (name, bytes) in contents(fresh) {
        fs::write(committed.join(name), bytes).unwrap();
    }
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect()
}
