//! One line per flow: who called what, what was decided and by which rule, what moved, how it ended.
//!
//! Owns the JSON of observability.md 5 for flows of bytes, and the way of a line to its file: a bounded queue that never
//! makes a flow wait. A line that finds no room is counted, not awaited.

use std::{
    io::Write,
    sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use prometheus_client::metrics::counter::Counter;
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use weft_policy::code::CodeId;

use super::metrics::Decided;
use crate::relay::Side;

/// Lines that may wait for the disk: a second of 4,000 flows a second.
pub const DEFAULT_QUEUE: usize = 4_096;

/// One flow, ended.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowRecord {
    /// When it began.
    pub started: SystemTime,
    /// How long it lived.
    pub duration: Duration,
    /// Which end of it this agent was.
    pub side: Side,
    /// How the program said where it wants to go, or `tunnel`.
    pub protocol: &'static str,
    /// Who called.
    pub source: Party,
    /// Who was called.
    pub destination: Party,
    /// What was decided; `None` when it did not come to that.
    pub decision: Option<Decided>,
    /// The policy and rule that decided.
    pub rule: Option<(String, String)>,
    /// The code of a refusal or a bad end.
    pub code: Option<CodeId>,
    /// Bytes from the caller.
    pub bytes_in: u64,
    /// Bytes to the caller.
    pub bytes_out: u64,
    /// How it ended: [`crate::relay::End::label`], or the class of an error.
    pub close: &'static str,
    /// The tunnel it was on.
    pub tunnel: Option<u64>,
    /// Endpoints that were tried.
    pub attempts: u32,
}

/// One end of a flow.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Party {
    /// Its SPIFFE ID.
    pub id: Option<String>,
    /// The service: what was called, or what the caller is.
    pub service: Option<String>,
    /// The name of its Workload.
    pub workload: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its cluster.
    pub cluster: Option<String>,
    /// Its address as this agent sees it.
    pub address: Option<String>,
}

impl FlowRecord {
    /// The line, without its end. JSON escapes what a peer might have put into a name.
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut line = Map::new();
        let time = OffsetDateTime::from(self.started).format(&Rfc3339).unwrap_or_default();
        let mut put = |key: &str, value: Value| {
            if !value.is_null() {
                line.insert(key.to_owned(), value);
            }
        };
        put("time", time.into());
        put("duration_ms", (self.duration.as_micros() as f64 / 1_000.0).into());
        put("direction", self.side.as_str().into());
        put("protocol", self.protocol.into());
        put("bytes_in", self.bytes_in.into());
        put("bytes_out", self.bytes_out.into());
        for (end, party) in [("src", &self.source), ("dst", &self.destination)] {
            for (field, value) in party.fields() {
                put(&format!("{end}.{field}"), value.map_or(Value::Null, Value::from));
            }
        }
        put("decision", self.decision.map_or(Value::Null, |decision| decision.as_str().into()));
        if let Some((policy, rule)) = &self.rule {
            put("policy", policy.as_str().into());
            put("rule", rule.as_str().into());
        }
        put("code", self.code.map_or(Value::Null, |code| code.as_str().into()));
        put("close", self.close.into());
        put("tunnel.id", self.tunnel.map_or(Value::Null, Value::from));
        put("attempt", self.attempts.into());
        Value::Object(line).to_string()
    }
}

impl Party {
    fn fields(&self) -> [(&'static str, Option<&str>); 6] {
        [
            ("id", self.id.as_deref()),
            ("service", self.service.as_deref()),
            ("workload", self.workload.as_deref()),
            ("namespace", self.namespace.as_deref()),
            ("cluster", self.cluster.as_deref()),
            ("addr", self.address.as_deref()),
        ]
    }
}

/// Where flows leave their lines. A clone writes to the same place.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: Option<SyncSender<Message>>,
    dropped: Counter,
}

/// The writing thread; lines are written as long as it lives.
#[derive(Debug)]
pub struct LogWriter {
    queue: SyncSender<Message>,
    thread: JoinHandle<()>,
}

enum Message {
    Line(String),
    /// Everything before is to be written; then the sender is dropped.
    Stop(mpsc::Sender<()>),
}

impl AccessLog {
    /// A log that writes nothing.
    #[must_use]
    pub fn off() -> Self {
        Self { queue: None, dropped: Counter::default() }
    }

