//! The coordinator of one transaction: gathers votes, decides once, and sees the decision applied everywhere.
//!
//! It keeps what is remembered ([`Transaction`] and its mod revision) and what has been answered since, has at most one
//! plan under way, and after each input asks what is to be done next. Nothing is true before its plan held: a
//! coordinator that has been replaced finds its next plan refused.

mod commits;
mod outcome;
mod people;

use std::collections::{BTreeMap, BTreeSet};

use super::{BranchRecord, Decision, Operation, Peers, Reply, Stage, Transaction, Verdict, plans};
use crate::{Answer, App, Branch, Entry, Millis, Now, Plan, SessionId, TransactionId};

/// The wait before a plan is tried again whose fate is not known or that was refused for no reason to be seen.
pub const AGAIN: Millis = 200;

/// So many former coordinators of a decided transaction are remembered; with one more, what was answered to them is
/// taken into the record, and they are forgotten: a participant may be away for months, and each of them costs a delete
/// at the end.
const MOST_FORMER: usize = 1;

/// What a coordinator hears.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// An answer is in the inbox, put at a revision.
    Answered(Branch, i64, Reply),
    /// A wait it asked for is over.
    Due,
    /// What its plan came to.
    Committed(Answer),
    /// Its plan did not come to anything that is known.
    Failed(Failure),
}

/// Why there is no answer to a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// It was not applied and never will be.
    NotApplied,
    /// It may have been applied, or be yet.
    Unknown,
    /// The session has ended: no plan of it will be applied.
    SessionEnded,
}

/// What a coordinator wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Commit this, and tell what it came to.
    Commit(Plan),
    /// Say [`Input::Due`] after this many milliseconds; replaces the wait before.
    Wait(Millis),
    /// The transaction is begun (or adopted).
    Begun,
    /// The transaction was not begun: nothing of it is remembered.
    Refused(Refusal),
    /// It is decided, once and for all.
    Decided(Decision),
    /// What is remembered of its branches has changed.
    Changed,
    /// It is finished: nothing is left to do.
    Finished,
    /// Another coordinates it now, or it is finished: this one has nothing to say any more.
    Lost,
}

/// Why a transaction was not begun.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The id is in use: here is the transaction, or what is remembered of it.
    Exists(Entry),
    /// The definition is not the one it was read from any more.
    Definition,
    /// Nothing was written.
    Failed(Failure),
}

/// What a plan under way is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Begin(Transaction),
    Adopt(Transaction),
    Look,
    Decide(Transaction),
    Amend(Transaction, Vec<(Branch, i64)>),
    Move(Transaction),
    Finish,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Waits for answers or the deadline.
    Idle,
    /// A plan is under way that counts on these sessions.
    Committing(Step, Vec<SessionId>),
    /// Waits before it tries the plan again.
    Resting(Step),
    /// Has nothing to do any more.
    Over,
}

/// The coordinator of one transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coordinator {
    id: TransactionId,
    own: (App, SessionId),
    /// As it was last known to be remembered.
    record: Transaction,
    /// Its mod revision; 0 while it is not begun.
    revision: i64,
    /// Answers by branch, with the revision of each; without the reply once it has been dealt with.
    answers: BTreeMap<Branch, (i64, Option<Reply>)>,
    /// Sessions that were found gone before the peers said so.
    gone: BTreeSet<SessionId>,
    state: State,
    room: usize,
}

impl Coordinator {
    /// Begins `record` (of [`plans::new`], checked by [`plans::check_size`]) as the sidecar `own`.
    pub fn begin(
        id: TransactionId,
        record: Transaction,
        own: (App, SessionId),
        peers: &Peers,
        now: Now,
    ) -> (Self, Vec<Effect>) {
        let mut coordinator = Self::with(id, record, 0, own);
        let effects = coordinator.commit_begin(peers, now);
        (coordinator, effects)
    }

    /// Takes over a transaction that has no coordinator or whose coordinator is gone, as it was found at `revision`.
    pub fn adopt(
        id: TransactionId,
        record: Transaction,
        revision: i64,
        own: (App, SessionId),
        peers: &Peers,
        now: Now,
    ) -> (Self, Vec<Effect>) {
        let mut coordinator = Self::with(id, record, revision, own);
        let effects = coordinator.commit_adopt(peers, now);
        (coordinator, effects)
    }

