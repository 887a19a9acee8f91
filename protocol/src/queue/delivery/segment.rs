//! One segment as a sidecar sees it.

mod tend;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub(super) use self::tend::{Settling, Tended};
use super::{Status, Ticket, Verdict};
use crate::{
    Entry, Key, Lease, Millis, Name, Now, Record, SessionId,
    queue::{
        Fate, Segment, SegmentId, Settings, Stage,
        location::{ClaimId, Location, Receipt, SegmentAt},
    },
};

/// A delivery that is to end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    pub(super) ticket: Option<Ticket>,
    pub(super) receipt: Receipt,
    pub(super) verdict: Verdict,
}

/// A delivery of this sidecar's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Held {
    delivery: u32,
    claim: ClaimId,
    until: Millis,
}

/// The lease under which a segment is: its progress is put under the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kept {
    /// A listing does not tell it.
    Unknown,
    /// As this sidecar put it: the watch tells its id.
    Put(Box<Lease>),
    /// Its id in etcd.
    Id(i64),
}

impl Kept {
    pub(super) fn lease(&self, at: &Location) -> Option<Lease> {
        match self {
            Self::Unknown => None,
            Self::Put(lease) => Some(lease.as_ref().clone()),
            Self::Id(id) => Some(Lease::With(at.segment(), *id)),
        }
    }
}

/// A segment as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) id: SegmentId,
    pub(super) kept: Kept,
    pub(super) body: Option<Arc<Segment>>,
    /// When each message expires, once the body was read; kept although the body may not be.
    expires: Option<Box<[Millis]>>,
    pub(super) fates: Vec<Fate>,
    /// Revision of the progress, 0 for none.
    pub(super) progress_at: i64,
    /// Up to which revision progress and new claims are known; a claim that is gone is gone for ever.
    known: i64,
    pub(super) claims: BTreeMap<ClaimId, Vec<(u32, u32)>>,
    held: BTreeMap<u32, Held>,
    pub(super) pending: Vec<Pending>,
    /// Places and deliveries that a plan of unknown outcome was to give back at their consumer's wish.
    pub(super) doubted: BTreeSet<(u32, u32)>,
    /// Claims that ended while a plan was on its way, which may be the one that made them.
    pub(super) lost: BTreeSet<ClaimId>,
    /// Whether it was deleted while a plan was on its way.
    pub(super) gone: bool,
    /// Whether a plan is on its way.
    pub(super) busy: bool,
    /// No plan that puts before this, on the monotonic clock.
    pub(super) not_until: Millis,
    /// When it is looked at again, on the monotonic clock.
    pub(super) wake: Option<Millis>,
}

impl Pending {
    /// The answer when its delivery has ended: an acknowledgement repeated is well.
    pub(super) fn late(&self, fates: &[Fate]) -> Status {
        let Receipt { place, delivery, .. } = self.receipt;
        let acknowledged = |fate: &Fate| fate.stage == Stage::Acknowledged && fate.deliveries == delivery;
        let repeated = self.verdict == Verdict::Ack && fates.get(place as usize).is_some_and(acknowledged);
        if repeated { Status::Ok } else { Status::Stale }
    }
}

impl Fate {
    /// Counts a delivery; its number.
    pub(super) fn deliver(&mut self) -> u32 {
        self.stage = Stage::Delivered;
        self.deliveries += 1;
        self.deliveries
    }
}

impl State {
    pub(super) fn new(id: SegmentId, known: i64) -> Self {
        Self {
            fates: vec![Fate::default(); id.messages as usize],
            id,
            kept: Kept::Unknown,
            body: None,
            expires: None,
            progress_at: 0,
            known,
            claims: BTreeMap::new(),
            held: BTreeMap::new(),
            pending: Vec::new(),
            doubted: BTreeSet::new(),
            lost: BTreeSet::new(),
            gone: false,
            busy: false,
            not_until: 0,
            wake: None,
        }
    }

    /// Takes over what is told of its messages.
    pub(super) fn read(&mut self, body: &Segment) {
        if self.expires.is_none() {
            self.fates.resize(body.messages.len(), Fate::default());
            self.expires = Some(body.messages.iter().map(|message| message.expires).collect());
        }
    }

    /// Whether a message is known to have expired.
    pub(super) fn expired(&self, place: usize, now: Now) -> bool {
        self.expires.as_ref().and_then(|expires| expires.get(place)).is_some_and(|at| *at <= now.unix)
    }

    pub(super) fn location(&self, queue: &Name, at: SegmentAt) -> Location {
        Location { queue: queue.clone(), partition: at.partition, segment: self.id.clone() }
    }

    pub(super) fn idle(&self) -> bool {
        self.held.is_empty() && self.pending.is_empty()
    }

    pub(super) fn shared_with_others(&self, me: &SessionId) -> bool {
        self.claims.keys().any(|claim| claim.session != *me)
    }

    /// Takes over what this sidecar's own plan made of it.
    pub(super) fn advance(&mut self, fates: Vec<Fate>, revision: i64) {
        (self.fates, self.progress_at, self.known) = (fates, revision, revision);
    }

    /// Takes over progress and claims as they were read at a revision; whether that changed anything.
    pub(super) fn replace(&mut self, progress: Option<&Entry>, claims: &[Entry], revision: i64) -> bool {
        if revision < self.known {
            return false;
        }
        let before = (self.progress_at, self.claims.keys().cloned().collect::<Vec<_>>());
        self.known = revision;
        self.put_progress(progress);
        self.claims.clear();
        for entry in claims {
            self.put_claim(entry);
        }
        before != (self.progress_at, self.claims.keys().cloned().collect())
    }