    /// Starts the thread that writes to `out`. At most `lines` wait; beyond them a line is lost and counted in `dropped`.
    ///
    /// # Errors
    ///
    /// When the thread cannot be made.
    pub fn start(
        out: impl Write + Send + 'static,
        lines: usize,
        dropped: Counter,
    ) -> std::io::Result<(Self, LogWriter)> {
        let (queue, waiting) = mpsc::sync_channel(lines);
        let lost = dropped.clone();
        let thread = thread::Builder::new()
            .name("weft-access-log".to_owned())
            .spawn(move || write_all(out, &waiting, &lost))?;
        let writer = LogWriter { queue: queue.clone(), thread };
        Ok((Self { queue: Some(queue), dropped }, writer))
    }

    /// Leaves a line. Never waits.
    pub fn record(&self, flow: &FlowRecord) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Message::Line(flow.to_line())).is_err() {
            self.dropped.inc();
        }
    }
}

impl LogWriter {
    /// Waits up to `patience` until all lines so far are written, and ends the thread.
    pub fn finish(self, patience: Duration) {
        let (held, done) = mpsc::channel();
        if self.queue.send(Message::Stop(held)).is_err() {
            return; // it has ended already, with nothing more to write
        }
        if done.recv_timeout(patience) != Err(RecvTimeoutError::Timeout) {
            // A panic in the writer was told by the panic itself.
            let _ = self.thread.join();
        }
    }
}

fn write_all(mut out: impl Write, waiting: &Receiver<Message>, lost: &Counter) {
    let mut batch = Vec::new();
    let mut lines = 0;
    while let Ok(first) = waiting.recv() {
        let mut next = Ok(first);
        let mut stop = None;
        while let Ok(message) = next {
            match message {
                Message::Line(line) => {
                    batch.extend_from_slice(line.as_bytes());
                    batch.push(b'\n');
                    lines += 1;
                }
                Message::Stop(held) => stop = Some(held),
            }
            let full = batch.len() >= BATCH_BYTES || stop.is_some();
            next = if full { Err(TryRecvError::Empty) } else { waiting.try_recv() };
        }
        if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
            lost.inc_by(lines);
        }
        batch.clear();
        lines = 0;
        if stop.is_some() {
            return;
        }
    }
}

/// Lines are written together up to this; a pipe takes as much at once.
const BATCH_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use weft_policy::code;

    use super::*;

    fn record() -> FlowRecord {
        FlowRecord {
            started: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            duration: Duration::from_micros(2_250),
            side: Side::Service,
            protocol: "tunnel",
            source: Party { id: Some("spiffe://demo/ns/shop/sa/order".into()), ..Party::default() },
            destination: Party {
                service: Some("charge.shop:80".into()),
                workload: Some("evil\n\u{1b}[2J".into()),
                ..Party::default()
            },
            decision: Some(Decided::Deny),
            rule: Some(("no-strangers".into(), "any".into())),
            code: Some(code::DENY_RULE),
            bytes_in: 3,
            bytes_out: 0,
            close: "denied",
            tunnel: Some(9),
            attempts: 1,
        }
    }

    #[test]
    fn a_line_has_the_fields_of_the_observability_page_in_their_order() {
        assert_eq!(
            record().to_line(),
            "{\"time\":\"1970-01-01T00:00:01.5Z\",\"duration_ms\":2.25,\"direction\":\"inbound\",\
             \"protocol\":\"tunnel\",\"bytes_in\":3,\"bytes_out\":0,\
             \"src.id\":\"spiffe://demo/ns/shop/sa/order\",\"dst.service\":\"charge.shop:80\",\
             \"dst.workload\":\"evil\\n\\u001b[2J\",\"decision\":\"deny\",\"policy\":\"no-strangers\",\
             \"rule\":\"any\",\"code\":\"W2102\",\"close\":\"denied\",\"tunnel.id\":9,\"attempt\":1}"
        );
    }

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_before_the_writer_ends() {
        let out = Shared::default();
        let (log, writer) = AccessLog::start(out.clone(), 1_000, Counter::default()).unwrap();
        for _ in 0..500 {
            log.record(&record());
        }
        writer.finish(Duration::from_secs(10));
        assert_eq!(out.0.lock().unwrap().iter().filter(|byte| **byte == b'\n').count(), 500);
    }

    /// A disk that takes nothing until it is let go.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_disk_costs_lines_and_never_time() {
        let (release, stuck) = mpsc::channel();
        let dropped = Counter::<u64>::default();
        let (log, writer) = AccessLog::start(Stuck(stuck), 10, dropped.clone()).unwrap();
        for _ in 0..5_000 {
            log.record(&record());
        }
        assert!(dropped.get() > 0);
        drop(release);
        writer.finish(Duration::from_secs(10));
        AccessLog::off().record(&record());
    }
}
