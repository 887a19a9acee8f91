//! What is counted, for `/metrics`: no label names an object, so that the number of series is bounded by the code.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use axum::response::Response;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry, Unit},
};

use crate::problem::Code;

/// Labels of an operation: the route as it is declared, never as it was called.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Operation {
    /// The route's pattern, `unmatched` for none.
    pub route: Arc<str>,
    /// The HTTP method.
    pub method: &'static str,
    /// The HTTP status.
    pub status: u16,
}

/// Labels of a latency.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Route {
    /// The route's pattern.
    pub route: Arc<str>,
    /// The HTTP method.
    pub method: &'static str,
}

/// Labels of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorCode {
    /// The problem's code.
    pub code: &'static str,
}

/// All that the sidecar counts.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Answers of the API.
    pub operations: Family<Operation, Counter>,
    /// Refusals.
    pub errors: Family<ErrorCode, Counter>,
    /// From the head of a request to that of its answer, in seconds; the wait of a long poll is in it.
    pub latency: Family<Route, Histogram>,
    /// Requests that ended in a panic, and tasks that did.
    pub panics: Counter,
    /// Plans in one commit.
    pub batch: Histogram,
    /// From the sending of a commit to its answer, in seconds.
    pub round_trip: Histogram,
    /// Sessions that were lost.
    pub session_losses: Counter,
    /// Seconds since the session was opened; 0 without one.
    pub session_age: Gauge<f64, AtomicU64>,
}

/// 0.25 ms to 16 s: below is the loopback, above are long polls.
pub(crate) fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 17))
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("concordat_sidecar")),
            operations: Family::default(),
            errors: Family::default(),
            latency: Family::new_with_constructor(latencies),
            panics: Counter::default(),
            batch: Histogram::new(exponential_buckets(1.0, 2.0, 8)),
            round_trip: latencies(),
            session_losses: Counter::default(),
            session_age: Gauge::default(),
        };
        metrics.register("operations", "Answers of the API", metrics.operations.clone());
        metrics.register("errors", "Refusals by code", metrics.errors.clone());
        metrics.register_seconds("operation", "Time to an answer", metrics.latency.clone());
        metrics.register("panics", "Requests and tasks that ended in a panic", metrics.panics.clone());
        metrics.register("batch_plans", "Plans in one commit", metrics.batch.clone());
        metrics.register_seconds("etcd_round_trip", "Time to commit", metrics.round_trip.clone());
        metrics.register("session_losses", "Sessions that were lost", metrics.session_losses.clone());
        metrics.register_seconds("session_age", "Age of the session", metrics.session_age.clone());
        metrics
    }
}

impl Metrics {
    /// Adds a metric, named without prefix and without `_total`.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry.lock().register(name, help, metric);
    }

    /// Adds a metric in seconds, named without prefix and unit.
    pub fn register_seconds(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry.lock().register_with_unit(name, help, Unit::Seconds, metric);
    }

    /// Counts an answer of the API: its route's pattern, its method, and how long it took.
    pub fn answered(&self, route: Arc<str>, method: &'static str, response: &Response, took: Duration) {
        if let Some(Code(code)) = response.extensions().get() {
            self.errors.get_or_create(&ErrorCode { code }).inc();
        }
        let status = response.status().as_u16();
        self.latency.get_or_create(&Route { route: route.clone(), method }).observe(took.as_secs_f64());
        self.operations.get_or_create(&Operation { route, method, status }).inc();
    }

    /// All of it, as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &self.registry.lock());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_in_their_unit() {
        let metrics = Metrics::default();
        metrics
            .operations
            .get_or_create(&Operation { route: "/v1/locks/{lock}".into(), method: "POST", status: 200 })
            .inc();
        metrics
            .latency
            .get_or_create(&Route { route: "/v1/locks/{lock}".into(), method: "POST" })
            .observe(0.1);
        metrics.errors.get_or_create(&ErrorCode { code: "lock-held" }).inc();
        let text = metrics.encode();
        for line in [
            r#"concordat_sidecar_operations_total{route="/v1/locks/{lock}",method="POST",status="200"} 1"#,
            r#"concordat_sidecar_errors_total{code="lock-held"} 1"#,
            r#"concordat_sidecar_operation_seconds_count{route="/v1/locks/{lock}",method="POST"} 1"#,
            "concordat_sidecar_session_age_seconds 0.0",
            "concordat_sidecar_etcd_round_trip_seconds_count 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
