//! Publishing: one sidecar's messages for one queue, gathered into segments.
//!
//! Whatever waits when a partition has a plan free goes into one segment, so that an etcd commit carries as many
//! messages as there are. Nothing waits for a segment to fill.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    Dedup, Fate, Message, Outcome, Segment, SegmentId, Settings,
    location::{Location, SEGMENT_MESSAGES},
    plans::{self, Append, Once},
};
use crate::{Answer, Entry, Millis, Name, Plan, Record, SessionId};

/// A segment is closed when it has this many bytes: etcd's commit time goes with bytes.
pub const SEGMENT_BYTES: u64 = 128 * 1024;
/// A plan must fit into a commit: no more messages of one segment are stored under a producer's name.
pub const SEGMENT_ONCE: usize = 40;
/// Plans of a partition on their way at once: what is committed together costs etcd one fsync.
const IN_FLIGHT: usize = 4;

/// One call that publishes.
pub type Ticket = u64;
/// One plan of this machine.
pub type Tag = u64;

/// A message to publish.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offer {
    /// The message.
    pub message: Message,
    /// Not delivered before, milliseconds since the Unix epoch; 0 for at once.
    pub not_before: Millis,
    /// The producer's name for it, if a repeat must not be stored again.
    pub producer: Option<Name>,
}

/// What one offered message came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Published {
    /// It is stored.
    Stored {
        /// Partition.
        partition: u32,
        /// Revision of its segment.
        revision: i64,
        /// Its place in the segment.
        index: u32,
        /// Whether an earlier publish stored it.
        duplicate: bool,
    },
    /// It is not stored: the queue is full.
    Full,
    /// It is not stored: the queue is not the one this sidecar knew.
    NoSuchQueue,
    /// It is not stored, and another try may succeed.
    NotApplied,
    /// It may be stored.
    Unknown,
}

/// What happens to a publisher.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// A call offers messages.
    Offer(Ticket, Vec<Offer>),
    /// Bytes the queue may still take before it is full.
    Room(u64),
    /// The definition: settings and create revision.
    Define(Settings, i64),
    /// The sidecar's session.
    Session(SessionId),
    /// A plan came back.
    Done(Tag, Outcome),
    /// All that waits may go.
    Pump,
}

