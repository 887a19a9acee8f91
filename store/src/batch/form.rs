//! How the plans of a batch stand in etcd's transaction.

use std::{collections::HashSet, hash::BuildHasher as _};

use concordat_protocol::{
    Key, Range, Record,
    etcd::{Compare, Op, OpAnswer, Txn, TxnAnswer},
};

use super::{MAX_OPERATIONS, Prepared, shared::Shared};

/// See the variants.
#[derive(Debug, Default)]
pub(super) enum Form {
    /// One plan, as it is.
    #[default]
    Alone,
    /// Several, their operations side by side, and all that any of them compares compared for all of them: the least
    /// that etcd can be given to parse, check and answer. The plans being independent, it comes to the same so long as
    /// all compares hold; when one does not the batch is refused as a whole.
    Flat(Vec<Compare<Key>>),
    /// Several, each a transaction inside, but for what is compared once for the batch; when that does not hold the batch
    /// is refused as a whole too.
    Nested(Shared),
}

impl Form {
    /// For these plans: flat if it fits and they are `hopeful`, that is, if what they compare can be expected to hold.
    pub(super) fn of<V>(plans: &[&Prepared<V>], hopeful: bool) -> Self {
        if plans.len() == 1 {
            return Self::Alone;
        }
        let flat = if hopeful { flat(plans) } else { None };
        flat.map_or_else(|| Self::Nested(Shared::of(plans.iter().copied())), Self::Flat)
    }

    /// For a batch that is not to be refused because of one of its plans.
    pub(super) fn each_for_itself<V>(plans: &[&Prepared<V>]) -> Self {
        if plans.len() == 1 { Self::Alone } else { Self::Nested(Shared::default()) }
    }

    /// Whether one plan that does not hold can make etcd refuse all of several.
    pub(super) fn binds(&self) -> bool {
        match self {
            Self::Alone => false,
            Self::Flat(_) => true,
            Self::Nested(shared) => !shared.is_empty(),
        }
    }

    /// The transaction.
    pub(super) fn txn<V: Clone>(&self, plans: &[&Prepared<V>]) -> Txn<Key, Range, V> {
        match self {
            Self::Alone => plans.first().map(|plan| plan.txn.clone()).unwrap_or_default(),
            Self::Flat(compares) => {
                let then = plans.iter().flat_map(|plan| plan.txn.then.iter().cloned()).collect();
                Txn { compares: compares.clone(), then, or_else: Vec::new() }
            }
            Self::Nested(shared) => {
                let then = plans.iter().map(|plan| Op::Txn(shared.without(plan))).collect();
                Txn { compares: shared.compares(), then, or_else: Vec::new() }
            }
        }
    }

    /// What a transaction that was not refused as a whole says to each plan, `None` where it says nothing that could be
    /// meant.
    pub(super) fn answers<V>(
        &self,
        plans: &[&Prepared<V>],
        TxnAnswer { held, answers }: TxnAnswer<Key, Record>,
    ) -> Vec<Option<TxnAnswer<Key, Record>>> {
        let mut answers = answers.into_iter();
        let mut of = |plan: &&Prepared<V>| match self {
            Self::Alone => Some(TxnAnswer { held, answers: answers.by_ref().collect() }),
            Self::Flat(_) => {
                let of: Vec<_> = answers.by_ref().take(plan.txn.then.len()).collect();
                (of.len() == plan.txn.then.len()).then_some(TxnAnswer { held, answers: of })
            }
            Self::Nested(_) => match answers.next() {
                Some(OpAnswer::Txn(answer)) => Some(answer),
                _ => None,
            },
        };
        plans.iter().map(&mut of).collect()
    }
}

/// What a batch has that is to go flat, so that it stays within what etcd takes.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Digests of what is compared: two that are alike count too few, and then the batch is not flat after all.
    compares: HashSet<u64, foldhash::fast::RandomState>,
    operations: usize,
}

impl Room {
    /// Whether there is room for one plan more, which is then taken in.
    pub(super) fn takes<V>(&mut self, plan: &Prepared<V>) -> bool {
        let hasher = self.compares.hasher();
        let compares: Vec<u64> = plan.txn.compares.iter().map(|compare| hasher.hash_one(compare)).collect();
        let more = compares.iter().filter(|compare| !self.compares.contains(compare)).count();
        let operations = self.operations + plan.txn.then.len();
        let takes = self.compares.len() + more < MAX_OPERATIONS && operations < MAX_OPERATIONS;
        if takes {
            self.compares.extend(compares);
            self.operations = operations;
        }
        takes
    }
}

/// All that the plans compare, each once, if with a marker it does not exceed what etcd takes, nor do their operations.
fn flat<V>(plans: &[&Prepared<V>]) -> Option<Vec<Compare<Key>>> {
    if plans.iter().map(|plan| plan.txn.then.len()).sum::<usize>() >= MAX_OPERATIONS {
        return None;
    }
    let mut seen: HashSet<&Compare<Key>, foldhash::fast::RandomState> = HashSet::default();
    let all = plans.iter().flat_map(|plan| &plan.txn.compares);
    let compares: Vec<_> = all.filter(|compare| seen.insert(compare)).cloned().collect();
    (compares.len() < MAX_OPERATIONS).then_some(compares)
}
