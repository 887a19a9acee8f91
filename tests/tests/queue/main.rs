//! Queues on a real etcd, through real sidecars: what the API promises, and what holds when sidecars die at every step.
//!
//! Every scenario's history is judged by `protocol::queue::invariant`.

#![allow(clippy::format_collect)]

mod acked_by_receive;
mod api;
mod backlog;
mod faults;
mod lost;
mod world;
