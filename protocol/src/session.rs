//! What a sidecar says of itself, and what an object's users did through it.

use crate::App;

/// A live sidecar.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session {
    /// The pod it runs in, for people.
    pub pod: String,
    /// The app whose part it takes.
    pub app: App,
    /// Whether it takes new work: false while it drains.
    pub accepts: bool,
}

/// A sidecar's counters for one object since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stat {
    /// Name and value, in the order of the object's kind.
    pub counters: Vec<(String, u64)>,
}
