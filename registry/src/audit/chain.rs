//! One line of the log: what it says, and how it holds on to the line before.
//!
//! A line is a JSON object whose last field is the SHA-256, in hexadecimal, of everything before that field; the field
//! before is the hash of the previous line. Pure.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{history::record::digest, roles::Caller, roles::Source, timestamp::rfc3339};

/// What the first line of a new log holds on to.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The most objects that an entry names.
const MAX_OBJECTS: usize = 128;
/// The longest text of an entry, in characters.
const MAX_CHARS: usize = 512;
/// The most faults that a report names.
const MAX_FAULTS: usize = 20;

/// How a call ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A change is about to be tried.
    Begun,
    /// It was answered.
    Allowed,
    /// Who asked may not.
    Denied,
    /// Who asked may, and it was refused or failed for another reason.
    Failed,
    /// The log itself was found not as it was written.
    Broken,
}

impl Outcome {
    /// Its word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Broken => "broken",
        }
    }
}

/// What an entry says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// Who called.
    pub who: String,
    /// In which role, and where it holds.
    pub role: String,
    /// From where.
    pub from: String,
    /// What.
    pub method: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The code of the refusal; empty without one.
    pub code: String,
    /// Which objects it was about.
    pub objects: Vec<String>,
    /// Why, as the caller says.
    pub reason: String,
    /// The number of the change that it made; 0 for none.
    pub change: u64,
    /// How many refusals and reads before it were not written.
    pub untold: u64,
}

impl Event {
    /// A call of somebody.
    #[must_use]
    pub fn of(caller: &Caller, method: &str, outcome: Outcome) -> Self {
        let from = match caller.source {
            Source::Local { uid } => format!("socket, uid {uid}"),
            Source::Remote { addr } => addr.to_string(),
        };
        let role = match &caller.scope {
            None => caller.role.as_str().to_owned(),
            Some(scope) => {
                let names: Vec<_> = scope.iter().map(ToString::to_string).collect();
                format!("{} in {}", caller.role.as_str(), names.join(", "))
            }
        };
        Self { role, from, ..Self::unknown(&caller.to_string(), method, outcome) }
    }

    /// A call of somebody of whom no more is known than a name, if that.
    #[must_use]
    pub fn unknown(who: &str, method: &str, outcome: Outcome) -> Self {
        Self {
            who: cut(who),
            role: String::new(),
            from: String::new(),
            method: cut(method),
            outcome,
            code: String::new(),
            objects: Vec::new(),
            reason: String::new(),
            change: 0,
            untold: 0,
        }
    }

    /// The same about objects.
    #[must_use]
    pub fn about(mut self, objects: impl IntoIterator<Item = String>) -> Self {
        self.objects = objects.into_iter().take(MAX_OBJECTS).map(|name| cut(&name)).collect();
        self
    }

    /// The same for a reason.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        self.reason = cut(reason);
        self
    }
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_CHARS).collect()
}

/// An entry as it stands in the log.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its number, from 1, without gaps.
    pub seq: u64,
    /// RFC 3339.
    pub at: String,
    /// See [`Event`].
    pub who: String,
    /// See [`Event`].
    pub role: String,
    /// See [`Event`].
    pub from: String,
    /// See [`Event`].
    pub method: String,
    /// See [`Event`].
    pub outcome: String,
    /// See [`Event`].
    pub code: String,
    /// See [`Event`].
    pub objects: Vec<String>,
    /// See [`Event`].
    pub reason: String,
    /// See [`Event`].
    pub change: u64,
    /// See [`Event`].
    pub untold: u64,
    /// The hash of the entry before.
    pub prev: String,
    /// Its own.
    #[serde(default, skip_serializing)]
    pub hash: String,
}

/// Where a log ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct End {
    /// The number of the newest entry; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
}

impl Default for End {
    fn default() -> Self {
        Self { seq: 0, hash: GENESIS.to_owned() }
    }
}

impl End {
    /// The line of the entry that follows, with its line feed; the log then ends with it.
    #[must_use]
    pub fn append(&mut self, event: Event, at: SystemTime) -> String {
        let entry = Entry {
            seq: self.seq.saturating_add(1),
            at: rfc3339(at),
            who: event.who,
            role: event.role,
            from: event.from,
            method: event.method,
            outcome: event.outcome.word().to_owned(),
            code: event.code,
            objects: event.objects,
            reason: event.reason,
            change: event.change,
            untold: event.untold,
            prev: self.hash.clone(),
            hash: String::new(),
        };
        let json = serde_json::to_string(&entry).expect("texts, numbers and lists always serialise");
        let body = json.strip_suffix('}').unwrap_or(&json);
        let hash = hex(&digest(body.as_bytes()));
        let line = format!("{body},\"hash\":\"{hash}\"}}\n");
        *self = Self { seq: entry.seq, hash };
        line
    }
}

/// Why a line is not an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BadLine {
    /// It has another form.
    Form,
    /// Its hash is not that of its content.
    Hash,
}

