//! f04: chains that a peer presents, forged by a test authority and then bent.
//!
//! A case is built legal and bent by the choices of the input: who signed what, names, usages, times, what is presented in
//! which order, and bytes flipped after signing. A case that nothing bent must be accepted. What is accepted is checked
//! again by x509-parser, which builds the path and verifies every signature on its own.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use weft_identity::SpiffeId;
use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::svid::{MAX_CHAIN_BYTES, MAX_INTERMEDIATES};
use weft_identity::tls::{PeerIdentity, PeerRole, still_trusted, verify_chain};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::choice::Choice;
use crate::der::{self, BIT_STRING, BOOLEAN, INTEGER, OCTET_STRING, OID, element, sequence};

/// The second of the check, counted from [`der::EPOCH`]; certificates are valid from a minute before to an hour after.
const NOW: u32 = 15 * 86_400;
const LEAF_KEY: usize = 7;
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
const URI: u8 = 0x86;
const DNS: u8 = 0x82;

/// Trust domains; the third has no bundle.
const DOMAINS: [&str; 3] = ["a.example", "b.example", "c.example"];

static BUNDLES: LazyLock<TrustBundles> = LazyLock::new(|| {
    let mut bundles = TrustBundles::new();
    for (number, name) in DOMAINS.iter().enumerate().take(2) {
        let domain = name.parse().expect("it is one");
        let bundle = TrustBundle::new(domain, vec![root(number).der.into()], 1);
        bundles.insert(bundle.expect("a root in order")).expect("two domains");
    }
    bundles
});

/// Somebody whose certificate may stand above another.
#[derive(Clone)]
struct Signer {
    name: String,
    key: usize,
    der: Vec<u8>,
}

/// Root 0 and 1 are in the bundles of their domains, root 2 claims the first domain and is in none.
fn root(number: usize) -> Signer {
    let name = format!("root {number}");
    let uri = format!("spiffe://{}", DOMAINS[number % 2]);
    let extensions = [authority_basics(None), usage(0x06), names(&[(URI, uri.as_bytes())])].concat();
    let body = certificate(&name, &name, &[1], (0, 30 * 86_400), number, &extensions);
    Signer { der: der::signed(&body, number), name, key: number }
}

/// Builds a chain as the input says and asks for a verdict.
pub fn f04_peer_chain(data: &[u8]) {
    let mut case = Case { choice: Choice::new(data), bent: false };
    let role = if case.choice.byte() & 1 == 0 { PeerRole::Server } else { PeerRole::Client };
    let domain = case.below(3);
    let mut pool = vec![root(0), root(1), root(2)];
    let above = case.choice.below(MAX_INTERMEDIATES + 1);
    for depth in 0..above {
        let signer = case.authority(domain, &pool, depth);
        pool.push(signer);
    }
    let (leaf, id) = case.leaf(domain, &pool);
    let mut chain = vec![leaf];
    chain.extend(pool[3..].iter().rev().map(|signer| signer.der.clone()));
    case.present(&mut chain, &pool);
    case.flip(&mut chain);

    let chain: Vec<CertificateDer<'_>> = chain.into_iter().map(CertificateDer::from).collect();
    let now = UNIX_EPOCH + Duration::from_secs(der::EPOCH + u64::from(NOW));
    let verdict = verify_chain(&BUNDLES, &chain, role, now);
    if !case.bent && domain < 2 {
        assert_eq!(verdict.as_ref().map(|peer| peer.id.to_string()), Ok(id), "a legal chain was refused");
    }
    if let Ok(peer) = &verdict {
        accepted(peer, &chain, role, now);
        assert_eq!(still_trusted(&chain, &BUNDLES, now).as_ref(), Ok(peer));
    }
}

struct Case<'a> {
    choice: Choice<'a>,
    /// Whether anything is not as it should be.
    bent: bool,
}

