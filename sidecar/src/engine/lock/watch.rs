//! One watch a lock, as long as somebody waits for one of its keys.

use std::{collections::HashMap, sync::Arc, time::Duration};

use concordat_protocol::{
    Entry, Key, Name, Range,
    lock::{Found, Input},
};
use concordat_store::WatchEvent;

use super::{Inner, Place};

/// How long a watch goes on when nobody waits any more.
const LINGER: Duration = Duration::from_secs(10);

/// What the watch of a lock has shown so far.
#[derive(Default)]
pub(super) struct Watched {
    /// Revision as of which it is so; 0 before the first listing.
    revision: i64,
    holders: HashMap<Name, Found>,
    /// How many keys want to know.
    wanted: usize,
}

impl Watched {
    /// Takes in what happened; answers which keys it is about, `None` for all.
    fn take(&mut self, event: WatchEvent) -> Option<Name> {
        match event {
            WatchEvent::Snapshot { revision, entries } => {
                self.revision = revision;
                self.holders = entries.iter().filter_map(held).collect();
                None
            }
            WatchEvent::Put(entry) => {
                self.revision = entry.mod_revision;
                let (key, found) = held(&entry)?;
                self.holders.insert(key.clone(), found);
                Some(key)
            }
            WatchEvent::Deleted { key: Key::Holder { key, .. }, revision } => {
                self.revision = revision;
                self.holders.remove(&key);
                Some(key)
            }
            WatchEvent::Deleted { .. } | WatchEvent::Progress(_) => None,
        }
    }

    fn shows(&self, key: &Name) -> Input {
        Input::Seen { revision: self.revision, found: self.holders.get(key).cloned() }
    }
}

fn held(entry: &Entry) -> Option<(Name, Found)> {
    match &entry.key {
        Key::Holder { key, .. } => Some((key.clone(), Found::read(entry)?)),
        _ => None,
    }
}

impl Inner {
    /// A key began to want the watch of its lock, or stopped.
    pub(super) fn watch_for(self: &Arc<Self>, place: &Place, wanted: bool) {
        let mut keys = self.keys.lock();
        let starts = !keys.watched.contains_key(&place.lock);
        let watched = keys.watched.entry(place.lock.clone()).or_default();
        if !wanted {
            watched.wanted = watched.wanted.saturating_sub(1);
            return;
        }
        watched.wanted += 1;
        let shown = (watched.revision > 0).then(|| watched.shows(&place.key));
        drop(keys);
        if starts {
            tokio::spawn(self.clone().watch(place.lock.clone()));
        }
        if let Some(shown) = shown {
            let _ = self.step(place, shown);
        }
    }

    async fn watch(self: Arc<Self>, lock: Name) {
        let mut watch = self.store.watch(Range::Lock(lock.clone()));
        loop {
            match tokio::time::timeout(LINGER, watch.next()).await {
                Ok(events) => self.show(&lock, events),
                Err(_) if self.unwatch(&lock) => return,
                Err(_) => {}
            }
        }
    }

    fn show(self: &Arc<Self>, lock: &Name, events: Vec<WatchEvent>) {
        for event in events {
            let all = matches!(event, WatchEvent::Snapshot { .. });
            let places = {
                let mut keys = self.keys.lock();
                let Some(watched) = keys.watched.get_mut(lock) else { return };
                let key = watched.take(event);
                let shown = |watched: &Watched, place: &Place| (place.clone(), watched.shows(&place.key));
                let about = if all {
                    keys.watching(lock)
                } else {
                    key.map(|key| Place { lock: lock.clone(), key }).into_iter().collect()
                };
                let Some(watched) = keys.watched.get(lock) else { return };
                about.iter().map(|place| shown(watched, place)).collect::<Vec<_>>()
            };
            for (place, shown) in places {
                let _ = self.step(&place, shown);
            }
        }
    }

    /// Ends the watch of a lock that nobody wants; false when somebody does.
    fn unwatch(&self, lock: &Name) -> bool {
        let mut keys = self.keys.lock();
        let unwanted = keys.watched.get(lock).is_none_or(|watched| watched.wanted == 0);
        if unwanted {
            keys.watched.remove(lock);
        }
        unwanted
    }
}
