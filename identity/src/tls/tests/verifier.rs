//! CERT-01..27 as far as a chain, a bundle and a time decide them.

use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::super::verifier::{PeerRole, SpiffeVerifier, still_trusted, verify_chain};
use super::super::{
    BundleSlot, ClientAuth, ExpectedPeer, JoinVerifier, PeerIdentity, REASONS, VerifyError, peer_id,
};
use crate::bundle::{TrustBundle, TrustBundles};
use crate::denied::{Denied, Denylist, Subject};
use crate::forge::{self, Authority, Forge, at, domain, id, purposes};
use crate::spiffe::SpiffeId;
use crate::svid::{KeyUsageFault, SvidError};
use crate::x509::der::{self, tag};
use crate::x509::{fingerprint, oid};

const ID: &str = "spiffe://td/ns/shop/sa/charge";

#[test]
fn a_legal_chain_proves_its_identity() {
    let root = Authority::root("td");
    for role in [PeerRole::Server, PeerRole::Client] {
        let peer = verify_chain(&root.bundles("td"), &[leaf(&root)], role, at(0)).unwrap();
        assert_eq!((peer.id, peer.not_after), (id(ID), at(3600)));
    }
}

#[test]
fn cert_01_and_x5_17_an_unknown_trust_domain_is_refused_whatever_its_root() {
    let root = Authority::root("td");
    let stranger = Forge::leaf("spiffe://other/a").signed_by(&root);
    let refused = verify(&root.bundles("td"), std::slice::from_ref(&stranger));
    assert_eq!(refused, Err(VerifyError::UnknownTrustDomain(domain("other"))));
    assert_eq!(refused.unwrap_err().reason(), "unknown_trust_domain");
    let nobody = verify(&TrustBundles::new(), &[leaf(&root)]);
    assert_eq!(nobody, Err(VerifyError::UnknownTrustDomain(domain("td"))));
}

#[test]
fn cert_02_and_x5_15_a_local_id_under_a_federated_root_is_refused() {
    let (local, federated) = (Authority::root("td"), Authority::root("friend"));
    let forged = Forge::leaf(ID).signed_by(&federated);
    assert_untrusted(&pooled(&local, &federated), std::slice::from_ref(&forged));
    // Nor does it help to bring the foreign root along, or to name the local root as issuer.
    assert_untrusted(&pooled(&local, &federated), &[forged, federated.certificate.clone()]);
    let lying = Forge { issuer: Some(local.name.clone()), ..Forge::leaf(ID) }.signed_by(&federated);
    assert_untrusted(&pooled(&local, &federated), &[lying]);
}

#[test]
fn cert_03_a_federated_id_under_the_local_root_is_refused() {
    let (local, federated) = (Authority::root("td"), Authority::root("friend"));
    let forged = Forge::leaf("spiffe://friend/a").signed_by(&local);
    assert_untrusted(&pooled(&local, &federated), &[forged]);
    let honest = Forge::leaf("spiffe://friend/a").signed_by(&federated);
    assert_eq!(verify(&pooled(&local, &federated), &[honest]).unwrap().id, id("spiffe://friend/a"));
}

#[test]
fn cert_04_expired_and_not_yet_valid_are_refused_to_the_second() {
    let root = Authority::root("td");
    let leaf = Forge::leaf(ID).valid(at(0), at(3600)).signed_by(&root);
    let reason = |now| {
        verify_at(&root.bundles("td"), std::slice::from_ref(&leaf), now).map_err(|error| error.reason())
    };
    for second in [-3600, -61, -1] {
        assert_eq!(reason(at(second)).unwrap_err(), "not_yet_valid", "{second}");
    }
    for second in [0, 1, 3599] {
        assert!(reason(at(second)).is_ok(), "{second}");
    }
    for second in [3600, 3601, 7200] {
        assert_eq!(reason(at(second)).unwrap_err(), "expired", "{second}");
    }
}

