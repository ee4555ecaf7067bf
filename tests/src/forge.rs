//! Certificates as an attacker makes them: signed by a real authority, wrong in one chosen way.
//!
//! [`Leaf::good`] is an X.509-SVID in order; each field of [`Leaf`] bends one rule. Names and key usage
//! are written as raw DER where a library would refuse to write them.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SigningKey as _,
};
use rustls_pki_types::CertificateDer;

use crate::presented::Proof;
pub use crate::presented::{Forged, Nothing, Presented};

const SUBJECT_ALT_NAME: [u64; 4] = [2, 5, 29, 17];
const KEY_USAGE: [u64; 4] = [2, 5, 29, 15];
/// DER: `[6] IA5String` and `[2] IA5String` of GeneralName (RFC 5280 4.2.1.6), and SEQUENCE.
const URI: u8 = 0x86;
const DNS: u8 = 0x82;
const SEQUENCE: u8 = 0x30;
/// DER: BIT STRING with digitalSignature alone.
const DIGITAL_SIGNATURE: [u8; 4] = [0x03, 0x02, 0x07, 0x80];

/// An authority that signs whatever it is told.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A name of a leaf.
#[derive(Clone, Debug)]
pub enum Name {
    /// A URI, any bytes.
    Uri(Vec<u8>),
    /// A DNS name, any bytes.
    Dns(Vec<u8>),
}

/// What a leaf says of its key.
#[derive(Clone, Debug)]
pub enum Usage {
    /// No keyUsage extension.
    Absent,
    /// digitalSignature, in an extension that is not critical.
    NotCritical,
    /// Exactly these, critical.
    Critical(Vec<KeyUsagePurpose>),
}

/// A leaf to be signed.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Names in the SAN; none at all leaves the extension out.
    pub names: Vec<Name>,
    /// The common name of the subject, which is empty otherwise.
    pub common_name: Option<String>,
    /// From when it is valid, from now; may be negative.
    pub valid_from: Offset,
    /// Until when it is valid, from now; may be negative.
    pub valid_until: Offset,
    /// keyUsage.
    pub usage: Usage,
    /// Whether it says of itself that it may sign certificates.
    pub authority: bool,
    /// Further extensions.
    pub extensions: Vec<CustomExtension>,
}

/// A moment relative to now.
#[derive(Clone, Copy, Debug)]
pub enum Offset {
    /// That long ago.
    Ago(Duration),
    /// In that time.
    In(Duration),
}

impl Authority {
    /// A root for `trust_domain`.
    pub fn root(trust_domain: &str) -> Self {
        Self::root_until(trust_domain, Offset::In(Duration::from_secs(7200)))
    }

    /// A root for `trust_domain` that is valid until `end`.
    pub fn root_until(trust_domain: &str, end: Offset) -> Self {
        let key = new_key();
        let mut params = authority_params("root", trust_domain);
        params.not_after = end.moment().into();
        let certificate = params.self_signed(&key).expect("rcgen signs its own parameters");
        Self::new(certificate.der().clone(), key)
    }

    /// Its signature over `body`: ECDSA with SHA-256 on P-256.
    pub fn signature(&self, body: &[u8]) -> Vec<u8> {
        self.issuer.key().sign(body).expect("the provider has entropy")
    }

    /// An intermediate under this root, for `trust_domain`.
    pub fn intermediate(&self, trust_domain: &str) -> Self {
        let key = new_key();
        let signed = authority_params("issuer", trust_domain).signed_by(&key, &self.issuer);
        Self::new(signed.expect("rcgen signs its own parameters").der().clone(), key)
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Signs `leaf`; the chain is the leaf and then `above`.
    pub fn sign(&self, leaf: &Leaf, above: &[&Self]) -> Forged {
        let key = new_key();
        let signed = leaf.params().signed_by(&key, &self.issuer).expect("rcgen signs its own parameters");
        let above = above.iter().map(|authority| authority.certificate.clone());
        Forged {
            chain: std::iter::once(signed.der().clone()).chain(above).collect(),
            proof: Proof::Key(key.serialize_der()),
        }
    }

    /// The root itself as if it were a leaf, with its key.
    pub fn as_leaf(&self) -> Forged {
        Forged { chain: vec![self.certificate.clone()], proof: Proof::Key(self.issuer.key().serialize_der()) }
    }

    fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Self {
        let issuer = Issuer::from_ca_cert_der(&certificate, key).expect("the certificate was just made");
        Self { certificate, issuer }
    }
}

impl Leaf {
    /// An SVID of `id` in order: valid for an hour, digitalSignature, no authority.
    pub fn good(id: &str) -> Self {
        Self {
            names: vec![Name::Uri(id.into())],
            common_name: None,
            valid_from: Offset::Ago(Duration::from_secs(60)),
            valid_until: Offset::In(Duration::from_secs(3600)),
            usage: Usage::Critical(vec![KeyUsagePurpose::DigitalSignature]),
            authority: false,
            extensions: Vec::new(),
        }
    }

