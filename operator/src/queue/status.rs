//! What is seen of a `Queue` becomes its status.

use concordat_crds::{
    Queue, QueueStatus,
    conditions::{DEAD_LETTERS, DRAINING, reason},
};
use concordat_protocol::{
    Entry, Key, Kind, Millis, Name, Range, Record,
    queue::{Fate, Progress, Segment, counts::Counts},
    session::counter,
};
use jiff::Timestamp;

use crate::{
    age,
    conditions::{Fact, Standing, merge},
    metrics::Measure,
};

/// What is remembered of a Queue: counts alone, but for the oldest segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// How many messages stand where.
    pub counts: Counts,
    /// Sidecars through which somebody consumes.
    pub consumers: u64,
    /// When the oldest message that is not finished was published, milliseconds since the Unix epoch.
    pub oldest: Option<Millis>,
}

impl State {
    /// Of which ranges to list the keys, for [`State::of`]: bodies are not needed.
    pub fn listed(name: &Name) -> Vec<Range> {
        vec![Range::Segments(name.clone()), Range::DeadLetters(name.clone())]
    }

    /// What to read, for [`State::of`].
    pub fn ranges(name: &Name) -> Vec<Range> {
        vec![
            Range::Progresses(name.clone()),
            Range::Claims(name.clone()),
            Range::Stats(Kind::Queue, name.clone()),
        ]
    }

    /// From the keys in [`State::listed`] with their create revisions, and the records in [`State::ranges`] and of the
    /// oldest segment ([`State::oldest`]), at a time in milliseconds since the Unix epoch. The reads may be of
    /// different revisions: a status says about how many.
    pub fn of(keys: &[(Key, i64)], records: &[Entry], now: Millis) -> Self {
        let consumers = records.iter().filter_map(|entry| match &entry.record {
            Record::Stat(stat) => Some(stat.get(counter::CONSUMERS).min(1)),
            _ => None,
        });
        Self {
            counts: Counts::of(keys.iter().map(|(key, _)| key), records, now),
            consumers: consumers.sum(),
            oldest: records.iter().filter_map(|entry| oldest_left(entry, records)).min(),
        }
    }

    /// The segment published first, among keys with their create revisions.
    pub fn oldest(keys: &[(Key, i64)]) -> Option<&Key> {
        keys.iter()
            .filter(|(key, _)| matches!(key, Key::Segment { .. }))
            .min_by_key(|(_, create_revision)| create_revision)
            .map(|(key, _)| key)
    }

    /// What metrics tell of the queue.
    pub fn measures(&self) -> Vec<Measure> {
        let counts = &self.counts;
        vec![
            Measure::count("queue_ready", "Messages that a consumer could have now", counts.ready),
            Measure::count("queue_in_flight", "Messages in delivery", counts.in_flight),
            Measure::count(
                "queue_delayed",
                "Messages that wait for a delay or back-off to end",
                counts.delayed,
            ),
            Measure::count("queue_dead_letters", "Dead letters kept beside the queue", counts.dead),
            Measure::count("queue_consumers", "Sidecars through which somebody consumes", self.consumers),
            Measure::since(
                "queue_oldest_message",
                "Age of the oldest message that is not finished",
                self.oldest,
            ),
        ]
    }
}

/// When the oldest message of a segment that is not finished was published.
fn oldest_left(entry: &Entry, records: &[Entry]) -> Option<Millis> {
    let (Key::Segment { queue, partition, segment }, Record::Segment(Segment { messages })) =
        (&entry.key, &entry.record)
    else {
        return None;
    };
    let (queue, partition, segment) = (queue.clone(), *partition, segment.clone());
    let progress = Key::Progress { queue, partition, segment };
    let fates = records.iter().find_map(|entry| match &entry.record {
        Record::Progress(Progress { fates }) if entry.key == progress => Some(fates.as_slice()),
        _ => None,
    });
    let finished = |place: usize| fates.unwrap_or_default().get(place).is_some_and(Fate::finished);
    (0..).zip(messages).filter(|(place, _)| !finished(*place)).map(|(_, message)| message.published).min()
}

/// The status after `object.status`, given where the object stands and what was read (`None`: nothing could be).
pub fn status(object: &Queue, standing: &Standing, state: Option<&State>, now: Timestamp) -> QueueStatus {
    let previous = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let mut status = state.map_or_else(|| previous.clone(), |state| counts(state, now));
    let facts = vec![standing.fact(), draining(standing, &status), dead_letters(status.dead)];
    status.observed_generation = Some(generation);
    status.conditions = merge(&previous.conditions, facts, generation, now);
    status
}

fn counts(state: &State, now: Timestamp) -> QueueStatus {
    let now = now.as_millisecond() as Millis;
    let Counts { ready, in_flight, delayed, dead, .. } = state.counts;
    QueueStatus {
        ready,
        in_flight,
        delayed,
        dead,
        oldest_age: state.oldest.map(|published| age::shown(now.saturating_sub(published))),
        consumers: state.consumers,
        ..QueueStatus::default()
    }
}

