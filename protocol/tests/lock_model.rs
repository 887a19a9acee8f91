//! Every order of events of one key of a lock, within bounds: callers on sidecars, pauses past the lease, restarts,
//! lost replies and plans that land late, a definition made anew. Then each planted bug alone, which must be found.
//!
//! `CONCORDAT_MODEL=large` lets more happen, which takes long.

#![allow(clippy::expect_used)]

#[path = "lock_model/run.rs"]
mod run;
#[path = "lock_model/state.rs"]
mod state;
#[path = "lock_model/world.rs"]
mod world;

use concordat_protocol::{
    Entry, Key, Plan, Range, SessionId, Write,
    lock::{Fence, Mode, Seen, fence, invariant},
};
use state::State;
use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{Action, Budget, World, holder, shadow};

/// Defects that others' locks have or had, as changes of what the real machine says or is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A grant is believed after its session ended (etcd#11456).
    BelievesTooLong,
    /// A waiter is granted after its session died (etcd#19597).
    GrantsToTheDead,
    /// A sidecar with a stale definition writes.
    StaleDefinition,
    /// Acquiring does not ask whether the lock is free.
    OverwritesHolder,
    /// A release frees whatever stands under the name (etcd#22082).
    ReleasesByName,
    /// The fence is not of etcd's revision: a counter that begins anew with each sidecar's session.
    FenceOfSession,
    /// A release leaves its shadow.
    LeavesShadow,
    /// Acquiring does not ask whether there is a shadow.
    IgnoresShadow,
    /// A grant that is over against its holder's will takes its shadow along.
    TakesShadow,
    /// What stays is granted here after its lease has ended.
    RegrantsTheLost,
    /// What stays is granted here after its deletion was sent.
    RegrantsTheFreed,
    /// A grant of what stayed has the fence of the one before.
    OneFence,
    /// Nobody listens to what others want.
    IgnoresWants,
    /// Who comes to have what it wanted does not take its want back.
    LeavesWants,
    /// The lock-delay counts from when the lost one was granted (a shadow is looked at, and not whether it is alone).
    DelaysFromGrant,
}

impl Bug {
    /// The plan as a store with this bug would run it.
    fn plant(self, mut plan: Plan) -> Plan {
        let acquires = !plan.deletes_only();
        match self {
            Self::GrantsToTheDead => plan.compares.retain(|compare| !matches!(compare.key, Key::Session(_))),
            Self::StaleDefinition => {
                plan.compares.retain(|compare| !matches!(compare.key, Key::Definition { .. }));
            }
            Self::OverwritesHolder if acquires => plan.compares.retain(|compare| compare.key != holder()),
            Self::ReleasesByName if !acquires => plan.compares.clear(),
            Self::LeavesShadow if !acquires => {
                plan.writes.retain(|write| *write != Write::Delete(Range::One(shadow())));
            }
            Self::IgnoresShadow if acquires => plan.compares.retain(|compare| compare.key != shadow()),
            Self::LeavesWants => plan.writes.retain(|write| !takes_want_back(write)),
            Self::TakesShadow if !acquires => plan.writes.push(Write::Delete(Range::One(shadow()))),
            _ => {}
        }
        plan
    }

    /// Whether a sidecar with this bug looks at an entry.
    fn shows(self, entry: &Entry) -> bool {
        self != Self::DelaysFromGrant || entry.key != holder()
    }

    /// What a sidecar with this bug takes in of what the watch shows.
    fn distort(self, seen: Seen) -> Option<Seen> {
        match seen {
            Seen::All { revision, mut entries } => {
                entries.retain(|entry| self.shows(entry));
                Some(Seen::All { revision, entries })
            }
            Seen::Put(entry) => self.shows(&entry).then_some(Seen::Put(entry)),
            deleted @ Seen::Deleted { .. } => Some(deleted),
        }
    }

    /// The fence as a sidecar with this bug would tell it.
    fn forge(self, fence: u64, session: &SessionId) -> u64 {
        let begun: i64 = session.as_str().parse().unwrap_or_default();
        match self {
            Self::OneFence => fence - fence % fence::PLACES,
            Self::FenceOfSession => Fence::new(begun, 0, 0).map_or(0, Fence::get),
            _ => fence,
        }
    }
}

