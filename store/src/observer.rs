//! Who is told what is asked of etcd: metrics and the tests that count.

use std::time::Duration;

/// Why etcd is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Plans are committed.
    Commit,
    /// What became of an unanswered commit is found out.
    Resolve,
    /// Something is read.
    Read,
    /// A session or lease is opened, kept or closed.
    Session,
}

/// One request to etcd, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Plans in it.
    pub plans: usize,
    /// Compares, those of nested transactions too.
    pub compares: usize,
    /// Puts in either branch.
    pub puts: usize,
    /// Deletes in either branch.
    pub deletes: usize,
    /// Reads in either branch.
    pub gets: usize,
    /// Bytes of keys and values that are put.
    pub bytes: usize,
}

/// Is told of every request, on the caller's own thread: must not block.
pub trait Observer: Send + Sync {
    /// A request was answered (or not: `known` is false) after `took`.
    fn request(&self, purpose: Purpose, counts: Counts, took: Duration, known: bool);
}

/// Does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn request(&self, _: Purpose, _: Counts, _: Duration, _: bool) {}
}
