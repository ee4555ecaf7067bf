//! Programs in the mesh: `weft run` starts one, `weft call` is one for a moment.

pub(crate) mod call;
pub(crate) mod exec;
pub(crate) mod http;
pub(crate) mod run;
