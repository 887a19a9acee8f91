//! Locks from end to end: real etcd, real sidecars, callers over HTTP. Each scenario that has a history is judged by
//! L1 to L7.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

mod contention;
mod examples;
mod fair;
mod faults;
mod holding;
mod http;
mod lease;
mod leases;
mod lost;
mod planted;
mod restore;
mod several;
mod soak;
mod space;
mod staying;
mod waiting;
mod world;
