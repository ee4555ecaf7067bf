//! The syntax of names and of well-known extensions (RFC 5280 §4.1.2.4, §4.2), no verdict about them.
//!
//! Most of this says nothing about an SVID. It is read all the same, so that no certificate is accepted that another
//! verifier could not even read (CERT-29).

use super::der::{self, Element, NotDer, Reader, tag};
use super::oid;

/// Types of text in a distinguished name (X.520), and `[n]` tags of GeneralName.
const UTF8: u8 = 0x0c;
const NUMERIC: u8 = 0x12;
const PRINTABLE: u8 = 0x13;
const TELETEX: u8 = 0x14;
const IA5: u8 = 0x16;
const UNIVERSAL: u8 = 0x1c;
const BMP: u8 = 0x1e;
const SET: u8 = 0x31;
const OTHER_NAME: u8 = 0xa0;
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const DIRECTORY: u8 = 0xa4;
const ADDRESS: u8 = 0x87;
const REGISTERED: u8 = 0x88;

/// What authorityKeyIdentifier says of the issuer (RFC 5280 §4.2.1.1).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AuthorityKey<'a> {
    /// The identifier of its key.
    pub(crate) key_id: Option<&'a [u8]>,
    /// The serial number of its certificate.
    pub(crate) serial: Option<&'a [u8]>,
}

/// Checks the content of a distinguished name.
pub(crate) fn check_name(content: &[u8]) -> Result<(), NotDer> {
    let mut name = Reader::new(content);
    while !name.is_empty() {
        check_relative_name(name.expect(SET)?)?;
    }
    Ok(())
}

fn check_relative_name(content: &[u8]) -> Result<(), NotDer> {
    let mut set = Reader::new(content);
    loop {
        let mut pair = set.sequence()?;
        pair.oid()?;
        check_text(pair.any()?)?;
        pair.finish()?;
        if set.is_empty() {
            return Ok(());
        }
    }
}

fn check_text(text: Element<'_>) -> Result<(), NotDer> {
    let readable = match text.tag {
        UTF8 => std::str::from_utf8(text.content).is_ok(),
        NUMERIC | PRINTABLE | IA5 => text.content.is_ascii(),
        TELETEX => true,
        BMP => text.content.len().is_multiple_of(2),
        UNIVERSAL => text.content.len().is_multiple_of(4),
        tag::BIT_STRING => matches!(text.content, [0..=7, _, ..]), // x500UniqueIdentifier
        _ => false,
    };
    if readable { Ok(()) } else { Err(NotDer) }
}

/// Checks one GeneralName. A URI is any bytes here: what it must be is decided where it counts. The two kinds that
/// nobody writes, X.400 addresses and EDI parties, are refused.
pub(crate) fn check_general_name(name: Element<'_>) -> Result<(), NotDer> {
    match name.tag {
        tag::URI => Ok(()),
        EMAIL | DNS if name.content.is_ascii() => Ok(()),
        ADDRESS if matches!(name.content.len(), 4 | 16) => Ok(()),
        REGISTERED => der::check_oid(name.content),
        DIRECTORY => check_name(der::single(name.content, tag::SEQUENCE)?),
        OTHER_NAME => {
            let mut other = Reader::new(name.content);
            other.oid()?;
            let mut value = Reader::new(other.expect(tag::CONTEXT_0)?);
            value.any()?;
            value.finish()?;
            other.finish()
        }
        _ => Err(NotDer),
    }
}

/// Checks GeneralNames without their outer tag: at least one.
fn check_general_names(content: &[u8]) -> Result<(), NotDer> {
    let mut names = Reader::new(content);
    loop {
        check_general_name(names.any()?)?;
        if names.is_empty() {
            return Ok(());
        }
    }
}

/// Checks the value of the extension `identifier`, if it is one whose syntax is known here.
pub(crate) fn check_extension(identifier: &[u8], value: &[u8]) -> Result<(), NotDer> {
    match identifier {
        oid::SUBJECT_ALT_NAME | oid::ISSUER_ALT_NAME => {
            check_general_names(der::single(value, tag::SEQUENCE)?)
        }
        oid::SUBJECT_KEY_IDENTIFIER => der::single(value, tag::OCTET_STRING).map(drop),
        oid::AUTHORITY_KEY_IDENTIFIER => authority_key(value).map(drop),
        oid::KEY_USAGE => key_usage(value).map(drop),
        oid::BASIC_CONSTRAINTS => basic_constraints(value).map(drop),
        oid::EXTENDED_KEY_USAGE => purposes(value).map(drop),
        oid::CRL_DISTRIBUTION_POINTS | oid::FRESHEST_CRL => check_distribution_points(value),
        // A proxy certificate (RFC 3820) speaks for another one; nobody here does that.
        oid::PROXY_CERT_INFO => Err(NotDer),
        _ => Ok(()),
    }
}

