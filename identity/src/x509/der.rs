//! Strict DER: the few reads and writes that certificates and signing requests need.
//!
//! Owns nothing but the encoding (X.690): definite, minimal lengths, one-byte tags, no trailing bytes.
//! Anything else is refused, so that no two readers can see different things in one certificate.

/// The bytes are not strict DER, or not of the expected shape.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not strict DER of the expected shape")]
pub(crate) struct NotDer;

/// Universal and context tags in use (X.690 §8.1.2).
pub(crate) mod tag {
    pub(crate) const BOOLEAN: u8 = 0x01;
    pub(crate) const INTEGER: u8 = 0x02;
    pub(crate) const BIT_STRING: u8 = 0x03;
    pub(crate) const OCTET_STRING: u8 = 0x04;
    pub(crate) const NULL: u8 = 0x05;
    pub(crate) const OID: u8 = 0x06;
    pub(crate) const UTC_TIME: u8 = 0x17;
    pub(crate) const GENERALIZED_TIME: u8 = 0x18;
    pub(crate) const SEQUENCE: u8 = 0x30;
    /// `[0]` constructed: a certificate's version, a request's attributes.
    pub(crate) const CONTEXT_0: u8 = 0xa0;
    /// `[3]` constructed: a certificate's extensions.
    pub(crate) const CONTEXT_3: u8 = 0xa3;
    /// `[0]` primitive: the key identifier within authorityKeyIdentifier.
    pub(crate) const KEY_IDENTIFIER: u8 = 0x80;
    /// `[6]` primitive: a uniformResourceIdentifier within GeneralNames.
    pub(crate) const URI: u8 = 0x86;
}

/// One element: its tag, its content and the whole of it with tag and length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    pub(crate) whole: &'a [u8],
}

/// Reads elements one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next element, whatever its tag.
    pub(crate) fn any(&mut self) -> Result<Element<'a>, NotDer> {
        let (&tag, rest) = self.0.split_first().ok_or(NotDer)?;
        if tag & 0x1f == 0x1f {
            return Err(NotDer); // tags of several bytes: none in X.509
        }
        let (length, header) = length(rest)?;
        let end = 1 + header + length;
        let whole = self.0.get(..end).ok_or(NotDer)?;
        self.0 = &self.0[end..];
        Ok(Element { tag, content: &whole[1 + header..], whole })
    }

    /// The content of the next element, which must have `tag`.
    pub(crate) fn expect(&mut self, tag: u8) -> Result<&'a [u8], NotDer> {
        self.element(tag).map(|element| element.content)
    }

    /// The next element, which must have `tag`.
    pub(crate) fn element(&mut self, tag: u8) -> Result<Element<'a>, NotDer> {
        let element = self.any()?;
        if element.tag == tag { Ok(element) } else { Err(NotDer) }
    }

    /// The content of the next element if it has `tag`; otherwise nothing is consumed.
    pub(crate) fn optional(&mut self, tag: u8) -> Result<Option<&'a [u8]>, NotDer> {
        if self.0.first() == Some(&tag) { self.expect(tag).map(Some) } else { Ok(None) }
    }

    /// A reader over the content of the next element, which must be a SEQUENCE.
    pub(crate) fn sequence(&mut self) -> Result<Self, NotDer> {
        self.expect(tag::SEQUENCE).map(Self)
    }

    /// The content of the next element, which must be an OBJECT IDENTIFIER.
    pub(crate) fn oid(&mut self) -> Result<&'a [u8], NotDer> {
        let content = self.expect(tag::OID)?;
        check_oid(content)?;
        Ok(content)
    }

    /// Refuses what has not been read.
    pub(crate) fn finish(self) -> Result<(), NotDer> {
        if self.0.is_empty() { Ok(()) } else { Err(NotDer) }
    }
}

/// Reads the length octets: their value and how many there were. Up to 16 MiB, minimal, definite.
fn length(bytes: &[u8]) -> Result<(usize, usize), NotDer> {
    let (&first, rest) = bytes.split_first().ok_or(NotDer)?;
    let count = match first {
        0..=0x7f => return Ok((usize::from(first), 1)),
        0x81..=0x83 => usize::from(first & 0x7f),
        0x80 | 0x84..=0xff => return Err(NotDer), // indefinite, or longer than any certificate
    };
    let octets = rest.get(..count).ok_or(NotDer)?;
    let value = octets.iter().fold(0, |value, octet| value << 8 | usize::from(*octet));
    let minimal = if count == 1 { value >= 0x80 } else { octets[0] != 0 };
    if minimal { Ok((value, 1 + count)) } else { Err(NotDer) }
}

/// The only element in `bytes`, which must have `tag`.
pub(crate) fn single(bytes: &[u8], tag: u8) -> Result<&[u8], NotDer> {
    let mut reader = Reader::new(bytes);
    let content = reader.expect(tag)?;
    reader.finish()?;
    Ok(content)
}

