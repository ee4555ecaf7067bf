//! One certificate, read strictly (RFC 5280 §4.1): fields and extensions, no verdict about them.

use std::time::SystemTime;

use super::der::{self, NotDer, Reader, tag};
use super::public_key::Signed;
use super::syntax::{self, AuthorityKey, check_extension, check_name};
use super::{oid, time};

/// A parsed X.509 v3 certificate. All parts are borrowed from its DER.
#[derive(Clone, Debug)]
pub(crate) struct Certificate<'a> {
    /// Content of the INTEGER, as it stands.
    pub(crate) serial: &'a [u8],
    #[cfg_attr(not(feature = "ca"), expect(dead_code, reason = "names link an authority to its own only"))]
    pub(crate) issuer: &'a [u8],
    #[cfg_attr(not(feature = "ca"), expect(dead_code, reason = "names link an authority to its own only"))]
    pub(crate) subject: &'a [u8],
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// The SubjectPublicKeyInfo with tag and length.
    pub(crate) spki: &'a [u8],
    extensions: Vec<Extension<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Extension<'a> {
    oid: &'a [u8],
    critical: bool,
    value: &'a [u8],
}

/// Key usage bits that the profile speaks about (RFC 5280 §4.2.1.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct KeyUsage {
    pub(crate) critical: bool,
    pub(crate) digital_signature: bool,
    pub(crate) key_cert_sign: bool,
    pub(crate) crl_sign: bool,
}

/// The subject alternative names as far as SPIFFE asks: the URIs, uninterpreted.
#[derive(Clone, Debug)]
pub(crate) struct AlternativeNames<'a> {
    /// Whether the extension is critical, which an empty subject asks for (X5-03).
    #[cfg_attr(not(feature = "ca"), expect(dead_code, reason = "only the issuer looks"))]
    pub(crate) critical: bool,
    /// Raw bytes of every URI name, whether or not they are UTF-8 or a URI.
    pub(crate) uris: Vec<&'a [u8]>,
}

