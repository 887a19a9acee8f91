//! What apps talk to: the localhost API, and the engines that run `concordat-protocol` on `concordat-store`.

pub mod admin;
pub mod api;
pub mod args;
pub mod callback;
pub mod context;
pub mod dapr;
pub mod definitions;
pub mod engine;
pub mod failpoint;
pub mod metrics;
pub mod problem;
pub mod run;
pub mod serve;
pub mod shutdown;
pub mod spans;
mod token;
