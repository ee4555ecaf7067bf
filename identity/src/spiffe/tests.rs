//! The grammar of SPIFFE-ID (ID-01..14).

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use proptest::prelude::*;

use super::*;

#[test]
fn id_01_scheme_must_be_spiffe() {
    for text in ["", "http://td/a", "spiffe:/td", "spiffe:td", "spiffe", "Spiffe://td/a", "SPIFFE://td/a"] {
        assert_eq!(id(text), Err(InvalidSpiffeId::Scheme), "{text}");
    }
    for text in [" spiffe://td/a", "//td/a", "td/a", "spiffe//td/a", "\0spiffe://td/a"] {
        assert_eq!(name(text), Err(InvalidSpiffeId::Scheme), "{text}");
    }
}

#[test]
fn id_02_trust_domain_must_not_be_empty() {
    for text in ["spiffe://", "spiffe:///x", "spiffe:///"] {
        assert_eq!(name(text), Err(InvalidSpiffeId::EmptyTrustDomain), "{text}");
    }
    assert_eq!("".parse::<TrustDomain>(), Err(InvalidSpiffeId::EmptyTrustDomain));
}

#[test]
fn id_03_query_and_fragment_are_rejected_even_when_empty() {
    for text in ["a?", "a#", "a?x=1", "a#x", "?", "#", "a/b?c/d"] {
        let text = format!("spiffe://td/{text}");
        assert!(matches!(name(&text), Err(InvalidSpiffeId::PathCharacter('?' | '#'))), "{text}");
    }
    for text in ["spiffe://td?", "spiffe://td#", "spiffe://td?a/b", "spiffe://td#a/b"] {
        assert!(matches!(name(text), Err(InvalidSpiffeId::TrustDomainCharacter('?' | '#'))), "{text}");
    }
}

#[test]
fn id_04_userinfo_and_port_are_rejected() {
    for text in ["u@td", "td:8443", "td:", "@td", ":@td", "u:p@td", ":80"] {
        let with_path = format!("spiffe://{text}/a");
        assert!(matches!(name(&with_path), Err(InvalidSpiffeId::TrustDomainCharacter('@' | ':'))), "{text}");
        assert!(text.parse::<TrustDomain>().is_err(), "{text}");
    }
}

#[test]
fn id_05_trust_domain_takes_no_upper_case_and_no_percent_encoding() {
    for text in ["TD", "tD", "t%64", "%74d", "t d", "tÄd", "ｔｄ"] {
        let with_path = format!("spiffe://{text}/a");
        assert!(matches!(name(&with_path), Err(InvalidSpiffeId::TrustDomainCharacter(_))), "{text}");
    }
    assert!("a-z_0.9".parse::<TrustDomain>().is_ok());
}

#[test]
fn id_06_addresses_and_dns_shapes_get_no_special_treatment() {
    for text in ["127.0.0.1", "1", "td.", ".td", "..", "-", "_", "xn--nxasmq6b", "a..b"] {
        let full = format!("spiffe://{text}/a");
        assert_eq!(id(&full).unwrap().trust_domain().as_str(), text);
    }
    assert_ne!(id("spiffe://td./a").unwrap(), id("spiffe://td/a").unwrap());
    for text in ["[::1]", "::1", "*.td", "*"] {
        assert!(name(&format!("spiffe://{text}/a")).is_err(), "{text}");
    }
}

#[test]
fn id_07_path_takes_no_percent_encoding_and_no_other_character() {
    for text in ["%41", "a%2fb", "a:b", "a@b", "a b", "ä", "a+b", "a~b", "a;b", "a*", "a\\b", "a\0"] {
        let full = format!("spiffe://td/{text}");
        assert!(matches!(name(&full), Err(InvalidSpiffeId::PathCharacter(_))), "{text:?}");
    }
}

#[test]
fn id_08_empty_and_dot_segments_are_rejected_and_dotted_names_are_not() {
    for text in ["/", "//", "//a", "/a//b", "/a/"] {
        assert_eq!(name(&format!("spiffe://td{text}")), Err(InvalidSpiffeId::EmptySegment), "{text}");
    }
    for text in ["/.", "/..", "/a/./b", "/a/../b", "/a/.."] {
        assert_eq!(name(&format!("spiffe://td{text}")), Err(InvalidSpiffeId::DotSegment), "{text}");
    }
    for text in ["/...", "/.x", "/x..", "/a/.../b", "/-", "/_"] {
        assert!(id(&format!("spiffe://td{text}")).is_ok(), "{text}");
    }
}

