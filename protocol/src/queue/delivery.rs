//! Delivery: a queue as one sidecar's consumers see it.
//!
//! What is taken is exactly what is handed out: one plan puts a claim under the sidecar's lease and the segment's
//! progress with the deliveries counted, guarded by the progress it follows. So a busy consumer never sits on
//! messages it has not begun, a claim that is lost returns them, and what kills its consumer is counted all the same.
//! For each segment one plan at a time is on its way; receives and settlements that come meanwhile share the next.
//! Messages that this sidecar publishes while somebody waits for some here are taken by the plan that stores them.

mod answered;
mod hand_out;
mod memory;
mod segment;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use self::segment::{Pending, Tended};
use super::{
    Fate, Outcome, Segment, SegmentId, Settings,
    location::{ClaimId, Location, Receipt, SegmentAt},
    plans::{Append, Burial},
};
use crate::{Entry, Key, Millis, Name, Now, Plan, Range, SessionId};

/// A long poll that waits for messages.
pub type Waiter = u64;
/// A call that settles or extends a delivery.
pub type Ticket = u64;
/// A plan of this machine.
pub type Tag = u64;

/// Finished segments whose fates are remembered, so that a repeated ack is answered as the first was.
const REMEMBERED: usize = 1024;
/// After a plan that was not applied, and for whatever waits on the wall clock (which may be set), the next look.
const AGAIN: Millis = 200;

/// How a delivery ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The message is done with.
    Ack,
    /// It failed.
    Nack {
        /// How long until it is handed out again; `None`: by the queue's back-off.
        delay: Option<Millis>,
        /// Why, for people.
        reason: String,
        /// Whether it becomes a dead letter at once.
        dead_letter: bool,
    },
    /// Its time ran out.
    TimedOut,
    /// Its consumer is leaving.
    Released,
    /// It never reached its consumer: it comes again at once, and is no failure.
    Returned,
}

/// What a settlement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// It is remembered, now or before.
    Ok,
    /// The delivery had ended otherwise.
    Stale,
    /// Nobody can tell.
    Unknown,
}

/// What a watch tells of a key of the queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// It was put.
    Put(Entry),
    /// It was deleted, at a revision.
    Deleted(Key, i64),
}

/// What happens to a delivery machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The queue's settings.
    Settings(Settings),
    /// The queue its dead letters go to: name, create revision of its definition, `spec.retention.age`. `None`: there
    /// is no such queue, they are kept beside this one.
    DeadLetters(Option<(Name, i64, Millis)>),
    /// The sidecar's session and until when (monotonic) it is believed alive; `None` when it is not.
    Session(Option<(SessionId, Millis)>),
    /// All there is in [`Delivery::range`] at a revision. Segments may be empty: what they hold is read when it is wanted.
    Snapshot(i64, Vec<Entry>),
    /// Later changes: whole revisions, in their order.
    Changed(Vec<Change>),
    /// A consumer waits for at most this many messages, to have them for this long.
    Receive(Waiter, u32, Millis),
    /// It waits no longer for what is not there: it is served with what is, or with nothing.
    WaitOver(Waiter),
    /// It is gone.
    GiveUp(Waiter),
    /// A delivery ends. Without a ticket nobody waits for the answer.
    Settle(Option<Ticket>, Receipt, Verdict),
    /// A delivery shall last this much longer from now.
    Extend(Ticket, Receipt, Millis),
    /// All deliveries end: the sidecar stops.
    Drain,
    /// A plan came back.
    Done(Tag, Outcome),
    /// Whatever can be done now shall be.
    Pump,
}

/// A message handed out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delivered {
    /// Its segment.
    pub segment: Arc<Segment>,
    /// What settles it; its place in the segment is there.
    pub receipt: Receipt,
    /// When its delivery ends, milliseconds since the Unix epoch; never later than the session is believed.
    pub deadline: Millis,
}

/// What a delivery machine wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Commit the plan, then [`Input::Done`].
    Commit(Tag, Plan),
    /// Give messages to a waiter, which is served with it; none when its wait is over.
    Deliver(Waiter, Vec<Delivered>),
    /// Answer a settlement or an extension.
    Settled(Ticket, Status),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiting {
    waiter: Waiter,
    max: u32,
    visibility: Millis,
}

