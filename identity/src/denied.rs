//! Who is refused though the certificate is good: revoked identities, certificates, keys, and those of banned nodes.
//!
//! Owns what is named ([`Subject`]), for how long ([`Denied`]), and the set that a handshake asks ([`Denylist`]). The set
//! is cut into [`PAGES`] pages by a hash of the subject, so that of a hundred thousand entries one change is sent, kept
//! and compared as one small page. A page is sorted and holds nothing of another: what breaks that is refused whole.
//!
//! Pure. An entry ends by itself once no certificate that it is about can be valid any more.

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::spiffe::SpiffeId;

/// Into how many pages the list is cut: at 100,000 entries one has some 390, or 40 KiB.
pub const PAGES: usize = 256;
/// The most octets of a serial number (RFC 5280 §4.1.2.2) and of an authority key identifier that is kept.
const MAX_OCTETS: usize = 20;
/// What stands before a serial number, and before the SHA-256 of a public key.
const SERIAL: &str = "serial:";
const KEY: &str = "sha256:";

/// What is denied.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Subject {
    /// Every certificate of this identity.
    Identity(SpiffeId),
    /// The certificate of this serial number, of one authority or of any (CERT-22).
    Serial {
        /// Its octets, without leading zeros.
        serial: Box<[u8]>,
        /// The authority's key identifier, where it is known.
        issuer: Option<Box<[u8]>>,
    },
    /// Every certificate of the public key with this SHA-256 (of its SubjectPublicKeyInfo).
    Key([u8; 32]),
}

/// The text names nothing that can be denied.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidSubject {
    /// Not a SPIFFE ID.
    #[error("it is no SPIFFE ID with a path")]
    Identity,
    /// Not a serial number.
    #[error("a serial number is 1 to 20 octets in lower-case hexadecimal, without leading zeros")]
    Serial,
    /// Not a digest.
    #[error("a key is named by the 64 hexadecimal digits of its SHA-256")]
    Key,
}

impl Subject {
    /// Reads a serial number in hexadecimal.
    ///
    /// # Errors
    ///
    /// [`InvalidSubject::Serial`].
    pub fn serial(serial: &str, issuer: Option<&str>) -> Result<Self, InvalidSubject> {
        let octets = |text: &str| hex(text).filter(|octets| (1..=MAX_OCTETS).contains(&octets.len()));
        let serial = octets(serial).filter(|octets| octets[0] != 0).ok_or(InvalidSubject::Serial)?;
        let issuer = issuer.map(|issuer| octets(issuer).ok_or(InvalidSubject::Serial)).transpose()?;
        Ok(Self::Serial { serial, issuer })
    }

    /// Reads the SHA-256 of a public key in hexadecimal.
    ///
    /// # Errors
    ///
    /// [`InvalidSubject::Key`].
    pub fn key(digest: &str) -> Result<Self, InvalidSubject> {
        let octets = hex(digest).and_then(|octets| <[u8; 32]>::try_from(&*octets).ok());
        octets.map(Self::Key).ok_or(InvalidSubject::Key)
    }

    /// The page that it stands on: FNV-1a over its text, folded to eight bits. Part of the wire format.
    #[must_use]
    pub fn page(&self) -> u8 {
        let text = self.to_string();
        let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        let [a, b, c, d] = text.bytes().fold(0x811c_9dc5, step).to_be_bytes();
        a ^ b ^ c ^ d
    }
}

impl fmt::Display for Subject {
    /// `spiffe://…`, `serial:<hex>`, `serial:<hex>@<key id of the authority>`, `sha256:<hex>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write_hex = |f: &mut fmt::Formatter<'_>, octets: &[u8]| {
            octets.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
        };
        match self {
            Self::Identity(id) => id.fmt(f),
            Self::Serial { serial, issuer } => {
                f.write_str(SERIAL)?;
                write_hex(f, serial)?;
                let Some(issuer) = issuer else { return Ok(()) };
                f.write_str("@")?;
                write_hex(f, issuer)
            }
            Self::Key(digest) => {
                f.write_str(KEY)?;
                write_hex(f, digest)
            }
        }
    }
}

impl FromStr for Subject {
    type Err = InvalidSubject;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(serial) = text.strip_prefix(SERIAL) {
            return match serial.split_once('@') {
                Some((serial, issuer)) => Self::serial(serial, Some(issuer)),
                None => Self::serial(serial, None),
            };
        }
        if let Some(digest) = text.strip_prefix(KEY) {
            return Self::key(digest);
        }
        let id: SpiffeId = text.parse().map_err(|_| InvalidSubject::Identity)?;
        if id.path().is_empty() { Err(InvalidSubject::Identity) } else { Ok(Self::Identity(id)) }
    }
}

fn hex(text: &str) -> Option<Box<[u8]>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pair = |pair: &[u8]| match *pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

/// One entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denied {
    /// What is denied.
    pub subject: Subject,
    /// When the entry ends, in seconds since 1970: nothing that it is about is valid then.
    pub until: u64,
    /// The banned node that the certificate was issued to, if that is why.
    pub node: Option<String>,
}

