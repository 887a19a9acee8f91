//! The branches whose part this sidecar's app takes: runs their machines, and calls the app.

use std::{collections::HashMap, sync::Arc, time::Duration};

use concordat_protocol::{
    Branch, Key, Millis, TransactionId,
    transaction::{
        Cohort, Operation, Work,
        participant::{Call, Called, Effect, Input, Tag},
    },
};
use tokio::{task::AbortHandle, time::Instant};

use super::{
    Inner,
    coordination::{failure, record},
};
use crate::{failpoint, spans::Span};

/// One branch at this sidecar.
pub(super) struct Part {
    pub(super) machine: Cohort,
    number: u64,
    timer: Option<AbortHandle>,
}

/// Which branch of which transaction.
pub(super) type BranchId = (TransactionId, Branch);
pub(super) type Parts = HashMap<BranchId, Part>;

impl Inner {
    /// The watch shows an item of this session's inbox.
    pub(super) fn take_item(self: &Arc<Self>, id: BranchId, revision: i64, work: Work) {
        let mut parts = self.parts.lock();
        if !parts.contains_key(&id) {
            let session = self.session.lock().clone();
            let machine = Cohort::new(id.0.clone(), id.1.clone(), self.identity.app.clone(), session);
            let number = self.next_number();
            parts.insert(id.clone(), Part { machine, number, timer: None });
        }
        self.step_part(&mut parts, &id, Input::Item(revision, work));
    }

    /// Hands an input to the machine of a branch, if there is one.
    pub(super) fn take_part(self: &Arc<Self>, id: &BranchId, input: Input) {
        let mut parts = self.parts.lock();
        self.step_part(&mut parts, id, input);
    }

    /// The session was replaced by `session`: what is still being called waits for its item to come to the new one.
    pub(super) fn move_parts(&self) {
        let session = self.session.lock().clone();
        for part in self.parts.lock().values_mut() {
            part.machine.moved_to(self.identity.app.clone(), session.clone());
        }
    }

    /// Hands the same input to every branch.
    pub(super) fn take_every_part(self: &Arc<Self>, input: &Input) {
        let ids: Vec<BranchId> = self.parts.lock().keys().cloned().collect();
        for id in ids {
            self.take_part(&id, input.clone());
        }
    }

    fn take_part_of(self: &Arc<Self>, id: &BranchId, number: u64, input: Input) {
        let mut parts = self.parts.lock();
        if parts.get(id).is_some_and(|part| part.number == number) {
            self.step_part(&mut parts, id, input);
        }
    }

    fn step_part(self: &Arc<Self>, parts: &mut Parts, id: &BranchId, input: Input) {
        let Some(part) = parts.get_mut(id) else { return };
        for effect in part.machine.step(input, self.store.clock().now()) {
            let (inner, id, number) = (self.clone(), id.clone(), part.number);
            match effect {
                Effect::Call(call) => {
                    tokio::spawn(async move {
                        let called = inner.call(&id, call).await;
                        inner.take_part_of(&id, number, Input::Called(called));
                    });
                }
                Effect::Wait(wait) => {
                    let timer = tokio::spawn(async move {
                        tokio::time::sleep(jittered(wait)).await;
                        inner.take_part_of(&id, number, Input::Due);
                    });
                    if let Some(before) = part.timer.replace(timer.abort_handle()) {
                        before.abort();
                    }
                }
                Effect::Commit(tag, plan) => {
                    let vote = part.machine.operation() == Some(Operation::Prepare);
                    let answer = matches!(tag, Tag::Reply(_));
                    let step = match (answer, vote) {
                        (true, true) => "vote",
                        (true, false) => "acknowledge",
                        (false, _) => "remember",
                    };
                    let traced = Span::commit_for(part.machine.traceparent(), step);
                    tokio::spawn(async move {
                        if answer {
                            failpoint!(if vote { "branch-before-vote" } else { "branch-before-ack" });
                        }
                        let committed = traced.awaits(inner.store.commit(plan)).await;
                        if answer {
                            failpoint!(if vote { "branch-after-vote" } else { "branch-after-ack" });
                        }
                        let input = match committed {
                            Ok(answer) => Input::Committed(tag, answer),
                            Err(error) => Input::Failed(tag, failure(&error)),
                        };
                        inner.take_part_of(&id, number, input);
                    });
                }
                Effect::Forget => {
                    if let Some(Part { timer: Some(timer), .. }) = parts.remove(&id) {
                        timer.abort();
                    }
                    self.ended.notify_waiters();
                    return;
                }
            }
        }
    }

    async fn call(&self, (id, branch): &BranchId, call: Call) -> Called {
        let prepare = call.work.operation == Operation::Prepare;
        failpoint!(if prepare { "branch-before-prepare-call" } else { "branch-before-apply-call" });
        let input = match &call.work.input {
            Some(input) => input.clone(),
            None => match self.input(id, branch).await {
                Ok(input) => input,
                Err(error) => {
                    tracing::warn!(transaction = %id, %branch, error, "the app is not called: its input could not be read");
                    return Called::NotMade;
                }
            },
        };
        // A pod that was frozen wakes up here: what it knows may be long over.
        if !self.store.session().is_believed(self.store.clock().now()) {
            return Called::NotMade;
        }
        let began = Instant::now();
        let called = self.callbacks.call(id, branch, &call, input).await;
        self.metrics.called(call.work.operation, &called, began.elapsed());
        failpoint!(if prepare { "branch-after-prepare-call" } else { "branch-after-apply-call" });
        called
    }

    /// The input of a branch that was too long to go with its item.
    async fn input(&self, id: &TransactionId, branch: &Branch) -> Result<String, String> {
        let key = Key::Transaction(id.clone());
        let answer = self.store.read(vec![key.into()]).await.map_err(|error| error.to_string())?;
        let entry = answer.reads.iter().flatten().next();
        let record = entry.and_then(record).ok_or("the transaction is not remembered")?;
        let declared = record.branches.iter().find(|of| of.participant.name == *branch);
        let own = declared.and_then(|branch| branch.participant.input.as_ref());
        Ok(own.unwrap_or(&record.input).clone())
    }
}

/// Between half of a wait and the whole of it.
fn jittered(wait: Millis) -> Duration {
    Duration::from_millis(wait).mul_f64(rand::random_range(0.5..=1.0))
}