/// The places that each gets.
type Grants = Vec<(Waiting, Vec<u32>)>;

/// A plan on its way, by the segment it is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Flight {
    Take { claim: ClaimId, grants: Grants, places: Vec<(u32, u32)>, fates: Vec<Fate> },
    Settle { sent: Vec<Pending>, ended: Vec<ClaimId>, fates: Vec<Fate>, burial: Option<i64> },
    Load,
}

/// The delivery of one queue in one sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Delivery {
    queue: Name,
    definition: i64,
    settings: Settings,
    dead_letters: Option<(Name, i64, Millis)>,
    session: Option<(SessionId, Millis)>,
    next: u64,
    synced: bool,
    seen: i64,
    segments: BTreeMap<SegmentAt, segment::State>,
    index: BTreeMap<(u32, SegmentId), SegmentAt>,
    finished: BTreeMap<SegmentAt, Vec<Fate>>,
    /// They, in the order in which they were finished.
    finished_in_turn: VecDeque<SegmentAt>,
    cached: u64,
    /// The segments whose bodies these are.
    bodies: BTreeSet<SegmentAt>,
    /// Segments that wait to be read.
    unread: BTreeSet<SegmentAt>,
    waiters: VecDeque<Waiting>,
    /// Those whose wait is over.
    over: BTreeSet<Waiter>,
    left: BTreeSet<Waiter>,
    /// Plans on their way that store messages and take some of them.
    direct: BTreeMap<Tag, hand_out::Direct>,
    early: Vec<(Option<Ticket>, Receipt, Verdict)>,
    flights: BTreeMap<Tag, (SegmentAt, Flight)>,
    dirty: BTreeSet<SegmentAt>,
    ready: BTreeSet<SegmentAt>,
    due: BTreeSet<(Millis, SegmentAt)>,
    paused: Millis,
}

impl Delivery {
    /// The delivery of a queue that has this create revision of its definition. It numbers claims and segments from
    /// `first` on; no other machine of the session may use those numbers.
    pub fn new(queue: Name, settings: Settings, definition: i64, first: u64) -> Self {
        Self {
            queue,
            definition,
            settings,
            dead_letters: None,
            session: None,
            next: first,
            synced: false,
            seen: 0,
            segments: BTreeMap::new(),
            index: BTreeMap::new(),
            finished: BTreeMap::new(),
            finished_in_turn: VecDeque::new(),
            cached: 0,
            bodies: BTreeSet::new(),
            unread: BTreeSet::new(),
            waiters: VecDeque::new(),
            over: BTreeSet::new(),
            left: BTreeSet::new(),
            direct: BTreeMap::new(),
            early: Vec::new(),
            flights: BTreeMap::new(),
            dirty: BTreeSet::new(),
            ready: BTreeSet::new(),
            due: BTreeSet::new(),
            paused: 0,
        }
    }

    /// When [`Input::Pump`] is due without any other input, on the monotonic clock.
    pub fn wake(&self) -> Option<Millis> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Whether nobody consumes here (looks at every segment): no waiter, no delivery, nothing to settle, no plan under way.
    pub fn idle(&self) -> bool {
        self.waiters.is_empty()
            && self.early.is_empty()
            && self.flights.is_empty()
            && self.direct.is_empty()
            && self.segments.values().all(segment::State::idle)
    }

