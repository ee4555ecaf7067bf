//! What must hold of the denylist: its encoding, its bound, whom it catches.

use proptest::{collection::vec, option, prelude::*};

use super::*;

fn subject() -> impl Strategy<Value = Subject> {
    let octets = || vec(1u8.., 1..=20).prop_map(Vec::into_boxed_slice);
    prop_oneof![
        "[a-z]{1,8}".prop_map(|name| {
            Subject::Identity(format!("spiffe://corp.example/ns/shop/sa/{name}").parse().unwrap())
        }),
        (octets(), option::of(octets())).prop_map(|(serial, issuer)| Subject::Serial { serial, issuer }),
        any::<[u8; 32]>().prop_map(Subject::Key),
    ]
}

fn entry() -> impl Strategy<Value = Denied> {
    (subject(), 1u64..1_000, option::of(Just("hostb".to_owned()))).prop_map(|(subject, until, node)| Denied {
        subject,
        until,
        node,
    })
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn order() -> SpiffeId {
    "spiffe://corp.example/ns/shop/sa/order".parse().unwrap()
}

fn presented<'a>(id: &'a SpiffeId, serial: &'a [u8], issuer: Option<&'a [u8]>) -> Presented<'a> {
    Presented { id, serial, key: &[9; 32], issuer }
}

fn list(subject: &str, node: Option<&str>) -> Denylist {
    let node = node.map(str::to_owned);
    Denylist::of([Denied { subject: subject.parse().unwrap(), until: 100, node }], &Denylist::new())
}

proptest! {
    #[test]
    fn a_subject_reads_back_as_it_was_written(subject in subject()) {
        prop_assert_eq!(subject.to_string().parse(), Ok(subject));
    }

    #[test]
    fn every_entry_is_found_until_its_end_and_nothing_else_is(entries in vec(entry(), 0..64), other in subject()) {
        let list = Denylist::of(entries.clone(), &Denylist::new());
        for entry in &entries {
            prop_assert!(list.get(&entry.subject, at(entry.until - 1)).is_some());
            let last = entries.iter().filter(|one| one.subject == entry.subject).map(|one| one.until).max();
            prop_assert!(list.get(&entry.subject, at(last.unwrap())).is_none());
        }
        let known = entries.iter().any(|entry| entry.subject == other);
        prop_assert_eq!(list.get(&other, at(0)).is_some(), known);
    }

    #[test]
    fn pages_that_travelled_make_the_same_list(entries in vec(entry(), 0..64)) {
        let list = Denylist::of(entries, &Denylist::new());
        let copy = |page: &Arc<DenyPage>| {
            Arc::new(DenyPage::new(page.number(), page.entries().to_vec()).unwrap())
        };
        prop_assert_eq!(Denylist::of_pages(list.pages().map(copy)), list);
    }

    #[test]
    fn what_did_not_change_stays_the_same_object(entries in vec(entry(), 1..64), more in entry()) {
        let before = Denylist::of(entries.clone(), &Denylist::new());
        let after = Denylist::of(entries.iter().cloned().chain([more.clone()]), &before);
        for (number, page) in &before.0 {
            let shared = Arc::ptr_eq(page, &after.0[number]);
            prop_assert!(shared || *number == more.subject.page());
        }
        prop_assert!(before.is_shared_with(&Denylist::of(entries, &before)));
    }
}

#[test]
fn a_certificate_is_found_by_identity_serial_and_key() {
    let id = order();
    let shown = presented(&id, &[0x0a, 0x01], Some(&[7]));
    for text in [
        "spiffe://corp.example/ns/shop/sa/order",
        "serial:0a01",
        "serial:0a01@07",
        &format!("sha256:{}", "09".repeat(32)),
    ] {
        assert_eq!(
            list(text, None).find(shown, at(1)).map(|found| found.subject.to_string()).as_deref(),
            Some(text)
        );
    }
    for text in ["spiffe://corp.example/ns/shop/sa/orders", "serial:0a", "serial:0a0101", "sha256:0a"] {
        let other = text
            .parse()
            .map(|subject| Denylist::of([Denied { subject, until: 100, node: None }], &Denylist::new()));
        assert!(other.is_err() || other.unwrap().find(shown, at(1)).is_none(), "{text}");
    }
}

#[test]
fn cert_22_a_serial_number_of_another_authority_is_another_certificate() {
    let (id, list) = (order(), list("serial:0a01@07", None));
    assert!(list.find(presented(&id, &[0x0a, 0x01], Some(&[7])), at(1)).is_some());
    assert!(list.find(presented(&id, &[0x0a, 0x01], Some(&[8])), at(1)).is_none());
    assert!(list.find(presented(&id, &[0x0a, 0x01], None), at(1)).is_none());
}

#[test]
fn a_ban_is_told_before_a_revocation_and_survives_one_of_the_same_certificate() {
    let id = order();
    let entry = |text: &str, node: Option<&str>| Denied {
        subject: text.parse().unwrap(),
        until: 100,
        node: node.map(str::to_owned),
    };
    let both =
        [entry(id.to_string().as_str(), None), entry("serial:0a", Some("hostb")), entry("serial:0a", None)];
    let list = Denylist::of(both, &Denylist::new());
    let found = list.find(presented(&id, &[0x0a], None), at(1)).unwrap();
    assert_eq!(found.node.as_deref(), Some("hostb"));
    assert_eq!(list.find(presented(&id, &[0x0b], None), at(1)).unwrap().node, None);
}

#[test]
fn a_page_with_an_entry_of_another_page_or_out_of_order_is_refused() {
    let entries = |texts: &[&str]| -> Vec<Denied> {
        texts.iter().map(|text| Denied { subject: text.parse().unwrap(), until: 1, node: None }).collect()
    };
    let one = entries(&["serial:0a"]);
    let number = one[0].subject.page();
    assert!(DenyPage::new(number, one.clone()).is_ok());
    assert_eq!(DenyPage::new(number.wrapping_add(1), one.clone()), Err(PageError::Misplaced));
    assert_eq!(DenyPage::new(number, [one.clone(), one].concat()), Err(PageError::Misplaced));
    assert_eq!(DenyPage::new(number, Vec::new()), Err(PageError::Empty));
}

#[test]
fn what_names_nothing_is_refused() {
    for text in [
        "",
        "serial:",
        "serial:0",
        "serial:00ff",
        "serial:0A",
        "serial:0a@",
        "sha256:ab",
        "spiffe://corp.example",
        "order",
    ] {
        assert!(text.parse::<Subject>().is_err(), "{text:?}");
    }
}
