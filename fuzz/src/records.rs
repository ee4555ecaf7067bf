//! f13: signed records of the registry, and what they hold.
//!
//! An input is raw bytes, or a record sealed here and then bent. What is accepted must be signed by a trusted key over
//! exactly the documented bytes, as another reading of the layout finds; what is sealed and not bent must come back. What
//! the content decodes to must be written as it was read.

use std::sync::LazyLock;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bytes::Bytes;
use weft_api::record;
use weft_registry::records::{NodeRecord, Record, RegistrationRecord, UserRecord};
use weft_registry::seal::envelope::{open, seal};
use weft_registry::seal::{KeyRing, RecordKey, group};
use weft_registry::store::Key;

use crate::choice::Choice;

/// Two keys that are trusted, and one that is not.
struct World {
    ring: KeyRing,
    signers: [RecordKey; 3],
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let signers = [(); 3].map(|()| RecordKey::create().expect("there is entropy"));
    let ring = KeyRing::of(signers[0].clone());
    ring.trust(signers[1].public());
    World { ring, signers }
});

const KEYS: [&str; 6] = [
    "mesh/resources/authorizationpolicies/shop/a",
    "mesh/nodes/hosta",
    "mesh/users/ann",
    "mesh/registrations/shop/a",
    "mesh/_manifests/shop",
    "mesh/resources/authorizationpolicies/shop/b",
];

/// The first byte: raw or sealed. Then where it stands, who signs, for which key, generation, and the content.
pub fn f13_registry_record(data: &[u8]) {
    let mut choice = Choice::new(data);
    let raw = choice.byte() & 1 == 1;
    let place = choice.below(KEYS.len());
    let key: Key = KEYS[place].parse().expect("it is a key");
    let (sealed, legal) =
        if raw { (Bytes::copy_from_slice(choice.rest()), None) } else { built(choice, place) };
    let opened = open(&WORLD.ring, &key, &sealed);
    if let Some(content) = &legal {
        let opened = opened.as_ref().expect("a legal record is accepted");
        assert_eq!(opened.content, *content);
    }
    assert_eq!(opened.is_ok(), by_hand(&key, &sealed), "{opened:?}");
    let Ok(opened) = opened else { return };
    read(&key, &opened.content);
}

/// A record sealed for a key, bent as the input says; its content while it is still legal.
fn built(mut choice: Choice<'_>, place: usize) -> (Bytes, Option<Bytes>) {
    let signer = choice.below(3);
    let elsewhere = choice.below(KEYS.len());
    let generation = u64::from(choice.short());
    let content = Bytes::copy_from_slice(choice.slice(4096));
    let at: Key = KEYS[(place + elsewhere) % KEYS.len()].parse().expect("it is a key");
    let sealed = seal(&WORLD.signers[signer], &at, generation, &[choice.byte(); 32], &content);
    let mut legal = elsewhere == 0 && signer < 2;
    let mut bent = sealed.to_vec();
    let cut = usize::from(choice.short());
    if cut != 0 {
        bent.truncate(bent.len() - cut.min(bent.len()));
        legal = false;
    }
    while !choice.is_empty() && !bent.is_empty() {
        let (at, by) = (choice.short(), choice.byte());
        let last = bent.len() - 1;
        bent[usize::from(at).min(last)] ^= by;
    }
    // Two changes may take each other back.
    legal &= bent == *sealed;
    (bent.into(), legal.then_some(content))
}

/// The layout as it is documented, read by counting: whether a trusted key has signed it for `key`.
fn by_hand(key: &Key, sealed: &[u8]) -> bool {
    let Some((head, rest)) = sealed.split_at_checked(54) else { return false };
    let Some((signature, content)) = rest.split_at_checked(64) else { return false };
    if &head[..6] != b"\0weft\x01" {
        return false;
    }
    let trusted = WORLD.ring.trusted();
    let Some(signer) = trusted.iter().find(|key| key.id().0 == head[6..14]) else { return false };
    let mut message = b"weft record 1\0".to_vec();
    message.extend_from_slice(&(key.as_str().len() as u64).to_be_bytes());
    for part in [key.as_str().as_bytes(), head, content] {
        message.extend_from_slice(part);
    }
    UnparsedPublicKey::new(&ED25519, signer.0).verify(&message, signature).is_ok()
}

/// Whatever decodes is what its own encoding decodes to.
fn read(key: &Key, content: &[u8]) {
    if let Ok(object) = record::decode_resource(content, 7) {
        let again = record::decode_resource(&record::encode_resource(&object), 7);
        assert_eq!(again.as_ref(), Ok(&object), "{key}");
    }
    same::<NodeRecord>(content);
    same::<UserRecord>(content);
    same::<RegistrationRecord>(content);
    if let Some(count) = group::Count::decode(content) {
        assert_eq!(group::Count::decode(&count.encode()), Some(count));
    }
}

fn same<R: Record + PartialEq + std::fmt::Debug>(content: &[u8]) {
    let Ok(record) = R::decode(content) else { return };
    assert_eq!(R::decode(&record.encode()).expect("its own encoding"), record);
}