    /// One step.
    pub fn step(&mut self, input: Input, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Settings(settings) => {
                self.settings = settings;
                self.dirty.extend(self.segments.keys());
            }
            Input::DeadLetters(queue) => self.dead_letters = queue,
            Input::Session(session) => self.session(session, &mut effects),
            Input::Snapshot(revision, entries) => self.snapshot(revision, entries, &mut effects),
            Input::Changed(changes) => self.changed(changes, &mut effects),
            Input::Receive(waiter, max, visibility) => {
                self.waiters.push_back(Waiting { waiter, max: max.max(1), visibility });
            }
            Input::WaitOver(waiter) => {
                // It may have been served in this moment.
                if self.waits(waiter) || self.taking(waiter) {
                    self.over.insert(waiter);
                }
            }
            Input::GiveUp(waiter) => {
                self.over.remove(&waiter);
                let before = self.waiters.len();
                self.waiters.retain(|waiting| waiting.waiter != waiter);
                if self.waiters.len() == before && self.taking(waiter) {
                    self.left.insert(waiter);
                }
            }
            Input::Settle(ticket, receipt, verdict) => self.settle(ticket, receipt, verdict, &mut effects),
            Input::Extend(ticket, receipt, visibility) => {
                let segment = self.segments.get_mut(&receipt.segment);
                let extended = segment.is_some_and(|segment| segment.extend(&receipt, visibility, now));
                self.dirty.insert(receipt.segment);
                effects.push(Effect::Settled(ticket, if extended { Status::Ok } else { Status::Stale }));
            }
            Input::Drain => {
                self.waiters.clear();
                self.over.clear();
                for (at, segment) in &mut self.segments {
                    segment.release_all(*at);
                    self.dirty.insert(*at);
                }
            }
            Input::Done(tag, outcome) => {
                if let Some((at, flight)) = self.flights.remove(&tag) {
                    self.done(at, flight, outcome, now, &mut effects);
                } else if let Some(direct) = self.direct.remove(&tag) {
                    self.stored(direct, outcome, now, &mut effects);
                }
            }
            Input::Pump => self.pump(now, &mut effects),
        }
        effects
    }

    fn waits(&self, waiter: Waiter) -> bool {
        self.waiters.iter().any(|waiting| waiting.waiter == waiter)
    }

    fn taking(&self, waiter: Waiter) -> bool {
        let direct = self.direct.values().map(|direct| &direct.take);
        self.flights.values().map(|(_, flight)| flight).chain(direct).any(|flight| match flight {
            Flight::Take { grants, .. } => grants.iter().any(|(waiting, _)| waiting.waiter == waiter),
            _ => false,
        })
    }

    /// With another session every delivery of the old one is over: its claims go with its lease.
    fn session(&mut self, session: Option<(SessionId, Millis)>, effects: &mut Vec<Effect>) {
        let id = |session: &Option<(SessionId, Millis)>| session.as_ref().map(|(id, _)| id.clone());
        if id(&self.session) != id(&session) {
            for (at, segment) in &mut self.segments {
                let stale = segment.forget_deliveries();
                effects.extend(stale.into_iter().map(|ticket| Effect::Settled(ticket, Status::Stale)));
                self.dirty.insert(*at);
            }
        }
        self.session = session;
    }

    fn settle(
        &mut self,
        ticket: Option<Ticket>,
        receipt: Receipt,
        verdict: Verdict,
        effects: &mut Vec<Effect>,
    ) {
        if !self.synced {
            self.early.push((ticket, receipt, verdict));
        } else if let Some(segment) = self.segments.get_mut(&receipt.segment) {
            self.dirty.insert(receipt.segment);
            segment.push(Pending { ticket, receipt, verdict });
        } else {
            self.settle_finished(Pending { ticket, receipt, verdict }, effects);
        }
    }

    /// Answers for a segment that is gone.
    fn settle_finished(&self, pending: Pending, effects: &mut Vec<Effect>) {
        let fates = self.finished.get(&pending.receipt.segment);
        let status = pending.late(fates.map(Vec::as_slice).unwrap_or_default());
        effects.extend(pending.ticket.map(|ticket| Effect::Settled(ticket, status)));
    }

    fn pump(&mut self, now: Now, effects: &mut Vec<Effect>) {
        while let Some((at, segment)) = self.due.first().copied()
            && at <= now.monotonic
        {
            self.due.pop_first();
            self.dirty.insert(segment);
        }
        for at in std::mem::take(&mut self.dirty) {
            self.tend(at, now, effects);
        }
        self.hand_out(now, effects);
        self.send_away(now, effects);
        self.make_room();
        self.load(effects);
    }

    /// Settles what is to be settled of a segment, and notes what of it is ready and when to look again.
    fn tend(&mut self, at: SegmentAt, now: Now, effects: &mut Vec<Effect>) {
        let Some(segment) = self.segments.get_mut(&at) else { return };
        self.ready.remove(&at);
        if let Some(wake) = segment.wake.take() {
            self.due.remove(&(wake, at));
        }
        if segment.busy {
            return;
        }
        let me = self.session.as_ref().map(|(id, _)| id);
        match segment.tend(at, &self.settings, me, now) {
            Tended::Settle(settling, answers) => {
                effects.extend(answers.into_iter().map(|(ticket, status)| Effect::Settled(ticket, status)));
                if let Some(effect) = self.commit_settlement(at, settling, now) {
                    effects.push(effect);
                }
            }
            Tended::Load(answers) => {
                effects.extend(answers.into_iter().map(|(ticket, status)| Effect::Settled(ticket, status)));
                self.unread.insert(at);
            }
            Tended::Rest { answers, ready, wake } => {
                effects.extend(answers.into_iter().map(|(ticket, status)| Effect::Settled(ticket, status)));
                if ready {
                    self.ready.insert(at);
                }
                self.arm(at, wake);
            }
        }
    }

    fn arm(&mut self, at: SegmentAt, wake: Option<Millis>) {
        let Some(segment) = self.segments.get_mut(&at) else { return };
        if let Some(old) = segment.wake.take() {
            self.due.remove(&(old, at));
        }
        if let Some(wake) = wake {
            segment.wake = Some(wake);
            self.due.insert((wake, at));
        }
    }

    fn fly(&mut self, at: SegmentAt, flight: Flight, plan: Plan) -> Effect {
        let tag = self.next;
        self.next += 1;
        self.flights.insert(tag, (at, flight));
        Effect::Commit(tag, plan)
    }

    fn commit_settlement(&mut self, at: SegmentAt, settling: segment::Settling, now: Now) -> Option<Effect> {
        let burial = self.burial(&settling);
        let segment = self.segments.get_mut(&at)?;
        let location = segment.location(&self.queue, at);
        let session = self.session.as_ref().map(|(id, _)| id)?;
        let plan = segment.settlement(&location, session, &settling, &burial, now, at);
        // Without space in etcd only deletes go: the rest waits for them, or for space.
        if now.monotonic < segment.not_until && !plan.deletes_only() {
            segment.unsend(settling.sent);
            let wake = segment.not_until;
            self.arm(at, Some(wake));
            return None;
        }
        segment.busy = true;
        let burial = match burial {
            Burial::Queue(append) if !settling.dead.is_empty() => Some(append.definition),
            _ => None,
        };
        let segment::Settling { sent, ended, fates, .. } = settling;
        Some(self.fly(at, Flight::Settle { sent, ended, fates, burial }, plan))
    }

    fn burial(&mut self, settling: &segment::Settling) -> Burial {
        let (Some((queue, definition, retention_age)), Some((session, _)), false) =
            (&self.dead_letters, &self.session, settling.dead.is_empty())
        else {
            return Burial::Beside(self.settings.dead_letter_retention);
        };
        let segment = SegmentId {
            session: session.clone(),
            number: self.next,
            messages: settling.dead.len() as u32,
            bytes: settling.dead_bytes as u32,
        };
        self.next += 1;
        Burial::Queue(Append {
            at: Location { queue: queue.clone(), partition: 0, segment },
            definition: *definition,
            session: session.clone(),
            retention_age: *retention_age,
        })
    }

    /// Forgets a segment but for its fates: those given, else those known.
    fn finish(&mut self, at: SegmentAt, fates: Vec<Fate>, effects: &mut Vec<Effect>) {
        self.forget_body(at);
        let Some(segment) = self.segments.remove(&at) else { return };
        self.unread.remove(&at);
        self.index.remove(&(at.partition, segment.id));
        self.ready.remove(&at);
        self.dirty.remove(&at);
        if let Some(wake) = segment.wake {
            self.due.remove(&(wake, at));
        }
        self.finished.insert(at, if fates.is_empty() { segment.fates } else { fates });
        self.finished_in_turn.push_back(at);
        for pending in segment.pending {
            self.settle_finished(pending, effects);
        }
        if self.finished_in_turn.len() > REMEMBERED
            && let Some(first) = self.finished_in_turn.pop_front()
        {
            self.finished.remove(&first);
        }
    }

    /// What to watch.
    pub fn range(&self) -> Range {
        Range::Live(self.queue.clone())
    }
}