#[test]
fn cert_04_an_intermediate_is_judged_by_the_same_clock() {
    let root = Authority::root("td");
    let middle = root.child(Forge::authority("i", "spiffe://td").valid(at(10), at(100)));
    let leaf = Forge::leaf(ID).valid(at(-60), at(3600)).signed_by(&middle);
    let chain = [leaf, middle.certificate.clone()];
    let reason = |second| verify_at(&root.bundles("td"), &chain, at(second)).map_err(|error| error.reason());
    assert_eq!(reason(9).unwrap_err(), "not_yet_valid");
    assert!(reason(10).is_ok() && reason(99).is_ok());
    assert_eq!(reason(100).unwrap_err(), "expired"); // webpki alone would accept this second
    assert_eq!(reason(101).unwrap_err(), "expired");
    assert_eq!(reason(50).unwrap().not_after, at(100), "the connection ends with the intermediate");
}

#[test]
fn cert_05_06_08_and_10_the_profile_is_asked_before_any_signature() {
    let bundles = Authority::root("td").bundles("td");
    let stranger = Authority::root("stranger"); // its signatures would fail, and are not reached
    let second = [(0x86, ID.as_bytes()), (0x86, &[0xff][..])];
    for (forge, expected) in [
        (Forge::leaf(ID).without(oid::SUBJECT_ALT_NAME), SvidError::NoUri),
        (Forge::leaf(ID).named(&second), SvidError::SeveralUris(2)),
        (Forge::leaf("spiffe://td"), SvidError::Id(crate::InvalidSpiffeId::NoPath)),
        (Forge::leaf("spiffe://td/%2e"), SvidError::Id(crate::InvalidSpiffeId::PathCharacter('%'))),
    ] {
        assert_eq!(verify(&bundles, &[forge.signed_by(&stranger)]), Err(VerifyError::Profile(expected)));
    }
}

#[test]
fn cert_11_key_usage_is_judged_strictly_in_both_roles() {
    let root = Authority::root("td");
    let with = |critical, bits| Forge::leaf(ID).with(oid::KEY_USAGE, critical, forge::key_usage(bits));
    let authority = Forge::leaf(ID).with(oid::BASIC_CONSTRAINTS, true, forge::basic_constraints(true, None));
    let cases = [
        (authority, SvidError::LeafIsAuthority),
        (with(true, 0x84), SvidError::KeyUsage(KeyUsageFault::Signing)),
        (with(true, 0x82), SvidError::KeyUsage(KeyUsageFault::Signing)),
        (Forge::leaf(ID).without(oid::KEY_USAGE), SvidError::KeyUsage(KeyUsageFault::Absent)),
        (with(true, 0x08), SvidError::KeyUsage(KeyUsageFault::NoDigitalSignature)),
        (with(false, 0x80), SvidError::KeyUsage(KeyUsageFault::NotCritical)),
    ];
    for (forge, expected) in cases {
        let chain = [forge.signed_by(&root)];
        for role in [PeerRole::Server, PeerRole::Client] {
            let refused = verify_chain(&root.bundles("td"), &chain, role, at(0));
            assert_eq!(refused, Err(VerifyError::Profile(expected.clone())));
        }
    }
}

#[test]
fn cert_12_and_x5_10_a_stated_purpose_must_fit_the_role() {
    const EMAIL: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x04];
    const CODE: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];
    const ANY: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
    let root = Authority::root("td");
    let accepted = |oids: &[&[u8]]| {
        let chain = [Forge::leaf(ID).with(oid::EXTENDED_KEY_USAGE, false, purposes(oids)).signed_by(&root)];
        [PeerRole::Server, PeerRole::Client]
            .map(|role| verify_chain(&root.bundles("td"), &chain, role, at(0)).is_ok())
    };
    assert_eq!(accepted(&[oid::SERVER_AUTH]), [true, false]);
    assert_eq!(accepted(&[oid::CLIENT_AUTH]), [false, true]);
    assert_eq!(accepted(&[oid::CLIENT_AUTH, oid::SERVER_AUTH]), [true, true]);
    for oids in [&[EMAIL][..], &[CODE], &[ANY], &[]] {
        assert_eq!(accepted(oids), [false, false], "{oids:02x?}");
    }
    let silent = [Forge::leaf(ID).without(oid::EXTENDED_KEY_USAGE).signed_by(&root)];
    assert!(verify(&root.bundles("td"), &silent).is_ok());
}