impl Case<'_> {
    /// One of `0..most`, where everything but 0 bends the case.
    fn below(&mut self, most: usize) -> usize {
        let chosen = self.choice.below(most);
        self.bent |= chosen != 0;
        chosen
    }

    fn authority(&mut self, domain: usize, pool: &[Signer], depth: usize) -> Signer {
        let parent = self.parent(domain, pool);
        let own = format!("spiffe://{}", DOMAINS[domain]);
        let other = format!("spiffe://{}", DOMAINS[(domain + 1) % 3]);
        let path = format!("{own}/sub");
        let uris: Vec<&str> = match self.below(6) {
            0 => vec![&own],
            1 => vec![],
            2 => vec![&other],
            3 => vec![&path],
            4 => vec![&own, &other],
            _ => vec!["https://example.org"],
        };
        let uris: Vec<_> = uris.iter().map(|uri| (URI, uri.as_bytes())).collect();
        let basics = match self.below(5) {
            0 => authority_basics(None),
            1 => authority_basics(Some(0)),
            2 => authority_basics(Some(1)),
            3 => extension(BASIC_CONSTRAINTS, true, &sequence(&[])),
            _ => Vec::new(),
        };
        let usage = self.usage(0x06);
        let extra = self.extra();
        let names = if uris.is_empty() { Vec::new() } else { names(&uris) };
        let validity = self.validity();
        let (name, key) = (format!("authority {depth}"), 3 + depth);
        let extensions = [basics, usage, names, extra].concat();
        let body = certificate(&parent.name, &name, &[7, depth as u8], validity, key, &extensions);
        Signer { der: der::signed(&body, self.signer(parent.key)), name, key }
    }

    fn leaf(&mut self, domain: usize, pool: &[Signer]) -> (Vec<u8>, String) {
        let parent = self.parent(domain, pool);
        let id = format!("spiffe://{}/ns/shop/sa/charge", DOMAINS[domain]);
        let foreign = format!("spiffe://{}/ns/shop/sa/charge", DOMAINS[(domain + 1) % 3]);
        let free = self.choice.slice(96).to_vec();
        self.bent |= !free.is_empty();
        let list: Vec<(u8, &[u8])> = match self.below(9) {
            0 if free.is_empty() => vec![(URI, id.as_bytes())],
            0 | 1 => vec![(URI, &free)],
            2 => vec![(URI, id.as_bytes()), (URI, &free)],
            3 => vec![(URI, &free), (URI, id.as_bytes())],
            4 => vec![(URI, foreign.as_bytes())],
            5 => vec![(DNS, b"charge.example"), (URI, id.as_bytes())],
            6 => vec![(DNS, id.as_bytes())],
            7 => vec![(URI, id.as_bytes()), (0xa0, &free)],
            _ => vec![],
        };
        let basics = match self.below(4) {
            0 => extension(BASIC_CONSTRAINTS, true, &sequence(&[])),
            1 => Vec::new(),
            2 => authority_basics(None),
            _ => extension(BASIC_CONSTRAINTS, true, &free),
        };
        let usage = self.usage(0x80);
        let purposes: &[&[u8]] = match self.below(5) {
            0 => &[SERVER_AUTH, CLIENT_AUTH],
            1 => &[SERVER_AUTH],
            2 => &[CLIENT_AUTH],
            3 => &[&[0x2b, 6, 1, 5, 5, 7, 3, 9]],
            _ => &[],
        };
        let purposes = match purposes {
            [] => Vec::new(),
            list => {
                let list: Vec<u8> = list.iter().flat_map(|oid| element(OID, oid)).collect();
                extension(EXTENDED_KEY_USAGE, false, &sequence(&[&list]))
            }
        };
        let names = if list.is_empty() { Vec::new() } else { names(&list) };
        let extra = self.extra();
        let serial: &[u8] = match self.below(4) {
            0 => &[0x2a],
            1 => &[0],
            2 => &[0x80],
            _ => &[0x7f; 21],
        };
        let validity = self.validity();
        let extensions = [basics, usage, purposes, names, extra].concat();
        let body = certificate(&parent.name, "", serial, validity, LEAF_KEY, &extensions);
        (der::signed(&body, self.signer(parent.key)), id)
    }

    /// The lowest authority so far, or the root of the domain; bent, anybody.
    fn parent(&mut self, domain: usize, pool: &[Signer]) -> Signer {
        let lowest = if pool.len() > 3 { pool.len() - 1 } else { domain.min(2) };
        match self.below(pool.len() + 1) {
            0 => pool[lowest].clone(),
            chosen => pool[chosen - 1].clone(),
        }
    }

    /// Who signs, as opposed to who is named.
    fn signer(&mut self, named: usize) -> usize {
        match self.below(9) {
            0 => named,
            other => other - 1,
        }
    }

    fn usage(&mut self, right: u8) -> Vec<u8> {
        match self.below(6) {
            0 => usage(right),
            1 => Vec::new(),
            2 => extension(KEY_USAGE, false, &bits(right)),
            3 => usage(0x86),
            4 => usage(0x20),
            _ => [usage(right), usage(right)].concat(),
        }
    }

    fn validity(&mut self) -> (u32, u32) {
        match self.below(8) {
            0 => (NOW - 60, NOW + 3_600),
            1 => (NOW - 60, NOW),
            2 => (NOW - 60, NOW + 1),
            3 => (NOW, NOW + 60),
            4 => (NOW + 1, NOW + 60),
            5 => (NOW - 60, NOW - 60),
            6 => (NOW + 60, NOW - 60),
            _ => (NOW - 120, NOW - 60),
        }
    }

    /// An extension that should not be there.
    fn extra(&mut self) -> Vec<u8> {
        let chosen = self.below(5);
        if chosen == 0 {
            return Vec::new();
        }
        let value = self.choice.slice(64).to_vec();
        match chosen {
            1 => extension(&[0x2a, 3, 4], true, &value),
            2 => extension(&[0x2a, 3, 4], false, &value),
            3 => extension(NAME_CONSTRAINTS, true, &value),
            _ => value,
        }
    }

    /// Leaves out, repeats, swaps or inserts.
    fn present(&mut self, chain: &mut Vec<Vec<u8>>, pool: &[Signer]) {
        for _ in 0..self.below(4) {
            let at = self.choice.below(chain.len().max(1));
            match self.choice.below(5) {
                0 if !chain.is_empty() => drop(chain.remove(at)),
                1 => chain.insert(at, pool[self.choice.below(pool.len())].der.clone()),
                2 => chain.swap_remove_or_nothing(at),
                3 => chain.insert(at, self.choice.slice(600).to_vec()),
                _ => chain.reverse(),
            }
        }
    }

    /// Changes bytes after they were signed.
    fn flip(&mut self, chain: &mut [Vec<u8>]) {
        for _ in 0..self.below(4) {
            let (which, at, by) = (self.choice.byte(), self.choice.short(), self.choice.byte());
            let Some(count) = chain.len().checked_sub(1) else { return };
            let certificate = &mut chain[usize::from(which).min(count)];
            if let Some(length) = certificate.len().checked_sub(1) {
                certificate[usize::from(at).min(length)] ^= by;
            }
        }
    }
}

