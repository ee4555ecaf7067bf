//! The arguments of each command.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::parse_duration;

/// `weft demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Run the checks and end: exit 0 when all hold, else 1
    #[arg(long)]
    pub(crate) once: bool,
    /// Remove the demo's state directory and end
    #[arg(long)]
    pub(crate) clean: bool,
    /// Where the demo keeps its state; nothing is written elsewhere
    #[arg(long, env = "WEFT_DEMO_STATE")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Break what a check relies on, to see that the check fails (for tests of the demo)
    #[arg(long, hide = true, value_enum)]
    pub(crate) sabotage: Option<Sabotage>,
}

/// What a test of the demo breaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Sabotage {
    /// Apply no policy: the allowed call is refused
    NoPolicy,
    /// Allow everything: the denied call passes
    AllowAll,
    /// Give the stranger a certificate of the mesh
    TrustStranger,
    /// Flip a byte in the echo service
    CorruptEcho,
    /// Cut calls while certificates rotate
    CutRotation,
    /// Do not restart the killed agent
    NoRestart,
    /// Stop the destination together with the registry
    StopAll,
}

/// `weft up`.
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// Listen on this address for other hosts; loopback at first. Flags that are not given keep their last value
    #[arg(long, env = "WEFT_LISTEN")]
    pub(crate) listen: Option<std::net::IpAddr>,
    /// How other hosts reach this one: a name or address; repeatable
    #[arg(long)]
    pub(crate) advertise: Vec<String>,
    /// The mesh's state directory
    #[arg(long, env = "WEFT_STATE_DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Let programs of this host run as the server's own user even when other nodes have joined
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) allow_shared_uid: Option<bool>,
    /// The mesh's trust domain; `<hostname>.weft.internal` when not given, fixed at the first start
    #[arg(long)]
    pub(crate) trust_domain: Option<String>,
    /// Stay in the foreground (what the background process runs)
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Ports to use instead of the standard ones, for several meshes on one host: BASE, BASE+1, …
    #[arg(long)]
    pub(crate) port_base: Option<u16>,
}

/// `weft down`.
#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    /// The mesh's state directory
    #[arg(long, env = "WEFT_STATE_DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// `weft run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The service (and service account) that the program is
    #[arg(long)]
    pub(crate) service: String,
    /// The port it serves: PORT, ADDRESS:PORT, or NAME=PORT; repeatable
    #[arg(long)]
    pub(crate) port: Vec<String>,
    /// A loopback port to another service: SERVICE=PORT, or SERVICE:SERVICEPORT=PORT; port 0 picks one; repeatable
    #[arg(long)]
    pub(crate) upstream: Vec<String>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

/// `weft exec-program`, which `weft run` starts itself as.
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// The process of `weft run`: the program ends with it
    #[arg(long)]
    pub(crate) parent: i32,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

/// `weft call`.
#[derive(Args, Debug)]
pub(crate) struct CallArgs {
    /// What is called; without a port, the service's default one
    #[arg(value_name = "SERVICE[.NAMESPACE][:PORT]")]
    pub(crate) target: String,
    /// The path
    #[arg(default_value = "/")]
    pub(crate) path: String,
    /// Who calls: a service account's name, NAMESPACE/NAME, or a SPIFFE ID of this node
    #[arg(long = "as")]
    pub(crate) identity: Option<String>,
    /// Method
    #[arg(short = 'X', long, default_value = "GET")]
    pub(crate) method: String,
    /// Body; @FILE reads it from a file
    #[arg(short = 'd', long)]
    pub(crate) data: Option<String>,
    /// How many calls, one after the other
    #[arg(long = "n", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,
    /// Print the body of the answer, its first 16 MiB
    #[arg(long)]
    pub(crate) body: bool,
}

/// `weft agent`.
#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: AgentCommand,
}

/// `weft agent …`.
#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Run the agent in the foreground
    Run {
        /// Configuration file
        #[arg(long, env = "WEFT_AGENT_CONFIG", default_value = "/etc/weft/agent.yaml")]
        config: PathBuf,
    },
    /// Join a mesh by a one-use token, write the configuration and start the agent
    Join(JoinArgs),
    /// Show this host's agent
    Status,
    /// Stop taking new work and end once flows have ended or the deadline has passed
    Drain {
        /// How long flows may take to end
        #[arg(long, default_value = "30s", value_parser = parse_duration)]
        deadline: Duration,
    },
    /// Give a node nothing more, refuse all that was issued to it, and close its connections
    Ban(BanArgs),
    /// Lift the ban of a node
    Unban(BanArgs),
}

