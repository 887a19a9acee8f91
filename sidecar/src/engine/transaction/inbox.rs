//! What comes to this sidecar: items for its app, answers to what it coordinates, and the sessions of everybody.

use std::sync::Arc;

use concordat_protocol::{
    Entry, Key, Range, Record, SessionId,
    transaction::{coordinator, participant},
};
use concordat_store::{SessionState, WatchEvent};

use super::Inner;

/// Follows this sidecar's session: each one has an inbox of its own, and inherits nothing.
pub(super) async fn follow_session(inner: Arc<Inner>) {
    let mut states = inner.store.sessions();
    let mut reading = tokio::spawn(read(inner.clone(), inner.session.lock().clone()));
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        match state {
            SessionState::Lost(_) => {
                reading.abort();
                inner.lose_all();
                inner.take_every_part(&participant::Input::Ended);
            }
            SessionState::Live(session) => {
                // It may have been lost and replaced between two looks.
                reading.abort();
                inner.lose_all();
                inner.take_every_part(&participant::Input::Ended);
                *inner.session.lock() = session.clone();
                inner.move_parts();
                inner.stats.all_changed();
                reading = tokio::spawn(read(inner.clone(), session));
                inner.sweep.notify_one();
            }
        }
    }
}

/// Reads the inbox of a session.
async fn read(inner: Arc<Inner>, session: SessionId) {
    let mut watch = inner.store.watch(Range::InboxOf(inner.identity.app.clone(), Some(session)));
    loop {
        for event in watch.next().await {
            match event {
                WatchEvent::Snapshot { revision, entries } => {
                    forget_what_is_gone(&inner, &entries, revision);
                    for entry in entries {
                        take(&inner, entry);
                    }
                }
                WatchEvent::Put(entry) => take(&inner, entry),
                WatchEvent::Deleted { key: Key::Work { transaction, branch, .. }, revision } => {
                    inner.take_part(&(transaction, branch), participant::Input::Gone(revision));
                }
                WatchEvent::Deleted { .. } | WatchEvent::Progress(_) => {}
            }
        }
    }
}

fn take(inner: &Arc<Inner>, Entry { key, record, mod_revision, .. }: Entry) {
    match (key, record) {
        (Key::Work { transaction, branch, .. }, Record::Work(work)) => {
            inner.take_item((transaction, branch), mod_revision, work);
        }
        (Key::Answer { transaction, branch, .. }, Record::Answer(reply)) => {
            inner.coordinate(&transaction, coordinator::Input::Answered(branch, mod_revision, reply));
        }
        _ => {}
    }
}

fn forget_what_is_gone(inner: &Arc<Inner>, entries: &[Entry], revision: i64) {
    let known: Vec<_> = inner.parts.lock().keys().cloned().collect();
    for id in known {
        let there = entries.iter().any(|entry| {
            matches!(&entry.key, Key::Work { transaction, branch, .. } if *transaction == id.0 && *branch == id.1)
        });
        if !there {
            inner.take_part(&id, participant::Input::Gone(revision));
        }
    }
}

/// Keeps the peers, and has the state looked at when one is gone.
pub(super) async fn follow_peers(inner: Arc<Inner>) {
    let mut watch = inner.store.watch(Range::Sessions);
    loop {
        for event in watch.next().await {
            let mut peers = inner.peers.lock();
            match event {
                WatchEvent::Snapshot { entries, .. } => {
                    *peers = Default::default();
                    for entry in entries {
                        if let (Key::Session(id), Record::Session(session)) = (entry.key, entry.record) {
                            peers.put(id, session);
                        }
                    }
                    inner.synced.send_replace(true);
                    inner.sweep.notify_one();
                }
                WatchEvent::Put(Entry {
                    key: Key::Session(id), record: Record::Session(session), ..
                }) => peers.put(id, session),
                WatchEvent::Deleted { key: Key::Session(id), .. } => {
                    peers.remove(&id);
                    inner.sweep.notify_one();
                }
                _ => {}
            }
        }
    }
}

/// Has the state looked at when there is work for the first sidecar of the app to come.
pub(super) async fn follow_unclaimed(inner: Arc<Inner>) {
    let mut watch = inner.store.watch(Range::InboxOf(inner.identity.app.clone(), None));
    loop {
        let events = watch.next().await;
        if events.iter().any(|event| matches!(event, WatchEvent::Put(_))) {
            inner.sweep.notify_one();
        }
    }
}
