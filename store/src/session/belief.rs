//! How long a lease may be believed to live, judged by this process alone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use concordat_protocol::Millis;

/// What is taken off a lease's time to live, for clocks that do not run alike, in milliseconds.
const MARGIN: Millis = 1_000;

/// Until when a lease is believed: (time of *sending* the last successful keepalive) + TTL − 1 s. Once it is over it is
/// over for good.
#[derive(Debug)]
pub(crate) struct Belief {
    ttl: Millis,
    until: AtomicU64,
    over: AtomicBool,
}

impl Belief {
    /// Of a lease of `ttl` milliseconds that was asked for at `sent`.
    pub(crate) fn new(sent: Millis, ttl: Millis) -> Self {
        Self { ttl, until: AtomicU64::new(sent + ttl - MARGIN.min(ttl)), over: AtomicBool::new(false) }
    }

    /// The lease's time to live, milliseconds.
    pub(crate) fn ttl(&self) -> Millis {
        self.ttl
    }

    /// A keepalive sent at `sent` was answered, as is known at `now`: too late, if belief was over by then.
    pub(crate) fn extend(&self, sent: Millis, now: Millis) {
        if self.holds(now) {
            self.until.fetch_max(sent + self.ttl - MARGIN.min(self.ttl), Ordering::AcqRel);
        }
    }

    /// Ends it at once.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether the lease may be acted upon at `now`. What was once answered false is never answered true again.
    pub(crate) fn holds(&self, now: Millis) -> bool {
        if self.over.load(Ordering::Acquire) {
            return false;
        }
        let holds = now < self.until.load(Ordering::Acquire);
        if !holds {
            self.end();
        }
        holds
    }

    /// When it ends unless it is extended: 0 when it is over.
    pub(crate) fn until(&self) -> Millis {
        if self.over.load(Ordering::Acquire) { 0 } else { self.until.load(Ordering::Acquire) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn belief_counts_from_sending_and_stops_a_second_early() {
        let belief = Belief::new(1_000, 10_000);
        assert_eq!(belief.until(), 10_000);
        belief.extend(4_000, 6_000);
        assert_eq!(belief.until(), 13_000);
        assert!(belief.holds(12_999));
        assert!(!belief.holds(13_000));
    }

    #[test]
    fn what_was_lost_is_never_held_again() {
        let belief = Belief::new(0, 10_000);
        belief.extend(8_000, 8_999);
        assert!(belief.holds(16_999), "answered just in time");
        let late = Belief::new(0, 10_000);
        assert!(!late.holds(9_000));
        late.extend(8_500, 9_100);
        assert!(!late.holds(9_100));
        assert_eq!(late.until(), 0);
    }
}
