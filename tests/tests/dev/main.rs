//! `concordat dev` and `concordat get`: the real binary, its etcd and its sidecars.

mod ends;
mod epoch;
mod get;
mod manifests;
mod starts;
mod world;
