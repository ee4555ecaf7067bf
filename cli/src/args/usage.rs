//! What is wrong with the arguments, before any command runs.
//!
//! Owns the five parts of such an error (cli.md 5.1), made from what clap found, and the refusal of a token among the
//! arguments, which every user of the host can read. Nothing of an argument steers the terminal (API-15).

use std::process::ExitCode;

use clap::{CommandFactory as _, error::ErrorKind};
use weft_api::{fault::Fault, token};
use weft_policy::code;

use crate::{
    args::Cli,
    error::{CliError, Exit},
    output::Output,
};

/// Refuses a token among the arguments, without repeating it. What stands behind `--` is another program's.
pub(crate) fn check_for_token() -> Option<ExitCode> {
    let arguments = arguments();
    let own = arguments.iter().take_while(|argument| *argument != "--");
    let found = own.filter(|argument| token::stands_in(argument)).count() > 0;
    found.then(|| {
        let fault = Fault::new(code::TOKEN_IN_ARGUMENTS, "a token stands among the arguments")
            .why("every user of this host can read the arguments of every process; treat the token as known to them");
        CliError::new(Exit::Usage, fault).report(&output(&arguments))
    })
}

/// Help and the version as they are; anything else as an error.
pub(crate) fn tell(error: &clap::Error) -> ExitCode {
    let is_help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if is_help {
        error.exit();
    }
    let arguments = arguments();
    let rendered = harmless(error.render().to_string(), &arguments);
    CliError::new(Exit::Usage, fault(&rendered, &arguments)).report(&output(&arguments))
}

fn arguments() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

/// A line of its own in an argument would read as a line of ours.
fn harmless(mut text: String, arguments: &[String]) -> String {
    for argument in arguments {
        let value = argument.split_once('=').map_or(argument.as_str(), |(_, value)| value);
        if value.contains(char::is_control) {
            text = text.replace(value, &value.escape_debug().to_string());
        }
    }
    text
}

/// clap says what is wrong in a first line, then hints, then how the command is used.
fn fault(rendered: &str, arguments: &[String]) -> Fault {
    let mut lines = rendered.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("the arguments cannot be read");
    let mut fault = Fault::new(code::USAGE, first.strip_prefix("error: ").unwrap_or(first));
    for line in lines.take_while(|line| !line.starts_with("For more information")) {
        fault = match line.strip_prefix("Usage: ") {
            Some(usage) => fault.why(format!("usage: {usage}")),
            None => fault.why(line.strip_prefix("tip: ").unwrap_or(line)),
        };
    }
    let command: String = subcommands(arguments).iter().map(|word| format!(" {word}")).collect();
    fault.fix(format!("see what it takes:   weft help{command}"))
}

/// The subcommand that the arguments name, as far as there is one. A word after a flag may be the flag's.
fn subcommands(arguments: &[String]) -> Vec<&str> {
    let (mut words, mut command, mut after_flag) = (Vec::new(), Cli::command(), false);
    for argument in arguments.iter().skip(1) {
        let below = command.find_subcommand(argument).cloned();
        match below {
            Some(below) => {
                words.push(argument.as_str());
                command = below;
            }
            None if argument.starts_with('-') || after_flag => {}
            None => break,
        }
        after_flag = argument.starts_with('-');
    }
    words
}

/// In the form that was asked for, as far as it can be told from arguments that cannot be read.
fn output(arguments: &[String]) -> Output {
    let all: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let apart = all.windows(2).any(|two| matches!(two, ["-o" | "--output", "json"]));
    let together = all.iter().any(|argument| ["-ojson", "-o=json", "--output=json"].contains(argument));
    let by_environment = || std::env::var("WEFT_OUTPUT").is_ok_and(|form| form == "json");
    Output::of_errors(apart || together || by_environment())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn told(line: &str) -> Fault {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let error = Cli::try_parse_from(&words).unwrap_err();
        fault(&error.render().to_string(), &words)
    }

    #[test]
    fn what_clap_refuses_has_the_five_parts_of_an_error() {
        let missing = told("weft agent join");
        assert_eq!(&*missing.code, "W4001");
        assert!(missing.what.contains("required"), "{missing:?}");
        assert!(missing.why.iter().any(|why| why.contains("--token-file")), "{missing:?}");
        assert_eq!(missing.fix, ["see what it takes:   weft help agent join"]);
        let unknown = told("weft get services --outputt json");
        assert!(unknown.why.iter().any(|why| why.contains("--output")), "the nearest is named: {unknown:?}");
        assert_eq!(unknown.fix, ["see what it takes:   weft help get"]);
        assert_eq!(told("weft gett").fix, ["see what it takes:   weft help"]);
        assert_eq!(told("weft run --service").fix, ["see what it takes:   weft help run"]);
        assert_eq!(told("weft -n shop token create").fix, ["see what it takes:   weft help token create"]);
    }

    #[test]
    fn an_argument_writes_no_line_of_its_own() {
        let evil = "a\nerror[W0000]: all is well";
        let text = harmless(format!("error: unexpected argument '{evil}' found"), &[evil.to_owned()]);
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