/// Moves the last certificate to another place.
trait Shuffle {
    fn swap_remove_or_nothing(&mut self, at: usize);
}

impl Shuffle for Vec<Vec<u8>> {
    fn swap_remove_or_nothing(&mut self, at: usize) {
        if let Some(last) = self.pop() {
            self.insert(at.min(self.len()), last);
        }
    }
}

fn certificate(
    issuer: &str,
    subject: &str,
    serial: &[u8],
    (not_before, not_after): (u32, u32),
    key: usize,
    extensions: &[u8],
) -> Vec<u8> {
    let version = element(0xa0, &element(INTEGER, &[2]));
    let extensions = element(0xa3, &element(der::SEQUENCE, extensions));
    sequence(&[
        &version,
        &element(INTEGER, serial),
        &der::algorithm(),
        &der::name(issuer),
        &sequence(&[&der::time(not_before), &der::time(not_after)]),
        &der::name(subject),
        &der::key_info(key),
        &extensions,
    ])
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { element(BOOLEAN, &[0xff]) } else { Vec::new() };
    sequence(&[&element(OID, oid), &critical, &element(OCTET_STRING, value)])
}

fn authority_basics(path_length: Option<u8>) -> Vec<u8> {
    let length = path_length.map(|length| element(INTEGER, &[length])).unwrap_or_default();
    extension(BASIC_CONSTRAINTS, true, &sequence(&[&element(BOOLEAN, &[0xff]), &length]))
}

fn bits(usage: u8) -> Vec<u8> {
    element(BIT_STRING, &[usage.trailing_zeros().min(7) as u8, usage])
}

fn usage(bits_set: u8) -> Vec<u8> {
    extension(KEY_USAGE, true, &bits(bits_set))
}

fn names(list: &[(u8, &[u8])]) -> Vec<u8> {
    let names: Vec<u8> = list.iter().flat_map(|(tag, content)| element(*tag, content)).collect();
    extension(SUBJECT_ALT_NAME, true, &sequence(&[&names]))
}