    /// Takes over a change that a watch tells; whether it is new.
    pub(super) fn changed(&mut self, entry: &Entry) -> bool {
        let new = entry.mod_revision > self.known;
        match &entry.record {
            Record::Progress(_) if new => self.put_progress(Some(entry)),
            Record::Claim(_) if new => self.put_claim(entry),
            _ => {}
        }
        new
    }

    fn put_progress(&mut self, entry: Option<&Entry>) {
        match entry {
            Some(Entry { record: Record::Progress(progress), mod_revision, .. })
                if progress.fates.len() == self.fates.len() =>
            {
                self.fates.clone_from(&progress.fates);
                self.progress_at = *mod_revision;
            }
            _ => {
                self.fates.fill(Fate::default());
                self.progress_at = 0;
            }
        }
    }

    fn put_claim(&mut self, entry: &Entry) {
        if let (Key::Claim { session, number, .. }, Record::Claim(claim)) = (&entry.key, &entry.record) {
            let id = ClaimId { session: session.clone(), number: *number };
            self.claims.insert(id, claim.places.clone());
        }
    }

    pub(super) fn hold(&mut self, places: &[u32], claim: &ClaimId, visibility: Millis, now: Now) -> Millis {
        let until = now.monotonic.saturating_add(visibility);
        for place in places {
            let delivery = self.fates[*place as usize].deliveries;
            self.held.insert(*place, Held { delivery, claim: claim.clone(), until });
        }
        until
    }

    pub(super) fn receipt(&self, at: SegmentAt, place: u32, claim: &ClaimId) -> Receipt {
        let delivery = self.fates.get(place as usize).map_or(0, |fate| fate.deliveries);
        Receipt { segment: at, place, delivery, claim: claim.clone() }
    }

    /// Lets a delivery of this sidecar's last longer, if it still does.
    pub(super) fn extend(&mut self, receipt: &Receipt, visibility: Millis, now: Now) -> bool {
        let held = self.held.get_mut(&receipt.place).filter(|held| {
            held.delivery == receipt.delivery && held.claim == receipt.claim && held.until > now.monotonic
        });
        if let Some(held) = held {
            held.until = now.monotonic.saturating_add(visibility);
            return true;
        }
        false
    }

    /// Adds a delivery that is to end. It ends once: what comes later for it waits for what came first.
    pub(super) fn push(&mut self, pending: Pending) {
        if self.held.get(&pending.receipt.place).is_some_and(|held| held.claim == pending.receipt.claim) {
            self.held.remove(&pending.receipt.place);
        }
        self.pending.push(pending);
    }

    /// Puts back what a plan did not settle, before what came later.
    pub(super) fn unsend(&mut self, mut sent: Vec<Pending>) {
        sent.append(&mut self.pending);
        self.pending = sent;
    }

    /// After a plan of unknown outcome: whoever waits for an answer has got it, the rest is tried again.
    pub(super) fn doubt(&mut self, mut sent: Vec<Pending>) {
        let nacks = sent.iter().filter(|pending| matches!(pending.verdict, Verdict::Nack { .. }));
        self.doubted.extend(nacks.map(|pending| (pending.receipt.place, pending.receipt.delivery)));
        sent.retain(|pending| pending.ticket.is_none());
        self.unsend(sent);
    }

    fn end_held(&mut self, at: SegmentAt, verdict: &Verdict, which: impl Fn(&Held) -> bool) {
        let ending: Vec<u32> =
            self.held.iter().filter(|(_, held)| which(held)).map(|(place, _)| *place).collect();
        for place in ending {
            if let Some(Held { delivery, claim, .. }) = self.held.remove(&place) {
                let receipt = Receipt { segment: at, place, delivery, claim };
                self.pending.push(Pending { ticket: None, receipt, verdict: verdict.clone() });
            }
        }
    }

    /// Ends every delivery of this sidecar's.
    pub(super) fn release_all(&mut self, at: SegmentAt) {
        self.end_held(at, &Verdict::Released, |_| true);
    }

    /// Forgets the deliveries of a session that is over; the calls that wait to settle some.
    pub(super) fn forget_deliveries(&mut self) -> Vec<Ticket> {
        self.held.clear();
        std::mem::take(&mut self.pending).into_iter().filter_map(|pending| pending.ticket).collect()
    }

    /// For each place whether a claim that lives names its current delivery.
    fn claimed(&self) -> Vec<bool> {
        let mut claimed = vec![false; self.fates.len()];
        for (place, delivery) in self.claims.values().flatten() {
            if self.delivered(*place, *delivery) {
                claimed[*place as usize] = true;
            }
        }
        claimed
    }

    fn delivered(&self, place: u32, delivery: u32) -> bool {
        let fate = self.fates.get(place as usize);
        fate.is_some_and(|fate| fate.stage == Stage::Delivered && fate.deliveries == delivery)
    }

    /// Places that can be handed out now.
    pub(super) fn ready(&self, settings: &Settings, now: Now) -> Vec<u32> {
        let (claimed, mut ready) = (self.claimed(), Vec::new());
        for (place, fate) in self.fates.iter().enumerate() {
            let free = !fate.finished() && !claimed[place] && fate.not_before <= now.unix;
            if free && !fate.is_used_up(settings.max_deliveries) && !self.expired(place, now) {
                ready.push(place as u32);
            }
        }
        ready
    }
}
