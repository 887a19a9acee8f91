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

/// What one sidecar counts for one object. It is put within 2 s after one of the values changed, never more often, and
/// is what makes the operator look at the object again.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stat {
    /// A name of [`counter`] and its value, sorted by name; one that is missing is 0.
    pub counters: Vec<(String, u64)>,
}

impl Stat {
    /// The value of a counter.
    pub fn get(&self, name: &str) -> u64 {
        self.counters.iter().find(|(of, _)| of == name).map_or(0, |(_, value)| *value)
    }
}

/// The names of what a [`Stat`] counts. Totals count since the sidecar started.
pub mod counter {
    /// Lock, total: grants.
    pub const GRANTED: &str = "granted";
    /// Lock: callers that wait now.
    pub const WAITERS: &str = "waiters";
    /// Lock: since when the longest of them waits, milliseconds since the Unix epoch; 0 when nobody does.
    pub const WAITING_SINCE: &str = "waitingSince";

    /// Queue, total: messages stored.
    pub const PUBLISHED: &str = "published";
    /// Queue, total: deliveries.
    pub const DELIVERED: &str = "delivered";
    /// Queue, total: messages acknowledged.
    pub const ACKNOWLEDGED: &str = "acknowledged";
    /// Queue, total: messages given up.
    pub const DEAD_LETTERED: &str = "deadLettered";
    /// Queue: 1 while callers wait for messages or work on some, else 0.
    pub const CONSUMERS: &str = "consumers";

    /// Transaction, total: begun or adopted.
    pub const BEGUN: &str = "begun";
    /// Transaction, total: finished by commit.
    pub const COMMITTED: &str = "committed";
    /// Transaction, total: finished by abort.
    pub const ABORTED: &str = "aborted";
    /// Transaction: that cannot go on without a person, among those it coordinates.
    pub const STUCK: &str = "stuck";
}
