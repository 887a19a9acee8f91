//! The transactions that this sidecar coordinates: runs their machines.

use std::{collections::HashMap, sync::Arc, time::Duration};

use concordat_protocol::{
    Entry, Millis, Plan, Record, TransactionId,
    transaction::{
        Coordinator, Decision, Transaction,
        coordinator::{Effect, Failure, Input, Refusal},
    },
};
use concordat_store::CommitError;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    task::AbortHandle,
};

use super::{Inner, View};
use crate::{failpoint, spans::Span};

/// How far a transaction is, for those who wait for it here.
#[derive(Clone, Default)]
pub(super) enum Progress {
    /// It is not known whether it is begun.
    #[default]
    Beginning,
    /// It is begun and not decided.
    Undecided,
    /// It is decided, and looks like this.
    Decided(Arc<View>),
    /// It was not begun.
    Refused(Refusal),
    /// Another sidecar coordinates it now.
    Lost,
}

/// One transaction under way.
pub(super) struct Run {
    pub(super) machine: Coordinator,
    /// Tells it from another run of the same id.
    number: u64,
    pub(super) progress: watch::Sender<Progress>,
    timer: Option<AbortHandle>,
    /// Its place among those in flight, until it is decided.
    permit: Option<OwnedSemaphorePermit>,
}

pub(super) type Runs = HashMap<TransactionId, Run>;

impl Inner {
    /// Puts a machine under way whose first effects are given. Follow it by what is answered.
    pub(super) fn run(
        self: &Arc<Self>,
        id: &TransactionId,
        (machine, effects): (Coordinator, Vec<Effect>),
        permit: Option<OwnedSemaphorePermit>,
    ) -> watch::Receiver<Progress> {
        let (progress, following) = watch::channel(Progress::Beginning);
        let number = self.next_number();
        let mut runs = self.runs.lock();
        runs.insert(id.clone(), Run { machine, number, progress, timer: None, permit });
        self.perform(&mut runs, id, effects);
        following
    }

    /// Hands an input to the machine of a transaction, if there is one.
    pub(super) fn coordinate(self: &Arc<Self>, id: &TransactionId, input: Input) {
        let mut runs = self.runs.lock();
        self.step(&mut runs, id, input);
    }

    fn coordinate_run(self: &Arc<Self>, id: &TransactionId, number: u64, input: Input) {
        let mut runs = self.runs.lock();
        if runs.get(id).is_some_and(|run| run.number == number) {
            self.step(&mut runs, id, input);
        }
    }

    fn step(self: &Arc<Self>, runs: &mut Runs, id: &TransactionId, input: Input) {
        let Some(run) = runs.get_mut(id) else { return };
        let effects = run.machine.step(input, &self.peers.lock(), self.store.clock().now());
        self.perform(runs, id, effects);
    }

    fn perform(self: &Arc<Self>, runs: &mut Runs, id: &TransactionId, effects: Vec<Effect>) {
        for effect in effects {
            let Some(run) = runs.get_mut(id) else { return };
            match effect {
                Effect::Commit(plan) => {
                    let (inner, id, number) = (self.clone(), id.clone(), run.number);
                    let step = run.machine.step_name();
                    let traced = Span::commit_for(&run.machine.record().traceparent, step);
                    tokio::spawn(async move {
                        let answer = inner.commit(step, plan, traced).await;
                        inner.coordinate_run(&id, number, answer);
                    });
                }
                Effect::Wait(wait) => {
                    let timer = self.clone().due(id.clone(), run.number, wait);
                    if let Some(before) = run.timer.replace(timer) {
                        before.abort();
                    }
                }
                Effect::Begun => {
                    self.stats.begun(run.machine.record());
                    // One that is adopted may be decided.
                    let record = run.machine.record();
                    run.progress.send_replace(match record.decision {
                        Some(_) => Progress::Decided(Arc::new(View::live(id, record))),
                        None => Progress::Undecided,
                    });
                    self.count_stuck(runs, id);
                }
                Effect::Decided(decision) => {
                    run.permit = None;
                    if let Some(timer) = run.timer.take() {
                        timer.abort();
                    }
                    tracing::debug!(transaction = %id, ?decision, "decided");
                    self.metrics.decided(run.machine.record(), decision, self.store.clock().now().unix);
                    let view = View::live(id, run.machine.record());
                    run.progress.send_replace(Progress::Decided(Arc::new(view)));
                }
                Effect::Changed => self.count_stuck(runs, id),
                Effect::Refused(refusal) => self.end(runs, id, Progress::Refused(refusal)),
                Effect::Lost => self.end(runs, id, Progress::Lost),
                Effect::Finished => {
                    let record = run.machine.record();
                    let committed = record.decision == Some(Decision::Commit);
                    self.stats.finished(record, committed);
                    let view = Progress::Decided(Arc::new(View::live(id, record)));
                    self.end(runs, id, view);
                }
            }
        }
    }

