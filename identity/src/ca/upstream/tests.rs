//! An authority under the root of a company: what is read, what is refused, and how one takes the place of another.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, SanType,
};
use time::OffsetDateTime;

use super::*;
use crate::ca::{AuthorityParts, IssuedSvid, Maintained, RootState, Roots, StepError};
use crate::forge::{at, domain, id};

const DAY: Duration = Duration::from_secs(24 * 3600);
const ID: &str = "spiffe://td/ns/shop/sa/charge";

/// A company's PKI: a root, and what it has signed for the mesh.
struct Company {
    root: Issuer<'static, KeyPair>,
    root_pem: String,
}

/// The certificate for the mesh, as it should be but for what a test says.
struct Wanted {
    authority: IsCa,
    days: u64,
    uri: Option<&'static str>,
}

const fn wanted() -> Wanted {
    Wanted { authority: IsCa::Ca(BasicConstraints::Constrained(1)), days: 365, uri: None }
}

fn params(name: &str, authority: IsCa, days: u64) -> CertificateParams {
    let moment = |time: SystemTime| OffsetDateTime::from(time);
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = moment(at(-60));
    params.not_after = moment(at(0) + DAY * u32::try_from(days).unwrap());
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.is_ca = authority;
    params
}

impl Company {
    fn new(path_length: BasicConstraints) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let params = params("Company Root", IsCa::Ca(path_length), 3650);
        let root_pem = params.self_signed(&key).unwrap().pem();
        Self { root: Issuer::new(params, key), root_pem }
    }

    /// Chain and key of a certificate for the mesh.
    fn files(&self, wanted: Wanted) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = params("Company Mesh", wanted.authority, wanted.days);
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names.extend(wanted.uri.map(|uri| SanType::URI(uri.try_into().unwrap())));
        let certificate = params.signed_by(&key, &self.root).unwrap();
        (format!("{}{}", certificate.pem(), self.root_pem), key.serialize_pem())
    }

    fn upstream(&self) -> Upstream {
        let (chain, key) = self.files(wanted());
        read(&chain, &key).unwrap()
    }
}

fn company() -> Company {
    Company::new(BasicConstraints::Unconstrained)
}

fn read(chain: &str, key: &str) -> Result<Upstream, UpstreamError> {
    Upstream::read(chain, key, &domain("td"), DAY * 2, at(0))
}

fn under(upstream: &Upstream) -> CertificateAuthority {
    CertificateAuthority::create_under(upstream, &domain("td"), "a", CaSettings::default(), at(0)).unwrap()
}

fn issue(ca: &mut CertificateAuthority, now: SystemTime) -> IssuedSvid {
    let (_, der) = SigningRequest::create().unwrap();
    ca.issue(&SigningRequest::parse(&der).unwrap(), &id(ID), DAY, now).unwrap()
}

fn is_trusted(ca: &CertificateAuthority, svid: &IssuedSvid, now: SystemTime) -> bool {
    let bundle = TrustBundle::new(domain("td"), ca.bundle_roots(), 1).unwrap();
    verify_chain(&bundle.into(), &svid.chain, PeerRole::Server, now).is_ok()
}

fn reload(parts: &AuthorityParts) -> CertificateAuthority {
    let settings = CaSettings { roots: Roots::Upstream, ..CaSettings::default() };
    CertificateAuthority::load(parts, settings).unwrap()
}

#[test]
fn leaves_lead_to_the_companys_root_and_its_root_alone_is_published() {
    let upstream = company().upstream();
    let mut ca = under(&upstream);
    let issued = issue(&mut ca, at(0));
    assert_eq!(issued.chain.len(), 3, "the leaf, the mesh's issuer and the company's certificate");
    assert_eq!(ca.bundle_roots(), [upstream.root().clone()]);
    assert!(is_trusted(&ca, &issued, at(0)) && ca.is_under_upstream());
    assert_eq!(ca.prepare(at(0)), Err(StepError::Upstream));
    let mut again = reload(&ca.to_parts());
    assert!(is_trusted(&ca, &issue(&mut again, at(5)), at(5)), "also after a restart");
    assert_eq!(again.adopt(&upstream, at(5)), Ok(None));
    assert!(!format!("{upstream:?} {:?}", ca.to_parts()).contains("PRIVATE"));
}

