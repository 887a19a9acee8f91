//! Looking at transactions, waiting for them, and telling their coordinators what people want.

use std::{sync::Arc, time::Duration};

use concordat_protocol::{
    Branch, Entry, Key, Name, Range, Record, TransactionId,
    transaction::{Stage, Verdict, plans},
};
use tokio::time::Instant;

use super::{
    TransactionEngine, View,
    coordination::{Progress, record},
    view::{Outcome, State},
};
use crate::{problem::Problem, spans::Span};

/// How many records one read asks for.
const CHUNK: usize = 64;
/// A list looks at no more finished transactions than this: there may be millions.
const LOOKED_AT: usize = 4_096;
/// The wait before a wish is told again to a coordinator that was gone.
const AGAIN: Duration = Duration::from_millis(250);

/// Which transactions a list holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this outcome only.
    pub outcome: Option<Outcome>,
    /// Of this state only.
    pub state: Option<State>,
}

impl Filter {
    fn takes(self, view: &View) -> bool {
        self.outcome.is_none_or(|outcome| view.outcome == outcome)
            && self.state.is_none_or(|state| view.state == state)
    }
}

impl TransactionEngine {
    /// What is remembered of a transaction: unfinished or finished.
    async fn find(&self, id: &TransactionId) -> Result<Option<Entry>, Problem> {
        let keys = [Key::Transaction(id.clone()), Key::Done(id.clone())];
        let answer = Span::read().awaits(self.0.store.read(keys.map(Range::One).into())).await?;
        Ok(answer.reads.into_iter().flatten().next())
    }

    /// The transaction as it is now, with the attempts under way.
    pub async fn get(&self, id: &TransactionId) -> Result<Option<View>, Problem> {
        let Some(entry) = self.find(id).await? else { return Ok(None) };
        let Some(mut view) = view(id, &entry) else { return Ok(None) };
        if let Some(record) = record(&entry) {
            let items = record
                .branches
                .iter()
                .filter(|branch| matches!(branch.stage, Stage::Preparing | Stage::Applying))
                .map(|branch| record.item(id, branch).into())
                .collect();
            for item in Span::read().awaits(self.0.store.read(items)).await?.reads.into_iter().flatten() {
                if let Record::Work(work) = &item.record {
                    view.add_attempts(&item.key, work);
                }
            }
        }
        Ok(Some(view))
    }

    /// The transaction as it was when it was decided, or as it is when the wait is over.
    pub async fn decided(&self, id: &TransactionId, until: Instant) -> Result<Option<View>, Problem> {
        let following = self.0.runs.lock().get(id).map(|run| run.progress.subscribe());
        if let Some(mut progress) = following {
            let over = progress.wait_for(|progress| {
                matches!(progress, Progress::Decided(_) | Progress::Lost | Progress::Refused(_))
            });
            if let Ok(Ok(progress)) = tokio::time::timeout_at(until, over).await
                && let Progress::Decided(view) = &*progress
            {
                return Ok(Some(Arc::unwrap_or_clone(view.clone())));
            }
        }
        let mut view = self.get(id).await?;
        if view.as_ref().is_none_or(|view| view.outcome != Outcome::Undecided) || Instant::now() >= until {
            return Ok(view);
        }
        // Another sidecar coordinates it.
        let mut watch = self.0.store.watch(Range::One(Key::Transaction(id.clone())));
        while view.as_ref().is_some_and(|view| view.outcome == Outcome::Undecided) {
            if tokio::time::timeout_at(until, watch.next()).await.is_err() {
                break;
            }
            view = self.get(id).await?;
        }
        Ok(view)
    }

