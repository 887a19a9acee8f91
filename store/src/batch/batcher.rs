//! Who waits, what is in flight, and what is to be asked next.

use std::collections::VecDeque;

use super::{
    Abandoned, Ask, BatchRules, FLUSHERS, MAX_BYTES, MAX_OPERATIONS, Marker, Occupied, Prepared, Settled,
    Step, Told,
    flight::{Flight, Learned, Stage, Waiting, reason, revision_of},
    form::{Form, Room},
    resolve::{self, Fate},
};
use crate::{CommitError, Refusal};

/// How many plans are passed over in search of one that may go: beyond, a long queue for one key would be searched
/// from end to end for every batch.
const MAX_PASSED: usize = 256;

/// The group commit of one session.
#[derive(Debug)]
pub struct Batcher<V, T> {
    rules: BatchRules,
    waiting: VecDeque<Waiting<V, T>>,
    flights: [Flight<V, T>; FLUSHERS],
    next: u64,
    ended: bool,
    learned: Learned,
}

impl<V: Clone, T> Batcher<V, T> {
    /// For a session that has just been opened with these markers.
    pub fn new(rules: BatchRules, markers: [Marker<V>; FLUSHERS]) -> Self {
        let flights = markers.map(|marker| Flight {
            marker,
            stage: Stage::Idle,
            plans: Vec::new(),
            form: Form::default(),
            parts: Vec::new(),
            occupied: Occupied::default(),
        });
        Self { rules, waiting: VecDeque::new(), flights, next: 0, ended: false, learned: Learned::default() }
    }

    /// Queues a plan; answers its number, or gives the ticket back with what is wrong.
    pub fn submit(&mut self, plan: Prepared<V>, ticket: T) -> Result<u64, (T, CommitError)> {
        let (operations, bytes) = (plan.operations() + 1, plan.bytes);
        if self.ended {
            return Err((ticket, CommitError::SessionEnded));
        }
        if operations > MAX_OPERATIONS {
            let error = CommitError::TooLarge {
                size: operations,
                limit: MAX_OPERATIONS,
                unit: "operations or compares",
            };
            return Err((ticket, error));
        }
        if bytes > MAX_BYTES {
            return Err((ticket, CommitError::TooLarge { size: bytes, limit: MAX_BYTES, unit: "bytes" }));
        }
        let number = self.next;
        self.next += 1;
        self.waiting.push_back(Waiting { number, plan, ticket: Some(ticket), resent: false });
        Ok(number)
    }

    /// The caller of a plan waits no longer.
    pub fn abandon(&mut self, number: u64) -> Abandoned {
        if let Some(at) = self.waiting.iter().position(|one| one.number == number) {
            // What was sent before it came to wait again goes on until it is known.
            if self.waiting[at].resent {
                self.waiting[at].ticket = None;
                return Abandoned::InFlight;
            }
            self.waiting.remove(at);
            return Abandoned::Waiting;
        }
        let mut flying = self
            .flights
            .iter_mut()
            .flat_map(|flight| flight.plans.iter_mut().chain(flight.parts.iter_mut().flatten()));
        match flying.find(|one| one.number == number) {
            Some(one) => {
                one.ticket = None;
                Abandoned::InFlight
            }
            None => Abandoned::Settled,
        }
    }

    /// The session is over: nothing is sent any more, what waits is refused, what is in flight is found out about.
    pub fn end(&mut self) -> Vec<Settled<T>> {
        self.ended = true;
        self.waiting.drain(..).map(|one| one.settle(Err(CommitError::SessionEnded))).collect()
    }