/// `weft agent join`.
#[derive(Args, Debug)]
pub(crate) struct JoinArgs {
    /// The token's file, or - for standard input; never in the arguments, which others can read
    #[arg(long)]
    pub(crate) token_file: PathBuf,
    /// How peers reach this host: a name or address, with or without a port; repeatable
    #[arg(long)]
    pub(crate) advertise: Vec<String>,
    /// The agent's state directory
    #[arg(long, env = "WEFT_STATE_DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Where tunnels are taken
    #[arg(long, default_value = "[::]:7443")]
    pub(crate) listen: std::net::SocketAddr,
    /// Join only: do not start the agent
    #[arg(long)]
    pub(crate) no_start: bool,
    /// An existing configuration file to join with, instead of writing one
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
}

/// `weft token`.
#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

/// `weft token …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a one-use token; it is printed once, on standard output
    Create(TokenCreateArgs),
    /// List tokens (never their secrets)
    List,
    /// Revoke a token that was not used
    Revoke {
        /// The token's ID
        id: String,
    },
}

/// `weft token create`.
#[derive(Args, Debug)]
pub(crate) struct TokenCreateArgs {
    /// Who it is for
    #[arg(long = "for", value_enum)]
    pub(crate) purpose: Purpose,
    /// The node that may use it (with --for agent)
    #[arg(long, required_if_eq("purpose", "agent"))]
    pub(crate) node: Option<String>,
    /// The person (with --for user)
    #[arg(long, required_if_eq("purpose", "user"))]
    pub(crate) user: Option<String>,
    /// A service that the node may serve and call as; repeatable; without it, every one of the namespace
    #[arg(long)]
    pub(crate) service: Vec<String>,
    /// The person's role
    #[arg(long, value_enum)]
    pub(crate) role: Option<Role>,
    /// How long it may be used, at most 24h
    #[arg(long, default_value = "15m", value_parser = parse_duration)]
    pub(crate) ttl: Duration,
    /// The node is known already: ban its old certificate
    #[arg(long)]
    pub(crate) replace: bool,
    /// A local uid of the node that may start its workloads; repeatable
    #[arg(long)]
    pub(crate) uid: Vec<u32>,
}

/// Who a token is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Purpose {
    /// A node's agent
    Agent,
    /// A person
    User,
    /// A further server of the mesh
    Server,
}

/// Roles of people.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Role {
    /// Reads
    Viewer,
    /// Changes resources
    Editor,
    /// Does everything
    Admin,
}

/// `weft get`.
#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    /// KIND, KIND/NAME or KIND NAME; `agents` lists agents
    #[arg(required = true)]
    pub(crate) what: Vec<String>,
    /// Labels to select by: key=value,…
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// Go on and print changes
    #[arg(short = 'w', long)]
    pub(crate) watch: bool,
}

/// `weft describe`.
#[derive(Args, Debug)]
pub(crate) struct DescribeArgs {
    /// KIND/NAME or KIND NAME
    #[arg(required = true)]
    pub(crate) what: Vec<String>,
}

/// `weft diff`.
#[derive(Args, Debug)]
pub(crate) struct DiffArgs {
    /// A file, a directory, or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", required = true)]
    pub(crate) files: Vec<PathBuf>,
}

/// `weft policy`.
#[derive(Args, Debug)]
pub(crate) struct PolicyArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: PolicyCommand,
}

/// `weft policy …`.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Allow SOURCE to call SERVICE: shows the policy, asks, applies
    Allow(PolicyEditArgs),
    /// Deny SOURCE to call SERVICE: shows the policy, asks, applies
    Deny(PolicyEditArgs),
    /// Whether a call would be allowed, by what, or why not: exit 0 allowed, 1 denied
    Check(PolicyCheckArgs),
}