/// What must hold of everything that was accepted, by another parser.
fn accepted(peer: &PeerIdentity, chain: &[CertificateDer<'_>], role: PeerRole, now: SystemTime) {
    assert!(chain.len() <= MAX_INTERMEDIATES + 1, "{} certificates", chain.len());
    assert!(chain.iter().map(|der| der.len()).sum::<usize>() <= MAX_CHAIN_BYTES);
    let parsed: Vec<_> = chain.iter().map(|der| X509Certificate::from_der(der).ok()).collect();
    let Some(Some((rest, leaf))) = parsed.first() else { panic!("x509-parser cannot read an accepted leaf") };
    assert!(rest.is_empty(), "bytes behind the leaf");
    assert_eq!(uris(leaf), [peer.id.to_string()], "exactly the one URI of the leaf is the identity");
    assert!(!is_authority(leaf), "an authority was taken for a leaf");
    let usage = leaf.key_usage().expect("at most one").expect("strict: there is one");
    assert!(usage.critical && usage.value.digital_signature());
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign());
    if let Some(purposes) = leaf.extended_key_usage().expect("at most one") {
        let fits = match role {
            PeerRole::Server => purposes.value.server_auth,
            PeerRole::Client => purposes.value.client_auth,
        };
        assert!(fits || purposes.value.any, "the purpose of the leaf is another");
    }
    assert!(is_valid(leaf, now), "a leaf outside of its time");
    let domain = DOMAINS.iter().position(|name| *name == peer.id.trust_domain().as_str());
    let Some(domain @ 0..2) = domain else { panic!("{} has no bundle", peer.id) };
    let between: Vec<&X509Certificate<'_>> =
        parsed[1..].iter().flatten().filter(|(rest, _)| rest.is_empty()).map(|(_, parsed)| parsed).collect();
    let anchor = root(domain);
    let (_, anchor) = X509Certificate::from_der(&anchor.der).expect("our own root");
    assert!(leads_to(leaf, &between, &anchor, &peer.id, now, 0), "no path to the root of {}", peer.id);
}

fn leads_to(
    below: &X509Certificate<'_>,
    between: &[&X509Certificate<'_>],
    anchor: &X509Certificate<'_>,
    id: &SpiffeId,
    now: SystemTime,
    depth: u32,
) -> bool {
    let signed_by = |above: &X509Certificate<'_>| {
        below.issuer().as_raw() == above.subject().as_raw()
            && below.verify_signature(Some(above.public_key())).is_ok()
    };
    if signed_by(anchor) {
        return true;
    }
    depth <= MAX_INTERMEDIATES as u32
        && between.iter().any(|above| {
            signed_by(above)
                && may_sign(above, id, now, depth)
                && leads_to(above, between, anchor, id, now, depth + 1)
        })
}

fn may_sign(above: &X509Certificate<'_>, id: &SpiffeId, now: SystemTime, below: u32) -> bool {
    let domain = id.trust_domain().id();
    let spiffe: Vec<_> = uris(above).into_iter().filter(|uri| uri.starts_with("spiffe:")).collect();
    let names_domain = match spiffe.as_slice() {
        [] => true,
        [uri] => uri.trim_end_matches('/') == domain,
        _ => false,
    };
    let usage = above.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign());
    let length = above.basic_constraints().ok().flatten().and_then(|basics| basics.value.path_len_constraint);
    is_authority(above)
        && usage
        && names_domain
        && is_valid(above, now)
        && length.is_none_or(|most| below <= most)
}

fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    certificate.basic_constraints().ok().flatten().is_some_and(|basics| basics.value.ca)
}

/// Strict at the end: the second of notAfter is too late.
fn is_valid(certificate: &X509Certificate<'_>, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs() as i64;
    let validity = certificate.validity();
    validity.not_before.timestamp() <= now && now < validity.not_after.timestamp()
}

/// Every URI, legible or not.
fn uris(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Some(names) = certificate.subject_alternative_name().expect("at most one, and legible") else {
        return Vec::new();
    };
    let uri = |name: &GeneralName<'_>| {
        if let GeneralName::URI(text) = name {
            return Some((*text).to_owned());
        }
        if let GeneralName::Invalid(tag, bytes) = name
            && tag.0 == 6
        {
            return Some(format!("{bytes:02x?}"));
        }
        None
    };
    names.value.general_names.iter().filter_map(uri).collect()
}
