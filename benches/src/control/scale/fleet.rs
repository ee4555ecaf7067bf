//! Many simulated agents in this process, in blocks that do not depend on each other: growing a mesh by a block changes
//! nothing for the agents of another.
//!
//! In a block there are as many services as agents; each agent serves ten and calls ten, and each service has ten endpoints.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::task::JoinSet;

use super::agent::{Agent, Node, Stream, Workload};
use super::board::{AT_MOST, Board};
use super::person::{self, Person};
use crate::plane::Plane;
use crate::{clock, micros};

/// Workloads of one agent, endpoints of one service, and services that one agent calls.
pub(super) const EACH: usize = 10;
/// Agents that join or register at the same time.
const AT_ONCE: usize = 32;
/// Changes of endpoints that are under way at the same time: so many that a slow server does not slow them down.
const CHANGES_AT_ONCE: usize = 1_000;
/// A withdrawn endpoint comes back after this time at the earliest.
const AWAY: Duration = Duration::from_millis(250);
/// Coprime to every number of endpoints, which are multiples of a hundred: walks through all, from agent to agent.
const STRIDE: usize = 7_919;

/// See the module.
pub(super) struct Fleet {
    agents: Vec<Agent>,
    board: Arc<Board>,
    streams: JoinSet<()>,
}

impl Fleet {
    pub(super) fn new() -> Self {
        Self { agents: Vec::new(), board: Arc::default(), streams: JoinSet::new() }
    }

    pub(super) fn board(&self) -> &Arc<Board> {
        &self.board
    }

    pub(super) fn agents(&self) -> usize {
        self.agents.len()
    }

    /// Adds a block of `count` services and agents, and waits until all are connected and registered.
    pub(super) async fn grow(&mut self, count: usize, person: &mut Person, plane: &Plane) -> Result<()> {
        let first = self.agents.len();
        let caller = |number| service(first + (number + count / 2) % count);
        let objects =
            (0..count).flat_map(|number| person::service(&service(first + number), &caller(number)));
        let objects: Vec<_> = objects.collect();
        person.apply(&objects).await?;
        let mut joining = JoinSet::new();
        for number in 0..count {
            let node = node(first, number, count);
            let services = node.workloads.iter().map(|workload| workload.service.clone());
            let token = person.token(&node.name, services.collect()).await?;
            let (server, board) = (plane.control(), Arc::clone(&self.board));
            joining.spawn(async move { Agent::join(node, &token, server, &board).await });
            if joining.len() >= AT_ONCE {
                self.take(joining.join_next().await.context("there are some")???);
            }
            eprint!("\r{} of {} agents", self.agents.len(), first + count);
        }
        while let Some(joined) = joining.join_next().await {
            self.take(joined??);
        }
        self.agents.sort_by_key(|agent| agent.node.number);
        eprintln!("\r{} agents are connected; they register", self.agents.len());
        self.register(first).await
    }

    fn take(&mut self, (agent, stream): (Agent, Stream)) {
        self.agents.push(agent);
        let board = Arc::clone(&self.board);
        self.streams.spawn(async move {
            if let Err(error) = stream.run().await {
                board.fail(&error);
            }
        });
    }

    async fn register(&self, first: usize) -> Result<()> {
        let mut calls = JoinSet::new();
        for agent in &self.agents[first..] {
            if calls.len() >= AT_ONCE {
                calls.join_next().await.context("there are calls")???;
            }
            let agent = agent.clone();
            calls.spawn(async move {
                for workload in &agent.node.workloads {
                    agent.register(workload).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(call) = calls.join_next().await {
            call??;
        }
        Ok(())
    }

    /// Waits until nothing has been told to anybody for a while.
    pub(super) async fn settle(&self) -> Result<()> {
        let until = clock::now() + AT_MOST;
        let mut before = None;
        loop {
            self.board.check()?;
            let now = self.board.updates();
            if before.replace(now) == Some(now) {
                return Ok(());
            }
            ensure!(clock::now() < until, "the agents are told something all the time");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Withdraws endpoints and registers them again, `rate` changes a second, until `until`. Then all are registered.
    /// Says how long each call took, in microseconds.
    pub(super) async fn churn(&self, rate: u32, until: Instant) -> Result<Vec<u32>> {
        let endpoints = self.agents.len() * EACH;
        let away: Arc<Mutex<VecDeque<(Instant, usize)>>> = Arc::default();
        let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
        let mut took = Vec::new();
        let mut calls = JoinSet::new();
        let mut next = 0;
        let mut withdraws = true;
        while clock::now() < until {
            tick.tick().await;
            let back = if withdraws { None } else { due(&away, AWAY) };
            withdraws = !withdraws;
            let (endpoint, returns) = match back {
                Some(endpoint) => (endpoint, true),
                None => (next % endpoints * STRIDE % endpoints, false),
            };
            next += usize::from(!returns);
            self.change(&mut calls, endpoint, returns, &away);
            while let Some(call) = calls.try_join_next() {
                took.push(call??);
            }
            if calls.len() >= CHANGES_AT_ONCE {
                took.push(calls.join_next().await.context("there are calls")???);
            }
        }
        while let Some(call) = calls.join_next().await {
            took.push(call??);
        }
        while let Some(endpoint) = due(&away, Duration::ZERO) {
            let agent = &self.agents[endpoint / EACH];
            agent.register(&agent.node.workloads[endpoint % EACH]).await?;
        }
        Ok(took)
    }

    /// Changes one endpoint. The call says how long it took, in microseconds.
    fn change(
        &self,
        calls: &mut JoinSet<Result<u32>>,
        endpoint: usize,
        returns: bool,
        away: &Arc<Mutex<VecDeque<(Instant, usize)>>>,
    ) {
        let (agent, board, away) =
            (self.agents[endpoint / EACH].clone(), Arc::clone(&self.board), Arc::clone(away));
        calls.spawn(async move {
            let workload = &agent.node.workloads[endpoint % EACH];
            board.begin(&workload.name);
            let began = clock::now();
            if returns {
                agent.register(workload).await?;
            } else {
                agent.withdraw(workload).await?;
                away.lock().unwrap_or_else(PoisonError::into_inner).push_back((clock::now(), endpoint));
            }
            Ok(micros(clock::now().saturating_duration_since(began)))
        });
    }
}

/// The endpoint that has been away longest, if it has been for `least`.
fn due(away: &Mutex<VecDeque<(Instant, usize)>>, least: Duration) -> Option<usize> {
    let mut away = away.lock().unwrap_or_else(PoisonError::into_inner);
    let (since, endpoint) = *away.front()?;
    if clock::now().saturating_duration_since(since) < least {
        return None;
    }
    away.pop_front();
    Some(endpoint)
}

/// The agent of that number in the block of `count` that begins at `first`.
fn node(first: usize, number: usize, count: usize) -> Node {
    let step = count / EACH;
    let name = format!("node{:04}", first + number);
    let of = |shift: usize| move |slot: usize| service(first + (number + shift + slot * step) % count);
    let workload = |service: String| Workload { name: format!("{service}-{name}"), service };
    let workloads = (0..EACH).map(of(0)).map(workload).collect();
    Node {
        number: first + number,
        name: name.clone(),
        workloads,
        calls: (0..EACH).map(of(step / 2)).collect(),
    }
}

/// The service of that number.
pub(super) fn service(number: usize) -> String {
    format!("svc{number:04}")
}
