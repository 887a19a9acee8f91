//! One etcd, sidecars that publish or consume on the real machines, and everything that can go wrong between them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use concordat_protocol::{
    Definition, Key, Lease, Millis, Name, Now, Plan, Record, SessionId, Write,
    plan::Answer,
    queue::{
        Message, Mode, OnFull, Ordering, Outcome, Segment, Settings,
        delivery::{self, Delivered, Delivery, Status, Verdict},
        invariant::{History, Ledger},
        location::{Receipt, definition, offset},
        publish::{self, Offer, Published, Publisher},
    },
};

use crate::store::{Store, entries};

/// A change made on purpose to what the machines say or hear, to see it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    /// An old receipt settles the delivery that is under way.
    ReceiptWithoutDelivery,
    /// Deliveries are counted when they end, not when they begin.
    CountedAfter,
    /// A take does not compare the progress it follows.
    TakeUnguarded,
    /// A settlement does not compare the progress it follows: two that end parts of a segment at once each believe
    /// that the other one will finish it.
    SettleUnguarded,
    /// A settlement does not compare the claims it ends.
    SettleWithoutClaim,
    /// The dead letter is put by a plan of its own, after the message is finished.
    BuriedLater,
    /// A publish does not compare the definition.
    DefinitionUnguarded,
    /// A publish does not compare the records of what was stored before.
    DedupUnguarded,
    /// A consumer's sidecar is not told of claims that end.
    DeafToClaims,
}

/// How much of everything there may be.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) publishers: usize,
    pub(crate) consumers: usize,
    /// Messages offered by each publisher in one call.
    pub(crate) messages: u8,
    pub(crate) receives: u8,
    pub(crate) max: u32,
    pub(crate) nacks: u8,
    pub(crate) timeouts: u8,
    pub(crate) losses: u8,
    pub(crate) crashes: u8,
    /// Plans whose outcome is not known while they may still land.
    pub(crate) late: u8,
    /// Times a publisher asks again after an answer that was no success.
    pub(crate) repeats: u8,
    pub(crate) undefined: u8,
    pub(crate) max_deliveries: u32,
    /// Begin with this many messages stored in one segment.
    pub(crate) stored: u8,
    pub(crate) hang_ups: u8,
    /// Each consumer has its sidecar in common with the publisher of its number, and waits from the beginning.
    pub(crate) together: bool,
    /// Whether answers and changes are heard at once, which leaves fewer orders to try.
    pub(crate) prompt: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            publishers: 0,
            consumers: 0,
            messages: 1,
            receives: 3,
            max: 1,
            nacks: 0,
            timeouts: 0,
            losses: 0,
            crashes: 0,
            late: 0,
            repeats: 0,
            undefined: 0,
            max_deliveries: 3,
            stored: 0,
            hang_ups: 0,
            together: false,
            prompt: false,
        }
    }
}

pub(crate) struct World {
    pub(crate) bounds: Bounds,
    pub(crate) planted: Planted,
}

