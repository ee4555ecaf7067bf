//! The arguments of `weft identity …`, and of `ca` in it.

use clap::{Args, Subcommand, ValueEnum};

use super::groups::SvidCommand;

/// `weft identity`.
#[derive(Args, Debug)]
pub(crate) struct IdentityArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: IdentityCommand,
}

/// `weft identity …`.
#[derive(Debug, Subcommand)]
pub(crate) enum IdentityCommand {
    /// Certificates of workloads
    Svid {
        /// What to do
        #[command(subcommand)]
        command: SvidCommand,
    },
    /// The authority
    Ca {
        /// What to do
        #[command(subcommand)]
        command: AuthorityCommand,
    },
}

/// `weft identity ca …`.
#[derive(Debug, Subcommand)]
pub(crate) enum AuthorityCommand {
    /// Show its roots, where each is in its life, and what waits for whom
    Show {
        /// With the certificates in PEM
        #[arg(long)]
        pem: bool,
    },
    /// Take the next step in the life of the server's root, or the one that --phase names
    Rotate(RotateArgs),
}

/// `weft identity ca rotate`.
#[derive(Args, Debug)]
pub(crate) struct RotateArgs {
    /// The step; without it, the one that comes next
    #[arg(long, value_enum)]
    pub(crate) phase: Option<Phase>,
    /// The root to taint or revoke: its SHA-256, or the first eight or more digits of it
    #[arg(long)]
    pub(crate) root: Option<String>,
    /// Also when agents have not taken the root that is to sign, or certificates under the one to revoke are in use
    #[arg(long)]
    pub(crate) force: bool,
    /// Why; kept in the audit log
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

/// Steps in the life of a root.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Phase {
    /// Make a new root and publish it
    Prepare,
    /// Sign under the prepared root
    Activate,
    /// Sign under the root before again
    Rollback,
    /// Renew everything under an old root at once
    Taint,
    /// Take a tainted root, or a prepared one, out of the bundle
    Revoke,
}

impl Phase {
    /// The step in the API's own words.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Activate => "activate",
            Self::Rollback => "rollback",
            Self::Taint => "taint",
            Self::Revoke => "revoke",
        }
    }
}
