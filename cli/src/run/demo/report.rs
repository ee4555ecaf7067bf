//! What the demo prints: one line each with its time; with `-o json` one object a check.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::json;
use weft_node::clock::Clock;

use super::mesh::DemoMesh;
use crate::{error::CliError, output::Output};

/// Collects and prints the outcome of each check.
pub(super) struct Report {
    output: Output,
    clock: Clock,
    started: Instant,
    failed: usize,
    checks: usize,
}

impl Report {
    /// Starts the demo's clock.
    pub(super) fn new(output: Output) -> Self {
        let clock = Clock::system();
        let started = clock.now();
        Self { output, clock, started, failed: 0, checks: 0 }
    }

    /// Time since the demo began.
    pub(super) fn elapsed(&self) -> Duration {
        self.clock.now().saturating_duration_since(self.started)
    }

    /// The first line.
    pub(super) fn title(&self, state: &Path) {
        if !self.output.is_structured() {
            let uid = nix::unistd::getuid();
            self.output.talk(format!(
                "weft demo: everything below runs in this one process, as uid {uid}, state in {}",
                state.display()
            ));
        }
    }

    /// A finished step of the start.
    pub(super) fn step(&self, what: &str, took: Duration) {
        if !self.output.is_structured() {
            self.output.done(format!("{what:<78} {:>8}", millis(took)));
        }
    }

    /// Runs a check, times it and prints its line.
    pub(super) fn check(
        &mut self,
        name: &str,
        run: impl FnOnce(&Clock) -> Result<String, String>,
    ) -> Result<(), CliError> {
        let start = self.clock.now();
        let outcome = run(&self.clock);
        let took = self.clock.now().saturating_duration_since(start);
        let ok = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|why| why);
        self.checks += 1;
        self.failed += usize::from(!ok);
        if self.output.is_structured() {
            let duration_ms = (took.as_secs_f64() * 1e6).round() / 1e3;
            return self
                .output
                .json_line(&json!({"name": name, "ok": ok, "detail": detail, "duration_ms": duration_ms}));
        }
        let mark = if ok { "✓" } else { "✗" };
        let mut lines = detail.lines();
        let first = lines.next().unwrap_or_default();
        self.output.line(format!("{:>2}. {mark} {name:<28} {:>8}   {first}", self.checks, millis(took)))?;
        for line in lines {
            self.output.line(format!("{:>46}{line}", ""))?;
        }
        Ok(())
    }

    /// 0 when every check held, else 1.
    pub(super) fn outcome(&self) -> ExitCode {
        if !self.output.is_structured() {
            self.output.talk(format!("{} of {} checks hold", self.checks - self.failed, self.checks));
        }
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
    }

    /// What can be tried while the mesh is up.
    pub(super) fn play(&self, mesh: &DemoMesh) {
        let state = mesh.state_dir().display();
        self.output
            .talk(format!("the mesh stays up until Ctrl-C; in another shell: export WEFT_STATE_DIR={state}"));
        self.output.talk("  weft status");
        self.output
            .talk("  weft call charge.shop /api/v1/charge -X POST -d '{\"cents\": 1250}' --as shop/order");
        self.output.talk("  weft call charge.shop / --as shop/guest      denied; then: weft explain last");
        self.output.talk("  weft policy allow guest charge -n shop       and call again");
        self.output.talk(format!("  metrics: curl http://{}/metrics", mesh.metrics_address()));
    }
}

fn millis(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    if ms < 100.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}