fn takes_want_back(write: &Write) -> bool {
    matches!(write, Write::Delete(Range::One(Key::Want { .. })))
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
            let mut properties = vec![
                Property::always("L1 to L7, lock-delay", |_, state: &State| {
                    invariant::all(&state.history(), 0, 0).is_ok()
                }),
                Property::always("no orphan", |_, state: &State| !state.orphaned()),
                Property::always("nothing is withheld", |_, state: &State| !state.withheld()),
                Property::sometimes("each grant in turn", |world: &World, state: &State| {
                    state.grants.len() == usize::from(world.budget.acquires)
                }),
            ];
            if self.mode == Mode::Lease {
                let after_a_loss = |_: &World, state: &State| !state.losses.is_empty();
                properties.push(Property::sometimes("a grant after a loss", after_a_loss));
            }
            return properties;
        }
        vec![
            Property::always("no orphan", |_, state: &State| !state.orphaned()),
            Property::always("nothing is withheld", |_, state: &State| !state.withheld()),
            Property::always("L1", |_, state: &State| invariant::l1_exclusion(&state.history()).is_ok()),
            Property::always("L2", |_, state: &State| invariant::l2_fencing(&state.history(), 0).is_ok()),
            Property::always("L4", |_, state: &State| invariant::l4_local_truth(&state.history()).is_ok()),
            Property::always("L5", |_, state: &State| invariant::l5_liveness(&state.history(), 0).is_ok()),
            Property::always("L6", |_, state: &State| invariant::l6_order(&state.history()).is_ok()),
            Property::always("L7", |_, state: &State| invariant::l7_wrong_token(&state.history()).is_ok()),
            Property::always("lock-delay", |_, state: &State| {
                invariant::lock_delay(&state.history()).is_ok()
            }),
        ]
    }
}

fn scale() -> u8 {
    if std::env::var("CONCORDAT_MODEL").is_ok_and(|size| size == "large") { 2 } else { 1 }
}

