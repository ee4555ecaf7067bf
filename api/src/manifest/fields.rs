//! Values: the one way from a [`Node`] to a model.
//!
//! Owns what all kinds share when they are read: types and bounds of values; fields by name are [`super::object`]'s.
//! Every fault is noted and reading goes on, so that a person sees all of them. A function that returns `None` has noted
//! a fault, or the field is absent and may be.

use std::{
    cell::RefCell, collections::BTreeMap, fmt, net::SocketAddr, ops::RangeInclusive, str::FromStr,
    time::Duration,
};

use weft_identity::spiffe::{SpiffeId, TrustDomain};
use weft_policy::{
    code::{self, CodeId},
    model::HostPort,
    name::{EndpointLabel, Namespace, NodeName, ObjectName, PortName},
    pattern::IdentityPattern,
};

use super::{
    Form,
    nearest::nearest,
    node::{Node, Value},
    object::Object,
    plain_key, quoted,
};
use crate::{duration, fault::Fault};

/// The most faults that are told of one text; a person mends those first.
const MAX_FAULTS: usize = 64;

/// What holds for the whole text that is read.
pub(crate) struct Context {
    pub(crate) form: Form,
    /// The namespace of objects that name none; `None` makes them name one.
    pub(crate) namespace: Option<Namespace>,
    faults: RefCell<Vec<Fault>>,
}

impl Context {
    pub(crate) const fn new(form: Form, namespace: Option<Namespace>) -> Self {
        Self { form, namespace, faults: RefCell::new(Vec::new()) }
    }

    pub(crate) fn note(&self, fault: Fault) {
        let mut faults = self.faults.borrow_mut();
        if faults.len() < MAX_FAULTS {
            faults.push(fault);
        }
    }

    pub(crate) fn faults(&self) -> usize {
        self.faults.borrow().len()
    }

    pub(crate) fn into_faults(self) -> Vec<Fault> {
        self.faults.into_inner()
    }
}

/// A value and its path.
#[derive(Clone)]
pub(crate) struct At<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) path: String,
    pub(crate) node: &'a Node,
}

/// A type that is written as one text, and the code of a text that is not one.
pub(crate) trait Word: FromStr {
    const CODE: CodeId;
}

macro_rules! words {
    ($($kind:ty: $code:ident),+ $(,)?) => {
        $(impl Word for $kind {
            const CODE: CodeId = code::$code;
        })+
    };
}

words! {
    EndpointLabel: BAD_NAME,
    HostPort: BAD_ADDRESS,
    IdentityPattern: BAD_PATTERN,
    Namespace: BAD_NAME,
    NodeName: BAD_NAME,
    ObjectName: BAD_NAME,
    PortName: BAD_NAME,
    SocketAddr: BAD_ADDRESS,
    SpiffeId: BAD_NAME,
    TrustDomain: BAD_NAME,
}

impl<'a> At<'a> {
    pub(crate) fn root(cx: &'a Context, node: &'a Node) -> Self {
        Self { cx, path: String::new(), node }
    }

    pub(super) fn inner(&self, key: &str, node: &'a Node) -> Self {
        let path = match (self.path.is_empty(), plain_key(key)) {
            (true, true) => key.to_owned(),
            (false, true) => format!("{}.{key}", self.path),
            (_, false) => format!("{}[{}]", self.path, quoted(key)),
        };
        Self { cx: self.cx, path, node }
    }

    /// Notes a fault about this value.
    pub(crate) fn fault(&self, fault: Fault) {
        self.cx.note(fault.at(self.path.clone(), self.node.place));
    }

    /// Notes that the value cannot be, and why.
    pub(crate) fn invalid(&self, why: impl fmt::Display) {
        self.refuse(code::BAD_VALUE, why);
    }

    /// Notes under `code` that the value cannot be, and why.
    pub(crate) fn refuse(&self, code: CodeId, why: impl fmt::Display) {
        let what = match &self.node.value {
            Value::Text(text) => format!("{} is not a value of {}", quoted(text), self.name()),
            Value::Integer(number) => format!("{number} is not a value of {}", self.name()),
            Value::Null | Value::Bool(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => {
                format!("{} cannot be {}", self.name(), self.node.value.what())
            }
        };
        self.fault(Fault::new(code, what).why(why.to_string()));
    }

    fn name(&self) -> &str {
        if self.path.is_empty() { "the document" } else { &self.path }
    }

    fn wrong_type(&self, wanted: &str) {
        let mut fault = Fault::new(
            code::WRONG_TYPE,
            format!("{} is {}, not {wanted}", self.name(), self.node.value.what()),
        );
        let scalar = matches!(self.node.value, Value::Bool(_) | Value::Integer(_) | Value::Float(_));
        if scalar && wanted == "a text" {
            fault = fault.fix("write it in quotes");
        }
        self.fault(fault);
    }

    pub(crate) fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Null
            | Value::Bool(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::List(_)
            | Value::Map(_) => {
                self.wrong_type("a text");
                None
            }
        }
    }

    /// A text that a type of the model accepts.
    pub(crate) fn parse<T>(&self) -> Option<T>
    where
        T: Word,
        T::Err: fmt::Display,
    {
        self.text()?.parse().map_err(|error| self.refuse(T::CODE, error)).ok()
    }