fn draining(standing: &Standing, status: &QueueStatus) -> Fact {
    let left = status.ready + status.in_flight + status.delayed;
    match standing {
        Standing::Deleting(_) if left > 0 => {
            Fact::new(DRAINING, true, reason::MESSAGES_LEFT, format!("{left} messages are left to remove"))
        }
        Standing::Deleting(_) => Fact::new(DRAINING, false, reason::DELETING, "no message is left"),
        _ => Fact::new(DRAINING, false, reason::IN_USE, "the queue is in use"),
    }
}

fn dead_letters(count: u64) -> Fact {
    if count > 0 {
        let message = "messages used up their deliveries: browse and redrive them through a sidecar";
        Fact::new(DEAD_LETTERS, true, reason::DELIVERIES_EXHAUSTED, message)
    } else {
        Fact::new(DEAD_LETTERS, false, reason::NO_DEAD_LETTERS, "no message used up its deliveries")
    }
}

#[cfg(test)]
mod tests {
    use concordat_crds::queue::QueueSpec;
    use concordat_protocol::{
        queue::{Claim, Message, SegmentId, Stage},
        session::Stat,
    };
    use serde_json::json;

    use super::*;
    use crate::metrics::Value;

    fn queue() -> Queue {
        let spec: QueueSpec = serde_json::from_value(json!({ "mode": "WorkQueue" })).unwrap();
        let mut queue = Queue::new("jobs", spec);
        queue.metadata.generation = Some(2);
        queue
    }

    fn id(number: u64, messages: u32) -> SegmentId {
        SegmentId { session: "p".into(), number, messages, bytes: 10 }
    }

    fn segment(number: u64, messages: u32) -> Key {
        Key::Segment { queue: "jobs".into(), partition: 0, segment: id(number, messages) }
    }

    fn entry(key: Key, record: impl Into<Record>) -> Entry {
        Entry { key, record: record.into(), create_revision: 1, mod_revision: 1, lease: 0 }
    }

    fn progress(number: u64, messages: u32, fates: &[(Stage, Millis)]) -> Entry {
        let fates = fates
            .iter()
            .map(|(stage, not_before)| Fate { stage: *stage, deliveries: 1, not_before: *not_before })
            .collect();
        let key = Key::Progress { queue: "jobs".into(), partition: 0, segment: id(number, messages) };
        entry(key, Progress { fates })
    }

    fn claim(number: u64, messages: u32, places: &[u32]) -> Entry {
        let key = Key::Claim {
            queue: "jobs".into(),
            partition: 0,
            segment: id(number, messages),
            session: "c".into(),
            number: 0,
        };
        entry(key, Claim { places: places.iter().map(|place| (*place, 1)).collect() })
    }

