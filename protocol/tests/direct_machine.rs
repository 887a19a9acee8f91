//! One machine of a queue's delivery beside a publisher: messages that go straight to who waits here.

#![allow(clippy::panic, clippy::unwrap_used)]

#[path = "delivery/settings.rs"]
mod settings;

use concordat_protocol::{
    Answer, Entry, Key, Lease, Now, Plan, Record, Write,
    queue::{
        Fate, Message, Outcome, Progress, Segment, SegmentId, Stage,
        delivery::{Change, Delivered, Delivery, Effect, Input, Status, Tag, Verdict},
        location::{Location, Receipt},
        publish::{self, Offer, Publisher},
    },
};
use settings::settings;

const NOW: Now = Now { monotonic: 1_000, unix: 1_000_000 };
const NEVER: u64 = u64::MAX;
const ME: &str = "me";

/// A machine that has seen an empty queue, and for whom this many wait.
fn machine(waiting: u64) -> Delivery {
    let mut machine = Delivery::new("orders".into(), settings(2), 2, 1_000);
    machine.step(Input::Session(Some((ME.into(), u64::MAX))), NOW);
    machine.step(Input::Snapshot(5, vec![]), NOW);
    for waiter in 0..waiting {
        machine.step(Input::Receive(waiter, 1, 30_000), NOW);
    }
    machine
}

/// The plan by which a sidecar with this session stores so many messages.
fn publish(session: &str, messages: usize, not_before: u64) -> Plan {
    let mut publisher = Publisher::new("orders".into(), settings(2), 2, session.into(), 1);
    let message = Message { body: vec![1], expires: NEVER, ..Message::default() };
    let offer = Offer { message, not_before, producer: None };
    publisher.step(publish::Input::Offer(0, vec![offer; messages]));
    let effects = publisher.step(publish::Input::Pump);
    let [publish::Effect::Commit(_, plan)] = &effects[..] else { panic!("{effects:?}") };
    plan.clone()
}

/// Lets it join what is published here.
fn joined(machine: &mut Delivery, messages: usize) -> (Tag, Plan) {
    let (tag, plan, effects) = machine.join(publish(ME, messages, 0), NOW);
    assert_eq!(effects, []);
    (tag.unwrap(), plan)
}

/// The records that a plan puts at a revision, as a watch tells them.
fn told(plan: &Plan, revision: i64) -> Vec<Change> {
    let put = |write: &Write| match write {
        Write::Put(key, record, _) => {
            let (key, record) = (key.clone(), record.clone());
            Some(Change::Put(Entry {
                key,
                record,
                create_revision: revision,
                mod_revision: revision,
                lease: 0,
            }))
        }
        Write::Delete(_) => None,
    };
    plan.writes.iter().filter_map(put).collect()
}

fn stored(revision: i64) -> Outcome {
    Outcome::Answered(Answer { held: true, revision, reads: vec![] })
}

/// Who got what.
fn delivered(effects: Vec<Effect>) -> Vec<(u64, Receipt)> {
    let delivered = effects.into_iter().filter_map(|effect| match effect {
        Effect::Deliver(waiter, messages) => Some(messages.into_iter().map(move |message| (waiter, message))),
        _ => None,
    });
    delivered.flatten().map(|(waiter, Delivered { receipt, .. })| (waiter, receipt)).collect()
}

fn commits(machine: &mut Delivery) -> Vec<(Tag, Plan)> {
    let commit = |effect| match effect {
        Effect::Commit(tag, plan) => Some((tag, plan)),
        _ => None,
    };
    machine.step(Input::Pump, NOW).into_iter().filter_map(commit).collect()
}

fn fates(plan: &Plan) -> Vec<Fate> {
    let progress = plan.writes.iter().find_map(|write| match write {
        Write::Put(_, Record::Progress(Progress { fates }), _) => Some(fates.clone()),
        _ => None,
    });
    progress.unwrap()
}

/// Claims that end with the session.
fn claims(plan: &Plan) -> usize {
    let leased = Lease::Session(ME.into());
    let claims =
        |write: &&Write| matches!(write, Write::Put(Key::Claim { .. }, _, lease) if *lease == leased);
    plan.writes.iter().filter(claims).count()
}

#[test]
fn one_plan_stores_and_takes_what_is_waited_for() {
    let mut machine = machine(2);
    let (tag, plan) = joined(&mut machine, 3);
    assert_eq!(claims(&plan), 1);
    let stages: Vec<(Stage, u32)> = fates(&plan).iter().map(|fate| (fate.stage, fate.deliveries)).collect();
    assert_eq!(stages, [(Stage::Delivered, 1), (Stage::Delivered, 1), (Stage::Waiting, 0)]);
    let got = delivered(machine.step(Input::Done(tag, stored(9)), NOW));
    let mut waiters: Vec<(u64, u32)> = got.iter().map(|(waiter, receipt)| (*waiter, receipt.place)).collect();
    waiters.sort_unstable();
    assert_eq!(waiters, [(0, 0), (1, 1)]);
    // The watch tells of it later: nothing new but the third, for whoever comes.
    machine.step(Input::Changed(told(&plan, 9)), NOW);
    machine.step(Input::Receive(7, 5, 30_000), NOW);
    let [(_, take)] = &commits(&mut machine)[..] else { panic!("it takes") };
    let counted: Vec<u32> = fates(take).iter().map(|fate| fate.deliveries).collect();
    assert_eq!(counted, [1, 1, 1]);
}

