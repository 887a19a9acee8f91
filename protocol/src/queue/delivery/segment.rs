//! One segment as a sidecar sees it, and the settlement of what was handed out of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Status, Ticket, Verdict};
use crate::{
    Entry, Key, Millis, Name, Now, Plan, Record, SessionId,
    queue::{
        DeadLetter, Fate, Segment, SegmentId, Settings, Stage,
        location::{ClaimId, Location, Receipt, SegmentAt},
        plans::{Burial, Settlement},
    },
};

/// A plan must fit into a commit: claims that one settlement compares, and messages that it buries.
const CLAIMS: usize = 40;
const BURIALS: usize = 20;
const BURIED_BYTES: u64 = 512 * 1024;
/// How often messages are looked at that wait for their time, and those that wait to expire.
const LOOK: Millis = 1_000;
const LOOK_FOR_EXPIRED: Millis = 600_000;

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

/// A segment as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) id: SegmentId,
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
    /// Claims of ours of which nobody can tell whether they were made; nothing of them was handed out.
    pub(super) unanswered: BTreeSet<ClaimId>,
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

/// A settlement to be sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Settling {
    pub(super) sent: Vec<Pending>,
    pub(super) fates: Vec<Fate>,
    pub(super) guards: Vec<ClaimId>,
    pub(super) ended: Vec<ClaimId>,
    /// Place and reason of each message given up to the dead letters.
    pub(super) dead: Vec<(u32, String)>,
    pub(super) dead_bytes: u64,
}

type Answers = Vec<(Ticket, Status)>;