/// `weft policy allow|deny`.
#[derive(Args, Debug)]
pub(crate) struct PolicyEditArgs {
    /// Caller: NAME, NAME.NAMESPACE, or a SPIFFE ID or pattern
    pub(crate) source: String,
    /// Destination: SERVICE or SERVICE.NAMESPACE
    pub(crate) destination: String,
    /// Only this port of the service, by name or number; repeatable
    #[arg(long)]
    pub(crate) port: Vec<String>,
    /// Show the policy, change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Also when it would refuse every call that is made to the service now
    #[arg(long)]
    pub(crate) force: bool,
}

/// `weft policy check`.
#[derive(Args, Debug)]
pub(crate) struct PolicyCheckArgs {
    /// Caller: NAME, NAME.NAMESPACE, or a SPIFFE ID
    pub(crate) source: String,
    /// Destination; without a port, the service's default one
    #[arg(value_name = "SERVICE[.NAMESPACE][:PORT]")]
    pub(crate) destination: String,
    /// The address the caller's node dials from
    #[arg(long)]
    pub(crate) source_ip: Option<std::net::IpAddr>,
    /// Objects to lay over the stored ones for this check
    #[arg(short = 'f', long = "filename")]
    pub(crate) files: Vec<PathBuf>,
}

/// `weft explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// A code such as W2101, `last`, or `codes`
    pub(crate) what: String,
}

/// `weft identity svid …`.
#[derive(Debug, Subcommand)]
pub(crate) enum SvidCommand {
    /// Show those that this host's agent holds
    Show {
        /// With the certificates in PEM
        #[arg(long)]
        pem: bool,
    },
    /// Refuse an identity, a certificate or a key at once and everywhere, and close its connections
    Revoke(DenyArgs),
    /// Show what is denied: by whom, why, until when
    Denied,
    /// Take something off the denylist
    Restore(DenyArgs),
}

/// `weft identity svid revoke`, `restore`.
#[derive(Args, Debug)]
pub(crate) struct DenyArgs {
    /// An identity: every certificate of it, and none is issued until the entry ends after 7 days
    #[arg(value_name = "SPIFFE_ID", conflicts_with_all = ["serial", "spki"])]
    pub(crate) identity: Option<String>,
    /// The serial number of one certificate, in hexadecimal
    #[arg(long, value_name = "HEX", conflicts_with = "spki")]
    pub(crate) serial: Option<String>,
    /// With --serial: only a certificate of the authority with this key identifier
    #[arg(long, value_name = "HEX", requires = "serial")]
    pub(crate) issuer: Option<String>,
    /// A public key, by the SHA-256 of its SubjectPublicKeyInfo
    #[arg(long, value_name = "HEX")]
    pub(crate) spki: Option<String>,
    /// Why; kept with the entry, and told to whoever is refused by the server
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

/// `weft agent ban`, `unban`.
#[derive(Args, Debug)]
pub(crate) struct BanArgs {
    /// The node
    pub(crate) node: String,
    /// Why; kept with the ban, and told to the node when the server refuses it
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

/// `weft status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {}

/// `weft config`.
#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

/// `weft config …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the configuration in force
    View {
        /// An agent's configuration file
        #[arg(long, conflicts_with = "server_config")]
        agent_config: Option<PathBuf>,
        /// A server's configuration file
        #[arg(long)]
        server_config: Option<PathBuf>,
        /// Say where each value came from
        #[arg(long)]
        origin: bool,
    },
}

/// `weft version`.
#[derive(Args, Debug)]
pub(crate) struct VersionArgs {
    /// Only this binary's
    #[arg(long)]
    pub(crate) client: bool,
}

/// `weft completion`.
#[derive(Args, Debug)]
pub(crate) struct CompletionArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// `weft man`.
#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// Write one page per command into this directory, instead of the main page to standard output
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
}

/// `weft user`.
#[derive(Args, Debug)]
pub(crate) struct UserArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: UserCommand,
}

/// `weft user …`.
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Trade a one-use token for a personal certificate, to use --server HOST:7444 from this host
    Login {
        /// The token's file, or - for standard input; never in the arguments, which others can read
        #[arg(long)]
        token_file: PathBuf,
    },
    /// Who you are to servers on other hosts
    Whoami,
}
