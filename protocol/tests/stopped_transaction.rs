//! A transaction that was undecided when etcd was restored: nothing but a person decides it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

#[path = "coordinator/record.rs"]
mod record;

use concordat_protocol::{
    Answer, Branch, Entry, Key, Now, Plan, Record, Write,
    session::Session,
    transaction::{
        Coordinator, Decision, Operation, Peers, Reply, Stage, Transaction, Verdict,
        coordinator::{Effect, Input},
        plans,
    },
};
use record::{put, settings};

const LATE: Now = Now { monotonic: 0, unix: 1_000_000 };

fn stopped() -> Transaction {
    let settings = settings(["debit", "credit"]);
    let record = plans::new("pay".into(), &settings, 1, "{}".into(), Now { monotonic: 0, unix: 1 });
    let record = Transaction { coordinator: Some(("c".into(), "gone".into())), deadline: 5_001, ..record };
    let entry = Entry {
        key: Key::Transaction("t1".into()),
        record: record.into(),
        create_revision: 5,
        mod_revision: 7,
        lease: 0,
    };
    let plan = plans::stop(&"t1".into(), &entry, "restored").unwrap();
    assert_eq!(plan.compares, Plan::new().unchanged(entry.key.clone(), 7).compares);
    let deleted = plan.writes.iter().filter(|write| matches!(write, Write::Delete(_))).count();
    assert_eq!(deleted, 3, "both items, and the answers");
    let stopped = put(&plan);
    let again = Entry { record: stopped.clone().into(), ..entry };
    assert_eq!(plans::stop(&"t1".into(), &again, "restored"), None, "once is enough");
    stopped
}

fn asked(plan: &Plan) -> Vec<(Branch, Operation)> {
    let work = |write: &Write| match write {
        Write::Put(Key::Work { branch, .. }, Record::Work(work), _) => Some((branch.clone(), work.operation)),
        _ => None,
    };
    plan.writes.iter().filter_map(work).collect()
}

struct World {
    coordinator: Coordinator,
    peers: Peers,
    revision: i64,
}

impl World {
    /// Adopted by a sidecar, long after the deadline.
    fn new() -> Self {
        let mut peers = Peers::default();
        for app in ["c", "debit", "credit"] {
            let session = Session { pod: String::new(), app: app.into(), accepts: true };
            peers.put(app.into(), session);
        }
        let own = ("c".into(), "c".into());
        let (coordinator, effects) = Coordinator::adopt("t1".into(), stopped(), 8, own, &peers, LATE);
        let mut world = Self { coordinator, peers, revision: 8 };
        let [Effect::Commit(plan)] = &effects[..] else { panic!("{effects:?}") };
        assert_eq!(asked(plan), [], "an adoption asks nobody");
        assert_eq!(world.hold(), [Effect::Begun]);
        world
    }

    fn hold(&mut self) -> Vec<Effect> {
        self.revision += 1;
        let answer = Answer { held: true, revision: self.revision, reads: vec![] };
        self.coordinator.step(Input::Committed(answer), &self.peers, LATE)
    }

    fn hear(&mut self, branch: impl Into<Branch>, operation: Operation, verdict: Verdict) -> Vec<Effect> {
        self.revision += 1;
        let reply = Reply { operation, verdict, attempts: 1 };
        self.coordinator.step(Input::Answered(branch.into(), self.revision, reply), &self.peers, LATE)
    }

    fn wish(&mut self, branch: impl Into<Branch>, verdict: Verdict) -> Plan {
        let effects = self.hear(branch, Operation::Prepare, verdict);
        let [Effect::Commit(plan)] = &effects[..] else { panic!("{effects:?}") };
        plan.clone()
    }
}

#[test]
fn no_deadline_and_no_vote_decides_it() {
    let mut world = World::new();
    assert_eq!(world.coordinator.step(Input::Due, &world.peers, LATE), []);
    for verdict in [Verdict::Yes(String::new()), Verdict::No("late".into())] {
        for branch in ["debit", "credit"] {
            assert_eq!(world.hear(branch, Operation::Prepare, verdict.clone()), []);
        }
    }
    assert_eq!(world.coordinator.record().decision, None);
}

#[test]
fn what_is_tried_again_votes_again_by_a_new_deadline() {
    let mut world = World::new();
    let plan = world.wish("debit", Verdict::Retry);
    assert_eq!(asked(&plan), [("debit".into(), Operation::Prepare)]);
    assert_eq!(put(&plan).deadline, LATE.unix + 5_000);
    assert_eq!(world.hold(), [Effect::Changed], "one is stuck yet: nothing is decided, by no deadline");
    assert_eq!(world.hear("debit", Operation::Prepare, Verdict::Yes(String::new())), []);
    let plan = world.wish("credit", Verdict::Retry);
    assert_eq!(asked(&plan), [("credit".into(), Operation::Prepare)]);
    assert_eq!(world.hold(), [Effect::Changed, Effect::Wait(5_000)]);
    let plan = world.wish("credit", Verdict::Yes(String::new()));
    assert_eq!(put(&plan).decision, Some(Decision::Commit));
    let both = [("debit".into(), Operation::Commit), ("credit".into(), Operation::Commit)];
    assert_eq!(asked(&plan), both);
}

#[test]
fn what_is_given_up_takes_no_part() {
    let mut world = World::new();
    let plan = world.wish("debit", Verdict::Skip("looked at it".into()));
    assert_eq!(asked(&plan), []);
    assert_eq!(put(&plan).branches[0].stage, Stage::Skipped);
    world.hold();
    world.wish("credit", Verdict::Retry);
    world.hold();
    let plan = world.wish("credit", Verdict::Yes(String::new()));
    assert_eq!(put(&plan).decision, Some(Decision::Commit));
    assert_eq!(asked(&plan), [("credit".into(), Operation::Commit)]);
}

#[test]
fn with_every_branch_given_up_it_is_aborted_and_nobody_is_asked() {
    let mut world = World::new();
    world.wish("debit", Verdict::Skip("looked at it".into()));
    world.hold();
    world.wish("credit", Verdict::Skip("looked at it".into()));
    let effects = world.hold();
    let [Effect::Changed, Effect::Commit(plan)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((put(plan).decision, asked(plan)), (Some(Decision::Abort), vec![]));
}

#[test]
fn a_rollback_decides_it() {
    let mut world = World::new();
    let plan = world.wish(Branch::everything(), Verdict::Rollback("it was asked for".into()));
    assert_eq!(put(&plan).decision, Some(Decision::Abort));
    let both = [("debit".into(), Operation::Abort), ("credit".into(), Operation::Abort)];
    assert_eq!(asked(&plan), both);
}
