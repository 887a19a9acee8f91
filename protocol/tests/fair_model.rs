//! Every order of events of one key of a fair lock, within bounds: callers on sidecars, what the watch tells and when,
//! crashes, pauses past the lease, lost replies and plans that land late. Then each planted bug alone, which must be
//! found.
//!
//! `CONCORDAT_MODEL=large` lets more happen, which takes long.

#![allow(clippy::expect_used)]

#[path = "fair_model/next.rs"]
mod next;
#[path = "lock_model/run.rs"]
mod run;
#[path = "fair_model/state.rs"]
mod state;
#[path = "fair_model/world.rs"]
mod world;

use concordat_protocol::lock::{Share, invariant::line};
use state::State;
use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{Action, Budget, Bug, Caller, World};

const MUTEX: Share = Share::EXCLUSIVE;
const READ: Share = Share::READER;
const WRITE: Share = Share::EXCLUSIVE;

fn permits(permits: u32) -> Share {
    Share::permits(permits, 2)
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(World::actions(self, state));
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Some(self.next(state, &action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        if self.bug.is_none() {
            return vec![
                Property::always("L1 to L7", |_, state: &State| line::all(&state.history(), 0, 0).is_ok()),
                Property::always("lock-delay", |_, state: &State| state.delays_kept),
                Property::always("no orphan", |_, state: &State| !state.orphaned()),
                Property::sometimes("each grant in turn", |world: &World, state: &State| {
                    state.grants.len()
                        == world.callers.iter().map(|caller| usize::from(caller.calls)).sum::<usize>()
                }),
            ];
        }
        vec![
            Property::always("L1", |_, state: &State| line::l1_exclusion(&state.history(), 0).is_ok()),
            Property::always("L2", |_, state: &State| line::l2_fencing(&state.history(), 0).is_ok()),
            Property::always("L4", |_, state: &State| line::l4_local_truth(&state.history()).is_ok()),
            Property::always("L5", |_, state: &State| line::l5_liveness(&state.history(), 0).is_ok()),
            Property::always("L6", |_, state: &State| line::l6_order(&state.history(), 0).is_ok()),
            Property::always("L7", |_, state: &State| line::l7_wrong_token(&state.history()).is_ok()),
            Property::always("lock-delay", |_, state: &State| state.delays_kept),
            Property::always("no orphan", |_, state: &State| !state.orphaned()),
        ]
    }
}

fn scale() -> u8 {
    if std::env::var("CONCORDAT_MODEL").is_ok_and(|size| size == "large") { 2 } else { 1 }
}

/// Callers: the sidecar each talks to, what it asks for, and how often.
fn callers(of: &[(usize, Share, u8)]) -> Vec<Caller> {
    of.iter()
        .map(|(sidecar, share, calls)| Caller { sidecar: *sidecar, share: *share, calls: *calls })
        .collect()
}

fn holds(of: &[(usize, Share, u8)], delay: bool, budget: Budget) {
    let world = World { callers: callers(of), delay, budget, bug: None };
    // Depth first: breadth first, a million states wait in memory.
    let checker = world.checker().spawn_dfs().join();
    println!(
        "{} states, {} unique, depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

fn finds(bug: Bug, property: &'static str, of: &[(usize, Share, u8)], delay: bool, budget: Budget) {
    let world = World { callers: callers(of), delay, budget, bug: Some(bug) };
    let found = world.checker().finish_when(HasDiscoveries::AnyOf([property].into())).spawn_dfs().join();
    found.assert_any_discovery(property);
}

#[test]
fn a_mutex_of_three_on_two_sidecars() {
    let budget = Budget { hang_ups: 1, ..Budget::default() };
    holds(&[(0, MUTEX, 1), (0, MUTEX, 1), (1, MUTEX, scale())], false, budget);
}

#[test]
fn a_mutex_of_three_who_are_put_together() {
    let budget = Budget { hang_ups: 1, lost_replies: scale() - 1, ..Budget::default() };
    holds(&[(0, MUTEX, 1), (0, MUTEX, 1), (0, MUTEX, 1)], true, budget);
}

#[test]
fn a_mutex_whose_replies_are_lost() {
    let budget = Budget { lost_replies: 1, ..Budget::default() };
    holds(&[(0, MUTEX, 1), (0, MUTEX, 1), (1, MUTEX, scale())], false, budget);
}

#[test]
fn a_mutex_through_pauses_past_the_lease() {
    let budget = Budget { pauses: 1, ..Budget::default() };
    holds(&[(0, MUTEX, 1), (1, MUTEX, scale())], true, budget);
}

#[test]
fn a_mutex_through_crashes() {
    let budget = Budget { restarts: 1, ..Budget::default() };
    holds(&[(0, MUTEX, 1), (0, MUTEX, scale() - 1), (1, MUTEX, 1)], true, budget);
}

#[test]
fn two_readers_and_a_writer() {
    let budget = Budget { lost_replies: scale() - 1, pauses: scale() - 1, ..Budget::default() };
    holds(&[(0, READ, 1), (1, WRITE, 1), (1, READ, 1)], false, budget);
}

#[test]
fn a_reader_and_a_writer_through_each_fault() {
    each_fault(&[(0, READ, 1), (1, WRITE, 1), (1, READ, scale() - 1)]);
}

#[test]
fn permits_come_back_through_each_fault() {
    each_fault(&[(0, permits(1), 1), (1, permits(2), 1), (1, permits(1), scale() - 1)]);
}

/// A crash, a pause past the lease, a lost reply.
fn each_fault(of: &[(usize, Share, u8)]) {
    holds(of, true, Budget { restarts: 1, ..Budget::default() });
    holds(of, true, Budget { pauses: 1, ..Budget::default() });
    holds(of, true, Budget { lost_replies: 1, ..Budget::default() });
}

#[test]
fn three_who_want_four_of_two_permits() {
    let budget = Budget { hang_ups: scale() - 1, ..Budget::default() };
    holds(&[(0, permits(1), 1), (0, permits(2), 1), (1, permits(1), 1)], false, budget);
}

#[test]
fn an_order_by_revisions_alone_is_found() {
    let of = [(0, MUTEX, 1), (0, MUTEX, 1), (0, MUTEX, 1)];
    finds(Bug::RevisionsAlone, "L1", &of, false, Budget::default());
}

#[test]
fn a_hand_over_before_the_watch_ordered_the_line_is_found() {
    let of = [(0, MUTEX, 1), (0, MUTEX, 1), (0, MUTEX, 1), (1, MUTEX, 1)];
    finds(Bug::OrdersItself, "L1", &of, false, Budget::default());
}

#[test]
fn one_fence_for_all_of_a_revision_is_found() {
    let of = [(0, MUTEX, 1), (0, MUTEX, 1), (0, MUTEX, 1)];
    finds(Bug::FenceOfRevision, "L2", &of, false, Budget::default());
}

#[test]
fn a_shadow_that_a_release_leaves_is_found() {
    finds(Bug::LeavesShadow, "L5", &[(0, MUTEX, 1), (1, MUTEX, 1)], true, Budget::default());
}

#[test]
fn a_lock_delay_that_is_not_kept_is_found() {
    let budget = Budget { restarts: 1, ..Budget::default() };
    finds(Bug::NoShadow, "lock-delay", &[(0, MUTEX, 1), (1, MUTEX, 1)], true, budget);
}

#[test]
fn a_deletion_that_is_not_sent_until_it_is_known_is_found() {
    let budget = Budget { lost_replies: 1, ..Budget::default() };
    finds(Bug::DeletesOnce, "no orphan", &[(0, MUTEX, 1), (1, MUTEX, 1)], false, budget);
}

#[test]
fn a_reader_that_overtakes_a_writer_is_found() {
    let of = [(0, READ, 1), (1, WRITE, 1), (0, READ, 1)];
    finds(Bug::OverlooksWriters, "L6", &of, false, Budget::default());
}

#[test]
fn permits_beyond_those_there_are_are_found() {
    let of = [(0, permits(2), 1), (1, permits(1), 1)];
    finds(Bug::OneMorePermit, "L1", &of, false, Budget::default());
}

#[test]
fn a_grant_after_its_session_ended_is_found() {
    let budget = Budget { pauses: 1, ..Budget::default() };
    finds(Bug::GrantsToTheDead, "L4", &[(0, MUTEX, 1), (1, MUTEX, 1)], false, budget);
}

#[test]
fn a_grant_believed_after_its_session_ended_is_found() {
    let budget = Budget { pauses: 1, ..Budget::default() };
    finds(Bug::BelievesTooLong, "L1", &[(0, MUTEX, 1), (1, MUTEX, 1)], false, budget);
}

#[test]
fn a_key_that_a_lost_reply_leaves_is_found() {
    let budget = Budget { lost_replies: 1, ..Budget::default() };
    finds(Bug::ForgetsDoubt, "no orphan", &[(0, MUTEX, 1)], false, budget);
}
