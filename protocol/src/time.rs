//! Time as a value. Clocks decide when something is tried, never what is true.

/// Milliseconds: a span, or an instant of one of the two clocks of [`Now`].
pub type Millis = u64;

/// The time at which an input is handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now {
    /// Milliseconds of a clock that never goes back, counted from the start of the process: for every wait and belief.
    pub monotonic: Millis,
    /// Milliseconds since the Unix epoch: only for what must mean the same to another process, such as a deadline
    /// in a record.
    pub unix: Millis,
}

impl Now {
    /// How long until the wall clock shows `unix`; zero when it is past.
    pub fn until_unix(self, unix: Millis) -> Millis {
        unix.saturating_sub(self.unix)
    }
}