#[test]
fn id_09_a_path_is_optional_for_a_name_but_not_for_an_id() {
    let domain: TrustDomain = "td".parse().unwrap();
    assert_eq!(name("spiffe://td"), Ok(SpiffeName::TrustDomain(domain.clone())));
    assert_eq!(id("spiffe://td"), Err(InvalidSpiffeId::NoPath));
    assert_eq!(domain.id(), "spiffe://td");
    assert_eq!(name("spiffe://td/a").unwrap().trust_domain(), &domain);
}

#[test]
fn id_10_lengths_are_bounded_at_2048_and_255_bytes() {
    for (length, accepted) in [(2047, true), (2048, true), (2049, false)] {
        let text = format!("spiffe://td/{}", "a".repeat(length - "spiffe://td/".len()));
        assert_eq!(text.len(), length);
        assert_eq!(id(&text).is_ok(), accepted, "{length}");
    }
    for (length, accepted) in [(254, true), (255, true), (256, false)] {
        let domain = "d".repeat(length);
        assert_eq!(domain.parse::<TrustDomain>().is_ok(), accepted, "{length}");
        assert_eq!(id(&format!("spiffe://{domain}/a")).is_ok(), accepted, "{length}");
    }
    let domain: TrustDomain = "td".parse().unwrap();
    let fits = MAX_ID_BYTES - "spiffe://td/user/".len();
    assert!(SpiffeId::user(&domain, &"a".repeat(fits)).is_ok());
    assert_eq!(SpiffeId::user(&domain, &"a".repeat(fits + 1)), Err(InvalidSpiffeId::TooLong));
}

#[test]
fn id_11_paths_compare_with_case() {
    assert_ne!(id("spiffe://td/A").unwrap(), id("spiffe://td/a").unwrap());
    assert_ne!(hash(&id("spiffe://td/A").unwrap()), hash(&id("spiffe://td/a").unwrap()));
}

#[test]
fn id_12_every_byte_in_every_position_is_accepted_exactly_if_in_the_set() {
    for byte in 0..=u8::MAX {
        let in_domain = byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        let in_path = byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        for (before, after) in [("", "td/a"), ("t", "d/a"), ("td", "/a")] {
            // A slash ends the trust domain, so what follows is judged as a path.
            let expected = in_domain || (byte == b'/' && before == "t");
            let expected = expected || (byte == b'/' && before.is_empty() && after.is_empty());
            assert_byte("spiffe://", before, byte, after, expected && !(byte == b'/' && before == "td"));
        }
        for (before, after) in [("", "aa"), ("a", "a"), ("aa", "")] {
            let expected = in_path || (byte == b'/' && before == "a" && after == "a");
            assert_byte("spiffe://td/x/", before, byte, after, expected);
        }
        assert_byte("spiffe://", "", byte, "/a", in_domain);
        assert_byte("spiffe://td/", "", byte, "", in_path && byte != b'.');
        let domain_alone = [byte];
        let alone = std::str::from_utf8(&domain_alone).is_ok_and(|text| text.parse::<TrustDomain>().is_ok());
        assert_eq!(alone, in_domain, "{byte:#x}");
    }
}

#[test]
fn id_12_every_latin_1_character_is_judged_like_its_byte() {
    for character in (0..=u8::MAX).map(char::from).chain(['\u{212a}', '\u{ff41}', '\u{200b}']) {
        let expected = character.is_ascii() && is_path_character(character);
        assert_eq!(id(&format!("spiffe://td/a{character}a")).is_ok(), expected || character == '/');
    }
}

#[test]
fn id_13_an_authority_is_named_by_its_trust_domain_without_a_path() {
    let domain: TrustDomain = "prod.example".parse().unwrap();
    assert_eq!(name(&domain.id()), Ok(SpiffeName::TrustDomain(domain)));
}

#[test]
fn id_14_equal_names_are_equal_bytes() {
    let (one, two) = (id("spiffe://td/a/b").unwrap(), id("spiffe://td/a/b").unwrap());
    assert_eq!(one, two);
    assert_eq!(hash(&one), hash(&two));
    assert_ne!(one, id("spiffe://td/a").unwrap());
    assert_ne!(one, id("spiffe://te/a/b").unwrap());
}

