//! Model checking of two-phase commit: the machines and the plans of the product over the model of etcd, in every order
//! in which plans can land, watches show, apps answer, sidecars die, freeze and come back.
//!
//! `CONCORDAT_MODEL=large` also runs the scenarios that take minutes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "transaction_model/bug.rs"]
mod bug;
#[path = "transaction_model/world.rs"]
mod world;

use bug::Bug;
use concordat_protocol::{Range, transaction::invariant};
use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{Action, Scenario, World, alike_go_on_alike};

impl Model for Scenario {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, state: &World, actions: &mut Vec<Action>) {
        actions.extend(state.actions(self));
    }

    fn next_state(&self, state: &World, action: Action) -> Option<World> {
        let mut next = state.clone();
        next.act(self, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("ac1 agreement", |_, world: &World| invariant::ac1_agreement(&world.history)),
            Property::always("ac2 irrevocable", |_, world: &World| {
                invariant::ac2_irrevocable(&world.history)
            }),
            Property::always("ac3 validity", |_, world: &World| invariant::ac3_validity(&world.history)),
            Property::always("ac4 non-triviality", |_, world: &World| {
                invariant::ac4_non_triviality(&world.history)
            }),
            Property::always("ac5 termination", |model: &Scenario, world: &World| {
                !world.at_its_end(model) || never_begun(world) || invariant::ac5_termination(&world.history)
            }),
            Property::always("ac6 truth", |_, world: &World| invariant::ac6_truth(&world.history)),
            Property::always("ac7 effect once", |_, world: &World| {
                invariant::ac7_effect_once(&world.history)
            }),
            Property::always("ac8 no orphan", |model: &Scenario, world: &World| {
                invariant::ac8_no_orphan(&world.etcd.range(&Range::All).map(|(key, _)| key).collect())
                    && (!world.at_its_end(model) || invariant::ac8_nothing_left(&world.etcd))
            }),
            Property::always("calls in order", |_, world: &World| invariant::calls_in_order(&world.history)),
            Property::sometimes("commits", |_, world: &World| {
                world.history.told.contains(&concordat_protocol::transaction::Decision::Commit)
            }),
        ]
    }
}

/// Its begin was lost with the sidecar that sent it.
fn never_begun(world: &World) -> bool {
    world.history.votes.is_empty()
        && world.history.decisions.is_empty()
        && world.history.ledger.is_empty()
        && invariant::ac8_nothing_left(&world.etcd)
}

/// Pods of these apps, the first of which begins a transaction with a branch at each of `branches`.
fn scenario(pods: &[&'static str], branches: &[&'static str]) -> Scenario {
    Scenario {
        pods: pods.to_vec(),
        branches: branches.to_vec(),
        coordinators: vec![0],
        crashes: 0,
        freezes: 0,
        deadline: false,
        no_votes: false,
        once: false,
        prompt: true,
        room: None,
        bug: None,
    }
}

fn check(scenario: Scenario) {
    // Depth first: breadth first, a million worlds wait in memory.
    let checker = scenario.clone().checker().spawn_dfs().join();
    eprintln!("{} states of {scenario:?}", checker.unique_state_count());
    checker.assert_properties();
}

fn caught(bug: Bug, scenario: Scenario) {
    let checker = Scenario { bug: Some(bug), ..scenario }
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let mut found: Vec<&str> = checker.discoveries().into_keys().collect();
    found.retain(|name| *name != "commits");
    eprintln!("{bug:?}: {found:?} after {} states", checker.unique_state_count());
    assert!(!found.is_empty(), "nothing caught {bug:?}");
}

fn large() -> bool {
    std::env::var("CONCORDAT_MODEL").is_ok_and(|size| size == "large")
}

/// What the checker takes for one world it may take for one: checked where all of them can be told apart.
#[test]
fn worlds_that_are_alike_go_on_alike() {
    let two = scenario(&["c", "p"], &["p", "p"]);
    alike_go_on_alike(&Scenario { no_votes: true, deadline: true, prompt: false, ..two.clone() });
    alike_go_on_alike(&Scenario { crashes: 2, ..two.clone() });
    alike_go_on_alike(&Scenario { freezes: 1, ..two });
    alike_go_on_alike(&two_items_too_many());
    alike_go_on_alike(&Scenario { crashes: 1, ..two_coordinators() });
}

#[test]
fn two_participants_in_every_order() {
    let two = scenario(&["c", "p", "q"], &["p", "q"]);
    check(Scenario { no_votes: true, deadline: true, prompt: false, ..two });
}

#[test]
fn three_participants_in_every_order() {
    check(Scenario { no_votes: true, deadline: true, ..three_participants() });
}

#[test]
fn two_participants_and_two_faults() {
    let two = scenario(&["c", "p", "q"], &["p", "q"]);
    check(Scenario { crashes: 2, ..two.clone() });
    check(Scenario { crashes: 1, freezes: 1, ..two.clone() });
    check(Scenario { freezes: 2, ..two });
}

#[test]
fn three_participants_and_two_crashes() {
    check(Scenario { crashes: 2, ..three_participants() });
}