    /// Whether nothing waits and nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flights.iter().all(|flight| flight.stage == Stage::Idle)
    }

    /// How many plans wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What a free flusher is to ask, if anything that waits may go.
    pub fn take(&mut self, flusher: usize) -> Option<Ask<V>> {
        debug_assert_eq!(self.flights[flusher].stage, Stage::Idle);
        let batch = self.gather(flusher);
        if batch.is_empty() {
            return None;
        }
        Some(self.flights[flusher].send(batch, self.rules, &mut self.learned))
    }

    /// Takes from the queue, in its order, what may go together: independent of each other, of what is in flight, and
    /// of whatever stays behind before it, so that nothing is overtaken by what it would have to wait for.
    fn gather(&mut self, flusher: usize) -> Vec<Waiting<V, T>> {
        let mut batch: Vec<Waiting<V, T>> = Vec::new();
        // Nothing occupies a flight that is idle; from here on these do.
        let mut inside = std::mem::take(&mut self.flights[flusher].occupied);
        let mut passed_by = Occupied::default();
        let mut passed = Vec::new();
        let mut flat = self.learned.hopeful().then(Room::default);
        let (mut largest, mut bytes) = (0, 0);
        while let Some(one) = self.waiting.pop_front() {
            let footprint = &one.plan.footprint;
            let (operations, size) = (largest.max(one.plan.operations()), bytes + one.plan.bytes);
            // A batch of one is not nested: its plan takes no place beside its operations.
            let fits =
                batch.is_empty() || (batch.len() + 2 + operations <= MAX_OPERATIONS && size <= MAX_BYTES);
            // Without space what puts is refused, and must not take along what does not.
            let alike =
                !self.learned.no_space || batch.first().is_none_or(|first| first.plan.puts == one.plan.puts);
            let clear = (!self.rules.independent_inside
                || (inside.independent(footprint) && !inside.shares_alone(footprint)))
                && passed_by.independent(footprint)
                && !passed_by.shares_alone(footprint)
                && (!self.rules.independent_across || self.clear_of_others(flusher, &one.plan));
            if !(fits && alike && clear) {
                passed_by.add(footprint);
                passed.push(one);
            } else if flat.as_mut().is_some_and(|room| !room.takes(&one.plan)) && !batch.is_empty() {
                // It is better off in the next one, and this one goes flat.
                self.waiting.push_front(one);
                break;
            } else {
                (largest, bytes) = (operations, size);
                inside.add(footprint);
                batch.push(one);
            }
            if passed.len() >= MAX_PASSED || batch.len() + 2 + largest > MAX_OPERATIONS {
                break;
            }
        }
        for one in passed.into_iter().rev() {
            self.waiting.push_front(one);
        }
        self.flights[flusher].occupied = inside;
        batch
    }

    fn clear_of_others(&self, flusher: usize, plan: &Prepared<V>) -> bool {
        let mut others = self.flights.iter().enumerate().filter(|(other, _)| *other != flusher);
        others.all(|(_, flight)| flight.occupied.independent(&plan.footprint))
    }

    /// A flusher was told what it asked.
    pub fn told(&mut self, flusher: usize, told: Told) -> Step<V, T> {
        let mut step = Step::default();
        let flight = &mut self.flights[flusher];
        match (flight.stage, told) {
            (Stage::Sent { marked }, Told::Txn(answer, revision)) => {
                flight.landed(marked, answer, revision, &mut self.learned, &mut step);
            }
            (Stage::Sent { marked }, Told::Refused(refusal)) => {
                self.refused(flusher, marked, refusal, &mut step);
            }
            (Stage::Voiding, Told::Txn(answer, revision)) => {
                let fate = if answer.held {
                    Fate::Void(revision)
                } else {
                    let mut revisions = answer.answers.into_iter().map(revision_of);
                    resolve::fate(revisions.next().unwrap_or(0), revisions.next().unwrap_or(0))
                };
                self.decided(flusher, fate, &mut step);
            }
            (Stage::Asking, Told::Read(found)) => {
                let marker = found.first().and_then(|items| items.first());
                match marker.map_or(0, |(_, item)| item.mod_revision) {
                    0 => self.decided(flusher, Fate::Gone, &mut step),
                    revision if revision == flight.marker.revision => flight.without_space(&mut step),
                    revision => self.decided(flusher, Fate::Applied(revision), &mut step),
                }
            }
            (Stage::Tracing, Told::History(changes)) => {
                match resolve::fate_in_history(&flight.marker, &changes) {
                    Fate::Gone => flight.settle(&Err(CommitError::SessionEnded), &mut step),
                    fate => self.decided(flusher, fate, &mut step),
                }
            }
            (Stage::Inspecting { revision }, Told::Read(found)) => {
                let mut found = found.into_iter();
                for one in flight.plans.drain(..) {
                    let answer = resolve::answer(&one.plan, revision, &mut found);
                    step.settled.push(one.settle(answer));
                }
            }
            (Stage::Tracing | Stage::Inspecting { .. }, Told::Refused(Refusal::Compacted)) => {
                let error = CommitError::Unknown("etcd's history of it is compacted".into());
                flight.settle(&Err(error), &mut step);
            }
            // Whatever else came of it, it must be asked again.
            _ => {
                step.ask = flight.ask_again();
                step.wait = true;
            }
        }
        if step.ask.is_none() {
            self.proceed(flusher, &mut step);
        }
        step
    }

    /// The batch, or part of one, is done with: the next part goes, or the flusher is free.
    fn proceed(&mut self, flusher: usize, step: &mut Step<V, T>) {
        let flight = &mut self.flights[flusher];
        match flight.parts.pop() {
            Some(part) => step.ask = Some(flight.send(part, self.rules, &mut self.learned)),
            None => {
                flight.stage = Stage::Idle;
                flight.occupied.clear();
            }
        }
    }

    fn refused(&mut self, flusher: usize, marked: bool, refusal: Refusal, step: &mut Step<V, T>) {
        let flight = &mut self.flights[flusher];
        match refusal {
            Refusal::Unknown(_) if marked => {
                flight.stage = Stage::Voiding;
                step.ask = Some(Ask::Void(flight.marker.void()));
            }
            Refusal::Unknown(_) => {
                for one in &mut flight.plans {
                    one.resent = true;
                }
                step.ask = flight.ask_again();
                step.wait = true;
            }
            Refusal::NotSent(_) | Refusal::Stale => {
                step.wait = true;
                let plans: Vec<_> = flight.plans.drain(..).collect();
                self.wait_again(plans, step);
            }
            Refusal::NoSpace => {
                self.learned.no_space = true;
                if marked {
                    flight.stage = Stage::Asking;
                    step.ask = flight.ask_again();
                } else {
                    flight.without_space(step);
                }
            }
            refusal if flight.plans.len() == 1 => {
                let error = CommitError::NotApplied(reason(&refusal).into());
                flight.settle(&Err(error), step);
            }
            _ => {
                let second = flight.plans.split_off(flight.plans.len() / 2);
                let first = std::mem::take(&mut flight.plans);
                flight.parts.extend([second, first]);
            }
        }
    }

    fn decided(&mut self, flusher: usize, fate: Fate, step: &mut Step<V, T>) {
        let flight = &mut self.flights[flusher];
        match fate {
            Fate::Void(revision) => {
                flight.marker.revision = revision;
                let error =
                    CommitError::NotApplied("etcd did not answer, and the attempt was withdrawn".into());
                let deletes = flight.give_up_puts(&error, step);
                self.wait_again(deletes, step);
            }
            Fate::Applied(revision) => {
                flight.marker.revision = revision;
                flight.stage = Stage::Inspecting { revision };
                step.ask = flight.ask_again();
            }
            Fate::Gone => {
                flight.stage = Stage::Tracing;
                step.ask = flight.ask_again();
            }
        }
    }

    /// Back to the head of the queue with what was certainly not applied.
    fn wait_again(&mut self, plans: Vec<Waiting<V, T>>, step: &mut Step<V, T>) {
        if self.ended {
            step.settled.extend(plans.into_iter().map(|one| one.settle(Err(CommitError::SessionEnded))));
            return;
        }
        for one in plans.into_iter().rev() {
            // Deletes go on until they are known; anything else, only for somebody who waits for it.
            if one.ticket.is_some() || !one.plan.puts {
                self.waiting.push_front(one);
            }
        }
    }
}