/// Reads a line, without its line feed.
///
/// # Errors
///
/// [`BadLine`] when it is not as it was written.
pub fn read(line: &str) -> Result<Entry, BadLine> {
    let (body, rest) = line.rsplit_once(",\"hash\":\"").ok_or(BadLine::Form)?;
    let hash = rest.strip_suffix("\"}").ok_or(BadLine::Form)?;
    if hex(&digest(body.as_bytes())) != hash {
        return Err(BadLine::Hash);
    }
    serde_json::from_str(line).map_err(|_| BadLine::Form)
}

/// What a whole log says of itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// The number of the oldest entry that is kept; 0 when there is none.
    pub first: u64,
    /// Where it ends.
    pub end: End,
    /// What is wrong.
    pub faults: Vec<String>,
}

impl Report {
    /// Says something that is wrong.
    pub fn fault(&mut self, what: String) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(what);
        } else if self.faults.len() == MAX_FAULTS {
            self.faults.push("and more".to_owned());
        }
    }

    /// Takes the next line in, which stands at `place`.
    pub fn take(&mut self, line: &str, place: &str) {
        let entry = match read(line) {
            Ok(entry) => entry,
            Err(why) => {
                let why = match why {
                    BadLine::Form => "is no entry",
                    BadLine::Hash => "was changed: its hash is not that of its content",
                };
                self.fault(format!("{place} {why}; it follows entry {}", self.end.seq));
                return;
            }
        };
        if self.end.seq == 0 && self.first == 0 {
            self.first = entry.seq;
            if entry.seq == 1 && entry.prev != GENESIS {
                self.fault(format!("{place}: entry 1 holds on to another one"));
            }
        } else if entry.seq != self.end.seq.saturating_add(1) {
            self.fault(format!(
                "{place}: entry {} follows entry {}: what stood between them is missing",
                entry.seq, self.end.seq
            ));
        } else if entry.prev != self.end.hash {
            self.fault(format!("{place}: entry {} does not hold on to the one before", entry.seq));
        }
        self.end = End { seq: entry.seq, hash: entry.hash };
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<String> {
        let mut end = End::default();
        let event = |number: u64| Event {
            change: number,
            ..Event::unknown("spiffe://corp.example/user/ada", "Apply", Outcome::Allowed)
        };
        (1..=5)
            .map(|number| end.append(event(number), SystemTime::UNIX_EPOCH).trim_end().to_owned())
            .collect()
    }

    fn faults(lines: &[String]) -> Vec<String> {
        let mut report = Report::default();
        lines.iter().zip(1..).for_each(|(line, number)| report.take(line, &format!("line {number}")));
        report.faults
    }

    #[test]
    fn a_log_that_nobody_touched_is_whole() {
        assert_eq!(faults(&log()), Vec::<String>::new());
        assert_eq!(read(&log()[2]).unwrap().change, 3);
    }

    #[test]
    fn api_11_an_entry_that_is_removed_changed_moved_or_repeated_is_found() {
        for index in 1..4 {
            let mut removed = log();
            removed.remove(index);
            assert_eq!(faults(&removed).len(), 1, "without {index}");
            let mut moved = log();
            moved.swap(index, index + 1);
            assert!(!faults(&moved).is_empty());
            let mut twice = log();
            twice.insert(index, twice[index].clone());
            assert!(!faults(&twice).is_empty());
        }
        for (index, line) in log().iter().enumerate() {
            for place in 0..line.len() {
                let mut lines = log();
                let other = if line.as_bytes()[place] == b'x' { "y" } else { "x" };
                lines[index].replace_range(place..=place, other);
                assert!(!faults(&lines).is_empty(), "byte {place} of entry {index}");
            }
        }
    }

    #[test]
    fn api_11_an_entry_that_is_written_anew_with_its_hash_does_not_fit_to_the_next() {
        let mut lines = log();
        let mut end = read(&lines[0]).map(|entry| End { seq: entry.seq, hash: entry.hash }).unwrap();
        let forged = Event::unknown("spiffe://corp.example/user/bob", "Apply", Outcome::Allowed);
        lines[1] = end.append(forged, SystemTime::UNIX_EPOCH).trim_end().to_owned();
        assert_eq!(faults(&lines).len(), 1);
    }

    #[test]
    fn what_a_caller_says_is_bounded_and_stays_on_its_line() {
        let event = Event::unknown(&"w".repeat(9_000), "Apply", Outcome::Denied)
            .because("a\nb\u{1b}[2J")
            .about((0..500).map(|number| format!("Service/s{number}.shop")));
        let line = End::default().append(event, SystemTime::UNIX_EPOCH);
        assert_eq!(line.matches('\n').count(), 1);
        assert!(!line.contains('\u{1b}') && line.len() < 16 << 10, "{}", line.len());
        assert_eq!(read(line.trim_end()).unwrap().reason, "a\nb\u{1b}[2J");
    }
}
