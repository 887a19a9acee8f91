//! A participant that is away for months, while coordinators come and go: what is remembered of a transaction does not
//! grow with them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

#[path = "coordinator/record.rs"]
mod record;

use concordat_protocol::{
    Answer, Entry, Key, Now, Plan, Range, Write,
    session::Session,
    transaction::{
        Coordinator, Decision, Operation, Peers, Reply, Stage, Transaction, Verdict,
        coordinator::{Effect, Input},
        plans,
    },
};
use record::{put, settings};

const NOW: Now = Now { monotonic: 0, unix: 1_000 };

fn committed() -> Transaction {
    let settings = settings(["debit", "credit"]);
    let mut record = plans::new("pay".into(), &settings, 1, "{}".into(), NOW);
    record.coordinator = Some(("c".into(), "c0".into()));
    record.decision = Some(Decision::Commit);
    for branch in &mut record.branches {
        branch.stage = Stage::Applying;
    }
    record
}

/// The record after a sidecar has adopted it, that found this answered, and what it did then if anything.
fn adopted(record: Transaction, own: &str, answered: Vec<Entry>) -> (Transaction, Option<Plan>) {
    let mut peers = Peers::default();
    peers.put(own.into(), Session { pod: String::new(), app: "c".into(), accepts: true });
    let own = ("c".into(), own.into());
    let (mut coordinator, effects) = Coordinator::adopt("t1".into(), record, 8, own, &peers, NOW);
    let [Effect::Commit(plan)] = &effects[..] else { panic!("{effects:?}") };
    let adopted = put(plan);
    let answer = Answer { held: true, revision: 9, reads: vec![answered] };
    match &coordinator.step(Input::Committed(answer), &peers, NOW)[..] {
        [Effect::Begun] => (adopted, None),
        [Effect::Begun, Effect::Commit(plan)] => (put(plan), Some(plan.clone())),
        effects => panic!("{effects:?}"),
    }
}

#[test]
fn nor_do_those_pile_up_that_a_restored_etcd_has_undecided() {
    let mut record = Transaction { decision: None, ..committed() };
    for branch in &mut record.branches {
        branch.stage = Stage::Stuck;
    }
    for next in 1..100 {
        assert!(record.former.len() < 2, "{:?}", record.former);
        (record, _) = adopted(record, &format!("c{next}"), vec![]);
    }
    assert_eq!(record.decision, None);
}

#[test]
fn however_many_adopt_it_few_are_remembered_and_what_was_answered_to_them_is_kept() {
    let applied = Entry {
        key: Key::Answer {
            app: "c".into(),
            session: "c0".into(),
            transaction: "t1".into(),
            branch: "debit".into(),
        },
        record: Reply { operation: Operation::Commit, verdict: Verdict::Yes(String::new()), attempts: 1 }
            .into(),
        create_revision: 7,
        mod_revision: 7,
        lease: 0,
    };
    let (record, plan) = adopted(committed(), "c1", vec![applied.clone()]);
    assert_eq!((record.former.len(), plan), (1, None));
    let (mut record, plan) = adopted(record, "c2", vec![applied]);
    let plan = plan.unwrap();
    for former in ["c0", "c1"] {
        let range = Range::Answers("c".into(), former.into(), "t1".into());
        assert!(plan.writes.contains(&Write::Delete(range)), "{former}: {plan:?}");
    }
    for next in 3..100 {
        assert!(record.former.len() < 2, "{:?}", record.former);
        let stages: Vec<Stage> = record.branches.iter().map(|branch| branch.stage).collect();
        assert_eq!(stages, [Stage::Applied, Stage::Applying]);
        (record, _) = adopted(record, &format!("c{next}"), vec![]);
    }
}
