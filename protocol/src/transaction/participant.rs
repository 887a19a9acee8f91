//! A participant's sidecar and one branch: calls the app, and answers the coordinator.
//!
//! One call at a time: an operation that comes while the app is still at the one before waits for it. It acts on items
//! as the watch of its inbox shows them, in order, and only then: what a plan finds beside is not acted on, so that an
//! older item is never taken up after a newer one.

use super::{Operation, Reply, Verdict, Work, coordinator::Failure, plans};
use crate::{
    Answer, App, Branch, Key, Millis, Now, Plan, Range, Record, SessionId, TransactionId, plan::Entry,
};

/// Failed attempts are written down when the wait after them is at least this long.
pub const REMEMBER_FROM: Millis = 1_000;
/// The wait before an answer is tried again that could not be given.
pub const AGAIN: Millis = 500;

/// What a branch's machine hears.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The item as the watch shows it: its mod revision and the work.
    Item(i64, Work),
    /// The watch shows the item deleted at a revision.
    Gone(i64),
    /// The app answered, or the call came to nothing and is over.
    Called(Called),
    /// A wait it asked for is over.
    Due,
    /// What its plan came to.
    Committed(Tag, Answer),
    /// Its plan did not come to anything that is known.
    Failed(Tag, Failure),
    /// The sidecar's session ended: its items are another's from now on.
    Ended,
}

/// What a call to the app came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Called {
    /// Yes, or done, with the JSON it answered (empty for none).
    Yes(String),
    /// A definite no, and why.
    No(String),
    /// Neither: it is to be called again.
    Again(String),
    /// It was not called, for want of what that takes: no attempt of its.
    NotMade,
}

/// Which plan: of the item at a revision, to answer it or to remember its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tag {
    /// The answer.
    Reply(i64),
    /// The attempts so far.
    Attempts(i64),
}

/// What a branch's machine wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Call the app and tell what came of it, exactly once.
    Call(Call),
    /// Say [`Input::Due`] after this many milliseconds, jittered; replaces the wait before.
    Wait(Millis),
    /// Commit this, and tell what it came to.
    Commit(Tag, Plan),
    /// Nothing is left to do or to remember.
    Forget,
}

/// A call to the app.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// The item.
    pub work: Work,
    /// Which call of the operation, from 1.
    pub attempt: u32,
    /// Rises with every item of the branch.
    pub epoch: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Waits for the call of an earlier item to end.
    Queued,
    Calling,
    /// Waits before the next attempt.
    Resting,
    /// Its answer is under way, or waits for its coordinator to have a successor.
    Answering(Reply),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Item {
    work: Work,
    address: plans::Address,
    failures: u32,
    phase: Phase,
}

/// One branch at one sidecar: a cohort, as two-phase commit calls who answers to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cohort {
    id: TransactionId,
    branch: Branch,
    key: Key,
    item: Option<Item>,
    /// Nothing up to this revision is news.
    seen: i64,
    calling: bool,
}

impl Cohort {
    /// The machine of a branch of `app` at the sidecar `own`, which has seen nothing of it yet.
    pub fn new(id: TransactionId, branch: Branch, app: App, own: SessionId) -> Self {
        let key = Key::Work { app, session: Some(own), transaction: id.clone(), branch: branch.clone() };
        Self { id, branch, key, item: None, seen: 0, calling: false }
    }

    /// Whether a call to the app is under way.
    pub fn calling(&self) -> bool {
        self.calling
    }

    /// The `traceparent` of what it is asked, empty for none.
    pub fn traceparent(&self) -> &str {
        self.item.as_ref().map_or("", |item| &item.work.traceparent)
    }

    /// What it is asked at present.
    pub fn operation(&self) -> Option<Operation> {
        self.item.as_ref().map(|item| item.work.operation)
    }

    /// After the session was replaced: what comes is in another inbox.
    pub fn moved_to(&mut self, app: App, own: SessionId) {
        self.key =
            Key::Work { app, session: Some(own), transaction: self.id.clone(), branch: self.branch.clone() };
    }

    /// Takes an input and says what is to be done.
    pub fn step(&mut self, input: Input, _now: Now) -> Vec<Effect> {
        match input {
            Input::Item(revision, work) if revision > self.seen => self.take(revision, work),
            Input::Gone(revision) if revision > self.seen => {
                self.seen = revision;
                self.drop_item()
            }
            Input::Item(..) | Input::Gone(_) => Vec::new(),
            Input::Ended => self.drop_item(),
            Input::Called(called) => self.called(called),
            Input::Due => self.due(),
            Input::Committed(tag, answer) => self.committed(tag, answer),
            Input::Failed(tag, failure) => self.failed(tag, failure),
        }
    }

    fn drop_item(&mut self) -> Vec<Effect> {
        self.item = None;
        if self.calling { Vec::new() } else { vec![Effect::Forget] }
    }

