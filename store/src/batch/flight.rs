//! A batch on its way, from its sending to its last answer.

use concordat_protocol::{
    Answer, Key, Range, Record,
    etcd::{OpAnswer, TxnAnswer},
};

use super::{Ask, BatchRules, Marker, Occupied, Prepared, Settled, Step, form::Form, resolve};
use crate::{CommitError, Refusal};

/// A plan and who waits for it.
#[derive(Debug)]
pub(super) struct Waiting<V, T> {
    pub(super) number: u64,
    pub(super) plan: Prepared<V>,
    pub(super) ticket: Option<T>,
    /// It may have been applied by an earlier sending, or still be: that it is refused now tells nothing.
    pub(super) resent: bool,
}

/// What one flusher has in flight.
#[derive(Debug)]
pub(super) struct Flight<V, T> {
    pub(super) marker: Marker<V>,
    pub(super) stage: Stage,
    pub(super) plans: Vec<Waiting<V, T>>,
    /// How they stand in its transaction.
    pub(super) form: Form,
    /// Further parts of a batch that etcd refused, to be sent before anything else.
    pub(super) parts: Vec<Vec<Waiting<V, T>>>,
    /// The footprints of `plans` and `parts`.
    pub(super) occupied: Occupied,
}

/// What etcd's answers have taught about those to come.
#[derive(Debug, Default)]
pub(super) struct Learned {
    /// etcd has no space.
    pub(super) no_space: bool,
    /// So many batches of several plans are not to go flat.
    pub(super) wary: u32,
}

impl Learned {
    /// Whether what the next plans compare can be expected to hold.
    pub(super) fn hopeful(&self) -> bool {
        self.wary == 0
    }
}

/// How many batches of several plans do not go flat after one was refused: where refusals come all the time a round trip
/// more is paid for one batch of so many.
const WARY: u32 = 16;

/// What a flusher waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing.
    Idle,
    /// The answer to its batch.
    Sent { marked: bool },
    /// Whether its batch was applied, which etcd answered that there is no space for: it says so also of what takes the
    /// last of it, and has applied that (`quotaApplierV3` of `server/etcdserver/apply/quota.go`).
    Asking,
    /// That its batch is void, or was applied.
    Voiding,
    /// What its marker went through before it was gone.
    Tracing,
    /// What its batch, applied at this revision, found.
    Inspecting { revision: i64 },
}

impl<V: Clone, T> Flight<V, T> {
    pub(super) fn send(
        &mut self,
        batch: Vec<Waiting<V, T>>,
        rules: BatchRules,
        learned: &mut Learned,
    ) -> Ask<V> {
        let puts = batch.iter().any(|one| one.plan.puts);
        let marked = rules.marker && (puts || !learned.no_space);
        self.plans = batch;
        self.stage = Stage::Sent { marked };
        let plans = self.prepared();
        // Without a marker it would not be known why a batch was refused.
        self.form = if marked { Form::of(&plans, learned.hopeful()) } else { Form::each_for_itself(&plans) };
        if self.plans.len() > 1 {
            learned.wary = learned.wary.saturating_sub(1);
        }
        self.commit()
    }

    fn prepared(&self) -> Vec<&Prepared<V>> {
        self.plans.iter().map(|one| &one.plan).collect()
    }

    fn commit(&self) -> Ask<V> {
        let mut txn = self.form.txn(&self.prepared());
        if self.stage == (Stage::Sent { marked: true }) {
            self.marker.mark(&mut txn);
        }
        Ask::Commit { txn, plans: self.plans.len() }
    }

    /// What the stage asks, once more or for the first time.
    pub(super) fn ask_again(&self) -> Option<Ask<V>> {
        match self.stage {
            Stage::Idle => None,
            Stage::Sent { .. } => Some(self.commit()),
            // What is answered is no more on its way, so that a read tells it; and a void would need space.
            Stage::Asking => Some(Ask::ReadAt(vec![(Range::One(self.marker.key.clone()), 0)])),
            Stage::Voiding => Some(Ask::Void(self.marker.void())),
            Stage::Tracing => {
                Some(Ask::History([self.marker.key.clone(), self.marker.void.clone()], self.marker.revision))
            }
            Stage::Inspecting { revision } => Some(Ask::ReadAt(
                self.plans.iter().flat_map(|one| resolve::questions(&one.plan, revision)).collect(),
            )),
        }
    }

