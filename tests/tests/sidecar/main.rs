//! The sidecar as a process, on a real etcd: how it is configured, what it refuses, and how it ends.

mod bad_input;
mod isolation;
mod process;
mod traces;
mod world;
