//! What the operator compiles a custom resource into.

use crate::{Millis, lock, queue, transaction};

/// The kinds of custom resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `DistributedTransaction`.
    Transaction,
    /// `Lock`.
    Lock,
    /// `Queue`.
    Queue,
}

/// Settings of a custom resource, as sidecars see them. Its create revision in etcd guards whatever is created under
/// it: it survives updates of the resource and not its re-creation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Definition {
    /// `metadata.uid` of the resource.
    pub uid: String,
    /// `metadata.generation` it was compiled from.
    pub generation: i64,
    /// Its settings.
    pub settings: Settings,
}

/// Settings by kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Settings {
    /// Of a DistributedTransaction.
    Transaction(transaction::Settings),
    /// Of a Lock.
    Lock(lock::Settings),
    /// Of a Queue.
    Queue(queue::Settings),
}

/// How a failed attempt is repeated: each wait is `factor` times the one before, at most `max`, jittered by whoever
/// waits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backoff {
    /// The first wait, in milliseconds.
    pub initial: Millis,
    /// No wait is longer, in milliseconds.
    pub max: Millis,
    /// Growth in thousandths: 2000 doubles.
    pub factor_milli: u32,
}

impl Backoff {
    /// The wait after the `attempt`-th failure (from 1), in milliseconds, before jitter.
    pub fn after(&self, attempt: u32) -> Millis {
        let mut wait = self.initial.max(1);
        for _ in 1..attempt {
            wait = wait.saturating_mul(u64::from(self.factor_milli)) / 1000;
            if wait >= self.max {
                return self.max;
            }
        }
        wait.min(self.max)
    }
}
