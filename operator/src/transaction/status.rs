//! What is seen of a `DistributedTransaction` becomes its status.

use concordat_crds::{
    DistributedTransaction, DistributedTransactionStatus,
    conditions::{ABORTED, COMMITTED, STUCK, reason},
    transaction::{Branch, Outcome, Run},
};
use concordat_protocol::{
    Entry, Key, Kind, Name, Range, Record, SessionId,
    session::Stat,
    transaction::{BranchRecord, Decision, Finished, Stage, Transaction, Work, once_id},
};
use jiff::Timestamp;

use super::{Totals, once::mark};
use crate::{
    conditions::{Fact, Standing, merge},
    metrics::Measure,
};

/// How many characters of a branch's error a status shows.
const SHOWN: usize = 1024;

/// What is remembered of a DistributedTransaction.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Its transactions that are not finished.
    pub live: Vec<Transaction>,
    /// `Once`: the transaction once it is finished, for as long as it is remembered.
    pub finished: Option<Finished>,
    /// `Once`: the operations that participants have not answered.
    pub work: Vec<(concordat_protocol::Branch, Work)>,
    /// `Once`: whether it was handed over.
    pub handed_over: bool,
    /// What live sidecars count.
    pub stats: Vec<(SessionId, Stat)>,
}

impl State {
    /// What to read of the object, for [`State::of`].
    pub fn ranges(object: &DistributedTransaction) -> Vec<Range> {
        let name: Name = object.metadata.name.as_deref().unwrap_or_default().into();
        let stats = Range::Stats(Kind::Transaction, name);
        match object.spec.run {
            Run::OnDemand => vec![Range::Transactions, stats],
            Run::Once => {
                let id = once_id(object.metadata.uid.as_deref().unwrap_or_default());
                vec![Key::Transaction(id.clone()).into(), Key::Done(id).into(), stats]
            }
        }
    }

    /// From the entries found in [`State::ranges`].
    pub fn of(name: &Name, entries: impl IntoIterator<Item = Entry>) -> Self {
        let mut state = Self::default();
        let mark = mark(name);
        for entry in entries {
            match (entry.key, entry.record) {
                (_, Record::Transaction(transaction)) if transaction.name == *name => {
                    state.live.push(transaction);
                }
                (_, Record::Done(finished)) => state.finished = Some(finished),
                (key, Record::Stat(_)) if key == mark => state.handed_over = true,
                (Key::Stat { session, .. }, Record::Stat(stat)) => state.stats.push((session, stat)),
                (Key::Work { branch, .. }, Record::Work(work)) => state.work.push((branch, work)),
                _ => {}
            }
        }
        state
    }

    /// What metrics tell of the object.
    pub fn measures(&self) -> Vec<Measure> {
        let undecided = self.live.iter().filter(|transaction| transaction.decision.is_none()).count() as u64;
        let oldest = self.live.iter().map(|transaction| transaction.began).min();
        vec![
            Measure::count("transactions_active", "Begun and not applied everywhere", self.live.len() as u64),
            Measure::count("transactions_undecided", "Those of them without a decision", undecided),
            Measure::count("transactions_stuck", "Those of them that wait for a person", self.stuck()),
            Measure::since("transactions_oldest", "Age of the one that began first", oldest),
        ]
    }

    fn stuck(&self) -> u64 {
        self.live.iter().filter(|transaction| !stuck(transaction).is_empty()).count() as u64
    }

    /// What to read further of an object with run `Once`, into [`State::work`]: the items of its transaction.
    pub fn items(&self, object: &DistributedTransaction) -> Vec<Range> {
        let id = once_id(object.metadata.uid.as_deref().unwrap_or_default());
        self.live
            .iter()
            .flat_map(|transaction| &transaction.branches)
            .map(|branch| {
                Key::Work {
                    app: branch.participant.app.clone(),
                    session: branch.item.clone(),
                    transaction: id.clone(),
                    branch: branch.participant.name.clone(),
                }
                .into()
            })
            .collect()
    }
}

