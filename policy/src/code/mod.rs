//! The catalogue of everything that can be told to a person, under stable codes.
//!
//! Owns the numbers, titles, causes and next commands. The facts of one occurrence are the caller's: it names a
//! [`CodeId`] and adds what happened. Terminal, JSON, gRPC details and `weft explain CODE` are all made from here.
//!
//! | range | area |
//! |---|---|
//! | W1 | reach |
//! | W2 | policy |
//! | W3 | identity and certificates |
//! | W4 | resources and validation |
//! | W5 | configuration, ports, files |
//! | W6 | control plane and store |
//! | W7 | tokens and attestation |
//! | W8 | requests |
//! | W9 | internal |
//!
//! A code is never given a second meaning. Rows stand in the order of their numbers; the tests below walk them all.

use std::{fmt, str::FromStr};

/// Declares rows and, for each, a constant of its own name.
macro_rules! rows {
    ($area:ident; $($name:ident = $id:literal $level:ident $title:literal
        cause: $cause:literal
        fix: [$($fix:literal),+ $(,)?];)+) => {
        $(
            #[doc = concat!($id, ": ", $title, ".")]
            pub const $name: CodeId = CodeId($id);
        )+
        /// The rows of this area, in order.
        pub(super) const $area: &[Code] = &[$(Code {
            id: $name,
            title: $title,
            cause: $cause,
            fix: &[$($fix),+],
            level: Level::$level,
        }),+];
    };
}

mod config;
mod control;
mod identity;
mod internal;
mod policy;
mod reach;
mod request;
mod resource;
mod token;

pub use config::*;
pub use control::*;
pub use identity::*;
pub use internal::*;
pub use policy::*;
pub use reach::*;
pub use request::*;
pub use resource::*;
pub use token::*;

/// The name of one row of the catalogue, such as `W2101`. The only ones there are stand in this module.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CodeId(&'static str);

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Level {
    /// Something was refused or failed.
    Error,
    /// It went on, and a person should look.
    Warning,
}

/// One row of the catalogue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Code {
    /// Its number.
    pub id: CodeId,
    /// What happened, in one clause without the names of this occurrence.
    pub title: &'static str,
    /// What usually lies behind it.
    pub cause: &'static str,
    /// What to do next, each with a command that exists; `<…>` stands for the names of this occurrence.
    pub fix: &'static [&'static str],
    /// How bad it is.
    pub level: Level,
}

/// The areas in the order of their numbers.
const AREAS: [&[Code]; 9] =
    [REACH, POLICY, IDENTITY, RESOURCES, CONFIG, CONTROL, TOKENS, REQUESTS, INTERNAL_FAULTS];

/// Every code, in the order of the numbers.
pub const CATALOGUE: &[Code] = &joined::<{ count() }>();

const fn count() -> usize {
    let (mut area, mut sum) = (0, 0);
    while area < AREAS.len() {
        sum += AREAS[area].len();
        area += 1;
    }
    sum
}

const fn joined<const N: usize>() -> [Code; N] {
    let mut all = [AREAS[0][0]; N];
    let (mut area, mut next) = (0, 0);
    while area < AREAS.len() {
        let mut row = 0;
        while row < AREAS[area].len() {
            all[next] = AREAS[area][row];
            next += 1;
            row += 1;
        }
        area += 1;
    }
    all
}

/// Finds a row by its number; upper or lower case, since people type it.
#[must_use]
pub fn lookup(id: &str) -> Option<&'static Code> {
    let found = CATALOGUE.binary_search_by(|row| row.id.0.cmp(id.to_ascii_uppercase().as_str()));
    found.ok().map(|index| &CATALOGUE[index])
}

impl CodeId {
    /// The number, such as `W2101`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// Its row.
    #[must_use]
    pub fn row(self) -> &'static Code {
        lookup(self.0).expect("each constant is made together with its row")
    }

    /// Its title.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().title
    }
}

impl Code {
    /// The page of the manual: what `weft explain CODE` prints.
    #[must_use]
    pub fn page(&self) -> String {
        let mut text = format!("{} ({}): {}\n\n  cause  {}\n", self.id, self.level, self.title, self.cause);
        for (index, line) in self.fix.iter().enumerate() {
            let head = if index == 0 { "fix" } else { "" };
            text.push_str(&format!("  {head:<5}  {line}\n"));
        }
        text
    }
}

