//! What clients see of a transaction.

use concordat_protocol::{
    Key, TransactionId,
    transaction::{Decision, Finished, Stage, Transaction, Work},
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// Whether and how it was decided: never a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It will be, or is, done by every participant.
    Committed,
    /// It is done by none.
    Aborted,
    /// There is no decision yet.
    Undecided,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Votes are awaited.
    Preparing,
    /// The decision is on its way to the participants.
    Applying,
    /// A participant refused what was decided, or etcd was restored before it was decided: a person must help.
    Stuck,
    /// Applied everywhere.
    Finished,
}

/// A transaction.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Its id.
    pub id: String,
    /// The DistributedTransaction it is one of.
    pub transaction: String,
    /// Whether and how it was decided.
    pub outcome: Outcome,
    /// How far it is.
    pub state: State,
    /// Why it was aborted.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When it began (RFC 3339).
    pub began: String,
    /// When it was finished (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
    /// Its branches, in the declared order.
    pub branches: Vec<BranchView>,
}

/// One branch of it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BranchView {
    /// The participant's name.
    pub name: String,
    /// `preparing`, `applying`, `applied`, `stuck` or `skipped`.
    pub state: &'static str,
    /// How many calls its last operation took.
    pub attempts: u32,
    /// What the last failed call met with, or why it is stuck.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_error: String,
    /// The JSON it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub result: Option<Box<RawValue>>,
    /// What people did to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl View {
    /// Of a transaction that is not finished.
    pub fn live(id: &TransactionId, record: &Transaction) -> Self {
        Self {
            id: id.to_string(),
            transaction: record.name.to_string(),
            outcome: record.decision.into(),
            state: match record.decision {
                _ if record.is_stuck() => State::Stuck,
                None => State::Preparing,
                Some(_) => State::Applying,
            },
            reason: record.reason.clone(),
            began: instant(record.began),
            finished: None,
            branches: record
                .branches
                .iter()
                .map(|branch| {
                    let name = branch.participant.name.to_string();
                    BranchView::new(name, branch.stage, branch.attempts, &branch.result, &branch.notes)
                })
                .collect(),
        }
    }

    /// Of a finished one.
    pub fn finished(id: &TransactionId, record: &Finished) -> Self {
        Self {
            id: id.to_string(),
            transaction: record.name.to_string(),
            outcome: Some(record.decision).into(),
            state: State::Finished,
            reason: record.reason.clone(),
            began: instant(record.began),
            finished: Some(instant(record.finished)),
            branches: record
                .branches
                .iter()
                .map(|branch| {
                    let name = branch.name.to_string();
                    BranchView::new(name, branch.stage, branch.attempts, &branch.result, &branch.notes)
                })
                .collect(),
        }
    }

    /// Adds what an item tells of the attempts at its operation.
    pub fn add_attempts(&mut self, key: &Key, work: &Work) {
        let Key::Work { branch, .. } = key else { return };
        if let Some(branch) = self.branches.iter_mut().find(|of| of.name == branch.as_str()) {
            branch.attempts = work.attempts;
            branch.last_error.clone_from(&work.last_error);
        }
    }
}

impl BranchView {
    fn new(name: String, stage: Stage, attempts: u32, result: &str, notes: &[String]) -> Self {
        // A result is JSON; why there is none is not.
        let json = RawValue::from_string(result.to_owned()).ok();
        Self {
            name,
            state: match stage {
                Stage::Preparing => "preparing",
                Stage::Applying => "applying",
                Stage::Applied => "applied",
                Stage::Stuck => "stuck",
                Stage::Skipped => "skipped",
            },
            attempts,
            last_error: if json.is_none() { result.to_owned() } else { String::new() },
            result: json,
            notes: notes.to_vec(),
        }
    }
}

impl From<Option<Decision>> for Outcome {
    fn from(decision: Option<Decision>) -> Self {
        match decision {
            None => Self::Undecided,
            Some(Decision::Commit) => Self::Committed,
            Some(Decision::Abort) => Self::Aborted,
        }
    }
}

/// With all of its milliseconds: as text it stands in the order of time.
fn instant(unix: u64) -> String {
    let instant = Timestamp::from_millisecond(unix.try_into().unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX);
    format!("{instant:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_in_the_order_of_time_as_text() {
        let texts = [1_000, 1_120, 1_125, 1_900, 2_000].map(instant);
        assert_eq!(texts[1], "1970-01-01T00:00:01.120Z");
        assert!(texts.is_sorted(), "{texts:?}");
    }
}
