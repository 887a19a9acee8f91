//! What happens in etcd makes objects be looked at: sidecars count what they do for an object, every 2 s at most, and the
//! operator watches these counts instead of locks, messages and transactions themselves.

use std::collections::{BTreeSet, HashSet};

use concordat_protocol::{Key, Kind, Range};
use concordat_store::{Admin, Watch, WatchEvent};
use futures::{StreamExt, channel::mpsc, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// An object by namespace and name.
pub type Named = (String, String);

/// Where each kind's pipeline is told of objects that something happened to.
pub struct Senders {
    /// Of Locks.
    pub locks: mpsc::UnboundedSender<Named>,
    /// Of Queues.
    pub queues: mpsc::UnboundedSender<Named>,
    /// Of DistributedTransactions.
    pub transactions: mpsc::UnboundedSender<Named>,
}

/// The namespaces in which there are objects.
pub struct Namespaces {
    known: Mutex<HashSet<String>>,
    new: mpsc::UnboundedSender<String>,
    more: Notify,
}

impl Namespaces {
    /// None yet; and where new ones come out, for [`run`].
    pub fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (new, news) = mpsc::unbounded();
        (Self { known: Mutex::default(), new, more: Notify::new() }, news)
    }

    /// Those that there were objects in since the term began.
    pub(crate) fn known(&self) -> BTreeSet<String> {
        self.known.lock().iter().cloned().collect()
    }

    /// Comes back once there are more of them than when it last did.
    pub(crate) async fn more(&self) {
        self.more.notified().await;
    }

    /// There is an object in this one.
    pub(crate) fn add(&self, namespace: &str) {
        if !self.known.lock().contains(namespace) {
            self.known.lock().insert(namespace.to_owned());
            let _ = self.new.unbounded_send(namespace.to_owned());
            self.more.notify_one();
        }
    }
}

/// Watches what sidecars count in every namespace that comes.
pub(crate) async fn run(admin: &Admin, mut namespaces: mpsc::UnboundedReceiver<String>, senders: &Senders) {
    let mut watches = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(namespace) = namespaces.next() => {
                let watch = admin.watch(&namespace, Range::AllStats);
                watches.push(next(namespace, watch));
            }
            Some((namespace, watch, events)) = watches.next() => {
                for event in events {
                    tell(&namespace, event, senders);
                }
                watches.push(next(namespace, watch));
            }
            else => return,
        }
    }
}

async fn next(namespace: String, mut watch: Watch) -> (String, Watch, Vec<WatchEvent>) {
    let events = watch.next().await;
    (namespace, watch, events)
}

fn tell(namespace: &str, event: WatchEvent, senders: &Senders) {
    let keys = match event {
        WatchEvent::Snapshot { entries, .. } => entries.into_iter().map(|entry| entry.key).collect(),
        WatchEvent::Put(entry) => vec![entry.key],
        WatchEvent::Deleted { key, .. } => vec![key],
        WatchEvent::Progress(_) => Vec::new(),
    };
    for key in keys {
        let Key::Stat { kind, name, .. } = key else { continue };
        let sender = match kind {
            Kind::Lock => &senders.locks,
            Kind::Queue => &senders.queues,
            Kind::Transaction => &senders.transactions,
        };
        // A pipeline that has ended need not be told.
        let _ = sender.unbounded_send((namespace.to_owned(), name.to_string()));
    }
}