#[test]
fn every_fault_of_the_files_has_its_name() {
    let company = company();
    let (chain, key) = company.files(wanted());
    let only = |part: &str| part.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap().to_owned();
    let other = company.files(wanted()).1;
    assert_eq!(read("no certificate", &key).unwrap_err(), UpstreamError::Pem);
    assert_eq!(read(&chain, "no key").unwrap_err(), UpstreamError::Key);
    assert_eq!(read(&chain, &other).unwrap_err(), UpstreamError::KeyMismatch);
    assert_eq!(read(&only(&chain), &key).unwrap_err(), UpstreamError::NoRoot);
    assert_eq!(read(&chain.repeat(3), &key).unwrap_err(), UpstreamError::TooLong(6));

    let refused = |wanted: Wanted| {
        let (chain, key) = company.files(wanted);
        read(&chain, &key).unwrap_err()
    };
    let not = refused(Wanted { authority: IsCa::ExplicitNoCa, ..wanted() });
    assert!(matches!(not, UpstreamError::NotAuthority { index: 1, .. }), "{not}");
    let short = refused(Wanted { authority: IsCa::Ca(BasicConstraints::Constrained(0)), ..wanted() });
    assert_eq!(short, UpstreamError::PathLength { index: 1, length: 0, needed: 1 });
    let ends = refused(Wanted { days: 1, ..wanted() });
    assert!(matches!(ends, UpstreamError::Expires { index: 1, .. }), "{ends}");
    let foreign = refused(Wanted { uri: Some("spiffe://other.example"), ..wanted() });
    assert!(matches!(foreign, UpstreamError::NotAuthority { index: 1, source: SvidError::AuthorityId }));
    let early = Upstream::read(&chain, &key, &domain("td"), DAY, at(-61)).unwrap_err();
    assert_eq!(early, UpstreamError::NotYetValid(1));
}

#[test]
fn a_root_that_lets_too_few_follow_and_a_chain_of_two_companies_are_refused() {
    let (chain, key) = Company::new(BasicConstraints::Constrained(1)).files(wanted());
    let short = read(&chain, &key).unwrap_err();
    assert_eq!(short, UpstreamError::PathLength { index: 2, length: 1, needed: 2 });
    let (chain, key) = company().files(wanted());
    let own = chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    let mixed = format!("{own}{}", company().root_pem);
    assert!(matches!(read(&mixed, &key), Err(UpstreamError::Refused(_))), "nobody signed it");
}

#[test]
fn another_certificate_of_the_same_company_signs_at_once_and_another_company_only_when_everybody_knows_it() {
    let company = company();
    let mut ca = under(&company.upstream());
    let before = issue(&mut ca, at(0));
    assert_eq!(ca.adopt(&company.upstream(), at(10)), Ok(Some(Maintained::UpstreamReplaced)));
    assert_eq!(ca.bundle_roots().len(), 1);
    let after = issue(&mut ca, at(10));
    assert_ne!(before.chain[2], after.chain[2]);
    assert!(is_trusted(&ca, &before, at(10)) && is_trusted(&ca, &after, at(10)));

    let next = self::company().upstream();
    assert!(matches!(ca.adopt(&next, at(20)), Ok(Some(Maintained::RootPrepared { .. }))));
    assert_eq!(ca.adopt(&next, at(25)), Ok(None));
    let later = at(20) + DAY;
    assert_eq!(ca.maintain(0, later - Duration::from_secs(1)), Ok(vec![]));
    assert_eq!(ca.maintain(1, later), Ok(vec![]), "an agent has not taken the new root");
    let done = ca.maintain(0, later).unwrap();
    assert!(matches!(done[..], [Maintained::RootActivated { forced: false, .. }]), "{done:?}");
    let new = issue(&mut ca, later);
    assert!(is_trusted(&ca, &after, later - Duration::from_secs(15)) && is_trusted(&ca, &new, later));
    let mut read = reload(&ca.to_parts());
    assert_eq!(read.roll_back(later).map(|_| read.roots()[0].state), Ok(RootState::Active));
}

#[test]
fn a_mesh_with_a_root_of_its_own_moves_under_a_company_and_back() {
    let mut ca = CertificateAuthority::create(&domain("td"), "a", at(0)).unwrap();
    let upstream = company().upstream();
    assert!(matches!(ca.adopt(&upstream, at(0)), Ok(Some(Maintained::RootPrepared { .. }))));
    let mut ca = reload(&ca.to_parts());
    let done = ca.maintain(0, at(0) + DAY).unwrap();
    assert!(matches!(done[..], [Maintained::RootActivated { forced: false, .. }]), "{done:?}");
    assert!(ca.is_under_upstream());

    let mut ca = CertificateAuthority::load(&ca.to_parts(), CaSettings::default()).unwrap();
    let done = ca.maintain(0, at(0) + DAY).unwrap();
    assert!(matches!(done[..], [Maintained::RootPrepared { .. }]), "{done:?}");
    ca.maintain(0, at(0) + DAY * 2).unwrap();
    assert!(!ca.is_under_upstream());
}

#[test]
fn a_company_whose_root_was_revoked_does_not_come_back_with_its_files() {
    let upstream = company().upstream();
    let mut ca = under(&upstream);
    let first = ca.roots()[0].fingerprint;
    ca.adopt(&company().upstream(), at(0)).unwrap();
    ca.activate(0, false, at(1)).unwrap();
    ca.taint(&first, at(2)).unwrap();
    ca.revoke(&first, 0, false, at(3)).unwrap();
    assert_eq!(ca.adopt(&upstream, at(4)), Err(AuthorityError::UpstreamRevoked));
}
