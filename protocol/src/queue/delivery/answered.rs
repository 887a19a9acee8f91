//! What becomes of the machine's plans.

use super::{AGAIN, Delivered, Delivery, Effect, Flight, Grants, Status, Verdict, Waiting, segment::Pending};
use crate::{
    Answer, Entry, Key, Now,
    queue::{
        Fate, Outcome,
        location::{ClaimId, SegmentAt},
    },
};

impl Delivery {
    /// Takes a plan's outcome.
    pub(super) fn done(
        &mut self,
        at: SegmentAt,
        flight: Flight,
        outcome: Outcome,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.dirty.insert(at);
        let gone = self.segments.get(&at).is_some_and(|segment| segment.gone);
        if let Some(segment) = self.segments.get_mut(&at) {
            segment.busy = false;
            if outcome == Outcome::NotApplied {
                segment.not_until = now.monotonic + AGAIN;
            }
        }
        match flight {
            Flight::Load => {
                match outcome {
                    Outcome::Answered(answer) if answer.held => self.keep_body(at, answer.reads.first()),
                    // What was there and is not comes no more, whenever the watch tells it.
                    Outcome::Answered(_) => self.finish(at, Vec::new(), effects),
                    Outcome::NotApplied | Outcome::Unknown => {}
                }
            }
            Flight::Take { claim, grants, places, fates } => match outcome {
                Outcome::Answered(answer) if answer.held => {
                    self.taken(at, claim, grants, places, fates, answer, now, effects);
                }
                outcome => {
                    match outcome {
                        Outcome::Answered(answer) => {
                            let reads = answer.reads.get(1..).unwrap_or_default();
                            self.refused(at, &answer, reads, now, effects);
                        }
                        // A claim that was made all the same is found to be nobody's.
                        Outcome::NotApplied | Outcome::Unknown => self.pause(at, now),
                    }
                    for (waiting, _) in grants.into_iter().rev() {
                        self.wait_again(waiting);
                    }
                }
            },
            Flight::Settle { sent, ended, fates, burial } => match outcome {
                Outcome::Answered(answer) if answer.held => {
                    let tickets = sent.iter().filter_map(|pending| pending.ticket);
                    effects.extend(tickets.map(|ticket| Effect::Settled(ticket, Status::Ok)));
                    self.settled(at, &ended, fates, answer.revision, effects);
                }
                Outcome::Answered(answer) => {
                    self.settlement_refused(at, sent, fates, burial, &answer, now, effects);
                }
                Outcome::NotApplied => {
                    if let Some(segment) = self.segments.get_mut(&at) {
                        segment.unsend(sent);
                    }
                }
                Outcome::Unknown => {
                    let tickets = sent.iter().filter_map(|pending| pending.ticket);
                    effects.extend(tickets.map(|ticket| Effect::Settled(ticket, Status::Unknown)));
                    if let Some(segment) = self.segments.get_mut(&at) {
                        segment.doubt(sent);
                    }
                }
            },
        }
        if gone {
            self.finish(at, Vec::new(), effects);
        } else if let Some(segment) = self.segments.get_mut(&at) {
            segment.lost.clear();
        }
    }

    fn pause(&mut self, at: SegmentAt, now: Now) {
        self.paused = now.monotonic + AGAIN;
        self.due.insert((self.paused, at));
    }

