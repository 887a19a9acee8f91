//! Every plan that changes what is remembered of a transaction, and why each of its guards is there.

use super::{BranchRecord, digest};
use super::{
    Decision, Finished, FinishedBranch, Operation, Reply, Settings, Stage, Transaction, Verdict, Work,
};
use crate::{
    App, Branch, Entry, Key, Kind, Lease, Millis, Name, Now, Plan, Range, Record, SessionId, TransactionId,
};

/// An input up to this many bytes goes with the item; a participant reads a longer one from the transaction.
pub const INLINE_INPUT: usize = 2 * 1024;
/// A branch's result is kept up to this many bytes.
pub const MAX_RESULT: usize = 16 * 1024;
/// A transaction's input is at most this many bytes.
pub const MAX_INPUT: usize = 256 * 1024;
/// A plan holds at most this many compares, and as many operations (DESIGN §4: with what goes round it, 128).
pub const MAX_OPERATIONS: usize = 127;
/// A plan's bytes stay below etcd's 1.5 MiB with room for keys and framing.
pub const MAX_BYTES: usize = 1_300_000;
/// So many former coordinators are provided for.
const FORMER: usize = 8;
/// Operations that a plan has beside those that every one of its kind needs, to move items and to clear answers: what would
/// take more is done by several plans.
pub const ROOM: usize = 96;

/// Why a transaction is refused at begin: what could not be decided in one plan is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// Too many branches.
    #[error("a transaction has at most {max} branches, this one has {branches}")]
    Branches {
        /// How many it has.
        branches: usize,
        /// How many it may have.
        max: usize,
    },
    /// Too many bytes.
    #[error(
        "the transaction with its branches' inputs and results may come to {bytes} bytes, {max} are allowed"
    )]
    Bytes {
        /// How many it could come to.
        bytes: usize,
        /// How many it may.
        max: usize,
    },
}

/// A transaction as it begins, without a coordinator and with its items nowhere yet.
pub fn new(name: Name, settings: &Settings, definition: i64, input: String, now: Now) -> Transaction {
    let branches = settings
        .participants
        .iter()
        .map(|participant| BranchRecord {
            participant: participant.clone(),
            item: None,
            stage: Stage::Preparing,
            result: String::new(),
            attempts: 0,
            notes: Vec::new(),
        })
        .collect();
    Transaction {
        name,
        definition,
        input,
        coordinator: None,
        former: Vec::new(),
        deadline: 0,
        timeout: settings.timeout,
        retention: settings.retention,
        began: now.unix,
        decision: None,
        reason: String::new(),
        branches,
        traceparent: String::new(),
    }
}

/// Whether the largest plan the transaction could ever need fits: a decision that puts an item for every branch, and moves
/// as many as it may of those that stand where nobody lives any more.
pub fn check_size(record: &Transaction) -> Result<(), TooLarge> {
    let max = MAX_OPERATIONS - 2 - FORMER - ROOM / 2;
    let branches = record.branches.len();
    if branches > max {
        return Err(TooLarge::Branches { branches, max });
    }
    let bytes = record.input.len()
        + record
            .branches
            .iter()
            .map(|branch| {
                let participant = &branch.participant;
                2 * (participant.path.len() + participant.app.as_str().len() + 256)
                    + participant.input.as_ref().map_or(0, String::len)
                    + INLINE_INPUT
                    + MAX_RESULT
            })
            .sum::<usize>();
    if bytes > MAX_BYTES { Err(TooLarge::Bytes { bytes, max: MAX_BYTES }) } else { Ok(()) }
}

impl Transaction {
    /// The key of a branch's item, where the record says it is.
    pub fn item(&self, id: &TransactionId, branch: &BranchRecord) -> Key {
        Key::Work {
            app: branch.participant.app.clone(),
            session: branch.item.clone(),
            transaction: id.clone(),
            branch: branch.participant.name.clone(),
        }
    }

    /// The item that asks a branch for an operation; `None` while there is no coordinator to answer to.
    fn work(&self, branch: &BranchRecord, operation: Operation) -> Option<Work> {
        let mut participant = branch.participant.clone();
        let input = participant.input.take();
        let input = input.as_ref().unwrap_or(&self.input);
        Some(Work {
            operation,
            participant,
            input: (input.len() <= INLINE_INPUT).then(|| input.clone()),
            coordinator: self.coordinator.clone()?,
            transaction: 0,
            attempts: 0,
            last_error: String::new(),
            traceparent: self.traceparent.clone(),
        })
    }

