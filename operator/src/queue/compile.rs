//! A `Queue` becomes settings.

use concordat_crds::{
    Bytes, Duration, Queue, QueueSpec,
    queue::{DeadLetter, OnFull as Full, QueueMode, QueueOrdering, Retention},
};
use concordat_protocol::queue::{Mode, OnFull, Ordering, Settings};

use crate::invalid::{Invalid, duration, hours, object_name, seconds, within};

const NONE: Duration = seconds(0);
const YEAR: Duration = hours(8760);

/// The settings that sidecars get, or what to change.
pub fn compile(object: &Queue) -> Result<Settings, Invalid> {
    let QueueSpec {
        mode,
        partitions,
        ordering,
        visibility,
        max_deliveries,
        backoff,
        dead_letter: DeadLetter { queue: dead_letters, retention: dead_letter_retention },
        retention: Retention { age, bytes },
        on_full,
        max_message_bytes,
        dedup_window,
    } = &object.spec;
    let mode = match mode {
        QueueMode::WorkQueue => Mode::WorkQueue,
        QueueMode::PubSub => Mode::PubSub,
        QueueMode::Log => Mode::Log,
    };
    let on_full = match on_full {
        Full::Refuse => OnFull::Refuse,
        Full::DropOldest if mode == Mode::WorkQueue => {
            return Err(Invalid::new(
                "spec.onFull",
                "must be Refuse: DropOldest is for modes PubSub and Log only",
            ));
        }
        Full::DropOldest => OnFull::DropOldest,
    };
    if backoff.len() > 16 {
        return Err(Invalid::new(
            "spec.backoff",
            format!("must hold at most 16 waits, not {}", backoff.len()),
        ));
    }
    let backoff = backoff
        .iter()
        .enumerate()
        .map(|(place, wait)| duration(&format!("spec.backoff[{place}]"), *wait, NONE..=hours(24)))
        .collect::<Result<_, _>>()?;
    let bytes = within("spec.retention.bytes", *bytes, Bytes::kibi(1)..=Bytes::mebi(1 << 20))?;
    let largest = within("spec.maxMessageBytes", *max_message_bytes, Bytes::new(1)..=Bytes::mebi(1))?;
    if largest > bytes {
        return Err(Invalid::new(
            "spec.maxMessageBytes",
            format!("must not exceed spec.retention.bytes, which is {bytes}"),
        ));
    }
    Ok(Settings {
        mode,
        partitions: within("spec.partitions", *partitions, 1..=64)?,
        ordering: match ordering {
            QueueOrdering::None => Ordering::None,
            QueueOrdering::Key => Ordering::Key,
        },
        visibility: duration("spec.visibility", *visibility, seconds(1)..=hours(12))?,
        max_deliveries: within("spec.maxDeliveries", *max_deliveries, 1..=1000)?,
        backoff,
        dead_letter_queue: dead_letter_queue(object, dead_letters)?.map(Into::into),
        dead_letter_retention: duration(
            "spec.deadLetter.retention",
            *dead_letter_retention,
            seconds(1)..=YEAR,
        )?,
        retention_age: duration("spec.retention.age", *age, seconds(1)..=YEAR)?,
        retention_bytes: bytes.get(),
        on_full,
        max_message_bytes: largest.get(),
        dedup_window: duration("spec.dedupWindow", *dedup_window, NONE..=hours(24))?,
    })
}