#[test]
fn cert_13_a_purpose_of_an_intermediate_binds_what_is_below_it() {
    let root = Authority::root("td");
    let client_only = purposes(&[oid::CLIENT_AUTH]);
    let middle =
        root.child(Forge::authority("i", "spiffe://td").with(oid::EXTENDED_KEY_USAGE, false, client_only));
    let chain = [leaf(&middle), middle.certificate.clone()];
    assert!(verify_chain(&root.bundles("td"), &chain, PeerRole::Client, at(0)).is_ok());
    assert!(verify_chain(&root.bundles("td"), &chain, PeerRole::Server, at(0)).is_err());
}

#[test]
fn cert_14_self_signed_and_root_certificates_are_no_peers() {
    let root = Authority::root("td");
    let lonely = Authority::self_signed(Forge { subject: root.name.clone(), ..Forge::leaf(ID) });
    assert_untrusted(&root.bundles("td"), std::slice::from_ref(&lonely.certificate));
    assert!(verify(&root.bundles("td"), std::slice::from_ref(&root.certificate)).is_err());
    // A leaf cannot become an anchor either: a bundle takes authorities only.
    let bundle = TrustBundle::new(domain("td"), vec![lonely.certificate], 1);
    assert!(bundle.is_err());
}

#[test]
fn cert_16_and_x5_16_up_to_four_intermediates_lead_to_the_root() {
    let root = Authority::root("td");
    for count in 0..=4 {
        let (issuer, above) = tower(&root, count);
        let chain: Vec<_> = std::iter::once(leaf(&issuer)).chain(above).collect();
        assert_eq!(verify(&root.bundles("td"), &chain).unwrap().id, id(ID), "{count}");
    }
}

#[test]
fn cert_17_long_chains_are_refused_before_anything_is_read() {
    let bundles = Authority::root("td").bundles("td");
    let garbage = |bytes: usize| CertificateDer::from(vec![0; bytes]);
    for intermediates in [5, 9, 50] {
        let chain = vec![garbage(1); intermediates + 1];
        let expected = VerifyError::Profile(SvidError::TooManyIntermediates(intermediates));
        assert_eq!(verify(&bundles, &chain), Err(expected));
    }
    let longest = verify(&bundles, &[garbage(8 * 1024), garbage(8 * 1024)]);
    assert_eq!(longest, Err(VerifyError::Profile(SvidError::Malformed)));
    let too_long = verify(&bundles, &[garbage(8 * 1024), garbage(8 * 1024 + 1)]);
    assert_eq!(too_long, Err(VerifyError::Profile(SvidError::ChainTooLong(16 * 1024 + 1))));
    assert_eq!(verify(&bundles, &[]), Err(VerifyError::Profile(SvidError::Empty)));
}

#[test]
fn cert_18_order_and_extra_intermediates_do_not_matter() {
    let root = Authority::root("td");
    let (issuer, above) = tower(&root, 2);
    let extra = Authority::root("td").certificate;
    for order in [
        vec![above[1].clone(), above[0].clone()],
        vec![above[0].clone(), above[0].clone(), above[1].clone()],
        vec![above[0].clone(), above[1].clone(), extra],
        vec![above[0].clone(), above[1].clone(), root.certificate.clone()],
    ] {
        let chain: Vec<_> = std::iter::once(leaf(&issuer)).chain(order).collect();
        assert!(verify(&root.bundles("td"), &chain).is_ok());
    }
    assert_untrusted(&root.bundles("td"), &[leaf(&issuer), above[1].clone()]);
}

#[test]
fn cert_19_path_length_and_authority_are_enforced() {
    let root = Authority::root("td");
    let zero = forge::basic_constraints(true, Some(0));
    let first = root.child(Forge::authority("i1", "spiffe://td").with(oid::BASIC_CONSTRAINTS, true, zero));
    let second = first.child(Forge::authority("i2", "spiffe://td"));
    let chain = [leaf(&second), second.certificate.clone(), first.certificate.clone()];
    assert_untrusted(&root.bundles("td"), &chain);
    let no_authority = root.child(Forge::leaf("spiffe://td/evil"));
    assert!(verify(&root.bundles("td"), &[leaf(&no_authority), no_authority.certificate.clone()]).is_err());
    // cA alone is not enough: webpki does not look at the key usage of authorities, this crate does.
    let no_signing = Forge::authority("i3", "spiffe://td").with(oid::KEY_USAGE, true, forge::key_usage(0x80));
    let middle = root.child(no_signing);
    let refused = verify(&root.bundles("td"), &[leaf(&middle), middle.certificate.clone()]);
    assert_eq!(refused, Err(VerifyError::Authority { id: id(ID), source: SvidError::NotAnAuthority }));
}

