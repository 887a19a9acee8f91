//! What a flusher asks of etcd, what it is told, and what follows.

use concordat_protocol::{
    Answer, Key, Range, Record,
    etcd::{Item, Txn, TxnAnswer},
};

use super::resolve::Change;
use crate::{CommitError, Refusal};

/// What a flusher is to ask of etcd.
#[derive(Clone, Debug)]
pub enum Ask<V> {
    /// Run a transaction that commits plans.
    Commit {
        /// The transaction.
        txn: Txn<Key, Range, V>,
        /// How many plans.
        plans: usize,
    },
    /// Run a transaction that makes one void.
    Void(Txn<Key, Range, V>),
    /// Every change of these two keys after the revision, up to the first one's deletion.
    History([Key; 2], i64),
    /// Read each range as it was at the revision, 0 for now.
    ReadAt(Vec<(Range, i64)>),
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum Told {
    /// A transaction's answer, and the revision after it.
    Txn(TxnAnswer<Key, Record>, i64),
    /// The changes.
    History(Vec<Change>),
    /// What each range held.
    Read(Vec<Vec<(Key, Item<Record>)>>),
    /// No answer.
    Refused(Refusal),
}

/// A plan that is done with.
#[derive(Clone, Debug)]
pub struct Settled<T> {
    /// Who asked; `None` when it was told before that the outcome is unknown.
    pub ticket: Option<T>,
    /// What it is told.
    pub result: Result<Answer, CommitError>,
    /// [`Prepared::holdings`]
    pub holdings: Vec<Key>,
}

/// What follows from what a flusher was told.
#[derive(Debug)]
pub struct Step<V, T> {
    /// Plans that are done with.
    pub settled: Vec<Settled<T>>,
    /// What the flusher is to ask next; `None`: it is free.
    pub ask: Option<Ask<V>>,
    /// Whether etcd could not be asked, so that it is better to wait before it is asked again.
    pub wait: bool,
}

impl<V, T> Default for Step<V, T> {
    fn default() -> Self {
        Self { settled: Vec::new(), ask: None, wait: false }
    }
}

/// Where a plan is that its caller no longer wants to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// It was waiting, and is forgotten.
    Waiting,
    /// It is on its way, and will be found out about.
    InFlight,
    /// It is done with.
    Settled,
}