    /// The branches at a stage, by their places.
    fn at(&self, stage: Stage) -> Vec<usize> {
        let at = self.branches.iter().enumerate().filter(|(_, branch)| branch.stage == stage);
        at.map(|(index, _)| index).collect()
    }

    /// Whether it cannot go on without a person.
    pub fn is_stuck(&self) -> bool {
        self.branches.iter().any(|branch| branch.stage == Stage::Stuck)
    }

    /// The inboxes that may hold its answers: the coordinator's and every former one's.
    pub fn answers(&self, id: &TransactionId) -> Vec<Range> {
        self.coordinator
            .iter()
            .chain(&self.former)
            .map(|(app, session)| Range::Answers(app.clone(), session.clone(), id.clone()))
            .collect()
    }
}

impl Decision {
    /// What participants are asked by it.
    pub fn operation(self) -> Operation {
        match self {
            Self::Commit => Operation::Commit,
            Self::Abort => Operation::Abort,
        }
    }
}

/// Puts the transaction unowned, for the first sidecar that finds it (`run: Once`). The operator adds its own guard.
pub fn hand_over(id: &TransactionId, record: Transaction) -> Plan {
    let definition = Key::Definition { kind: Kind::Transaction, name: record.name.clone() };
    Plan::new()
        .absent(Key::Transaction(id.clone()))
        .absent(Key::Done(id.clone()))
        .same_life(definition, record.definition)
        .put(Key::Transaction(id.clone()), record, Lease::Forever)
        .otherwise(Key::Transaction(id.clone()))
        .otherwise(Key::Done(id.clone()))
}

/// Puts the transaction and asks every branch to prepare. Guards: the id is not in use and not remembered; the
/// definition is still the one it was read from; coordinator and participants' sidecars live.
pub(super) fn begin(id: &TransactionId, record: Transaction) -> Plan {
    let definition = Key::Definition { kind: Kind::Transaction, name: record.name.clone() };
    let plan = Plan::new()
        .absent(Key::Transaction(id.clone()))
        .absent(Key::Done(id.clone()))
        .same_life(definition.clone(), record.definition)
        .otherwise(Key::Transaction(id.clone()))
        .otherwise(Key::Done(id.clone()))
        .otherwise(definition);
    let asked: Vec<usize> = (0..record.branches.len()).collect();
    ask(plan, id, record, &asked, Operation::Prepare)
}

/// Makes `record.coordinator` the coordinator, and reads what has been answered to the former ones: after the swap, as
/// a vote that came between reading and swapping would be lost else. The old coordinator must be gone, so that no
/// acknowledgement (which compares it as present) can come after that reading.
pub(super) fn adopt(id: &TransactionId, revision: i64, record: Transaction, unowned: bool) -> Plan {
    let mut plan = Plan::new()
        .unchanged(Key::Transaction(id.clone()), revision)
        .otherwise(Key::Transaction(id.clone()))
        .otherwise(Key::Done(id.clone()));
    if let Some((_, last)) = record.former.last()
        && !unowned
    {
        plan = plan.absent(Key::Session(last.clone()));
    }
    for range in record.answers(id) {
        plan = plan.read(range);
    }
    let asked = if unowned { record.at(Stage::Preparing) } else { Vec::new() };
    ask(plan, id, record, &asked, Operation::Prepare)
}

/// Reads what has been answered, if the transaction is still as known.
pub(super) fn look(id: &TransactionId, revision: i64, record: &Transaction) -> Plan {
    let mut plan = Plan::new()
        .unchanged(Key::Transaction(id.clone()), revision)
        .otherwise(Key::Transaction(id.clone()))
        .otherwise(Key::Done(id.clone()));
    for range in record.answers(id) {
        plan = plan.read(range);
    }
    plan
}

/// The decision, made once by the compare on the transaction: puts it over every branch's item, and clears what was
/// answered to `former` coordinators. `moved` are keys of items that stood where nobody lives any more.
pub(super) fn decide(
    id: &TransactionId,
    revision: i64,
    record: Transaction,
    former: &[(App, SessionId)],
    moved: Vec<Key>,
) -> Plan {
    let operation = record.decision.unwrap_or(Decision::Abort).operation();
    let mut plan = Plan::new()
        .unchanged(Key::Transaction(id.clone()), revision)
        .otherwise(Key::Transaction(id.clone()))
        .otherwise(Key::Done(id.clone()));
    for (app, session) in former {
        plan = plan.delete(Range::Answers(app.clone(), session.clone(), id.clone()));
    }
    for key in moved {
        plan = plan.delete(key);
    }
    let asked = record.at(Stage::Applying);
    ask(plan, id, record, &asked, operation)
}