impl Denied {
    fn holds(&self, now: SystemTime) -> bool {
        // A clock before 1970 lets nothing expire.
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        now.as_secs() < self.until
    }
}

/// Why a page is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PageError {
    /// An entry belongs to another page, or they are out of order, or one stands twice.
    #[error("an entry of the denylist is not where it belongs")]
    Misplaced,
    /// A page without entries is not kept.
    #[error("a page of the denylist is empty")]
    Empty,
}

/// The entries of one page, in the order of their subjects.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DenyPage {
    number: u8,
    entries: Box<[Denied]>,
}

impl DenyPage {
    /// The page of that number.
    ///
    /// # Errors
    ///
    /// [`PageError`] when an entry is not where it belongs: it would not be found.
    pub fn new(number: u8, entries: Vec<Denied>) -> Result<Self, PageError> {
        if entries.is_empty() {
            return Err(PageError::Empty);
        }
        let in_order = entries.windows(2).all(|pair| pair[0].subject < pair[1].subject);
        if !in_order || entries.iter().any(|entry| entry.subject.page() != number) {
            return Err(PageError::Misplaced);
        }
        Ok(Self { number, entries: entries.into() })
    }

    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u8 {
        self.number
    }

    /// Its entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[Denied] {
        &self.entries
    }

    fn get(&self, subject: &Subject) -> Option<&Denied> {
        let found = self.entries.binary_search_by(|entry| entry.subject.cmp(subject)).ok()?;
        self.entries.get(found)
    }
}

/// What a certificate shows of itself.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// Whom it names.
    pub id: &'a SpiffeId,
    /// The octets of its serial number.
    pub serial: &'a [u8],
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: &'a [u8; 32],
    /// The key identifier of the authority that signed it, as far as it names one.
    pub issuer: Option<&'a [u8]>,
}

/// Everything that is denied. Cloning copies references.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Denylist(BTreeMap<u8, Arc<DenyPage>>);

impl Denylist {
    /// Denies nobody.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The list of these entries. Of two about one subject the one that ends last stands, and a ban is not forgotten.
    /// Pages that `before` has as well stay the same objects.
    #[must_use]
    pub fn of(entries: impl IntoIterator<Item = Denied>, before: &Self) -> Self {
        let mut pages: BTreeMap<u8, BTreeMap<Subject, Denied>> = BTreeMap::new();
        for entry in entries {
            let page = pages.entry(entry.subject.page()).or_default();
            let merged = match page.remove(&entry.subject) {
                Some(old) => {
                    Denied { until: old.until.max(entry.until), node: old.node.or(entry.node), ..entry }
                }
                None => entry,
            };
            page.insert(merged.subject.clone(), merged);
        }
        let page = |(number, entries): (u8, BTreeMap<Subject, Denied>)| {
            let page = DenyPage { number, entries: entries.into_values().collect() };
            let kept = before.0.get(&number).filter(|kept| ***kept == page);
            (number, kept.map_or_else(|| Arc::new(page), Arc::clone))
        };
        Self(pages.into_iter().map(page).collect())
    }

    /// The list of whole pages.
    #[must_use]
    pub fn of_pages(pages: impl IntoIterator<Item = Arc<DenyPage>>) -> Self {
        Self(pages.into_iter().map(|page| (page.number, page)).collect())
    }

    /// Its pages, in order.
    pub fn pages(&self) -> impl Iterator<Item = &Arc<DenyPage>> {
        self.0.values()
    }

    /// How many entries there are, ended ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(|page| page.entries.len()).sum()
    }

    /// Whether nobody is denied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether both are the same objects in memory: equal without looking.
    #[must_use]
    pub fn is_shared_with(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.values().zip(other.0.values()).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// The entry by which a certificate is denied at `now`. A ban of its node is told before anything else.
    #[must_use]
    pub fn find(&self, presented: Presented<'_>, now: SystemTime) -> Option<&Denied> {
        if self.0.is_empty() {
            return None;
        }
        let serial = |issuer: Option<&[u8]>| Subject::Serial {
            serial: presented.serial.into(),
            issuer: issuer.map(Into::into),
        };
        let of_issuer = presented.issuer.map(|issuer| serial(Some(issuer)));
        let subjects = [Some(serial(None)), of_issuer, Some(Subject::Key(*presented.key))];
        let found = subjects.into_iter().flatten().find_map(|subject| self.get(&subject, now));
        let banned = found.filter(|entry| entry.node.is_some());
        banned.or_else(|| self.identity(presented.id, now)).or(found)
    }

    /// The entry that denies an identity as a whole at `now`.
    #[must_use]
    pub fn identity(&self, id: &SpiffeId, now: SystemTime) -> Option<&Denied> {
        if self.0.is_empty() { None } else { self.get(&Subject::Identity(id.clone()), now) }
    }

    fn get(&self, subject: &Subject, now: SystemTime) -> Option<&Denied> {
        self.0.get(&subject.page())?.get(subject).filter(|entry| entry.holds(now))
    }
}

#[cfg(test)]
mod tests;
