//! What is remembered: keys, records, commits, sessions and watches on etcd.
//!
//! The only crate that knows etcd.

pub mod keys;
pub mod record;