/// A plan on its way: the landing and the answer are two steps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sent {
    Flying(Vec<Plan>),
    Landed(Answer),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Producer {
    pub(crate) machine: Publisher,
    pub(crate) lease: i64,
    pub(crate) sent: BTreeMap<u64, Sent>,
    /// Plans of which the consumer beside it takes messages: its tag for each.
    pub(crate) direct: BTreeMap<u64, u64>,
    pub(crate) bodies: Vec<u8>,
    /// Whether some attempt may have been applied.
    pub(crate) doubtful: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Consumer {
    pub(crate) machine: Delivery,
    pub(crate) session: SessionId,
    pub(crate) lease: i64,
    /// Its time: it passes when a plan was lost, which is tried again after a while, and when a delivery times out.
    pub(crate) clock: Millis,
    pub(crate) seen: i64,
    pub(crate) waiting: bool,
    pub(crate) sent: BTreeMap<u64, Sent>,
    /// Receipts whose delivery is under way as far as the consumer knows.
    pub(crate) open: Vec<(Receipt, u8)>,
    /// Receipts that it thinks are over.
    pub(crate) old: BTreeSet<(Receipt, u8)>,
}

#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) etcd: Store,
    pub(crate) producers: Vec<Producer>,
    pub(crate) consumers: Vec<Consumer>,
    pub(crate) adrift: Vec<Plan>,
    pub(crate) history: History,
    pub(crate) ledger: Ledger,
    pub(crate) spent: Spent,
    pub(crate) lives: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Spent {
    pub(crate) receives: u8,
    pub(crate) nacks: u8,
    pub(crate) timeouts: u8,
    pub(crate) losses: u8,
    pub(crate) crashes: u8,
    pub(crate) late: u8,
    pub(crate) repeats: u8,
    pub(crate) undefined: u8,
    pub(crate) hang_ups: u8,
}

// The ledger follows from etcd's events: it tells no states apart that those do not.
impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.etcd, &self.producers, &self.consumers, &self.adrift, &self.history, &self.spent).hash(state);
    }
}
impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        (&self.etcd, &self.producers, &self.consumers, &self.adrift, &self.history, &self.spent)
            == (&other.etcd, &other.producers, &other.consumers, &other.adrift, &other.history, &other.spent)
    }
}

pub(crate) fn queue() -> Name {
    "q".into()
}

/// Longer than anything is put off for that is tried again.
pub(crate) const MOMENT: Millis = 1_000;
/// Longer than a delivery lasts.
pub(crate) const LONG: Millis = 100_000;
const NEVER: u64 = 1 << 40;
pub(crate) const NACK: u64 = 1 << 32;