#[test]
fn the_watch_may_tell_first() {
    let mut machine = machine(1);
    let (tag, plan) = joined(&mut machine, 1);
    machine.step(Input::Changed(told(&plan, 9)), NOW);
    assert_eq!(commits(&mut machine), []);
    assert_eq!(delivered(machine.step(Input::Done(tag, stored(9)), NOW)).len(), 1);
}

#[test]
fn what_was_there_before_goes_first() {
    let mut machine = machine(0);
    machine.step(Input::Changed(told(&publish("other", 1, 0), 8)), NOW);
    machine.step(Input::Receive(0, 1, 30_000), NOW);
    let (tag, plan, effects) = machine.join(publish(ME, 1, 0), NOW);
    assert_eq!((tag, claims(&plan)), (None, 0));
    let [Effect::Commit(_, take)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(claims(take), 1);
}

#[test]
fn what_must_wait_or_is_another_session_s_is_only_stored() {
    let mut machine = machine(1);
    for plan in [publish(ME, 1, NOW.unix + 5_000), publish("former", 1, 0)] {
        assert_eq!(machine.join(plan.clone(), NOW), (None, plan, vec![]));
    }
}

#[test]
fn nobody_is_given_what_a_session_that_is_not_believed_would_take() {
    let mut machine = machine(1);
    machine.step(Input::Session(Some((ME.into(), NOW.monotonic))), NOW);
    let plan = publish(ME, 1, 0);
    assert_eq!(machine.join(plan.clone(), NOW), (None, plan, vec![]));
}

#[test]
fn who_waited_for_what_was_not_stored_goes_on_waiting() {
    let refused = Outcome::Answered(Answer { held: false, revision: 9, reads: vec![] });
    for outcome in [refused, Outcome::NotApplied, Outcome::Unknown] {
        let mut machine = machine(1);
        let (tag, _) = joined(&mut machine, 1);
        assert_eq!(machine.step(Input::Done(tag, outcome), NOW), []);
        joined(&mut machine, 1);
    }
}

/// Nobody has it: it comes again, and that was no failure.
#[test]
fn what_was_stored_without_an_answer_is_given_back() {
    for late in [true, false] {
        let mut machine = machine(1);
        let (tag, plan) = joined(&mut machine, 1);
        if late {
            machine.step(Input::Done(tag, Outcome::Unknown), NOW);
            machine.step(Input::Changed(told(&plan, 9)), NOW);
        } else {
            machine.step(Input::Changed(told(&plan, 9)), NOW);
            machine.step(Input::Done(tag, Outcome::Unknown), NOW);
        }
        let [(_, back)] = &commits(&mut machine)[..] else { panic!("it is given back") };
        assert_eq!(fates(back), [Fate { stage: Stage::Waiting, deliveries: 1, not_before: 0 }]);
    }
}

#[test]
fn who_hangs_up_meanwhile_leaves_it_to_the_next() {
    let mut machine = machine(1);
    let (tag, _) = joined(&mut machine, 1);
    machine.step(Input::GiveUp(0), NOW);
    assert_eq!(delivered(machine.step(Input::Done(tag, stored(9)), NOW)), []);
    let [(_, back)] = &commits(&mut machine)[..] else { panic!("it is given back") };
    assert_eq!(fates(back)[0].stage, Stage::Waiting);
}

/// A listing that began before the plan landed tells nothing of it.
#[test]
fn an_older_listing_does_not_forget_it() {
    let mut machine = machine(1);
    let (tag, _) = joined(&mut machine, 1);
    let got = delivered(machine.step(Input::Done(tag, stored(9)), NOW));
    machine.step(Input::Snapshot(8, vec![]), NOW);
    machine.step(Input::Settle(Some(3), got[0].1.clone(), Verdict::Ack), NOW);
    let [(ack, plan)] = &commits(&mut machine)[..] else { panic!("it is acknowledged") };
    assert!(plan.deletes_only());
    let settled = machine.step(Input::Done(*ack, stored(10)), NOW);
    assert_eq!(settled, [Effect::Settled(3, Status::Ok)]);
}

/// However much else is in memory.
#[test]
fn what_is_waited_for_is_kept_until_it_is_handed_out() {
    let mut machine = machine(0);
    let segment = SegmentId { session: "other".into(), number: 1, messages: 1, bytes: 8 << 20 };
    let large = Location { queue: "orders".into(), partition: 0, segment };
    let held = Segment { messages: vec![Message { expires: NEVER, ..Message::default() }] };
    let put =
        Entry { key: large.segment(), record: held.into(), create_revision: 6, mod_revision: 6, lease: 0 };
    machine.step(Input::Changed(vec![Change::Put(put)]), NOW);
    machine.step(Input::Receive(0, 1, 30_000), NOW);
    let [(take, _)] = commits(&mut machine)[..] else { panic!("it takes") };
    machine.step(Input::Done(take, stored(7)), NOW);
    machine.step(Input::Receive(1, 1, 30_000), NOW);
    let (tag, _) = joined(&mut machine, 1);
    assert_eq!(delivered(machine.step(Input::Done(tag, stored(9)), NOW)).len(), 1);
}