/// Reads basicConstraints: cA. The length of paths is counted by rustls-webpki.
pub(crate) fn basic_constraints(value: &[u8]) -> Result<bool, NotDer> {
    let mut constraints = Reader::new(der::single(value, tag::SEQUENCE)?);
    let authority = constraints.optional(tag::BOOLEAN)?.map_or(Ok(false), der::boolean)?;
    if let Some(length) = constraints.optional(tag::INTEGER)? {
        der::unsigned(length)?;
        if !authority {
            return Err(NotDer); // RFC 5280 §4.2.1.9: only of an authority
        }
    }
    constraints.finish()?;
    Ok(authority)
}

/// Reads the pathLenConstraint of basicConstraints.
pub(crate) fn path_length(value: &[u8]) -> Result<Option<u64>, NotDer> {
    basic_constraints(value)?;
    let mut constraints = Reader::new(der::single(value, tag::SEQUENCE)?);
    constraints.optional(tag::BOOLEAN)?;
    let Some(length) = constraints.optional(tag::INTEGER)? else { return Ok(None) };
    let octets = der::unsigned(length)?;
    let number = |octets: &[u8]| octets.iter().fold(0, |value, octet| value << 8 | u64::from(*octet));
    Ok(Some(if octets.len() > 8 { u64::MAX } else { number(octets) }))
}

/// Reads keyUsage: the first octet of its bits. At least one bit is set (RFC 5280 §4.2.1.3), none beyond the last.
pub(crate) fn key_usage(value: &[u8]) -> Result<u8, NotDer> {
    let (unused, bits) = match der::single(value, tag::BIT_STRING)? {
        [unused @ 0..=7, bits @ ..] if matches!(bits.len(), 1 | 2) => (*unused, bits),
        _ => return Err(NotDer),
    };
    let padding = bits.last().is_some_and(|last| last & ((1_u8 << unused) - 1) != 0);
    if padding || bits.iter().all(|octet| *octet == 0) { Err(NotDer) } else { Ok(bits[0]) }
}

/// Reads extendedKeyUsage: at least one purpose, as OID contents.
pub(crate) fn purposes(value: &[u8]) -> Result<Vec<&[u8]>, NotDer> {
    let mut list = Reader::new(der::single(value, tag::SEQUENCE)?);
    let mut purposes = vec![list.oid()?];
    while !list.is_empty() {
        purposes.push(list.oid()?);
    }
    Ok(purposes)
}

/// Reads authorityKeyIdentifier. The issuer's name and serial stand together or not at all.
pub(crate) fn authority_key(value: &[u8]) -> Result<AuthorityKey<'_>, NotDer> {
    const NAMES: u8 = 0xa1;
    const SERIAL: u8 = 0x82;
    let mut fields = Reader::new(der::single(value, tag::SEQUENCE)?);
    let key_id = fields.optional(tag::KEY_IDENTIFIER)?;
    let names = fields.optional(NAMES)?;
    let serial = fields.optional(SERIAL)?;
    fields.finish()?;
    names.map_or(Ok(()), check_general_names)?;
    match (names, serial) {
        (Some(_), Some(_)) | (None, None) => Ok(AuthorityKey { key_id, serial }),
        (Some(_), None) | (None, Some(_)) => Err(NotDer),
    }
}