impl<'a> Certificate<'a> {
    /// Reads `bytes`. Refuses what is not v3, not strict DER, has an extension twice, or a well-known one of another
    /// syntax than its own.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, NotDer> {
        let signed = Signed::parse(bytes)?;
        let mut body = Reader::new(der::single(signed.body, tag::SEQUENCE)?);
        let version = der::single(body.expect(tag::CONTEXT_0)?, tag::INTEGER)?;
        if version != [2] {
            return Err(NotDer); // v3 is written 2; v1 and v2 have no extensions
        }
        let serial = body.expect(tag::INTEGER)?;
        if body.expect(tag::SEQUENCE)? != signed.algorithm {
            return Err(NotDer); // the two statements of the algorithm must agree
        }
        let issuer = body.expect(tag::SEQUENCE)?;
        let (not_before, not_after) = time::validity(body.expect(tag::SEQUENCE)?)?;
        let subject = body.expect(tag::SEQUENCE)?;
        check_name(issuer)?;
        check_name(subject)?;
        let spki = body.element(tag::SEQUENCE)?.whole;
        let extensions = match body.optional(tag::CONTEXT_3)? {
            Some(content) => extensions(content)?,
            None => Vec::new(),
        };
        body.finish()?;
        Ok(Self { serial, issuer, subject, not_before, not_after, spki, extensions })
    }

    /// The alternative names, `None` if the extension is absent.
    pub(crate) fn alternative_names(&self) -> Result<Option<AlternativeNames<'a>>, NotDer> {
        let Some(extension) = self.extension(oid::SUBJECT_ALT_NAME) else { return Ok(None) };
        let mut names = Reader::new(der::single(extension.value, tag::SEQUENCE)?);
        let mut uris = Vec::new();
        while !names.is_empty() {
            let name = names.any()?;
            if name.tag == tag::URI {
                uris.push(name.content);
            }
        }
        Ok(Some(AlternativeNames { critical: extension.critical, uris }))
    }

    /// Whether basicConstraints says cA. Absent means no.
    pub(crate) fn is_authority(&self) -> Result<bool, NotDer> {
        self.extension(oid::BASIC_CONSTRAINTS)
            .map_or(Ok(false), |extension| syntax::basic_constraints(extension.value))
    }

    /// How many authorities may follow below this one (pathLenConstraint); `None` if it does not say. More than fit count as
    /// the most there are.
    pub(crate) fn path_length(&self) -> Result<Option<u64>, NotDer> {
        let extension = self.extension(oid::BASIC_CONSTRAINTS);
        extension.map_or(Ok(None), |extension| syntax::path_length(extension.value))
    }

    /// The key usage, `None` if the extension is absent.
    pub(crate) fn key_usage(&self) -> Result<Option<KeyUsage>, NotDer> {
        let Some(extension) = self.extension(oid::KEY_USAGE) else { return Ok(None) };
        let bits = syntax::key_usage(extension.value)?;
        Ok(Some(KeyUsage {
            critical: extension.critical,
            digital_signature: bits & 0x80 != 0,
            key_cert_sign: bits & 0x04 != 0,
            crl_sign: bits & 0x02 != 0,
        }))
    }

    /// The purposes of extendedKeyUsage as OID contents, `None` if the extension is absent.
    pub(crate) fn extended_key_usage(&self) -> Result<Option<Vec<&'a [u8]>>, NotDer> {
        let found = self.extension(oid::EXTENDED_KEY_USAGE);
        found.map(|extension| syntax::purposes(extension.value)).transpose()
    }

    /// What this certificate says of the one that signed it; nothing if the extension is absent.
    pub(crate) fn authority_key(&self) -> Result<AuthorityKey<'a>, NotDer> {
        let found = self.extension(oid::AUTHORITY_KEY_IDENTIFIER);
        let stated = found.map(|extension| syntax::authority_key(extension.value)).transpose()?;
        Ok(stated.unwrap_or_default())
    }

    /// The identifier of the key that signed this certificate, if it names one.
    pub(crate) fn authority_key_id(&self) -> Result<Option<&'a [u8]>, NotDer> {
        Ok(self.authority_key()?.key_id)
    }

    /// The identifier of this certificate's own key, if it names one.
    pub(crate) fn subject_key_id(&self) -> Result<Option<&'a [u8]>, NotDer> {
        let found = self.extension(oid::SUBJECT_KEY_IDENTIFIER);
        found.map(|extension| der::single(extension.value, tag::OCTET_STRING)).transpose()
    }

    /// Whether a critical extension is there that this crate does not evaluate.
    pub(crate) fn has_unknown_critical(&self) -> bool {
        self.extensions.iter().any(|extension| extension.critical && !KNOWN.contains(&extension.oid))
    }

    fn extension(&self, oid: &[u8]) -> Option<&Extension<'a>> {
        self.extensions.iter().find(|extension| extension.oid == oid)
    }
}

/// Critical extensions that are evaluated, here or (name constraints) by rustls-webpki.
const KNOWN: &[&[u8]] = &[
    oid::KEY_USAGE,
    oid::SUBJECT_ALT_NAME,
    oid::BASIC_CONSTRAINTS,
    oid::NAME_CONSTRAINTS,
    oid::EXTENDED_KEY_USAGE,
];

fn extensions(content: &[u8]) -> Result<Vec<Extension<'_>>, NotDer> {
    let mut list = Reader::new(der::single(content, tag::SEQUENCE)?);
    let mut found: Vec<Extension<'_>> = Vec::new();
    while !list.is_empty() {
        let mut fields = list.sequence()?;
        let oid = fields.oid()?;
        let critical = match fields.optional(tag::BOOLEAN)?.map(der::boolean).transpose()? {
            Some(false) => return Err(NotDer), // X.690 §11.5: a default is not written
            Some(true) => true,
            None => false,
        };
        let value = fields.expect(tag::OCTET_STRING)?;
        fields.finish()?;
        check_extension(oid, value)?;
        if found.iter().any(|extension| extension.oid == oid) {
            return Err(NotDer); // RFC 5280 §4.2: not more than one instance
        }
        found.push(Extension { oid, critical, value });
    }
    Ok(found)
}
