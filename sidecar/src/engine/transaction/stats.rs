//! What the sidecar counts for each DistributedTransaction, put for the operator within 2 s of a change.

use std::{collections::HashMap, sync::Arc, time::Duration};

use concordat_protocol::{
    Key, Kind, Lease, Name, Plan,
    session::{Stat, counter},
};
use parking_lot::Mutex;

use super::Inner;

/// No object's counters are put more often.
const EVERY: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Default)]
struct Counts {
    begun: u64,
    committed: u64,
    aborted: u64,
    stuck: u64,
    changed: bool,
}

/// The counters by object.
#[derive(Default)]
pub(super) struct Stats(Mutex<HashMap<Name, Counts>>);

impl Stats {
    fn change(&self, name: &Name, change: impl FnOnce(&mut Counts)) {
        let mut all = self.0.lock();
        let counts = all.entry(name.clone()).or_default();
        change(counts);
        counts.changed = true;
    }

    pub(super) fn begun(&self, name: &Name) {
        self.change(name, |counts| counts.begun += 1);
    }

    pub(super) fn finished(&self, name: &Name, committed: bool) {
        self.change(name, |counts| {
            *(if committed { &mut counts.committed } else { &mut counts.aborted }) += 1;
        });
    }

    pub(super) fn stuck(&self, name: &Name, stuck: u64) {
        if self.0.lock().get(name).map_or(0, |counts| counts.stuck) != stuck {
            self.change(name, |counts| counts.stuck = stuck);
        }
    }

    /// The session is another one: its counters are not there yet.
    pub(super) fn all_changed(&self) {
        for counts in self.0.lock().values_mut() {
            counts.changed = true;
        }
    }

    fn take_changed(&self) -> Vec<(Name, Counts)> {
        let mut all = self.0.lock();
        let changed = all.iter_mut().filter(|(_, counts)| counts.changed);
        changed
            .map(|(name, counts)| {
                (name.clone(), std::mem::replace(counts, Counts { changed: false, ..*counts }))
            })
            .collect()
    }
}

/// Puts what has changed, for ever.
pub(super) async fn publish(inner: Arc<Inner>) {
    let mut interval = tokio::time::interval(EVERY);
    loop {
        interval.tick().await;
        let session = inner.session.lock().clone();
        for (name, counts) in inner.stats.take_changed() {
            let counters = [
                (counter::ABORTED, counts.aborted),
                (counter::BEGUN, counts.begun),
                (counter::COMMITTED, counts.committed),
                (counter::STUCK, counts.stuck),
            ];
            let stat = Stat { counters: counters.map(|(name, value)| (name.to_owned(), value)).into() };
            let key = Key::Stat { kind: Kind::Transaction, name: name.clone(), session: session.clone() };
            let plan = Plan::new().put(key, stat, Lease::Session(session.clone()));
            if let Err(error) = inner.store.commit(plan).await {
                tracing::debug!(%error, "counters were not put");
                inner.stats.change(&name, |_| {});
            }
        }
    }
}
