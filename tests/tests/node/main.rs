//! Concordat on a real node. Takes root, and the feature `node` of `concordat-tests`, which `make test` gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

mod bank;
mod base;
mod cert_manager;
mod clerk;
mod external;
mod installation;
mod isolation;
mod kubectl;
mod life;
mod plain;
mod renewal;
mod story;
mod traffic;
mod upgrade;