/// Where revocation lists are (RFC 5280 §4.2.1.13). They are not fetched.
fn check_distribution_points(value: &[u8]) -> Result<(), NotDer> {
    const POINT: u8 = 0xa0;
    const FULL_NAME: u8 = 0xa0;
    const RELATIVE_NAME: u8 = 0xa1;
    const REASONS: u8 = 0x81;
    const ISSUER: u8 = 0xa2;
    let mut points = Reader::new(der::single(value, tag::SEQUENCE)?);
    loop {
        let mut point = points.sequence()?;
        let name = point.optional(POINT)?;
        if let Some(name) = name {
            let mut choice = Reader::new(name);
            let name = choice.any()?;
            choice.finish()?;
            match name.tag {
                FULL_NAME => check_general_names(name.content)?,
                RELATIVE_NAME => check_relative_name(name.content)?,
                _ => return Err(NotDer),
            }
        }
        if let Some(reasons) = point.optional(REASONS)? {
            key_usage(&der::element(tag::BIT_STRING, &[reasons]))?;
        }
        let issuer = point.optional(ISSUER)?;
        issuer.map_or(Ok(()), check_general_names)?;
        point.finish()?;
        if name.is_none() && issuer.is_none() {
            return Err(NotDer); // it points nowhere
        }
        if points.is_empty() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];

    #[test]
    fn cert_29_names_are_texts_in_pairs_in_sets() {
        let pair = |text: &[u8]| der::element(SET, &[&der::sequence(&[COMMON_NAME, text])]);
        for text in [
            &[UTF8, 2, 0xc3, 0xa9][..],
            &[PRINTABLE, 1, b'a'],
            &[BMP, 2, 0, b'a'],
            &[TELETEX, 1, 0xe9],
            &[tag::BIT_STRING, 2, 0, 1],
        ] {
            assert_eq!(check_name(&pair(text)), Ok(()), "{text:02x?}");
        }
        assert_eq!(check_name(&[]), Ok(()), "a name may be empty");
        for (case, name) in [
            ("not UTF-8", pair(&[UTF8, 1, 0xff])),
            ("half a character", pair(&[BMP, 1, b'a'])),
            ("not ASCII", pair(&[PRINTABLE, 1, 0xe9])),
            ("no text", pair(&[tag::INTEGER, 1, 0])),
            ("a second value", pair(&[UTF8, 0, UTF8, 0])),
            ("an empty set", der::element(SET, &[])),
            ("no set", der::sequence(&[COMMON_NAME, &[UTF8, 0]])),
        ] {
            assert_eq!(check_name(&name), Err(NotDer), "{case}");
        }
    }

    #[test]
    fn cert_29_general_names_are_read_by_their_kind() {
        let check = |tag, content: &[u8]| {
            let whole = der::element(tag, &[content]);
            check_general_name(Reader::new(&whole).any().unwrap())
        };
        assert_eq!(check(tag::URI, b"\xff"), Ok(()), "what a URI must be is decided elsewhere");
        assert_eq!(check(ADDRESS, &[127, 0, 0, 1]), Ok(()));
        assert_eq!(check(DIRECTORY, &der::sequence(&[])), Ok(()));
        assert_eq!(check(OTHER_NAME, &[0x06, 0x01, 0x2a, 0xa0, 0x02, 0x05, 0x00]), Ok(()));
        for (tag, content) in [
            (DNS, &b"\xff"[..]),
            (ADDRESS, &[127, 0, 0]),
            (REGISTERED, &[]),
            (DIRECTORY, b"CN=a"),
            (OTHER_NAME, &[0x06, 0x01, 0x2a, 0xa0, 0x00]),
            (0xa3, &[]),
            (0xa5, &[]),
            (0x89, &[]),
            (0xa6, &[]),
        ] {
            assert_eq!(check(tag, content), Err(NotDer), "{tag:02x} {content:02x?}");
        }
    }

    #[test]
    fn cert_29_key_usage_has_bits_and_nothing_behind_them() {
        let usage = |octets: &[u8]| key_usage(&der::element(tag::BIT_STRING, &[octets]));
        assert_eq!(usage(&[7, 0x80]), Ok(0x80));
        assert_eq!(usage(&[0, 0x80]), Ok(0x80));
        assert_eq!(usage(&[7, 0x08, 0x80]), Ok(0x08));
        for octets in [&[][..], &[0], &[7, 0x81], &[8, 0x80], &[0, 0], &[0, 0x80, 0, 0]] {
            assert_eq!(usage(octets), Err(NotDer), "{octets:02x?}");
        }
    }

    #[test]
    fn cert_29_well_known_extensions_are_read_whole() {
        let url = der::element(0x86, &[b"http://pki.example/list"]);
        let point = der::element(0xa0, &[&der::element(0xa0, &[&url])]);
        let points = |point: &[u8]| der::sequence(&[&der::sequence(&[point])]);
        assert_eq!(check_extension(oid::CRL_DISTRIBUTION_POINTS, &points(&point)), Ok(()));
        assert_eq!(check_extension(oid::CRL_DISTRIBUTION_POINTS, &points(&[0x05, 0x00])), Err(NotDer));
        assert_eq!(
            check_extension(oid::CRL_DISTRIBUTION_POINTS, &points(&[])),
            Err(NotDer),
            "it points nowhere"
        );
        assert_eq!(check_extension(oid::CRL_DISTRIBUTION_POINTS, &der::sequence(&[])), Err(NotDer));
        assert_eq!(check_extension(oid::FRESHEST_CRL, &points(&url)), Err(NotDer));

        let key = der::element(tag::KEY_IDENTIFIER, &[&[1; 20]]);
        assert_eq!(authority_key(&der::sequence(&[&key])).unwrap().key_id, Some(&[1; 20][..]));
        let with_serial = der::sequence(&[&key, &der::element(0xa1, &[&url]), &[0x82, 1, 7]]);
        assert_eq!(authority_key(&with_serial).unwrap().serial, Some(&[7][..]));
        for (case, value) in [
            ("serial without names", der::sequence(&[&key, &[0x82, 1, 7]])),
            ("out of order", der::sequence(&[&[0x82, 1, 7], &key])),
            ("trailing", [der::sequence(&[&key]), vec![0]].concat()),
        ] {
            assert!(authority_key(&value).is_err(), "{case}");
        }
        assert!(check_extension(oid::SUBJECT_KEY_IDENTIFIER, &[0x05, 0x00]).is_err());
        assert!(purposes(&der::sequence(&[])).is_err(), "no purpose at all");
        assert!(check_extension(oid::PROXY_CERT_INFO, &der::sequence(&[])).is_err());
        assert!(check_extension(&[0x2a, 0x03], b"anything").is_ok());

        let limited = |authority: &[u8]| der::sequence(&[authority, &[tag::INTEGER, 1, 0]]);
        assert_eq!(basic_constraints(&limited(&[1, 1, 0xff])), Ok(true));
        assert_eq!(basic_constraints(&limited(&[])), Err(NotDer), "only an authority has a path length");
        assert!(basic_constraints(&der::sequence(&[&[1, 1, 0xff], &[tag::INTEGER, 1, 0xff]])).is_err());
    }
}
