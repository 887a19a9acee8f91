//! What is counted over all locks, for Prometheus.

use prometheus_client::metrics::{
    counter::Counter,
    gauge::Gauge,
    histogram::{Histogram, exponential_buckets},
};

use crate::metrics::Metrics;

/// See the module.
pub(super) struct Counted {
    pub(super) grants: Counter,
    pub(super) contended: Counter,
    pub(super) wakeups: Counter,
    pub(super) losses: Counter,
    pub(super) waits: Histogram,
    pub(super) holds: Histogram,
    pub(super) waiters: Gauge,
}

impl Counted {
    pub(super) fn register(metrics: &Metrics) -> Self {
        let counted = Self {
            grants: Counter::default(),
            contended: Counter::default(),
            wakeups: Counter::default(),
            losses: Counter::default(),
            waits: Histogram::new(exponential_buckets(0.000_25, 2.0, 20)),
            holds: Histogram::new(exponential_buckets(0.001, 2.0, 24)),
            waiters: Gauge::default(),
        };
        metrics.register("lock_grants", "Locks granted", counted.grants.clone());
        metrics.register(
            "lock_contended",
            "Calls for a lock that found it held, and were sent away or had to wait",
            counted.contended.clone(),
        );
        metrics.register(
            "lock_wakeups",
            "Calls that asked for a lock and were woken, to be granted it or sent away",
            counted.wakeups.clone(),
        );
        metrics.register(
            "lock_losses",
            "Grants that ended otherwise than by their holder",
            counted.losses.clone(),
        );
        metrics.register_seconds(
            "lock_wait",
            "Time from asking for a lock to getting it",
            counted.waits.clone(),
        );
        metrics.register_seconds("lock_hold", "Time from getting a lock to its end", counted.holds.clone());
        metrics.register("lock_waiters", "Callers that wait for a lock", counted.waiters.clone());
        counted
    }
}
