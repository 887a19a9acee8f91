//! Where things are remembered: every key there is, as a type. The text form belongs to the store.

use crate::{App, Branch, Kind, Name, SessionId, TransactionId, queue::SegmentId};

/// One key of a namespace. Each variant says who writes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Settings of a custom resource. Written by the operator (or `concordat dev`).
    Definition {
        /// Kind of the resource.
        kind: Kind,
        /// Its name.
        name: Name,
    },
    /// A live sidecar, leased. Written by that sidecar.
    Session(SessionId),
    /// A leased key by which others of the same session are guarded: a flusher's last batch (`0`, `1`), or the
    /// life of a further lease of the session (`ttl-15000`, `retention-600000-3`). Written by that sidecar.
    Marker {
        /// The sidecar's session.
        session: SessionId,
        /// Which of its markers.
        name: Name,
    },
    /// An operation for a participant. Put by the coordinator, deleted or moved by the participant's sidecar.
    Work {
        /// The participant's app.
        app: App,
        /// The sidecar it is for; `None` for the first one to come.
        session: Option<SessionId>,
        /// Transaction.
        transaction: TransactionId,
        /// Branch.
        branch: Branch,
    },
    /// A vote or acknowledgement for a coordinator. Put by the participant's sidecar, deleted by the coordinator.
    Answer {
        /// The coordinator's app.
        app: App,
        /// The coordinator's session.
        session: SessionId,
        /// Transaction.
        transaction: TransactionId,
        /// Branch.
        branch: Branch,
    },
    /// A transaction undecided or not yet applied everywhere. Written by its coordinator (the operator puts one of
    /// `run: Once` unowned).
    Transaction(TransactionId),
    /// A finished transaction, leased for its retention. Written by its coordinator.
    Done(TransactionId),
    /// Who holds a lock, leased. Written by the holder's sidecar.
    Holder {
        /// The Lock.
        lock: Name,
        /// The key under it.
        key: Name,
    },
    /// A place in the line of a lock of mode FairQueue, leased, never used again. Put and deleted by the waiter's
    /// sidecar.
    Waiter {
        /// The Lock.
        lock: Name,
        /// The key under it.
        key: Name,
        /// The waiter's sidecar.
        session: SessionId,
        /// The sidecar's own counter: no two waiters of a session share it.
        number: u64,
    },
    /// That somebody may hold a lock, not leased: without what it is the shadow of it tells of a lost holder. Put by
    /// the holder's sidecar, deleted by it, or deleted or replaced by whoever has waited for the lock-delay.
    Shadow {
        /// The Lock.
        lock: Name,
        /// The key under it.
        key: Name,
        /// The holder's sidecar. Empty in mode Lease, in which a key has one shadow, whoever holds it.
        session: SessionId,
        /// The sidecar's own counter: no two shadows of a session share it. 0 in mode Lease.
        number: u64,
    },
    /// That a sidecar wants a lock of mode CompareAndSwap which may stay with its holder's sidecar, leased. Put by the
    /// one that wants it; deleted by the holder's sidecar, which answers it, else by the one that put it.
    Want {
        /// The holder's sidecar.
        holder: SessionId,
        /// The Lock.
        lock: Name,
        /// The key under it.
        key: Name,
        /// The sidecar that wants it.
        session: SessionId,
    },
    /// Messages published together, never changed. Written by the publisher's sidecar.
    Segment {
        /// The Queue.
        queue: Name,
        /// Partition, from 0.
        partition: u32,
        /// Which segment.
        segment: SegmentId,
    },
    /// What became of a segment's messages: acknowledged, deliveries, delays. Written by whoever takes or settles
    /// messages of it, by compare-and-swap.
    Progress {
        /// The Queue.
        queue: Name,
        /// Partition.
        partition: u32,
        /// Segment.
        segment: SegmentId,
    },
    /// Messages of a segment in delivery, leased. Written by the consumer's sidecar.
    Claim {
        /// The Queue.
        queue: Name,
        /// Partition.
        partition: u32,
        /// Segment.
        segment: SegmentId,
        /// The claiming sidecar.
        session: SessionId,
        /// The sidecar's own counter: no two claims of a session share it.
        number: u64,
    },
    /// A message that was given up, leased for its retention. Written by the sidecar that gave it up.
    Dead {
        /// The Queue.
        queue: Name,
        /// Partition.
        partition: u32,
        /// Segment it was published in.
        segment: SegmentId,
        /// Its place in the segment.
        index: u32,
    },
    /// That a message was stored, leased for the dedup window. Written by the publisher's sidecar.
    Dedup {
        /// The Queue.
        queue: Name,
        /// `Idempotency-Key`, or `Producer-Id` and `Producer-Seq` joined by a `/`, with a prefix that tells them apart.
        producer: Name,
    },
    /// A sidecar's counters for an object, leased, at most every 2 s. Written by that sidecar.
    Stat {
        /// Kind of the object.
        kind: Kind,
        /// Its name.
        name: Name,
        /// The sidecar.
        session: SessionId,
    },
    /// Which etcd the namespace is of, and what its fences are raised by. Written by compare-and-swap: by the sidecar
    /// that comes first, by whoever finds that etcd was restored, and by `concordat epoch raise`.
    Timeline,
    /// The operator's leadership, one for the whole of etcd and in no namespace: every plan of the operator compares
    /// it. Written by the operator that became leader.
    Epoch,
}