/// The text is not a code of the catalogue.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a code of the catalogue")]
pub struct UnknownCode(pub String);

impl FromStr for CodeId {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        lookup(text).map(|row| row.id).ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

impl fmt::Display for CodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

impl fmt::Debug for CodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl AsRef<str> for CodeId {
    fn as_ref(&self) -> &str {
        self.0
    }
}

impl From<CodeId> for String {
    fn from(id: CodeId) -> Self {
        id.0.to_owned()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commands of this step; a fix may name no other.
    const COMMANDS: &[&str] = &[
        "agent drain",
        "agent join",
        "agent run",
        "agent status",
        "agent unban",
        "apply",
        "call",
        "completion",
        "config view",
        "confirm",
        "delete",
        "demo",
        "describe",
        "diff",
        "down",
        "explain",
        "get",
        "help",
        "history",
        "identity ca rotate",
        "identity ca show",
        "identity svid denied",
        "identity svid restore",
        "identity svid revoke",
        "identity svid show",
        "man",
        "policy allow",
        "policy check",
        "policy deny",
        "rollback",
        "run",
        "server audit accept",
        "server audit verify",
        "server join",
        "server migrate",
        "server records accept",
        "server run",
        "status",
        "token create",
        "token list",
        "token revoke",
        "up",
        "version",
    ];

    #[test]
    fn ids_are_a_w_and_four_digits_unique_and_in_order() {
        for row in CATALOGUE {
            let (letter, digits) = row.id.0.split_at(1);
            assert_eq!(letter, "W", "{}", row.id);
            assert!(digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()), "{}", row.id);
        }
        for pair in CATALOGUE.windows(2) {
            assert!(pair[0].id < pair[1].id, "{} stands before {}", pair[0].id, pair[1].id);
        }
    }

    #[test]
    fn each_area_holds_only_its_own_numbers() {
        for (index, area) in AREAS.iter().enumerate() {
            let prefix = format!("W{}", index + 1);
            assert!(area.iter().all(|row| row.id.0.starts_with(&prefix)), "{prefix}");
        }
    }

    #[test]
    fn every_row_has_a_title_a_cause_and_a_page() {
        for row in CATALOGUE {
            let voice = |text: &str| text.len() > 8 && !text.ends_with('.') && text == text.trim();
            assert!(voice(row.title) && row.title.len() <= 90, "{}: {}", row.id, row.title);
            assert!(voice(row.cause) && !row.cause.contains("  "), "{}: {}", row.id, row.cause);
            let page = row.page();
            assert!(page.contains(row.id.0) && page.contains(row.fix[0]), "{page}");
        }
    }

    #[test]
    fn every_row_has_a_next_command_and_names_only_commands_that_exist() {
        for row in CATALOGUE {
            let named = row.fix.iter().flat_map(|line| line.split("weft ").skip(1)).collect::<Vec<_>>();
            assert!(!named.is_empty(), "{} has no next command", row.id);
            for rest in named {
                let known = COMMANDS.iter().any(|command| {
                    rest.strip_prefix(command).is_some_and(|tail| !tail.starts_with(char::is_alphanumeric))
                });
                assert!(known, "{}: weft {rest}", row.id);
            }
        }
    }

    #[test]
    fn titles_tell_codes_apart() {
        let mut titles: Vec<_> = CATALOGUE.iter().map(|row| row.title).collect();
        titles.sort_unstable();
        for pair in titles.windows(2) {
            assert_ne!(pair[0], pair[1]);
        }
    }

    #[test]
    fn a_code_is_found_by_its_number_in_either_case() {
        assert_eq!(lookup("w2101").map(|row| row.id), Some(NO_ALLOW));
        assert_eq!("W2101".parse(), Ok(NO_ALLOW));
        assert_eq!(lookup("W0000"), None);
        assert!("W2101 ".parse::<CodeId>().is_err());
        assert_eq!(format!("{NO_ALLOW} {NO_ALLOW:?}"), "W2101 W2101");
        assert!(CATALOGUE.iter().all(|row| row.id.row() == row));
    }
}