/// Moves the items of the `asked` branches, which are still to vote, from `moved`, where nobody lives any more, to where the
/// record says. Each must be there: one that is not has voted, and must not be asked again. Refused, it has read the answers
/// too.
pub(super) fn move_items(
    id: &TransactionId,
    revision: i64,
    record: Transaction,
    asked: &[usize],
    moved: Vec<Key>,
) -> Plan {
    let answers = record.answers(id);
    let plan = amend(id, revision, record, asked, &[]);
    let plan = moved.into_iter().fold(plan, |plan, key| plan.present(key.clone()).delete(key));
    answers.into_iter().fold(plan, Plan::otherwise)
}

/// Records which branches are stuck, skipped or asked again, and clears the answers that said so.
pub(super) fn amend(
    id: &TransactionId,
    revision: i64,
    record: Transaction,
    asked: &[usize],
    heard: &[Branch],
) -> Plan {
    let mut plan = Plan::new()
        .unchanged(Key::Transaction(id.clone()), revision)
        .otherwise(Key::Transaction(id.clone()))
        .otherwise(Key::Done(id.clone()));
    for (app, session) in record.coordinator.iter().chain(&record.former) {
        for branch in heard {
            plan = plan.delete(Key::Answer {
                app: app.clone(),
                session: session.clone(),
                transaction: id.clone(),
                branch: branch.clone(),
            });
        }
    }
    let operation = record.decision.map_or(Operation::Prepare, Decision::operation);
    ask(plan, id, record, asked, operation)
}

/// Replaces the transaction, all of whose branches are done, by what is remembered of it for its retention.
pub(super) fn finish(id: &TransactionId, revision: i64, record: &Transaction, now: Now) -> Plan {
    let session = record.coordinator.as_ref().map_or_else(|| "".into(), |(_, session)| session.clone());
    let mut plan = Plan::new()
        .unchanged(Key::Transaction(id.clone()), revision)
        .delete(Key::Transaction(id.clone()))
        .otherwise(Key::Transaction(id.clone()))
        .otherwise(Key::Done(id.clone()));
    for range in record.answers(id) {
        plan = plan.delete(range);
    }
    let lease = Lease::Retention(session, record.retention);
    plan.put(Key::Done(id.clone()), finished(record, now.unix), lease)
}

/// What is remembered of a transaction once it is finished at `at` (milliseconds since the Unix epoch).
pub fn finished(record: &Transaction, at: Millis) -> Finished {
    Finished {
        name: record.name.clone(),
        input_digest: digest(&record.input),
        decision: record.decision.unwrap_or(Decision::Abort),
        reason: record.reason.clone(),
        began: record.began,
        finished: at,
        branches: record
            .branches
            .iter()
            .map(|branch| FinishedBranch {
                name: branch.participant.name.clone(),
                stage: branch.stage,
                result: branch.result.clone(),
                attempts: branch.attempts,
                notes: branch.notes.clone(),
            })
            .collect(),
    }
}

/// Puts the record and an item for each of the `asked` branches. No work for the dead: each sidecar that is given
/// work, and the coordinator that is named, must live.
fn ask(
    mut plan: Plan,
    id: &TransactionId,
    record: Transaction,
    asked: &[usize],
    operation: Operation,
) -> Plan {
    let mut needed: Vec<SessionId> = record.coordinator.iter().map(|(_, session)| session.clone()).collect();
    for branch in asked.iter().filter_map(|index| record.branches.get(*index)) {
        if let Some(work) = record.work(branch, operation) {
            plan = plan.put(record.item(id, branch), work, Lease::Forever);
        }
        needed.extend(branch.item.clone());
    }
    needed.sort();
    needed.dedup();
    for session in needed {
        let key = Key::Session(session);
        plan = plan.present(key.clone()).otherwise(key);
    }
    plan.put(Key::Transaction(id.clone()), record, Lease::Forever)
}

/// What an answer to an item is guarded by and where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    /// The item.
    pub(super) item: Key,
    /// Its mod revision: an item that was overwritten, moved or answered is not answered again.
    pub(super) revision: i64,
    /// Mod revision of the transaction that a vote must find.
    pub(super) transaction: i64,
    /// Where the answer goes.
    pub(super) coordinator: (App, SessionId),
}