#[test]
fn kinds_are_read_from_whole_paths_only() {
    let domain: TrustDomain = "td".parse().unwrap();
    let workload = SpiffeId::workload(&domain, "shop", "charge").unwrap();
    assert_eq!(workload.to_string(), "spiffe://td/ns/shop/sa/charge");
    assert_eq!(workload.kind(), IdKind::Workload { namespace: "shop", service_account: "charge" });
    assert_eq!(SpiffeId::node(&domain, "a").unwrap().kind(), IdKind::Node("a"));
    assert_eq!(SpiffeId::server(&domain, "a").unwrap().kind(), IdKind::Server("a"));
    assert_eq!(SpiffeId::user(&domain, "a").unwrap().kind(), IdKind::User("a"));
    for path in ["node", "node/a/b", "ns/a/sa", "ns/a/sa/b/c", "ns/a/SA/b", "x", "server", "Server/a"] {
        assert_eq!(id(&format!("spiffe://td/{path}")).unwrap().kind(), IdKind::Other, "{path}");
    }
}

#[test]
fn a_part_that_holds_a_slash_cannot_become_another_id() {
    let domain: TrustDomain = "td".parse().unwrap();
    assert_eq!(SpiffeId::node(&domain, "a/b"), Err(InvalidSpiffeId::PathCharacter('/')));
    assert_eq!(SpiffeId::workload(&domain, "a/sa/x", "b"), Err(InvalidSpiffeId::PathCharacter('/')));
    assert_eq!(SpiffeId::workload(&domain, "", "b"), Err(InvalidSpiffeId::EmptySegment));
    assert_eq!(SpiffeId::server(&domain, ".."), Err(InvalidSpiffeId::DotSegment));
}

#[test]
fn a_host_name_becomes_a_label() {
    for (host, label) in [
        ("hostB", "hostb"),
        ("build_01.corp.example", "build-01-corp-example"),
        ("-x-", "x"),
        ("", "host"),
        ("...", "host"),
        ("Ünï", "n"),
    ] {
        assert_eq!(dns_label(host), label);
    }
    assert_eq!(dns_label(&"a".repeat(80)).len(), MAX_DNS_LABEL_BYTES);
    assert_eq!(dns_label(&("a".repeat(62) + ".b")), "a".repeat(62));
}

#[test]
fn display_obeys_the_width() {
    assert_eq!(format!("{:<16}|", id("spiffe://td/a").unwrap()), "spiffe://td/a   |");
}

proptest! {
    #[test]
    fn id_14_what_was_parsed_prints_as_it_was(text in "spiffe://[a-z0-9._-]{1,20}(/[a-zA-Z0-9._-]{1,9}){0,5}") {
        if let Ok(parsed) = name(&text) {
            prop_assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn any_text_is_judged_without_panic(text in ".{0,64}") {
        for text in [text.clone(), format!("spiffe://{text}"), format!("spiffe://td/{text}")] {
            if let Ok(parsed) = name(&text) {
                prop_assert_eq!(parsed.to_string(), text);
            }
        }
    }

    #[test]
    fn a_label_is_a_trust_domain_and_stays_itself(text in ".{0,100}") {
        let label = dns_label(&text);
        prop_assert!(label.parse::<TrustDomain>().is_ok());
        prop_assert!(label.len() <= MAX_DNS_LABEL_BYTES);
        prop_assert_eq!(dns_label(&label), label);
    }
}

fn id(text: &str) -> Result<SpiffeId, InvalidSpiffeId> {
    text.parse()
}

fn name(text: &str) -> Result<SpiffeName, InvalidSpiffeId> {
    text.parse()
}

fn hash(id: &SpiffeId) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

fn assert_byte(scheme: &str, before: &str, byte: u8, after: &str, expected: bool) {
    let bytes = [scheme.as_bytes(), before.as_bytes(), &[byte], after.as_bytes()].concat();
    let judged = SpiffeId::try_from(bytes.as_slice());
    assert_eq!(judged.is_ok(), expected, "{:?}: {judged:?}", String::from_utf8_lossy(&bytes));
}
