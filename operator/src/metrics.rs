//! What the operator counts of itself, and what it sees of custom resources, for Prometheus.

mod objects;

use std::{fmt, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use self::objects::Objects;
pub use self::objects::{Measure, Value};
use crate::pki::Life;

/// Upper bounds of the time that one pass over an object takes, seconds.
const BUCKETS: [f64; 8] = [0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pass {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    certificate: &'static str,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// The operator's metrics, `concordat_operator_*`. Labels that name an object are there only of custom resources, and
/// only while this operator leads: never of a key, a message or a transaction.
pub struct Metrics {
    registry: Mutex<Registry>,
    objects: Objects,
    leading: Gauge,
    passes: Family<Pass, Counter>,
    seconds: Family<OfKind, Histogram>,
    statuses: Family<OfKind, Counter>,
    writes: Family<Outcome, Counter>,
    admissions: Family<Outcome, Counter>,
    admission_seconds: Histogram,
    not_before: Family<Of, Gauge>,
    not_after: Family<Of, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("concordat_operator");
        let objects = Objects::default();
        registry.register_collector(Box::new(objects.clone()));
        let leading = Gauge::default();
        let passes = Family::default();
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let statuses = Family::default();
        let writes = Family::default();
        let admissions = Family::default();
        let admission_seconds = histogram();
        let not_before = Family::default();
        let not_after = Family::default();
        registry.register("leading", "1 while this operator leads", leading.clone());
        registry.register("reconciles", "Passes over objects", passes.clone());
        registry.register("reconcile_seconds", "Time that a pass takes", seconds.clone());
        registry.register("status_patches", "Statuses written to Kubernetes", statuses.clone());
        registry.register("etcd_writes", "Plans run on etcd", writes.clone());
        registry.register("admissions", "Pods that the webhook was asked about", admissions.clone());
        registry.register("admission_seconds", "Time that an answer takes", admission_seconds.clone());
        let help = "When a certificate's life begins, seconds since 1970";
        registry.register("certificate_not_before_timestamp_seconds", help, not_before.clone());
        let help = "When a certificate's life ends, seconds since 1970";
        registry.register("certificate_not_after_timestamp_seconds", help, not_after.clone());
        Self {
            registry: Mutex::new(registry),
            objects,
            leading,
            passes,
            seconds,
            statuses,
            writes,
            admissions,
            admission_seconds,
            not_before,
            not_after,
        }
    }
}

impl Metrics {
    pub(crate) fn leads(&self, leads: bool) {
        self.leading.set(i64::from(leads));
        if !leads {
            self.objects.clear();
        }
    }

    /// An object of a kind was looked at.
    pub(crate) fn saw(&self, kind: &'static str, namespace: &str, name: &str, measures: Vec<Measure>) {
        self.objects.saw((kind, namespace.to_owned(), name.to_owned()), measures);
    }

    /// It is no longer there.
    pub(crate) fn gone(&self, kind: &'static str, namespace: &str, name: &str) {
        self.objects.gone(&(kind, namespace.to_owned(), name.to_owned()));
    }

    pub(crate) fn passed(&self, kind: &'static str, ok: bool, took: Duration) {
        let result = if ok { "ok" } else { "error" };
        self.passes.get_or_create(&Pass { kind, result }).inc();
        self.seconds.get_or_create(&OfKind { kind }).observe(took.as_secs_f64());
    }

    pub(crate) fn patched(&self, kind: &'static str) {
        self.statuses.get_or_create(&OfKind { kind }).inc();
    }

    pub(crate) fn wrote(&self, held: bool) {
        let result = if held { "applied" } else { "refused" };
        self.writes.get_or_create(&Outcome { result }).inc();
    }

    pub(crate) fn admitted(&self, result: &'static str, took: Duration) {
        self.admissions.get_or_create(&Outcome { result }).inc();
        self.admission_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn certified(&self, certificate: &'static str, life: Life) {
        self.not_before.get_or_create(&Of { certificate }).set(life.not_before.as_second());
        self.not_after.get_or_create(&Of { certificate }).set(life.not_after.as_second());
    }

    /// All of it as OpenMetrics text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_name() {
        let metrics = Metrics::default();
        metrics.leads(true);
        metrics.passed("lock", false, Duration::from_millis(20));
        metrics.patched("queue");
        metrics.wrote(true);
        metrics.admitted("injected", Duration::from_millis(2));
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        metrics.certified("webhook", Life { not_before: at(1), not_after: at(2) });
        metrics.saw("queue", "shop", "mails", vec![Measure::count("queue_ready", "Messages", 4)]);
        let text = metrics.text().unwrap();
        for line in [
            "concordat_operator_leading 1",
            r#"concordat_operator_reconciles_total{kind="lock",result="error"} 1"#,
            r#"concordat_operator_reconcile_seconds_bucket{le="0.025",kind="lock"} 1"#,
            r#"concordat_operator_status_patches_total{kind="queue"} 1"#,
            r#"concordat_operator_etcd_writes_total{result="applied"} 1"#,
            r#"concordat_operator_admissions_total{result="injected"} 1"#,
            r#"concordat_operator_admission_seconds_bucket{le="0.005"} 1"#,
            r#"concordat_operator_certificate_not_before_timestamp_seconds{certificate="webhook"} 1"#,
            r#"concordat_operator_certificate_not_after_timestamp_seconds{certificate="webhook"} 2"#,
            r#"concordat_operator_queue_ready{object_namespace="shop",object_name="mails"} 4"#,
        ] {
            assert!(text.lines().any(|of| of == line), "no {line} in\n{text}");
        }
        metrics.leads(false);
        let text = metrics.text().unwrap();
        assert!(
            !text.contains("mails") && text.contains("reconciles"),
            "who leads tells of objects:\n{text}"
        );
    }
}
