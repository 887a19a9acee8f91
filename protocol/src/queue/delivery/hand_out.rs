//! Who gets what: messages that are there, and messages that this sidecar is about to publish.

use std::collections::VecDeque;

use super::{Delivery, Effect, Flight, Grants, Tag, Waiting, memory::LOADS, segment::Kept};
use crate::{
    Key, Lease, Now, Plan, Record, Write,
    queue::{
        Fate, Outcome, Segment, SegmentId,
        location::{ClaimId, Location, SegmentAt},
        plans::Take,
    },
};

/// Segments among which the one to take from is chosen, oldest first, untouched by others before.
const CHOICE: usize = 16;

/// A plan on its way that stores a segment and takes messages of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Direct {
    partition: u32,
    segment: SegmentId,
    body: Segment,
    lease: Lease,
    pub(super) take: Flight,
}

impl Delivery {
    /// Takes what is ready for those who wait, the first come first.
    pub(super) fn hand_out(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some((session, _)) = self.session.clone() else { return };
        if now.monotonic < self.paused {
            return;
        }
        while !self.waiters.is_empty() {
            // Others of the queue's sidecars are best left alone: oldest first among those nobody else works on.
            let segments = &self.segments;
            let foreign =
                |at: &SegmentAt| segments.get(at).is_some_and(|segment| segment.shared_with_others(&session));
            let Some(at) = self.ready.iter().take(CHOICE).min_by_key(|at| (foreign(at), **at)).copied()
            else {
                return;
            };
            self.ready.remove(&at);
            let plenty = self.ready.len() >= self.waiters.len();
            let Some(segment) = self.segments.get_mut(&at) else { continue };
            let location = segment.location(&self.queue, at);
            let Some(lease) = segment.kept.lease(&location) else {
                self.unread.insert(at);
                if self.unread.len() >= LOADS {
                    return;
                }
                continue;
            };
            let mut fates = segment.fates.clone();
            let ready = segment.ready(&self.settings, now);
            let (grants, places) = share_out(&mut self.waiters, ready, plenty, &mut fates);
            if grants.is_empty() {
                continue;
            }
            segment.busy = true;
            let claim = ClaimId { session: session.clone(), number: self.next };
            self.next += 1;
            let take = Take {
                at: &location,
                definition: self.definition,
                progress_at: segment.progress_at,
                fates: fates.clone(),
                claim: &claim,
                places: places.clone(),
                lease,
                read: segment.body.is_none(),
            };
            let plan = take.plan();
            effects.push(self.fly(at, Flight::Take { claim, grants, places, fates }, plan));
        }
    }

    /// Answers those whose wait is over when nothing is there for them. What other plans are about may be.
    pub(super) fn send_away(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.over.is_empty() || !self.synced || now.monotonic < self.paused {
            return;
        }
        let left = |at: &SegmentAt| {
            self.segments.get(at).is_some_and(|segment| !segment.ready(&self.settings, now).is_empty())
        };
        let loads = !self.unread.is_empty();
        if self.session.is_some() && (loads || self.flights.values().any(|(at, _)| left(at))) {
            return;
        }
        let over = &mut self.over;
        self.waiters.retain(|Waiting { waiter, .. }| {
            let goes = over.remove(waiter);
            effects.extend(goes.then(|| Effect::Deliver(*waiter, Vec::new())));
            !goes
        });
    }

    /// Lets a plan of this sidecar's that stores messages of the queue take those that somebody here waits for: with
    /// a tag its outcome is told by [`Input::Done`](super::Input::Done), and they go out with it. What is there already
    /// goes first.
    pub fn join(&mut self, plan: Plan, now: Now) -> (Option<Tag>, Plan, Vec<Effect>) {
        let mut effects = Vec::new();
        self.pump(now, &mut effects);
        match self.stores(&plan, now) {
            Some((at, body, lease)) => {
                let (tag, plan) = self.take_of(at, body, lease, plan);
                (Some(tag), plan, effects)
            }
            None => (None, plan, effects),
        }
    }

