//! What the sidecar counts for each DistributedTransaction, put for the operator within 2 s of a change.

use std::{collections::HashMap, sync::Arc, time::Duration};

use concordat_protocol::{
    Key, Kind, Lease, Name, Plan,
    session::{Stat, counter},
    transaction::Transaction,
};
use parking_lot::Mutex;

use super::Inner;

/// No object's counters are put more often.
const EVERY: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Default)]
struct Counts {
    /// Create revision of the definition.
    life: i64,
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
    /// Changes what is counted for the object under which a transaction began. Of a name only the youngest object counts.
    fn change(&self, of: &Transaction, change: impl FnOnce(&mut Counts)) {
        let mut all = self.0.lock();
        let counts = all.entry(of.name.clone()).or_default();
        if counts.life < of.definition {
            *counts = Counts { life: of.definition, ..Counts::default() };
        }
        if counts.life == of.definition {
            change(counts);
            counts.changed = true;
        }
    }

    pub(super) fn begun(&self, of: &Transaction) {
        self.change(of, |counts| counts.begun += 1);
    }

    pub(super) fn finished(&self, of: &Transaction, committed: bool) {
        self.change(of, |counts| {
            *(if committed { &mut counts.committed } else { &mut counts.aborted }) += 1;
        });
    }

    pub(super) fn stuck(&self, of: &Transaction, stuck: u64) {
        let told =
            self.0.lock().get(&of.name).filter(|counts| counts.life == of.definition).map(|of| of.stuck);
        if told.unwrap_or_default() != stuck {
            self.change(of, |counts| counts.stuck = stuck);
        }
    }

    /// Forgets an object that is there no longer.
    fn forget(&self, name: &Name, life: i64) {
        self.0.lock().retain(|of, counts| of != name || counts.life != life);
    }

    /// They were not told: they will be.
    fn again(&self, name: &Name) {
        if let Some(counts) = self.0.lock().get_mut(name) {
            counts.changed = true;
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
            let definition = Key::Definition { kind: Kind::Transaction, name: name.clone() };
            let plan = Plan::new().same_life(definition, counts.life).put(
                key,
                stat,
                Lease::Session(session.clone()),
            );
            match inner.store.commit(plan).await {
                Ok(answer) if answer.held => {}
                Ok(_) => inner.stats.forget(&name, counts.life),
                Err(error) => {
                    tracing::debug!(%error, "counters were not put");
                    inner.stats.again(&name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use concordat_protocol::{
        Now,
        transaction::{Protocol, Settings, plans},
    };

    use super::*;

    fn began_under(definition: i64) -> Transaction {
        let (protocol, participants) = (Protocol::TwoPhaseCommit, vec![]);
        let settings = Settings { protocol, participants, timeout: 1, once: false, retention: 1 };
        plans::new("pay".into(), &settings, definition, "{}".into(), Now { monotonic: 0, unix: 1 })
    }

    #[test]
    fn an_object_counts_nothing_of_a_former_one_of_its_name() {
        let (former, present) = (began_under(3), began_under(7));
        let stats = Stats::default();
        stats.begun(&former);
        stats.finished(&former, true);
        stats.begun(&present);
        stats.finished(&former, true);
        stats.stuck(&former, 2);
        let told = |stats: &Stats| -> Vec<(i64, u64, u64, u64)> {
            let changed = stats.take_changed().into_iter();
            changed.map(|(_, counts)| (counts.life, counts.begun, counts.committed, counts.stuck)).collect()
        };
        assert_eq!(told(&stats), [(7, 1, 0, 0)]);
        // It has gone meanwhile, and another has come.
        stats.begun(&began_under(9));
        stats.forget(&"pay".into(), 7);
        assert_eq!(told(&stats), [(9, 1, 0, 0)]);
        stats.forget(&"pay".into(), 9);
        stats.again(&"pay".into());
        assert_eq!(told(&stats), []);
    }
}
