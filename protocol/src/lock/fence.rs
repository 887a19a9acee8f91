//! Fences: what a resource keeps beside its data to refuse those who held the lock before.

use std::fmt;

/// Grants that can share one revision: the first made by etcd, the rest handed over inside a sidecar.
pub const PLACES: u64 = 1 << 10;

/// No fence is larger, so that every JSON parser reads it exactly.
pub const LIMIT: u64 = 1 << 53;

/// A number that rises strictly from grant to grant of one key: (revision + offset) · 2¹⁰ + place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(u64);

impl Fence {
    /// The fence of a grant that etcd made at `revision`, the `place`-th of that revision (from 0). `offset` is what
    /// a restored etcd's revisions are raised by. `None` when the number would not be safe: no grant can be given.
    pub fn new(revision: i64, offset: i64, place: u64) -> Option<Self> {
        let raised = u64::try_from(revision.checked_add(offset)?).ok()?;
        let fence = raised.checked_mul(PLACES)?.checked_add(place)?;
        (place < PLACES && fence < LIMIT).then_some(Self(fence))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
