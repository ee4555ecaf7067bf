//! Configuration files: strict YAML into serde types.
//!
//! Owns [`from_yaml`], which the planes' `config.rs` use: unknown keys are faults with the nearest known key, every fault
//! names the field's path, line and column, and what YAML can hide (anchors, duplicate keys, tags) is refused.
//! Derive `Deserialize` with `deny_unknown_fields` on each struct; without it serde never tells of unknown keys.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor, value::StringDeserializer,
};

use weft_policy::code::{self, CodeId};

use super::{
    nearest::nearest,
    node::{self, Entry, Node, Value},
    plain_key, quoted,
};
use crate::fault::{Fault, Place};

/// Reads a configuration file of one YAML document; an empty text is an empty mapping.
///
/// # Errors
///
/// The first fault, with path, line and column as far as they are known.
pub fn from_yaml<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    let mut documents = node::read_yaml(text, code::CONFIG_MALFORMED)?.into_iter();
    let first = documents.next().unwrap_or(Node { place: None, value: Value::Map(Vec::new()) });
    if let Some(second) = documents.next() {
        let fault =
            Fault::new(code::CONFIG_MALFORMED, "a configuration file is one document").at("", second.place);
        return Err(fault.fix("remove the line ---"));
    }
    T::deserialize(&first).map_err(Error::into_fault)
}

/// What serde says is wrong, and where.
#[derive(Debug)]
pub(crate) struct Error {
    code: CodeId,
    /// From the innermost out: `.key` or `[index]`.
    path: Vec<String>,
    place: Option<Place>,
    what: String,
    why: Option<String>,
    fix: Option<String>,
}

impl Error {
    fn new(what: String) -> Self {
        Self { code: code::CONFIG_BAD_VALUE, path: Vec::new(), place: None, what, why: None, fix: None }
    }

    fn at(mut self, place: Option<Place>) -> Self {
        self.place = self.place.or(place);
        self
    }

    fn under(mut self, segment: String) -> Self {
        self.path.push(segment);
        self
    }

    fn into_fault(self) -> Fault {
        let path: String = self.path.into_iter().rev().collect();
        let mut fault = Fault::new(self.code, self.what).at(path.trim_start_matches('.'), self.place);
        fault.why.extend(self.why);
        fault.fix.extend(self.fix);
        fault
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let mut error = Self::new(format!("unknown key {}", quoted(field)));
        error.code = code::CONFIG_UNKNOWN_KEY;
        error.why = Some(format!("keys here: {}", expected.join(", ")));
        error.fix = nearest(field, expected.iter().copied())
            .map(|known| format!("did you mean {known}?"))
            .or_else(|| Some("remove it".to_owned()));
        error
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let mut error = Self::new(format!("{} is not known here", quoted(variant)));
        error.why = Some(format!("known: {}", expected.join(", ")));
        error.fix = nearest(variant, expected.iter().copied()).map(|known| format!("did you mean {known}?"));
        error
    }

    fn missing_field(field: &'static str) -> Self {
        let mut error = Self::new(format!("{field} is missing"));
        error.code = code::CONFIG_MISSING;
        error.fix = Some(format!("add {field}"));
        error
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("it is {}, not {expected}", found(unexpected)))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("{} is not {expected}", found(unexpected)))
    }
}

/// A found value for a message; foreign text is quoted and cut.
fn found(unexpected: Unexpected<'_>) -> String {
    if let Unexpected::Str(text) = unexpected { quoted(text) } else { unexpected.to_string() }
}

impl<'de> IntoDeserializer<'de, Error> for &'de Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> de::Deserializer<'de> for &'de Node {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let outcome = match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                (Err(_), Err(_)) => Err(Error::new(format!("{value} is too large a number"))),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter(), index: 0 }),
            Value::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
        };
        outcome.map_err(|error| error.at(self.place))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value == Value::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self).map_err(|error: Error| error.at(self.place))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let outcome = match &self.value {
            Value::Text(text) => visitor.visit_enum(StringDeserializer::new(text.clone())),
            Value::Map(entries) if entries.len() == 1 => visitor.visit_enum(Variant { entry: &entries[0] }),
            Value::Null
            | Value::Bool(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::List(_)
            | Value::Map(_) => {
                Err(Error::new(format!("it is {}, not one of its choices", self.value.what())))
            }
        };
        outcome.map_err(|error| error.at(self.place))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(item).map(Some).map_err(|error| error.at(item.place).under(format!("[{index}]")))
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, Entry>,
    value: Option<&'de Entry>,
}

