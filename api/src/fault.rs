//! What is wrong, told so that a person can mend it: code, what, why, fix (cli.md 5.1).
//!
//! Owns the value; its way through gRPC is [`status`]. Codes are rows of [`weft_policy::code`].

pub mod status;

use std::{borrow::Cow, fmt};

use weft_policy::code::CodeId;

pub use status::{fault_to_status, faults_to_status, status_to_fault, status_to_faults};

/// One thing that is wrong.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Fault {
    /// A code of the catalogue, such as `W4003`.
    pub code: Cow<'static, str>,
    /// The field, such as `spec.rules[0].sources`; empty when the fault is not about one.
    pub path: String,
    /// Where it stands in the text that was read, when it was read from text.
    pub place: Option<Place>,
    /// What happened: one line, lower case, no full stop.
    pub what: String,
    /// The facts.
    pub why: Vec<String>,
    /// What to do, best first.
    pub fix: Vec<String>,
    /// The request that failed; empty when there was none.
    pub request_id: String,
}

/// A place in a text, both counted from 1.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column, in characters.
    pub column: u32,
}

/// What names a row of the catalogue: the row's own constant, or its number as another process told it.
pub trait FaultCode {
    /// The number, such as `W4004`.
    fn text(self) -> Cow<'static, str>;
}

impl FaultCode for CodeId {
    fn text(self) -> Cow<'static, str> {
        Cow::Borrowed(self.as_str())
    }
}

impl FaultCode for &str {
    fn text(self) -> Cow<'static, str> {
        Cow::Owned(self.to_owned())
    }
}

impl FaultCode for String {
    fn text(self) -> Cow<'static, str> {
        Cow::Owned(self)
    }
}

impl Fault {
    /// A fault with its code and what happened.
    #[must_use]
    pub fn new(code: impl FaultCode, what: impl Into<String>) -> Self {
        Self { code: code.text(), what: what.into(), ..Self::default() }
    }

    /// Adds a fact.
    #[must_use]
    pub fn why(mut self, fact: impl Into<String>) -> Self {
        self.why.push(fact.into());
        self
    }

    /// Adds something to do.
    #[must_use]
    pub fn fix(mut self, advice: impl Into<String>) -> Self {
        self.fix.push(advice.into());
        self
    }

    /// Says which field it is about.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>, place: Option<Place>) -> Self {
        self.path = path.into();
        self.place = place;
        self
    }

    /// Where to read more.
    #[must_use]
    pub fn docs(&self) -> String {
        format!("weft explain {}", self.code)
    }

    /// The object of `-o json`: `code`, `what`, `why`, `fix`, `docs`, `requestId`, and `path`, `line`, `column` if known.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let mut object = serde_json::json!({
            "code": self.code, "what": self.what, "why": self.why, "fix": self.fix, "docs": self.docs(),
            "requestId": self.request_id,
        });
        if !self.path.is_empty() {
            object["path"] = self.path.as_str().into();
        }
        if let Some(place) = self.place {
            object["line"] = place.line.into();
            object["column"] = place.column.into();
        }
        object
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl fmt::Display for Fault {
    /// One line, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.code)?;
        if let Some(place) = self.place {
            write!(f, "{place}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {}