    fn with(id: TransactionId, record: Transaction, revision: i64, own: (App, SessionId)) -> Self {
        Self {
            id,
            own,
            record,
            revision,
            answers: BTreeMap::new(),
            gone: BTreeSet::new(),
            state: State::Idle,
            room: plans::ROOM,
        }
    }

    /// Gives its plans less room than [`plans::ROOM`], so that a few branches are many.
    pub fn set_room(&mut self, operations: usize) {
        self.room = operations;
    }

    /// How many answers one plan may take into the record: each is deleted where it may be, and its branch may be asked
    /// again.
    fn most_heard(&self) -> usize {
        (self.room / (2 + self.record.former.len())).max(1)
    }

    /// The transaction as it was last known to be remembered.
    pub fn record(&self) -> &Transaction {
        &self.record
    }

    /// Whether it is known to be remembered.
    pub fn begun(&self) -> bool {
        self.revision > 0
    }

    /// What the plan under way is for, for people and fail points: `begin`, `adopt`, `look`, `decide`, `amend`, `move`,
    /// `finish` or, without one, `idle`.
    pub fn step_name(&self) -> &'static str {
        match &self.state {
            State::Committing(Step::Begin(_), _) => "begin",
            State::Committing(Step::Adopt(_), _) => "adopt",
            State::Committing(Step::Look, _) => "look",
            State::Committing(Step::Decide(_), _) => "decide",
            State::Committing(Step::Amend(..), _) => "amend",
            State::Committing(Step::Move(_), _) => "move",
            State::Committing(Step::Finish, _) => "finish",
            State::Idle | State::Resting(_) | State::Over => "idle",
        }
    }

    /// Takes an input and says what is to be done.
    pub fn step(&mut self, input: Input, peers: &Peers, now: Now) -> Vec<Effect> {
        match input {
            Input::Answered(branch, revision, reply) => {
                let known = self.answers.get(&branch).map_or(0, |(revision, _)| *revision);
                if revision > known {
                    self.answers.insert(branch, (revision, Some(reply)));
                }
                self.proceed(peers, now)
            }
            Input::Due => match std::mem::replace(&mut self.state, State::Idle) {
                State::Idle => {
                    let effects = self.proceed(peers, now);
                    if self.state == State::Idle { self.until_deadline(now) } else { effects }
                }
                State::Resting(step) => self.again(&step, peers, now),
                busy => {
                    self.state = busy;
                    Vec::new()
                }
            },
            Input::Committed(answer) => {
                let State::Committing(step, needed) = std::mem::replace(&mut self.state, State::Idle) else {
                    return Vec::new();
                };
                let mut effects = if answer.held {
                    self.held(step, answer)
                } else {
                    self.refused(step, &needed, &answer, peers, now)
                };
                effects.extend(self.proceed(peers, now));
                if self.state == State::Idle {
                    effects.extend(self.until_deadline(now));
                }
                effects
            }
            Input::Failed(failure) => self.failed(failure),
        }
    }

    /// What is to be done next, seen from what is known.
    fn proceed(&mut self, peers: &Peers, now: Now) -> Vec<Effect> {
        if self.state != State::Idle || self.revision == 0 {
            return Vec::new();
        }
        match self.record.decision {
            None if self.record.is_stuck() => match self.rolled_back() {
                Some(reason) => self.commit_decide(Decision::Abort, reason, peers),
                None => self.resume(peers, now),
            },
            None => match self.verdict(now) {
                Some((decision, reason)) => self.commit_decide(decision, reason, peers),
                None => Vec::new(),
            },
            Some(decision) => self.apply(decision, peers, now),
        }
    }

    fn vote(&self, branch: &Branch) -> Option<&Reply> {
        let (_, reply) = self.answers.get(branch)?;
        reply.as_ref().filter(|reply| reply.operation == Operation::Prepare)
    }

    /// What is to be decided, if it can be by now.
    fn verdict(&self, now: Now) -> Option<(Decision, String)> {
        let mut missing = false;
        let awaited = |branch: &&BranchRecord| branch.stage != Stage::Skipped;
        for branch in self.record.branches.iter().filter(awaited) {
            match self.vote(&branch.participant.name).map(|reply| &reply.verdict) {
                Some(Verdict::No(reason)) => {
                    return Some((Decision::Abort, format!("{}: {reason}", branch.participant.name)));
                }
                Some(Verdict::Yes(_)) => {}
                _ => missing = true,
            }
        }
        if let Some(reason) = self.rolled_back() {
            return Some((Decision::Abort, reason));
        }
        if !self.record.branches.iter().any(|branch| awaited(&branch)) {
            return Some((Decision::Abort, "every branch was given up".to_owned()));
        }
        if !missing {
            return Some((Decision::Commit, String::new()));
        }
        (now.unix >= self.record.deadline)
            .then(|| (Decision::Abort, "not every participant voted in time".to_owned()))
    }

    /// Takes what was answered to the decision: finishes, or records what people must know and what they wished.
    fn apply(&mut self, decision: Decision, peers: &Peers, now: Now) -> Vec<Effect> {
        let news = self.answers.iter().any(|(branch, (_, reply))| {
            let stage = self.record.branches.iter().find(|of| of.participant.name == *branch);
            match (reply.as_ref().map(|reply| (&reply.verdict, reply.operation)), stage.map(|of| of.stage)) {
                (Some((Verdict::No(_), operation)), Some(Stage::Applying)) => {
                    operation == decision.operation()
                }
                (Some((Verdict::Skip(_) | Verdict::Retry, _)), Some(Stage::Stuck)) => true,
                _ => false,
            }
        });
        let done = self.record.branches.iter().all(|branch| self.done(branch, decision));
        let crowded = self.is_crowded();
        if !news && !done && !crowded {
            return Vec::new();
        }
        let mut record = self.record.clone();
        let (mut heard, mut asked, mut left) = (Vec::new(), Vec::new(), false);
        for (index, branch) in record.branches.iter_mut().enumerate() {
            let Some((revision, Some(reply))) = self.answers.get(&branch.participant.name) else { continue };
            let current = reply.operation == decision.operation();
            let applied = current && matches!(reply.verdict, Verdict::Yes(_));
            if !applied && heard.len() == self.most_heard() {
                left = true;
                continue;
            }
            match (&reply.verdict, branch.stage) {
                (Verdict::Yes(result), _) if current => {
                    branch.stage = Stage::Applied;
                    branch.attempts = reply.attempts;
                    if !result.is_empty() {
                        branch.result.clone_from(result);
                    }
                    continue;
                }
                (Verdict::No(reason), Stage::Applying) if current => {
                    branch.stage = Stage::Stuck;
                    branch.attempts = reply.attempts;
                    branch.result.clone_from(reason);
                }
                (wish, _) => match self.help(branch, wish, Stage::Applying, peers) {
                    Some(again) => asked.extend(again.then_some(index)),
                    None => continue,
                },
            }
            heard.push((branch.participant.name.clone(), *revision));
        }
        if done && heard.is_empty() {
            let plan = plans::finish(&self.id, self.revision, &record, now);
            self.record = record;
            return self.commit(Step::Finish, plan);
        }
        self.amend(record, &asked, heard, crowded && !left)
    }

    fn done(&self, branch: &BranchRecord, decision: Decision) -> bool {
        matches!(branch.stage, Stage::Applied | Stage::Skipped)
            || self.answers.get(&branch.participant.name).is_some_and(|(_, reply)| {
                reply.as_ref().is_some_and(|reply| {
                    reply.operation == decision.operation() && matches!(reply.verdict, Verdict::Yes(_))
                })
            })
    }

    fn until_deadline(&self, now: Now) -> Vec<Effect> {
        match self.record.decision {
            None if self.begun() && !self.record.is_stuck() => {
                vec![Effect::Wait(now.until_unix(self.record.deadline))]
            }
            _ => Vec::new(),
        }
    }
}