fn segment(key: &str) -> String {
    if plain_key(key) { format!(".{key}") } else { format!("[{}]", quoted(key)) }
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.value = Some(entry);
        seed.deserialize(entry.key.as_str().into_deserializer())
            .map(Some)
            .map_err(|error: Error| error.at(entry.place).under(segment(&entry.key)))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(entry) = self.value.take() else {
            return Err(Error::new("a value was asked for before its key".to_owned()));
        };
        seed.deserialize(&entry.value).map_err(|error| error.at(entry.value.place).under(segment(&entry.key)))
    }
}

/// `{variant: content}`.
struct Variant<'de> {
    entry: &'de Entry,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Error;
    type Variant = Content<'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Content<'de>), Error> {
        let name = seed
            .deserialize(self.entry.key.as_str().into_deserializer())
            .map_err(|error: Error| error.at(self.entry.place))?;
        Ok((name, Content { entry: self.entry }))
    }
}

struct Content<'de> {
    entry: &'de Entry,
}

impl Content<'_> {
    fn located(&self, error: Error) -> Error {
        error.at(self.entry.value.place).under(segment(&self.entry.key))
    }
}

impl<'de> VariantAccess<'de> for Content<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.entry.value.value {
            Value::Null => Ok(()),
            Value::Bool(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::List(_)
            | Value::Map(_) => Err(self.located(Error::new("it takes no value".to_owned()))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(&self.entry.value).map_err(|error| self.located(error))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_any(&self.entry.value, visitor).map_err(|error| self.located(error))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_any(&self.entry.value, visitor).map_err(|error| self.located(error))
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, path::PathBuf};

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Config {
        cluster: String,
        listen: Option<Listen>,
        #[serde(default)]
        advertise: Vec<String>,
        store: Option<Store>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Listen {
        control: SocketAddr,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    enum Store {
        Embedded { path: PathBuf },
        Memory,
    }

    fn fault(text: &str) -> Fault {
        from_yaml::<Config>(text).unwrap_err()
    }

    #[test]
    fn a_configuration_is_read() {
        let text = "cluster: local\nlisten: {control: \"[::]:7444\"}\nadvertise: [a]\nstore: {embedded: {path: /x}}\n";
        let config: Config = from_yaml(text).unwrap();
        assert_eq!(config.listen.unwrap().control, "[::]:7444".parse().unwrap());
        assert_eq!(config.store, Some(Store::Embedded { path: "/x".into() }));
        let config: Config = from_yaml("cluster: a\nstore: memory\nlisten: null\n").unwrap();
        assert_eq!((config.store, config.listen), (Some(Store::Memory), None));
    }

    #[test]
    fn an_unknown_key_names_the_nearest_one_and_its_place() {
        let fault = fault("cluster: local\nlisten:\n  contrl: x\n");
        assert_eq!(fault.path(), "listen.contrl");
        assert_eq!(fault.place(), Some(Place { line: 3, column: 3 }));
        assert_eq!(fault.fix, ["did you mean control?"]);
        assert_eq!(&*fault.code, "W5002");
    }

    #[test]
    fn faults_of_values_name_path_and_place() {
        for (text, path, line) in [
            ("cluster: local\nlisten: {control: nowhere}\n", "listen.control", 2),
            ("cluster: local\nadvertise: [a, 5]\n", "advertise[1]", 2),
            ("cluster: local\nstore: {embeded: {path: x}}\n", "store", 2),
            ("cluster: local\nstore: {embedded: {path: 5}}\n", "store.embedded.path", 2),
            ("cluster: 5\n", "cluster", 1),
            ("\n\nadvertise: [a]\n", "", 3),
            ("cluster: a\n---\ncluster: b\n", "", 3),
            ("cluster: a\ncluster: b\n", "", 2),
        ] {
            let fault = fault(text);
            assert_eq!(
                (fault.path(), fault.place().map(|p| p.line)),
                (path, Some(line)),
                "{text}: {fault:?}"
            );
        }
    }

    #[test]
    fn an_empty_file_is_an_empty_mapping() {
        assert_eq!(fault("").what, "cluster is missing");
    }
}
