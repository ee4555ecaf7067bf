//! What a person can type, and nothing about what it does.

pub(crate) mod changes;
pub(crate) mod completion;
pub(crate) mod groups;
pub(crate) mod identity;
pub(crate) mod server;
pub(crate) mod usage;

use std::time::Duration;

use clap::{
    ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
    error::ErrorKind, parser::ValueSource,
};

use changes::{ApplyArgs, ConfirmArgs, DeleteArgs, HistoryArgs, RollbackArgs};
use groups::{
    AgentArgs, CallArgs, CompletionArgs, ConfigArgs, DemoArgs, DescribeArgs, DiffArgs, DownArgs, ExecArgs,
    ExplainArgs, GetArgs, ManArgs, PolicyArgs, RunArgs, StatusArgs, TokenArgs, UpArgs, UserArgs, VersionArgs,
};
use identity::IdentityArgs;
use server::ServerArgs;

/// Weft: a service mesh that is a network.
#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    about = "Weft: a service mesh that is a network",
    long_about = "Weft carries the calls of your programs through QUIC tunnels between SPIFFE identities, and only \
                  where a rule allows it.\n\nFirst steps: `weft demo`, then `weft up` and `weft run --help`.",
    disable_help_subcommand = false,
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = true,
    infer_subcommands = false,
    max_term_width = 110
)]
pub(crate) struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Reads the command line.
    ///
    /// # Errors
    ///
    /// What clap refuses, and what it was asked to show instead: help, the version.
    pub(crate) fn from_command_line() -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches()?;
        let read = excludes(&matches).and_then(|()| Self::from_arg_matches(&matches));
        read.map_err(|error| error.format(&mut Self::command()))
    }
}

/// `-n` and `-A` exclude each other on the command line; a namespace of the environment gives way to `-A`.
fn excludes(matches: &ArgMatches) -> Result<(), clap::Error> {
    let typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
    if typed("namespace") && typed("all_namespaces") {
        let what = "the argument '--namespace <NAMESPACE>' cannot be used with '--all-namespaces'";
        return Err(clap::Error::raw(ErrorKind::ArgumentConflict, what));
    }
    Ok(())
}

/// Flags that every command takes (cli.md 4.1).
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Namespace; objects and names without one belong to it
    #[arg(short = 'n', long, global = true, env = "WEFT_NAMESPACE", help_heading = "Global")]
    pub(crate) namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, global = true, help_heading = "Global")]
    pub(crate) all_namespaces: bool,
    /// The server to talk to: a Unix socket's path, or host:port with the identity of `weft user login`
    #[arg(long, global = true, env = "WEFT_SERVER", help_heading = "Global")]
    pub(crate) server: Option<String>,
    /// The agent's socket, when it is not where it is looked for
    #[arg(long, global = true, env = "WEFT_AGENT_SOCKET", help_heading = "Global")]
    pub(crate) agent_socket: Option<std::path::PathBuf>,
    /// Output form
    #[arg(
        short = 'o',
        long,
        global = true,
        env = "WEFT_OUTPUT",
        default_value = "table",
        help_heading = "Global"
    )]
    pub(crate) output: Format,
    /// Say less
    #[arg(short = 'q', long, global = true, help_heading = "Global")]
    pub(crate) quiet: bool,
    /// Say more (-v: what is done, -vv: calls too)
    #[arg(short = 'v', long, global = true, action = clap::ArgAction::Count, help_heading = "Global")]
    pub(crate) verbose: u8,
    /// Colour of the output
    #[arg(long, global = true, env = "WEFT_COLOR", default_value = "auto", help_heading = "Global")]
    pub(crate) color: Color,
    /// Tables without their head line
    #[arg(long, global = true, help_heading = "Global")]
    pub(crate) no_headers: bool,
    /// How long a command may wait for an answer, such as 30s
    #[arg(long, global = true, env = "WEFT_TIMEOUT", default_value = "30s", value_parser = parse_duration, help_heading = "Global")]
    pub(crate) timeout: Duration,
    /// Answer yes to questions
    #[arg(short = 'y', long, global = true, help_heading = "Global")]
    pub(crate) yes: bool,
    /// Form of the logs of long-running commands
    #[arg(long, global = true, env = "WEFT_LOG_FORMAT", default_value = "text", help_heading = "Global")]
    pub(crate) log_format: LogFormat,
}

