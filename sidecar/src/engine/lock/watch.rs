//! One watch a lock, as long as somebody waits for one of its keys.

use std::{collections::HashMap, sync::Arc, time::Duration};

use concordat_protocol::{
    Entry, Key, Millis, Name, Range,
    lock::{Found, Input},
};
use concordat_store::WatchEvent;

use super::{Inner, Place, keys::Keys};

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
    /// Since when none does, on the monotonic clock.
    unwanted_since: Millis,
}

impl Watched {
    /// Takes in what happened; answers which key it is about, `None` for all of them or none.
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

impl Keys {
    /// Takes in what happened under a lock; answers what to tell which keys.
    fn shown(&mut self, lock: &Name, event: WatchEvent) -> Vec<(Place, Input)> {
        let all = matches!(event, WatchEvent::Snapshot { .. });
        let key = self.watched.get_mut(lock).and_then(|watched| watched.take(event));
        let about = match key {
            _ if all => self.watching(lock),
            Some(key) => vec![Place { lock: lock.clone(), key }],
            None => Vec::new(),
        };
        let Some(watched) = self.watched.get(lock) else { return Vec::new() };
        about.into_iter().map(|place| (place.clone(), watched.shows(&place.key))).collect()
    }
}

impl Inner {
    /// A key began to want the watch of its lock, or stopped.
    pub(super) fn watch_for(self: &Arc<Self>, place: &Place, wanted: bool) {
        let mut keys = self.keys.lock();
        if !wanted {
            if let Some(watched) = keys.watched.get_mut(&place.lock) {
                watched.wanted = watched.wanted.saturating_sub(1);
                watched.unwanted_since = self.now().monotonic;
            }
            return;
        }
        let starts = !keys.watched.contains_key(&place.lock);
        let watched = keys.watched.entry(place.lock.clone()).or_default();
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
            // Nothing may happen for long, and much may happen that nobody wants to know.
            if let Ok(events) = tokio::time::timeout(LINGER, watch.next()).await {
                self.show(&lock, events);
            }
            if self.unwatch(&lock) {
                return;
            }
        }
    }

    fn show(self: &Arc<Self>, lock: &Name, events: Vec<WatchEvent>) {
        for event in events {
            let shown = self.keys.lock().shown(lock, event);
            for (place, shown) in shown {
                let _ = self.step(&place, shown);
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
