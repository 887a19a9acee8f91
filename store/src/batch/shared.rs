//! What several plans of a batch compare alike: the definition, the session, the guard of a lease. Compared once for all
//! of them it costs etcd once.

use std::collections::{HashMap, HashSet};

use concordat_protocol::{
    Key, Range,
    etcd::{Compare, Op, Txn},
};

use super::Prepared;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shared(HashSet<Compare<Key>, foldhash::fast::RandomState>);

impl Shared {
    /// What at least two of the plans compare; no more than there are plans, so that the compares of a batch never count
    /// for more than its operations.
    pub(super) fn of<'a, V: 'a>(plans: impl ExactSizeIterator<Item = &'a Prepared<V>>) -> Self {
        let most = plans.len();
        let mut times: HashMap<&Compare<Key>, usize, foldhash::fast::RandomState> = HashMap::default();
        for compare in plans.flat_map(|plan| &plan.txn.compares) {
            *times.entry(compare).or_default() += 1;
        }
        let mut shared: Vec<_> = times.into_iter().filter(|(_, times)| *times > 1).collect();
        shared.sort_unstable_by_key(|(_, times)| std::cmp::Reverse(*times));
        Self(shared.into_iter().take(most).map(|(compare, _)| compare.clone()).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The compares.
    pub(super) fn compares(&self) -> Vec<Compare<Key>> {
        self.0.iter().cloned().collect()
    }

    /// A plan's transaction for a batch that compares this for it.
    pub(super) fn without<V: Clone>(&self, plan: &Prepared<V>) -> Txn<Key, Range, V> {
        let Txn { compares, then, or_else } = &plan.txn;
        let compares = compares.iter().filter(|compare| !self.0.contains(compare)).cloned().collect();
        // A guard need not be read to learn that it is there.
        let (asked, guards) = or_else.split_at(plan.otherwise());
        let guards = guards.iter().filter(|guard| !self.guards(guard));
        Txn { compares, then: then.clone(), or_else: asked.iter().chain(guards).cloned().collect() }
    }

    fn guards<V>(&self, read: &Op<Key, Range, V>) -> bool {
        let Op::Get(Range::One(key)) = read else { return false };
        self.0.iter().any(|compare| compare.key == *key)
    }
}
