//! Runs transactions: the machines of the protocol on the store, for what this sidecar coordinates and for what its app
//! takes part in.

mod adoption;
mod begin;
mod coordination;
mod counted;
mod inbox;
mod participation;
mod query;
mod stats;
mod view;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use concordat_protocol::{
    Name, SessionId,
    transaction::{Peers, Stage},
};
use concordat_store::Store;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};

pub use begin::Begin;
pub use query::Filter;
pub use view::{BranchView, Outcome, State, View};

use crate::{callback::Callbacks, context::Identity, definitions::Definitions, metrics::Metrics};

/// A draining sidecar waits so long for what it coordinates and takes part in, then leaves it to be adopted.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs transactions. Cheap to clone.
#[derive(Clone)]
pub struct TransactionEngine(Arc<Inner>);

struct Inner {
    store: Store,
    identity: Arc<Identity>,
    callbacks: Callbacks,
    session: Mutex<SessionId>,
    peers: Mutex<Peers>,
    synced: watch::Sender<bool>,
    runs: Mutex<coordination::Runs>,
    parts: Mutex<participation::Parts>,
    numbers: AtomicU64,
    /// Those in flight of each DistributedTransaction, so that one whose participant hangs holds up no other.
    in_flight: Mutex<HashMap<Name, Arc<Semaphore>>>,
    /// Has the state looked at for what has no owner.
    sweep: Notify,
    /// Told when a run or a part is over.
    ended: Notify,
    draining: AtomicBool,
    stats: stats::Stats,
    metrics: counted::Counted,
}

impl TransactionEngine {
    /// Starts: adopts what has no owner, takes what comes; a guest does neither.
    pub fn start(
        store: &Store,
        _: &Definitions,
        metrics: &Arc<Metrics>,
        identity: &Arc<Identity>,
        callbacks: Callbacks,
    ) -> Self {
        let inner = Arc::new(Inner {
            session: Mutex::new(store.session().id),
            store: store.clone(),
            identity: identity.clone(),
            callbacks,
            peers: Mutex::default(),
            synced: watch::Sender::new(false),
            runs: Mutex::default(),
            parts: Mutex::default(),
            numbers: AtomicU64::new(0),
            in_flight: Mutex::default(),
            sweep: Notify::new(),
            ended: Notify::new(),
            draining: AtomicBool::new(false),
            stats: stats::Stats::default(),
            metrics: counted::Counted::register(metrics),
        });
        tokio::spawn(inbox::follow_session(inner.clone()));
        tokio::spawn(inbox::follow_peers(inner.clone()));
        if !inner.identity.guest {
            tokio::spawn(inbox::follow_unclaimed(inner.clone()));
            tokio::spawn(adoption::sweep(inner.clone()));
            tokio::spawn(adoption::follow_once(inner.clone()));
        }
        tokio::spawn(stats::publish(inner.clone()));
        Self(inner)
    }

    /// Takes no new work, and waits for what is under way; what is left then is adopted by others once the session ends.
    pub async fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
        let _ = tokio::time::timeout(DRAIN, self.0.idle()).await;
    }
}

impl Inner {
    fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits until nothing is under way but what only a person can help.
    async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            let waits_for_people = |run: &coordination::Run| {
                run.machine.record().branches.iter().any(|branch| branch.stage == Stage::Stuck)
            };
            if self.parts.lock().is_empty() && self.runs.lock().values().all(waits_for_people) {
                return;
            }
            ended.await;
        }
    }
}