fn dead_letter_queue<'a>(object: &Queue, name: &'a str) -> Result<Option<&'a str>, Invalid> {
    const FIELD: &str = "spec.deadLetter.queue";
    if name.is_empty() {
        return Ok(None);
    }
    if object.metadata.name.as_deref() == Some(name) {
        return Err(Invalid::new(
            FIELD,
            "must name another queue: a queue cannot be its own dead letter queue",
        ));
    }
    object_name(FIELD, name)?;
    Ok(Some(name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn queue(spec: Value) -> Queue {
        Queue::new("q", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn every_field_reaches_the_settings() {
        let object = queue(json!({
            "mode": "Log", "partitions": 2, "ordering": "Key", "visibility": "3s", "maxDeliveries": 4,
            "backoff": ["5s", "6s"], "deadLetter": { "queue": "dead.letters", "retention": "7s" },
            "retention": { "age": "8s", "bytes": "9Ki" }, "onFull": "DropOldest", "maxMessageBytes": "10",
            "dedupWindow": "11s",
        }));
        assert_eq!(
            compile(&object),
            Ok(Settings {
                mode: Mode::Log,
                partitions: 2,
                ordering: Ordering::Key,
                visibility: 3_000,
                max_deliveries: 4,
                backoff: vec![5_000, 6_000],
                dead_letter_queue: Some("dead.letters".into()),
                dead_letter_retention: 7_000,
                retention_age: 8_000,
                retention_bytes: 9 * 1024,
                on_full: OnFull::DropOldest,
                max_message_bytes: 10,
                dedup_window: 11_000,
            })
        );
    }

    #[test]
    fn what_is_left_out_has_the_documented_default() {
        const WEEK: u64 = 168 * 3_600_000;
        assert_eq!(
            compile(&queue(json!({ "mode": "WorkQueue" }))),
            Ok(Settings {
                mode: Mode::WorkQueue,
                partitions: 1,
                ordering: Ordering::None,
                visibility: 30_000,
                max_deliveries: 5,
                backoff: vec![1_000, 5_000, 30_000],
                dead_letter_queue: None,
                dead_letter_retention: WEEK,
                retention_age: WEEK,
                retention_bytes: 256 << 20,
                on_full: OnFull::Refuse,
                max_message_bytes: 256 << 10,
                dedup_window: 300_000,
            })
        );
    }

    #[test]
    fn only_what_works_counts_as_supported() {
        for (spec, supported) in [
            (json!({ "mode": "WorkQueue" }), true),
            (json!({ "mode": "WorkQueue", "partitions": 8 }), true),
            (json!({ "mode": "WorkQueue", "ordering": "Key" }), false),
            (json!({ "mode": "PubSub" }), false),
            (json!({ "mode": "Log" }), false),
        ] {
            assert_eq!(compile(&queue(spec.clone())).unwrap().supported(), supported, "{spec}");
        }
    }

    #[test]
    fn a_dead_letter_queue_has_any_name_that_a_queue_may_have() {
        let name = format!("{}.graves", "a".repeat(70));
        let settings =
            compile(&queue(json!({ "mode": "WorkQueue", "deadLetter": { "queue": name } }))).unwrap();
        assert_eq!(settings.dead_letter_queue, Some(name.as_str().into()));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_change() {
        let long = "a.".repeat(127);
        for (spec, refusal) in [
            (
                json!({ "mode": "WorkQueue", "onFull": "DropOldest" }),
                "spec.onFull must be Refuse: DropOldest is for modes PubSub and Log only",
            ),
            (
                json!({ "mode": "WorkQueue", "backoff": vec!["1s"; 17] }),
                "spec.backoff must hold at most 16 waits, not 17",
            ),
            (
                json!({ "mode": "WorkQueue", "backoff": ["1s", "25h"] }),
                "spec.backoff[1] must be between 0s and 24h, not 25h",
            ),
            (
                json!({ "mode": "WorkQueue", "retention": { "bytes": "1Ki" }, "maxMessageBytes": "2Ki" }),
                "spec.maxMessageBytes must not exceed spec.retention.bytes, which is 1Ki",
            ),
            (
                json!({ "mode": "WorkQueue", "deadLetter": { "queue": "q" } }),
                "spec.deadLetter.queue must name another queue: a queue cannot be its own dead letter queue",
            ),
            (
                json!({ "mode": "WorkQueue", "deadLetter": { "queue": long } }),
                "spec.deadLetter.queue must have at most 253 characters, not 254",
            ),
            (
                json!({ "mode": "WorkQueue", "deadLetter": { "queue": "a/b" } }),
                "spec.deadLetter.queue must be an object's name: lower-case letters, digits, '-' and '.', each part \
                 between dots beginning and ending with a letter or digit; not \"a/b\"",
            ),
            (
                json!({ "mode": "WorkQueue", "partitions": 65 }),
                "spec.partitions must be between 1 and 64, not 65",
            ),
        ] {
            assert_eq!(compile(&queue(spec)).unwrap_err().to_string(), refusal);
        }
    }
}