/// What there is to do for a segment.
pub(super) enum Tended {
    /// A settlement to be sent.
    Settle(Settling, Answers),
    /// Its messages must be read first.
    Load(Answers),
    /// Nothing.
    Rest { answers: Answers, ready: bool, wake: Option<Millis> },
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
            body: None,
            expires: None,
            progress_at: 0,
            known,
            claims: BTreeMap::new(),
            held: BTreeMap::new(),
            pending: Vec::new(),
            unanswered: BTreeSet::new(),
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
            if free && fate.deliveries < settings.max_deliveries && !self.expired(place, now) {
                ready.push(place as u32);
            }
        }
        ready
    }

    /// Ends what is to end: asked for, out of time, orphaned, expired, delivered too often.
    pub(super) fn tend(
        &mut self,
        at: SegmentAt,
        settings: &Settings,
        me: Option<&SessionId>,
        now: Now,
    ) -> Tended {
        self.end_held(at, &Verdict::TimedOut, |held| held.until <= now.monotonic);
        if let Some(me) = me {
            self.return_orphans(at, me);
        }
        let mut settling = Settling { fates: self.fates.clone(), ..Settling::default() };
        let answers = self.apply_pending(&mut settling, settings, now);
        if me.is_some() {
            self.give_up(&mut settling, settings, now);
        }
        if me.is_none() || settling.fates == self.fates {
            self.unsend(settling.sent);
            let ready = now.monotonic >= self.not_until && !self.ready(settings, now).is_empty();
            return Tended::Rest { answers, ready, wake: self.next_wake(now) };
        }
        if !settling.dead.is_empty() && self.body.is_none() {
            self.unsend(settling.sent);
            return Tended::Load(answers);
        }
        let open = |claim: &ClaimId| {
            self.claims[claim].iter().any(|(place, delivery)| {
                let fate = &settling.fates[*place as usize];
                fate.stage == Stage::Delivered && fate.deliveries == *delivery
            })
        };
        settling.ended = settling.guards.iter().filter(|claim| !open(claim)).cloned().collect();
        Tended::Settle(settling, answers)
    }

    /// A claim of ours on messages that nobody here has: the answer to it, or to their settlement, was lost.
    fn return_orphans(&mut self, at: SegmentAt, me: &SessionId) {
        let waiting: BTreeSet<u32> = self.pending.iter().map(|pending| pending.receipt.place).collect();
        let mut orphans = Vec::new();
        for (claim, places) in self.claims.iter().filter(|(claim, _)| claim.session == *me) {
            for (place, delivery) in places {
                if self.delivered(*place, *delivery)
                    && !self.held.contains_key(place)
                    && !waiting.contains(place)
                {
                    let receipt =
                        Receipt { segment: at, place: *place, delivery: *delivery, claim: claim.clone() };
                    let verdict =
                        if self.unanswered.contains(claim) { Verdict::Returned } else { Verdict::Released };
                    orphans.push(Pending { ticket: None, receipt, verdict });
                }
            }
        }
        self.pending.append(&mut orphans);
    }

    fn apply_pending(&mut self, settling: &mut Settling, settings: &Settings, now: Now) -> Answers {
        let mut answers = Vec::new();
        let mut guards = BTreeSet::new();
        for pending in std::mem::take(&mut self.pending) {
            let Receipt { place, delivery, claim, .. } = &pending.receipt;
            let named = self.claims.get(claim).is_some_and(|places| places.contains(&(*place, *delivery)));
            if !named || !self.delivered(*place, *delivery) {
                let status = pending.late(&self.fates);
                answers.extend(pending.ticket.map(|ticket| (ticket, status)));
                continue;
            }
            let full = guards.len() >= CLAIMS && !guards.contains(claim);
            let again = settling.fates[*place as usize] != self.fates[*place as usize];
            if full || again || settling.buried_enough() {
                self.pending.push(pending);
                continue;
            }
            guards.insert(claim.clone());
            self.end(settling, *place, &pending.verdict, settings, now);
            settling.sent.push(pending);
        }
        settling.guards = guards.into_iter().collect();
        answers
    }

    fn end(&self, settling: &mut Settling, place: u32, verdict: &Verdict, settings: &Settings, now: Now) {
        let fate = &mut settling.fates[place as usize];
        let (delay, reason, dead_letter) = match verdict {
            Verdict::Ack => {
                fate.stage = Stage::Acknowledged;
                return;
            }
            Verdict::Returned => {
                // Its number stays used: a claim that is still open for other messages goes on naming it.
                fate.stage = Stage::Waiting;
                return;
            }
            Verdict::Nack { delay, reason, dead_letter } => (*delay, reason.as_str(), *dead_letter),
            Verdict::TimedOut => (None, "the visibility time ran out", false),
            Verdict::Released => (Some(0), "the consumer stopped", false),
        };
        if dead_letter || fate.deliveries >= settings.max_deliveries {
            fate.stage = Stage::GivenUp;
            self.bury(settling, place, reason);
            return;
        }
        let step = (fate.deliveries as usize).min(settings.backoff.len());
        let backoff = step.checked_sub(1).map_or(0, |step| settings.backoff[step]);
        let delay = delay.unwrap_or(backoff);
        fate.stage = Stage::Waiting;
        fate.not_before = if delay == 0 { 0 } else { now.unix.saturating_add(delay) };
    }

    /// Gives up what nobody has and nobody may have: expired, or delivered as often as may be.
    fn give_up(&self, settling: &mut Settling, settings: &Settings, now: Now) {
        let claimed = self.claimed();
        for (place, fate) in self.fates.iter().enumerate() {
            if fate.finished() || claimed[place] {
                continue;
            }
            if self.expired(place, now) {
                settling.fates[place].stage = Stage::GivenUp;
            } else if fate.deliveries >= settings.max_deliveries && !settling.buried_enough() {
                settling.fates[place].stage = Stage::GivenUp;
                self.bury(settling, place as u32, "the consumer was lost");
            }
        }
    }

    fn bury(&self, settling: &mut Settling, place: u32, reason: &str) {
        settling.dead.push((place, reason.to_owned()));
        let message = self.body.as_ref().and_then(|body| body.messages.get(place as usize));
        settling.dead_bytes += message.map_or(0, super::super::Message::size);
    }

    #[expect(clippy::too_many_arguments, reason = "what surrounds a segment")]
    pub(super) fn settlement(
        &self,
        location: &Location,
        session: &SessionId,
        settling: &Settling,
        burial: &Burial,
        settings: &Settings,
        now: Now,
        at: SegmentAt,
    ) -> Plan {
        let letter = |(place, reason): &(u32, String)| {
            let message = self.body.as_ref()?.messages.get(*place as usize)?.clone();
            let deliveries = settling.fates[*place as usize].deliveries;
            let reason = reason.clone();
            Some((*place, DeadLetter { message, revision: at.revision, deliveries, reason, at: now.unix }))
        };
        let settlement = Settlement {
            at: location,
            session,
            progress_at: self.progress_at,
            guards: settling.guards.clone(),
            ended: settling.ended.clone(),
            fates: settling.fates.clone(),
            dead: settling.dead.iter().filter_map(letter).collect(),
            burial,
            retention_age: settings.retention_age,
        };
        settlement.plan()
    }

    /// When something will be to do that nothing else tells of.
    fn next_wake(&self, now: Now) -> Option<Millis> {
        let deadlines = self.held.values().map(|held| held.until);
        let retry = (self.not_until > now.monotonic).then_some(self.not_until);
        // What waits for the wall clock is looked at again and again: the clock may be set.
        let expires = self.expires.as_deref().unwrap_or_default();
        let waiting = self.fates.iter().enumerate().filter(|(_, fate)| !fate.finished());
        let wall = waiting
            .flat_map(|(place, fate)| {
                let expires = expires.get(place).copied().unwrap_or_default();
                [(fate.not_before, LOOK), (expires, LOOK_FOR_EXPIRED)]
            })
            .filter(|(instant, _)| *instant > now.unix)
            .map(|(instant, look)| now.monotonic + now.until_unix(instant).min(look))
            .min();
        deadlines.chain(retry).chain(wall).min()
    }
}

impl Settling {
    fn buried_enough(&self) -> bool {
        self.dead.len() >= BURIALS || self.dead_bytes >= BURIED_BYTES
    }
}
