//! What the agent tells about itself: counters ([`metrics`]) and one line per flow ([`access_log`]).
//!
//! Owns names, labels and their bounds; observability.md is the specification. Spans come later and have their place
//! here. Tunnels count for themselves in `weft_overlay::OverlayMetrics`.

pub mod access_log;
pub mod family;
pub mod log_file;
pub mod metrics;
mod seldom;

pub use access_log::{AccessLog, FlowRecord, LogWriter, Party};
pub use log_file::LogFile;
pub use metrics::NodeMetrics;
pub(crate) use seldom::Seldom;
