//! The custom resources of the namespace, as etcd has them: a cache that one watch keeps.
//!
//! What it answers may be old. That does no harm: every plan compares the definition's create revision.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use concordat_protocol::{Entry, Key, Kind, Millis, Name, Range, Record, Settings, lock, queue, transaction};
use concordat_store::{Store, WatchEvent};
use http::StatusCode;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::problem::Problem;

/// Settings of a custom resource, and what guards the state that is made under them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defined<S> {
    /// The settings.
    pub settings: Arc<S>,
    /// Create revision of the definition: what a plan compares.
    pub create_revision: i64,
    /// Mod revision of the definition: rises with every write of it.
    pub mod_revision: i64,
}

/// The cache. Cheap to clone.
#[derive(Clone)]
pub struct Definitions(Arc<Inner>);

struct Inner {
    known: RwLock<Known>,
    /// Rises with every change.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    synced: bool,
    /// When the watch was last heard of, on the monotonic clock.
    heard: Millis,
    locks: HashMap<Name, Defined<lock::Settings>>,
    queues: HashMap<Name, Defined<queue::Settings>>,
    transactions: HashMap<Name, Defined<transaction::Settings>>,
}

impl Definitions {
    /// Starts to watch.
    pub fn start(store: &Store) -> Self {
        let definitions = Self::empty();
        let (of, clock) = (definitions.clone(), store.clock());
        let mut watch = store.watch(Range::Definitions);
        tokio::spawn(async move {
            loop {
                let events = watch.next().await;
                of.apply(events, clock.now().monotonic);
            }
        });
        definitions
    }

    fn empty() -> Self {
        Self(Arc::new(Inner { known: RwLock::default(), changes: watch::Sender::new(0) }))
    }

    /// Takes in what the watch tells.
    fn apply(&self, events: Vec<WatchEvent>, now: Millis) {
        let mut changed = false;
        let mut known = self.0.known.write();
        known.heard = now;
        for event in events {
            changed |= !matches!(event, WatchEvent::Progress(_));
            match event {
                WatchEvent::Snapshot { entries, .. } => {
                    *known = Known { synced: true, heard: now, ..Known::default() };
                    for entry in entries {
                        known.put(entry);
                    }
                }
                WatchEvent::Put(entry) => known.put(entry),
                WatchEvent::Deleted { key: Key::Definition { kind, name }, .. } => known.delete(kind, &name),
                WatchEvent::Deleted { .. } | WatchEvent::Progress(_) => {}
            }
        }
        drop(known);
        if changed {
            self.0.changes.send_modify(|count| *count += 1);
        }
    }

    /// Whether all definitions have been seen once.
    pub fn synced(&self) -> bool {
        self.0.known.read().synced
    }

    /// When etcd's watch was last heard of, milliseconds on the monotonic clock.
    pub fn heard(&self) -> Millis {
        self.0.known.read().heard
    }

    /// Tells of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// The Lock of this name; 404 `no-such-lock`, 501 `mode-not-supported`.
    pub fn lock(&self, name: &str) -> Result<Defined<lock::Settings>, Problem> {
        let known = self.0.known.read();
        let found = known.find(&known.locks, name, ("no-such-lock", "Lock"))?;
        supported(found, found.settings.supported(), "Lock", name)
    }

    /// The Lock that apps written for Dapr know by this name of a store, the first by name of several: `None` for none;
    /// 501 `mode-not-supported`.
    pub fn lock_of_store(&self, store: &str) -> Result<Option<(Name, Defined<lock::Settings>)>, Problem> {
        let known = self.0.known.read();
        let named = known.locks_of_store(store).min_by_key(|(name, _)| *name);
        let Some((name, found)) = named else { return Ok(None) };
        let defined = supported(found, found.settings.supported(), "Lock", name.as_str())?;
        Ok(Some((name.clone(), defined)))
    }

    /// The stores that Locks give for apps written for Dapr, in order.
    pub fn dapr_stores(&self) -> BTreeSet<Name> {
        let known = self.0.known.read();
        known.locks.values().filter_map(|lock| lock.settings.dapr_store.clone()).collect()
    }

    /// The Queue of this name; 404 `no-such-queue`, 501 `mode-not-supported`.
    pub fn queue(&self, name: &str) -> Result<Defined<queue::Settings>, Problem> {
        let known = self.0.known.read();
        let found = known.find(&known.queues, name, ("no-such-queue", "Queue"))?;
        supported(found, found.settings.supported(), "Queue", name)
    }

    /// The DistributedTransaction of this name; 404 `no-such-transaction`, 501 `mode-not-supported`.
    pub fn transaction(&self, name: &str) -> Result<Defined<transaction::Settings>, Problem> {
        let known = self.0.known.read();
        let kind = "DistributedTransaction";
        let found = known.find(&known.transactions, name, ("no-such-transaction", kind))?;
        supported(found, found.settings.supported(), kind, name)
    }
}

fn supported<S>(found: &Defined<S>, supported: bool, kind: &str, name: &str) -> Result<Defined<S>, Problem> {
    if supported {
        let Defined { settings, create_revision, mod_revision } = found;
        return Ok(Defined {
            settings: settings.clone(),
            create_revision: *create_revision,
            mod_revision: *mod_revision,
        });
    }
    Err(Problem::mode_not_supported(format!(
        "the {kind} {name:?} asks for a mode that does not work yet; its status says which"
    )))
}

