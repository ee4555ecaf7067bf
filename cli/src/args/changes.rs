//! The arguments of the commands that change resources, and of those that look back.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::parse_duration;

/// `weft apply`.
#[derive(Args, Debug)]
pub(crate) struct ApplyArgs {
    /// A file, a directory, or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Validate only: here, or by the server
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) dry_run: DryRun,
    /// How the change is made
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

/// What every command takes that changes resources.
#[derive(Args, Debug)]
pub(crate) struct ChangeArgs {
    /// Why, kept with the change
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
    /// Also when it would refuse every call that is made to some service now
    #[arg(long)]
    pub(crate) force: bool,
    /// Take the change back unless it is confirmed within this time, 10s to 24h; 10m without one
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "10m", value_parser = parse_duration)]
    pub(crate) confirm_within: Option<Duration>,
}

/// Where a dry run validates.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum DryRun {
    /// No dry run
    None,
    /// Here
    Client,
    /// By the server, against what is stored
    Server,
}

/// `weft delete`.
#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    /// KIND/NAME … or KIND NAME
    #[arg(required_unless_present = "files")]
    pub(crate) what: Vec<String>,
    /// Delete what these files name
    #[arg(short = 'f', long = "filename")]
    pub(crate) files: Vec<PathBuf>,
    /// Say what would be deleted
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How the change is made
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

/// `weft history`.
#[derive(Args, Debug)]
pub(crate) struct HistoryArgs {
    /// KIND/NAME or KIND NAME
    #[arg(required = true)]
    pub(crate) what: Vec<String>,
    /// Show the object as it stood at this revision
    #[arg(long)]
    pub(crate) revision: Option<u64>,
}

/// `weft rollback`.
#[derive(Args, Debug)]
pub(crate) struct RollbackArgs {
    /// KIND/NAME … or KIND NAME; all of them in one transaction, or none
    #[arg(required = true)]
    pub(crate) what: Vec<String>,
    /// As they stood at this revision of `weft history`; without it, each as it was before its newest change
    #[arg(long, value_name = "REV")]
    pub(crate) to: Option<u64>,
    /// Say what would be changed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How the change is made
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

/// `weft confirm`.
#[derive(Args, Debug)]
pub(crate) struct ConfirmArgs {
    /// The number of the change; not needed when only one of yours waits
    pub(crate) change: Option<u64>,
    /// Take it back now instead
    #[arg(long)]
    pub(crate) abort: bool,
}