/// The value of a BOOLEAN's content: DER knows only `00` and `FF`.
pub(crate) fn boolean(content: &[u8]) -> Result<bool, NotDer> {
    match content {
        [0x00] => Ok(false),
        [0xff] => Ok(true),
        _ => Err(NotDer),
    }
}

/// Checks the content of an OBJECT IDENTIFIER: whole numbers, without leading zeros.
pub(crate) fn check_oid(content: &[u8]) -> Result<(), NotDer> {
    let begins = std::iter::once(true).chain(content.iter().map(|octet| octet & 0x80 == 0));
    let padded = begins.zip(content).any(|(begins, octet)| begins && *octet == 0x80);
    match content.last() {
        Some(last) if last & 0x80 == 0 && !padded => Ok(()),
        _ => Err(NotDer),
    }
}

/// The magnitude of a non-negative INTEGER's content, without its leading zero octet.
pub(crate) fn unsigned(content: &[u8]) -> Result<&[u8], NotDer> {
    match content {
        [] | [0x80..=0xff, ..] | [0, 0..=0x7f, ..] => Err(NotDer),
        [0] => Ok(content),
        [0, magnitude @ ..] => Ok(magnitude),
        _ => Ok(content),
    }
}

/// The octets of a BIT STRING's content that has no unused bits, as keys and signatures have none.
pub(crate) fn whole_bits(content: &[u8]) -> Result<&[u8], NotDer> {
    match content {
        [0, octets @ ..] => Ok(octets),
        _ => Err(NotDer),
    }
}

/// Writes one element from the concatenation of `parts`. Up to 16 MiB of content.
pub(crate) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let octets = (length as u64).to_be_bytes();
    let used = octets.iter().position(|octet| *octet != 0).unwrap_or(octets.len() - 1);
    let mut out = Vec::with_capacity(length + 5);
    out.push(tag);
    if length >= 0x80 {
        out.push(0x80 | u8::try_from(octets.len() - used).unwrap_or(8));
    }
    out.extend_from_slice(&octets[used..]);
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// Writes a SEQUENCE of already encoded elements.
pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(tag::SEQUENCE, parts)
}

/// Writes a BIT STRING without unused bits.
pub(crate) fn bit_string(octets: &[u8]) -> Vec<u8> {
    element(tag::BIT_STRING, &[&[0], octets])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_minimal_definite_lengths_are_read() {
        assert_eq!(single(&[0x04, 0x01, 0xaa], 0x04), Ok(&[0xaa][..]));
        for (case, bytes) in [
            ("indefinite", &[0x04, 0x80, 0xaa, 0x00, 0x00][..]),
            ("one octet too many", &[0x04, 0x81, 0x01, 0xaa]),
            ("leading zero", &[0x04, 0x82, 0x00, 0x80]),
            ("four octets", &[0x04, 0x84, 0x00, 0x00, 0x00, 0x01, 0xaa]),
            ("truncated", &[0x04, 0x02, 0xaa]),
            ("trailing", &[0x04, 0x01, 0xaa, 0xbb]),
            ("long tag", &[0x1f, 0x04, 0x01, 0xaa]),
            ("empty", &[]),
        ] {
            assert_eq!(single(bytes, 0x04), Err(NotDer), "{case}");
        }
    }

    #[test]
    fn booleans_and_integers_have_one_form() {
        assert_eq!((boolean(&[0]), boolean(&[0xff])), (Ok(false), Ok(true)));
        assert!(boolean(&[1]).is_err() && boolean(&[]).is_err() && boolean(&[0, 0]).is_err());
        assert_eq!(unsigned(&[0x00, 0x80]), Ok(&[0x80][..]));
        assert_eq!(unsigned(&[0x00]), Ok(&[0x00][..]));
        assert!(unsigned(&[0x80]).is_err() && unsigned(&[0x00, 0x7f]).is_err() && unsigned(&[]).is_err());
    }

    #[test]
    fn object_identifiers_are_whole_numbers_without_leading_zeros() {
        for content in [&[0x2a][..], &[0x55, 0x1d, 0x11], &[0x2a, 0x86, 0x48], &[0x2a, 0x86, 0x80, 0x01]] {
            assert_eq!(check_oid(content), Ok(()), "{content:02x?}");
        }
        for content in [&[][..], &[0x80], &[0x2a, 0x86], &[0x2a, 0x80, 0x01], &[0x80, 0x2a]] {
            assert_eq!(check_oid(content), Err(NotDer), "{content:02x?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(tag in 0_u8..0x1f, content in proptest::collection::vec(any::<u8>(), 0..70_000)) {
            let written = element(tag, &[&content]);
            prop_assert_eq!(single(&written, tag), Ok(&content[..]));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&bytes);
            while let Ok(element) = reader.any() {
                prop_assert!(element.content.len() < element.whole.len());
            }
        }
    }
}
