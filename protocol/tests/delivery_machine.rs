//! One machine of a queue's delivery alone: what the model has no room for.

#![allow(clippy::panic, clippy::unwrap_used)]

#[path = "delivery/settings.rs"]
mod settings;

use concordat_protocol::{
    Answer, Entry, Key, Now, Plan, Range, Record,
    queue::{
        Fate, Message, Outcome, Progress, Segment, SegmentId, Stage,
        delivery::{Change, Delivered, Delivery, Effect, Input, Tag},
        location::Location,
    },
};
use settings::settings;

const NOW: Now = Now { monotonic: 1_000, unix: 1_000_000 };
const NEVER: u64 = u64::MAX;
/// Bytes of a segment, as its key has them: two fit into memory and a third does not.
const LARGE: u32 = 3 << 20;

fn location(number: u64, messages: u32) -> Location {
    let segment = SegmentId { session: "publisher".into(), number, messages, bytes: LARGE };
    Location { queue: "orders".into(), partition: 0, segment }
}

/// A segment whose messages expire at these times.
fn body(expires: &[u64]) -> Segment {
    let message = |expires: &u64| Message { expires: *expires, ..Message::default() };
    Segment { messages: expires.iter().map(message).collect() }
}

fn entry(key: Key, record: impl Into<Record>, revision: i64) -> Entry {
    Entry { key, record: record.into(), create_revision: revision, mod_revision: revision }
}

/// A machine that knows nothing yet, with its session.
fn machine() -> Delivery {
    let mut machine = Delivery::new("orders".into(), settings(1), 2, 0);
    machine.step(Input::Session(Some(("consumer".into(), u64::MAX))), NOW);
    machine
}

/// What it wants committed now.
fn commits(machine: &mut Delivery) -> Vec<(Tag, Plan)> {
    let commit = |effect| match effect {
        Effect::Commit(tag, plan) => Some((tag, plan)),
        _ => None,
    };
    machine.step(Input::Pump, NOW).into_iter().filter_map(commit).collect()
}

fn answered(held: bool, reads: Vec<Vec<Entry>>) -> Outcome {
    Outcome::Answered(Answer { held, revision: 100, reads })
}

fn reads_segment(plan: &Plan) -> bool {
    plan.reads.iter().any(|range| matches!(range, Range::One(Key::Segment { .. })))
}

#[test]
fn what_has_expired_when_it_is_read_reaches_nobody() {
    let (mut machine, at) = (machine(), location(1, 2));
    machine.step(Input::Snapshot(50, vec![entry(at.segment(), Segment::default(), 10)]), NOW);
    machine.step(Input::Receive(7, 10, 30_000), NOW);
    let [(tag, plan)] = &commits(&mut machine)[..] else { panic!("it takes") };
    assert!(reads_segment(plan));
    let read = entry(at.segment(), body(&[NOW.unix, NEVER]), 10);
    let effects = machine.step(Input::Done(*tag, answered(true, vec![vec![read]])), NOW);
    let [Effect::Deliver(7, delivered)] = &effects[..] else { panic!("{effects:?}") };
    let places: Vec<u32> = delivered.iter().map(|Delivered { receipt, .. }| receipt.place).collect();
    assert_eq!(places, [1]);
}

#[test]
fn who_gets_nothing_but_what_has_expired_goes_on_waiting() {
    let (mut machine, at, next) = (machine(), location(1, 1), location(2, 1));
    machine.step(Input::Snapshot(50, vec![entry(at.segment(), Segment::default(), 10)]), NOW);
    machine.step(Input::Receive(7, 10, 30_000), NOW);
    let [(tag, _)] = commits(&mut machine)[..] else { panic!("it takes") };
    let read = entry(at.segment(), body(&[NOW.unix]), 10);
    assert_eq!(machine.step(Input::Done(tag, answered(true, vec![vec![read]])), NOW), []);
    machine.step(Input::Changed(vec![Change::Put(entry(next.segment(), body(&[NEVER]), 101))]), NOW);
    let taken: Vec<Plan> = commits(&mut machine).into_iter().map(|(_, plan)| plan).collect();
    assert!(taken.iter().any(|plan| format!("{plan:?}").contains("Claim")), "{taken:?}");
}

#[test]
fn of_a_backlog_only_so_much_is_kept_in_memory() {
    let mut machine = machine();
    machine.step(Input::Snapshot(5, vec![]), NOW);
    for number in 1..=4 {
        let put = entry(location(number, 1).segment(), body(&[NEVER]), 10 + number as i64);
        machine.step(Input::Changed(vec![Change::Put(put)]), NOW);
    }
    for waiter in 0..4 {
        machine.step(Input::Receive(waiter, 1, 30_000), NOW);
    }
    let reads: Vec<bool> = commits(&mut machine).iter().map(|(_, plan)| reads_segment(plan)).collect();
    assert_eq!(reads, [false, false, true, true]);
}

/// All of them were lost with their last delivery.
#[test]
fn what_is_to_be_buried_is_read_a_little_at_a_time() {
    let mut machine = machine();
    let lost = Progress { fates: vec![Fate { stage: Stage::Delivered, deliveries: 1, not_before: 0 }] };
    let mut entries = Vec::new();
    for number in 1..=9 {
        let at = location(number, 1);
        entries.push(entry(at.progress(), lost.clone(), 20));
        entries.push(entry(at.segment(), Segment::default(), 10 + number as i64));
    }
    machine.step(Input::Snapshot(50, entries), NOW);
    let loads = commits(&mut machine);
    assert!(loads.iter().all(|(_, plan)| plan.writes.is_empty() && reads_segment(plan)));
    assert_eq!(loads.len(), 4);
    // Three of them are more than may be kept: nothing further is read before something is buried.
    for (number, (tag, _)) in (1..).zip(&loads) {
        let read = entry(location(number, 1).segment(), body(&[NEVER]), 10 + number as i64);
        machine.step(Input::Done(*tag, answered(true, vec![vec![read]])), NOW);
    }
    let burials = commits(&mut machine);
    assert!(burials.iter().all(|(_, plan)| !plan.writes.is_empty()), "{burials:?}");
    for (tag, _) in burials {
        machine.step(Input::Done(tag, answered(true, vec![])), NOW);
    }
    assert!(commits(&mut machine).iter().any(|(_, plan)| reads_segment(plan)));
}

/// Its last delivery was lost, and another sidecar buried it meanwhile.
#[test]
fn what_is_gone_when_it_is_to_be_read_is_forgotten() {
    let (mut machine, at) = (machine(), location(1, 1));
    let lost = Progress { fates: vec![Fate { stage: Stage::Delivered, deliveries: 1, not_before: 0 }] };
    let entries = vec![entry(at.progress(), lost, 20), entry(at.segment(), Segment::default(), 10)];
    machine.step(Input::Snapshot(50, entries), NOW);
    let [(tag, load)] = &commits(&mut machine)[..] else { panic!("it reads") };
    assert!(reads_segment(load));
    machine.step(Input::Done(*tag, answered(false, vec![])), NOW);
    assert_eq!(commits(&mut machine), []);
}