    fn stat(session: &str, consumers: u64) -> Entry {
        let key = Key::Stat { kind: Kind::Queue, name: "jobs".into(), session: session.into() };
        entry(key, Stat { counters: vec![("consumers".into(), consumers)] })
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn every_count_comes_from_what_was_read() {
        use Stage::{Acknowledged, Delivered, GivenUp, Waiting};
        let published = |at| Message { published: at, ..Message::default() };
        let oldest = Segment {
            messages: vec![published(10_000), published(40_000), published(39_000), published(60_000)],
        };
        let dead = Key::Dead { queue: "jobs".into(), partition: 0, segment: id(9, 1), index: 0 };
        let keys = [(segment(1, 5), 20), (segment(2, 4), 10), (dead, 5)];
        let records = [
            // Segment 1: one finished, one delayed, one whose delay is over, two untouched, of which one is claimed.
            progress(
                1,
                5,
                &[(GivenUp, 0), (Waiting, 200_000), (Waiting, 50_000), (Delivered, 0), (Waiting, 0)],
            ),
            claim(1, 5, &[3]),
            // Segment 2: the claim also names what is finished, and what is delayed no longer since it is claimed.
            progress(2, 4, &[(Acknowledged, 0), (Delivered, 300_000), (Waiting, 0), (Waiting, 0)]),
            claim(2, 4, &[0, 1]),
            stat("a", 1),
            stat("b", 0),
            stat("c", 1),
            entry(segment(2, 4), oldest),
        ];
        let state = State::of(&keys, &records, 100_000);
        assert_eq!(
            state,
            State {
                counts: Counts { ready: 4, in_flight: 2, delayed: 1, dead: 1, bytes: 20 },
                consumers: 2,
                oldest: Some(39_000),
            }
        );
        let measured: Vec<_> = state.measures().iter().map(|of| (of.name, of.value)).collect();
        assert_eq!(
            measured,
            [
                ("queue_ready", Value::Count(4)),
                ("queue_in_flight", Value::Count(2)),
                ("queue_delayed", Value::Count(1)),
                ("queue_dead_letters", Value::Count(1)),
                ("queue_consumers", Value::Count(2)),
                ("queue_oldest_message", Value::Since(Some(39_000))),
            ]
        );
        assert_eq!(
            serde_json::to_value(status(&queue(), &Standing::Accepted, Some(&state), at(100))).unwrap(),
            json!({
                "observedGeneration": 2,
                "ready": 4,
                "inFlight": 2,
                "delayed": 1,
                "dead": 1,
                "oldestAge": "1m",
                "consumers": 2,
                "conditions": [
                    { "type": "DeadLetters", "status": "True", "reason": "DeliveriesExhausted",
                      "message": "messages used up their deliveries: browse and redrive them through a sidecar",
                      "observedGeneration": 2, "lastTransitionTime": "1970-01-01T00:01:40Z" },
                    { "type": "Draining", "status": "False", "reason": "InUse", "message": "the queue is in use",
                      "observedGeneration": 2, "lastTransitionTime": "1970-01-01T00:01:40Z" },
                    { "type": "Ready", "status": "True", "reason": "Accepted",
                      "message": "the definition is in force",
                      "observedGeneration": 2, "lastTransitionTime": "1970-01-01T00:01:40Z" },
                ],
            })
        );
    }

    /// A claim stays for its other messages when one of them is given back and waits, or is taken again.
    #[test]
    fn a_delivery_that_is_over_is_not_counted() {
        let fates = [(Stage::Waiting, 200_000), (Stage::Delivered, 0), (Stage::Delivered, 0)];
        let mut again = claim(1, 3, &[]);
        again.record = Claim { places: vec![(1, 2)] }.into();
        let mut progress = progress(1, 3, &fates);
        if let Record::Progress(progress) = &mut progress.record {
            progress.fates[1].deliveries = 2;
        }
        if let Key::Claim { number, .. } = &mut again.key {
            *number = 1;
        }
        let records = [progress, claim(1, 3, &[0, 1, 2]), again];
        let counts = State::of(&[(segment(1, 3), 1)], &records, 100_000).counts;
        assert_eq!(counts, Counts { in_flight: 2, delayed: 1, bytes: 10, ..Counts::default() });
    }

    #[test]
    fn reads_of_different_revisions_never_count_below_nothing() {
        // The segment is gone from the listing, its progress and claim are still there.
        let records = [progress(1, 2, &[(Stage::Waiting, 0), (Stage::Delivered, 0)]), claim(1, 2, &[0, 1])];
        let state = State::of(&[], &records, 0);
        assert_eq!(state, State::default());
    }

    #[test]
    fn the_oldest_segment_is_the_one_created_first() {
        let dead = Key::Dead { queue: "jobs".into(), partition: 0, segment: id(9, 1), index: 0 };
        let keys = [(segment(1, 5), 20), (segment(2, 4), 10), (dead, 5)];
        assert_eq!(State::oldest(&keys), Some(&segment(2, 4)));
        assert_eq!(State::oldest(&keys[2..]), None);
    }

    #[test]
    fn a_queue_that_is_deleted_drains_until_nothing_is_left() {
        let condition = |state: &State, standing: &Standing| {
            let conditions = status(&queue(), standing, Some(state), at(0)).conditions;
            let draining = conditions.into_iter().find(|condition| condition.type_ == "Draining").unwrap();
            (draining.status, draining.reason)
        };
        let deleting = Standing::Deleting("messages are removed".into());
        let some = State { counts: Counts { ready: 3, ..Counts::default() }, ..State::default() };
        assert_eq!(condition(&some, &Standing::Accepted), ("False".into(), "InUse".into()));
        assert_eq!(condition(&some, &deleting), ("True".into(), "MessagesLeft".into()));
        assert_eq!(condition(&State::default(), &deleting), ("False".into(), "Deleting".into()));
    }

    #[test]
    fn dead_letters_are_counted_not_read() {
        assert!(!State::ranges(&"jobs".into()).iter().any(|range| {
            range.contains(&Key::Dead { queue: "jobs".into(), partition: 0, segment: id(1, 1), index: 0 })
                || range.contains(&segment(1, 1))
        }));
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_was() {
        let mut queue = queue();
        let counts = Counts { ready: 3, dead: 1, ..Counts::default() };
        let state = State { counts, oldest: Some(1_000), consumers: 1 };
        queue.status = Some(status(&queue, &Standing::Accepted, Some(&state), at(10)));
        let blind = status(&queue, &Standing::Unavailable("gone".into()), None, at(99));
        let before = queue.status.unwrap();
        assert_eq!(
            (blind.ready, blind.dead, blind.oldest_age, blind.consumers),
            (before.ready, before.dead, before.oldest_age, before.consumers)
        );
        assert_eq!(blind.conditions[2].reason, "StoreUnavailable");
    }
}
