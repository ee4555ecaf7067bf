//! The order of measurements.
//!
//! Owns the interleaving: in every run each row is measured on every path, one right after the other, and the path
//! that goes first changes from row to row and run to run. So a machine that warms up, or a neighbour that wakes,
//! weighs on all paths alike. Every run starts fresh relays and agents.
//!
//! A failure costs its cell and, if the path did not come up, the path; the rest is measured on.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::host::{self, Machine};
use crate::lane::{Ground, Lane, Path};
use crate::measure::measure;
use crate::pki;
use crate::process::Launcher;
use crate::results::{Cell, NetworkResults, Results};
use crate::row::{Bound, Row};
use crate::site::{Network, Site};
use crate::weft::Mesh;

/// How long relays and agents idle before their memory is read.
const IDLE: Duration = Duration::from_secs(5);

/// How long the machine is watched for other work when no memory is read.
const WATCH: Duration = Duration::from_secs(1);

/// What to measure.
pub(crate) struct Plan {
    pub(crate) networks: Vec<Network>,
    pub(crate) rows: Vec<Row>,
    pub(crate) paths: Vec<Path>,
    pub(crate) runs: u16,
    pub(crate) seconds: u16,
    /// The binary under test.
    pub(crate) weft: PathBuf,
}

/// A plan with a directory to work in, which is removed with it.
pub(crate) struct Campaign {
    plan: Plan,
    work: TempDir,
}

type Cells = BTreeMap<(Row, Path), Cell>;

impl Campaign {
    pub(crate) fn new(plan: Plan) -> Result<Self> {
        let work = tempfile::Builder::new().prefix("weft-bench-").tempdir()?;
        Ok(Self { plan, work })
    }

    /// Measures everything, network by network.
    ///
    /// Cancel by dropping: processes are killed, namespaces and files deleted.
    ///
    /// # Errors
    ///
    /// What stops a whole network: no namespace, no certificates, no program to call. The rest is in the results.
    pub(crate) async fn run(&self) -> Result<Results> {
        let mut networks = Vec::new();
        for network in &self.plan.networks {
            networks.push(self.run_on(*network).await?);
        }
        let Plan { runs, seconds, .. } = self.plan;
        Ok(Results { host: host::describe(), runs, seconds, networks })
    }

    async fn run_on(&self, network: Network) -> Result<NetworkResults> {
        let ground = self.ground(network)?;
        let _service = ground.serve().await?;
        let mut cells = Cells::new();
        let mesh = self.mesh(&ground, network, &mut cells).await;
        let (mut others_busy, mut failed) = (Vec::new(), Vec::new());
        for run in 0..self.plan.runs {
            let label = format!("{} run {}/{}", network.name(), run + 1, self.plan.runs);
            let lanes = self.start(&ground, mesh.as_ref(), &mut cells, &mut failed).await;
            others_busy.push(self.settle().await?);
            self.run_once(&ground, &lanes, run.into(), &label, &mut cells).await;
            for lane in lanes.into_values() {
                lane.stop().await;
            }
        }
        if let Some(mesh) = mesh {
            mesh.stop().await;
        }
        Ok(NetworkResults {
            network,
            description: ground.site.description.clone(),
            rows: self.plan.rows.clone(),
            paths: self.plan.paths.clone(),
            needs_check: self.needs_check(),
            others_busy,
            cells,
        })
    }

    fn ground(&self, network: Network) -> Result<Ground> {
        let directory = self.directory(network);
        let (logs, certificates) = (directory.join("log"), directory.join("tls"));
        for path in [&logs, &certificates] {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        }
        pki::write(&certificates)?;
        let site = Site::make(network)?;
        let service_port = site.port()?;
        Ok(Ground { site, launcher: Launcher::new(logs)?, service_port, certificates })
    }

    /// The control plane that Weft's agents need; a failure is the failure of every row of Weft.
    async fn mesh(&self, ground: &Ground, network: Network, cells: &mut Cells) -> Option<Mesh> {
        if !self.plan.paths.contains(&Path::Weft) {
            return None;
        }
        match Mesh::prepare(ground, &self.plan.weft, &self.directory(network)).await {
            Ok(mesh) => Some(mesh),
            Err(error) => {
                self.fail(cells, Path::Weft, &format!("{error:#}"));
                None
            }
        }
    }

