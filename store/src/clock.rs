//! The only place that reads clocks.

use std::time::{SystemTime, UNIX_EPOCH};

use concordat_protocol::{Millis, Now};
use tokio::time::Instant;

/// Both clocks of a process, as [`Now`] has them.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts the monotonic clock at zero.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time.
    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic: self.monotonic(), unix: unix.as_millis() as Millis }
    }

    /// Milliseconds since the start.
    pub fn monotonic(&self) -> Millis {
        self.start.elapsed().as_millis() as Millis
    }

    /// The instant at which the monotonic clock shows `at`.
    pub fn instant(&self, at: Millis) -> Instant {
        self.start + std::time::Duration::from_millis(at)
    }
}