    /// With other names.
    #[must_use]
    pub fn names(self, names: &[Name]) -> Self {
        Self { names: names.to_vec(), ..self }
    }

    /// With other validity.
    #[must_use]
    pub fn valid(self, valid_from: Offset, valid_until: Offset) -> Self {
        Self { valid_from, valid_until, ..self }
    }

    /// With other key usage.
    #[must_use]
    pub fn usage(self, usage: Usage) -> Self {
        Self { usage, ..self }
    }

    /// Signed by its own key.
    pub fn self_signed(&self) -> Forged {
        let key = new_key();
        let signed = self.params().self_signed(&key).expect("rcgen signs its own parameters");
        Forged { chain: vec![signed.der().clone()], proof: Proof::Key(key.serialize_der()) }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = &self.common_name {
            params.distinguished_name.push(DnType::CommonName, name.as_str());
        }
        params.not_before = self.valid_from.moment().into();
        params.not_after = self.valid_until.moment().into();
        params.is_ca =
            if self.authority { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.custom_extensions.extend(self.names_extension());
        params.custom_extensions.extend(self.extensions.iter().cloned());
        match &self.usage {
            Usage::Absent => {}
            Usage::NotCritical => {
                let usage = CustomExtension::from_oid_content(&KEY_USAGE, DIGITAL_SIGNATURE.to_vec());
                params.custom_extensions.push(usage);
            }
            Usage::Critical(purposes) => params.key_usages.clone_from(purposes),
        }
        params
    }

    fn names_extension(&self) -> Option<CustomExtension> {
        if self.names.is_empty() {
            return None;
        }
        let names: Vec<u8> = self.names.iter().flat_map(Name::der).collect();
        let mut extension = CustomExtension::from_oid_content(&SUBJECT_ALT_NAME, der(SEQUENCE, &names));
        extension.set_criticality(true);
        Some(extension)
    }
}

impl Name {
    fn der(&self) -> Vec<u8> {
        match self {
            Self::Uri(bytes) => der(URI, bytes),
            Self::Dns(bytes) => der(DNS, bytes),
        }
    }
}

impl Offset {
    /// Whole seconds, as certificates count them, so that "expired by a second" is one.
    pub fn moment(self) -> SystemTime {
        let now = now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_secs();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
        match self {
            Self::Ago(before) => now - before,
            Self::In(after) => now + after,
        }
    }
}

fn authority_params(kind: &str, trust_domain: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{kind} of {trust_domain}"));
    params.not_before = Offset::Ago(Duration::from_secs(7200)).moment().into();
    params.not_after = Offset::In(Duration::from_secs(7200)).moment().into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let names = der(SEQUENCE, &der(URI, format!("spiffe://{trust_domain}").as_bytes()));
    params.custom_extensions = vec![CustomExtension::from_oid_content(&SUBJECT_ALT_NAME, names)];
    params
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the provider has entropy")
}

/// A DER element; lengths up to 64 KiB.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut element = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => element.push(short),
        Ok(byte) => element.extend([0x81, byte]),
        Err(_) => {
            let long = u16::try_from(length).expect("no forged element is longer");
            element.push(0x82);
            element.extend(long.to_be_bytes());
        }
    }
    element.extend_from_slice(content);
    element
}

#[expect(
    clippy::disallowed_methods,
    reason = "a forged certificate is valid at the time of the handshake, which is now"
)]
fn now() -> SystemTime {
    SystemTime::now()
}
