//! What of a segment ends, and the settlement that says so.

use std::collections::BTreeSet;

use super::{
    super::{Status, Ticket, Verdict},
    Kept, Pending, State,
};
use crate::{
    Lease, Millis, Now, Plan, SessionId,
    queue::{
        DeadLetter, Fate, Message, Settings, Stage,
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

/// A settlement to be sent.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Settling {
    pub(in super::super) sent: Vec<Pending>,
    pub(in super::super) fates: Vec<Fate>,
    pub(in super::super) guards: Vec<ClaimId>,
    pub(in super::super) ended: Vec<ClaimId>,
    /// Place and reason of each message given up to the dead letters.
    pub(in super::super) dead: Vec<(u32, String)>,
    pub(in super::super) dead_bytes: u64,
}

type Answers = Vec<(Ticket, Status)>;

/// What there is to do for a segment.
pub(in super::super) enum Tended {
    /// A settlement to be sent.
    Settle(Settling, Answers),
    /// Its messages must be read first.
    Load(Answers),
    /// Nothing.
    Rest { answers: Answers, ready: bool, wake: Option<Millis> },
}

impl State {
    /// Ends what is to end: asked for, out of time, orphaned, expired, delivered too often.
    pub(in super::super) fn tend(
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
        let buries = !settling.dead.is_empty();
        let stays = !settling.fates.iter().all(Fate::finished);
        if (buries && self.body.is_none()) || (stays && self.kept == Kept::Unknown) {
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
                    orphans.push(Pending { ticket: None, receipt, verdict: Verdict::Released });
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
            } else if fate.is_used_up(settings.max_deliveries) && !settling.buried_enough() {
                settling.fates[place].stage = Stage::GivenUp;
                self.bury(settling, place as u32, "the consumer was lost");
            }
        }
    }

    fn bury(&self, settling: &mut Settling, place: u32, reason: &str) {
        settling.dead.push((place, reason.to_owned()));
        let message = self.body.as_ref().and_then(|body| body.messages.get(place as usize));
        settling.dead_bytes += message.map_or(0, Message::size);
    }

    pub(in super::super) fn settlement(
        &self,
        location: &Location,
        session: &SessionId,
        settling: &Settling,
        burial: &Burial,
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
            // It is known unless no message is left, and then no progress is put.
            lease: self.kept.lease(location).unwrap_or(Lease::Forever),
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
