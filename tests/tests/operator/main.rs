//! The operator as a process, on a real Kubernetes API server and a real etcd of Concordat's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

mod certificates;
mod cleanup;
mod force;
mod identity;
mod injection;
mod kubectl;
mod leadership;
mod metrics;
mod once;
mod outage;
mod pipeline;
mod restore;
mod turn;
mod uninstall;
mod webhook;
mod world;
