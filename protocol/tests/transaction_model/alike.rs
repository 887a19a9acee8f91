//! Which worlds are alike: those are one to the checker. Alike are those in which the same holds, and that go on to worlds
//! which are alike.

use std::{
    collections::{HashMap, HashSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

use concordat_protocol::transaction::invariant;
use stateright::Model;

use super::*;

/// What a revision is matters nowhere, only which are equal. All that hashes as `i64` is a revision. That one is greater than
/// another is asked as well, but where it is asked it follows from the rest: what is put over something is newer.
impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Zero is no revision, and must not be taken for one.
        self.hash_into(&mut Renumbered { met: BTreeMap::from([(0, 0)]), state });
    }
}

/// Hashes in the stead of a revision as which it was met first.
struct Renumbered<'a, H> {
    met: BTreeMap<i64, usize>,
    state: &'a mut H,
}

impl<H: Hasher> Hasher for Renumbered<'_, H> {
    fn write(&mut self, bytes: &[u8]) {
        self.state.write(bytes);
    }
    fn write_i64(&mut self, revision: i64) {
        let next = self.met.len();
        self.state.write_usize(*self.met.entry(revision).or_insert(next));
    }
    fn finish(&self) -> u64 {
        self.state.finish()
    }
}

impl World {
    fn hash_into(&self, state: &mut impl Hasher) {
        for (key, item) in self.etcd.range(&Range::All) {
            // When it came to be nobody asks, and it is leased if it is a session.
            (key, item.mod_revision, &item.value).hash(state);
        }
        (&self.pods, &self.flights).hash(state);
        (self.late, self.crashes, self.freezes, self.sessions).hash(state);
        self.hash_history(state);
    }

    /// The past as far as an invariant can yet come to look at it.
    fn hash_history(&self, state: &mut impl Hasher) {
        let history = &self.history;
        let decisions: BTreeSet<_> = history.decisions.iter().map(|(_, decision)| decision).collect();
        let votes: BTreeSet<_> = history.votes.iter().map(|(branch, _, yes)| (branch, yes)).collect();
        let done = history.ledger.iter().map(|(branch, done)| (branch, done.iter().collect()));
        let done: BTreeMap<_, BTreeSet<_>> = done.collect();
        (decisions, votes, done, &history.told, history.disturbed).hash(state);
        // Who has asked for more than to prepare, and must not ask for that again.
        let numbers: BTreeSet<_> = self.pods.iter().flatten().map(|sidecar| sidecar.number).collect();
        let bound = history.calls.iter().filter(|((_, number), calls)| {
            numbers.contains(number) && calls.iter().any(|call| *call != Operation::Prepare)
        });
        bound.map(|(who, _)| who).collect::<BTreeSet<_>>().hash(state);
        (invariant::ac3_validity(history), invariant::calls_in_order(history)).hash(state);
    }
}

/// Asserts of every world a scenario can come to that the same holds in it as in those it is alike with, and that they go
/// on to the same, with no two of them taken for one.
pub(crate) fn alike_go_on_alike(scenario: &Scenario) {
    let first = World::new(scenario);
    let mut found = HashSet::from([exactly(&first)]);
    let mut open = vec![first];
    let mut known = HashMap::new();
    while let Some(world) = open.pop() {
        let properties = scenario.properties();
        let holds: Vec<bool> = properties.iter().map(|of| (of.condition)(scenario, &world)).collect();
        let mut next = BTreeSet::new();
        for action in world.actions(scenario) {
            let mut after = world.clone();
            after.act(scenario, action);
            next.insert(hashed(&after));
            if found.insert(exactly(&after)) {
                open.push(after);
            }
        }
        let seen = (holds, next);
        assert_eq!(*known.entry(hashed(&world)).or_insert_with(|| seen.clone()), seen, "{world:?}");
    }
    assert!(known.len() < found.len(), "no two worlds were alike");
    eprintln!("{} worlds, {} kinds of them, of {scenario:?}", found.len(), known.len());
}

fn exactly(world: &World) -> u64 {
    let World { etcd, pods, flights, history, late, crashes, freezes, sessions } = world;
    hashed(&(etcd, pods, flights, history, late, crashes, freezes, sessions))
}

fn hashed(what: &impl Hash) -> u64 {
    let mut state = DefaultHasher::new();
    what.hash(&mut state);
    state.finish()
}
