//! What must hold of every transaction (Bernstein, Hadzilacos, Goodman, "Concurrency Control and Recovery in Database
//! Systems", 7.2: AC1 to AC5, and ours), over what was seen of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Decision, Operation};
use crate::{Branch, Key, Range, Record, etcd::Etcd};

/// What was seen of one transaction from its begin to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct History {
    /// Its branches.
    pub branches: BTreeSet<Branch>,
    /// Each value its decision took, with the revision at which it was put.
    pub decisions: BTreeSet<(i64, Decision)>,
    /// Every vote that was put, yes or no, with its revision.
    pub votes: BTreeSet<(Branch, i64, bool)>,
    /// What each app did and keeps (its ledger): operations that took effect, in order.
    pub ledger: BTreeMap<Branch, Vec<Operation>>,
    /// What each sidecar (by any number of its own) called, in order.
    pub calls: BTreeMap<(Branch, usize), Vec<Operation>>,
    /// What clients were told.
    pub told: BTreeSet<Decision>,
    /// Whether anything went wrong: a crash, a lost session, a passed deadline, a wish to roll back.
    pub disturbed: bool,
}

impl History {
    fn did(&self, branch: &Branch, operation: Operation) -> usize {
        self.ledger.get(branch).map_or(0, |done| done.iter().filter(|of| **of == operation).count())
    }

    fn decided(&self, decision: Decision) -> bool {
        self.decisions.iter().any(|(_, of)| *of == decision)
    }
}

/// AC1: no two participants apply different decisions.
pub fn ac1_agreement(history: &History) -> bool {
    let any = |operation| history.branches.iter().any(|branch| history.did(branch, operation) > 0);
    !(any(Operation::Commit) && any(Operation::Abort))
}

/// AC2: a decision is never reversed, not in the record and not at a participant.
pub fn ac2_irrevocable(history: &History) -> bool {
    !(history.decided(Decision::Commit) && history.decided(Decision::Abort))
        && history.branches.iter().all(|branch| {
            history.did(branch, Operation::Commit) == 0 || history.did(branch, Operation::Abort) == 0
        })
}

/// AC3: it commits only if every participant voted yes before.
pub fn ac3_validity(history: &History) -> bool {
    history.decisions.iter().filter(|(_, decision)| *decision == Decision::Commit).all(|(at, _)| {
        history.branches.iter().all(|branch| {
            history.votes.iter().any(|(of, revision, yes)| of == branch && *yes && revision < at)
        })
    })
}

/// AC4: when nothing goes wrong and everybody votes yes, it commits.
pub fn ac4_non_triviality(history: &History) -> bool {
    history.disturbed || history.votes.iter().any(|(_, _, yes)| !yes) || !history.decided(Decision::Abort)
}

/// AC5, of a history that is at its end: it is decided, and applied everywhere.
pub fn ac5_termination(history: &History) -> bool {
    let Some((_, decision)) = history.decisions.first() else { return false };
    history.branches.iter().all(|branch| history.did(branch, decision.operation()) > 0)
}

/// AC6: what clients are told is what was decided.
pub fn ac6_truth(history: &History) -> bool {
    history.told.iter().all(|told| history.decided(*told)) && history.told.len() <= 1
}

/// AC7: an effect takes place once, and only if it was committed.
pub fn ac7_effect_once(history: &History) -> bool {
    history.branches.iter().all(|branch| match history.did(branch, Operation::Commit) {
        0 => true,
        1 => history.decided(Decision::Commit),
        _ => false,
    })
}

/// AC8: nothing is asked of anybody for a transaction that is not remembered. It holds at all times, so that an id can
/// not begin again while an item of it lives.
pub fn ac8_no_orphan(remembered: &BTreeSet<&Key>) -> bool {
    remembered.iter().all(|key| match key {
        Key::Work { transaction, .. } => remembered.contains(&Key::Transaction(transaction.clone())),
        _ => true,
    })
}

/// AC8 at the end of a history: nothing is left but what is finished.
pub fn ac8_nothing_left(etcd: &Etcd<Key, Range, Record>) -> bool {
    etcd.range(&Range::All)
        .all(|(key, _)| !matches!(key, Key::Work { .. } | Key::Answer { .. } | Key::Transaction(_)))
}

/// No sidecar asks an app to prepare after it asked it to abort or commit.
pub fn calls_in_order(history: &History) -> bool {
    history.calls.values().all(|calls| {
        let first_apply = calls.iter().position(|operation| *operation != Operation::Prepare);
        let last_prepare = calls.iter().rposition(|operation| *operation == Operation::Prepare);
        match (first_apply, last_prepare) {
            (Some(apply), Some(prepare)) => prepare < apply,
            _ => true,
        }
    })
}