/// What a publisher wants done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Commit the plan, then [`Input::Done`].
    Commit(Tag, Plan),
    /// Answer a call: one for each message, in its order.
    Reply(Ticket, Vec<Published>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Item {
    ticket: Ticket,
    position: usize,
    offer: Offer,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Lane {
    waiting: VecDeque<Item>,
    bytes: u64,
    in_flight: usize,
}

/// A plan on its way. The messages have moved into the plan, except where a duplicate may have to be left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Flight {
    partition: u32,
    items: Vec<Item>,
    once: Vec<Once>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Call {
    open: usize,
    results: Vec<Published>,
}

/// The publisher of one queue in one sidecar.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Publisher {
    queue: Name,
    settings: Settings,
    definition: i64,
    session: SessionId,
    next: u64,
    room: u64,
    lanes: Vec<Lane>,
    flights: BTreeMap<Tag, Flight>,
    calls: BTreeMap<Ticket, Call>,
}

impl Publisher {
    /// A publisher. It numbers its segments from `first` on; no other machine of the session may use those numbers.
    pub fn new(queue: Name, settings: Settings, definition: i64, session: SessionId, first: u64) -> Self {
        let lanes = vec![Lane::default(); settings.partitions.max(1) as usize];
        let room = settings.retention_bytes;
        let (flights, calls) = (BTreeMap::new(), BTreeMap::new());
        Self { queue, settings, definition, session, next: first, room, lanes, flights, calls }
    }

    /// Bytes that the queue may still take before it is full.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// Whether nothing waits and nothing is on its way.
    pub fn idle(&self) -> bool {
        self.calls.is_empty()
    }

    /// One step.
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Offer(ticket, offers) => self.offer(ticket, offers, &mut effects),
            Input::Room(bytes) => {
                self.room = bytes.saturating_sub(self.lanes.iter().map(|lane| lane.bytes).sum());
            }
            Input::Define(settings, definition) => {
                self.lanes.resize(
                    settings.partitions.max(1).max(self.lanes.len() as u32) as usize,
                    Lane::default(),
                );
                (self.settings, self.definition) = (settings, definition);
            }
            Input::Session(session) => self.session = session,
            Input::Done(tag, outcome) => {
                self.done(tag, outcome, &mut effects);
                self.pump(&mut effects);
            }
            Input::Pump => self.pump(&mut effects),
        }
        effects
    }

    fn offer(&mut self, ticket: Ticket, offers: Vec<Offer>, effects: &mut Vec<Effect>) {
        let count = offers.len();
        self.calls.insert(ticket, Call { open: count, results: vec![Published::NotApplied; count] });
        // The lane that waits least: without order among messages any will do, and a short one goes sooner.
        let lanes = self.settings.partitions.max(1) as usize;
        let Some(lane) = self.lanes.iter_mut().take(lanes).min_by_key(|lane| (lane.in_flight, lane.bytes))
        else {
            return;
        };
        let mut full = Vec::new();
        for (position, offer) in offers.into_iter().enumerate() {
            let size = offer.message.size();
            if size > self.room {
                full.push((ticket, position));
                continue;
            }
            self.room -= size;
            lane.bytes += size;
            lane.waiting.push_back(Item { ticket, position, offer });
        }
        self.answer(full.into_iter().map(|at| (at, Published::Full)), effects);
        if count == 0 {
            self.calls.remove(&ticket);
            effects.push(Effect::Reply(ticket, Vec::new()));
        }
    }

    fn pump(&mut self, effects: &mut Vec<Effect>) {
        for partition in 0..self.lanes.len() {
            while self.lanes[partition].in_flight < IN_FLIGHT && !self.lanes[partition].waiting.is_empty() {
                let Some(effect) = self.send(partition) else { break };
                effects.push(effect);
            }
        }
    }

    /// One segment of what waits in a lane; `None` when all of it waits for a plan under way.
    fn send(&mut self, partition: usize) -> Option<Effect> {
        // A producer's name that is on its way already must not be sent again before that is known.
        let mut names: BTreeSet<Name> = self
            .flights
            .values()
            .flat_map(|flight| flight.once.iter().map(|once| once.producer.clone()))
            .collect();
        let lane = &mut self.lanes[partition];
        let (mut items, mut once, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut deferred = VecDeque::new();
        while let Some(item) = lane.waiting.pop_front() {
            let size = item.offer.message.size();
            let closed = items.len() >= SEGMENT_MESSAGES || (bytes > 0 && bytes + size > SEGMENT_BYTES);
            if closed || once.len() >= SEGMENT_ONCE {
                lane.waiting.push_front(item);
                break;
            }
            // Without a window nothing is remembered of a name.
            if let Some(producer) = item.offer.producer.as_ref().filter(|_| self.settings.dedup_window > 0) {
                if !names.insert(producer.clone()) {
                    deferred.push_back(item);
                    continue;
                }
                once.push(Once { producer: producer.clone(), index: items.len() as u32 });
            }
            bytes += size;
            items.push(item);
        }
        deferred.append(&mut lane.waiting);
        lane.waiting = deferred;
        if items.is_empty() {
            return None;
        }
        lane.bytes -= bytes;
        lane.in_flight += 1;
        Some(self.commit(partition as u32, items, once, bytes))
    }

    fn commit(&mut self, partition: u32, mut items: Vec<Item>, once: Vec<Once>, bytes: u64) -> Effect {
        let tag = self.next;
        self.next += 1;
        let delayed = items.iter().any(|item| item.offer.not_before > 0);
        let fates = delayed.then(|| {
            items.iter().map(|item| Fate { not_before: item.offer.not_before, ..Fate::default() }).collect()
        });
        let messages = items.iter_mut().map(|item| {
            if once.is_empty() { std::mem::take(&mut item.offer.message) } else { item.offer.message.clone() }
        });
        let segment = Segment { messages: messages.collect() };
        let id = SegmentId {
            session: self.session.clone(),
            number: tag,
            messages: items.len() as u32,
            bytes: bytes as u32,
        };
        let append = Append {
            at: Location { queue: self.queue.clone(), partition, segment: id },
            definition: self.definition,
            session: self.session.clone(),
            retention_age: self.settings.retention_age,
        };
        let plan = plans::publish(&append, segment, fates, self.settings.dedup_window, &once);
        self.flights.insert(tag, Flight { partition, items, once });
        Effect::Commit(tag, plan)
    }

    fn done(&mut self, tag: Tag, outcome: Outcome, effects: &mut Vec<Effect>) {
        let Some(flight) = self.flights.remove(&tag) else { return };
        self.lanes[flight.partition as usize].in_flight -= 1;
        let answer = match outcome {
            Outcome::Answered(answer) if !answer.held => return self.refused(flight, answer, effects),
            Outcome::Answered(answer) => Ok(answer.revision),
            Outcome::NotApplied => Err(Published::NotApplied),
            Outcome::Unknown => Err(Published::Unknown),
        };
        let partition = flight.partition;
        let results = flight.items.into_iter().zip(0..).map(|(item, index)| {
            let stored = |revision| Published::Stored { partition, revision, index, duplicate: false };
            ((item.ticket, item.position), answer.map_or_else(|why| why, stored))
        });
        self.answer(results, effects);
    }

    /// A refused plan has read why: another definition, or messages that are stored already. The others go again.
    fn refused(&mut self, flight: Flight, answer: Answer, effects: &mut Vec<Effect>) {
        let mut reads = answer.reads.into_iter();
        let life = reads.next().and_then(|found| found.first().map(|entry| entry.create_revision));
        let stored: BTreeMap<u32, Published> = flight
            .once
            .iter()
            .zip(reads)
            .filter_map(|(once, found)| Some((once.index, duplicate(found.first()?)?)))
            .collect();
        // Neither: the session that its leases hang on has ended.
        let why = if life == Some(self.definition) { Published::NotApplied } else { Published::NoSuchQueue };
        let (again, mut results) = (why == Published::NotApplied && !stored.is_empty(), Vec::new());
        for (index, item) in flight.items.into_iter().enumerate().rev() {
            match stored.get(&(index as u32)) {
                Some(duplicate) => results.push(((item.ticket, item.position), *duplicate)),
                None if again => {
                    let lane = &mut self.lanes[flight.partition as usize];
                    lane.bytes += item.offer.message.size();
                    lane.waiting.push_front(item);
                }
                None => results.push(((item.ticket, item.position), why)),
            }
        }
        self.answer(results, effects);
    }

    fn answer(
        &mut self,
        results: impl IntoIterator<Item = ((Ticket, usize), Published)>,
        effects: &mut Vec<Effect>,
    ) {
        for ((ticket, position), result) in results {
            let Some(call) = self.calls.get_mut(&ticket) else { continue };
            call.results[position] = result;
            call.open -= 1;
            if call.open == 0
                && let Some(call) = self.calls.remove(&ticket)
            {
                effects.push(Effect::Reply(ticket, call.results));
            }
        }
    }
}

fn duplicate(entry: &Entry) -> Option<Published> {
    let Record::Dedup(Dedup { partition, index, .. }) = &entry.record else { return None };
    let (partition, index) = (*partition, *index);
    Some(Published::Stored { partition, revision: entry.create_revision, index, duplicate: true })
}