/// A set of keys that one etcd range holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Range {
    /// Exactly this key.
    One(Key),
    /// All definitions.
    Definitions,
    /// All sessions.
    Sessions,
    /// The markers of all sessions.
    Markers,
    /// Work and answers for every sidecar of an app.
    Inbox(App),
    /// Work and answers for one sidecar of an app (`None`: work for the first one to come).
    InboxOf(App, Option<SessionId>),
    /// The answers one coordinator has for one transaction.
    Answers(App, SessionId, TransactionId),
    /// All transactions that are not finished.
    Transactions,
    /// All finished transactions still remembered.
    Finished,
    /// Everything of one Lock.
    Lock(Name),
    /// Everything of one key of a Lock.
    LockKey(Name, Name),
    /// Everything of all Locks.
    Locks,
    /// What others want of one sidecar.
    Wants(SessionId),
    /// Who wants one key of a Lock of one sidecar.
    WantsOf(SessionId, Name, Name),
    /// Everything of one Queue.
    Queue(Name),
    /// The segments, progress records and claims of one Queue: what its consumers watch.
    Live(Name),
    /// The segments of one Queue.
    Segments(Name),
    /// The progress records of one Queue.
    Progresses(Name),
    /// The claims of one Queue.
    Claims(Name),
    /// The claims of one segment.
    ClaimsOf(Name, u32, SegmentId),
    /// The dead letters of one Queue.
    DeadLetters(Name),
    /// The counters of one object.
    Stats(Kind, Name),
    /// The counters of all objects.
    AllStats,
    /// Everything of the namespace.
    All,
}

impl From<Key> for Range {
    fn from(key: Key) -> Self {
        Self::One(key)
    }
}

