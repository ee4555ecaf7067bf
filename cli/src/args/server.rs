//! The arguments of `weft server`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `weft server`.
#[derive(Args, Debug)]
pub(crate) struct ServerArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: ServerCommand,
}

/// `weft server …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// Run the control plane in the foreground
    Run {
        /// Configuration file
        #[arg(long, env = "WEFT_SERVER_CONFIG", default_value = "/etc/weft/server.yaml")]
        config: PathBuf,
    },
    /// Who called what, and whether they were let
    Audit {
        /// What to do
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Whether the records of the store are as the server wrote them; the server must not run
    Records {
        /// What to do
        #[command(subcommand)]
        command: RecordsCommand,
    },
    /// Write everything that the store holds into a new file; the server must not run
    Backup {
        /// The file; only its owner can read it
        file: PathBuf,
        /// Configuration file
        #[arg(long, env = "WEFT_SERVER_CONFIG", default_value = "/etc/weft/server.yaml")]
        config: PathBuf,
    },
    /// Fill an empty store from a backup; the server must not run
    Restore {
        /// What `weft server backup` has written
        file: PathBuf,
        /// Configuration file
        #[arg(long, env = "WEFT_SERVER_CONFIG", default_value = "/etc/weft/server.yaml")]
        config: PathBuf,
    },
    /// Move the mesh from the embedded store into etcd; the server must not run, agents may
    Migrate(MigrateArgs),
    /// Join a mesh as a further server over its etcd, with a token of `weft token create --for server`
    Join {
        /// The file with the token, `-` for standard input
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
        /// Configuration file, which names the etcd of the mesh and a directory of this server's own
        #[arg(long, env = "WEFT_SERVER_CONFIG", default_value = "/etc/weft/server.yaml")]
        config: PathBuf,
    },
}

/// `weft server audit …`.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Show the newest entries of the server's audit log
    Show {
        /// How many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
    /// Read the whole log and say whether anything was removed, changed or cut off: exit 0 whole, 1 not
    Verify,
    /// Begin a log anew that is not whole, behind what is left of it; the server must not run
    Accept {
        /// Configuration file
        #[arg(long, env = "WEFT_SERVER_CONFIG", default_value = "/etc/weft/server.yaml")]
        config: PathBuf,
    },
}

/// `weft server records …`.
#[derive(Debug, Subcommand)]
pub(crate) enum RecordsCommand {
    /// Say what in the store is not as the server wrote it: exit 0 nothing, 1 something
    Check {
        /// Configuration file
        #[arg(long, env = "WEFT_SERVER_CONFIG", default_value = "/etc/weft/server.yaml")]
        config: PathBuf,
    },
    /// Sign what stands in the store, whoever wrote it, and say what was refused before
    Accept {
        /// Configuration file
        #[arg(long, env = "WEFT_SERVER_CONFIG", default_value = "/etc/weft/server.yaml")]
        config: PathBuf,
    },
}

/// `weft server migrate`.
#[derive(Args, Debug)]
pub(crate) struct MigrateArgs {
    /// Where to: etcd://HOST:PORT, further members after commas
    #[arg(long, value_name = "URL")]
    pub(crate) to: String,
    /// The roots of etcd's certificates; without it etcd is asked in plain text, on loopback only
    #[arg(long)]
    pub(crate) ca: Option<PathBuf>,
    /// The server's certificate, where etcd asks for one
    #[arg(long, requires = "key", requires = "ca")]
    pub(crate) certificate: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, requires = "certificate")]
    pub(crate) key: Option<PathBuf>,
    /// As whom to log in
    #[arg(long, requires = "password_file")]
    pub(crate) user: Option<String>,
    /// The file with that user's password
    #[arg(long, requires = "user")]
    pub(crate) password_file: Option<PathBuf>,
    /// What every key of the mesh starts with; /weft/CLUSTER/
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// Configuration file of the embedded store
    #[arg(long, env = "WEFT_SERVER_CONFIG", default_value = "/etc/weft/server.yaml")]
    pub(crate) config: PathBuf,
}
