//! One watch a lock, as long as somebody waits for one of its keys.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use concordat_protocol::{
    Entry, Key, Millis, Name, Now, Range,
    lock::{Input, Seen},
};
use concordat_store::{Store, WatchEvent};

use super::{
    Inner, Place,
    keys::{Keys, Stepped},
};

/// How long a watch goes on when nobody waits any more.
const LINGER: Duration = Duration::from_secs(10);

/// What the watch of a lock has shown so far.
#[derive(Default)]
pub(super) struct Watched {
    /// Revision as of which it is so; 0 before the first listing.
    revision: i64,
    entries: HashMap<Name, BTreeMap<Key, Entry>>,
    /// How many keys want to know.
    wanted: usize,
    /// Since when none does, on the monotonic clock.
    unwanted_since: Millis,
}

impl Watched {
    /// Takes in a listing.
    fn list(&mut self, revision: i64, entries: Vec<Entry>) {
        self.revision = revision;
        self.entries.clear();
        for entry in entries {
            if let Some(name) = name(&entry.key) {
                self.entries.entry(name.clone()).or_default().insert(entry.key.clone(), entry);
            }
        }
    }

    /// Takes in a change; answers of which key it is.
    fn take(&mut self, seen: &Seen) -> Option<Name> {
        match seen {
            Seen::All { .. } => None,
            Seen::Put(entry) => {
                self.revision = entry.mod_revision;
                let name = name(&entry.key)?;
                self.entries.entry(name.clone()).or_default().insert(entry.key.clone(), entry.clone());
                Some(name.clone())
            }
            Seen::Deleted { key, revision } => {
                self.revision = *revision;
                let name = name(key)?;
                let left = self.entries.get_mut(name).is_some_and(|entries| {
                    entries.remove(key);
                    entries.is_empty()
                });
                if left {
                    self.entries.remove(name);
                }
                Some(name.clone())
            }
        }
    }

    fn all(&self, name: &Name) -> Input {
        let entries = self.entries.get(name).into_iter().flat_map(BTreeMap::values).cloned().collect();
        Input::Seen(Seen::All { revision: self.revision, entries })
    }
}

/// The key of the lock that a key of etcd's is about.
fn name(key: &Key) -> Option<&Name> {
    match key {
        Key::Holder { key, .. } | Key::Waiter { key, .. } | Key::Shadow { key, .. } => Some(key),
        _ => None,
    }
}

impl Keys {
    /// Takes in what happened under a lock and tells whom it concerns, before anything else can happen to them.
    fn show(&mut self, lock: &Name, event: WatchEvent, now: Now, store: &Store) -> Vec<(Place, Stepped)> {
        let Some(watched) = self.watched.get_mut(lock) else { return Vec::new() };
        let seen = match event {
            WatchEvent::Snapshot { revision, entries } => {
                watched.list(revision, entries);
                let places = self.watching(lock);
                let all = |place: Place| Some((self.watched.get(lock)?.all(&place.key), place));
                let told: Vec<(Input, Place)> = places.into_iter().filter_map(all).collect();
                return told
                    .into_iter()
                    .filter_map(|(all, place)| self.tell(place, all, now, store))
                    .collect();
            }
            WatchEvent::Put(entry) => Seen::Put(entry),
            WatchEvent::Deleted { key, revision } => Seen::Deleted { key, revision },
            WatchEvent::Progress(_) => return Vec::new(),
        };
        let Some(key) = watched.take(&seen) else { return Vec::new() };
        let place = Place { lock: lock.clone(), key };
        self.tell(place, Input::Seen(seen), now, store).into_iter().collect()
    }

    /// Tells one key what the watch shows.
    fn tell(&mut self, place: Place, seen: Input, now: Now, store: &Store) -> Option<(Place, Stepped)> {
        let stepped = self.step(&place, seen, now, store).ok()?;
        Some((place, stepped))
    }

    /// A key wants the watch of its lock: tells it what that has shown, and answers whether it must be started first.
    fn want(&mut self, place: &Place, now: Now, store: &Store) -> (bool, Option<Stepped>) {
        let starts = !self.watched.contains_key(&place.lock);
        let watched = self.watched.entry(place.lock.clone()).or_default();
        watched.wanted += 1;
        let all = (watched.revision > 0).then(|| watched.all(&place.key));
        (starts, all.and_then(|all| self.step(place, all, now, store).ok()))
    }
}

impl Inner {
    /// A key began to want the watch of its lock, or stopped.
    pub(super) fn watch_for(self: &Arc<Self>, place: &Place, wanted: bool) {
        let now = self.now();
        if !wanted {
            if let Some(watched) = self.keys.lock().watched.get_mut(&place.lock) {
                watched.wanted = watched.wanted.saturating_sub(1);
                watched.unwanted_since = now.monotonic;
            }
            return;
        }
        let (starts, stepped) = self.keys.lock().want(place, now, &self.store);
        if starts {
            tokio::spawn(self.clone().watch(place.lock.clone()));
        }
        if let Some(stepped) = stepped {
            self.carry_out(place, stepped);
        }
    }

    async fn watch(self: Arc<Self>, lock: Name) {
        let mut watch = self.store.watch(Range::Lock(lock.clone()));
        loop {
            // Nothing may happen for long, and much may happen that nobody wants to know.
            if let Ok(events) = tokio::time::timeout(LINGER, watch.next()).await {
                for event in events {
                    let told = self.keys.lock().show(&lock, event, self.now(), &self.store);
                    for (place, stepped) in told {
                        self.carry_out(&place, stepped);
                    }
                }
            }
            if self.unwatch(&lock) {
                return;
            }
        }
    }

    /// Ends the watch of a lock that nobody has wanted for a while; false when somebody did.
    fn unwatch(&self, lock: &Name) -> bool {
        let now = self.now().monotonic;
        let mut keys = self.keys.lock();
        let linger = LINGER.as_millis() as Millis;
        let unwanted = |watched: &Watched| watched.wanted == 0 && now >= watched.unwanted_since + linger;
        let ends = keys.watched.get(lock).is_none_or(unwanted);
        if ends {
            keys.watched.remove(lock);
        }
        ends
    }
}
