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
use serde::Serialize;
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
        let mut line = Line::begin(self.started);
        line.put("duration_ms", &(self.duration.as_micros() as f64 / 1_000.0));
        line.put("direction", self.side.as_str());
        line.put("protocol", self.protocol);
        line.put("bytes_in", &self.bytes_in);
        line.put("bytes_out", &self.bytes_out);
        self.source.write(
            &mut line,
            ["src.id", "src.service", "src.workload", "src.namespace", "src.cluster", "src.addr"],
        );
        self.destination.write(
            &mut line,
            ["dst.id", "dst.service", "dst.workload", "dst.namespace", "dst.cluster", "dst.addr"],
        );
        line.put_some("decision", self.decision.map(Decided::as_str));
        if let Some((policy, rule)) = &self.rule {
            line.put("policy", policy);
            line.put("rule", rule);
        }
        line.put_some("code", self.code.map(CodeId::as_str));
        line.put("close", self.close);
        line.put_some("tunnel.id", self.tunnel);
        line.put("attempt", &self.attempts);
        line.end()
    }
}

/// A JSON object on its way, written in place: a map of values would cost forty allocations a flow. Keys are ours, so they
/// need no escaping, and each is put once.
struct Line(Vec<u8>);

impl Line {
    fn begin(time: SystemTime) -> Self {
        let mut text = Vec::with_capacity(LINE_BYTES);
        text.extend_from_slice(b"{\"time\":\"");
        // Years beyond four digits have no such form: then the time is left empty.
        let _ = OffsetDateTime::from(time).format_into(&mut text, &Rfc3339);
        text.push(b'"');
        Self(text)
    }

    fn put<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
        // Writing plain values to memory cannot fail.
        let _ = serde_json::to_writer(&mut self.0, value);
    }

    fn put_some<T: Serialize>(&mut self, key: &str, value: Option<T>) {
        if let Some(value) = value {
            self.put(key, &value);
        }
    }

    fn end(mut self) -> String {
        self.0.push(b'}');
        // serde_json and time write UTF-8 only.
        String::from_utf8(self.0).unwrap_or_default()
    }
}

impl Party {
    fn write(&self, line: &mut Line, keys: [&str; 6]) {
        let values = [&self.id, &self.service, &self.workload, &self.namespace, &self.cluster, &self.address];
        for (key, value) in keys.into_iter().zip(values) {
            line.put_some(key, value.as_deref());
        }
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
        // While it sleeps, a flow that leaves a line wakes nobody.
        thread::sleep(GATHER);
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

/// Lines of so long are written together. At the default queue it would take 400,000 flows a second to fill it meanwhile;
/// without it, waking the thread and its `write` cost a tenth of the CPU of a short flow.
const GATHER: Duration = Duration::from_millis(10);

/// A usual line has 500 to 600 bytes.
const LINE_BYTES: usize = 768;

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
