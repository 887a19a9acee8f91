//! One machine of a queue's delivery alone: what the model has no room for.

#![allow(clippy::panic, clippy::unwrap_used)]

#[path = "delivery/settings.rs"]
mod settings;

use concordat_protocol::{
    Answer, Entry, Key, Lease, Now, Plan, Range, Record, Write,
    queue::{
        Fate, Message, Outcome, Progress, Segment, SegmentId, Settings, Stage,
        delivery::{Change, Delivered, Delivery, Effect, Input, Status, Tag, Verdict},
        location::{Location, Receipt},
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
    Entry { key, record: record.into(), create_revision: revision, mod_revision: revision, lease: 0 }
}

/// A machine that knows nothing yet, with its session.
fn machine() -> Delivery {
    machine_of(settings(1))
}

fn machine_of(settings: Settings) -> Delivery {
    let mut machine = Delivery::new("orders".into(), settings, 2, 0);
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
    let [(load, plan)] = &commits(&mut machine)[..] else { panic!("it reads") };
    assert!(reads_segment(plan));
    let read = entry(at.segment(), body(&[NOW.unix, NEVER]), 10);
    machine.step(Input::Done(*load, answered(true, vec![vec![read]])), NOW);
    let [(end, _)] = commits(&mut machine)[..] else { panic!("it ends the first") };
    machine.step(Input::Done(end, answered(true, vec![])), NOW);
    let [(take, _)] = commits(&mut machine)[..] else { panic!("it takes the second") };
    let effects = machine.step(Input::Done(take, answered(true, vec![])), NOW);
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

/// A machine with this queue, in which there is one segment of so many messages.
fn with_messages(settings: Settings, messages: u32) -> (Delivery, Location) {
    let (mut machine, at) = (machine_of(settings), location(1, messages));
    let put = entry(at.segment(), body(&vec![NEVER; messages as usize]), 10);
    machine.step(Input::Snapshot(5, vec![]), NOW);
    machine.step(Input::Changed(vec![Change::Put(put)]), NOW);
    (machine, at)
}

/// Who was served with how many messages.
fn served(effects: Vec<Effect>) -> Vec<(u64, usize)> {
    let served = effects.into_iter().filter_map(|effect| match effect {
        Effect::Deliver(waiter, messages) => Some((waiter, messages.len())),
        _ => None,
    });
    served.collect()
}

/// The receipts of what was handed out.
fn receipts(effects: Vec<Effect>) -> Vec<Receipt> {
    let delivered = effects.into_iter().filter_map(|effect| match effect {
        Effect::Deliver(_, messages) => Some(messages.into_iter().map(|message| message.receipt)),
        _ => None,
    });
    delivered.flatten().collect()
}

#[test]
fn who_does_not_wait_gets_what_is_there() {
    let (mut machine, _) = with_messages(settings(1), 1);
    machine.step(Input::Receive(7, 1, 30_000), NOW);
    machine.step(Input::WaitOver(7), NOW);
    let [(tag, _)] = commits(&mut machine)[..] else { panic!("it takes") };
    assert_eq!(served(machine.step(Input::Done(tag, answered(true, vec![])), NOW)), [(7, 1)]);
}

#[test]
fn who_does_not_wait_is_not_sent_away_before_anything_is_known() {
    let mut machine = machine();
    machine.step(Input::Receive(7, 1, 30_000), NOW);
    machine.step(Input::WaitOver(7), NOW);
    assert_eq!(machine.step(Input::Pump, NOW), []);
    machine.step(Input::Snapshot(5, vec![]), NOW);
    assert_eq!(served(machine.step(Input::Pump, NOW)), [(7, 0)]);
}

#[test]
fn who_does_not_wait_gets_what_another_s_plan_leaves() {
    let (mut machine, _) = with_messages(settings(1), 2);
    machine.step(Input::Receive(1, 1, 30_000), NOW);
    let [(tag, _)] = commits(&mut machine)[..] else { panic!("it takes") };
    for waiter in [2, 3] {
        machine.step(Input::Receive(waiter, 1, 30_000), NOW);
        machine.step(Input::WaitOver(waiter), NOW);
    }
    assert_eq!(machine.step(Input::Pump, NOW), []);
    machine.step(Input::Done(tag, answered(true, vec![])), NOW);
    let [(tag, _)] = commits(&mut machine)[..] else { panic!("it takes the other") };
    assert_eq!(served(machine.step(Input::Done(tag, answered(true, vec![])), NOW)), [(2, 1)]);
    assert_eq!(served(machine.step(Input::Pump, NOW)), [(3, 0)]);
}

/// Its only delivery was counted, and came too late for who hung up.
#[test]
fn what_nobody_saw_comes_again_and_is_not_buried() {
    let (mut machine, _) = with_messages(settings(1), 1);
    machine.step(Input::Receive(7, 1, 30_000), NOW);
    let [(take, _)] = commits(&mut machine)[..] else { panic!("it takes") };
    machine.step(Input::GiveUp(7), NOW);
    assert_eq!(machine.step(Input::Done(take, answered(true, vec![])), NOW), []);
    let [(back, _)] = commits(&mut machine)[..] else { panic!("it is given back") };
    machine.step(Input::Done(back, answered(true, vec![])), NOW);
    machine.step(Input::Receive(8, 1, 30_000), NOW);
    let [(take, _)] = commits(&mut machine)[..] else { panic!("it is taken again") };
    assert_eq!(served(machine.step(Input::Done(take, answered(true, vec![])), NOW)), [(8, 1)]);
}

/// Else what was acknowledged would come again.
#[test]
fn a_progress_ends_with_its_segment_whatever_the_retention_is_now() {
    let (mut machine, at) = (machine(), location(1, 2));
    machine.step(Input::Snapshot(50, vec![entry(at.segment(), Segment::default(), 10)]), NOW);
    machine.step(Input::Settings(Settings { retention_age: 1_000, ..settings(1) }), NOW);
    let leases = |plan: &Plan| -> Vec<Lease> {
        let progress = |write: &Write| match write {
            Write::Put(Key::Progress { .. }, _, lease) => Some(lease.clone()),
            _ => None,
        };
        plan.writes.iter().filter_map(progress).collect()
    };
    machine.step(Input::Receive(7, 2, 30_000), NOW);
    let [(load, plan)] = &commits(&mut machine)[..] else { panic!("it reads") };
    assert!(plan.writes.is_empty() && reads_segment(plan));
    let read = Entry { lease: 77, ..entry(at.segment(), body(&[NEVER, NEVER]), 10) };
    machine.step(Input::Done(*load, answered(true, vec![vec![read]])), NOW);
    let [(take, plan)] = &commits(&mut machine)[..] else { panic!("it takes") };
    assert_eq!(leases(plan), [Lease::With(at.segment(), 77)]);
    let got = receipts(machine.step(Input::Done(*take, answered(true, vec![])), NOW));
    machine.step(Input::Settle(None, got[0].clone(), Verdict::Ack), NOW);
    let [(_, plan)] = &commits(&mut machine)[..] else { panic!("it acknowledges") };
    assert_eq!(leases(plan), [Lease::With(at.segment(), 77)]);
}

#[test]
fn a_dead_letter_lives_in_the_queue_it_goes_to_as_long_as_what_is_published_there() {
    let (mut machine, at) = (machine(), location(1, 1));
    machine.step(Input::DeadLetters(Some(("graves".into(), 3, 3_600_000))), NOW);
    machine.step(Input::Snapshot(5, vec![]), NOW);
    let soon = entry(at.segment(), body(&[NOW.unix + 1_000]), 10);
    machine.step(Input::Changed(vec![Change::Put(soon)]), NOW);
    machine.step(Input::Receive(7, 1, 30_000), NOW);
    let [(take, _)] = commits(&mut machine)[..] else { panic!("it takes") };
    let got = receipts(machine.step(Input::Done(take, answered(true, vec![])), NOW));
    let no = Verdict::Nack { delay: None, reason: "no".into(), dead_letter: true };
    machine.step(Input::Settle(None, got[0].clone(), no), NOW);
    let [(_, burial)] = &commits(&mut machine)[..] else { panic!("it buries") };
    let buried = burial.writes.iter().find_map(|write| match write {
        Write::Put(Key::Segment { .. }, Record::Segment(Segment { messages }), _) => messages.first(),
        _ => None,
    });
    assert_eq!(buried.map(|message| message.expires), Some(NOW.unix + 3_600_000));
}

/// However many that were published later were finished before it.
#[test]
fn an_acknowledgement_is_remembered_from_when_it_was_made() {
    let (mut machine, at) = with_messages(settings(1), 1);
    machine.step(Input::Receive(7, 1, 30_000), NOW);
    let [(take, _)] = commits(&mut machine)[..] else { panic!("it takes") };
    let got = receipts(machine.step(Input::Done(take, answered(true, vec![])), NOW));
    for number in 2..2_000 {
        let other = Location { segment: SegmentId { number, ..at.segment.clone() }, ..at.clone() };
        let put = entry(other.segment(), body(&[NEVER]), 100 + number as i64);
        machine.step(Input::Changed(vec![Change::Put(put)]), NOW);
        machine.step(Input::Changed(vec![Change::Deleted(other.segment(), 3_000 + number as i64)]), NOW);
    }
    machine.step(Input::Settle(Some(1), got[0].clone(), Verdict::Ack), NOW);
    let [(ack, _)] = commits(&mut machine)[..] else { panic!("it acknowledges") };
    machine.step(Input::Done(ack, answered(true, vec![])), NOW);
    let again = machine.step(Input::Settle(Some(2), got[0].clone(), Verdict::Ack), NOW);
    assert_eq!(again, [Effect::Settled(2, Status::Ok)]);
}