impl Known {
    fn find<'a, S>(
        &self,
        all: &'a HashMap<Name, Defined<S>>,
        name: &str,
        (code, kind): (&'static str, &str),
    ) -> Result<&'a Defined<S>, Problem> {
        if !self.synced {
            return Err(Problem::unavailable(
                "starting",
                "the custom resources have not been read from etcd yet",
            ));
        }
        all.get(name).ok_or_else(|| {
            Problem::new(StatusCode::NOT_FOUND, code, "There is no such object")
                .detail(format!("there is no {kind} {name:?} in this namespace, or it is not Ready"))
        })
    }

    fn locks_of_store<'a>(
        &'a self,
        store: &'a str,
    ) -> impl Iterator<Item = (&'a Name, &'a Defined<lock::Settings>)> {
        let of_store = move |lock: &lock::Settings| lock.dapr_store.as_ref().map(Name::as_str) == Some(store);
        self.locks.iter().filter(move |(_, lock)| of_store(&lock.settings))
    }

    fn put(&mut self, entry: Entry) {
        let Entry { key: Key::Definition { name, .. }, record: Record::Definition(definition), .. } = entry
        else {
            tracing::warn!(key = ?entry.key, "this is no definition: it is passed over");
            return;
        };
        let revisions = (entry.create_revision, entry.mod_revision);
        match definition.settings {
            Settings::Lock(settings) => {
                let store = settings.dapr_store.clone();
                insert(&mut self.locks, name, settings, revisions);
                let Some(store) = store else { return };
                let mut locks: Vec<_> = self.locks_of_store(store.as_str()).map(|(name, _)| name).collect();
                if locks.len() > 1 {
                    locks.sort_unstable();
                    tracing::warn!(%store, ?locks, "these Locks have one daprStore: the first is meant");
                }
            }
            Settings::Queue(settings) => insert(&mut self.queues, name, settings, revisions),
            Settings::Transaction(settings) => {
                insert(&mut self.transactions, name, settings, revisions);
            }
        }
    }

    fn delete(&mut self, kind: Kind, name: &Name) {
        match kind {
            Kind::Lock => drop(self.locks.remove(name)),
            Kind::Queue => drop(self.queues.remove(name)),
            Kind::Transaction => drop(self.transactions.remove(name)),
        }
    }
}

fn insert<S>(
    all: &mut HashMap<Name, Defined<S>>,
    name: Name,
    settings: S,
    (create_revision, mod_revision): (i64, i64),
) {
    all.insert(name, Defined { settings: Arc::new(settings), create_revision, mod_revision });
}

#[cfg(test)]
mod tests {
    use concordat_protocol::Definition;

    use super::*;

    fn settings(sharing: lock::Sharing) -> lock::Settings {
        lock::Settings {
            mode: lock::Mode::CompareAndSwap,
            sharing,
            permits: 1,
            ttl: 15_000,
            lock_delay: 0,
            max_hold: 0,
            max_wait: 60_000,
            max_waiters: 1_024,
            dapr_store: None,
        }
    }

    fn entry(name: &str, sharing: lock::Sharing, revision: i64) -> Entry {
        let settings = Settings::Lock(settings(sharing));
        Entry {
            key: Key::Definition { kind: Kind::Lock, name: name.into() },
            record: Definition { uid: "u".into(), generation: 1, settings }.into(),
            create_revision: revision,
            mod_revision: revision,
            lease: 0,
        }
    }

    fn code<S>(answer: Result<Defined<S>, Problem>) -> Option<(u16, &'static str)> {
        answer.err().map(|problem| (problem.status.as_u16(), problem.code))
    }

    #[test]
    fn what_is_not_known_yet_is_not_said_to_be_missing() {
        let definitions = Definitions::empty();
        assert_eq!(code(definitions.lock("a")), Some((503, "starting")));
        definitions.apply(vec![WatchEvent::Snapshot { revision: 1, entries: vec![] }], 7);
        assert!(definitions.synced());
        assert_eq!(definitions.heard(), 7);
        assert_eq!(code(definitions.lock("a")), Some((404, "no-such-lock")));
        assert_eq!(code(definitions.queue("a")), Some((404, "no-such-queue")));
        assert_eq!(code(definitions.transaction("a")), Some((404, "no-such-transaction")));
    }

    #[test]
    fn the_cache_follows_the_watch() {
        let definitions = Definitions::empty();
        let changes = definitions.changes();
        let entries = vec![entry("a", lock::Sharing::Mutex, 3), entry("b", lock::Sharing::Semaphore, 4)];
        definitions.apply(vec![WatchEvent::Snapshot { revision: 5, entries }], 0);
        assert!(changes.has_changed().unwrap());
        assert_eq!(definitions.lock("a").unwrap().create_revision, 3);
        assert_eq!(code(definitions.lock("b")), Some((501, "mode-not-supported")));

        let key = Key::Definition { kind: Kind::Lock, name: "a".into() };
        definitions.apply(vec![WatchEvent::Deleted { key, revision: 6 }], 0);
        assert_eq!(code(definitions.lock("a")), Some((404, "no-such-lock")));
        definitions.apply(vec![WatchEvent::Put(entry("a", lock::Sharing::Mutex, 7))], 0);
        assert_eq!(definitions.lock("a").unwrap().create_revision, 7);

        definitions.apply(vec![WatchEvent::Snapshot { revision: 9, entries: vec![] }], 0);
        assert_eq!(
            code(definitions.lock("a")),
            Some((404, "no-such-lock")),
            "a snapshot replaces what was known"
        );
    }

    #[test]
    fn progress_is_heard_and_is_no_change() {
        let definitions = Definitions::empty();
        let changes = definitions.changes();
        definitions.apply(vec![WatchEvent::Progress(5)], 9);
        assert_eq!(definitions.heard(), 9);
        assert!(!changes.has_changed().unwrap());
    }
}
