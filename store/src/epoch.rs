//! The epochs of namespaces as those see them who look after an etcd: whether it was restored, and what goes on from there.

use concordat_protocol::{
    Key, Range, Record, TransactionId,
    timeline::{self as decided, Lost, NoRoom, Remembered, Timeline, Verdict},
    transaction::plans,
};

use crate::{
    Admin, CommitError, Refusal,
    exchange::Exchange,
    observer::Purpose,
    read::unanswered,
    session::{lease, tell},
    timeline::{self, Found},
    watch::{self, Scope},
    wire,
};

/// What is to be read of a transaction that etcd's snapshot has undecided.
const STOPPED: &str = "etcd was restored from a snapshot in which it was undecided: it may have been decided and applied \
                       since; look at its participants, then retry it or roll it back";

/// A namespace's timeline as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// As it is recorded; `None` when no sidecar was ever there.
    pub timeline: Option<Timeline>,
    /// etcd's cluster id.
    pub cluster: u64,
    /// etcd's revision.
    pub revision: i64,
    /// That etcd was restored, when it shows.
    pub lost: Option<Lost>,
}

/// An epoch that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The namespace's timeline from now on.
    pub timeline: Timeline,
    /// etcd's revision with which it began.
    pub revision: i64,
    /// Transactions that were undecided, and are stuck.
    pub stopped: Vec<TransactionId>,
    /// How many sessions of the epoch before were ended.
    pub sessions: usize,
}

/// Why no epoch has begun.
#[derive(Debug, thiserror::Error)]
pub enum RaiseError {
    /// Nothing tells of a restore.
    #[error("etcd shows no sign of having been restored: {0}")]
    NotRestored(String),
    /// There is no room left.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// etcd cannot be asked, or refused.
    #[error(transparent)]
    Etcd(#[from] CommitError),
}

/// What was found when an etcd was looked after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// What is to be remembered from now on, outside etcd.
    pub remember: Remembered,
    /// How a restore was noticed, if one was; the namespaces know it by now.
    pub restored: Option<String>,
}

impl Admin {
    /// A namespace's timeline.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when etcd does not answer.
    pub async fn timeline(&self, namespace: &str) -> Result<Standing, CommitError> {
        let Found { recorded, observed, .. } =
            timeline::find(&self.exchange(namespace)).await.map_err(unanswered)?;
        let lost = match (&recorded, decided::judge(recorded.as_ref(), &observed, None)) {
            (_, Verdict::Restored(lost)) => Some(lost),
            (_, Verdict::Fine(_)) => None,
        };
        Ok(Standing { timeline: recorded, cluster: observed.cluster, revision: observed.revision, lost })
    }

    /// That etcd was found restored, if a namespace was told so and its epoch was not raised since.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when etcd does not answer.
    pub async fn lost(&self, namespace: &str) -> Result<Option<Lost>, CommitError> {
        let found = self.read(namespace, vec![Key::Timeline.into()]).await?;
        Ok(found.reads.into_iter().flatten().find_map(|entry| match entry.record {
            Record::Timeline(timeline) => timeline.lost,
            _ => None,
        }))
    }

    /// Begins a namespace's next epoch in a restored etcd: stops what is undecided, raises every later fence above any
    /// made of a raised revision below `floor`, and ends the sessions of before. Unless `forced` only where etcd shows
    /// that it was restored. May be run again when it failed.
    ///
    /// # Errors
    /// [`RaiseError`].
    pub async fn raise(&self, namespace: &str, floor: i64, forced: bool) -> Result<Raised, RaiseError> {
        let Standing { timeline, revision, lost, .. } = self.timeline(namespace).await?;
        if lost.is_none() && !forced {
            let epoch = timeline.map_or(0, |timeline| timeline.epoch);
            return Err(RaiseError::NotRestored(format!("it is in epoch {epoch} at revision {revision}")));
        }
        let stopped = self.stop(namespace).await?;
        let exchange = self.exchange(namespace);
        let leases = session_leases(&exchange).await.map_err(unanswered)?;
        loop {
            let found = timeline::find(&exchange).await.map_err(unanswered)?;
            let timeline = decided::raise(found.recorded.as_ref(), &found.observed, floor)?;
            let answer = self.write(namespace, decided::begin(found.revision, timeline.clone())).await?;
            if !answer.held {
                continue;
            }
            // Their sidecars learn by it that they have no session.
            for lease in &leases {
                lease::revoke(&exchange.connection, *lease).await;
            }
            return Ok(Raised { timeline, revision: answer.revision, stopped, sessions: leases.len() });
        }
    }

    /// Stops every transaction that is undecided.
    async fn stop(&self, namespace: &str) -> Result<Vec<TransactionId>, CommitError> {
        let exchange = self.exchange(namespace);
        let scope = Scope { namespace: namespace.into(), range: Range::Transactions };
        let (mut entries, _) = watch::list(&exchange, &scope).await.map_err(unanswered)?;
        let mut stopped = Vec::new();
        while let Some(entry) = entries.pop() {
            let Key::Transaction(id) = &entry.key else { continue };
            let Some(plan) = plans::stop(id, &entry, STOPPED) else { continue };
            if self.write(namespace, plan).await?.held {
                stopped.push(id.clone());
                continue;
            }
            let found = self.read(namespace, vec![entry.key.into()]).await?;
            entries.extend(found.reads.into_iter().flatten());
        }
        stopped.sort();
        Ok(stopped)
    }

    /// Holds etcd against what was remembered of it outside it, and tells every namespace when it was restored: whoever
    /// comes there is refused until the epoch is raised.
    ///
    /// # Errors
    /// [`CommitError`] when etcd does not answer: then what was remembered stays to be remembered.
    pub async fn look_after(&self, remembered: Option<&Remembered>) -> Result<Looked, CommitError> {
        let found = timeline::find(&self.exchange("")).await.map_err(unanswered)?;
        let restored = remembered.and_then(|remembered| remembered.contradicts(&found.observed));
        if let (Some(remembered), Some(_)) = (remembered, &restored) {
            for namespace in self.namespaces().await? {
                self.tell(&namespace, remembered).await?;
            }
        }
        let (cluster, revision) = (found.observed.cluster, found.observed.revision);
        Ok(Looked { remember: Remembered { epoch: None, cluster, revision, offset: 0 }, restored })
    }

    async fn tell(&self, namespace: &str, remembered: &Remembered) -> Result<(), CommitError> {
        let exchange = self.exchange(namespace);
        loop {
            let found = timeline::find(&exchange).await.map_err(unanswered)?;
            let recorded = found.recorded.as_ref();
            let offset = recorded.map_or(0, |recorded| recorded.offset);
            let remembered = Remembered { epoch: None, offset, ..*remembered };
            let Verdict::Restored(lost) = decided::judge(recorded, &found.observed, Some(&remembered)) else {
                return Ok(());
            };
            if recorded.and_then(|recorded| recorded.lost.as_ref()) == Some(&lost)
                || tell(&exchange, &found, lost).await.map_err(unanswered)?
            {
                return Ok(());
            }
        }
    }
}

async fn session_leases(exchange: &Exchange) -> Result<Vec<i64>, Refusal> {
    let (from, options) = wire::get(&exchange.namespace, &Range::Sessions);
    let response = exchange.get(Purpose::Session, from, options).await?.0;
    Ok(response.kvs.into_iter().map(|kv| kv.lease).filter(|lease| *lease != 0).collect())
}
