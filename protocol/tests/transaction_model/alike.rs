//! Which worlds go on alike: those are one state to the checker.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
};

use super::World;

/// Worlds whose revisions differ in nothing but how many were spent in between go on alike, so they hash alike. All that
/// hashes as `i64` is a revision, a lease's id or a key's version, and of none does more matter than its order.
impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Zero is no revision, and must not be taken for one.
        let mut numbers = Numbers(BTreeSet::from([-1, 0]));
        self.hash_into(&mut numbers);
        let ranks = numbers.0.into_iter().zip(0..).collect();
        self.hash_into(&mut Ranked { ranks, state });
    }
}

/// Collects every `i64`.
struct Numbers(BTreeSet<i64>);

impl Hasher for Numbers {
    fn write(&mut self, _: &[u8]) {}
    fn write_i64(&mut self, number: i64) {
        self.0.insert(number);
    }
    fn finish(&self) -> u64 {
        0
    }
}

/// Hashes the place of each `i64` among all there are in its stead.
struct Ranked<'a, H> {
    ranks: BTreeMap<i64, usize>,
    state: &'a mut H,
}

impl<H: Hasher> Hasher for Ranked<'_, H> {
    fn write(&mut self, bytes: &[u8]) {
        self.state.write(bytes);
    }
    fn write_i64(&mut self, number: i64) {
        self.state.write_usize(self.ranks[&number]);
    }
    fn finish(&self) -> u64 {
        self.state.finish()
    }
}

impl World {
    fn hash_into(&self, state: &mut impl Hasher) {
        (&self.etcd, &self.pods, &self.flights, &self.history).hash(state);
        (self.late, self.crashes, self.freezes, self.sessions).hash(state);
    }
}