    /// Has it rolled back unless it is decided, and tells what came of it.
    pub async fn roll_back(&self, id: &TransactionId, until: Instant) -> Result<Option<View>, Problem> {
        loop {
            let Some(entry) = self.find(id).await? else { return Ok(None) };
            let undecided = record(&entry).is_some_and(|record| record.decision.is_none());
            if !undecided {
                return Ok(view(id, &entry));
            }
            let verdict = Verdict::Rollback("it was asked for".into());
            if self.tell(id, &entry, vec![Branch::everything()], &verdict).await? {
                return self.decided(id, until).await;
            }
            if Instant::now() + AGAIN >= until {
                return Err(no_coordinator());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Tells the coordinator what a person wants of stuck branches: of `branch`, or of every one of them. `None` when
    /// there is no such transaction, false when nothing of it is stuck.
    pub async fn help(
        &self,
        id: &TransactionId,
        branch: Option<&Branch>,
        verdict: &Verdict,
        until: Instant,
    ) -> Result<Option<bool>, Problem> {
        loop {
            let Some(entry) = self.find(id).await? else { return Ok(None) };
            let stuck: Vec<Branch> = record(&entry)
                .iter()
                .flat_map(|record| &record.branches)
                .filter(|of| of.stage == Stage::Stuck)
                .map(|of| of.participant.name.clone())
                .filter(|name| branch.is_none_or(|branch| branch == name))
                .collect();
            if stuck.is_empty() {
                return Ok(Some(false));
            }
            // All at once: of the first one told, the coordinator's record changes.
            if self.tell(id, &entry, stuck, verdict).await? {
                return Ok(Some(true));
            }
            if Instant::now() + AGAIN >= until {
                return Err(no_coordinator());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn tell(
        &self,
        id: &TransactionId,
        known: &Entry,
        branches: Vec<Branch>,
        verdict: &Verdict,
    ) -> Result<bool, Problem> {
        let Some(plan) = plans::wish(id, known, branches, verdict) else { return Ok(false) };
        Ok(Span::commit("tell").awaits(self.0.store.commit(plan)).await?.held)
    }

    /// Transactions of a DistributedTransaction, newest first, at most `limit` of them.
    pub async fn list(&self, name: &Name, filter: Filter, limit: usize) -> Result<Vec<View>, Problem> {
        let answer = Span::read().awaits(self.0.store.read(vec![Range::Transactions])).await?;
        let mut entries: Vec<Entry> = answer.reads.into_iter().flatten().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.create_revision));
        let mut views: Vec<View> =
            entries.iter().filter_map(|entry| listed(entry, name, filter)).take(limit).collect();
        if filter.state.is_none_or(|state| state == State::Finished)
            && filter.outcome != Some(Outcome::Undecided)
        {
            self.list_finished(name, filter, limit, &mut views).await?;
        }
        views.sort_by(|a, b| b.began.cmp(&a.began));
        views.truncate(limit);
        Ok(views)
    }

    async fn list_finished(
        &self,
        name: &Name,
        filter: Filter,
        limit: usize,
        views: &mut Vec<View>,
    ) -> Result<(), Problem> {
        let (mut keys, _) = Span::read().awaits(self.0.store.list_keys(Range::Finished)).await?;
        keys.sort_by_key(|(_, created, _)| std::cmp::Reverse(*created));
        keys.truncate(LOOKED_AT);
        let before = views.len();
        for chunk in keys.chunks(CHUNK) {
            let ranges = chunk.iter().map(|(key, ..)| Range::One(key.clone())).collect();
            let answer = Span::read().awaits(self.0.store.read(ranges)).await?;
            views.extend(answer.reads.iter().flatten().filter_map(|entry| listed(entry, name, filter)));
            if views.len() - before >= limit {
                break;
            }
        }
        Ok(())
    }
}

fn listed(entry: &Entry, name: &Name, filter: Filter) -> Option<View> {
    let (Key::Transaction(id) | Key::Done(id)) = &entry.key else { return None };
    let view = view(id, entry)?;
    (view.transaction == name.as_str() && filter.takes(&view)).then_some(view)
}

fn view(id: &TransactionId, entry: &Entry) -> Option<View> {
    match &entry.record {
        Record::Transaction(record) => Some(View::live(id, record)),
        Record::Done(record) => Some(View::finished(id, record)),
        _ => None,
    }
}

fn no_coordinator() -> Problem {
    Problem::unavailable("no-coordinator", "its coordinator is gone; another sidecar is about to adopt it")
}
