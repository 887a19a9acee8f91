//! Every order of events of two callers that ask for the same keys in opposite orders: waits that are over, a crash, a
//! lost reply. Then the planted bug, keys taken as they were asked for, which must be found.

#![allow(clippy::expect_used)]

use concordat_protocol::lock::Several;
use stateright::{Checker, Model, Property};

const KEYS: usize = 3;

struct World {
    /// Takes keys in the order in which they were asked for.
    as_asked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    callers: Vec<Caller>,
    /// Who holds which key, as etcd has it.
    keys: Vec<Option<usize>>,
    /// Faults that may still happen.
    faults: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Caller {
    /// Keys by rank: they are taken in the order of both.
    several: Several<(usize, usize)>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Asks,
    /// The next key may have been taken for it: etcd's answer was lost.
    InDoubt,
    Holds,
    /// It let go, or waited in vain.
    Over,
    /// Its lease goes on without it.
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Take(usize),
    TakeWithoutAnswer(usize),
    LoseRequest(usize),
    FindOut(usize),
    GiveUp(usize),
    LetGo(usize),
    Die(usize),
    LeaseEnds(usize),
}

impl State {
    fn next(&self, caller: usize) -> Option<usize> {
        self.callers[caller].several.next().map(|(_, key)| *key)
    }

    fn holds(&self, caller: usize) -> usize {
        self.keys.iter().filter(|holder| **holder == Some(caller)).count()
    }

    fn free(&mut self, caller: usize, phase: Phase) {
        self.keys.iter_mut().for_each(|holder| {
            holder.take_if(|holder| *holder == caller);
        });
        self.callers[caller].phase = phase;
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let asked: [Vec<usize>; 2] = [(0..KEYS).collect(), (0..KEYS).rev().collect()];
        let rank = |at| if self.as_asked { at } else { 0 };
        let caller = |keys: &Vec<usize>| Caller {
            several: Several::new(keys.iter().enumerate().map(|(at, key)| (rank(at), *key)).collect())
                .expect("none is asked for twice"),
            phase: Phase::Asks,
        };
        vec![State { callers: asked.iter().map(caller).collect(), keys: vec![None; KEYS], faults: 2 }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for caller in 0..state.callers.len() {
            let free = state.next(caller).is_some_and(|key| state.keys[key].is_none());
            let mut may = |action, when: bool| when.then(|| actions.push(action));
            let phase = state.callers[caller].phase;
            let faulty = state.faults > 0;
            may(Action::Take(caller), phase == Phase::Asks && free);
            may(Action::TakeWithoutAnswer(caller), phase == Phase::Asks && free && faulty);
            may(Action::LoseRequest(caller), phase == Phase::Asks && free && faulty);
            may(Action::FindOut(caller), phase == Phase::InDoubt);
            may(Action::GiveUp(caller), phase == Phase::Asks && !free);
            may(Action::LetGo(caller), phase == Phase::Holds);
            may(Action::Die(caller), !matches!(phase, Phase::Over | Phase::Dead) && faulty);
            may(Action::LeaseEnds(caller), phase == Phase::Dead);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Take(caller) => {
                let key = state.next(caller)?;
                state.keys[key] = Some(caller);
                state.callers[caller].several.took();
                if state.next(caller).is_none() {
                    state.callers[caller].phase = Phase::Holds;
                }
            }
            Action::TakeWithoutAnswer(caller) => {
                let key = state.next(caller)?;
                state.keys[key] = Some(caller);
                state.callers[caller].phase = Phase::InDoubt;
                state.faults -= 1;
            }
            Action::LoseRequest(caller) => {
                state.callers[caller].phase = Phase::InDoubt;
                state.faults -= 1;
            }
            Action::FindOut(caller) | Action::GiveUp(caller) | Action::LetGo(caller) => {
                state.free(caller, Phase::Over);
            }
            Action::Die(caller) => {
                state.callers[caller].phase = Phase::Dead;
                state.faults -= 1;
            }
            Action::LeaseEnds(caller) => state.free(caller, Phase::Over),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("all or none", |_, state: &State| {
                (0..state.callers.len()).all(|caller| match state.callers[caller].phase {
                    Phase::Holds => state.holds(caller) == KEYS,
                    Phase::Over => state.holds(caller) == 0,
                    Phase::Asks | Phase::InDoubt | Phase::Dead => true,
                })
            }),
            Property::always("somebody gets on without giving up", |world: &World, state: &State| {
                let mut actions = Vec::new();
                world.actions(state, &mut actions);
                let over = state.callers.iter().all(|caller| caller.phase == Phase::Over);
                over || actions.iter().any(|action| !matches!(action, Action::GiveUp(_) | Action::Die(_)))
            }),
            Property::sometimes("a caller holds all", |_, state: &State| {
                state.callers.iter().any(|caller| caller.phase == Phase::Holds)
            }),
        ]
    }
}

#[test]
fn callers_never_wait_for_each_other() {
    World { as_asked: false }.checker().spawn_bfs().join().assert_properties();
}

#[test]
fn keys_taken_as_they_were_asked_for_are_found() {
    let checker = World { as_asked: true }.checker().spawn_bfs().join();
    checker.assert_any_discovery("somebody gets on without giving up");
}