#[test]
fn three_participants_a_crash_and_a_freeze() {
    check(Scenario { crashes: 1, freezes: 1, ..three_participants() });
}

#[test]
fn three_participants_and_two_freezes() {
    check(Scenario { freezes: 2, ..three_participants() });
}

fn three_participants() -> Scenario {
    scenario(&["c", "p", "q", "r"], &["p", "q", "r"])
}

#[test]
fn participants_of_one_app_and_two_crashes() {
    check(Scenario { crashes: 2, ..scenario(&["c", "p"], &["p", "p"]) });
    check(Scenario { crashes: 2, ..scenario(&["c", "p"], &["p", "p", "c"]) });
}

#[test]
fn two_coordinators_one_crashes_and_one_freezes() {
    let two = scenario(&["c", "c", "p"], &["p"]);
    check(Scenario { coordinators: vec![0, 1], crashes: 1, freezes: 1, ..two });
}

#[test]
fn two_sidecars_of_the_participant_one_crashes_and_one_freezes() {
    check(Scenario { crashes: 1, freezes: 1, ..scenario(&["c", "p", "p"], &["p"]) });
}

#[test]
fn a_frozen_sidecar_and_the_deadline() {
    let two = scenario(&["c", "c", "p"], &["p"]);
    check(Scenario { coordinators: vec![0, 1], freezes: 1, deadline: true, ..two });
    check(Scenario { freezes: 1, deadline: true, ..scenario(&["c", "p", "p"], &["p"]) });
}

#[test]
fn one_handed_over_unowned() {
    let once = Scenario { coordinators: vec![0, 1], once: true, ..scenario(&["c", "p"], &["p"]) };
    check(Scenario { crashes: 1, deadline: true, ..once.clone() });
    check(Scenario { freezes: 1, ..once });
}

/// Two items are more than one plan may move.
#[test]
fn items_are_moved_before_the_decision() {
    check(two_items_too_many());
    check(Scenario { crashes: 0, freezes: 1, ..two_items_too_many() });
}

fn two_items_too_many() -> Scenario {
    Scenario { room: Some(2), crashes: 1, deadline: true, ..scenario(&["c", "p"], &["p", "p"]) }
}

#[test]
fn more_of_everything() {
    if !large() {
        return;
    }
    let two = scenario(&["c", "p", "q"], &["p", "q"]);
    check(Scenario { crashes: 2, deadline: true, no_votes: true, ..two.clone() });
    check(Scenario { crashes: 1, freezes: 1, deadline: true, ..two.clone() });
    check(Scenario { freezes: 2, deadline: true, ..two });
    check(Scenario { freezes: 2, deadline: true, ..scenario(&["c", "p"], &["p", "p"]) });
    check(Scenario { crashes: 1, deadline: true, ..three_participants() });
    check(Scenario { freezes: 1, deadline: true, ..three_participants() });
    let three = scenario(&["c", "c", "c", "p"], &["p"]);
    check(Scenario { coordinators: vec![0, 1, 2], freezes: 3, ..three });
}

fn two_coordinators() -> Scenario {
    let two = scenario(&["c", "c", "p"], &["p"]);
    Scenario { coordinators: vec![0, 1], freezes: 1, ..two }
}

#[test]
fn a_decision_without_compare_and_swap_is_caught() {
    caught(Bug::DecisionWithoutCompare, Scenario { deadline: true, ..two_coordinators() });
}

#[test]
fn an_answer_not_guarded_by_its_item_is_caught() {
    caught(Bug::AnswerNotGuardedByItsItem, two_coordinators());
}

#[test]
fn a_vote_not_guarded_by_the_transaction_is_caught() {
    caught(Bug::VoteNotGuardedByTheTransaction, two_coordinators());
}

#[test]
fn work_for_the_dead_is_caught() {
    caught(Bug::WorkForTheDead, Scenario { freezes: 1, ..scenario(&["c", "p", "p"], &["p"]) });
}

#[test]
fn a_move_that_is_not_recorded_is_caught() {
    let many = scenario(&["c", "p", "p", "p"], &["p"]);
    caught(Bug::MoveNotRecorded, Scenario { crashes: 1, deadline: true, ..many });
}

#[test]
fn a_move_not_guarded_by_its_item_is_caught() {
    caught(Bug::MoveNotGuardedByItsItem, two_items_too_many());
}

#[test]
fn former_inboxes_not_read_is_caught() {
    caught(Bug::FormerInboxesNotRead, two_coordinators());
}

#[test]
fn reading_before_the_adopting_swap_is_caught() {
    caught(Bug::ReadBeforeTheSwap, two_coordinators());
}

#[test]
fn adoption_on_the_event_alone_is_caught() {
    // All pods of the app are gone, and one is back later.
    caught(Bug::AdoptionOnTheEventAlone, Scenario { crashes: 1, ..scenario(&["c", "p"], &["p"]) });
}

#[test]
fn a_finished_record_that_ends_while_an_item_lives_is_caught() {
    caught(Bug::FinishedWhileAnItemLives, scenario(&["c", "p", "q"], &["p", "q"]));
}