#[test]
fn cert_20_and_x5_14_name_constraints_on_uris_fail_closed() {
    let root = Authority::root("td");
    // NameConstraints { permittedSubtrees [0] { { base [6] "td" } } }
    let subtree = [0x30, 0x08, 0xa0, 0x06, 0x30, 0x04, 0x86, 0x02, b't', b'd'];
    let middle =
        root.child(Forge::authority("i", "spiffe://td").with(oid::NAME_CONSTRAINTS, true, subtree.to_vec()));
    assert_untrusted(&root.bundles("td"), &[leaf(&middle), middle.certificate.clone()]);
    let odd = root.child(Forge::authority("i", "spiffe://td").with(&[0x2a, 0x03], true, vec![5, 0]));
    assert!(verify(&root.bundles("td"), &[leaf(&odd), odd.certificate.clone()]).is_err());
}

#[test]
fn cert_21_an_intermediate_of_another_domain_or_with_a_path_is_refused() {
    let root = Authority::root("td");
    for uri in ["spiffe://other", "spiffe://td/ns/shop", "spiffe://other/"] {
        let middle = root.child(Forge::authority("i", uri));
        let refused = verify(&root.bundles("td"), &[leaf(&middle), middle.certificate.clone()]);
        assert_eq!(
            refused,
            Err(VerifyError::Authority { id: id(ID), source: SvidError::AuthorityId }),
            "{uri}"
        );
    }
    for uri in ["spiffe://td", "spiffe://td/"] {
        let middle = root.child(Forge::authority("i", uri));
        assert!(verify(&root.bundles("td"), &[leaf(&middle), middle.certificate.clone()]).is_ok(), "{uri}");
    }
}

#[test]
fn cert_21_a_bad_intermediate_beside_a_good_one_of_the_same_name_does_no_harm() {
    let root = Authority::root("td");
    let good = root.child(Forge::authority("i", "spiffe://td"));
    let twin = Forge { spki: good.key.spki(), ..Forge::authority("i", "spiffe://other") }.signed_by(&root);
    let chain = [leaf(&good), twin, good.certificate.clone()];
    assert!(verify(&root.bundles("td"), &chain).is_ok());
}

#[test]
fn cert_26_another_workload_than_the_dialled_one_is_refused() {
    let root = Authority::root("td");
    let chain = [leaf(&root)];
    let judge = |expected: ExpectedPeer| {
        let slot = BundleSlot::new(root.bundles("td"));
        SpiffeVerifier::new(slot, expected, ClientAuth::Required).verify(&chain, PeerRole::Server, at(0))
    };
    let other = id("spiffe://td/ns/shop/sa/order");
    let refused = judge(ExpectedPeer::Exactly(other.clone())).unwrap_err();
    assert_eq!(refused.reason(), "unexpected_identity");
    assert!(judge(ExpectedPeer::Exactly(id(ID))).is_ok());
    assert!(judge(ExpectedPeer::AnyOf(Arc::from([other.clone(), id(ID)]))).is_ok());
    assert!(judge(ExpectedPeer::AnyOf(Arc::from([other]))).is_err());
    assert!(judge(ExpectedPeer::AnyOf(Arc::from([]))).is_err());
    assert!(judge(ExpectedPeer::AnyServerOf(domain("td"))).is_err());
    assert!(judge(ExpectedPeer::AnyWorkload).is_ok() && judge(ExpectedPeer::Anyone).is_ok());
}

