//! Fields by name: required, optional, not yet served, unknown.
//!
//! Owns what an absent field means, which differs between a manifest and a record, and the nearest known field of an
//! unknown one. Values are [`super::fields`]'.

use weft_policy::code;

use super::{
    Form,
    fields::At,
    nearest::nearest,
    node::{Entry, Value},
    quoted,
};
use crate::fault::Fault;

/// A field that a kind of the specification has and this version does not serve, and what to do meanwhile.
pub(crate) type Unserved = (&'static str, &'static str);

/// A mapping whose fields are known by name. End with [`Object::finish`], which notes those nobody asked for.
pub(crate) struct Object<'a> {
    pub(crate) at: At<'a>,
    entries: &'a [Entry],
    known: Vec<&'static str>,
    unserved: Vec<&'static str>,
}

impl<'a> Object<'a> {
    pub(super) const fn new(at: At<'a>, entries: &'a [Entry]) -> Self {
        Self { at, entries, known: Vec::new(), unserved: Vec::new() }
    }

    /// The field, if it is there. A field without a value is a fault in a manifest, and "none" in a record, where an
    /// absent field is the fault.
    pub(crate) fn optional(&mut self, name: &'static str) -> Option<At<'a>> {
        self.known.push(name);
        let found = self.entries.iter().find(|entry| entry.key == name);
        match (found, self.at.cx.form) {
            (None, Form::Manifest) => None,
            (None, Form::Record) => {
                self.missing(name);
                None
            }
            (Some(entry), form) => {
                let at = self.at.inner(name, &entry.value);
                match (&entry.value.value, form) {
                    (Value::Null, Form::Manifest) => {
                        at.empty("a field without a value never means \"any\"");
                        None
                    }
                    (Value::Null, Form::Record) => None,
                    (
                        Value::Bool(_)
                        | Value::Integer(_)
                        | Value::Float(_)
                        | Value::Text(_)
                        | Value::List(_)
                        | Value::Map(_),
                        Form::Manifest | Form::Record,
                    ) => Some(at),
                }
            }
        }
    }

    /// The field, which must be there.
    pub(crate) fn required(&mut self, name: &'static str) -> Option<At<'a>> {
        let before = self.at.cx.faults();
        let found = self.optional(name);
        if found.is_none() && self.at.cx.faults() == before {
            self.missing(name);
        }
        found
    }

    /// The field, or `default` where a manifest leaves it out. A record always has it.
    pub(crate) fn or<T>(
        &mut self,
        name: &'static str,
        default: T,
        read: impl FnOnce(&At<'a>) -> Option<T>,
    ) -> Option<T> {
        let found = match self.at.cx.form {
            Form::Manifest => self.optional(name),
            Form::Record => self.required(name),
        };
        match found {
            Some(at) => read(&at),
            None => Some(default),
        }
    }

    /// A list that may be absent; it is empty then, and only then.
    pub(crate) fn list<T: PartialEq>(
        &mut self,
        name: &'static str,
        most: usize,
        read: impl Fn(&At<'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.optional(name).map_or_else(|| Some(Vec::new()), |at| at.each(most, read))
    }

    fn missing(&self, name: &str) {
        let inside = if self.at.path.is_empty() { String::new() } else { format!(" in {}", self.at.path) };
        self.at.fault(
            Fault::new(code::MISSING_FIELD, format!("{name} is missing{inside}")).fix(format!("add {name}")),
        );
    }

    /// Names fields that the specification has and this version does not serve; one that is given is refused.
    pub(crate) fn unserved(&mut self, fields: &[Unserved]) {
        for (name, instead) in fields {
            self.unserved.push(name);
            if let Some(entry) = self.entries.iter().find(|entry| entry.key == *name) {
                self.at.inner(name, &entry.value).not_served(name, instead);
            }
        }
    }

    /// Notes every field that nobody asked for.
    pub(crate) fn finish(self) {
        for entry in self.entries {
            let key = entry.key.as_str();
            if !self.known.contains(&key) && !self.unserved.contains(&key) {
                self.unknown(entry);
            }
        }
    }

    fn unknown(&self, entry: &Entry) {
        let inside = if self.at.path.is_empty() { "the document" } else { &self.at.path };
        let mut fields = self.known.clone();
        fields.sort_unstable();
        let fault =
            Fault::new(code::UNKNOWN_FIELD, format!("unknown field {} in {inside}", quoted(&entry.key)))
                .why(format!("fields here: {}", fields.join(", ")));
        let fault = match nearest(&entry.key, fields) {
            Some(known) => fault.fix(format!("did you mean {known}?")),
            None => fault.fix("remove it"),
        };
        let path = self.at.inner(&entry.key, &entry.value).path;
        self.at.cx.note(fault.at(path, entry.place));
    }
}
