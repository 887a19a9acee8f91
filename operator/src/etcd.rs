//! What the operator reads and writes in etcd. Whatever it writes is written by a [`Term`] of leadership, and refused
//! once another operator has begun one: two that both believe they lead do no harm.

use std::sync::Arc;

use concordat_protocol::{Answer, Definition, Entry, Key, Kind, Lease, Name, Plan, Record, record::Epoch};
use concordat_store::{Admin, CommitError};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Why something was not written, or not read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another operator leads.
    #[error("another operator leads")]
    Superseded,
    /// etcd cannot be asked, or refused.
    #[error(transparent)]
    Etcd(#[from] CommitError),
}

/// One term of leadership: from the moment this operator wrote itself into etcd's epoch until another does.
pub struct Term {
    admin: Admin,
    epoch: i64,
    over: CancellationToken,
    metrics: Arc<Metrics>,
}

impl Term {
    /// Begins a term. Any other operator's is over by this.
    pub async fn begin(admin: Admin, holder: &str, metrics: Arc<Metrics>) -> Result<Self, CommitError> {
        loop {
            let found = admin.read("", vec![Key::Epoch.into()]).await?;
            let last = found.reads.iter().flatten().next().map_or(0, |entry| entry.mod_revision);
            let epoch = Epoch { holder: holder.to_owned() };
            let plan = Plan::new().unchanged(Key::Epoch, last).put(Key::Epoch, epoch, Lease::Forever);
            let answer = admin.write("", plan).await?;
            if answer.held {
                return Ok(Self { admin, epoch: answer.revision, over: CancellationToken::new(), metrics });
            }
        }
    }

    /// Cancelled once it is known that another operator leads.
    pub fn over(&self) -> &CancellationToken {
        &self.over
    }

    /// For reading.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// Runs a plan if nobody else leads.
    pub async fn write(&self, namespace: &str, plan: Plan) -> Result<Answer, Error> {
        let answer = self.admin.write(namespace, guarded(plan, self.epoch)).await;
        self.metrics.wrote(answer.as_ref().is_ok_and(|answer| answer.held));
        let mut answer = answer?;
        if !answer.held {
            let leader = answer.reads.pop().unwrap_or_default();
            if leader.first().is_none_or(|entry| entry.mod_revision != self.epoch) {
                self.over.cancel();
                return Err(Error::Superseded);
            }
        }
        Ok(answer)
    }

    /// Brings an object's definition to what it should be, and answers the revision that guards its state. A
    /// definition that an earlier object of the same name left behind is not taken over: `None`, clean it up first.
    pub async fn define(
        &self,
        namespace: &str,
        kind: Kind,
        name: &Name,
        wanted: Definition,
    ) -> Result<Option<i64>, Error> {
        let key = Key::Definition { kind, name: name.clone() };
        loop {
            let found = self.definition(namespace, kind, name).await?;
            let revision = match &found {
                Some((_, definition)) if definition.uid != wanted.uid => return Ok(None),
                Some((entry, definition)) if *definition == wanted => return Ok(Some(entry.create_revision)),
                Some((entry, _)) => entry.mod_revision,
                None => 0,
            };
            let plan =
                Plan::new().unchanged(key.clone(), revision).put(key.clone(), wanted.clone(), Lease::Forever);
            let answer = self.write(namespace, plan).await?;
            if answer.held {
                return Ok(Some(found.map_or(answer.revision, |(entry, _)| entry.create_revision)));
            }
        }
    }

    /// The definition in force.
    pub async fn definition(
        &self,
        namespace: &str,
        kind: Kind,
        name: &Name,
    ) -> Result<Option<(Entry, Definition)>, CommitError> {
        let key = Key::Definition { kind, name: name.clone() };
        let found = self.admin.read(namespace, vec![key.into()]).await?;
        Ok(found.reads.into_iter().flatten().next().and_then(|entry| match entry.record.clone() {
            Record::Definition(definition) => Some((entry, definition)),
            _ => None,
        }))
    }
}

/// The plan with the compare that every write of a leader carries; the last thing it reads when it does not hold is who
/// leads.
fn guarded(plan: Plan, epoch: i64) -> Plan {
    plan.unchanged(Key::Epoch, epoch).otherwise(Key::Epoch)
}
