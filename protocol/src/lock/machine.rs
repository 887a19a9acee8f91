//! One key of a lock as one sidecar sees it, whatever the lock's mode.

use super::{Effect, Fair, Fence, Input, Mode, Rejected, Swap};
use crate::{Millis, Name, Now, SessionId};

/// How long after a plan failed the next is tried, milliseconds.
pub const RETRY: Millis = 100;
/// How long etcd may take to answer a caller that does not wait, milliseconds.
pub const PATIENCE: Millis = 5_000;
/// How long a plan may be under way before etcd counts as giving no answer, milliseconds.
pub const STALL: Millis = 1_000;
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
    /// each step, of the leases that it asks about. Machines of a single lease are told with the input.
    pub fn believe(&mut self, believed: impl Fn(&SessionId, Millis) -> Millis) {
        match self {
            Self::Swap(_) => {}
            Self::Fair(fair) => fair.believe(believed),
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

    /// Since when the first of them waits, monotonic milliseconds.
    pub fn waiting_since(&self) -> Option<Millis> {
        match self {
            Self::Swap(swap) => swap.waiting_since(),
            Self::Fair(fair) => fair.waiting_since(),
        }
    }

    /// The grant of one of this sidecar's callers: its revision and when it ends unless renewed, monotonic
    /// milliseconds.
    pub fn grant(&self) -> Option<(i64, Millis)> {
        match self {
            Self::Swap(swap) => swap.grant(),
            Self::Fair(_) => None,
        }
    }

    /// When the grant of this fence ends unless renewed, monotonic milliseconds, if it is of one of this sidecar's
    /// callers.
    pub fn ends(&self, fence: Fence, offset: i64) -> Option<Millis> {
        match self {
            Self::Swap(swap) => swap
                .grant()
                .filter(|(revision, _)| Fence::new(*revision, offset, 0) == Some(fence))
                .map(|(_, end)| end),
            Self::Fair(fair) => fair.ends(fence),
        }
    }
}