#[test]
fn expected_peers_are_told_apart_by_kind_and_domain() {
    let accepts = |expected: ExpectedPeer, text: &str| expected.accepts(&id(text));
    assert!(accepts(ExpectedPeer::AnyServerOf(domain("td")), "spiffe://td/server/a"));
    assert!(!accepts(ExpectedPeer::AnyServerOf(domain("td")), "spiffe://friend/server/a"));
    assert!(!accepts(ExpectedPeer::AnyServerOf(domain("td")), "spiffe://td/server/a/b"));
    for text in ["spiffe://td/node/a", "spiffe://td/user/a", "spiffe://td/server/a", "spiffe://td/x"] {
        assert!(!accepts(ExpectedPeer::AnyWorkload, text), "{text}");
    }
}

#[test]
fn cert_27_an_expired_root_is_no_anchor() {
    let root = Authority::self_signed(Forge::authority("r", "spiffe://td").valid(at(-100), at(10)));
    let leaf = Forge::leaf(ID).signed_by(&root);
    assert!(verify_at(&root.bundles("td"), std::slice::from_ref(&leaf), at(9)).is_ok());
    let refused = verify_at(&root.bundles("td"), &[leaf], at(10));
    assert_eq!(refused, Err(VerifyError::NoRoot(domain("td"))));
}

#[test]
fn cert_28_a_root_that_left_the_bundle_takes_its_peers_along() {
    let (old, new) = (Authority::root("td"), Authority::root("td"));
    let both = vec![old.certificate.clone(), new.certificate.clone()];
    let both = TrustBundles::from(TrustBundle::new(domain("td"), both, 1).unwrap());
    let chain = [leaf(&old)];
    assert!(verify(&both, &chain).is_ok());
    assert_untrusted(&new.bundles("td"), &chain);
    assert!(still_trusted(&chain, &both, at(0)).is_ok());
    assert!(still_trusted(&chain, &new.bundles("td"), at(0)).is_err());
    assert!(still_trusted(&chain, &both, at(3600)).is_err());
}

#[test]
fn a_live_connection_keeps_the_role_that_its_certificate_allows() {
    let root = Authority::root("td");
    for purpose in [oid::SERVER_AUTH, oid::CLIENT_AUTH] {
        let forge = Forge::leaf(ID).with(oid::EXTENDED_KEY_USAGE, false, purposes(&[purpose]));
        assert!(still_trusted(&[forge.signed_by(&root)], &root.bundles("td"), at(0)).is_ok());
    }
}

#[test]
fn bu_02_and_x5_20_a_bundle_without_roots_trusts_nobody() {
    let root = Authority::root("td");
    let empty = TrustBundles::from(TrustBundle::new(domain("td"), Vec::new(), 2).unwrap());
    assert_eq!(verify(&empty, &[leaf(&root)]), Err(VerifyError::NoRoot(domain("td"))));
}

#[test]
fn a_changed_signature_is_noticed_at_every_level() {
    let root = Authority::root("td");
    let (issuer, above) = tower(&root, 1);
    let good = [leaf(&issuer), above[0].clone()];
    for broken in 0..good.len() {
        let mut chain = good.clone();
        let mut bytes = chain[broken].to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        chain[broken] = bytes.into();
        assert!(verify(&root.bundles("td"), &chain).is_err(), "{broken}");
    }
}

#[test]
fn the_peer_of_a_connection_is_read_with_its_authorities() {
    let root = Authority::root("td");
    let key_id = |octet: u8| vec![0x30, 0x03, 0x80, 0x01, octet];
    let middle = root.child(Forge::authority("i", "spiffe://td").with(
        oid::AUTHORITY_KEY_IDENTIFIER,
        false,
        key_id(1),
    ));
    let leaf = Forge::leaf(ID).with(oid::AUTHORITY_KEY_IDENTIFIER, false, key_id(2)).signed_by(&middle);
    let peer = peer_id(&[leaf, middle.certificate.clone()]).unwrap();
    assert_eq!(peer.authority_key_ids, [vec![2], vec![1]]);
    assert_eq!((peer.id, peer.serial.to_string()), (id(ID), "2a".to_owned()));
    assert_eq!(peer_id(&[]), Err(SvidError::Empty));
}

