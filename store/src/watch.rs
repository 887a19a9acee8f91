//! What changes: a listing, then everything that happened after it, nothing left out in silence.
//!
//! All watches of a process share one stream to etcd. A watch that cannot go on from where it was, because etcd has
//! compacted what came next or because its reader fell too far behind, lists again and says so by a snapshot.

mod hub;
mod list;

use std::{collections::VecDeque, sync::Arc};

use concordat_protocol::{Entry, Key};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

pub(crate) use hub::{Command, Scope, run};
pub(crate) use list::{list, list_keys};

/// How many events may wait for a reader before the watch gives up on them and lists again when it reads on.
const MAX_PENDING: usize = 65_536;

/// One thing that a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// All there is in the range at a revision. A second one replaces whatever is known: what is not in it is gone.
    Snapshot {
        /// The revision.
        revision: i64,
        /// In the order of etcd's keys. A queue's segments are empty: what they hold is to be read.
        entries: Vec<Entry>,
    },
    /// A record was put.
    Put(Entry),
    /// A key was deleted, or went with its lease.
    Deleted {
        /// The key.
        key: Key,
        /// The revision at which it went.
        revision: i64,
    },
    /// Everything up to this revision has been told.
    Progress(i64),
}

/// Tells what happens in a range.
#[derive(Debug)]
pub struct Watch {
    id: u64,
    mailbox: Arc<Mailbox>,
    hub: mpsc::UnboundedSender<Command>,
}

impl Watch {
    /// Starts a watch at a hub.
    pub(crate) fn start(id: u64, scope: Scope, hub: mpsc::UnboundedSender<Command>) -> Self {
        let mailbox = Arc::new(Mailbox::default());
        // A hub that is gone tells nothing more, and `next` waits for ever, as it does when nothing happens.
        let _ = hub.send(Command::Start { id, scope, mailbox: mailbox.clone() });
        Self { id, mailbox, hub }
    }

    /// Waits for what happens next: all events of a revision together, and all revisions that wait. The first one is a
    /// snapshot. May be dropped and called again.
    pub async fn next(&mut self) -> Vec<WatchEvent> {
        loop {
            let woken = self.mailbox.arrived.notified();
            let (events, overflown) = self.mailbox.take();
            if overflown {
                let _ = self.hub.send(Command::Relist { id: self.id });
            }
            if !events.is_empty() {
                return events;
            }
            woken.await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.hub.send(Command::Stop { id: self.id });
    }
}

/// Where events wait for their reader.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    pending: Mutex<Pending>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    events: VecDeque<WatchEvent>,
    overflown: bool,
}

impl Mailbox {
    /// Adds events, whole revisions of them. Answers false when they are too many: then the reader must be told all
    /// anew, once it reads on.
    pub(crate) fn put(&self, events: impl IntoIterator<Item = WatchEvent>) -> bool {
        let mut pending = self.pending.lock();
        for event in events {
            match (&event, pending.events.back_mut()) {
                (WatchEvent::Snapshot { .. }, _) => {
                    pending.events.clear();
                    pending.events.push_back(event);
                }
                (WatchEvent::Progress(at), Some(WatchEvent::Progress(last))) => *last = *at,
                _ => pending.events.push_back(event),
            }
        }
        let fits = pending.events.len() <= MAX_PENDING;
        if !fits {
            *pending = Pending { events: VecDeque::new(), overflown: true };
        }
        drop(pending);
        self.arrived.notify_one();
        fits
    }

    fn take(&self) -> (Vec<WatchEvent>, bool) {
        let mut pending = self.pending.lock();
        let overflown = std::mem::take(&mut pending.overflown);
        (pending.events.drain(..).collect(), overflown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_falls_behind_is_told_all_anew() {
        let mailbox = Mailbox::default();
        let gone = |revision| WatchEvent::Deleted { key: Key::Epoch, revision };
        assert!(mailbox.put((0..MAX_PENDING as i64).map(gone)));
        assert!(!mailbox.put([gone(1)]));
        assert_eq!(mailbox.take(), (vec![], true));
        let snapshot = WatchEvent::Snapshot { revision: 9, entries: vec![] };
        assert!(mailbox.put([gone(8), snapshot.clone(), WatchEvent::Progress(10), WatchEvent::Progress(11)]));
        assert_eq!(mailbox.take(), (vec![snapshot, WatchEvent::Progress(11)], false));
    }
}
