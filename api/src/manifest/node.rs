//! Text as a tree of values that know where they stand.
//!
//! Owns what is read before any meaning: YAML and JSON within bounds. Anchors, aliases, merge keys, tags, duplicate keys,
//! non-finite numbers and trailing data are refused here (POL-02), so that nothing behind this module meets them.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy, Spanned};

use weft_policy::code::{self, CodeId};

use crate::fault::{Fault, Place};

/// The largest text that is read at once, 1 MiB.
pub const MAX_INPUT_BYTES: usize = 1024 * 1024;
/// The deepest nesting. The deepest of our kinds needs 8; serde_json stops at 128 by itself.
const MAX_DEPTH: usize = 32;

/// One value of a text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) place: Option<Place>,
    pub(crate) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Option<Place>,
    pub(crate) value: Node,
}

impl Value {
    /// What the value is, for a message.
    pub(crate) const fn what(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) => "a number",
            Self::Float(_) => "a decimal number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Reads the documents of a YAML text; empty ones are left out. `code` stands on a fault of syntax.
pub(crate) fn read_yaml(text: &str, code: CodeId) -> Result<Vec<Node>, Fault> {
    check_size(text.len())?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_anchors: 0,
            max_aliases: 0,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options::<Spanned<Raw<LOCATED>>>(text, options)
        .map(|documents| documents.into_iter().map(node).filter(|d| d.value != Value::Null).collect())
        .map_err(|error| yaml_fault(&error, code))
}

/// Reads one JSON value and nothing after it.
pub(crate) fn read_json(bytes: &[u8], code: CodeId) -> Result<Node, Fault> {
    check_size(bytes.len())?;
    match serde_json::from_slice::<Raw<PLAIN>>(bytes) {
        Ok(raw) => Ok(Node { place: None, value: raw.0 }),
        Err(error) => Err(Fault::new(code, "the text cannot be read as JSON").why(error.to_string())),
    }
}

/// A fault of syntax; a manifest's has a code of its own for what is not syntax proper.
fn yaml_fault(error: &serde_saphyr::Error, code: CodeId) -> Fault {
    let error = error.without_snippet();
    let (own, what) = if matches!(error, serde_saphyr::Error::DuplicateMappingKey { .. }) {
        (code::DUPLICATE_KEY, "a key is given twice")
    } else if matches!(error, serde_saphyr::Error::Budget { .. }) {
        (code::TOO_DEEP, "the text is nested too deeply, or has anchors or aliases")
    } else {
        (code::MALFORMED, "the text cannot be read as YAML")
    };
    let code = if code == code::MALFORMED { own } else { code };
    Fault::new(code, what).why(error.to_string()).at("", error.location().and_then(place))
}

fn check_size(bytes: usize) -> Result<(), Fault> {
    if bytes <= MAX_INPUT_BYTES {
        return Ok(());
    }
    Err(Fault::new(code::OVER_LIMIT, format!("the text has {bytes} bytes"))
        .why(format!("at most {MAX_INPUT_BYTES} bytes are read at once"))
        .fix("split it into several files"))
}

fn place(location: serde_saphyr::Location) -> Option<Place> {
    let line = u32::try_from(location.line()).ok().filter(|line| *line > 0)?;
    Some(Place { line, column: u32::try_from(location.column()).unwrap_or(1) })
}

fn node(spanned: Spanned<Raw<LOCATED>>) -> Node {
    Node { place: place(spanned.referenced), value: spanned.value.0 }
}

/// Whether the deserializer can say where a value stands.
const LOCATED: bool = true;
const PLAIN: bool = false;

/// A value without its own place; what is inside it has one when `LOCATED`.
struct Raw<const L: bool>(Value);

impl<'de, const L: bool> Deserialize<'de> for Raw<L> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor::<L>).map(Self)
    }
}

struct RawVisitor<const L: bool>;

impl<'de, const L: bool> Visitor<'de> for RawVisitor<L> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        if value.is_finite() { Ok(Value::Float(value)) } else { Err(E::custom("a number must be finite")) }
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = next_item::<A, L>(&mut items)? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some((key, place)) = next_key::<A, L>(&mut map)? {
            if !seen.insert(key.clone()) {
                return Err(de::Error::custom(format_args!(
                    "the key {} is given twice",
                    super::quoted(&key)
                )));
            }
            let value = next_value::<A, L>(&mut map)?;
            entries.push(Entry { key, place, value });
        }
        Ok(Value::Map(entries))
    }
}

fn next_item<'de, A: SeqAccess<'de>, const L: bool>(items: &mut A) -> Result<Option<Node>, A::Error> {
    if L {
        Ok(items.next_element::<Spanned<Raw<LOCATED>>>()?.map(node))
    } else {
        Ok(items.next_element::<Raw<PLAIN>>()?.map(|raw| Node { place: None, value: raw.0 }))
    }
}

