//! What is seen of custom resources, each by itself: the leader looks at every one and tells, the others tell nothing. What
//! an object is called are labels of their own, `object_namespace` and `object_name`: Prometheus sets `namespace` and
//! `pod` to those of the operator's pod.

use std::{collections::BTreeMap, fmt, sync::Arc};

use concordat_protocol::Millis;
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector, encoding::DescriptorEncoder, metrics::MetricType, registry::Unit,
};

/// One thing that is measured of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measure {
    /// The metric without its prefix and unit.
    pub name: &'static str,
    /// What it tells.
    pub help: &'static str,
    /// The value.
    pub value: Value,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// How many there are.
    Count(u64),
    /// Since when something is so, milliseconds since the Unix epoch; `None`: it is not so, and 0 is told.
    Since(Option<Millis>),
}

impl Measure {
    /// How many there are of something.
    pub fn count(name: &'static str, help: &'static str, count: u64) -> Self {
        Self { name, help, value: Value::Count(count) }
    }

    /// For how long something is so: seconds when it is told.
    pub fn since(name: &'static str, help: &'static str, since: Option<Millis>) -> Self {
        Self { name, help, value: Value::Since(since) }
    }

    fn unit(&self) -> Option<Unit> {
        matches!(self.value, Value::Since(_)).then_some(Unit::Seconds)
    }
}

/// Kind, namespace and name.
type Which = (&'static str, String, String);

/// What was last seen of each object. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects(Arc<Mutex<BTreeMap<Which, Vec<Measure>>>>);

impl Objects {
    /// An object was looked at.
    pub(super) fn saw(&self, which: Which, measures: Vec<Measure>) {
        self.0.lock().insert(which, measures);
    }

    /// It is no longer there.
    pub(super) fn gone(&self, which: &Which) {
        self.0.lock().remove(which);
    }

    /// Somebody else looks at them now.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

impl Collector for Objects {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = Timestamp::now().as_millisecond() as Millis;
        let objects = self.0.lock();
        let mut metrics: BTreeMap<&str, Vec<(&Which, &Measure)>> = BTreeMap::new();
        for (which, measures) in objects.iter() {
            for measure in measures {
                metrics.entry(measure.name).or_default().push((which, measure));
            }
        }
        for (name, told) in metrics {
            let Some((_, first)) = told.first() else { continue };
            let (help, unit) = (format!("{}.", first.help), first.unit());
            let mut metric = encoder.encode_descriptor(name, &help, unit.as_ref(), MetricType::Gauge)?;
            for ((_, namespace, object), measure) in told {
                let labels = [("object_namespace", namespace.as_str()), ("object_name", object.as_str())];
                let mut series = metric.encode_family(&labels)?;
                match measure.value {
                    Value::Count(count) => series.encode_gauge(&count)?,
                    Value::Since(since) => {
                        let lasts = since.map_or(0, |since| now.saturating_sub(since));
                        series.encode_gauge(&(lasts as f64 / 1e3))?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    fn which(name: &str) -> Which {
        ("queue", "shop".into(), name.into())
    }

    fn seen(count: u64, since: Option<Millis>) -> Vec<Measure> {
        vec![Measure::count("ready", "Messages", count), Measure::since("oldest", "Age of the oldest", since)]
    }

    #[test]
    fn each_object_is_told_as_last_seen_until_it_is_gone() {
        let (mut registry, objects) = (Registry::with_prefix("concordat_operator"), Objects::default());
        registry.register_collector(Box::new(objects.clone()));
        let text = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        assert_eq!(text(), "# EOF\n");
        objects.saw(which("mails"), seen(7, None));
        objects.saw(which("jobs"), seen(1, None));
        objects.saw(which("mails"), seen(3, None));
        let expected = r#"# HELP concordat_operator_oldest_seconds Age of the oldest.
# TYPE concordat_operator_oldest_seconds gauge
# UNIT concordat_operator_oldest_seconds seconds
concordat_operator_oldest_seconds{object_namespace="shop",object_name="jobs"} 0.0
concordat_operator_oldest_seconds{object_namespace="shop",object_name="mails"} 0.0
# HELP concordat_operator_ready Messages.
# TYPE concordat_operator_ready gauge
concordat_operator_ready{object_namespace="shop",object_name="jobs"} 1
concordat_operator_ready{object_namespace="shop",object_name="mails"} 3
# EOF
"#;
        assert_eq!(text(), expected);
        objects.gone(&which("jobs"));
        assert!(!text().contains("jobs") && text().contains("mails"));
        objects.clear();
        assert_eq!(text(), "# EOF\n");
    }

    #[test]
    fn an_age_grows_until_it_is_told() {
        let objects = Objects::default();
        objects.saw(which("mails"), seen(1, Some(Timestamp::now().as_millisecond() as Millis - 60_000)));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(objects));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let line = text.lines().find(|line| line.starts_with("oldest_seconds{")).unwrap();
        let age: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(age >= 60.0, "{age}");
    }
}
