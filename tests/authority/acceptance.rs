//! The acceptance run of security.md 3.4: certificates that live for seconds, issuers and roots that live not much longer,
//! two servers over one etcd with roots of their own, killed in turn, and calls and flows all the time.
//!
//! The short form takes three minutes; `tests/long authority` asks for an hour by `WEFT_LONG_AUTHORITY`, in seconds. A
//! flow that stays in its tunnel ends with the certificates of its ends (security.md 3.6, strict), so a long flow is one
//! that is opened again at once, at the first try.

use std::time::Duration;

use serde_json::Value;
use weft_tests::app::loopback;
use weft_tests::eventually::{Stopwatch, throughout};
use weft_tests::load::{Traffic, failed_since};
use weft_tests::mesh::{CTL, Mesh, Second};

use super::told::{Flows, refusals, refused_handshakes, sequences};
use super::{LONG, UPSTREAM, describe, programs_and_first_calls};

/// Leaves of ten seconds, as security.md has them.
const LIVES: &str = "{leafTtl: 10s, intermediateTtl: 30s, rootTtl: 90s, allowShortLifetimes: true}";
const CALLERS: [&str; 3] = ["hosta", "hostb", "hostc"];
/// The short form: each root is replaced every 45 s, and each server is killed three times.
const SHORT: Duration = Duration::from_secs(180);
/// Between two looks at what the servers say.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The least life of a flow: tunnels are replaced that long before they end, and a little more (`overlay::pool::plan`).
const LEAST_FLOW: Duration = Duration::from_millis(500);
/// From one kill to the next, of the other server.
const KILL_EVERY: Duration = Duration::from_secs(25);
/// For how long a killed server is away: its agents have gone to the other one by then.
const AWAY: Duration = Duration::from_secs(5);

#[test]
fn roots_issuers_and_leaves_rotate_servers_are_killed_in_turn_and_no_call_fails() {
    let asked = std::env::var("WEFT_LONG_AUTHORITY").ok().and_then(|text| text.parse().ok());
    let during = asked.map_or(SHORT, Duration::from_secs);
    let mesh = describe(LIVES, &CALLERS).etcd().start();
    let _programs = programs_and_first_calls(&mesh, &CALLERS);
    let mut servers = Servers::of(mesh);
    let traffic = CALLERS.map(|host| Traffic::start(servers.mesh.host(host), loopback(UPSTREAM)));
    let flows = CALLERS.map(|host| Flows::start(servers.mesh.host(host), loopback(LONG)));

    throughout("calls, rotations and kills go on", during, || {
        // At once, so that what the agents said last is about it.
        match CALLERS.iter().zip(&flows).find(|(_, flows)| flows.has_failed()) {
            Some((host, _)) => {
                Err(format!("a flow of {host} failed: {:?}", refusals(&servers.mesh.agent_log(host))))
            }
            None => servers.go_on(),
        }
    });

    let lives: Vec<Duration> = flows.into_iter().flat_map(Flows::stop).collect();
    let calls: Vec<_> = traffic.into_iter().flat_map(Traffic::stop).collect();
    let failed = failed_since(&calls, Duration::ZERO);
    let told: String = CALLERS.iter().flat_map(|host| refusals(&servers.mesh.agent_log(host))).collect();
    assert!(failed.is_empty(), "{} of {} calls failed: {failed:?}\n{told}", failed.len(), calls.len());
    let least = lives.iter().min().copied().unwrap_or(during);
    assert!(least >= LEAST_FLOW, "a flow lasted {least:?} only");
    for host in CALLERS.iter().chain(&["served"]) {
        let refused = refused_handshakes(&servers.mesh.metrics(host).expect("metrics are served"));
        assert_eq!(refused, Vec::<String>::new(), "handshakes of {host} failed");
        let told = sequences(&servers.mesh.agent_log(host));
        assert!(told.is_sorted() && told.len() > 1, "bundles went back at {host}: {told:?}");
    }
    servers.check(during);
    println!(
        "seed: {} calls, {} kills, roots and issuers of the servers: {:?} {:?}",
        calls.len(),
        servers.kills,
        servers.roots.each_ref().map(Vec::len),
        servers.issuers.each_ref().map(Vec::len)
    );
}

