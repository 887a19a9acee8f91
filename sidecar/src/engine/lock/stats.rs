//! What this sidecar counts for each lock, put into etcd for the operator.

use std::{sync::Arc, time::Duration};

use concordat_protocol::{
    Key, Kind, Lease, Name, Now, Plan,
    lock::plans,
    session::{Stat, counter},
};

use super::{Inner, keys::Keys};

/// A lock's counters are put at most this often.
const INTERVAL: Duration = Duration::from_secs(2);

/// Of one lock.
#[derive(Default)]
pub(super) struct Counters {
    granted: u64,
    waiters: usize,
    changed: bool,
}

impl Counters {
    /// Counts what one step brought; answers whether that is worth telling.
    pub(super) fn count(&mut self, granted: usize, waited_before: usize, waiting: usize) -> bool {
        let changed = granted > 0 || waited_before != waiting;
        self.granted += granted as u64;
        self.waiters = (self.waiters + waiting).saturating_sub(waited_before);
        self.changed |= changed;
        changed
    }
}

impl Keys {
    /// A new session has told nothing yet.
    pub(super) fn count_all_anew(&mut self) {
        self.counters.values_mut().for_each(|counters| counters.changed = true);
    }

    /// The locks whose counters changed, with what they count now; they count as told.
    fn take_changed(&mut self, now: Now) -> Vec<(Name, Stat)> {
        let changed = self.counters.iter_mut().filter_map(|(lock, of)| {
            std::mem::take(&mut of.changed).then(|| (lock.clone(), of.granted, of.waiters as u64))
        });
        let changed: Vec<_> = changed.collect();
        let stat = |(lock, granted, waiters)| {
            let waited = self.waiting_since(&lock).map(|since| now.monotonic.saturating_sub(since));
            let counters = [
                (counter::GRANTED, granted),
                (counter::WAITERS, waiters),
                (counter::WAITING_SINCE, waited.map_or(0, |waited| now.unix - waited)),
            ];
            let counters = counters.map(|(name, value)| (name.to_owned(), value)).into();
            (lock, Stat { counters })
        };
        changed.into_iter().map(stat).collect()
    }
}

impl Inner {
    pub(super) async fn publish_stats(self: Arc<Self>) {
        loop {
            self.counted.notified().await;
            // What is counted until then goes along.
            tokio::time::sleep(INTERVAL).await;
            let (now, session) = (self.now(), self.store.session().id);
            let changed = self.keys.lock().take_changed(now);
            for (lock, stat) in changed {
                let Ok(defined) = self.definitions.lock(lock.as_str()) else {
                    self.keys.lock().counters.remove(&lock);
                    continue;
                };
                let key = Key::Stat { kind: Kind::Lock, name: lock.clone(), session: session.clone() };
                let plan = Plan::new().same_life(plans::definition(&lock), defined.create_revision).put(
                    key,
                    stat,
                    Lease::Session(session.clone()),
                );
                if let Err(error) = self.store.commit(plan).await {
                    tracing::debug!(%lock, %error, "counters were not put");
                }
            }
        }
    }
}
