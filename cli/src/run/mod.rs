//! Long-running commands: the planes as processes, and the demo that holds both.

pub(crate) mod agent;
pub(crate) mod background;
pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod joined;
pub(crate) mod logs;
pub(crate) mod memory;
pub(crate) mod secrecy;
pub(crate) mod server;
pub(crate) mod settings;
pub(crate) mod signals;
pub(crate) mod up;