fn next_key<'de, A: MapAccess<'de>, const L: bool>(
    map: &mut A,
) -> Result<Option<(String, Option<Place>)>, A::Error> {
    if L {
        Ok(map.next_key::<Spanned<String>>()?.map(|key| (key.value, place(key.referenced))))
    } else {
        Ok(map.next_key::<String>()?.map(|key| (key, None)))
    }
}

fn next_value<'de, A: MapAccess<'de>, const L: bool>(map: &mut A) -> Result<Node, A::Error> {
    if L {
        map.next_value::<Spanned<Raw<LOCATED>>>().map(node)
    } else {
        map.next_value::<Raw<PLAIN>>().map(|raw| Node { place: None, value: raw.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Result<Vec<Node>, Fault> {
        read_yaml(text, code::MALFORMED)
    }

    #[test]
    fn every_value_knows_its_line() {
        let documents = yaml("a: 1\nb:\n  - x: true\n---\nc: {d: [1.5, \"t\"]}\n").unwrap();
        let Value::Map(first) = &documents[0].value else { panic!("a mapping") };
        assert_eq!((first[1].key.as_str(), first[1].place.unwrap().line), ("b", 2));
        let Value::List(items) = &first[1].value.value else { panic!("a list") };
        assert_eq!(items[0].place, Some(Place { line: 3, column: 5 }));
        let Value::Map(second) = &documents[1].value else { panic!("a mapping") };
        assert_eq!(second[0].place, Some(Place { line: 5, column: 1 }));
    }

    #[test]
    fn empty_documents_are_left_out() {
        assert_eq!(yaml("").unwrap(), []);
        assert_eq!(yaml("---\n---\na: 1\n---\n# only a comment\n").unwrap().len(), 1);
    }

    #[test]
    fn pol_02_what_yaml_can_hide_is_refused() {
        for (name, text, code) in [
            ("duplicate key", "a: 1\na: 2\n", code::DUPLICATE_KEY),
            ("anchor", "a: &x 1\nb: 2\n", code::TOO_DEEP),
            ("alias", "a: *x\n", code::MALFORMED),
            ("merge key", "<<: {a: 1}\nb: 2\n", code::MALFORMED),
            ("tag", "a: !shell rm\n", code::MALFORMED),
            ("not a number", "a: .nan\n", code::MALFORMED),
            ("infinity", "a: .inf\n", code::MALFORMED),
            ("unclosed", "a: [1, 2\n", code::MALFORMED),
            ("tab indentation", "a:\n\t- b\n", code::MALFORMED),
            ("trailing data", "{a: 1} b\n", code::MALFORMED),
        ] {
            let fault = yaml(text).unwrap_err();
            assert_eq!(&*fault.code, code.as_str(), "{name}");
            assert!(fault.place().is_some(), "{name}: {fault:?}");
        }
    }

    #[test]
    fn pol_02_an_anchors_bomb_costs_nothing() {
        let mut text = "a0: &a0 [x, x]\n".to_owned();
        for i in 1..30 {
            text.push_str(&format!("a{i}: &a{i} [*a{}, *a{}]\n", i - 1, i - 1));
        }
        assert!(yaml(&text).is_err());
    }

    #[test]
    fn pol_04_deep_nesting_is_refused_without_a_stack_overflow() {
        let deep = 10_000;
        assert!(yaml(&format!("{}{}", "[".repeat(deep), "]".repeat(deep))).is_err());
        assert!(yaml("a:\n").is_ok());
        let block: String = (0..deep).map(|i| format!("{}a:\n", " ".repeat(i % 400))).collect();
        assert!(yaml(&block).is_err());
        assert!(
            read_json(format!("{}{}", "[".repeat(deep), "]".repeat(deep)).as_bytes(), code::MALFORMED)
                .is_err()
        );
    }

    #[test]
    fn input_is_bounded() {
        let fits = format!("a: \"{}\"", "x".repeat(MAX_INPUT_BYTES - 5));
        assert_eq!(fits.len(), MAX_INPUT_BYTES);
        assert!(yaml(&fits).is_ok());
        assert_eq!(yaml(&format!("{fits}\n")).unwrap_err().code.as_ref(), code::OVER_LIMIT.as_str());
    }

    #[test]
    fn json_is_read_alike_and_strictly() {
        let json = br#"{"a": [1, -2, 1.5, true, null, "x\ud83d\ude00"]}"#;
        let Value::Map(map) = read_json(json, code::MALFORMED).unwrap().value else { panic!("a mapping") };
        let Value::List(list) = &map[0].value.value else { panic!("a list") };
        assert_eq!(list[5].value, Value::Text("x😀".to_owned()));
        for bad in [
            "{\"a\":1,\"a\":2}",
            "{} {}",
            "{\"a\":1e999}",
            "{\"a\":NaN}",
            "",
            "{\"a\":\"\\ud800\"}",
            "\u{feff}{}",
        ] {
            assert_eq!(
                read_json(bad.as_bytes(), code::MALFORMED).unwrap_err().code.as_ref(),
                code::MALFORMED.as_str(),
                "{bad}"
            );
        }
    }
}