    fn take(&mut self, revision: i64, work: Work) -> Vec<Effect> {
        self.seen = revision;
        let transaction = if work.transaction == 0 { revision } else { work.transaction };
        let address = plans::Address {
            item: self.key.clone(),
            revision,
            transaction,
            coordinator: work.coordinator.clone(),
        };
        if let Some(item) = &mut self.item
            && item.work.operation == work.operation
        {
            // Its own note of the attempts: what is under way goes on.
            item.address = address;
            item.work = work;
            return match &item.phase {
                Phase::Answering(_) => self.reply(),
                _ => Vec::new(),
            };
        }
        let failures = work.attempts;
        let phase = if self.calling { Phase::Queued } else { Phase::Resting };
        self.item = Some(Item { work, address, failures, phase });
        match (self.calling, failures) {
            (true, _) => Vec::new(),
            (false, 0) => self.call(),
            (false, failures) => self.rest(failures),
        }
    }

    fn call(&mut self) -> Vec<Effect> {
        let Some(item) = &mut self.item else { return Vec::new() };
        item.phase = Phase::Calling;
        self.calling = true;
        vec![Effect::Call(Call {
            work: item.work.clone(),
            attempt: item.failures + 1,
            epoch: item.address.revision,
        })]
    }

    fn rest(&mut self, failures: u32) -> Vec<Effect> {
        let Some(item) = &mut self.item else { return Vec::new() };
        item.phase = Phase::Resting;
        vec![Effect::Wait(item.work.participant.retry.after(failures))]
    }

    fn called(&mut self, called: Called) -> Vec<Effect> {
        self.calling = false;
        let Some(item) = &mut self.item else { return vec![Effect::Forget] };
        if item.phase == Phase::Queued {
            return self.call();
        }
        let attempts = item.failures + 1;
        let bound = item.work.participant.attempts;
        let verdict = match called {
            Called::Yes(result) => Verdict::Yes(result),
            Called::No(reason) => Verdict::No(reason),
            Called::NotMade => {
                let failures = item.failures;
                return self.rest(failures);
            }
            Called::Again(error) if bound > 0 && attempts >= bound => {
                Verdict::No(format!("given up after {attempts} attempts: {error}"))
            }
            Called::Again(error) => {
                item.failures = attempts;
                item.work.attempts = attempts;
                item.work.last_error = error;
                let mut effects = self.rest(attempts);
                effects.extend(self.remember());
                return effects;
            }
        };
        item.phase = Phase::Answering(Reply { operation: item.work.operation, verdict, attempts });
        self.reply()
    }

    fn remember(&self) -> Option<Effect> {
        let item = self.item.as_ref()?;
        if item.work.participant.retry.after(item.failures) < REMEMBER_FROM {
            return None;
        }
        let work = Work { transaction: item.address.transaction, ..item.work.clone() };
        Some(Effect::Commit(Tag::Attempts(item.address.revision), plans::remember(&item.address, work)))
    }

    fn reply(&mut self) -> Vec<Effect> {
        let Some(Item { address, phase: Phase::Answering(reply), .. }) = &self.item else {
            return Vec::new();
        };
        let plan = plans::answer(&self.id, &self.branch, address, reply.clone());
        vec![Effect::Commit(Tag::Reply(address.revision), plan)]
    }

    fn due(&mut self) -> Vec<Effect> {
        match &self.item {
            Some(Item { phase: Phase::Resting, .. }) => self.call(),
            Some(Item { phase: Phase::Answering(_), .. }) => self.reply(),
            _ => Vec::new(),
        }
    }

    /// Whether the tag is of the item as it is now, and of its answer.
    fn answering(&mut self, tag: Tag) -> Option<&mut Item> {
        self.item.as_mut().filter(|item| {
            tag == Tag::Reply(item.address.revision) && matches!(item.phase, Phase::Answering(_))
        })
    }

    fn committed(&mut self, tag: Tag, answer: Answer) -> Vec<Effect> {
        let key = self.key.clone();
        let transaction = Range::One(Key::Transaction(self.id.clone()));
        let Some(item) = self.answering(tag) else { return Vec::new() };
        if answer.held {
            self.seen = self.seen.max(answer.revision);
            return self.drop_item();
        }
        let found = |range: &Range| answer.reads.iter().flatten().find(|entry| range.contains(&entry.key));
        if found(&key.into()).is_none_or(|entry| entry.mod_revision != item.address.revision) {
            // It was decided, moved or answered without this one: the watch tells what comes next.
            return Vec::new();
        }
        let Some(Entry { record: Record::Transaction(record), mod_revision, .. }) = found(&transaction)
        else {
            return Vec::new();
        };
        let before = item.address.clone();
        item.address.transaction = *mod_revision;
        if let Some(coordinator) = &record.coordinator {
            item.address.coordinator = coordinator.clone();
        }
        // The same again would be refused again: its coordinator is gone and nobody has taken its place yet.
        if item.address == before { vec![Effect::Wait(AGAIN)] } else { self.reply() }
    }

    fn failed(&mut self, tag: Tag, failure: Failure) -> Vec<Effect> {
        if self.answering(tag).is_none() {
            return Vec::new();
        }
        match failure {
            Failure::SessionEnded => self.drop_item(),
            // When it was applied after all, the item will be found gone.
            Failure::NotApplied | Failure::Unknown => vec![Effect::Wait(AGAIN)],
        }
    }
}