    /// etcd answered the batch.
    pub(super) fn landed(
        &mut self,
        marked: bool,
        answer: TxnAnswer<Key, Record>,
        revision: i64,
        learned: &mut Learned,
        step: &mut Step<V, T>,
    ) {
        let TxnAnswer { held, mut answers } = answer;
        if marked && held {
            self.marker.revision = revision;
            learned.no_space = false;
        }
        if marked && !held {
            // The plan's compares failed, or one by which all are bound, or the marker's: the session is over.
            match answers.pop().map_or(0, revision_of) {
                0 => return self.settle(&Err(CommitError::SessionEnded), step),
                revision if revision == self.marker.revision => {
                    // Which of them it is that does not hold shows when each compares for itself.
                    if self.form.binds() {
                        self.form = Form::each_for_itself(&self.prepared());
                        learned.wary = WARY;
                        step.ask = self.ask_again();
                        return;
                    }
                }
                // Somewhere on its way the batch was sent twice: this is the answer to the second.
                _ => {
                    self.stage = Stage::Voiding;
                    step.ask = self.ask_again();
                    return;
                }
            }
        }
        let answers = self.form.answers(&self.prepared(), TxnAnswer { held, answers });
        for (one, answer) in self.plans.drain(..).zip(answers) {
            let answer = match answer {
                Some(TxnAnswer { held, answers }) => one.plan.answer(held, answers, revision),
                None => Err(CommitError::Unknown("etcd answered something else than was asked".into())),
            };
            step.settled.push(one.settle(answer));
        }
    }

    /// Nothing of the batch was applied for want of space: what only deletes needs none, and goes on.
    pub(super) fn without_space(&mut self, step: &mut Step<V, T>) {
        let deletes = self.give_up_puts(&CommitError::NotApplied("etcd has no space".into()), step);
        if !deletes.is_empty() {
            self.parts.push(deletes);
        }
    }

    /// Of a batch that was not applied, what puts is told so; answers the rest, which goes on until it is known.
    pub(super) fn give_up_puts(&mut self, error: &CommitError, step: &mut Step<V, T>) -> Vec<Waiting<V, T>> {
        let (puts, deletes): (Vec<_>, Vec<_>) = self.plans.drain(..).partition(|one| one.plan.puts);
        step.settled.extend(puts.into_iter().map(|one| one.settle(Err(error.clone()))));
        deletes
    }

    pub(super) fn settle(&mut self, result: &Result<Answer, CommitError>, step: &mut Step<V, T>) {
        step.settled.extend(self.plans.drain(..).map(|one| one.settle(result.clone())));
    }
}

impl<V, T> Waiting<V, T> {
    pub(super) fn settle(self, result: Result<Answer, CommitError>) -> Settled<T> {
        let result = match result {
            Ok(answer) if answer.held => Ok(answer),
            _ if self.resent => {
                Err(CommitError::Unknown("etcd did not answer when it was sent first".into()))
            }
            result => result,
        };
        Settled { ticket: self.ticket, result, holdings: self.plan.holdings }
    }
}

/// The revision of the one key that was read, 0 when it is absent.
pub(super) fn revision_of(answer: OpAnswer<Key, Record>) -> i64 {
    match answer {
        OpAnswer::Got(items) => items.first().map_or(0, |(_, item)| item.mod_revision),
        _ => 0,
    }
}

/// A definite refusal in words.
pub(super) fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::LeaseNotFound => "a lease that it needs has ended",
        Refusal::DuplicateKey => "it puts a key twice, or puts and deletes it",
        Refusal::Compacted => "a revision that it reads is compacted",
        Refusal::TooLarge => "it is too large for etcd",
        Refusal::NoSpace => "etcd has no space",
        Refusal::Denied => "etcd's user may not do this",
        Refusal::Stale => "permissions in etcd change all the time",
        Refusal::NotSent(_) | Refusal::Unknown(_) => "etcd cannot be reached",
    }
}
