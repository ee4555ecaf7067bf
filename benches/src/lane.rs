//! The paths that are compared, each a running set of relays between the two programs.
//!
//! Owns what runs on a path and how it is started, which is also how its cold start is measured: a probe calls
//! without pause while both relays start, and the clock stops at its first answer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use tokio::process::Command;

use crate::clock::now;
use crate::host;
use crate::process::{Launcher, Running};
use crate::site::Site;
use crate::weft::Mesh;

/// How long the first answer may take. Longer than the probe's own patience, so that it is the one to speak.
const FIRST_ANSWER: Duration = Duration::from_secs(35);

/// How long a role of ours may take to listen.
const READY: Duration = Duration::from_secs(10);

/// A way from the calling program to the called one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum Path {
    /// Through two agents.
    Weft,
    /// The baseline: through two relays, TLS over TCP, one connection per flow.
    Tls,
    /// Through two relays without encryption: what two more processes cost in any case.
    Plain,
    /// No relay.
    Direct,
}

/// What every lane of a campaign stands on.
pub(crate) struct Ground {
    pub(crate) site: Site,
    pub(crate) launcher: Launcher,
    /// Where the called program listens.
    pub(crate) service_port: u16,
    /// Directory with the certificates of the TLS baseline.
    pub(crate) certificates: PathBuf,
}

/// A path that is up.
pub(crate) struct Lane {
    /// Where the calling program connects to.
    pub(crate) target: SocketAddr,
    /// From starting the relays to the first answer; `None` without relays.
    pub(crate) cold_start: Option<Duration>,
    /// The relay or agent beside the calling program, then the one beside the called program.
    relays: Option<[Running; 2]>,
}

impl Path {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 4] = [Self::Weft, Self::Tls, Self::Plain, Self::Direct];

    /// The name in the table, in JSON and after `--path`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::Tls => "tls",
            Self::Plain => "plain",
            Self::Direct => "direct",
        }
    }
}

/// Returns `paths` in table order, each once.
pub(crate) fn ordered(paths: &[Path]) -> Vec<Path> {
    Path::ALL.into_iter().filter(|path| paths.contains(path)).collect()
}

impl Ground {
    /// Starts the program that is called and waits until it listens.
    pub(crate) async fn serve(&self) -> Result<Running> {
        let listen = SocketAddr::new(self.site.reachable_by_both(), self.service_port).to_string();
        let command = self.launcher.role(&self.site.server, &["serve", "--listen", &listen]);
        let mut server = self.launcher.start("serve", command)?;
        server.says("ready", READY).await?;
        Ok(server)
    }

    /// Starts `path` and waits until it carries a request. `mesh` is needed for [`Path::Weft`].
    ///
    /// # Errors
    ///
    /// A process that does not start or ends, or no answer in time.
    pub(crate) async fn start(&self, path: Path, mesh: Option<&Mesh>) -> Result<Lane> {
        match path {
            Path::Direct => Ok(Lane {
                target: self.site.server.remote(self.service_port),
                cold_start: None,
                relays: None,
            }),
            Path::Plain => self.start_relays(path, false).await,
            Path::Tls => self.start_relays(path, true).await,
            Path::Weft => {
                let mesh = mesh.context("no mesh was prepared")?;
                self.start_pair(path, mesh.target(), mesh.agents(self)).await
            }
        }
    }

    async fn start_relays(&self, path: Path, encrypt: bool) -> Result<Lane> {
        let (client, server) = (&self.site.client, &self.site.server);
        let target = client.local(self.site.port()?);
        let between = server.remote(self.site.port()?);
        let service = server.local(self.service_port);
        let relay = |place, side, listen: SocketAddr, to: SocketAddr| {
            let (listen, to) = (listen.to_string(), to.to_string());
            let arguments = ["relay", "--side", side, "--listen", &listen, "--to", &to];
            let mut command = self.launcher.role(place, &arguments);
            if encrypt {
                command.arg("--certificates").arg(&self.certificates);
            }
            command
        };
        let commands = [relay(client, "client", target, between), relay(server, "server", between, service)];
        self.start_pair(path, target, commands).await
    }

    /// Starts both commands at once while a probe calls `target`.
    async fn start_pair(&self, path: Path, target: SocketAddr, commands: [Command; 2]) -> Result<Lane> {
        let probe = self.launcher.role(&self.site.client, &["probe", "--to", &target.to_string()]);
        let mut probe = self.launcher.start("probe", probe)?;
        probe.says("ready", READY).await?;

        let start = now();
        let [client, server] = commands;
        let mut client = self.launcher.start_silent(&format!("{}-client", path.name()), client)?;
        let mut server = self.launcher.start_silent(&format!("{}-server", path.name()), server)?;
        let answered = tokio::select! {
            answered = probe.says("answered", FIRST_ANSWER) => answered,
            error = client.ended() => Err(error),
            error = server.ended() => Err(error),
        };
        let cold_start = Some(now().duration_since(start));
        answered
            .with_context(|| format!("{} client{} server{}", path.name(), client.quote(), server.quote()))?;
        Ok(Lane { target, cold_start, relays: Some([client, server]) })
    }
}

impl Lane {
    /// Processor time used so far by the client side and the server side; `None` without relays.
    pub(crate) fn cpu_time(&self) -> Result<Option<[Duration; 2]>> {
        let Some([client, server]) = &self.relays else { return Ok(None) };
        Ok(Some([host::cpu_time(client.pid())?, host::cpu_time(server.pid())?]))
    }

    /// Resident memory in MiB of the larger of the two sides; `None` without relays.
    pub(crate) fn resident_mib(&self) -> Result<Option<f64>> {
        let Some([client, server]) = &self.relays else { return Ok(None) };
        let (client, server) = (host::resident_mib(client.pid())?, host::resident_mib(server.pid())?);
        Ok(Some(client.max(server)))
    }

    /// What the relays said last, as the tail of an error message.
    pub(crate) fn quote(&self) -> String {
        let Some([client, server]) = &self.relays else { return String::new() };
        format!("; client side{}; server side{}", client.quote(), server.quote())
    }

    /// Ends the relays.
    pub(crate) async fn stop(self) {
        if let Some([client, server]) = self.relays {
            client.stop().await;
            server.stop().await;
        }
    }
}