    fn end(&self, runs: &mut Runs, id: &TransactionId, last: Progress) {
        let Some(run) = runs.remove(id) else { return };
        if let Some(timer) = run.timer {
            timer.abort();
        }
        run.progress.send_replace(last);
        self.ended.notify_waiters();
        let record = run.machine.record();
        self.stats.stuck(record, stuck(runs, record));
    }

    /// The session ended: all of it is another's from now on.
    pub(super) fn lose_all(&self) {
        for (_, run) in self.runs.lock().drain() {
            if let Some(timer) = run.timer {
                timer.abort();
            }
            run.progress.send_replace(Progress::Lost);
        }
        self.ended.notify_waiters();
    }

    fn count_stuck(&self, runs: &Runs, id: &TransactionId) {
        if let Some(run) = runs.get(id) {
            let record = run.machine.record();
            self.stats.stuck(record, stuck(runs, record));
        }
    }

    async fn commit(&self, step: &'static str, plan: Plan, traced: Span) -> Input {
        let (before, after) = points(step);
        failpoint!(before);
        let answer = traced.awaits(self.store.commit(plan)).await;
        failpoint!(after);
        match answer {
            Ok(answer) => Input::Committed(answer),
            Err(error) => {
                tracing::warn!(step, %error, "a plan came to nothing");
                Input::Failed(failure(&error))
            }
        }
    }

    fn due(self: Arc<Self>, id: TransactionId, number: u64, wait: Millis) -> AbortHandle {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            self.coordinate_run(&id, number, Input::Due);
        })
        .abort_handle()
    }
}

/// How many are stuck of those that began under the same object.
fn stuck(runs: &Runs, of: &Transaction) -> u64 {
    let same = |record: &Transaction| record.name == of.name && record.definition == of.definition;
    let is_stuck = |record: &Transaction| same(record) && record.is_stuck();
    runs.values().filter(|run| is_stuck(run.machine.record())).count() as u64
}

/// The fail points before and after a step's commit.
fn points(step: &str) -> (&'static str, &'static str) {
    match step {
        "begin" => ("tx-before-begin", "tx-after-begin"),
        "adopt" => ("tx-before-adopt", "tx-after-adopt"),
        "decide" => ("tx-before-decide", "tx-after-decide"),
        "amend" => ("tx-before-amend", "tx-after-amend"),
        "move" => ("tx-before-move", "tx-after-move"),
        "finish" => ("tx-before-finish", "tx-after-finish"),
        _ => ("tx-before-look", "tx-after-look"),
    }
}

/// What a machine is told of a failed commit.
pub(super) fn failure(error: &CommitError) -> Failure {
    match error {
        CommitError::NotApplied(_) | CommitError::TooLarge { .. } => Failure::NotApplied,
        CommitError::Unknown(_) => Failure::Unknown,
        CommitError::SessionEnded => Failure::SessionEnded,
    }
}

/// The transaction in an entry.
pub(super) fn record(entry: &Entry) -> Option<&Transaction> {
    match &entry.record {
        Record::Transaction(record) => Some(record),
        _ => None,
    }
}