    pub(super) fn wait_again(&mut self, waiting: Waiting) {
        if !self.left.remove(&waiting.waiter) {
            self.waiters.push_front(waiting);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one flight and its answer")]
    fn taken(
        &mut self,
        at: SegmentAt,
        claim: ClaimId,
        grants: Grants,
        places: Vec<(u32, u32)>,
        fates: Vec<Fate>,
        answer: Answer,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.keep_body(at, answer.reads.first());
        let believed = self.session.as_ref().filter(|(id, _)| *id == claim.session).map(|(_, until)| *until);
        let Some(segment) = self.segments.get_mut(&at) else {
            return grants.into_iter().rev().for_each(|(waiting, _)| self.wait_again(waiting));
        };
        segment.advance(fates, answer.revision);
        if segment.lost.contains(&claim) {
            return grants.into_iter().rev().for_each(|(waiting, _)| self.wait_again(waiting));
        }
        segment.claims.insert(claim.clone(), places);
        let believed = believed.filter(|until| *until > now.monotonic);
        for (waiting, granted) in grants.into_iter().rev() {
            let left = self.left.remove(&waiting.waiter);
            let reaches = believed.zip(segment.body.clone()).filter(|_| !left);
            // What was not read before may have expired.
            let back = |place: &u32| reaches.is_none() || segment.expired(*place as usize, now);
            let (back, granted): (Vec<u32>, Vec<u32>) = granted.into_iter().partition(back);
            for place in back {
                let receipt = segment.receipt(at, place, &claim);
                segment.push(Pending { ticket: None, receipt, verdict: Verdict::Returned });
            }
            match reaches {
                Some((believed, body)) if !granted.is_empty() => {
                    let visible = segment.hold(&granted, &claim, waiting.visibility, now);
                    let deadline = now.unix + visible.min(believed).saturating_sub(now.monotonic);
                    let delivered = granted.into_iter().map(|place| Delivered {
                        segment: body.clone(),
                        receipt: segment.receipt(at, place, &claim),
                        deadline,
                    });
                    self.over.remove(&waiting.waiter);
                    effects.push(Effect::Deliver(waiting.waiter, delivered.collect()));
                }
                _ if left => {}
                _ => self.waiters.push_front(waiting),
            }
        }
    }

    fn settled(
        &mut self,
        at: SegmentAt,
        ended: &[ClaimId],
        fates: Vec<Fate>,
        revision: i64,
        effects: &mut Vec<Effect>,
    ) {
        if fates.iter().all(Fate::finished) {
            return self.finish(at, fates, effects);
        }
        let Some(segment) = self.segments.get_mut(&at) else { return };
        segment.advance(fates, revision);
        segment.claims.retain(|claim, _| !ended.contains(claim));
    }

    /// A refused settlement has read why.
    #[expect(clippy::too_many_arguments, reason = "the parts of one flight and its answer")]
    fn settlement_refused(
        &mut self,
        at: SegmentAt,
        sent: Vec<Pending>,
        mut fates: Vec<Fate>,
        burial: Option<i64>,
        answer: &Answer,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let [progress, _, alive, rest @ ..] = answer.reads.as_slice() else { return };
        let buried_elsewhere =
            rest.first().and_then(|found| found.first()).map(|entry| entry.create_revision);
        let lost_queue = burial.is_some() && burial != buried_elsewhere;
        if lost_queue {
            self.dead_letters = None;
        }
        if progress.is_empty() && !lost_queue {
            // The segment is gone. While our session lives nobody else can end the deliveries of its claims, so an
            // earlier try of this very plan did (plans that only delete are sent until their fate is known), or one that
            // gave the delivery back, for another to finish.
            let doubted = self.segments.get(&at).map(|segment| segment.doubted.clone()).unwrap_or_default();
            let alive = alive.first().map(|entry| &entry.key);
            for Pending { ticket, receipt, verdict } in &sent {
                let ours = alive == Some(&Key::Session(receipt.claim.session.clone()))
                    && !doubted.contains(&(receipt.place, receipt.delivery));
                let status = match verdict {
                    Verdict::Ack if ours => Status::Ok,
                    Verdict::Ack => Status::Unknown,
                    _ => Status::Stale,
                };
                effects.extend(ticket.map(|ticket| Effect::Settled(ticket, status)));
            }
            for (place, _) in doubted {
                if let Some(fate) = fates.get_mut(place as usize) {
                    *fate = Fate::default();
                }
            }
            return self.finish(at, fates, effects);
        }
        if let Some(segment) = self.segments.get_mut(&at) {
            segment.unsend(sent);
        }
        if !lost_queue {
            self.refused(at, answer, &answer.reads, now, effects);
        }
    }

    /// Takes over what a refused plan has read: progress and claims. When that is what was known, a lease's guard was
    /// the reason, and the next try waits.
    fn refused(
        &mut self,
        at: SegmentAt,
        answer: &Answer,
        reads: &[Vec<Entry>],
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let [progress, claims, ..] = reads else { return };
        let Some(segment) = self.segments.get_mut(&at) else { return };
        if answer.revision < self.seen {
            return;
        }
        if progress.is_empty() && segment.progress_at > 0 {
            self.finish(at, Vec::new(), effects);
        } else if !segment.replace(progress.first(), claims, answer.revision) {
            segment.not_until = now.monotonic + AGAIN;
        }
    }
}
