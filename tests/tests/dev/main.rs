//! `concordat dev` and what looks after it: the real binary, its etcd and its sidecars.

mod check;
mod ends;
mod epoch;
mod get;
mod guest;
mod lock;
mod manifests;
mod queue;
mod starts;
mod transaction;
mod world;