/// Answers an item: deletes it and puts the reply in the coordinator's inbox. A vote is void once the transaction has
/// changed: the decision may have been made without it, or its coordinator be another who has read the inboxes before.
/// An acknowledgement can no longer change anything, but must come where somebody will read it.
pub(super) fn answer(id: &TransactionId, branch: &Branch, to: &Address, reply: Reply) -> Plan {
    let (app, session) = to.coordinator.clone();
    let transaction = Key::Transaction(id.clone());
    let coordinator = Key::Session(session.clone());
    let plan = Plan::new().unchanged(to.item.clone(), to.revision);
    let plan = match reply.operation {
        Operation::Prepare => plan.unchanged(transaction.clone(), to.transaction),
        Operation::Commit | Operation::Abort => plan.present(coordinator.clone()),
    };
    let answer = Key::Answer { app, session, transaction: id.clone(), branch: branch.clone() };
    plan.delete(to.item.clone())
        .put(answer, reply, Lease::Forever)
        .otherwise(to.item.clone())
        .otherwise(transaction)
        .otherwise(coordinator)
}

/// Writes an item again with the attempts it has taken.
pub(super) fn remember(to: &Address, work: Work) -> Plan {
    Plan::new().unchanged(to.item.clone(), to.revision).put(to.item.clone(), work, Lease::Forever)
}

/// Moves an item from a sidecar that is gone, or from nobody, to the sidecar `to`. An undecided one needs its
/// transaction as `known`, which will say where it is now; else a decision could be put where it no longer stands.
/// A decided one is guarded by itself alone. `None` when there is nothing to move.
pub fn relocate(item: &Entry, to: &SessionId, known: Option<&Entry>) -> Option<Plan> {
    let (Key::Work { app, session, transaction, branch }, Record::Work(work)) = (&item.key, &item.record)
    else {
        return None;
    };
    let mut work = work.clone();
    let target = Key::Work {
        app: app.clone(),
        session: Some(to.clone()),
        transaction: transaction.clone(),
        branch: branch.clone(),
    };
    let mut plan =
        Plan::new().unchanged(item.key.clone(), item.mod_revision).present(Key::Session(to.clone()));
    if let Some(from) = session {
        plan = plan.absent(Key::Session(from.clone()));
    }
    if work.operation == Operation::Prepare {
        let known = known?;
        let Record::Transaction(record) = &known.record else { return None };
        let mut record = record.clone();
        let index = record.branches.iter().position(|of| of.participant.name == *branch)?;
        record.branches[index].item = Some(to.clone());
        work.transaction = 0;
        work.coordinator = record.coordinator.clone()?;
        plan = plan.unchanged(known.key.clone(), known.mod_revision).put(
            known.key.clone(),
            record,
            Lease::Forever,
        );
    }
    Some(plan.delete(item.key.clone()).put(target, work, Lease::Forever))
}

/// Stops a transaction that is undecided in a restored etcd, and says why: it may have been decided since, and applied,
/// and its client told. No vote and no deadline decides it from here on, and its participants are asked nothing, until a
/// person has it tried again, skipped or rolled back. `None` when there is nothing to stop.
pub fn stop(id: &TransactionId, known: &Entry, why: &str) -> Option<Plan> {
    let Record::Transaction(record) = &known.record else { return None };
    let undecided = record.at(Stage::Preparing);
    if record.decision.is_some() || undecided.is_empty() {
        return None;
    }
    let mut plan = Plan::new().unchanged(known.key.clone(), known.mod_revision);
    for range in record.answers(id) {
        plan = plan.delete(range);
    }
    let mut record = record.clone();
    for index in undecided {
        plan = plan.delete(record.item(id, &record.branches[index]));
        record.branches[index].stage = Stage::Stuck;
        why.clone_into(&mut record.branches[index].result);
    }
    Some(plan.put(known.key.clone(), record, Lease::Forever))
}

/// Tells the coordinator what a person wants of branches (or of [`Branch::everything`]), of all or of none: if the
/// transaction is still as it was seen and its coordinator lives. `None` when it has no coordinator.
pub fn wish(id: &TransactionId, known: &Entry, branches: Vec<Branch>, verdict: &Verdict) -> Option<Plan> {
    let Record::Transaction(record) = &known.record else { return None };
    let (app, session) = record.coordinator.as_ref()?;
    let operation = record.decision.map_or(Operation::Prepare, Decision::operation);
    let mut plan = Plan::new()
        .unchanged(known.key.clone(), known.mod_revision)
        .present(Key::Session(session.clone()))
        .otherwise(known.key.clone())
        .otherwise(Key::Done(id.clone()));
    for branch in branches {
        let (app, session, transaction) = (app.clone(), session.clone(), id.clone());
        let key = Key::Answer { app, session, transaction, branch };
        let reply = Reply { operation, verdict: verdict.clone(), attempts: 0 };
        plan = plan.put(key, reply, Lease::Forever);
    }
    Some(plan)
}
