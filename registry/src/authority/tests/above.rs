//! A server under an upstream authority: its files are read, refused with a code, and read again.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use time::OffsetDateTime;

use super::*;
use crate::{config::UpstreamFiles, private};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

struct Company(Issuer<'static, KeyPair>, String);

fn params(name: &str, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::from(now - Duration::from_secs(60));
    params.not_after = OffsetDateTime::from(now + 10 * YEAR);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

impl Company {
    fn new(now: SystemTime) -> Self {
        let (params, key) = (params("Company Root", now), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    /// Writes chain and key of a new certificate for the mesh.
    fn write(&self, files: &UpstreamFiles, now: SystemTime) {
        let key = KeyPair::generate().unwrap();
        let mut params = params("Company Mesh", now);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.0).unwrap();
        fs::write(&files.chain, format!("{}{}", certificate.pem(), self.1)).unwrap();
        private::write(&files.key, key.serialize_pem().as_bytes()).unwrap();
    }
}

fn files(rig: &Rig) -> UpstreamFiles {
    let file = |name: &str| -> PathBuf { rig.folder.path().join(name) };
    UpstreamFiles { chain: file("chain.pem"), key: file("key.pem") }
}

async fn open(rig: &Rig, files: &UpstreamFiles) -> Result<Arc<InstanceAuthority>, AuthorityFailure> {
    let domain = "corp.example".parse().unwrap();
    let settings = Issuing { upstream: Some(files.clone()), ..Issuing::default() };
    let opened = InstanceAuthority::open(&*rig.store, &rig.clock, rig.folder.path(), &domain, settings);
    opened.await.map(Arc::new)
}

#[tokio::test]
async fn a_server_signs_under_the_companys_root_and_takes_new_files_while_it_runs() {
    let rig = Rig::new().await;
    let (company, files) = (Company::new(rig.clock.now()), files(&rig));
    company.write(&files, rig.clock.now());
    let authority = open(&rig, &files).await.unwrap();
    let chain = |authority: &InstanceAuthority| authority.slot().load().unwrap().svid().chain().to_vec();
    let (first, bundle) = (chain(&authority), authority.bundle());
    assert_eq!((first.len(), bundle.borrow().roots().len()), (3, 1));

    company.write(&files, rig.clock.now());
    authority.maintain(&*rig.store).await.unwrap();
    assert_ne!(chain(&authority)[2], first[2], "another certificate of the same company signs at once");
    assert_eq!(bundle.borrow().roots().len(), 1);

    fs::write(&files.chain, "half a file").unwrap();
    authority.maintain(&*rig.store).await.unwrap();
    let problems = authority.problems();
    assert_eq!(problems[0].code, code::UPSTREAM_REFUSED.as_str(), "what signs goes on: {problems:?}");

    Company::new(rig.clock.now()).write(&files, rig.clock.now());
    authority.maintain(&*rig.store).await.unwrap();
    assert!(authority.problems().is_empty());
    let states: Vec<_> = authority.status().roots.into_iter().map(|root| root.state).collect();
    assert_eq!(
        (states, bundle.borrow().roots().len()),
        (vec!["active".to_owned(), "prepared".to_owned()], 2)
    );

    // A root of a company does not say whose it is; its server takes it out all the same.
    let prepared = authority.status().roots[1].fingerprint.clone();
    let mut next = authority.ca().clone();
    let prepared = next.roots().into_iter().find(|root| hex(&root.fingerprint) == prepared).unwrap();
    next.revoke(&prepared.fingerprint, 0, false, rig.clock.now()).unwrap();
    authority.commit(&*rig.store, next, true).await.unwrap();
    assert_eq!(bundle.borrow().roots().len(), 1);

    drop(authority);
    fs::remove_dir_all(rig.folder.path().join("ca")).unwrap();
    company.write(&files, rig.clock.now());
    let again = open(&rig, &files).await.unwrap();
    assert_eq!(chain(&again).len(), 3, "the files bring back what was lost");
}

#[tokio::test]
async fn files_that_cannot_be_used_keep_the_server_from_starting_with_their_code() {
    let rig = Rig::new().await;
    let (company, files) = (Company::new(rig.clock.now()), files(&rig));
    let refused = async || open(&rig, &files).await.unwrap_err().fault();
    assert_eq!(&*refused().await.code, code::UPSTREAM_REFUSED.as_str(), "there is no chain");
    company.write(&files, rig.clock.now());
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o640)).unwrap();
    let open_key = refused().await;
    assert!(open_key.what.contains("key.pem") && !open_key.fix.is_empty(), "{open_key}");
    company.write(&files, rig.clock.now());
    fs::write(&files.chain, &company.1).unwrap();
    let fault = refused().await;
    assert_eq!(&*fault.code, code::UPSTREAM_REFUSED.as_str());
    assert!(!fault.to_string().contains("PRIVATE"), "{fault}");
}
