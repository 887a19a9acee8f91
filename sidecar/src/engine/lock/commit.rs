//! What machines have committed.

use std::sync::Arc;

use concordat_protocol::{
    Answer, Key, Millis, Plan,
    lock::{Failure, Input},
};
use concordat_store::CommitError;

use super::{Inner, Place};
use crate::{failpoint, spans::Span};

/// A plan on its way to etcd.
pub(super) struct Sent {
    plan: Plan,
    traced: Span,
    before: &'static str,
    after: &'static str,
}

impl Sent {
    /// On behalf of the request in whose task this is called, if it is called in one's.
    pub(super) fn new(plan: Plan) -> Self {
        let (step, before, after) = if plan.deletes_only() {
            ("release", "lock-before-release", "lock-after-release")
        } else if plan.compares.iter().any(|compare| matches!(compare.key, Key::Definition { .. })) {
            ("acquire", "lock-before-acquire", "lock-after-acquire-before-answer")
        } else {
            ("tell", "lock-before-telling", "lock-after-telling")
        };
        Self { plan, traced: Span::commit(step), before, after }
    }
}

impl Inner {
    pub(super) async fn commit(
        self: Arc<Self>,
        place: Place,
        sent: Sent,
        landed: impl FnOnce(Result<Answer, Failure>, Millis) -> Input,
    ) {
        failpoint!(sent.before);
        let outcome = sent.traced.awaits(self.store.commit(sent.plan)).await;
        failpoint!(sent.after);
        let outcome: Result<Answer, Failure> = outcome.map_err(|error| {
            tracing::debug!(lock = %place.lock, key = %place.key, %error, "a plan failed");
            match error {
                CommitError::Unknown(_) => Failure::Unknown,
                CommitError::SessionEnded => Failure::SessionEnded,
                CommitError::NotApplied(_) | CommitError::TooLarge { .. } => Failure::NotApplied,
            }
        });
        self.forget_lost_session(&place);
        let believed = self.believed(&place);
        if self.step(&place, landed(outcome, believed)).is_err() {
            tracing::error!(lock = %place.lock, key = %place.key, "a plan landed that nobody sent");
        }
    }
}
