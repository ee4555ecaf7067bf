//! Where each value of the configuration came from: `weft config view --origin`.
//!
//! Owns the order flag, environment, file, default (cli.md 4.4) for single values and lists.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, str::FromStr};

use weft_api::fault::Fault;
use weft_policy::code;

use super::value::Given;

/// Where a value came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// The file, by the name it was read under.
    File(String),
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(name) => write!(f, "file {name}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One value with its key and origin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Setting {
    /// The key, such as `listen.tunnels`.
    pub key: String,
    /// The value as text.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// What may override the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Environment variables; those that begin with `WEFT_` count.
    pub environment: BTreeMap<String, String>,
    /// Flags: the key, and the flag's name and value. Lists are separated by commas.
    pub flags: BTreeMap<String, (String, String)>,
}

/// Takes values in their order and remembers the origins.
#[derive(Debug)]
pub(super) struct Resolver<'a> {
    overrides: &'a Overrides,
    file: &'a str,
    pub(super) settings: Vec<Setting>,
    pub(super) faults: Vec<Fault>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(overrides: &'a Overrides, file: &'a str) -> Self {
        Self { overrides, file, settings: Vec::new(), faults: Vec::new() }
    }

    /// The value of `key`, else `default`.
    pub(super) fn one<T>(&mut self, key: &str, given: Option<Given<T>>, default: T) -> T
    where
        T: FromStr<Err: fmt::Display> + fmt::Display,
    {
        let (value, origin) = match self.overridden(key) {
            Some((text, origin)) => match text.parse() {
                Ok(value) => (value, origin),
                Err(error) => {
                    self.fault(key, format!("{error}"), Some(&origin));
                    (default, Origin::Default)
                }
            },
            None => given.map_or((default, Origin::Default), |given| (given.0, self.in_file())),
        };
        self.settings.push(Setting { key: key.to_owned(), value: value.to_string(), origin });
        value
    }

    /// The same for a value with bounds.
    pub(super) fn bounded<T>(
        &mut self,
        key: &str,
        given: Option<Given<T>>,
        default: T,
        bounds: &RangeInclusive<T>,
    ) -> T
    where
        T: FromStr<Err: fmt::Display> + fmt::Display + PartialOrd + Copy,
    {
        let value = self.one(key, given, default);
        if !bounds.contains(&value) {
            self.fault(key, format!("{value} is not within {} to {}", bounds.start(), bounds.end()), None);
        }
        value
    }

    /// The list of `key`; an override replaces the file's.
    pub(super) fn many<T>(&mut self, key: &str, given: Option<Vec<Given<T>>>) -> Vec<T>
    where
        T: FromStr<Err: fmt::Display> + fmt::Display,
    {
        let (values, origin) = match self.overridden(key) {
            Some((text, origin)) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                let parsed: Result<Vec<T>, _> = parts.map(str::parse).collect();
                let values = parsed.unwrap_or_else(|error| {
                    self.fault(key, format!("{error}"), Some(&origin));
                    Vec::new()
                });
                (values, origin)
            }
            None => match given {
                Some(given) => (given.into_iter().map(|given| given.0).collect(), self.in_file()),
                None => (Vec::new(), Origin::Default),
            },
        };
        let shown: Vec<String> = values.iter().map(ToString::to_string).collect();
        self.settings.push(Setting { key: key.to_owned(), value: shown.join(", "), origin });
        values
    }

    /// Something is wrong with the value of `key`.
    pub(super) fn fault(&mut self, key: &str, what: String, origin: Option<&Origin>) {
        let mut fault = Fault::new(code::CONFIG_BAD_VALUE, what).at(key, None);
        if let Some(origin) = origin {
            fault = fault.why(format!("it came from {origin}"));
        }
        self.faults.push(fault);
    }

    fn in_file(&self) -> Origin {
        Origin::File(self.file.to_owned())
    }

    fn overridden(&self, key: &str) -> Option<(String, Origin)> {
        if let Some((flag, value)) = self.overrides.flags.get(key) {
            return Some((value.clone(), Origin::Flag(flag.clone())));
        }
        let variable = variable(key);
        let value = self.overrides.environment.get(&variable)?;
        Some((value.clone(), Origin::Environment(variable)))
    }
}

/// `listen.tunnels` is `WEFT_LISTEN_TUNNELS`, `stateDir` is `WEFT_STATE_DIR`.
fn variable(key: &str) -> String {
    let mut name = String::from("WEFT_");
    for character in key.chars() {
        match character {
            '.' => name.push('_'),
            upper if upper.is_ascii_uppercase() => name.extend(['_', upper]),
            other => name.push(other.to_ascii_uppercase()),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_goes_before_the_environment_the_file_and_the_default() {
        let mut overrides = Overrides::default();
        let take = |overrides: &Overrides, given| {
            let mut resolver = Resolver::new(overrides, "agent.yaml");
            let value = resolver.one("stateDir", given, 1_u32);
            (value, resolver.settings[0].origin.to_string())
        };
        assert_eq!(take(&overrides, None), (1, "default".to_owned()));
        assert_eq!(take(&overrides, Some(Given(2))), (2, "file agent.yaml".to_owned()));
        overrides.environment.insert("WEFT_STATE_DIR".to_owned(), "3".to_owned());
        assert_eq!(take(&overrides, Some(Given(2))), (3, "environment WEFT_STATE_DIR".to_owned()));
        overrides.flags.insert("stateDir".to_owned(), ("--state-dir".to_owned(), "4".to_owned()));
        assert_eq!(take(&overrides, Some(Given(2))), (4, "flag --state-dir".to_owned()));
    }

    #[test]
    fn an_override_that_cannot_be_read_names_its_variable() {
        let environment = BTreeMap::from([("WEFT_WORKERS".to_owned(), "many".to_owned())]);
        let overrides = Overrides { environment, ..Overrides::default() };
        let mut resolver = Resolver::new(&overrides, "agent.yaml");
        resolver.bounded("workers", None, 1_u32, &(1..=8));
        assert!(resolver.faults[0].why.contains(&"it came from environment WEFT_WORKERS".to_owned()));
        assert_eq!(resolver.faults[0].path(), "workers");
    }

    #[test]
    fn a_value_out_of_bounds_is_a_fault() {
        let overrides = Overrides::default();
        let mut resolver = Resolver::new(&overrides, "agent.yaml");
        resolver.bounded("workers", Some(Given(9)), 1_u32, &(1..=8));
        assert_eq!(resolver.faults[0].what, "9 is not within 1 to 8");
    }
}
