//! Distributed transactions.
//!
//! [`Coordinator`] and [`Cohort`] are the machines, [`plans`] what they write, [`invariant`] what must hold. Two-phase
//! commit: a transaction and an item for each branch are put together; each participant's vote takes its item's place;
//! one compare-and-swap on the transaction is the decision and puts it over every item; acknowledgements take their
//! place; when all are in, the transaction is replaced by what is remembered of it for a while.

pub mod coordinator;
pub mod invariant;
pub mod participant;
pub mod peers;
pub mod plans;

pub use coordinator::Coordinator;
pub use participant::Cohort;
pub use peers::Peers;

use crate::{App, Branch, Millis, Name, SessionId, TransactionId, definition::Backoff};

/// How the participants agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Two-phase commit.
    TwoPhaseCommit,
    /// Three-phase commit.
    ThreePhaseCommit,
    /// Actions and compensations.
    Saga,
    /// Try, confirm, cancel.
    Tcc,
    /// Transactional message.
    Message,
}

/// One participant as declared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Participant {
    /// `name`.
    pub name: Branch,
    /// `app`.
    pub app: App,
    /// `path`.
    pub path: String,
    /// `timeout` of one call.
    pub timeout: Millis,
    /// `retry`, without its bound.
    pub retry: Backoff,
    /// `retry.attempts`, 0 for as long as it takes.
    pub attempts: u32,
    /// `after`.
    pub after: Vec<Branch>,
    /// `input` as JSON text; `None` for the transaction's own.
    pub input: Option<String>,
}

/// Settings of a DistributedTransaction; durations in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Settings {
    /// `spec.protocol`.
    pub protocol: Protocol,
    /// `spec.participants`.
    pub participants: Vec<Participant>,
    /// `spec.timeout`: to the decision.
    pub timeout: Millis,
    /// `spec.run: Once`.
    pub once: bool,
    /// `spec.retention`.
    pub retention: Millis,
}

impl Settings {
    /// Whether the protocol works yet; others are refused, never replaced.
    pub fn supported(&self) -> bool {
        self.protocol == Protocol::TwoPhaseCommit
    }
}

/// What was decided, once and for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// Every participant does its part.
    Commit,
    /// No participant does.
    Abort,
}

/// What a participant is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Can you, and will you if told so?
    Prepare,
    /// Do it.
    Commit,
    /// Undo it.
    Abort,
}

/// What a participant said of an operation, or a person of a branch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Yes, or done; with the JSON it answered, empty for none.
    Yes(String),
    /// A definite no, with the reason. To commit and abort it means stuck.
    No(String),
    /// From a person: the stuck branch is given up, and why.
    Skip(String),
    /// From a person: the stuck branch is tried again.
    Retry,
    /// From a person or the client, under [`Branch::everything`]: the whole transaction is rolled back, and why.
    Rollback(String),
}

/// How far a branch is, as its transaction's record has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Its vote is awaited.
    Preparing,
    /// The decision is on its way to it.
    Applying,
    /// It did what was decided.
    Applied,
    /// It refused what was decided, or etcd was restored before there was a decision: a person must help.
    Stuck,
    /// A person gave it up.
    Skipped,
}

/// One branch in its transaction's record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchRecord {
    /// The participant as declared when the transaction began.
    pub participant: Participant,
    /// The session whose inbox holds its item; `None` for the first sidecar of the app to come.
    pub item: Option<SessionId>,
    /// How far it is.
    pub stage: Stage,
    /// Its vote's JSON, or the reason why it is stuck, was skipped or said no.
    pub result: String,
    /// How many calls its last answered operation took.
    pub attempts: u32,
    /// What people did to it, oldest first, at most [`MAX_NOTES`].
    pub notes: Vec<String>,
}

/// A transaction that is not finished.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transaction {
    /// Name of its DistributedTransaction.
    pub name: Name,
    /// Create revision of the definition it began under.
    pub definition: i64,
    /// Input as JSON text, at most 256 KiB.
    pub input: String,
    /// App and session of its coordinator; `None` when it was handed over unowned.
    pub coordinator: Option<(App, SessionId)>,
    /// Former coordinators whose inboxes may hold answers that the record does not tell of.
    pub former: Vec<(App, SessionId)>,
    /// When it is aborted for want of a decision, milliseconds since the Unix epoch; 0 until it has a coordinator.
    pub deadline: Millis,
    /// Milliseconds to the decision, for when it gets its first coordinator.
    pub timeout: Millis,
    /// How long it can be read once it is finished, milliseconds.
    pub retention: Millis,
    /// When it began, milliseconds since the Unix epoch.
    pub began: Millis,
    /// The decision, once there is one.
    pub decision: Option<Decision>,
    /// Why it was aborted, empty otherwise.
    pub reason: String,
    /// Its branches, in the declared order.
    pub branches: Vec<BranchRecord>,
    /// `traceparent` of whoever began it (W3C Trace Context), empty for none: calls to participants are its children.
    pub traceparent: String,
}

/// An operation for a participant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work {
    /// What it is asked.
    pub operation: Operation,
    /// The participant as declared, without its input.
    pub participant: Participant,
    /// The branch's input as JSON text when small; `None`: read it from the transaction.
    pub input: Option<String>,
    /// Coordinator at the time of the put: where the answer goes.
    pub coordinator: (App, SessionId),
    /// Mod revision of the transaction that an answer must find; 0: that of the item itself, with which it was put.
    pub transaction: i64,
    /// Failed attempts so far, as far as it was worth remembering.
    pub attempts: u32,
    /// What the last one met with.
    pub last_error: String,
    /// That of its transaction.
    pub traceparent: String,
}

/// A vote or acknowledgement, or what a person wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reply {
    /// To what.
    pub operation: Operation,
    /// What was said.
    pub verdict: Verdict,
    /// How many calls it took.
    pub attempts: u32,
}

/// A finished transaction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Finished {
    /// Name of its DistributedTransaction.
    pub name: Name,
    /// [`digest`] of its input, so that the same id with another input is told apart.
    pub input_digest: u64,
    /// What was decided.
    pub decision: Decision,
    /// Why it was aborted, empty otherwise.
    pub reason: String,
    /// When it began and when it was finished, milliseconds since the Unix epoch.
    pub began: Millis,
    /// When it was finished.
    pub finished: Millis,
    /// Its branches, in the declared order.
    pub branches: Vec<FinishedBranch>,
}

/// One branch of a finished transaction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FinishedBranch {
    /// Its name.
    pub name: Branch,
    /// How it ended: applied or skipped.
    pub stage: Stage,
    /// What it answered, or why it was skipped or said no.
    pub result: String,
    /// How many calls its last answered operation took.
    pub attempts: u32,
    /// What people did to it, oldest first, at most [`MAX_NOTES`].
    pub notes: Vec<String>,
}

/// So many notes of what people did are kept of a branch.
pub const MAX_NOTES: usize = 16;

/// A hash of a transaction's input that stays the same for ever: FNV-1a, 64 bits.
pub fn digest(input: &str) -> u64 {
    input.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The id of the one transaction of a resource with `run: Once`, so that handing it over twice is the same as once.
pub fn once_id(uid: &str) -> TransactionId {
    format!("once-{uid}").into()
}

/// Adds a note of what a person did to a branch.
fn note(branch: &mut BranchRecord, text: String) {
    if branch.notes.len() == MAX_NOTES {
        branch.notes.remove(0);
    }
    branch.notes.push(text);
}
