//! What is wrong, told so that a person can mend it: code, what, why, fix (cli.md 5.1).
//!
//! Owns the value; its way through gRPC is [`status`]. Codes are rows of [`weft_policy::code`].

pub mod status;

use std::fmt;

use weft_policy::code::{self, CodeId};

pub use status::{fault_to_status, faults_to_status, from_status, status_to_fault, status_to_faults};

/// One thing that is wrong. Kept below 128 bytes, so that it can be an error by value.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Fault {
    /// A code of the catalogue, such as `W4004`.
    pub code: Box<str>,
    /// What happened: one line, lower case, no full stop.
    pub what: String,
    /// The facts.
    pub why: Vec<String>,
    /// What to do, best first.
    pub fix: Vec<String>,
    /// The request that failed, if there was one.
    pub request_id: Option<String>,
    site: Option<Box<Site>>,
}

/// Which part of which text.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Site {
    path: String,
    place: Option<Place>,
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
    fn text(self) -> Box<str>;
}

impl FaultCode for CodeId {
    fn text(self) -> Box<str> {
        self.as_str().into()
    }
}

impl FaultCode for &str {
    fn text(self) -> Box<str> {
        self.into()
    }
}

impl FaultCode for String {
    fn text(self) -> Box<str> {
        self.into()
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

    /// Says which field it is about and where that stands, here and as the first fact. Neither: nothing is said.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>, place: Option<Place>) -> Self {
        let site = Site { path: path.into(), place };
        let text = match (site.path.as_str(), place) {
            ("", None) => return self,
            ("", Some(place)) => format!("at line {}, column {}", place.line, place.column),
            (path, None) => format!("in {path}"),
            (path, Some(place)) => format!("in {path}, line {}, column {}", place.line, place.column),
        };
        self.why.insert(0, text);
        self.site = Some(Box::new(site));
        self
    }

    /// The field, such as `spec.rules[0].sources`; empty when the fault is not about one.
    #[must_use]
    pub fn path(&self) -> &str {
        self.site.as_ref().map_or("", |site| &site.path)
    }

    /// Where it stands in the text that was read, when it was read from text.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        self.site.as_ref().and_then(|site| site.place)
    }

    /// Puts `prefix`, such as `documents[2]`, before the path.
    #[must_use]
    pub(crate) fn under(mut self, prefix: &str) -> Self {
        let site = self.site.take().map(|site| *site).unwrap_or_default();
        if !site.path.is_empty() || site.place.is_some() {
            self.why.remove(0);
        }
        let dot = if site.path.is_empty() { "" } else { "." };
        self.at(format!("{prefix}{dot}{}", site.path), site.place)
    }

    /// The same with what the catalogue knows, where the place of the error knows nothing better: its cause when no fact
    /// is told, its next commands when none of the advice is a command of ours. Every border to a person goes through it.
    #[must_use]
    pub fn completed(&self) -> Self {
        let mut whole = self.clone();
        let Some(row) = code::lookup(&self.code) else { return whole };
        if whole.why.is_empty() {
            whole.why.push(row.cause.to_owned());
        }
        if !whole.fix.iter().any(|advice| advice.contains("weft ")) {
            whole.fix.extend(row.fix.iter().map(|&advice| advice.to_owned()));
        }
        whole
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
            "requestId": self.request_id.as_deref().unwrap_or_default(),
        });
        if !self.path().is_empty() {
            object["path"] = self.path().into();
        }
        if let Some(place) = self.place() {
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
        if let Some(place) = self.place() {
            write!(f, "{place}: ")?;
        }
        if !self.path().is_empty() {
            write!(f, "{}: ", self.path())?;
        }
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_error_does_not_say_itself_the_catalogue_says() {
        let bare = Fault::new(code::MALFORMED, "the text cannot be read as YAML").completed();
        assert_eq!(bare.why, [code::MALFORMED.row().cause]);
        assert!(bare.fix.iter().any(|fix| fix.contains("weft apply")), "{:?}", bare.fix);

        let own = Fault::new(code::MALFORMED, "it is cut").why("at line 3").fix("see:   weft get services");
        assert_eq!(own.completed(), own);
        let edit =
            Fault::new(code::MALFORMED, "it is cut").why("at line 3").fix("close the bracket").completed();
        assert_eq!(
            (edit.fix[0].as_str(), edit.fix.len()),
            ("close the bracket", 1 + code::MALFORMED.row().fix.len())
        );
        let foreign = Fault::new("X1", "of a newer version");
        assert_eq!(foreign.completed(), foreign);
    }
}
