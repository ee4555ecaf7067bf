//! A second server on the host of the first: a state directory and ports of its own, and the same etcd.

use std::fs;
use std::path::PathBuf;

use super::{CTL, Mesh, server_config, state_dir};
use crate::process::{Finished, Process};

/// Where the second server tells its metrics and its readiness.
pub const SECOND_METRICS: u16 = 7412;

/// See the module.
#[derive(Debug)]
pub struct Second {
    config: PathBuf,
    process: Option<Process>,
}

impl Second {
    /// Writes its configuration beside that of the first, which must keep the mesh in etcd.
    ///
    /// # Panics
    ///
    /// If a file cannot be read or written.
    #[track_caller]
    pub fn configure(mesh: &Mesh) -> Self {
        let host = mesh.host(CTL);
        let text = fs::read_to_string(server_config(host)).expect("the first server has one");
        let changes = [
            (":7444", ":7445"),
            (":7401", ":7411"),
            (":7402", ":7412"),
            ("state/server", "state/second"),
            ("state/run", "state/run2"),
        ];
        let text = changes.iter().fold(text, |text, (first, second)| text.replace(first, second));
        let config = host.folder().join("second.yaml");
        fs::write(&config, text).expect("the folder is ours");
        Self { config, process: None }
    }

    /// `weft server join` with `token`.
    pub fn join(&self, mesh: &Mesh, token: &str) -> Finished {
        let program = mesh.weft(CTL, &["server", "join", "--token-file", "-", "--config"]);
        program.arg(&self.config).input(token).run()
    }

    /// `weft server run` that is expected to end by itself.
    pub fn try_run(&self, mesh: &Mesh) -> Finished {
        mesh.weft(CTL, &["server", "run", "--config"]).arg(&self.config).run()
    }

    /// Starts it, without waiting for anything.
    #[track_caller]
    pub fn start(&mut self, mesh: &Mesh) {
        self.process = Some(mesh.weft(CTL, &["server", "run", "--config"]).arg(&self.config).start());
    }

    /// Kills it as `kill -9` does.
    ///
    /// # Panics
    ///
    /// If it does not run.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// The process.
    ///
    /// # Panics
    ///
    /// If it does not run.
    #[track_caller]
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// A command of an administrator who asks this server, with `input`.
    #[track_caller]
    pub fn run(&self, mesh: &Mesh, args: &[&str], input: &str) -> Finished {
        let socket = state_dir(mesh.host(CTL)).join("run2/server.sock");
        mesh.weft(CTL, &["--server"]).arg(socket).args(args).input(input).run()
    }
}