/// Output forms (cli.md 4.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people; no colour in a pipe
    Table,
    /// More columns
    Wide,
    /// The API object
    Json,
    /// The API object
    Yaml,
    /// kind/name
    Name,
}

/// When to colour.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless `NO_COLOR` is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// Form of logs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

/// The commands, in the order of `weft help`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a whole mesh in this process, show that it holds, and leave it up for play
    Demo(DemoArgs),
    /// Start server and agent for this host in the background
    Up(UpArgs),
    /// Stop what `up` started
    Down(DownArgs),
    /// Run a program in the mesh; it leaves the mesh when it ends
    Run(RunArgs),
    /// Become the program of `weft run`
    #[command(hide = true)]
    ExecProgram(ExecArgs),
    /// One HTTP request through the mesh, with the decision and the path it took
    Call(CallArgs),
    /// The control plane
    Server(ServerArgs),
    /// The agent of this host
    Agent(AgentArgs),
    /// Create or change resources from files
    Apply(ApplyArgs),
    /// Show resources
    Get(GetArgs),
    /// Show what a resource is and what it does now
    Describe(DescribeArgs),
    /// Delete resources
    Delete(DeleteArgs),
    /// Compare files with what is stored: exit 0 same, 1 different
    Diff(DiffArgs),
    /// Show the revisions of a resource: every change with its author, time and reason
    History(HistoryArgs),
    /// Bring resources back as they stood at an earlier revision
    Rollback(RollbackArgs),
    /// Keep a change that was made with --confirm-within
    Confirm(ConfirmArgs),
    /// Allow, deny and check calls
    Policy(PolicyArgs),
    /// Explain an error code, or the last denial here
    Explain(ExplainArgs),
    /// Certificates and the authority
    Identity(IdentityArgs),
    /// One-use tokens for agents and people
    Token(TokenArgs),
    /// Your own identity towards servers on other hosts
    User(UserArgs),
    /// One screen: problems first, then server, agents, services
    Status(StatusArgs),
    /// The configuration in force and where each value came from
    Config(ConfigArgs),
    /// Version of this binary and of the server
    Version(VersionArgs),
    /// Shell completion
    Completion(CompletionArgs),
    /// Manual pages
    Man(ManArgs),
}

/// Reads `1.5s`, `250ms`, `15m`, `24h`, `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a duration such as 30s"))?;
    let seconds = match unit {
        "ms" => number / 1_000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        "d" => number * 86_400.0,
        _ => return Err(format!("{text:?} needs a unit: ms, s, m, h or d")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn one_namespace_and_all_of_them_exclude_each_other() {
        let read = |line: &str| Cli::command().try_get_matches_from(line.split(' ')).unwrap();
        for both in
            ["weft get workloads -A -n shop", "weft -n shop get workloads -A", "weft -A get wl -n shop"]
        {
            assert_eq!(excludes(&read(both)).unwrap_err().exit_code(), 2, "{both}");
        }
        for one in ["weft get workloads -A", "weft get workloads -n shop", "weft get workloads"] {
            excludes(&read(one)).unwrap();
        }
    }

    #[test]
    fn the_time_to_confirm_in_is_ten_minutes_when_none_is_given() {
        let read = |line: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Apply(args) = cli.command else { panic!("{line}") };
            args.change.confirm_within
        };
        assert_eq!(read("weft apply -f x"), None);
        assert_eq!(read("weft apply -f x --confirm-within"), Some(Duration::from_secs(600)));
        assert_eq!(read("weft apply --confirm-within -f x"), Some(Duration::from_secs(600)));
        assert_eq!(read("weft apply -f x --confirm-within 30s"), Some(Duration::from_secs(30)));
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        for bad in ["", "15", "s", "-1s", "1y", "1e400s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