/// Both servers, and what they have said.
struct Servers {
    mesh: Mesh,
    second: Second,
    watch: Stopwatch,
    /// The one that is away, and since when.
    away: Option<(usize, Duration)>,
    kills: u32,
    sequence: [u64; 2],
    roots: [Vec<String>; 2],
    issuers: [Vec<String>; 2],
}

impl Servers {
    #[track_caller]
    fn of(mesh: Mesh) -> Self {
        let token = mesh.on_server(&["token", "create", "--for", "server"]).expect_success().stdout;
        let mut second = Second::configure(&mesh);
        second.join(&mesh, &token).expect_success();
        second.start(&mesh);
        let watch = Stopwatch::start();
        Self {
            mesh,
            second,
            watch,
            away: None,
            kills: 0,
            sequence: [0; 2],
            roots: Default::default(),
            issuers: Default::default(),
        }
    }

    /// A look at each server that is there, and a kill or a start when it is time.
    fn go_on(&mut self) -> Result<(), String> {
        std::thread::sleep(LOOK_EVERY);
        self.kill_or_start();
        for server in [0, 1] {
            if self.away.is_none_or(|(away, _)| away != server) {
                self.look(server)?;
            }
        }
        Ok(())
    }

    fn kill_or_start(&mut self) {
        let now = self.watch.elapsed();
        match self.away {
            None if now >= KILL_EVERY * (self.kills + 1) => {
                let server = usize::from(self.kills % 2 == 1);
                if server == 0 {
                    self.mesh.kill_server()
                } else {
                    self.second.kill()
                }
                self.kills += 1;
                self.away = Some((server, now));
            }
            Some((server, since)) if now >= since + AWAY => {
                if server == 0 {
                    self.mesh.start_server()
                } else {
                    self.second.start(&self.mesh)
                }
                self.away = None;
            }
            None | Some(_) => {}
        }
    }

    /// What the server says of its roots; one that is about to start says nothing yet.
    fn look(&mut self, server: usize) -> Result<(), String> {
        const SHOW: [&str; 5] = ["identity", "ca", "show", "-o", "json"];
        let shown = match server {
            0 => self.mesh.weft(CTL, &SHOW).run(),
            _ => self.second.run(&self.mesh, &SHOW, ""),
        };
        if shown.code() != Some(0) {
            return Ok(());
        }
        let told: Value = serde_json::from_str(&shown.stdout).map_err(|error| error.to_string())?;
        let sequence = told["bundleSequence"].as_u64().unwrap_or_default();
        if sequence < self.sequence[server] {
            return Err(format!("the bundle went back from {} to {sequence}", self.sequence[server]));
        }
        self.sequence[server] = sequence;
        note(&mut self.issuers[server], told["intermediateNotAfter"].as_str());
        let roots = told["roots"].as_array().cloned().unwrap_or_default();
        let active: Vec<_> = roots.iter().filter(|root| root["state"] == "active").collect();
        let [active] = active[..] else { return Err(format!("{} roots are active: {told}", active.len())) };
        note(&mut self.roots[server], active["sha256"].as_str());
        Ok(())
    }

    /// At least the rotations that the lives ask for, of each server: a root every 90 s at the latest, an issuer every 30 s.
    #[track_caller]
    fn check(&self, during: Duration) {
        let at_least = |every: u64| usize::try_from(during.as_secs() / every).expect("it is small");
        for (roots, issuers) in self.roots.iter().zip(&self.issuers) {
            assert!(roots.len() > at_least(90), "{} roots in {during:?}", roots.len());
            assert!(issuers.len() > at_least(30), "{} issuers in {during:?}", issuers.len());
        }
        let kills = u32::try_from(during.as_secs() / KILL_EVERY.as_secs()).expect("it is small") - 1;
        assert!(self.kills >= kills, "{} kills", self.kills);
    }
}

fn note(seen: &mut Vec<String>, value: Option<&str>) {
    if let Some(value) = value
        && seen.last().is_none_or(|last| last != value)
    {
        seen.push(value.to_owned());
    }
}
