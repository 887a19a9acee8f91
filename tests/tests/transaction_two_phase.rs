//! Two-phase commit end to end: real sidecars, a real etcd, apps that take part.

#[path = "transaction/app.rs"]
mod app;
#[path = "transaction/commit.rs"]
mod commit;
#[path = "transaction/drain.rs"]
mod drain;
#[path = "transaction/faults.rs"]
mod faults;
#[path = "transaction/lost.rs"]
mod lost;
#[path = "transaction/restore.rs"]
mod restore;
#[path = "transaction/trace.rs"]
mod trace;
#[path = "transaction/world.rs"]
mod world;
