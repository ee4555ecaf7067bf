//! f01: SPIFFE names and the patterns over them, against a reader written a second time from the specification.

use weft_identity::{IdKind, SpiffeId, SpiffeName, TrustDomain, dns_label};
use weft_policy::pattern::IdentityPattern;

/// Lines of text: the first is read as a name, each pair of the rest as pattern and name.
pub fn f01_spiffe_id(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    name(first);
    let ids: Vec<SpiffeId> = lines.clone().take(8).filter_map(|line| SpiffeId::try_from(line).ok()).collect();
    for line in lines.take(8) {
        let Ok(text) = std::str::from_utf8(line) else { continue };
        pattern(text, &ids);
    }
}

fn name(bytes: &[u8]) {
    let by_bytes = SpiffeId::try_from(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        assert!(by_bytes.is_err(), "a name that is not UTF-8 was accepted");
        return;
    };
    let by_text: Result<SpiffeId, _> = text.parse();
    assert_eq!(by_bytes, by_text, "bytes and text are judged differently");
    assert_eq!(by_text.is_ok(), is_id(bytes), "the specification says otherwise of {text:?}: {by_text:?}");
    let domain: Result<TrustDomain, _> = text.parse();
    assert_eq!(domain.is_ok(), is_domain(bytes), "the specification says otherwise of domain {text:?}");
    let name: Result<SpiffeName, _> = text.parse();
    let of_domain = bytes.strip_prefix(b"spiffe://").is_some_and(is_domain);
    assert_eq!(name.is_ok(), is_id(bytes) || of_domain, "the specification says otherwise of name {text:?}");
    if let Ok(name) = name {
        assert_eq!(name.to_string(), text, "a name is written as it was read");
    }
    if let Ok(id) = by_text {
        accepted(&id, text);
    }
    let label = dns_label(text);
    assert_eq!(dns_label(&label), label, "folding twice is folding once");
    assert!(label.parse::<TrustDomain>().is_ok() && label.len() <= 63, "{label:?} is no label");
}

/// What holds of any accepted name.
fn accepted(id: &SpiffeId, text: &str) {
    assert_eq!(id.to_string(), text);
    assert_eq!(id.segments().fold(String::new(), |path, segment| path + "/" + segment), id.path());
    assert_eq!(format!("{}{}", id.trust_domain().id(), id.path()), text);
    let domain = id.trust_domain();
    let rebuilt = match id.kind() {
        IdKind::Workload { namespace, service_account } => {
            SpiffeId::workload(domain, namespace, service_account)
        }
        IdKind::Node(node) => SpiffeId::node(domain, node),
        IdKind::Server(instance) => SpiffeId::server(domain, instance),
        IdKind::User(user) => SpiffeId::user(domain, user),
        IdKind::Other => Ok(id.clone()),
    };
    assert_eq!(rebuilt.as_ref(), Ok(id), "the parts of a name give the name");
    let exactly = IdentityPattern::exactly(id);
    assert!(exactly.matches(id));
    let longer: Result<SpiffeId, _> = format!("{text}/x").parse();
    assert!(longer.is_err() || !exactly.matches(&longer.expect("just checked")));
}

fn pattern(text: &str, ids: &[SpiffeId]) {
    let Ok(pattern) = text.parse::<IdentityPattern>() else { return };
    assert_eq!(pattern.to_string(), text, "a pattern is written as it was read");
    for id in ids {
        assert_eq!(pattern.matches(id), matches_by_hand(text, id), "{text} over {id}");
        if pattern.matches(id) && pattern.stays_in_namespace("shop") {
            assert!(id.path().starts_with("/ns/shop/"), "{text} lets {id} out of its namespace");
        }
    }
}

/// The grammar of security.md 7.2, point 4, on the text.
fn matches_by_hand(pattern: &str, id: &SpiffeId) -> bool {
    let id = id.to_string();
    let (mut wanted, mut found) = (pattern.split('/'), id.split('/'));
    loop {
        match (wanted.next(), found.next()) {
            (None, None) => return true,
            (Some("**"), Some(_)) => return wanted.next().is_none(),
            (Some("*"), Some(_)) => {}
            (Some(literal), Some(segment)) if literal == segment => {}
            (Some(_) | None, Some(_) | None) => return false,
        }
    }
}

/// SPIFFE-ID section 2, on bytes.
fn is_id(bytes: &[u8]) -> bool {
    let Some(rest) = bytes.strip_prefix(b"spiffe://") else { return false };
    let Some(slash) = rest.iter().position(|byte| *byte == b'/') else { return false };
    let legal = |segment: &[u8]| {
        !matches!(segment, b"" | b"." | b"..")
            && segment.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
    };
    bytes.len() <= 2048 && is_domain(&rest[..slash]) && rest[slash + 1..].split(|b| *b == b'/').all(legal)
}

fn is_domain(bytes: &[u8]) -> bool {
    let legal = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(byte);
    (1..=255).contains(&bytes.len()) && bytes.iter().all(legal)
}
