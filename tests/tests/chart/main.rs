//! The Helm chart, rendered by the real helm: what it says, whether a real API server takes it, and whether the rights
//! that it gives are enough and no more. `INSTA_UPDATE=always` writes snapshots and the chart's README anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

mod accepted;
mod alerts;
mod documented;
mod flags;
mod refused;
mod rendered;
mod rights;
mod world;
