//! From a plan to etcd's transaction, and from its answer back.

use concordat_protocol::{
    Answer, Entry, Key, Lease, Plan, Range, Record, Write,
    etcd::{Compare, Op, OpAnswer, Relation, Target, Txn},
};

use super::{BatchRules, Footprint};
use crate::CommitError;

/// A lease in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseId {
    /// etcd's id, 0 for none.
    pub id: i64,
    /// The key under it whose presence tells that it lives.
    pub guard: Option<Key>,
}

/// A plan ready to be sent. `V` is a record as the other side takes it: encoded for etcd, as it is for the model.
#[derive(Clone, Debug)]
pub struct Prepared<V> {
    /// As etcd's transaction, to stand alone or inside another.
    pub txn: Txn<Key, Range, V>,
    /// What it looks at and changes.
    pub footprint: Footprint,
    /// Whether it puts anything. One that does not may go when etcd has no space, and may be sent twice.
    pub puts: bool,
    /// How many bytes it is, estimated.
    pub bytes: usize,
    /// Keys it puts that mean possession as long as the session lives.
    pub holdings: Vec<Key>,
    /// [`Plan::otherwise`]; what `or_else` reads after them are guards.
    otherwise: usize,
}

/// Bytes of a key with what stands around it, typically.
const KEY_BYTES: usize = 160;

/// Lowers a plan. `lease` finds the lease in etcd; `encode` encodes a record and says how many bytes it is.
///
/// # Errors
/// [`CommitError::SessionEnded`] when a lease is of a session that is not the current one.
pub fn lower<V>(
    plan: Plan,
    rules: BatchRules,
    lease: impl Fn(&Lease) -> Option<LeaseId>,
    encode: impl Fn(Record) -> (V, usize),
) -> Result<Prepared<V>, CommitError> {
    let mut footprint = Footprint::of(&plan);
    let mut compares = plan.compares;
    let mut guards: Vec<Key> = Vec::new();
    let mut then = Vec::with_capacity(plan.writes.len() + plan.reads.len());
    let mut holdings = Vec::new();
    let (mut puts, mut bytes) = (false, 0);
    for write in plan.writes {
        match write {
            Write::Put(key, record, until) => {
                let LeaseId { id, guard } = lease(&until).ok_or(CommitError::SessionEnded)?;
                if let Some(guard) = guard.filter(|guard| !guards.contains(guard)) {
                    guards.push(guard);
                }
                // A holder that is put over what is there is told of, and was taken before.
                let taken = match key {
                    Key::Holder { .. } => compares.iter().any(|compare| is_absent(compare, &key)),
                    Key::Claim { .. } => true,
                    _ => false,
                };
                if taken && id != 0 {
                    holdings.push(key.clone());
                }
                let (value, size) = encode(record);
                puts = true;
                bytes += size;
                then.push(Op::Put { key, value, lease: id });
            }
            Write::Delete(range) => then.push(Op::Delete(range)),
        }
    }
    let otherwise = plan.otherwise.len();
    let mut or_else: Vec<_> = plan.otherwise.into_iter().map(Op::Get).collect();
    then.extend(plan.reads.into_iter().map(Op::Get));
    if rules.lease_guards {
        for guard in guards {
            let present = Compare {
                key: guard.clone(),
                target: Target::CreateRevision,
                relation: Relation::Greater,
                value: 0,
            };
            // That the session's own key is gone shows in the batch's marker; that another is, the caller's reads tell.
            if matches!(guard, Key::Marker { .. }) {
                or_else.push(Op::Get(Range::One(guard.clone())));
            }
            if !compares.contains(&present) {
                footprint.reads.push(Range::One(guard));
                compares.push(present);
            }
        }
    }
    bytes += KEY_BYTES * (compares.len() + then.len() + or_else.len());
    Ok(Prepared { txn: Txn { compares, then, or_else }, footprint, puts, bytes, holdings, otherwise })
}

/// Whether it holds only of a key that is not there.
fn is_absent(compare: &Compare<Key>, key: &Key) -> bool {
    compare.key == *key && compare.relation == Relation::Equal && compare.value == 0
}

impl<V> Prepared<V> {
    /// How many of the reads of its other branch its caller asked for: they come first, then those of guards.
    pub(super) fn otherwise(&self) -> usize {
        self.otherwise
    }

    /// What counts against [`super::MAX_OPERATIONS`].
    pub fn operations(&self) -> usize {
        self.txn.compares.len().max(self.txn.then.len()).max(self.txn.or_else.len())
    }

    /// What its caller is told, from what one branch of its transaction answered.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when a lease under which it would have put is no more.
    pub fn answer(
        &self,
        held: bool,
        answers: impl IntoIterator<Item = OpAnswer<Key, Record>>,
        revision: i64,
    ) -> Result<Answer, CommitError> {
        let mut reads: Vec<Vec<Entry>> = answers
            .into_iter()
            .filter_map(|answer| match answer {
                OpAnswer::Got(items) => Some(items.into_iter().map(crate::wire::entry).collect()),
                _ => None,
            })
            .collect();
        if !held {
            let guards = reads.split_off(self.otherwise.min(reads.len()));
            if guards.iter().any(Vec::is_empty) {
                return Err(CommitError::NotApplied("a lease that it needs has ended".into()));
            }
        }
        Ok(Answer { held, revision, reads })
    }
}
