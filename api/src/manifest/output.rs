//! Objects as JSON: in full for people, and with every field present for records.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Form;

/// A JSON object under construction. What is absent is left out of a manifest and is `null` in a record.
pub(crate) struct Output {
    pub(crate) form: Form,
    map: Map<String, Value>,
}

impl Output {
    pub(crate) fn new(form: Form) -> Self {
        Self { form, map: Map::new() }
    }

    /// An object inside this one.
    pub(crate) fn inner(&self) -> Self {
        Self::new(self.form)
    }

    pub(crate) fn put(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.map.insert(name.to_owned(), value.into());
        self
    }

    /// A value by its text.
    pub(crate) fn text(self, name: &str, value: impl ToString) -> Self {
        self.put(name, value.to_string())
    }

    pub(crate) fn optional(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match (value, self.form) {
            (Some(value), Form::Manifest | Form::Record) => self.put(name, value),
            (None, Form::Manifest) => self,
            (None, Form::Record) => self.put(name, Value::Null),
        }
    }

    /// A list that is absent when it is empty, since an empty list cannot be read.
    pub(crate) fn list<T>(self, name: &str, items: &[T], write: impl Fn(&T) -> Value) -> Self {
        let items: Vec<_> = items.iter().map(write).collect();
        self.optional(name, (!items.is_empty()).then_some(items))
    }

    /// A list of texts that is absent when it is empty.
    pub(crate) fn texts<T: ToString>(self, name: &str, items: &[T]) -> Self {
        self.list(name, items, |item| item.to_string().into())
    }

    /// A mapping of texts, left out of a manifest when it is empty.
    pub(crate) fn map(self, name: &str, map: &BTreeMap<String, String>) -> Self {
        match (map.is_empty(), self.form) {
            (true, Form::Manifest) => self,
            (true, Form::Record) | (false, Form::Manifest | Form::Record) => self.put(name, text_map(map)),
        }
    }

    pub(crate) fn done(self) -> Value {
        Value::Object(self.map)
    }
}

/// A mapping of texts.
pub(crate) fn text_map(map: &BTreeMap<String, String>) -> Value {
    map.iter().map(|(key, text)| (key.clone(), Value::String(text.clone()))).collect::<Map<_, _>>().into()
}
