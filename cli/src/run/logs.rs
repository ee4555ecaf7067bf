//! Where the logs of long-running commands go: standard error, as text or JSON lines, filtered by `RUST_LOG`.

use std::sync::OnceLock;

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::args::{Global, LogFormat};

/// What is logged when `RUST_LOG` says nothing.
const DEFAULT_FILTER: &str =
    "info,h2=warn,hyper=warn,quinn=warn,quinn_proto=warn,rustls=warn,tonic=warn,tower=warn";

/// What `-vv` adds: each step, and the calls to server and agent.
const VERBOSE_FILTER: &str =
    "debug,h2=info,hyper=debug,quinn=info,quinn_proto=info,rustls=info,tonic=debug,tower=debug";

/// Starts logging, once for the process.
pub(crate) fn start(global: &Global) {
    static STARTED: OnceLock<()> = OnceLock::new();
    let (format, verbose) = (global.log_format, global.verbose);
    STARTED.get_or_init(|| {
        let standard = if verbose > 1 { VERBOSE_FILTER } else { DEFAULT_FILTER };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(standard));
        let registry = tracing_subscriber::registry().with(filter);
        match format {
            LogFormat::Text => {
                registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(false)).init()
            }
            LogFormat::Json => registry.with(fmt::layer().json().with_writer(std::io::stderr)).init(),
        }
    });
}
