//! The group commit on the model of etcd, under faults: whatever it answers must be what some serial execution of the
//! plans would have answered, and each of its rules must be needed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

#[path = "batch/plans.rs"]
mod plans;
#[path = "batch/world.rs"]
mod world;

use concordat_protocol::{Key, Plan, Range, etcd};
use concordat_store::batch::{BatchRules, Footprint, Occupied, independent};
use plans::{Choice, Model, plan};
use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use world::simulate;

/// Steps of one history.
const STEPS: usize = 160;

fn history() -> impl Strategy<Value = Vec<Choice>> {
    vec(any::<Choice>(), 1..STEPS)
}

proptest! {
    #![proptest_config(Config { cases: 4_000, max_global_rejects: 100_000, failure_persistence: None, ..Config::default() })]

    #[test]
    fn every_answer_is_that_of_a_serial_execution(choices in history()) {
        prop_assert_eq!(simulate(&choices, BatchRules::default()), Ok(()));
    }

    #[test]
    fn the_index_answers_as_the_rule(plans in vec(any::<Choice>(), 0..8), one in any::<Choice>()) {
        let footprint = |choice: &Choice| Footprint::of(&plan(*choice));
        let one = footprint(&one);
        let mut occupied = Occupied::default();
        for other in &plans {
            occupied.add(&footprint(other));
        }
        prop_assert_eq!(
            occupied.independent(&one),
            plans.iter().all(|other| independent(&footprint(other), &one))
        );
    }

    /// What the rule is for: independent plans answer the same together, in one order and in the other.
    #[test]
    fn independent_plans_do_not_notice_each_other(
        before in vec(any::<Choice>(), 0..6), a in any::<Choice>(), b in any::<Choice>(),
    ) {
        let (a, b) = (plan(a), plan(b));
        prop_assume!(independent(&Footprint::of(&a), &Footprint::of(&b)));
        let mut etcd = Model::default();
        for choice in before {
            let _ = etcd.txn(&plans::lowered(plan(choice)).txn);
        }
        let [a, b] = [a, b].map(|plan| plans::lowered(plan).txn);
        let together = etcd::Txn {
            then: vec![etcd::Op::Txn(a.clone()), etcd::Op::Txn(b.clone())],
            ..etcd::Txn::default()
        };
        let (mut batch, mut ab, mut ba) = (etcd.clone(), etcd.clone(), etcd);
        let batched = plans::inside(batch.txn(&together));
        let [first, second] = [&a, &b].map(|txn| plans::shown(ab.txn(txn)));
        let [third, fourth] = [&b, &a].map(|txn| plans::shown(ba.txn(txn)));
        prop_assert_eq!(&batched, &vec![first, second]);
        prop_assert_eq!(&batched, &vec![fourth, third]);
        prop_assert_eq!(plans::contents(&batch), plans::contents(&ab));
        prop_assert_eq!(plans::contents(&batch), plans::contents(&ba));
    }
}

/// Whether some history shows what goes wrong without a rule.
fn caught(rules: BatchRules) -> Option<String> {
    let mut runner = TestRunner::deterministic();
    (0..20_000).find_map(|_| {
        let choices = history().new_tree(&mut runner).ok()?.current();
        simulate(&choices, rules).err()
    })
}

#[test]
fn planted_dependent_plans_in_one_batch() {
    let found = caught(BatchRules { independent_inside: false, ..BatchRules::default() });
    assert!(found.is_some(), "no history needed the rule");
}

#[test]
fn planted_dependent_plans_in_two_batches_in_flight() {
    let found = caught(BatchRules { independent_across: false, ..BatchRules::default() });
    assert!(found.as_deref().is_some_and(|found| found.contains("order")), "{found:?}");
}

#[test]
fn planted_a_batch_sent_again_without_its_marker() {
    let found = caught(BatchRules { marker: false, ..BatchRules::default() });
    assert!(found.as_deref().is_some_and(|found| found.contains("twice")), "{found:?}");
}

#[test]
fn planted_a_put_under_a_dead_lease_among_others() {
    let found = caught(BatchRules { lease_guards: false, ..BatchRules::default() });
    assert!(found.as_deref().is_some_and(|found| found.contains("LeaseNotFound")), "{found:?}");
}

#[test]
fn plans_that_share_a_key_only_to_compare_it_go_together() {
    let session = Key::Session("s".into());
    let of = |name: &str| {
        Footprint::of(&Plan::new().present(session.clone()).delete(Key::Transaction(name.into())))
    };
    assert!(independent(&of("a"), &of("b")));
    assert!(!independent(&of("a"), &of("a")));
    assert!(!independent(&of("a"), &Footprint::of(&Plan::new().delete(Range::Transactions))));
    assert!(!independent(&of("a"), &Footprint::of(&Plan::new().delete(session.clone()))));
}