#[test]
fn a_joiner_accepts_a_server_under_a_pinned_root_only() {
    let root = Authority::root("td");
    let server = Forge::leaf("spiffe://td/server/a").signed_by(&root);
    let pinned = JoinVerifier::new(domain("td"), [fingerprint(&root.certificate)]);
    let chain = [server.clone(), root.certificate.clone()];
    assert_eq!(pinned.verify(&chain, at(0)).unwrap().id, id("spiffe://td/server/a"));

    let other = Authority::root("td");
    let mixed = [server.clone(), other.certificate.clone(), root.certificate.clone()];
    assert!(pinned.verify(&mixed, at(0)).is_ok());
    assert_eq!(pinned.verify(&[server], at(0)), Err(VerifyError::UnknownRoot));
    let impostor = [Forge::leaf("spiffe://td/server/a").signed_by(&other), root.certificate.clone()];
    assert_eq!(pinned.verify(&impostor, at(0)).unwrap_err().reason(), "untrusted");
    let stranger = [Forge::leaf("spiffe://other/server/a").signed_by(&root), root.certificate.clone()];
    assert_eq!(pinned.verify(&stranger, at(0)).unwrap_err().reason(), "unknown_trust_domain");
    for text in ["spiffe://td/node/a", ID] {
        let peer = [Forge::leaf(text).signed_by(&root), root.certificate.clone()];
        assert_eq!(pinned.verify(&peer, at(0)).unwrap_err().reason(), "unexpected_identity");
    }
    let unpinned = JoinVerifier::new(domain("td"), []);
    assert_eq!(unpinned.verify(&chain, at(0)), Err(VerifyError::UnknownRoot));
}

#[test]
fn a_joiner_does_not_anchor_on_a_pinned_leaf() {
    let root = Authority::root("td");
    let server = Forge::leaf("spiffe://td/server/a").signed_by(&root);
    let pinned = JoinVerifier::new(domain("td"), [fingerprint(&server)]);
    assert!(pinned.verify(&[server, root.certificate.clone()], at(0)).is_err());
}

#[test]
fn cert_29_a_certificate_that_names_another_issuer_than_its_own_is_refused() {
    let key_id = |octet: u8| der::element(tag::OCTET_STRING, &[&[octet; 20]]);
    let stated = |octet: u8| der::sequence(&[&der::element(tag::KEY_IDENTIFIER, &[&[octet; 20]])]);
    let root = Forge::authority("root", "spiffe://td").valid(at(-90_000), at(90_000));
    let root = Authority::self_signed(root.with(oid::SUBJECT_KEY_IDENTIFIER, false, key_id(1)));
    let issuer = |named: u8| {
        let forge =
            Forge::authority("issuer", "spiffe://td").with(oid::SUBJECT_KEY_IDENTIFIER, false, key_id(2));
        root.child(forge.with(oid::AUTHORITY_KEY_IDENTIFIER, false, stated(named)))
    };
    let leaf = |issuer: &Authority, named: u8| {
        Forge::leaf(ID).with(oid::AUTHORITY_KEY_IDENTIFIER, false, stated(named)).signed_by(issuer)
    };
    let bundles = root.bundles("td");
    let judge = |named_by_leaf, named_by_issuer| {
        let issuer = issuer(named_by_issuer);
        verify(&bundles, &[leaf(&issuer, named_by_leaf), issuer.certificate.clone()]).map(drop)
    };
    let mismatch = Err(VerifyError::Authority { id: id(ID), source: SvidError::IssuerMismatch });
    assert_eq!(judge(2, 1), Ok(()));
    assert_eq!(judge(3, 1), mismatch, "the leaf names a key that did not sign it");
    assert_eq!(judge(2, 3), mismatch, "the issuer names a key that did not sign it");
    assert_eq!(verify(&bundles, &[leaf(&root, 1)]).map(drop), Ok(()));
    assert_eq!(verify(&bundles, &[leaf(&root, 2)]).map(drop), mismatch, "the root is looked at too");
}

