//! As many participants as there may be, and all at once: no plan is larger than etcd takes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

#[path = "coordinator/record.rs"]
mod record;

use std::collections::BTreeSet;

use concordat_protocol::{
    Answer, Branch, Entry, Key, Now, Plan, Range, Record, SessionId, Write,
    session::Session,
    transaction::{
        Coordinator, Decision, Operation, Peers, Reply, Stage, Transaction, Verdict,
        coordinator::{Effect, Input},
        plans,
    },
};
use record::{put, settings};

/// What a DistributedTransaction may have.
const MOST: usize = 64;
const LATE: Now = Now { monotonic: 0, unix: 1_000_000 };

fn name(number: usize) -> String {
    format!("p{number}")
}

/// Each participant is an app of its own, whose sidecar had its item and is gone.
fn record() -> Transaction {
    let names: Vec<String> = (0..MOST).map(name).collect();
    let settings = settings(names.iter().map(String::as_str));
    let mut record = plans::new("pay".into(), &settings, 1, "{}".into(), Now { monotonic: 0, unix: 1 });
    for branch in &mut record.branches {
        branch.item = Some(format!("gone-{}", branch.participant.name.as_str()).as_str().into());
    }
    Transaction { coordinator: Some(("c".into(), "gone-c".into())), deadline: 5_001, ..record }
}

struct World {
    coordinator: Coordinator,
    peers: Peers,
    revision: i64,
}

impl World {
    /// Adopted long after the deadline, when every app has a sidecar again.
    fn new(record: Transaction, answers: Vec<Entry>) -> (Self, Vec<Effect>) {
        let mut peers = Peers::default();
        for app in (0..MOST).map(name).chain(["c".to_owned()]) {
            peers.put(
                app.as_str().into(),
                Session { pod: String::new(), app: app.as_str().into(), accepts: true },
            );
        }
        let own = ("c".into(), "c".into());
        let (coordinator, effects) = Coordinator::adopt("t1".into(), record, 8, own, &peers, LATE);
        let mut world = Self { coordinator, peers, revision: 8 };
        let effects = world.commits_and_reads(&effects, answers);
        (world, effects)
    }

    fn commits(&mut self, effects: &[Effect]) -> Vec<Effect> {
        self.commits_and_reads(effects, vec![])
    }

    fn commits_and_reads(&mut self, effects: &[Effect], found: Vec<Entry>) -> Vec<Effect> {
        fits(plan(effects));
        self.revision += 1;
        let answer = Answer { held: true, revision: self.revision, reads: vec![found] };
        self.coordinator.step(Input::Committed(answer), &self.peers, LATE)
    }
}

fn plan(effects: &[Effect]) -> &Plan {
    let plan = effects.iter().find_map(|effect| match effect {
        Effect::Commit(plan) => Some(plan),
        _ => None,
    });
    plan.unwrap_or_else(|| panic!("{effects:?}"))
}

fn fits(plan: &Plan) {
    let operations = plan.writes.len() + plan.reads.len();
    let largest = operations.max(plan.compares.len()).max(plan.otherwise.len());
    assert!(largest <= plans::MAX_OPERATIONS, "{largest}");
}

fn asked(plan: &Plan) -> Vec<(Branch, SessionId, Operation)> {
    let work = |write: &Write| match write {
        Write::Put(Key::Work { branch, session: Some(session), .. }, Record::Work(work), _) => {
            Some((branch.clone(), session.clone(), work.operation))
        }
        _ => None,
    };
    plan.writes.iter().filter_map(work).collect()
}

/// Whether it clears the inboxes of former coordinators.
fn forgets(plan: &Plan) -> bool {
    plan.writes.iter().any(|write| matches!(write, Write::Delete(Range::Answers(..))))
}

fn all_stuck(record: &Transaction) -> bool {
    record.branches.iter().all(|branch| branch.stage == Stage::Stuck)
}

/// What the sidecar of a participant answered to the coordinator that is gone: its app says no for good.
fn refused(number: usize) -> Entry {
    let verdict = Verdict::No("broken".into());
    let key = Key::Answer {
        app: "c".into(),
        session: "gone-c".into(),
        transaction: "t1".into(),
        branch: name(number).as_str().into(),
    };
    let record = Reply { operation: Operation::Commit, verdict, attempts: 9 }.into();
    Entry { key, record, create_revision: 7, mod_revision: 7, lease: 0 }
}

#[test]
fn it_begins() {
    plans::check_size(&record()).unwrap();
}

#[test]
fn it_is_decided_when_all_sidecars_were_lost() {
    let (mut world, mut effects) = World::new(record(), vec![]);
    let mut moved = BTreeSet::new();
    while world.coordinator.record().decision.is_none() {
        let plan = plan(&effects).clone();
        for (branch, session, operation) in asked(&plan) {
            assert_eq!(branch.as_str(), session.as_str(), "to who lives");
            if operation == Operation::Prepare {
                assert!(moved.insert(branch), "once");
            }
        }
        effects = world.commits(&effects);
        assert!(world.revision < 20, "it comes to an end");
    }
    assert!(!moved.is_empty());
    assert!(effects.contains(&Effect::Decided(Decision::Abort)));
    let record = world.coordinator.record();
    assert!(record.branches.iter().all(|branch| branch.stage == Stage::Applying));
}

/// Their items went when etcd was restored: there is nothing to move.
#[test]
fn all_that_a_restored_etcd_has_undecided_is_rolled_back() {
    let key = Key::Transaction("t1".into());
    let entry = Entry { key, record: record().into(), create_revision: 5, mod_revision: 7, lease: 0 };
    let stop = plans::stop(&"t1".into(), &entry, "restored").unwrap();
    fits(&stop);
    let (mut world, _) = World::new(put(&stop), vec![]);
    let wish =
        Reply { operation: Operation::Prepare, verdict: Verdict::Rollback("by hand".into()), attempts: 0 };
    let wished = Input::Answered(Branch::everything(), 20, wish);
    let effects = world.coordinator.step(wished, &world.peers, LATE);
    let aborted: Vec<Operation> =
        asked(plan(&effects)).into_iter().map(|(.., operation)| operation).collect();
    assert_eq!(aborted, [Operation::Abort; MOST]);
    assert!(world.commits(&effects).contains(&Effect::Decided(Decision::Abort)));
}

/// What the decision could not do to them is written down for people, whoever coordinated before.
#[test]
fn all_of_them_may_be_stuck_at_once() {
    for former in [0, 1, 2] {
        let mut decided = record();
        decided.decision = Some(Decision::Commit);
        decided.former =
            (1..former).map(|number| ("c".into(), format!("c{number}").as_str().into())).collect();
        for branch in &mut decided.branches {
            branch.stage = Stage::Applying;
        }
        let (mut world, mut effects) = World::new(decided, (0..MOST).map(refused).collect());
        while effects.iter().any(|effect| matches!(effect, Effect::Commit(_))) {
            assert!(!forgets(plan(&effects)) || all_stuck(&put(plan(&effects))), "an answer is lost");
            effects = world.commits(&effects);
            assert!(world.revision < 200, "it comes to an end");
        }
        let record = world.coordinator.record();
        assert!(all_stuck(record), "{former}");
        assert!(record.former.len() < 2, "{:?}", record.former);
    }
}