    /// A whole number within `range`.
    pub(crate) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let Value::Integer(number) = self.node.value else {
            self.wrong_type("a whole number");
            return None;
        };
        let found = u64::try_from(number).ok().filter(|number| range.contains(number));
        if found.is_none() {
            self.invalid(format_args!("it must be from {} to {}", range.start(), range.end()));
        }
        found
    }

    pub(crate) fn port(&self) -> Option<u16> {
        self.integer(1..=u64::from(u16::MAX)).and_then(|port| u16::try_from(port).ok())
    }

    pub(crate) fn small(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let wide = u64::from(*range.start())..=u64::from(*range.end());
        self.integer(wide).and_then(|number| u32::try_from(number).ok())
    }

    /// A finite number within `range`.
    pub(crate) fn number(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let number = match self.node.value {
            Value::Float(number) => number,
            Value::Integer(number) => number as f64,
            Value::Null | Value::Bool(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => {
                self.wrong_type("a number");
                return None;
            }
        };
        if !range.contains(&number) {
            self.invalid(format_args!("it must be from {} to {}", range.start(), range.end()));
            return None;
        }
        Some(number)
    }

    pub(crate) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let found: Duration = duration::parse_duration(self.text()?)
            .map_err(|error| self.refuse(code::BAD_DURATION, error))
            .ok()?;
        if !range.contains(&found) {
            let (low, high) =
                (duration::format_duration(*range.start()), duration::format_duration(*range.end()));
            self.invalid(format_args!("it must be from {low} to {high}"));
            return None;
        }
        Some(found)
    }

    /// One of the given words.
    pub(crate) fn choice<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            self.unknown_word(text, words.iter().map(|(word, _)| *word));
        }
        found
    }

    fn unknown_word(&self, text: &str, words: impl Iterator<Item = &'static str> + Clone) {
        let known = words.clone().collect::<Vec<_>>().join(", ");
        let fault =
            Fault::new(code::BAD_VALUE, format!("{} is not a value of {}", quoted(text), self.name()))
                .why(format!("known: {known}"));
        self.fault(match nearest(text, words) {
            Some(word) => fault.fix(format!("did you mean {word}?")),
            None => fault,
        });
    }

    /// Notes that this value is part of the specification and not served yet.
    pub(crate) fn not_served(&self, what: &str, instead: &str) {
        let fault = Fault::new(code::NOT_SERVED, format!("{what} is not served yet"))
            .why("what is not served is refused, so that it is never ignored");
        self.fault(fault.fix(instead));
    }

    /// The items of a list of 1 to `most`.
    pub(crate) fn list(&self, most: usize) -> Option<Vec<Self>> {
        let Value::List(items) = &self.node.value else {
            self.wrong_type("a list");
            return None;
        };
        if items.is_empty() {
            self.empty("an empty list never means \"any\"");
            return None;
        }
        if !self.within(items.len(), most) {
            return None;
        }
        let item = |(index, node)| Self { cx: self.cx, path: format!("{}[{index}]", self.path), node };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// The items of a list of 1 to `most`, each read by `read`, none given twice.
    pub(crate) fn each<T: PartialEq>(
        &self,
        most: usize,
        read: impl Fn(&Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut all = Vec::new();
        let mut complete = true;
        for item in self.list(most)? {
            match read(&item) {
                Some(value) if all.contains(&value) => {
                    item.fault(
                        Fault::new(code::DUPLICATE_KEY, format!("{} is given twice", item.path))
                            .fix("remove one"),
                    );
                }
                Some(value) => all.push(value),
                None => complete = false,
            }
        }
        complete.then_some(all)
    }

    fn within(&self, count: usize, most: usize) -> bool {
        if count > most {
            let what = format!("{} has {count} entries", self.name());
            self.fault(Fault::new(code::OVER_LIMIT, what).why(format!("at most {most} are allowed")));
        }
        count <= most
    }

    pub(crate) fn empty(&self, why: &str) {
        let code = if self.node.value == Value::Null { code::NULL_VALUE } else { code::EMPTY_LIST };
        self.fault(
            Fault::new(code, format!("{} is empty", self.name()))
                .why(why)
                .fix("remove it to set no constraint, or say what it holds"),
        );
    }

    /// The entries of a mapping of up to `most`, as they stand.
    pub(crate) fn entries(&self, most: usize) -> Option<Vec<(&'a str, Self)>> {
        let Value::Map(entries) = &self.node.value else {
            self.wrong_type("a mapping");
            return None;
        };
        if !self.within(entries.len(), most) {
            return None;
        }
        Some(entries.iter().map(|entry| (entry.key.as_str(), self.inner(&entry.key, &entry.value))).collect())
    }

    /// A mapping of texts of up to `most`, each judged by `check`.
    pub(crate) fn texts(
        &self,
        most: usize,
        check: impl Fn(&str, &str) -> Result<(), String>,
    ) -> Option<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for (key, at) in self.entries(most)? {
            let text = at.text()?;
            check(key, text).map_err(|why| at.invalid(why)).ok()?;
            all.insert(key.to_owned(), text.to_owned());
        }
        Some(all)
    }

    /// The value as an object with named fields.
    pub(crate) fn object(&self) -> Option<Object<'a>> {
        let Value::Map(entries) = &self.node.value else {
            self.wrong_type("a mapping");
            return None;
        };
        Some(Object::new(self.clone(), entries))
    }
}
