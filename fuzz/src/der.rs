//! DER written and signed by hand, so that what no library would write can be written.

use std::sync::LazyLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
const UTF8: u8 = 0x0c;
const SET: u8 = 0x31;
const GENERALIZED_TIME: u8 = 0x18;

const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Keys 0 to 7, the same in every run; Ed25519, since its signatures are the same in every run too.
static KEYS: LazyLock<Vec<Ed25519KeyPair>> = LazyLock::new(|| {
    let key = |seed: u8| Ed25519KeyPair::from_seed_unchecked(&[seed + 1; 32]).expect("32 bytes are a seed");
    (0..8).map(key).collect()
});

pub(crate) fn key(number: usize) -> &'static Ed25519KeyPair {
    &KEYS[number % KEYS.len()]
}

pub(crate) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match content.len() {
        short @ ..0x80 => der.push(short as u8),
        byte @ 0x80..0x100 => der.extend([0x81, byte as u8]),
        long => {
            der.push(0x82);
            der.extend(u16::try_from(long).expect("nothing here is longer than 64 KiB").to_be_bytes());
        }
    }
    der.extend_from_slice(content);
    der
}

pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(SEQUENCE, &parts.concat())
}

pub(crate) fn bit_string(content: &[u8]) -> Vec<u8> {
    element(BIT_STRING, &[&[0], content].concat())
}

/// The SubjectPublicKeyInfo of a key.
pub(crate) fn key_info(number: usize) -> Vec<u8> {
    sequence(&[&algorithm(), &bit_string(key(number).public_key().as_ref())])
}

/// The AlgorithmIdentifier of Ed25519 (RFC 8410).
pub(crate) fn algorithm() -> Vec<u8> {
    sequence(&[&element(OID, ED25519)])
}

/// `body`, signed: the outer form of certificates and requests.
pub(crate) fn signed(body: &[u8], signer: usize) -> Vec<u8> {
    let signature = key(signer).sign(body);
    sequence(&[body, &algorithm(), &bit_string(signature.as_ref())])
}

/// A distinguished name; empty for an empty text.
pub(crate) fn name(common_name: &str) -> Vec<u8> {
    if common_name.is_empty() {
        return sequence(&[]);
    }
    let pair = sequence(&[&element(OID, COMMON_NAME), &element(UTF8, common_name.as_bytes())]);
    sequence(&[&element(SET, &pair)])
}

/// `seconds` after midnight of 2060-01-01, within that month. After 2049 there is one way to write a time.
pub(crate) fn time(seconds: u32) -> Vec<u8> {
    let (day, hour, minute, second) =
        (seconds / 86_400 + 1, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    element(GENERALIZED_TIME, format!("206001{day:02}{hour:02}{minute:02}{second:02}Z").as_bytes())
}

/// The Unix time of midnight of 2060-01-01.
pub(crate) const EPOCH: u64 = 2_840_140_800;
