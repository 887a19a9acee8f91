//! What became of a batch whose answer did not come.
//!
//! A linearizable read may say "absent" and the write still land. So the flusher writes its marker under the batch's
//! own compare: if that succeeds, the batch is void for ever; if it is refused, the batch was applied at the marker's
//! revision R, and each plan's branch follows from its compared keys as they were at R − 1.

use concordat_protocol::{
    Answer, Key, Range, Record,
    etcd::{Item, Op, OpAnswer},
};

use super::{Marker, Prepared};
use crate::CommitError;

/// One change of a marker's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision of the change.
    pub revision: i64,
    /// Which key.
    pub key: Key,
    /// Whether it was put; else deleted.
    pub put: bool,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was applied, at this revision.
    Applied(i64),
    /// It was not, and cannot be any more: the marker is at this revision.
    Void(i64),
    /// The marker is gone with the session: it cannot be applied any more, but may have been before.
    Gone,
}

/// From the revisions of a marker and of its void, 0 when absent: what became of the batch after which the marker has
/// changed.
pub(super) fn fate(marker: i64, void: i64) -> Fate {
    match marker {
        0 => Fate::Gone,
        revision if revision == void => Fate::Void(revision),
        revision => Fate::Applied(revision),
    }
}

/// The same from all changes of a marker since before the batch was sent, when the marker is gone.
pub(super) fn fate_in_history<V>(marker: &Marker<V>, changes: &[Change]) -> Fate {
    let put = |key: &Key| {
        changes.iter().find(|change| change.put && change.key == *key).map(|change| change.revision)
    };
    fate(put(&marker.key).unwrap_or(0), put(&marker.void).unwrap_or(0))
}

/// What must be read, and at which revisions, to answer a plan that was applied at `revision`.
pub(super) fn questions<V>(plan: &Prepared<V>, revision: i64) -> Vec<(Range, i64)> {
    let compared = plan.txn.compares.iter().map(|compare| (Range::One(compare.key.clone()), revision - 1));
    compared
        .chain(gets(&plan.txn.then).chain(gets(&plan.txn.or_else)).map(|range| (range, revision)))
        .collect()
}

/// The plan's answer from the answers to its questions.
pub(super) fn answer<V>(
    plan: &Prepared<V>,
    revision: i64,
    found: &mut impl Iterator<Item = Vec<(Key, Item<Record>)>>,
) -> Result<Answer, CommitError> {
    // Every answer is taken, held or not: the next plan's follow.
    let mut held = true;
    for compare in &plan.txn.compares {
        let item = found.next().unwrap_or_default();
        held &= compare.holds(item.first().map(|(_, item)| item));
    }
    let mut take = |count: usize| -> Vec<_> { found.take(count).map(OpAnswer::Got).collect() };
    let then = take(gets(&plan.txn.then).count());
    let or_else = take(gets(&plan.txn.or_else).count());
    plan.answer(held, if held { then } else { or_else }, revision)
}

fn gets<V>(ops: &[Op<Key, Range, V>]) -> impl Iterator<Item = Range> + '_ {
    ops.iter().filter_map(|op| match op {
        Op::Get(range) => Some(range.clone()),
        _ => None,
    })
}
