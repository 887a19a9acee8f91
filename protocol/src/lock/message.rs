//! What goes into the machine of a key and what comes out of it.

use std::fmt;

use super::{Fence, Holder, Mode, Share};
use crate::{Answer, Entry, Key, Millis, Plan, SessionId};

/// What proves a grant: an opaque nonce that no other call ever shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u128);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A call that awaits its answer: a number that the sidecar never uses twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub u64);

/// A call for the lock; durations in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// Who calls.
    pub caller: Caller,
    /// The token of the grant, should there be one: fresh randomness.
    pub token: Token,
    /// The sidecar's session, which must live for as long as the caller waits.
    pub session: SessionId,
    /// The sidecar's pod, for people.
    pub pod: String,
    /// What the caller calls itself, for people.
    pub owner: String,
    /// Create revision of the definition it asks under.
    pub definition: i64,
    /// The definition's mode.
    pub mode: Mode,
    /// How long to wait; 0: answer at once.
    pub wait: Millis,
    /// How many may wait in this sidecar; 0: nobody, so that only what is free can be had.
    pub max_waiters: usize,
    /// How much of the lock it asks for.
    pub share: Share,
    /// How long others are kept from the lock when its holder is lost; modes Lease and FairQueue.
    pub lock_delay: Millis,
    /// How long the grant lasts unless it is renewed.
    pub ttl: Millis,
    /// How long it lasts at most, however often it is renewed; 0: no bound.
    pub max_hold: Millis,
    /// Whether it renews itself up to `max_hold`.
    pub renew: bool,
}

/// What a machine is told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// A call for the lock.
    Acquire(Request),
    /// The caller hung up before its answer: it waits no more, and what it was granted is freed.
    Cancel(Caller),
    /// A call to hold for another ttl.
    Renew {
        /// Who calls.
        caller: Caller,
        /// With what.
        token: Token,
        /// Until when the lease of [`Machine::lease`](super::Machine::lease) is believed, monotonic milliseconds; 0 when
        /// it is over.
        believed: Millis,
    },
    /// A call to let go.
    Release {
        /// Who calls.
        caller: Caller,
        /// With what.
        token: Token,
    },
    /// What the plan under way came to. Told after [`Input::Lost`] when the session is no longer believed.
    Landed {
        /// What etcd answered, or why there is no answer.
        outcome: Result<Answer, Failure>,
        /// Until when the lease of [`Machine::lease`](super::Machine::lease) is believed, monotonic milliseconds; 0 when
        /// it is over.
        believed: Millis,
    },
    /// What the plan of [`Effect::Free`] came to.
    Freed(Result<Answer, Failure>),
    /// What the watch shows of the key.
    Seen(Seen),
    /// Another sidecar wants the lock that this one has since the holder's key was created at this revision.
    Wanted {
        /// That revision.
        life: i64,
    },
    /// What stays here is to be let go: there is no room for it.
    LetGo,
    /// The lock's definition is now the one created at this revision, or none.
    Defined(Option<i64>),
    /// A session of this sidecar is no longer believed.
    Lost(SessionId),
    /// The time of [`Machine::wake_at`](super::Machine::wake_at) has come.
    Tick {
        /// Until when the lease of [`Machine::lease`](super::Machine::lease) is believed, monotonic milliseconds; 0 when
        /// it is over.
        believed: Millis,
    },
    /// The sidecar stops: whoever waits is sent away and what is held is freed.
    Drain,
}

/// What the watch shows of what etcd keeps under a key of a lock, in the order of its revisions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// All there is; what was seen before and is not in it is gone.
    All {
        /// Revision as of which it is so.
        revision: i64,
        /// In no order.
        entries: Vec<Entry>,
    },
    /// A record was put.
    Put(Entry),
    /// A record was deleted, or went with its lease.
    Deleted {
        /// Its key.
        key: Key,
        /// The revision at which it went.
        revision: i64,
    },
}

/// Why a plan has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// It was not applied and never will be.
    NotApplied,
    /// It may have been applied, or be applied yet.
    Unknown,
    /// Its session is over; it was not applied.
    SessionEnded,
}

/// What a machine wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Run this plan and tell [`Input::Landed`]. There is one under way at a time.
    Commit(Plan),
    /// Run this plan, which deletes only, and tell [`Input::Freed`]. There is one under way at a time, beside that of
    /// [`Effect::Commit`].
    Free(Plan),
    /// Answer a caller.
    Reply(Caller, Result<Reply, Rejected>),
    /// The grant of this token ended otherwise than by its holder's will.
    Lost(Token),
}

/// An answer to a caller that got what it wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// The lock is the caller's.
    Granted {
        /// Proof.
        token: Token,
        /// Fence.
        fence: Fence,
        /// How long it is safe to say so, milliseconds.
        expires_in: Millis,
        /// How long the caller waited, milliseconds.
        waited: Millis,
    },
    /// It stays the caller's.
    Renewed {
        /// How long it is safe to say so, milliseconds.
        expires_in: Millis,
    },
    /// The token holds nothing any more.
    Released,
}

/// Who has the lock instead, or had it and was lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rival {
    /// The holder.
    pub holder: Holder,
    /// When its grant ends if it is not renewed, milliseconds from now: known of a caller of the same sidecar only. Of a
    /// lost one, when its lock-delay is over.
    pub expires_in: Option<Millis>,
}

/// Why a caller did not get what it wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejected {
    /// Another holds it and the caller did not want to wait.
    #[error("the lock is held")]
    Held(Box<Rival>),
    /// The wait is over; who holds it, when that is known.
    #[error("the wait is over")]
    TimedOut(Option<Box<Rival>>),
    /// As many wait as may.
    #[error("too many wait for the lock")]
    Full,
    /// The lock was deleted.
    #[error("there is no such lock")]
    Deleted,
    /// The lock was deleted and made again while the caller waited.
    #[error("the lock was replaced")]
    Replaced,
    /// The grant, or the session that the caller waited under, is over.
    #[error("the lock was lost")]
    Lost,
    /// The token is not the holder's.
    #[error("the token does not hold the lock")]
    Mismatch,
    /// etcd gave no answer, or the sidecar stops.
    #[error("etcd gave no answer")]
    Unavailable {
        /// Whether the lock may have been taken for the caller; if so it is freed again.
        unknown: bool,
    },
    /// Nothing awaited this answer.
    #[error("no plan is under way")]
    NothingUnderWay,
}