fn holds(world: World) {
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

fn finds(bug: Bug, property: &'static str, callers: Vec<(usize, bool)>, budget: Budget) {
    finds_in(Mode::CompareAndSwap, bug, property, callers, budget);
}

fn finds_in(mode: Mode, bug: Bug, property: &'static str, callers: Vec<(usize, bool)>, budget: Budget) {
    let world = World { mode, callers, budget, bug: Some(bug) };
    let found = world.checker().finish_when(HasDiscoveries::AnyOf([property].into())).spawn_bfs().join();
    found.assert_any_discovery(property);
}

#[test]
fn three_callers_on_two_sidecars() {
    let callers = vec![(0, true), (0, false), (1, true)];
    let budget = Budget { acquires: 2 + scale(), hang_ups: scale() - 1, expiries: 1, ..Budget::default() };
    holds(World { mode: Mode::CompareAndSwap, callers, budget, bug: None });
    let callers = vec![(0, true), (0, true), (1, false)];
    let budget = Budget { acquires: 2 + scale(), hang_ups: 1, ..Budget::default() };
    holds(World { mode: Mode::CompareAndSwap, callers, budget, bug: None });
}

#[test]
fn three_callers_on_three_sidecars_and_plans_that_land_late() {
    let callers = vec![(0, true), (1, true), (2, true)];
    let budget = Budget { acquires: 1 + scale(), lost_replies: 1, pauses: scale() - 1, ..Budget::default() };
    holds(World { mode: Mode::CompareAndSwap, callers, budget, bug: None });
}

#[test]
fn three_callers_through_a_lost_session_and_a_restart() {
    let callers = vec![(0, true), (0, false), (1, true)];
    for budget in [
        Budget { acquires: 1 + scale(), pauses: 1, restarts: scale() - 1, ..Budget::default() },
        Budget { acquires: 1 + scale(), restarts: 1, ..Budget::default() },
        Budget { acquires: 1, pauses: 1, restarts: 1, ..Budget::default() },
    ] {
        holds(World { mode: Mode::CompareAndSwap, callers: callers.clone(), budget, bug: None });
    }
}

#[test]
fn pauses_past_the_lease() {
    let callers = vec![(0, true), (1, true)];
    let budget = Budget { acquires: 1 + scale(), pauses: 1, ..Budget::default() };
    holds(World { mode: Mode::CompareAndSwap, callers, budget, bug: None });
}

#[test]
fn restarts_and_plans_that_land_late() {
    let callers = vec![(0, true), (1, true)];
    let budget = Budget { acquires: 2, restarts: 1, lost_replies: scale() - 1, ..Budget::default() };
    holds(World { mode: Mode::CompareAndSwap, callers: callers.clone(), budget, bug: None });
    let budget = Budget { acquires: 1, restarts: 1, lost_replies: 1, ..Budget::default() };
    holds(World { mode: Mode::CompareAndSwap, callers, budget, bug: None });
}

#[test]
fn what_stays_and_what_lasts() {
    let callers = vec![(0, true), (1, false)];
    let budget = Budget { acquires: 2 + scale(), lapses: 1, ..Budget::default() };
    holds(World { mode: Mode::CompareAndSwap, callers, budget, bug: None });
    let callers = vec![(0, true), (1, true)];
    let budget = Budget { acquires: 2, lapses: 2, lost_replies: scale() - 1, ..Budget::default() };
    holds(World { mode: Mode::CompareAndSwap, callers, budget, bug: None });
}

#[test]
fn a_definition_made_anew() {
    let callers = vec![(0, true), (1, true)];
    let budget = Budget {
        acquires: 2,
        redefinitions: scale(),
        lost_replies: 1,
        pauses: scale() - 1,
        ..Budget::default()
    };
    holds(World { mode: Mode::CompareAndSwap, callers, budget, bug: None });
}

#[test]
fn a_grant_believed_after_its_session_ended_is_found() {
    let budget = Budget { acquires: 2, pauses: 1, ..Budget::default() };
    finds(Bug::BelievesTooLong, "L4", vec![(0, true), (1, true)], budget);
}

#[test]
fn a_waiter_granted_after_its_session_died_is_found() {
    let budget = Budget { acquires: 2, pauses: 1, ..Budget::default() };
    finds(Bug::GrantsToTheDead, "L4", vec![(0, true), (1, true)], budget);
}

#[test]
fn a_stale_definition_that_writes_is_found() {
    let budget = Budget { acquires: 1, redefinitions: 1, ..Budget::default() };
    finds(Bug::StaleDefinition, "L4", vec![(0, true)], budget);
}

#[test]
fn acquiring_without_asking_whether_it_is_free_is_found() {
    let budget = Budget { acquires: 2, ..Budget::default() };
    finds(Bug::OverwritesHolder, "L1", vec![(0, true), (1, true)], budget);
}

#[test]
fn a_release_by_name_is_found() {
    let budget = Budget { acquires: 2, lost_replies: 1, ..Budget::default() };
    finds(Bug::ReleasesByName, "L4", vec![(0, true), (1, true)], Budget { acquires: 3, ..budget });
}

#[test]
fn a_fence_that_is_not_monotone_is_found() {
    let budget = Budget { acquires: 2, ..Budget::default() };
    finds(Bug::FenceOfSession, "L2", vec![(0, true), (1, true)], budget);
}

#[test]
fn a_lock_that_stayed_and_is_granted_after_its_lease_is_found() {
    let budget = Budget { acquires: 3, pauses: 1, ..Budget::default() };
    finds(Bug::RegrantsTheLost, "L4", vec![(0, true), (0, true), (1, true)], budget);
}

#[test]
fn a_lock_that_stayed_and_is_granted_after_its_deletion_was_sent_is_found() {
    let budget = Budget { acquires: 3, ..Budget::default() };
    finds(Bug::RegrantsTheFreed, "L4", vec![(0, true), (1, true)], budget);
}

#[test]
fn two_grants_of_what_stays_with_one_fence_are_found() {
    let budget = Budget { acquires: 2, ..Budget::default() };
    finds(Bug::OneFence, "L2", vec![(0, true)], budget);
}

#[test]
fn a_want_that_is_ignored_is_found() {
    let budget = Budget { acquires: 2, ..Budget::default() };
    finds(Bug::IgnoresWants, "nothing is withheld", vec![(0, true), (1, true)], budget);
}

#[test]
fn a_want_that_is_not_taken_back_is_found() {
    let budget = Budget { acquires: 2, lapses: 1, ..Budget::default() };
    finds(Bug::LeavesWants, "no orphan", vec![(0, true), (1, true)], budget);
}

#[test]
fn a_lease_of_three_callers_on_two_sidecars() {
    let callers = vec![(0, true), (0, false), (1, true)];
    let budget = Budget { acquires: 2 + scale(), hang_ups: 1, expiries: 1, ..Budget::default() };
    holds(World { mode: Mode::Lease, callers, budget, bug: None });
}

#[test]
fn a_lease_through_pauses_past_it() {
    let callers = vec![(0, true), (1, true)];
    let budget = Budget { acquires: 1 + scale(), pauses: 1, hang_ups: scale() - 1, ..Budget::default() };
    holds(World { mode: Mode::Lease, callers, budget, bug: None });
}

#[test]
fn a_lease_through_restarts_and_plans_that_land_late() {
    let callers = vec![(0, true), (1, false)];
    let budget = Budget { acquires: 1 + scale(), restarts: 1, lost_replies: 1, ..Budget::default() };
    holds(World { mode: Mode::Lease, callers, budget, bug: None });
}

#[test]
fn a_shadow_that_a_release_leaves_is_found() {
    let callers = vec![(0, true), (1, true)];
    let budget = Budget { acquires: 2, ..Budget::default() };
    finds_in(Mode::Lease, Bug::LeavesShadow, "lock-delay", callers.clone(), budget);
    finds_in(Mode::Lease, Bug::LeavesShadow, "L5", callers, budget);
}

#[test]
fn a_grant_that_ignores_the_shadow_is_found() {
    let budget = Budget { acquires: 2, restarts: 1, ..Budget::default() };
    finds_in(Mode::Lease, Bug::IgnoresShadow, "lock-delay", vec![(0, true), (1, true)], budget);
}

#[test]
fn a_loss_that_takes_its_shadow_along_is_found() {
    let budget = Budget { acquires: 2, expiries: 1, ..Budget::default() };
    finds_in(Mode::Lease, Bug::TakesShadow, "lock-delay", vec![(0, true), (1, true)], budget);
}

#[test]
fn a_lock_delay_that_counts_from_the_grant_is_found() {
    let budget = Budget { acquires: 2, restarts: 1, ..Budget::default() };
    finds_in(Mode::Lease, Bug::DelaysFromGrant, "lock-delay", vec![(0, true), (1, true)], budget);
}
