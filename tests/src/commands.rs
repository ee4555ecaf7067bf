//! The commands of `weft` as `weft help` tells them, and whether a command that somebody is told to type exists.

use std::collections::BTreeMap;
use std::path::Path;

use crate::mesh::weft_binary;
use crate::process::Program;

/// Every command by its words, such as `agent join`, with its help. The empty one is `weft` itself.
#[derive(Debug)]
pub struct Commands(BTreeMap<String, Help>);

#[derive(Debug)]
struct Help {
    text: String,
    below: Vec<String>,
}

impl Commands {
    /// Asks `weft help` for all of them, with output files in `folder`.
    ///
    /// # Panics
    ///
    /// If the help of one cannot be read.
    #[track_caller]
    pub fn read(folder: &Path) -> Self {
        let mut all = BTreeMap::new();
        let mut next = vec![String::new()];
        while let Some(words) = next.pop() {
            let help = Program::new(weft_binary(), folder).arg("help").args(words.split_whitespace());
            let text = help.run().expect_success().stdout;
            let below = subcommands(&text);
            next.extend(below.iter().map(|word| format!("{words} {word}").trim().to_owned()));
            all.insert(words, Help { text, below });
        }
        assert!(all.len() > 30, "{:?}", all.keys());
        Self(all)
    }

    /// Checks every `weft …` in a line of advice: the command is there, and takes the flags.
    ///
    /// # Errors
    ///
    /// What is not there.
    pub fn check(&self, advice: &str) -> Result<(), String> {
        commands_in(advice).into_iter().try_for_each(|words| {
            self.check_one(&words)
                .map_err(|why| format!("weft {}: {why}; told as {advice:?}", words.join(" ")))
        })
    }

    fn check_one(&self, words: &[&str]) -> Result<(), String> {
        let mut path = String::new();
        let mut rest = words.iter();
        let mut help = &self.0[""];
        while !help.below.is_empty() {
            let word = rest.next().ok_or("a subcommand is missing")?;
            if *word == "help" {
                return Ok(());
            }
            if !help.below.iter().any(|known| known == word) {
                return Err(format!("there is no command {word:?} after {path:?}"));
            }
            path = format!("{path} {word}").trim().to_owned();
            help = &self.0[&path];
        }
        let flags =
            rest.take_while(|word| **word != "--").filter(|word| word.starts_with('-') && **word != "-");
        for flag in flags {
            let name = flag.split('=').next().unwrap_or(flag);
            let known = help.text.split(|c: char| c.is_whitespace() || c == ',' || c == '[' || c == '=');
            if !known.into_iter().any(|word| word == name) {
                return Err(format!("{path:?} takes no {name}"));
            }
        }
        Ok(())
    }
}

/// What stands under "Commands:", one a line.
fn subcommands(text: &str) -> Vec<String> {
    let listed = text.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| line.starts_with("  "));
    let words =
        listed.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    words.filter(|word| *word != "help").map(str::to_owned).collect()
}

/// The words of each `weft …` in a line, up to where the command ends: a comma, a semicolon, a wide gap.
fn commands_in(line: &str) -> Vec<Vec<&str>> {
    let begins = |at: usize| {
        !line[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '-' | '/' | '.' | '_'))
    };
    let places = line.match_indices("weft ").filter(|(at, _)| begins(*at));
    let one = |(at, head): (usize, &str)| {
        let text = line[at + head.len()..].trim_start();
        let end = [", ", "; ", "   ", "`", " — ", ","].iter().filter_map(|stop| text.find(stop)).min();
        let text = &text[..end.unwrap_or(text.len())];
        text.split_whitespace().map(|word| word.trim_end_matches([',', ';', ')', '.', ':', '\''])).collect()
    };
    places.map(one).filter(|words: &Vec<&str>| !words.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_advice() {
        let found = |line| commands_in(line);
        assert_eq!(found("start it:   weft up --listen 0.0.0.0"), [["up", "--listen", "0.0.0.0"]]);
        assert_eq!(found("weft agent run, or   weft server run"), [["agent", "run"], ["server", "run"]]);
        assert_eq!(found("see `weft status`; then weft down"), [["status"], ["down"]]);
        assert!(found("read /x/weft.log, or /usr/bin/weft").is_empty());
    }
}