    fn directory(&self, network: Network) -> PathBuf {
        self.work.path().join(network.name())
    }

    /// Starts every path that has not failed before.
    async fn start(
        &self,
        ground: &Ground,
        mesh: Option<&Mesh>,
        cells: &mut Cells,
        failed: &mut Vec<Path>,
    ) -> BTreeMap<Path, Lane> {
        let mut lanes = BTreeMap::new();
        for path in self.measured_paths() {
            let without_mesh = path == Path::Weft && mesh.is_none();
            if without_mesh || failed.contains(&path) {
                continue;
            }
            match ground.start(path, mesh).await {
                Ok(lane) => drop(lanes.insert(path, lane)),
                Err(error) => {
                    self.fail(cells, path, &format!("{error:#}"));
                    failed.push(path);
                }
            }
        }
        lanes
    }

    /// Lets everything come to rest and returns how busy the machine was meanwhile.
    async fn settle(&self) -> Result<f64> {
        let before = Machine::read()?;
        sleep(if self.plan.rows.contains(&Row::Memory) { IDLE } else { WATCH }).await;
        Ok(Machine::read()?.busy_since(before))
    }

    async fn run_once(
        &self,
        ground: &Ground,
        lanes: &BTreeMap<Path, Lane>,
        run: usize,
        label: &str,
        cells: &mut Cells,
    ) {
        for (index, row) in self.measured_rows().into_iter().enumerate() {
            let mut paths: Vec<Path> =
                lanes.keys().copied().filter(|path| self.is_measured(row, *path)).collect();
            if !paths.is_empty() {
                let first = (run + index) % paths.len();
                paths.rotate_left(first);
            }
            for path in paths {
                let cell = cells.entry((row, path)).or_default();
                match measure(ground, &lanes[&path], row, self.plan.seconds).await {
                    Ok(None) => {}
                    Ok(Some(sample)) => {
                        eprintln!(
                            "{label}  {} {} {:.2} {}",
                            row.name(),
                            path.name(),
                            sample.value,
                            row.unit()
                        );
                        cell.samples.push(sample);
                    }
                    Err(error) => {
                        eprintln!("{label}  {} {} failed: {error:#}", row.name(), path.name());
                        cell.error.get_or_insert_with(|| format!("{error:#}"));
                    }
                }
            }
        }
    }

    /// Marks every row of `path` as failed.
    fn fail(&self, cells: &mut Cells, path: Path, error: &str) {
        for row in self.measured_rows() {
            if self.is_measured(row, path) {
                cells.entry((row, path)).or_default().error.get_or_insert_with(|| error.to_owned());
            }
        }
    }

    /// Whether a ratio to the TLS baseline will be printed, so that the baseline must be checked.
    fn needs_check(&self) -> bool {
        let compares = |row: &Row| matches!(row.bound(), Some(Bound::AtLeastOfTls(_)));
        self.plan.paths.contains(&Path::Tls) && self.plan.rows.iter().any(compares)
    }

    /// The rows asked for, and the one that checks the baseline. Those without a load come first: memory is that of a
    /// process which has carried one request, not what its allocator kept of a gigabyte.
    fn measured_rows(&self) -> Vec<Row> {
        let wanted = |row: &Row| self.plan.rows.contains(row) || (self.needs_check() && *row == Row::Bulk1);
        let mut rows: Vec<Row> = Row::ALL.into_iter().filter(wanted).collect();
        rows.sort_by_key(|row| row.load().is_some());
        rows
    }

    /// The paths asked for, and the one that checks the baseline.
    fn measured_paths(&self) -> Vec<Path> {
        let wanted =
            |path: &Path| self.plan.paths.contains(path) || (self.needs_check() && *path == Path::Direct);
        Path::ALL.into_iter().filter(wanted).collect()
    }

    fn is_measured(&self, row: Row, path: Path) -> bool {
        let asked = self.plan.rows.contains(&row) && self.plan.paths.contains(&path);
        let checks = self.needs_check() && row == Row::Bulk1 && matches!(path, Path::Tls | Path::Direct);
        (asked || checks) && (path != Path::Direct || row.exists_directly())
    }
}
