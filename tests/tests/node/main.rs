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
mod observed;
mod plain;
mod prometheus;
mod renewal;
mod story;
mod traffic;
mod upgrade;
