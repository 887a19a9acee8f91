//! Beginning a transaction.

use std::sync::Arc;

use concordat_protocol::{
    Name, Record, TransactionId,
    transaction::{
        Coordinator, Settings,
        coordinator::{Failure, Refusal},
        digest, plans,
    },
};
use http::StatusCode;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use super::{
    TransactionEngine,
    coordination::{Progress, record},
};
use crate::{
    api,
    definitions::Defined,
    problem::{Outcome, Problem},
};

/// So many transactions of one DistributedTransaction are undecided at a time; others wait in line.
const IN_FLIGHT: usize = 64;

/// A transaction to begin.
pub struct Begin {
    /// Its id.
    pub id: TransactionId,
    /// Name of its DistributedTransaction.
    pub name: Name,
    /// The input as JSON text.
    pub input: String,
    /// `traceparent` of whoever begins it, empty for none.
    pub traceparent: String,
    /// What it is begun under.
    pub defined: Defined<Settings>,
}

impl TransactionEngine {
    /// Begins it, or finds it begun. Answers when that is durable.
    ///
    /// # Errors
    /// 413 when it could not be decided in one commit, 422 when the id is in use for something else, 503 with what is
    /// known when it was not begun until then.
    pub async fn begin(&self, begin: &Begin, until: Instant) -> Result<(), Problem> {
        let mut progress = match self.following(begin)? {
            Some(progress) => progress,
            None => self.start_run(begin, until).await?,
        };
        let begun = progress.wait_for(|progress| !matches!(progress, Progress::Beginning));
        let Ok(begun) = tokio::time::timeout_at(until, begun).await else {
            return Err(Problem::unavailable("outcome-unknown", "etcd has not said whether it was begun")
                .outcome(Outcome::Unknown));
        };
        let refusal = match begun.as_deref() {
            Ok(Progress::Refused(refusal)) => refusal.clone(),
            Ok(Progress::Lost) if !self.0.runs.lock().contains_key(&begin.id) => return Ok(()),
            _ => return Ok(()),
        };
        match refusal {
            Refusal::Exists(entry) => {
                let (name, input) = match (&entry.record, record(&entry)) {
                    (_, Some(record)) => (&record.name, digest(&record.input)),
                    (Record::Done(done), _) => (&done.name, done.input_digest),
                    _ => return Err(Problem::internal()),
                };
                same(begin, name, input)
            }
            Refusal::Definition => Err(Problem::unavailable(
                "definition-changed",
                "the DistributedTransaction was deleted or created anew in this moment",
            )),
            Refusal::Failed(Failure::SessionEnded) => {
                Err(Problem::unavailable("session-lost", "the sidecar's session in etcd is over"))
            }
            Refusal::Failed(_) => Err(Problem::unavailable("not-committed", "etcd did not take it")),
        }
    }

    /// Follows one that is under way here already.
    fn following(&self, begin: &Begin) -> Result<Option<watch::Receiver<Progress>>, Problem> {
        let runs = self.0.runs.lock();
        let Some(run) = runs.get(&begin.id) else { return Ok(None) };
        let record = run.machine.record();
        same(begin, &record.name, digest(&record.input))?;
        Ok(Some(run.progress.subscribe()))
    }

    async fn start_run(&self, begin: &Begin, until: Instant) -> Result<watch::Receiver<Progress>, Problem> {
        let inner = &self.0;
        let now = inner.store.clock().now();
        let settings = &begin.defined.settings;
        let mut record =
            plans::new(begin.name.clone(), settings, begin.defined.create_revision, begin.input.clone(), now);
        record.traceparent.clone_from(&begin.traceparent);
        plans::check_size(&record).map_err(|error| {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "transaction-too-large",
                "It could not be decided in one commit",
            )
            .detail(error.to_string())
            .outcome(Outcome::NotApplied)
        })?;
        if !inner.store.intake_open() {
            return Err(Problem::unavailable(
                "out-of-space",
                "etcd's space is nearly used up: what is under way goes on, nothing new is begun",
            ));
        }
        let line = {
            let mut in_flight = inner.in_flight.lock();
            let line = in_flight.entry(begin.name.clone());
            line.or_insert_with(|| Arc::new(Semaphore::new(IN_FLIGHT))).clone()
        };
        let Ok(Ok(permit)) = tokio::time::timeout_at(until, line.acquire_owned()).await else {
            return Err(Problem::unavailable(
                "too-many-in-flight",
                format!("{IN_FLIGHT} transactions of {} are undecided here already", begin.name),
            ));
        };
        if inner.draining() {
            return Err(api::ending());
        }
        // Somebody may have begun it while this one waited in line.
        if let Some(progress) = self.following(begin)? {
            return Ok(progress);
        }
        let session = inner.store.session();
        let now = inner.store.clock().now();
        if !session.is_believed(now) || *inner.session.lock() != session.id {
            return Err(Problem::unavailable("session-lost", "the sidecar's session in etcd is over"));
        }
        let own = (inner.identity.app.clone(), session.id);
        let begun = Coordinator::begin(begin.id.clone(), record, own, &inner.peers.lock(), now);
        Ok(inner.run(&begin.id, begun, Some(permit)))
    }
}

fn same(begin: &Begin, name: &Name, input: u64) -> Result<(), Problem> {
    if begin.name == *name && digest(&begin.input) == input {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "transaction-id-reused",
        "The id is that of another transaction",
    )
    .detail("begin another transaction under another id; repeat this one with the same input")
    .outcome(Outcome::NotApplied))
}
