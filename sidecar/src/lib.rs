//! What apps talk to: the localhost API, and the engines that run `concordat-protocol` on `concordat-store`.

pub mod api;
pub mod args;
pub mod failpoint;
pub mod metrics;
pub mod problem;
