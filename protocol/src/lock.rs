//! Locks.
//!
//! [`Machine`] is one key of a lock as one sidecar sees it: who of its callers waits, holds or lets go. All it decides
//! it asks of etcd by the plans of [`plans`]. [`invariant`] says what must be true of any run.

pub mod fair;
pub mod fence;
pub mod invariant;
pub mod machine;
pub mod message;
pub mod plans;
pub mod several;
mod share;
pub mod swap;

pub use fair::Fair;
pub use fence::Fence;
pub use machine::Machine;
pub use message::{Caller, Effect, Failure, Input, Rejected, Reply, Request, Rival, Seen, Token};
pub use plans::Found;
pub use several::Several;
pub use share::Share;
pub use swap::Swap;

use crate::{Millis, Name, SessionId};

/// How a lock is agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// One compare-and-swap, no order among waiters.
    CompareAndSwap,
    /// The same, and nobody is granted a lock for a while after its holder was lost.
    Lease,
    /// First come, first served.
    FairQueue,
}

/// Who may hold it together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sharing {
    /// One holder.
    Mutex,
    /// One writer or many readers.
    ReadWrite,
    /// As many as there are permits.
    Semaphore,
}

/// Settings of a Lock; durations in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Settings {
    /// `spec.mode`.
    pub mode: Mode,
    /// `spec.kind`.
    pub sharing: Sharing,
    /// `spec.permits`.
    pub permits: u32,
    /// `spec.ttl`: how long a grant lasts without being renewed.
    pub ttl: Millis,
    /// `spec.lockDelay`.
    pub lock_delay: Millis,
    /// `spec.maxHold`, 0 for none.
    pub max_hold: Millis,
    /// `spec.maxWait`.
    pub max_wait: Millis,
    /// `spec.maxWaiters`.
    pub max_waiters: u32,
    /// `spec.daprStore`: what apps written for Dapr's lock API call it.
    pub dapr_store: Option<Name>,
}

impl Settings {
    /// Whether the mode and kind work yet; others are refused, never replaced.
    pub fn supported(&self) -> bool {
        match self.mode {
            Mode::CompareAndSwap | Mode::Lease => self.sharing == Sharing::Mutex,
            Mode::FairQueue => true,
        }
    }
}

/// Who holds a key of a lock. The fence is made of the record's create revision and of `regrants`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// The holder's sidecar.
    pub session: SessionId,
    /// Its pod, for people.
    pub pod: String,
    /// What the holder calls itself, for people.
    pub owner: String,
    /// When it was granted, milliseconds since the Unix epoch, for people.
    pub since: Millis,
    /// How often its sidecar had granted it anew since the key was put; 0 but in mode [`Mode::CompareAndSwap`].
    pub regrants: u32,
    /// Whether it stays with its sidecar when it is let go: then only that sidecar knows whether anybody holds it, and
    /// by whom and how often it was granted since. Mode [`Mode::CompareAndSwap`] alone.
    pub stays: bool,
}

/// That another sidecar wants a lock that may stay with its holder's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Want {
    /// Create revision of the holder's key.
    pub life: i64,
}

/// Who stands in the line of a lock of mode [`Mode::FairQueue`]. It holds the lock once all before it do, and its share
/// fits beside theirs; its fence is made of the record's create revision and its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Waiter {
    /// Who it is; `since` tells when it came to stand there.
    pub holder: Holder,
    /// How much of the lock it asks for.
    pub share: Share,
    /// Its place among the waiters that were put with it, from 0.
    pub place: u32,
}

/// What is left of a holder that was lost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shadow {
    /// Who it is, as in what it is the shadow of.
    pub holder: Holder,
    /// How much of the lock it held.
    pub share: Share,
    /// The Lock's `lockDelay` as of then: how long the others wait once it is lost, milliseconds.
    pub delay: Millis,
}
