//! One key of a lock as one sidecar sees it, whatever the lock's mode.

use std::collections::BTreeSet;

use super::{Caller, Effect, Fair, Fence, Holder, Input, Mode, Rejected, Swap};
use crate::{Key, Millis, Name, Now, SessionId};

/// How long after a plan failed the next is tried, milliseconds.
pub const RETRY: Millis = 100;
/// How long etcd may take to answer a caller that does not wait, milliseconds.
pub const PATIENCE: Millis = 5_000;
/// How long a plan may be under way before etcd counts as giving no answer, milliseconds.
pub const STALL: Millis = 1_000;
/// How long a lock that nobody asks for stays with its sidecar, milliseconds; not longer than its ttl.
pub const STAY: Millis = 10_000;
/// How long a grant of a lock that may stay lasts before etcd is told of it, milliseconds.
pub const UNTOLD: Millis = 2_000;
/// How long a sidecar may take to say whether a lock only stays with it before a caller that does not wait is told that
/// it is held, milliseconds.
pub const ANSWER: Millis = 3_000;
/// How often a lock goes from one local caller to the next while another sidecar may want it.
pub const TURNS: u32 = 16;
/// How long a sidecar lets others go first once it has let go of what they want, milliseconds.
pub const YIELD: Millis = 50;
/// How many ended grants of a key are remembered, so that a repeated release is told from a wrong one.
pub const REMEMBERED: usize = 16;

/// The machine of a key: which one it is, the lock's mode says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    /// [`Mode::CompareAndSwap`] and [`Mode::Lease`].
    Swap(Swap),
    /// [`Mode::FairQueue`].
    Fair(Fair),
}

impl Machine {
    /// The machine of a key that this sidecar knows nothing of. `offset` is what a restored etcd's revisions are
    /// raised by, for the fence.
    pub fn new(lock: Name, key: Name, offset: i64, mode: Mode) -> Self {
        match mode {
            Mode::CompareAndSwap | Mode::Lease => Self::Swap(Swap::new(lock, key, offset, mode)),
            Mode::FairQueue => Self::Fair(Fair::new(lock, key, offset)),
        }
    }

    /// One step. Refused, it changes nothing.
    pub fn step(&mut self, input: Input, now: Now) -> Result<Vec<Effect>, Rejected> {
        match self {
            Self::Swap(swap) => swap.step(input, now),
            Self::Fair(fair) => fair.step(input, now),
        }
    }

    /// The mode that it runs.
    pub fn mode(&self) -> Mode {
        match self {
            Self::Swap(swap) => swap.mode(),
            Self::Fair(_) => Mode::FairQueue,
        }
    }

    /// Tells until when the session's lease of a ttl is believed, monotonic milliseconds and 0 when it is over: before
    /// each step, of the leases that it asks about.
    pub fn believe(&mut self, believed: impl Fn(&SessionId, Millis) -> Millis) {
        match self {
            Self::Swap(swap) => swap.believe(believed),
            Self::Fair(fair) => fair.believe(believed),
        }
    }

    /// Tells until when the sidecar counts on hearing of [`Input::Wanted`] without delay, monotonic milliseconds: before
    /// each step. No lock stays without.
    pub fn hears(&mut self, until: Millis) {
        match self {
            Self::Swap(swap) => swap.hears(until),
            Self::Fair(_) => {}
        }
    }

    /// Create revision of the definition under which a lock stays here that nobody holds.
    pub fn stays(&self) -> Option<i64> {
        match self {
            Self::Swap(swap) => swap.stays(),
            Self::Fair(_) => None,
        }
    }

    /// Who of this sidecar's callers holds it, in the modes in which one does, and with which fence.
    pub fn holding(&self) -> Option<(Holder, Fence)> {
        match self {
            Self::Swap(swap) => swap.holding(),
            Self::Fair(_) => None,
        }
    }

    /// The session and time to live of the lease whose belief matters now: that of the grant, or of what is being
    /// tried.
    pub fn lease(&self) -> Option<(SessionId, Millis)> {
        match self {
            Self::Swap(swap) => swap.lease(),
            Self::Fair(_) => None,
        }
    }

    /// Keys of the line of mode [`Mode::FairQueue`] that it deletes, or has deleted: etcd may show them yet.
    pub fn deletes(&self) -> BTreeSet<Key> {
        match self {
            Self::Swap(_) => BTreeSet::new(),
            Self::Fair(fair) => fair.deletes(),
        }
    }

    /// When to tell [`Input::Tick`], monotonic milliseconds.
    pub fn wake_at(&self) -> Option<Millis> {
        match self {
            Self::Swap(swap) => swap.wake_at(),
            Self::Fair(fair) => fair.wake_at(),
        }
    }

    /// Whether to tell [`Input::Seen`], beginning with a [`Seen::All`](super::Seen::All).
    pub fn watches(&self) -> bool {
        match self {
            Self::Swap(swap) => swap.watches(),
            Self::Fair(fair) => fair.watches(),
        }
    }

    /// Whether nothing is held, tried or waited for.
    pub fn is_idle(&self) -> bool {
        match self {
            Self::Swap(swap) => swap.is_idle(),
            Self::Fair(fair) => fair.is_idle(),
        }
    }

    /// How many callers wait.
    pub fn waiters(&self) -> usize {
        match self {
            Self::Swap(swap) => swap.waiters(),
            Self::Fair(fair) => fair.waiters(),
        }
    }

    /// Those of them who came after this one, and wait for another who is known to hold it.
    pub fn contenders(&self, after: Caller) -> Vec<Caller> {
        match self {
            Self::Swap(swap) => swap.contenders(after),
            Self::Fair(fair) => fair.contenders(after),
        }
    }

    /// Since when the first of them waits, monotonic milliseconds.
    pub fn waiting_since(&self) -> Option<Millis> {
        match self {
            Self::Swap(swap) => swap.waiting_since(),
            Self::Fair(fair) => fair.waiting_since(),
        }
    }

    /// The grant of one of this sidecar's callers: the revision of its key and when it ends unless renewed, monotonic
    /// milliseconds.
    pub fn grant(&self) -> Option<(i64, Millis)> {
        match self {
            Self::Swap(swap) => swap.grant(),
            Self::Fair(_) => None,
        }
    }

    /// When the grant of this fence ends unless renewed, monotonic milliseconds, if it is of one of this sidecar's
    /// callers.
    pub fn ends(&self, fence: Fence) -> Option<Millis> {
        match self {
            Self::Swap(swap) => swap.ends(fence),
            Self::Fair(fair) => fair.ends(fence),
        }
    }
}