/// The status after `object.status`, given where the object stands and what was read (`None`: nothing could be).
/// `totals` go on from one look to the next.
pub fn status(
    object: &DistributedTransaction,
    standing: &Standing,
    state: Option<&State>,
    totals: &mut Totals,
    now: Timestamp,
) -> DistributedTransactionStatus {
    let previous = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let (mut status, facts) = match (object.spec.run, state) {
        (Run::OnDemand, Some(state)) => {
            totals.look(object.status.as_ref(), state.stats.iter().map(|(session, stat)| (session, stat)));
            on_demand(object, state, totals)
        }
        (Run::Once, Some(state)) => once(object, &previous, state),
        (_, None) => (previous.clone(), kept(&previous)),
    };
    status.observed_generation = Some(generation);
    status.conditions =
        merge(&previous.conditions, [standing.fact()].into_iter().chain(facts).collect(), generation, now);
    status
}

type Told = (DistributedTransactionStatus, Vec<Fact>);

fn on_demand(object: &DistributedTransaction, state: &State, totals: &Totals) -> Told {
    let stuck = state.stuck();
    let fact = if stuck > 0 {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let message = format!(
            "{stuck} cannot go on without a person: see GET /v1/transactions/{name}?state=stuck on a sidecar, then \
             retry or skip"
        );
        Fact::new(STUCK, true, reason::PARTICIPANT_REFUSED, message)
    } else {
        not_stuck()
    };
    let status = DistributedTransactionStatus {
        active: Some(state.live.len() as u64),
        committed: Some(totals.committed),
        aborted: Some(totals.aborted),
        stuck: Some(stuck),
        ..DistributedTransactionStatus::default()
    };
    (status, vec![fact])
}

fn once(object: &DistributedTransaction, previous: &DistributedTransactionStatus, state: &State) -> Told {
    let told = |outcome, branches, facts| {
        let id = once_id(object.metadata.uid.as_deref().unwrap_or_default()).to_string();
        let status = DistributedTransactionStatus {
            id: Some(id),
            outcome: Some(outcome),
            branches,
            ..DistributedTransactionStatus::default()
        };
        (status, facts)
    };
    if let Some(finished) = &state.finished {
        let branches = finished
            .branches
            .iter()
            .map(|branch| shown(&branch.name, branch.stage, branch.attempts, &branch.result))
            .collect();
        let facts = decided(finished.decision, &finished.reason).into_iter().chain([not_stuck()]).collect();
        return told(outcome(finished.decision), branches, facts);
    }
    if let Some(transaction) = state.live.first() {
        let branches = transaction.branches.iter().map(|branch| live(branch, state)).collect();
        let mut facts = match transaction.decision {
            Some(decision) => decided(decision, &transaction.reason),
            None if transaction.coordinator.is_none() => {
                undecided("it waits for a sidecar that coordinates it")
            }
            None if transaction.is_stuck() => undecided("it was when etcd was restored: a person must say"),
            None => undecided("participants are asked"),
        };
        let stuck = stuck(transaction);
        facts.push(if stuck.is_empty() {
            not_stuck()
        } else {
            let (reason, why) = match transaction.decision {
                Some(_) => (reason::PARTICIPANT_REFUSED, "refused what it had agreed to, and needs a person"),
                None => {
                    (reason::ETCD_RESTORED, "may have voted since the snapshot of etcd, and needs a person")
                }
            };
            Fact::new(STUCK, true, reason, format!("{why}: {}", stuck.join(", ")))
        });
        return told(transaction.decision.map_or(Outcome::Undecided, outcome), branches, facts);
    }
    match previous.outcome {
        // It was seen to end, and is no longer remembered: what was seen stays.
        Some(Outcome::Committed | Outcome::Aborted) => (previous.clone(), kept(previous)),
        _ if state.handed_over || previous.id.is_some() => {
            let (reason, message) = if state.handed_over {
                (reason::UNDECIDED, "it ended, and was forgotten before an operator saw how")
            } else {
                (
                    reason::ETCD_RESTORED,
                    "etcd was restored from a snapshot that knows nothing of it: look at its participants",
                )
            };
            let unknown = |type_| Fact { type_, holds: None, reason, message: message.into() };
            let facts = vec![unknown(COMMITTED), unknown(ABORTED), not_stuck()];
            told(Outcome::Undecided, previous.branches.clone(), facts)
        }
        _ => {
            let facts = undecided("it was not handed over yet").into_iter().chain([not_stuck()]).collect();
            (DistributedTransactionStatus::default(), facts)
        }
    }
}

