//! What is seen of a `Queue` becomes its status.

use std::collections::BTreeMap;

use concordat_crds::{
    Queue, QueueStatus,
    conditions::{DEAD_LETTERS, DRAINING, reason},
};
use concordat_protocol::{
    Entry, Key, Kind, Millis, Name, Range, Record,
    queue::{Claim, Fate, Progress, Segment, SegmentId, Stage},
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
    /// Messages of all segments.
    pub stored: u64,
    /// Those of them that are acknowledged, dead or expired.
    pub finished: u64,
    /// Those that are in delivery.
    pub in_flight: u64,
    /// Those that wait for their delay or back-off to end.
    pub delayed: u64,
    /// Dead letters kept beside the queue.
    pub dead: u64,
    /// Sidecars through which somebody consumes.
    pub consumers: u64,
    /// When the oldest message that is not finished was published, milliseconds since the Unix epoch.
    pub oldest: Option<Millis>,
}

/// What of one segment matters here.
#[derive(Default)]
struct Part {
    progress: Progress,
    in_delivery: Vec<u32>,
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
        let mut state = Self::default();
        let mut parts: BTreeMap<(u32, SegmentId), Part> = BTreeMap::new();
        for (key, _) in keys {
            match key {
                Key::Segment { partition, segment, .. } => {
                    state.stored += u64::from(segment.messages);
                    parts.insert((*partition, segment.clone()), Part::default());
                }
                Key::Dead { .. } => state.dead += 1,
                _ => {}
            }
        }
        for entry in records {
            match (&entry.key, &entry.record) {
                (Key::Progress { partition, segment, .. }, Record::Progress(progress)) => {
                    if let Some(part) = parts.get_mut(&(*partition, segment.clone())) {
                        part.progress = progress.clone();
                    }
                }
                (Key::Claim { partition, segment, .. }, Record::Claim(Claim { places })) => {
                    if let Some(part) = parts.get_mut(&(*partition, segment.clone())) {
                        part.in_delivery.extend(places.iter().map(|(place, _)| place));
                    }
                }
                (_, Record::Stat(stat)) => state.consumers += stat.get(counter::CONSUMERS).min(1),
                _ => {}
            }
        }
        for part in parts.values() {
            state.count(part, now);
        }
        state.oldest = records.iter().filter_map(|entry| oldest_left(entry, &parts)).min();
        state
    }

    /// The segment published first, among keys with their create revisions.
    pub fn oldest(keys: &[(Key, i64)]) -> Option<&Key> {
        keys.iter()
            .filter(|(key, _)| matches!(key, Key::Segment { .. }))
            .min_by_key(|(_, create_revision)| create_revision)
            .map(|(key, _)| key)
    }

    /// Messages that a consumer could have now.
    pub fn ready(&self) -> u64 {
        self.left().saturating_sub(self.in_flight + self.delayed)
    }

    /// Messages that are not finished.
    pub fn left(&self) -> u64 {
        self.stored.saturating_sub(self.finished)
    }

    /// What metrics tell of the queue.
    pub fn measures(&self) -> Vec<Measure> {
        vec![
            Measure::count("queue_ready", "Messages that a consumer could have now", self.ready()),
            Measure::count("queue_in_flight", "Messages in delivery", self.in_flight),
            Measure::count(
                "queue_delayed",
                "Messages that wait for a delay or back-off to end",
                self.delayed,
            ),
            Measure::count("queue_dead_letters", "Dead letters kept beside the queue", self.dead),
            Measure::count("queue_consumers", "Sidecars through which somebody consumes", self.consumers),
            Measure::since(
                "queue_oldest_message",
                "Age of the oldest message that is not finished",
                self.oldest,
            ),
        ]
    }

    fn count(&mut self, part: &Part, now: Millis) {
        for (place, fate) in (0..).zip(&part.progress.fates) {
            if finished(fate) {
                self.finished += 1;
            } else if fate.not_before > now && !part.in_delivery.contains(&place) {
                self.delayed += 1;
            }
        }
        let over = |place: u32| part.progress.fates.get(place as usize).is_some_and(finished);
        self.in_flight += part.in_delivery.iter().filter(|place| !over(**place)).count() as u64;
    }
}

/// When the oldest message of a segment that is not finished was published.
fn oldest_left(entry: &Entry, parts: &BTreeMap<(u32, SegmentId), Part>) -> Option<Millis> {
    let (Key::Segment { partition, segment, .. }, Record::Segment(Segment { messages })) =
        (&entry.key, &entry.record)
    else {
        return None;
    };
    let fates = &parts.get(&(*partition, segment.clone()))?.progress.fates;
    (0..)
        .zip(messages)
        .filter(|(place, _): &(usize, _)| !fates.get(*place).is_some_and(finished))
        .map(|(_, message)| message.published)
        .min()
}

fn finished(fate: &Fate) -> bool {
    matches!(fate.stage, Stage::Acknowledged | Stage::GivenUp)
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
    QueueStatus {
        ready: state.ready(),
        in_flight: state.in_flight,
        delayed: state.delayed,
        dead: state.dead,
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
    use concordat_protocol::{queue::Message, session::Stat};
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
        Entry { key, record: record.into(), create_revision: 1, mod_revision: 1 }
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
                stored: 9,
                finished: 2,
                in_flight: 2,
                delayed: 1,
                dead: 1,
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

    #[test]
    fn reads_of_different_revisions_never_count_below_nothing() {
        // The segment is gone from the listing, its progress and claim are still there; and one that says more
        // is finished than was stored.
        let records = [progress(1, 2, &[(Stage::Waiting, 0), (Stage::Delivered, 0)]), claim(1, 2, &[0, 1])];
        let state = State::of(&[], &records, 0);
        assert_eq!(state, State::default());
        assert_eq!(State { stored: 1, finished: 2, in_flight: 3, ..State::default() }.ready(), 0);
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
        let some = State { stored: 3, ..State::default() };
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
        let state = State { stored: 3, dead: 1, oldest: Some(1_000), consumers: 1, ..State::default() };
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
