//! Certificates of any shape, legal or not, for the tests of this crate only.
//!
//! Written element by element, since no library writes what must be refused. [`Authority`] signs,
//! [`Forge`] says what; both start legal, so that a test names the one thing it breaks:
//!
//! ```text
//! let root = Authority::root("td");
//! let leaf = Forge::leaf("spiffe://td/a").without(oid::KEY_USAGE).signed_by(&root);
//! ```

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::bundle::{TrustBundle, TrustBundles};
use crate::csr::p256_key_info;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::Svid;
use crate::x509::der::{self, tag};
use crate::x509::oid;

/// `seconds` after the moment at which the tests live, 2027-01-15 08:00:00 UTC; negative is before it.
pub(crate) fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000_i64.checked_add(seconds).unwrap().try_into().unwrap())
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// A P-256 key.
pub(crate) struct Key(EcdsaKeyPair);

impl Key {
    pub(crate) fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap())
    }

    pub(crate) fn spki(&self) -> Vec<u8> {
        p256_key_info(self.0.public_key().as_ref())
    }

    pub(crate) fn pkcs8(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.to_pkcs8v1().unwrap().as_ref().to_vec()).into()
    }

    pub(crate) fn duplicate(&self) -> Self {
        let pkcs8 = self.pkcs8();
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.secret_der()).unwrap())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    }
}

/// Somebody who signs: a root or an intermediate, or anybody else who has a certificate and its key.
pub(crate) struct Authority {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) name: Vec<u8>,
    pub(crate) key: Key,
}

impl Authority {
    /// A legal self-signed root of `trust_domain`, valid for a day on both sides of `at(0)`.
    pub(crate) fn root(trust_domain: &str) -> Self {
        let forge = Forge::authority(&format!("root of {trust_domain}"), &format!("spiffe://{trust_domain}"));
        Self::self_signed(forge.valid(at(-90_000), at(90_000)))
    }

    /// Signs `forge` with its own key.
    pub(crate) fn self_signed(forge: Forge) -> Self {
        let (key, name) = (Key::new(), forge.subject.clone());
        let certificate = Forge { issuer: Some(name.clone()), spki: key.spki(), ..forge }.signed_with(&key);
        Self { certificate, name, key }
    }

    /// A certificate for a new key, as `forge` says, signed by this authority.
    pub(crate) fn child(&self, forge: Forge) -> Self {
        let (key, name) = (Key::new(), forge.subject.clone());
        let certificate = Forge { spki: key.spki(), ..forge }.signed_by(self);
        Self { certificate, name, key }
    }

    pub(crate) fn duplicate(&self) -> Self {
        Self { certificate: self.certificate.clone(), name: self.name.clone(), key: self.key.duplicate() }
    }

    /// The bundle that consists of this root.
    pub(crate) fn bundle(&self, trust_domain: &str) -> TrustBundle {
        TrustBundle::new(domain(trust_domain), vec![self.certificate.clone()], 1).unwrap()
    }

    pub(crate) fn bundles(&self, trust_domain: &str) -> TrustBundles {
        self.bundle(trust_domain).into()
    }

    /// A legal SVID, valid for an hour around `at(0)`.
    pub(crate) fn svid(&self, id: &str) -> Svid {
        self.svid_valid(id, at(-60), at(3600))
    }

    pub(crate) fn svid_valid(&self, id: &str, not_before: SystemTime, not_after: SystemTime) -> Svid {
        let leaf = self.child(Forge::leaf(id).valid(not_before, not_after));
        Svid::parse(vec![leaf.certificate.clone()], leaf.key.pkcs8()).unwrap()
    }
}

/// What a certificate says. Public fields are changed where a method would say no more.
#[derive(Clone)]
pub(crate) struct Forge {
    /// Content of the version INTEGER; none at all is version 1.
    pub(crate) version: Option<u8>,
    /// Content of the serial INTEGER.
    pub(crate) serial: Vec<u8>,
    /// The issuer's name, if it is not to be the signer's.
    pub(crate) issuer: Option<Vec<u8>>,
    pub(crate) subject: Vec<u8>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) spki: Vec<u8>,
    /// OID, critical, value; in order.
    pub(crate) extensions: Vec<(Vec<u8>, bool, Vec<u8>)>,
}

impl Forge {
    /// A legal leaf for `id`, with an empty subject.
    pub(crate) fn leaf(id: &str) -> Self {
        Self::blank(name(None))
            .with(oid::BASIC_CONSTRAINTS, true, basic_constraints(false, None))
            .with(oid::KEY_USAGE, true, key_usage(0x80))
            .with(oid::EXTENDED_KEY_USAGE, false, purposes(&[oid::SERVER_AUTH, oid::CLIENT_AUTH]))
            .with(oid::SUBJECT_ALT_NAME, true, names(&[(tag::URI, id.as_bytes())]))
    }

    /// A legal signing certificate with the SPIFFE ID `uri`.
    pub(crate) fn authority(common_name: &str, uri: &str) -> Self {
        Self::blank(name(Some(common_name)))
            .with(oid::BASIC_CONSTRAINTS, true, basic_constraints(true, None))
            .with(oid::KEY_USAGE, true, key_usage(0x06))
            .with(oid::SUBJECT_ALT_NAME, false, names(&[(tag::URI, uri.as_bytes())]))
    }

