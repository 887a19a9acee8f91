//! Who holds a key: what etcd says of it, and where that does not tell, what the sidecar says that has it.

use std::time::Duration;

use concordat_protocol::{
    Entry, Millis, Plan, Range,
    lock::{
        Fence, Found, Holder, Machine, Mode,
        fair::line::Line,
        fence::PLACES,
        machine::ANSWER,
        plans::{self, want_key},
    },
};
use concordat_store::{CommitError, WatchEvent};

use super::{LockEngine, Place};
use crate::spans::Span;

/// What there is to know of a key.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Who holds it.
    pub holders: Vec<Holding>,
    /// Fences of grants that another sidecar may have made in mode FairQueue and etcd not tell of yet.
    heirs: Vec<u64>,
    /// How many wait: over all sidecars in mode FairQueue, else of this sidecar's callers.
    pub waiters: usize,
}

impl Inspection {
    /// Whether a fence is that of a grant, as far as can be known.
    pub fn is_current(&self, fence: u64) -> bool {
        self.holders.iter().any(|holding| holding.is_current(fence)) || self.heirs.contains(&fence)
    }
}

/// One who holds a key.
#[derive(Clone, Debug)]
pub struct Holding {
    /// Who it is.
    pub holder: Holder,
    /// The fence of its grant.
    pub fence: Option<Fence>,
    /// When the grant ends unless renewed, milliseconds from now: known of this sidecar's callers only.
    pub expires_in: Option<Millis>,
    /// Whether it is another sidecar's, which may have handed it on among its callers and not told yet.
    remote: bool,
}

impl Holding {
    /// Whether a fence is that of its grant, or of a later one that is not told yet.
    fn is_current(&self, fence: u64) -> bool {
        self.fence.map(Fence::get).is_some_and(|told| {
            told == fence || self.remote && told < fence && told / PLACES == fence / PLACES
        })
    }
}

impl LockEngine {
    /// What there is to know of a key, as of now. A lock that only stays with a sidecar is held by nobody: the sidecar is
    /// asked where etcd does not tell.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn inspect(&self, place: &Place, mode: Mode) -> Result<Inspection, CommitError> {
        // Whoever is granted the lock asks after this sidecar has begun to delete the key of the one before.
        let deletes = self.0.keys.lock().get(place).map(Machine::deletes).unwrap_or_default();
        let range = Range::LockKey(place.lock.clone(), place.key.clone());
        let answer = Span::read().awaits(self.0.store.read(vec![range])).await?;
        let entries = answer.reads.into_iter().flatten();
        let (offset, session) = (self.0.store.fence_offset(), self.0.store.session().id);
        if mode == Mode::FairQueue {
            let mut entries: Vec<Entry> = entries.collect();
            // Whoever leaves counts until it has left for all.
            let waiters = Line::of(answer.revision, &entries).waiting();
            entries.retain(|entry| !deletes.contains(&entry.key));
            let line = Line::of(answer.revision, &entries);
            let holders = line.living_holders().map(|(spot, standing)| {
                self.holding(place, &standing.holder, standing.fence(spot, offset), false)
            });
            let heirs = line.heirs().filter(|(spot, _)| spot.who.0 != session);
            let heirs = heirs.filter_map(|(spot, standing)| standing.fence(spot, offset).map(Fence::get));
            let (holders, heirs) = (holders.collect(), heirs.collect());
            return Ok(Inspection { holders, heirs, waiters });
        }
        let holder = match entries.into_iter().find_map(|entry| Found::read(&entry)) {
            Some(found) if found.holder.session == session => {
                let holding = self.0.keys.lock().get(place).and_then(Machine::holding);
                holding.map(|(holder, fence)| self.holding(place, &holder, Some(fence), false))
            }
            Some(found) => {
                let found = if found.holder.stays { self.ask(place, found).await } else { Some(found) };
                found.map(|Found { revision, holder, .. }| {
                    let fence = Fence::new(revision, offset, u64::from(holder.regrants));
                    self.holding(place, &holder, fence, mode == Mode::CompareAndSwap)
                })
            }
            None => None,
        };
        let waiters = self.0.keys.lock().get(place).map_or(0, Machine::waiters);
        Ok(Inspection { holders: holder.into_iter().collect(), heirs: Vec::new(), waiters })
    }

    fn holding(&self, place: &Place, holder: &Holder, fence: Option<Fence>, remote: bool) -> Holding {
        let now = self.0.store.clock().now().monotonic;
        let end = fence.and_then(|fence| self.0.keys.lock().ends(place, fence));
        let expires_in = end.map(|end| end.saturating_sub(now));
        Holding { holder: holder.clone(), fence, expires_in, remote }
    }

    /// Who holds what may only stay with another sidecar, once that has said so; what etcd said, when it does not answer.
    async fn ask(&self, place: &Place, mut found: Found) -> Option<Found> {
        let patience = Duration::from_millis(ANSWER);
        let session = self.0.store.session().id;
        let mut wants = Vec::new();
        let answer = tokio::time::timeout(patience, async {
            while found.holder.stays {
                let wanted = plans::want(&place.lock, &place.key, &found, &session);
                wants.push(want_key(&place.lock, &place.key, &found.holder.session, &session));
                let Ok(answer) = self.0.store.commit(wanted).await else { break };
                let next = if answer.held {
                    self.changed(place, &found).await
                } else {
                    plans::found_holder(&answer)
                };
                let next = next?;
                if next.revision == found.revision {
                    // What told it has taken away what asked.
                    wants.pop();
                }
                found = next;
            }
            Some(found.clone())
        });
        let answer = answer.await;
        wants.dedup();
        if !wants.is_empty() {
            let (store, plan) = (self.0.store.clone(), wants.into_iter().fold(Plan::new(), Plan::delete));
            tokio::spawn(async move { store.commit(plan).await });
        }
        answer.unwrap_or(Some(found))
    }

    /// What a holder's key becomes.
    async fn changed(&self, place: &Place, from: &Found) -> Option<Found> {
        let mut watch = self.0.store.watch(plans::holder(&place.lock, &place.key).into());
        loop {
            for event in watch.next().await {
                let entry: Option<Entry> = match event {
                    WatchEvent::Snapshot { entries, .. } => entries.into_iter().next(),
                    WatchEvent::Put(entry) => Some(entry),
                    WatchEvent::Deleted { .. } => None,
                    WatchEvent::Progress(_) => continue,
                };
                let found = entry.as_ref().and_then(Found::read);
                if found.as_ref() != Some(from) {
                    return found;
                }
            }
        }
    }
}