impl Range {
    /// Whether the range holds the key. [`Key::Epoch`] is in no namespace and in no range but its own.
    pub fn contains(&self, key: &Key) -> bool {
        match (self, key) {
            (Self::One(one), key) => one == key,
            (Self::All, key) => *key != Key::Epoch,
            (Self::Definitions, Key::Definition { .. })
            | (Self::Sessions, Key::Session(_))
            | (Self::Markers, Key::Marker { .. })
            | (Self::Transactions, Key::Transaction(_))
            | (Self::Finished, Key::Done(_))
            | (Self::Locks, Key::Holder { .. } | Key::Waiter { .. } | Key::Shadow { .. })
            | (Self::AllStats, Key::Stat { .. }) => true,
            (Self::Inbox(app), Key::Work { app: of, .. } | Key::Answer { app: of, .. }) => app == of,
            (Self::InboxOf(app, session), Key::Work { app: of, session: to, .. }) => {
                app == of && session == to
            }
            (Self::InboxOf(app, session), Key::Answer { app: of, session: to, .. }) => {
                app == of && session.as_ref() == Some(to)
            }
            (Self::Answers(app, session, id), Key::Answer { app: of, session: to, transaction, .. }) => {
                app == of && session == to && id == transaction
            }
            (
                Self::Lock(name),
                Key::Holder { lock, .. } | Key::Waiter { lock, .. } | Key::Shadow { lock, .. },
            ) => name == lock,
            (
                Self::LockKey(name, of),
                Key::Holder { lock, key } | Key::Waiter { lock, key, .. } | Key::Shadow { lock, key, .. },
            ) => name == lock && of == key,
            (Self::Wants(of), Key::Want { holder, .. }) => of == holder,
            (Self::WantsOf(of, name, key), Key::Want { holder, lock, key: at, .. }) => {
                of == holder && name == lock && key == at
            }
            (
                Self::Queue(name),
                Key::Segment { queue, .. }
                | Key::Progress { queue, .. }
                | Key::Claim { queue, .. }
                | Key::Dead { queue, .. }
                | Key::Dedup { queue, .. },
            )
            | (
                Self::Live(name),
                Key::Segment { queue, .. } | Key::Progress { queue, .. } | Key::Claim { queue, .. },
            )
            | (Self::Segments(name), Key::Segment { queue, .. })
            | (Self::Progresses(name), Key::Progress { queue, .. })
            | (Self::Claims(name), Key::Claim { queue, .. })
            | (Self::DeadLetters(name), Key::Dead { queue, .. }) => name == queue,
            (Self::ClaimsOf(name, number, id), Key::Claim { queue, partition, segment, .. }) => {
                name == queue && number == partition && id == segment
            }
            (Self::Stats(kind, name), Key::Stat { kind: of, name: object, .. }) => {
                kind == of && name == object
            }
            _ => false,
        }
    }

    /// Whether some key could be in both ranges; never false when one is.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::One(key), range) | (range, Self::One(key)) => range.contains(key),
            (Self::All, _) | (_, Self::All) => true,
            (Self::Inbox(a), Self::Inbox(b) | Self::InboxOf(b, _) | Self::Answers(b, ..))
            | (Self::InboxOf(b, _) | Self::Answers(b, ..), Self::Inbox(a)) => a == b,
            (Self::InboxOf(a, s), Self::Answers(b, t, _)) | (Self::Answers(b, t, _), Self::InboxOf(a, s)) => {
                a == b && s.as_ref() == Some(t)
            }
            (Self::Lock(a), Self::LockKey(b, _)) | (Self::LockKey(b, _), Self::Lock(a)) => a == b,
            (Self::Locks, Self::Lock(_) | Self::LockKey(..))
            | (Self::Lock(_) | Self::LockKey(..), Self::Locks)
            | (Self::AllStats, Self::Stats(..))
            | (Self::Stats(..), Self::AllStats) => true,
            (Self::Wants(a), Self::WantsOf(b, ..)) | (Self::WantsOf(b, ..), Self::Wants(a)) => a == b,
            (Self::Queue(a), b) | (b, Self::Queue(a)) => b.queue() == Some(a),
            (Self::Live(a), b) | (b, Self::Live(a)) => {
                b.queue() == Some(a) && !matches!(b, Self::DeadLetters(_))
            }
            (Self::Claims(a), Self::ClaimsOf(b, ..)) | (Self::ClaimsOf(b, ..), Self::Claims(a)) => a == b,
            (a, b) => a == b,
        }
    }

    fn queue(&self) -> Option<&Name> {
        match self {
            Self::Queue(name)
            | Self::Live(name)
            | Self::Segments(name)
            | Self::Progresses(name)
            | Self::Claims(name)
            | Self::ClaimsOf(name, ..)
            | Self::DeadLetters(name) => Some(name),
            _ => None,
        }
    }
}
