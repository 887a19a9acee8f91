//! Whether etcd is still what it was: what it says of itself, and what this process has seen of it.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use concordat_protocol::{
    Key, Range, Record,
    etcd::{Op, OpAnswer, Txn},
    timeline::{Observed, Remembered, Timeline},
};
use tokio::sync::watch;

use crate::{Refusal, exchange::Exchange, observer::Purpose, wire};

/// So often the timeline is read until it is the same member that says how long its log is.
const ATTEMPTS: usize = 3;

/// The last that was heard of etcd, on any connection.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Its cluster id; 0 before the first answer.
    cluster: AtomicU64,
    revision: AtomicI64,
    /// Why it cannot be the etcd it was.
    contradiction: watch::Sender<Option<String>>,
}

impl Memory {
    /// What is remembered from an earlier life of this process.
    pub(crate) fn of(remembered: Option<&Remembered>) -> Self {
        let memory = Self::default();
        if let Some(Remembered { cluster, revision, .. }) = remembered {
            memory.cluster.store(*cluster, Ordering::Release);
            memory.revision.store(*revision, Ordering::Release);
        }
        memory
    }

    /// The cluster id and the highest revision that were heard of.
    pub(crate) fn last(&self) -> (u64, i64) {
        (self.cluster.load(Ordering::Acquire), self.revision.load(Ordering::Acquire))
    }

    /// Forgets what was heard before the epoch in which etcd is `observed`.
    pub(crate) fn begin(&self, observed: &Observed) {
        self.cluster.store(observed.cluster, Ordering::Release);
        self.revision.store(observed.revision, Ordering::Release);
    }

    /// Takes a linearizable answer to a question that was asked when `before` was known ([`Self::last`]): false when no
    /// etcd that had been there would give it.
    pub(crate) fn hear(&self, before: (u64, i64), cluster: u64, revision: i64) -> bool {
        let (known, at) = before;
        if known == 0 {
            self.cluster.store(cluster, Ordering::Release);
        } else {
            let memory = Remembered { epoch: None, cluster: known, revision: at, offset: 0 };
            let observed = Observed { cluster, index: None, revision };
            if let Some(why) = memory.contradicts(&observed) {
                self.contradiction.send_if_modified(|known| {
                    let first = known.is_none();
                    known.get_or_insert(why);
                    first
                });
                return false;
            }
        }
        self.revision.fetch_max(revision, Ordering::AcqRel);
        true
    }

    /// Waits until etcd cannot be what it was.
    pub(crate) async fn contradicted(&self) -> String {
        let mut contradiction = self.contradiction.subscribe();
        let why = contradiction.wait_for(Option::is_some).await.map(|why| why.clone());
        why.ok().flatten().unwrap_or_default()
    }
}

/// A namespace's timeline as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) recorded: Option<Timeline>,
    /// Its mod revision, 0 without one.
    pub(crate) revision: i64,
    pub(crate) observed: Observed,
}

/// Reads the timeline, then asks the member that answered how long its log is: a member that has told of a record has
/// in its log whatever the record's writer had seen.
pub(crate) async fn find(exchange: &Exchange) -> Result<Found, Refusal> {
    let mut found = read(exchange).await?;
    for _ in 1..ATTEMPTS {
        if found.observed.index.is_some() {
            break;
        }
        found = read(exchange).await?;
    }
    Ok(found)
}

async fn read(exchange: &Exchange) -> Result<Found, Refusal> {
    let txn = Txn { then: vec![Op::Get(Range::One(Key::Timeline))], ..Txn::default() };
    // What contradicts the memory is to be judged here, not refused.
    let response = exchange.raw(Purpose::Session, &txn, 1).await?;
    let status = exchange.status().await?;
    let (header, of_status) = (response.header.unwrap_or_default(), status.header());
    let same = of_status
        .is_some_and(|of| (of.cluster_id(), of.member_id()) == (header.cluster_id, header.member_id));
    let observed = Observed {
        cluster: header.cluster_id,
        index: same.then(|| status.raft_index()),
        revision: header.revision,
    };
    let entry = wire::answer(&exchange.namespace, response).answers.into_iter().find_map(|answer| {
        let OpAnswer::Got(items) = answer else { return None };
        items.into_iter().map(wire::entry).next()
    });
    Ok(match entry.map(|entry| (entry.mod_revision, entry.record)) {
        Some((revision, Record::Timeline(timeline))) => {
            Found { recorded: Some(timeline), revision, observed }
        }
        Some((revision, _)) => Found { recorded: None, revision, observed },
        None => Found { recorded: None, revision: 0, observed },
    })
}
