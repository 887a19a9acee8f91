//! Records of transactions.

use concordat_protocol::{App, SessionId, transaction};

use super::{Enumerated, Error, enumerated};

mod declared;

use declared::Participant;
pub(super) use declared::Settings;

enumerated!(transaction::Decision { Commit = 1, Abort = 2 });
enumerated!(transaction::Operation { Prepare = 1, Commit = 2, Abort = 3 });
enumerated!(transaction::Stage { Preparing = 1, Applying = 2, Applied = 3, Stuck = 4, Skipped = 5 });

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Transaction {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "2")]
    definition: i64,
    #[prost(string, tag = "3")]
    input: String,
    #[prost(message, optional, tag = "4")]
    coordinator: Option<Coordinator>,
    #[prost(message, repeated, tag = "5")]
    former: Vec<Coordinator>,
    #[prost(uint64, tag = "6")]
    deadline: u64,
    #[prost(uint64, tag = "7")]
    timeout: u64,
    #[prost(uint64, tag = "8")]
    retention: u64,
    #[prost(uint64, tag = "9")]
    began: u64,
    #[prost(int32, optional, tag = "10")]
    decision: Option<i32>,
    #[prost(string, tag = "11")]
    reason: String,
    #[prost(message, repeated, tag = "12")]
    branches: Vec<BranchRecord>,
    #[prost(string, tag = "13")]
    traceparent: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Coordinator {
    #[prost(string, tag = "1")]
    app: String,
    #[prost(string, tag = "2")]
    session: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BranchRecord {
    #[prost(message, optional, tag = "1")]
    participant: Option<Participant>,
    #[prost(string, optional, tag = "2")]
    item: Option<String>,
    #[prost(int32, tag = "3")]
    stage: i32,
    #[prost(string, tag = "4")]
    result: String,
    #[prost(uint32, tag = "5")]
    attempts: u32,
    #[prost(string, repeated, tag = "6")]
    notes: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Work {
    #[prost(int32, tag = "1")]
    operation: i32,
    #[prost(message, optional, tag = "2")]
    participant: Option<Participant>,
    #[prost(string, optional, tag = "3")]
    input: Option<String>,
    #[prost(message, optional, tag = "4")]
    coordinator: Option<Coordinator>,
    #[prost(int64, tag = "5")]
    transaction: i64,
    #[prost(uint32, tag = "6")]
    attempts: u32,
    #[prost(string, tag = "7")]
    last_error: String,
    #[prost(string, tag = "8")]
    traceparent: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Reply {
    #[prost(int32, tag = "1")]
    operation: i32,
    #[prost(uint32, tag = "2")]
    attempts: u32,
    #[prost(oneof = "Verdict", tags = "3, 4, 5, 6, 7")]
    verdict: Option<Verdict>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Verdict {
    #[prost(string, tag = "3")]
    Yes(String),
    #[prost(string, tag = "4")]
    No(String),
    #[prost(string, tag = "5")]
    Skip(String),
    #[prost(message, tag = "6")]
    Retry(()),
    #[prost(string, tag = "7")]
    Rollback(String),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Finished {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(fixed64, tag = "2")]
    input_digest: u64,
    #[prost(int32, tag = "3")]
    decision: i32,
    #[prost(string, tag = "4")]
    reason: String,
    #[prost(uint64, tag = "5")]
    began: u64,
    #[prost(uint64, tag = "6")]
    ended: u64,
    #[prost(message, repeated, tag = "7")]
    branches: Vec<FinishedBranch>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FinishedBranch {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "2")]
    stage: i32,
    #[prost(string, tag = "3")]
    result: String,
    #[prost(uint32, tag = "4")]
    attempts: u32,
    #[prost(string, repeated, tag = "5")]
    notes: Vec<String>,
}

impl From<&(App, SessionId)> for Coordinator {
    fn from((app, session): &(App, SessionId)) -> Self {
        Self { app: app.to_string(), session: session.to_string() }
    }
}

impl From<Coordinator> for (App, SessionId) {
    fn from(Coordinator { app, session }: Coordinator) -> Self {
        (app.into(), session.into())
    }
}

impl From<&transaction::Transaction> for Transaction {
    fn from(transaction: &transaction::Transaction) -> Self {
        let transaction::Transaction {
            name,
            definition,
            input,
            coordinator,
            former,
            deadline,
            timeout,
            retention,
            began,
            decision,
            reason,
            branches,
            traceparent,
        } = transaction;
        Self {
            name: name.to_string(),
            definition: *definition,
            input: input.clone(),
            coordinator: coordinator.as_ref().map(Into::into),
            former: former.iter().map(Into::into).collect(),
            deadline: *deadline,
            timeout: *timeout,
            retention: *retention,
            began: *began,
            decision: decision.map(Enumerated::number),
            reason: reason.clone(),
            branches: branches.iter().map(Into::into).collect(),
            traceparent: traceparent.clone(),
        }
    }
}

impl TryFrom<Transaction> for transaction::Transaction {
    type Error = Error;

    fn try_from(transaction: Transaction) -> Result<Self, Error> {
        Ok(Self {
            name: transaction.name.into(),
            definition: transaction.definition,
            input: transaction.input,
            coordinator: transaction.coordinator.map(Into::into),
            former: transaction.former.into_iter().map(Into::into).collect(),
            deadline: transaction.deadline,
            timeout: transaction.timeout,
            retention: transaction.retention,
            began: transaction.began,
            decision: transaction.decision.map(Enumerated::of_number).transpose()?,
            reason: transaction.reason,
            branches: transaction.branches.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            traceparent: transaction.traceparent,
        })
    }
}

impl From<&transaction::BranchRecord> for BranchRecord {
    fn from(branch: &transaction::BranchRecord) -> Self {
        let transaction::BranchRecord { participant, item, stage, result, attempts, notes } = branch;
        Self {
            participant: Some(participant.into()),
            item: item.as_ref().map(ToString::to_string),
            stage: stage.number(),
            result: result.clone(),
            attempts: *attempts,
            notes: notes.clone(),
        }
    }
}

impl TryFrom<BranchRecord> for transaction::BranchRecord {
    type Error = Error;

    fn try_from(branch: BranchRecord) -> Result<Self, Error> {
        let BranchRecord { participant, item, stage, result, attempts, notes } = branch;
        Ok(Self {
            participant: participant.ok_or(Error::Missing("participant"))?.try_into()?,
            item: item.map(Into::into),
            stage: transaction::Stage::of_number(stage)?,
            result,
            attempts,
            notes,
        })
    }
}

impl From<&transaction::Work> for Work {
    fn from(work: &transaction::Work) -> Self {
        let transaction::Work {
            operation,
            participant,
            input,
            coordinator,
            transaction,
            attempts,
            last_error,
            traceparent,
        } = work;
        Self {
            operation: operation.number(),
            participant: Some(participant.into()),
            input: input.clone(),
            coordinator: Some(coordinator.into()),
            transaction: *transaction,
            attempts: *attempts,
            last_error: last_error.clone(),
            traceparent: traceparent.clone(),
        }
    }
}

impl TryFrom<Work> for transaction::Work {
    type Error = Error;

    fn try_from(work: Work) -> Result<Self, Error> {
        let Work {
            operation,
            participant,
            input,
            coordinator,
            transaction,
            attempts,
            last_error,
            traceparent,
        } = work;
        Ok(Self {
            operation: transaction::Operation::of_number(operation)?,
            participant: participant.ok_or(Error::Missing("participant"))?.try_into()?,
            input,
            coordinator: coordinator.ok_or(Error::Missing("coordinator"))?.into(),
            transaction,
            attempts,
            last_error,
            traceparent,
        })
    }
}

impl From<&transaction::Reply> for Reply {
    fn from(transaction::Reply { operation, verdict, attempts }: &transaction::Reply) -> Self {
        let verdict = match verdict {
            transaction::Verdict::Yes(result) => Verdict::Yes(result.clone()),
            transaction::Verdict::No(reason) => Verdict::No(reason.clone()),
            transaction::Verdict::Skip(reason) => Verdict::Skip(reason.clone()),
            transaction::Verdict::Retry => Verdict::Retry(()),
            transaction::Verdict::Rollback(reason) => Verdict::Rollback(reason.clone()),
        };
        Self { operation: operation.number(), verdict: Some(verdict), attempts: *attempts }
    }
}

impl TryFrom<Reply> for transaction::Reply {
    type Error = Error;

    fn try_from(Reply { operation, verdict, attempts }: Reply) -> Result<Self, Error> {
        let verdict = match verdict.ok_or(Error::Missing("verdict"))? {
            Verdict::Yes(result) => transaction::Verdict::Yes(result),
            Verdict::No(reason) => transaction::Verdict::No(reason),
            Verdict::Skip(reason) => transaction::Verdict::Skip(reason),
            Verdict::Retry(()) => transaction::Verdict::Retry,
            Verdict::Rollback(reason) => transaction::Verdict::Rollback(reason),
        };
        Ok(Self { operation: transaction::Operation::of_number(operation)?, verdict, attempts })
    }
}

impl From<&transaction::Finished> for Finished {
    fn from(finished: &transaction::Finished) -> Self {
        let transaction::Finished { name, input_digest, decision, reason, began, finished, branches } =
            finished;
        Self {
            name: name.to_string(),
            input_digest: *input_digest,
            decision: decision.number(),
            reason: reason.clone(),
            began: *began,
            ended: *finished,
            branches: branches.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<Finished> for transaction::Finished {
    type Error = Error;

    fn try_from(record: Finished) -> Result<Self, Error> {
        let Finished { name, input_digest, decision, reason, began, ended, branches } = record;
        Ok(Self {
            name: name.into(),
            input_digest,
            decision: transaction::Decision::of_number(decision)?,
            reason,
            began,
            finished: ended,
            branches: branches.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&transaction::FinishedBranch> for FinishedBranch {
    fn from(branch: &transaction::FinishedBranch) -> Self {
        let transaction::FinishedBranch { name, stage, result, attempts, notes } = branch;
        Self {
            name: name.to_string(),
            stage: stage.number(),
            result: result.clone(),
            attempts: *attempts,
            notes: notes.clone(),
        }
    }
}

impl TryFrom<FinishedBranch> for transaction::FinishedBranch {
    type Error = Error;

    fn try_from(branch: FinishedBranch) -> Result<Self, Error> {
        let FinishedBranch { name, stage, result, attempts, notes } = branch;
        Ok(Self { name: name.into(), stage: transaction::Stage::of_number(stage)?, result, attempts, notes })
    }
}