#[test]
fn the_reason_survives_as_text_and_no_peer_can_choose_it() {
    let domain = domain("refused.as.expired");
    let errors = [
        VerifyError::Profile(SvidError::Empty),
        VerifyError::UnknownTrustDomain(domain.clone()),
        VerifyError::NoRoot(domain.clone()),
        VerifyError::NotYetValid { id: id(ID), not_before: at(1), now: at(0) },
        VerifyError::Expired { id: id(ID), not_after: at(0), now: at(0) },
        VerifyError::Authority { id: id(ID), source: SvidError::AuthorityId },
        VerifyError::Untrusted { id: id(ID), source: webpki::Error::UnknownIssuer },
        VerifyError::Unexpected { id: id(ID), expected: ExpectedPeer::AnyServerOf(domain) },
        VerifyError::UnknownRoot,
    ];
    for (error, reason) in errors.into_iter().zip(REASONS) {
        assert_eq!(error.reason(), reason);
        let wrapped = rustls::Error::from(error.clone());
        assert_eq!(VerifyError::of(&wrapped), Some(&error));
        assert_eq!(VerifyError::reason_in(&wrapped.to_string()), Some(reason), "{wrapped}");
    }
    assert_eq!(VerifyError::reason_in("refused as someone: else"), None);
    assert_eq!(VerifyError::reason_in(&rustls::Error::NoCertificatesPresented.to_string()), None);
}

/// The bundles of `root`, with one entry of the denylist.
fn denying(root: &Authority, subject: &str, node: Option<&str>) -> TrustBundles {
    let until = at(3600).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let entry = Denied { subject: subject.parse().unwrap(), until, node: node.map(str::to_owned) };
    root.bundles("td").denying(Denylist::of([entry], &Denylist::new()))
}

#[test]
fn who_is_denied_is_refused_by_identity_serial_and_key_in_both_roles() {
    let root = Authority::root("td");
    let chain = [leaf(&root)];
    let peer = peer_id(&chain).unwrap();
    let key: String = peer.key.iter().map(|octet| format!("{octet:02x}")).collect();
    for subject in [ID.to_owned(), format!("serial:{}", peer.serial), format!("sha256:{key}")] {
        let by = subject.parse().unwrap();
        for role in [PeerRole::Server, PeerRole::Client] {
            let refused = verify_chain(&denying(&root, &subject, None), &chain, role, at(0));
            assert_eq!(refused, Err(VerifyError::Revoked { id: id(ID), by: Subject::clone(&by) }));
        }
        let live = still_trusted(&chain, &denying(&root, &subject, None), at(0)).unwrap_err();
        assert_eq!(live.reason(), "identity_revoked");
    }
    assert!(verify(&denying(&root, "spiffe://td/ns/shop/sa/other", None), &chain).is_ok());
}

#[test]
fn a_certificate_of_a_banned_node_is_told_apart_and_a_forged_one_learns_nothing() {
    let root = Authority::root("td");
    let chain = [leaf(&root)];
    let serial = format!("serial:{}", peer_id(&chain).unwrap().serial);
    let refused = verify(&denying(&root, &serial, Some("hostb")), &chain);
    assert_eq!(refused, Err(VerifyError::NodeBanned { id: id(ID), node: "hostb".to_owned() }));
    let stranger = [leaf(&Authority::root("td"))];
    assert_untrusted(&denying(&root, ID, None), &stranger);
}

fn leaf(issuer: &Authority) -> CertificateDer<'static> {
    Forge::leaf(ID).signed_by(issuer)
}

/// `count` intermediates under `root`: the lowest, and all of their certificates from it upward.
fn tower(root: &Authority, count: usize) -> (Authority, Vec<CertificateDer<'static>>) {
    let mut issuer = root.duplicate();
    let mut above = Vec::new();
    for level in 0..count {
        issuer = issuer.child(Forge::authority(&format!("i{level}"), "spiffe://td"));
        above.insert(0, issuer.certificate.clone());
    }
    (issuer, above)
}

fn pooled(local: &Authority, federated: &Authority) -> TrustBundles {
    let mut bundles = local.bundles("td");
    bundles.insert(federated.bundle("friend")).unwrap();
    bundles
}

fn verify(bundles: &TrustBundles, chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, VerifyError> {
    verify_at(bundles, chain, at(0))
}

fn verify_at(
    bundles: &TrustBundles,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<PeerIdentity, VerifyError> {
    verify_chain(bundles, chain, PeerRole::Server, now)
}

fn assert_untrusted(bundles: &TrustBundles, chain: &[CertificateDer<'_>]) {
    let refused: Result<SpiffeId, _> = verify(bundles, chain).map(|peer| peer.id);
    assert!(matches!(refused, Err(VerifyError::Untrusted { .. })), "{refused:?}");
}