    fn blank(subject: Vec<u8>) -> Self {
        Self {
            version: Some(2),
            serial: vec![0x2a],
            issuer: None,
            subject,
            not_before: at(-60),
            not_after: at(3600),
            spki: Key::new().spki(),
            extensions: Vec::new(),
        }
    }

    /// The same with this extension; one of the same OID is replaced.
    pub(crate) fn with(self, oid: &[u8], critical: bool, value: Vec<u8>) -> Self {
        self.without(oid).adding(oid, critical, value)
    }

    /// The same with this extension, even if it is there already.
    pub(crate) fn adding(mut self, oid: &[u8], critical: bool, value: Vec<u8>) -> Self {
        self.extensions.push((oid.to_vec(), critical, value));
        self
    }

    pub(crate) fn without(mut self, oid: &[u8]) -> Self {
        self.extensions.retain(|(other, ..)| other != oid);
        self
    }

    /// The same with these alternative names, as tag and content.
    pub(crate) fn named(self, general_names: &[(u8, &[u8])]) -> Self {
        self.with(oid::SUBJECT_ALT_NAME, true, names(general_names))
    }

    pub(crate) fn valid(self, not_before: SystemTime, not_after: SystemTime) -> Self {
        Self { not_before, not_after, ..self }
    }

    pub(crate) fn signed_by(&self, issuer: &Authority) -> CertificateDer<'static> {
        let forge =
            Self { issuer: self.issuer.clone().or_else(|| Some(issuer.name.clone())), ..self.clone() };
        forge.signed_with(&issuer.key)
    }

    fn signed_with(&self, key: &Key) -> CertificateDer<'static> {
        let algorithm = der::sequence(&[&der::element(tag::OID, &[oid::ECDSA_SHA256])]);
        let body = self.body(&algorithm);
        der::sequence(&[&body, &algorithm, &der::bit_string(&key.sign(&body))]).into()
    }

    fn body(&self, algorithm: &[u8]) -> Vec<u8> {
        let version = self
            .version
            .map(|number| der::element(tag::CONTEXT_0, &[&der::element(tag::INTEGER, &[&[number]])]));
        let extensions: Vec<u8> = self.extensions.iter().flat_map(extension).collect();
        let extensions = der::element(tag::CONTEXT_3, &[&der::sequence(&[&extensions])]);
        der::sequence(&[
            &version.unwrap_or_default(),
            &der::element(tag::INTEGER, &[&self.serial]),
            algorithm,
            self.issuer.as_deref().unwrap_or_default(),
            &der::sequence(&[&time(self.not_before), &time(self.not_after)]),
            &self.subject,
            &self.spki,
            if self.extensions.is_empty() { &[] } else { &extensions },
        ])
    }
}

fn extension((oid, critical, value): &(Vec<u8>, bool, Vec<u8>)) -> Vec<u8> {
    let critical = if *critical { der::element(tag::BOOLEAN, &[&[0xff]]) } else { Vec::new() };
    der::sequence(&[&der::element(tag::OID, &[oid]), &critical, &der::element(tag::OCTET_STRING, &[value])])
}

/// A distinguished name with one common name, or none.
pub(crate) fn name(common_name: Option<&str>) -> Vec<u8> {
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    const UTF8_STRING: u8 = 0x0c;
    const SET: u8 = 0x31;
    let Some(text) = common_name else { return der::sequence(&[]) };
    let pair = der::sequence(&[
        &der::element(tag::OID, &[COMMON_NAME]),
        &der::element(UTF8_STRING, &[text.as_bytes()]),
    ]);
    der::sequence(&[&der::element(SET, &[&pair])])
}

pub(crate) fn names(general_names: &[(u8, &[u8])]) -> Vec<u8> {
    let names: Vec<u8> =
        general_names.iter().flat_map(|(tag, content)| der::element(*tag, &[content])).collect();
    der::sequence(&[&names])
}

pub(crate) fn basic_constraints(authority: bool, path_length: Option<u8>) -> Vec<u8> {
    let authority = if authority { der::element(tag::BOOLEAN, &[&[0xff]]) } else { Vec::new() };
    let length = path_length.map(|length| der::element(tag::INTEGER, &[&[length]])).unwrap_or_default();
    der::sequence(&[&authority, &length])
}

/// digitalSignature 0x80, keyCertSign 0x04, cRLSign 0x02.
pub(crate) fn key_usage(bits: u8) -> Vec<u8> {
    let unused = u8::try_from(bits.trailing_zeros().min(7)).unwrap();
    der::element(tag::BIT_STRING, &[&[unused, bits]])
}

pub(crate) fn purposes(oids: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = oids.iter().flat_map(|oid| der::element(tag::OID, &[oid])).collect();
    der::sequence(&[&list])
}

fn time(time: SystemTime) -> Vec<u8> {
    let date = time::OffsetDateTime::from(time);
    let tail = format!(
        "{:02}{:02}{:02}{:02}{:02}Z",
        u8::from(date.month()),
        date.day(),
        date.hour(),
        date.minute(),
        date.second()
    );
    match date.year() {
        year @ ..2050 => {
            der::element(tag::UTC_TIME, &[format!("{:02}", year % 100).as_bytes(), tail.as_bytes()])
        }
        year => der::element(tag::GENERALIZED_TIME, &[format!("{year:04}").as_bytes(), tail.as_bytes()]),
    }
}
