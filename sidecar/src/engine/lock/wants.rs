//! What other sidecars want of this one: one watch for all that it has.

use std::sync::Arc;

use concordat_protocol::{Entry, Key, Millis, Range, Record, lock::Input};
use concordat_store::WatchEvent;

use super::{Inner, Place};

/// How long after the watch was last heard of it counts as telling without delay, milliseconds. etcd is asked for a sign
/// every second.
const FRESH: Millis = 2_000;

impl Inner {
    /// Tells the machines what others want, for as long as the process lives.
    pub(super) async fn listen(self: Arc<Self>) {
        let mut sessions = self.store.sessions();
        loop {
            let session = self.store.session().id;
            let mut watch = self.store.watch(Range::Wants(session.clone()));
            while self.store.session().id == session {
                tokio::select! {
                    events = watch.next() => self.heard(events),
                    changed = sessions.changed() => if changed.is_err() {
                        return;
                    },
                }
            }
            self.keys.lock().hears = 0;
        }
    }

    fn heard(self: &Arc<Self>, events: Vec<WatchEvent>) {
        self.keys.lock().hears = self.now().monotonic.saturating_add(FRESH);
        for event in events {
            match event {
                WatchEvent::Snapshot { entries, .. } => entries.iter().for_each(|entry| self.wanted(entry)),
                WatchEvent::Put(entry) => self.wanted(&entry),
                WatchEvent::Deleted { .. } | WatchEvent::Progress(_) => {}
            }
        }
    }

    fn wanted(self: &Arc<Self>, entry: &Entry) {
        if let (Key::Want { lock, key, .. }, Record::Want(want)) = (&entry.key, &entry.record) {
            let place = Place { lock: lock.clone(), key: key.clone() };
            let _ = self.step(&place, Input::Wanted { life: want.life });
        }
    }
}