/// The previous conditions but `Ready`, as facts.
fn kept(previous: &DistributedTransactionStatus) -> Vec<Fact> {
    let types =
        [(COMMITTED, reason::DECIDED), (ABORTED, reason::DECIDED), (STUCK, reason::PARTICIPANT_REFUSED)];
    let others = [reason::UNDECIDED, reason::PROGRESSING, reason::ETCD_RESTORED];
    previous
        .conditions
        .iter()
        .filter_map(|condition| {
            let (type_, first) = types.into_iter().find(|(type_, _)| *type_ == condition.type_)?;
            let reason = others.into_iter().find(|of| *of == condition.reason).unwrap_or(first);
            let holds = match condition.status.as_str() {
                "True" => Some(true),
                "False" => Some(false),
                _ => None,
            };
            Some(Fact { type_, holds, reason, message: condition.message.clone() })
        })
        .collect()
}

fn outcome(decision: Decision) -> Outcome {
    match decision {
        Decision::Commit => Outcome::Committed,
        Decision::Abort => Outcome::Aborted,
    }
}

fn decided(decision: Decision, why: &str) -> Vec<Fact> {
    let committed = decision == Decision::Commit;
    let message = match decision {
        Decision::Commit => "every participant agreed".to_owned(),
        Decision::Abort if why.is_empty() => "it was aborted".to_owned(),
        Decision::Abort => why.to_owned(),
    };
    vec![
        Fact::new(COMMITTED, committed, reason::DECIDED, message.clone()),
        Fact::new(ABORTED, !committed, reason::DECIDED, message),
    ]
}

fn undecided(message: &str) -> Vec<Fact> {
    [COMMITTED, ABORTED].map(|type_| Fact::new(type_, false, reason::UNDECIDED, message)).to_vec()
}

fn not_stuck() -> Fact {
    Fact::new(STUCK, false, reason::PROGRESSING, "no participant refused what it had agreed to")
}

fn stuck(transaction: &Transaction) -> Vec<String> {
    transaction
        .branches
        .iter()
        .filter(|branch| branch.stage == Stage::Stuck)
        .map(|branch| branch.participant.name.to_string())
        .collect()
}

fn live(branch: &BranchRecord, state: &State) -> Branch {
    let name = &branch.participant.name;
    match state.work.iter().find(|(of, _)| of == name) {
        Some((_, work)) if branch.stage != Stage::Stuck => Branch {
            message: work.last_error.chars().take(SHOWN).collect(),
            ..shown(name, branch.stage, work.attempts, "")
        },
        _ => shown(name, branch.stage, branch.attempts, &branch.result),
    }
}

/// A branch; of its result only why it was given up: what participants answer is theirs, and stays out of a status.
fn shown(name: &concordat_protocol::Branch, stage: Stage, attempts: u32, result: &str) -> Branch {
    let (state, message) = match stage {
        Stage::Preparing => ("preparing", ""),
        Stage::Applying => ("applying", ""),
        Stage::Applied => ("applied", ""),
        Stage::Stuck => ("stuck", result),
        Stage::Skipped => ("skipped", result),
    };
    Branch {
        name: name.to_string(),
        state: state.into(),
        attempts: attempts.into(),
        message: message.chars().take(SHOWN).collect(),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
