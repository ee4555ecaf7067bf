//! A page of the denylist as it travels and is kept on disk.

use serde::{Deserialize, Serialize};
use weft_identity::denied::{Denied, DenyPage, Subject};

use super::RecordError;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawPage {
    entries: Vec<RawEntry>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    subject: String,
    until: u64,
    /// The banned node; `null` for none, and never absent.
    #[serde(deserialize_with = "Option::deserialize")]
    node: Option<String>,
}

/// The canonical JSON of a page.
pub(super) fn encode(page: &DenyPage) -> Vec<u8> {
    let raw = |entry: &Denied| RawEntry {
        subject: entry.subject.to_string(),
        until: entry.until,
        node: entry.node.clone(),
    };
    let page = RawPage { entries: page.entries().iter().map(raw).collect() };
    serde_json::to_vec(&page).expect("texts and numbers always serialise")
}

/// The page of that number of which [`encode`] made `document`.
pub(super) fn decode(number: u8, document: &[u8]) -> Result<DenyPage, RecordError> {
    let wrong = |why: String| RecordError::Denylist { number, why };
    let raw: RawPage = serde_json::from_slice(document).map_err(|error| wrong(error.to_string()))?;
    let entry = |raw: RawEntry| {
        let subject: Subject = raw.subject.parse().map_err(|error| wrong(format!("{error}")))?;
        Ok(Denied { subject, until: raw.until, node: raw.node })
    };
    let entries: Result<_, RecordError> = raw.entries.into_iter().map(entry).collect();
    DenyPage::new(number, entries?).map_err(|error| wrong(error.to_string()))
}

/// The number of a page as it stands in a key: two hexadecimal digits.
pub(super) fn number(text: &str) -> Option<u8> {
    let number = u8::from_str_radix(text, 16).ok()?;
    (format!("{number:02x}") == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use weft_identity::denied::Denylist;
    use weft_policy::snapshot::ViewObject;

    use super::*;
    use crate::record::{decode_view_object, encode_view_object};

    fn page() -> DenyPage {
        let entry = |subject: &str, node: Option<&str>| Denied {
            subject: subject.parse().unwrap(),
            until: 7,
            node: node.map(str::to_owned),
        };
        let list = Denylist::of([entry("serial:0a01", Some("hostb"))], &Denylist::new());
        let page = list.pages().next().unwrap();
        DenyPage::clone(page)
    }

    #[test]
    fn a_page_comes_back_as_it_was_sent() {
        let object = ViewObject::from(page());
        assert_eq!(decode_view_object(&encode_view_object(&object, 3)).unwrap(), object);
    }

    #[test]
    fn a_page_that_lost_something_or_has_something_of_another_is_refused() {
        let (page, whole) = (page(), encode(&page()));
        let whole: serde_json::Value = serde_json::from_slice(&whole).unwrap();
        for field in ["subject", "until", "node"] {
            let mut part = whole.clone();
            part["entries"][0].as_object_mut().unwrap().remove(field);
            assert!(decode(page.number(), part.to_string().as_bytes()).is_err(), "without {field}");
        }
        let empty = serde_json::json!({"entries": []}).to_string();
        assert!(decode(page.number(), empty.as_bytes()).is_err());
        assert!(decode(page.number().wrapping_add(1), whole.to_string().as_bytes()).is_err());
        assert!(decode(page.number(), whole.to_string().as_bytes()).is_ok());
        assert_eq!(number("0A"), None);
    }
}