impl World {
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            mode: Mode::WorkQueue,
            partitions: 1,
            ordering: Ordering::None,
            visibility: 30_000,
            max_deliveries: self.bounds.max_deliveries,
            backoff: vec![],
            dead_letter_queue: None,
            dead_letter_retention: NEVER,
            retention_age: NEVER,
            retention_bytes: 1 << 30,
            on_full: OnFull::Refuse,
            max_message_bytes: 1 << 20,
            dedup_window: NEVER,
        }
    }

    pub(crate) fn start(&self) -> State {
        let mut state = State {
            etcd: Store::with_history(),
            producers: vec![],
            consumers: vec![],
            adrift: vec![],
            history: History::default(),
            ledger: Ledger::new(0),
            spent: Spent::default(),
            lives: 0,
        };
        let settings = concordat_protocol::Settings::Queue(self.settings());
        let record = Definition { uid: "u".into(), generation: 1, settings };
        state.land(&Plan::new().put(definition(&queue()), record, Lease::Forever));
        for index in 0..self.bounds.publishers {
            let (session, lease) = state.open_session();
            let machine = Publisher::new(queue(), self.settings(), 2, session, 1);
            let bodies = (0..self.bounds.messages).map(|message| (index as u8) * 10 + message).collect();
            let (sent, direct) = (BTreeMap::new(), BTreeMap::new());
            state.producers.push(Producer { machine, lease, sent, direct, bodies, doubtful: false });
        }
        if self.bounds.stored > 0 {
            let (session, _) = state.open_session();
            let mut machine = Publisher::new(queue(), self.settings(), 2, session, 1);
            let offers = (0..self.bounds.stored).map(|body| offer(100 + body, false)).collect();
            machine.step(publish::Input::Offer(0, offers));
            for effect in machine.step(publish::Input::Pump) {
                let publish::Effect::Commit(_, plan) = effect else { continue };
                let answer = state.land(&plan);
                for place in 0..self.bounds.stored {
                    let body = vec![100 + place];
                    state.history.attempted.insert(body.clone(), 1);
                    let at = offset(answer.revision, u32::from(place));
                    state.history.stored.entry(body).or_default().insert((0, at));
                }
            }
        }
        for _ in 0..self.bounds.consumers {
            let consumer = self.consumer(&mut state);
            state.consumers.push(consumer);
        }
        for index in 0..self.bounds.publishers {
            if self.bounds.together {
                self.receive(&mut state, index);
                let session = state.consumers[index].session.clone();
                state.producers[index].machine.step(publish::Input::Session(session));
            }
            self.offer(&mut state, index);
        }
        state
    }

    pub(crate) fn consumer(&self, state: &mut State) -> Consumer {
        let (session, lease) = state.open_session();
        let mut machine = Delivery::new(queue(), self.settings(), 2, state.lives as u64 * 1000);
        let mut entries = entries(&state.etcd, &machine.range());
        // As a listing has them.
        for entry in &mut entries {
            if let Record::Segment(segment) = &mut entry.record {
                *segment = Segment::default();
            }
        }
        let revision = state.etcd.revision();
        machine.step(delivery::Input::Session(Some((session.clone(), u64::MAX))), now(MOMENT));
        machine.step(delivery::Input::Snapshot(revision, entries), now(MOMENT));
        Consumer {
            machine,
            session,
            lease,
            clock: MOMENT,
            seen: revision,
            waiting: false,
            sent: BTreeMap::new(),
            open: vec![],
            old: BTreeSet::new(),
        }
    }

    pub(crate) fn offer(&self, state: &mut State, index: usize) {
        let producer = &mut state.producers[index];
        let once = self.bounds.repeats > 0;
        let offers = producer.bodies.iter().map(|body| offer(*body, once)).collect();
        for body in &producer.bodies {
            *state.history.attempted.entry(vec![*body]).or_default() += 1;
            if once {
                state.history.once.insert(vec![*body]);
            }
        }
        let mut effects = producer.machine.step(publish::Input::Offer(0, offers));
        effects.extend(producer.machine.step(publish::Input::Pump));
        self.published(state, index, effects);
    }

    pub(crate) fn published(&self, state: &mut State, index: usize, effects: Vec<publish::Effect>) {
        for effect in effects {
            match effect {
                publish::Effect::Commit(tag, plan) => {
                    let plan = self.join(state, index, tag, plan);
                    let sent = Sent::Flying(vec![self.plant(plan)]);
                    state.producers[index].sent.insert(tag, sent);
                }
                publish::Effect::Reply(_, results) => {
                    let producer = &mut state.producers[index];
                    for (body, result) in producer.bodies.clone().into_iter().zip(results) {
                        let body = vec![body];
                        match result {
                            Published::Stored { partition, revision, index, .. } => {
                                let at = (partition, offset(revision, index));
                                state.history.stored.entry(body).or_default().insert(at);
                            }
                            Published::Unknown => producer.doubtful = true,
                            _ if producer.doubtful => {}
                            _ => {
                                state.history.refused.insert(body);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Lets the consumer beside a publisher take of what this stores.
    fn join(&self, state: &mut State, index: usize, tag: u64, plan: Plan) -> Plan {
        if !self.bounds.together {
            return plan;
        }
        let consumer = &mut state.consumers[index];
        let (direct, plan, effects) = consumer.machine.join(plan, now(consumer.clock));
        state.producers[index].direct.extend(direct.map(|direct| (tag, direct)));
        self.follow(state, index, effects);
        plan
    }

    /// A publisher hears of its plan, and the consumer beside it.
    pub(crate) fn answered(&self, state: &mut State, index: usize, tag: u64, outcome: Outcome) {
        if let Some(direct) = state.producers[index].direct.remove(&tag) {
            self.consumed(state, index, delivery::Input::Done(direct, outcome.clone()));
        }
        let effects = state.producers[index].machine.step(publish::Input::Done(tag, outcome));
        self.published(state, index, effects);
    }

    pub(crate) fn receive(&self, state: &mut State, index: usize) {
        state.spent.receives += 1;
        state.consumers[index].waiting = true;
        let input = delivery::Input::Receive(index as u64, self.bounds.max, 30_000);
        self.consumed(state, index, input);
    }

    pub(crate) fn consumed(&self, state: &mut State, index: usize, input: delivery::Input) {
        let consumer = &mut state.consumers[index];
        let now = now(consumer.clock);
        if matches!(input, delivery::Input::Done(_, Outcome::Unknown)) {
            consumer.clock += MOMENT;
        }
        let mut effects = consumer.machine.step(input, now);
        effects.extend(consumer.machine.step(delivery::Input::Pump, now));
        self.follow(state, index, effects);
    }

    fn follow(&self, state: &mut State, index: usize, effects: Vec<delivery::Effect>) {
        let consumer = &mut state.consumers[index];
        for effect in effects {
            match effect {
                delivery::Effect::Commit(tag, plan) => {
                    let plans = self.split(self.plant(plan));
                    consumer.sent.insert(tag, Sent::Flying(plans));
                }
                delivery::Effect::Deliver(_, messages) => {
                    consumer.waiting = false;
                    for Delivered { segment, receipt, .. } in messages {
                        let body = segment.messages[receipt.place as usize].body.clone();
                        let at = offset(receipt.segment.revision, receipt.place);
                        let delivery = (body.clone(), at, receipt.delivery);
                        *state.history.delivered.entry(delivery).or_default() += 1;
                        consumer.open.push((receipt, body[0]));
                    }
                }
                delivery::Effect::Settled(ticket, Status::Ok) if ticket < NACK => {
                    state.history.acked.insert((vec![(ticket % 256) as u8], (ticket / 256) as u32));
                }
                delivery::Effect::Settled(..) => {}
            }
        }
    }

    /// Takes a compare or a part away from a plan.
    fn plant(&self, mut plan: Plan) -> Plan {
        let takes = plan.writes.iter().any(|write| matches!(write, Write::Put(Key::Claim { .. }, ..)));
        let publishes = plan.writes.iter().any(|write| matches!(write, Write::Put(_, Record::Segment(_), _)));
        let settles = !takes && !publishes && !plan.writes.is_empty();
        let planted = self.planted;
        plan.compares.retain(|compare| {
            let dropped = match compare.key {
                Key::Progress { .. } => {
                    takes && planted == Planted::TakeUnguarded
                        || settles && planted == Planted::SettleUnguarded
                }
                Key::Claim { .. } => settles && planted == Planted::SettleWithoutClaim,
                Key::Definition { .. } => publishes && planted == Planted::DefinitionUnguarded,
                Key::Dedup { .. } => publishes && planted == Planted::DedupUnguarded,
                _ => false,
            };
            !dropped
        });
        if takes && planted == Planted::CountedAfter {
            plan.writes.retain(|write| !matches!(write, Write::Put(Key::Progress { .. }, ..)));
        }
        plan
    }

    fn split(&self, mut plan: Plan) -> Vec<Plan> {
        let dead = |write: &Write| matches!(write, Write::Put(Key::Dead { .. }, ..));
        if self.planted != Planted::BuriedLater || !plan.writes.iter().any(dead) {
            return vec![plan];
        }
        let (later, now) = plan.writes.into_iter().partition(dead);
        plan.writes = now;
        vec![plan, Plan { writes: later, ..Plan::default() }]
    }

    fn receipt(&self, receipt: Receipt, consumer: &Consumer) -> Receipt {
        let current = consumer.open.iter().find(|(open, _)| open.place == receipt.place && *open != receipt);
        match current {
            Some((current, _)) if self.planted == Planted::ReceiptWithoutDelivery => current.clone(),
            _ => receipt,
        }
    }

    pub(crate) fn settle(
        &self,
        state: &mut State,
        index: usize,
        (receipt, body): (Receipt, u8),
        verdict: Verdict,
    ) {
        if verdict == Verdict::Ack {
            state.history.ack_asked.insert((vec![body], receipt.delivery));
        }
        let ack = if verdict == Verdict::Ack { 0 } else { NACK };
        let ticket = ack + u64::from(body) + 256 * u64::from(receipt.delivery);
        let receipt = self.receipt(receipt, &state.consumers[index]);
        self.consumed(state, index, delivery::Input::Settle(Some(ticket), receipt, verdict));
    }
}

fn now(clock: Millis) -> Now {
    Now { monotonic: clock, unix: clock }
}

fn offer(body: u8, once: bool) -> Offer {
    let message = Message { body: vec![body], expires: NEVER, ..Message::default() };
    Offer { message, not_before: 0, producer: once.then(|| format!("p/{body}").into()) }
}