    /// The segment that a plan stores, if messages of it can be taken at once.
    fn stores(&self, plan: &Plan, now: Now) -> Option<(Location, Segment, Lease)> {
        let (session, _) = self.session.as_ref().filter(|(_, until)| *until > now.monotonic)?;
        if self.waiters.is_empty() || !self.synced || now.monotonic < self.paused {
            return None;
        }
        // Messages that wait for their time have a progress from the beginning.
        if plan.writes.iter().any(|write| matches!(write, Write::Put(Key::Progress { .. }, ..))) {
            return None;
        }
        plan.writes.iter().find_map(|write| match write {
            Write::Put(Key::Segment { queue, partition, segment }, Record::Segment(body), lease)
                if *queue == self.queue && segment.session == *session =>
            {
                let (queue, partition, segment) = (queue.clone(), *partition, segment.clone());
                Some((Location { queue, partition, segment }, body.clone(), lease.clone()))
            }
            _ => None,
        })
    }

    fn take_of(&mut self, at: Location, body: Segment, lease: Lease, plan: Plan) -> (Tag, Plan) {
        let tag = self.next;
        self.next += 1;
        let claim = ClaimId { session: at.segment.session.clone(), number: tag };
        let mut fates = vec![Fate::default(); body.messages.len()];
        let all = (0..at.segment.messages).collect();
        let (grants, places) = share_out(&mut self.waiters, all, false, &mut fates);
        let take = Take {
            at: &at,
            definition: self.definition,
            progress_at: 0,
            fates: fates.clone(),
            claim: &claim,
            places: places.clone(),
            lease: lease.clone(),
            read: false,
        };
        let plan = take.with(plan);
        let take = Flight::Take { claim, grants, places, fates };
        let Location { partition, segment, .. } = at;
        self.direct.insert(tag, Direct { partition, segment, body, lease, take });
        (tag, plan)
    }

    /// Whether a plan on its way stores this segment and takes messages of it.
    pub(super) fn directly(&self, of: &(u32, SegmentId)) -> bool {
        self.direct.values().any(|direct| (direct.partition, &direct.segment) == (of.0, &of.1))
    }

    /// Takes the outcome of a plan that stored a segment and took messages of it. From here on it is like one that only
    /// took.
    pub(super) fn stored(&mut self, direct: Direct, outcome: Outcome, now: Now, effects: &mut Vec<Effect>) {
        let Direct { partition, segment, body, lease, take } = direct;
        let of = (partition, segment);
        if let Outcome::Answered(answer) = &outcome
            && answer.held
        {
            let at = SegmentAt { revision: answer.revision, partition };
            self.appear(at, of.1.clone(), Segment::default());
            // Its id is told by the watch.
            if let Some(segment) = self.segments.get_mut(&at).filter(|segment| segment.kept == Kept::Unknown)
            {
                segment.kept = Kept::Put(Box::new(lease));
            }
            self.read(at, body, true);
        }
        if let Some(at) = self.index.get(&of).copied() {
            return self.done(at, take, outcome, now, effects);
        }
        // It is not there: not stored, not yet, or no longer.
        let Flight::Take { grants, .. } = take else { return };
        for (waiting, _) in grants.into_iter().rev() {
            self.wait_again(waiting);
        }
    }
}

/// Shares messages out among those who wait, the first come first, and counts their deliveries: what each gets, and
/// place and delivery number of all that is given.
fn share_out(
    waiters: &mut VecDeque<Waiting>,
    ready: Vec<u32>,
    plenty: bool,
    fates: &mut [Fate],
) -> (Grants, Vec<(u32, u32)>) {
    let mut ready = ready.into_iter();
    let (mut grants, mut places) = (Vec::new(), Vec::new());
    while ready.len() > 0
        && let Some(waiting) = waiters.pop_front()
    {
        let fair = ready.len().div_ceil(waiters.len() + 1);
        let share = if plenty { waiting.max } else { waiting.max.min(fair as u32) };
        let granted: Vec<u32> = ready.by_ref().take(share as usize).collect();
        for place in &granted {
            places.push((*place, fates[*place as usize].deliver()));
        }
        grants.push((waiting, granted));
    }
    places.sort_unstable();
    (grants, places)
}
