//! What must hold of queues, checked in models, in property tests and on recorded histories.
//!
//! [`Ledger`] replays what etcd went through (a watch from revision 1), [`History`] is what clients asked and were
//! told. A message is known by its body, which tests make unique.

use std::collections::{BTreeMap, BTreeSet};

use super::{Fate, Stage, delivery::Change, location::offset};
use crate::{Entry, Key, Kind, Millis, Name, Record};

/// A message's body.
pub type Body = Vec<u8>;
/// What is wrong, for people.
pub type Violation = String;

/// What clients asked and were told. Sets, not a sequence: the order is the ledger's.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct History {
    /// How often each message was sent to be published, answered or not.
    pub attempted: BTreeMap<Body, u32>,
    /// Those of them that were always sent with their producer's name.
    pub once: BTreeSet<Body>,
    /// Those answered as stored: partition and offset.
    pub stored: BTreeMap<Body, BTreeSet<(u32, u64)>>,
    /// Those of which every attempt was answered by a definite refusal.
    pub refused: BTreeSet<Body>,
    /// How often each delivery (body, offset, number) reached a consumer.
    pub delivered: BTreeMap<(Body, u64, u32), u32>,
    /// Deliveries that a consumer asked to acknowledge.
    pub ack_asked: BTreeSet<(Body, u32)>,
    /// Deliveries whose acknowledgement was answered `ok`.
    pub acked: BTreeSet<(Body, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Tracked {
    queue: Name,
    partition: u32,
    revision: i64,
    messages: Vec<(Body, Millis)>,
    fates: Vec<Fate>,
}

/// How many messages of each kind there are at one revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// Ever stored.
    pub published: usize,
    /// Waiting, delayed ones too, and those whose claim was lost.
    pub ready: usize,
    /// In the hands of a consumer.
    pub in_flight: usize,
    /// Acknowledged.
    pub acknowledged: usize,
    /// Given up: dead letters and expired.
    pub given_up: usize,
}

/// What etcd went through.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ledger {
    horizon: Millis,
    definitions: BTreeSet<Name>,
    segments: BTreeMap<Key, Tracked>,
    claims: BTreeMap<Key, Vec<(u32, u32)>>,
    dead: BTreeMap<Key, Body>,
    ended: BTreeMap<(Name, Body), Vec<Fate>>,
    offsets: BTreeMap<(Name, u32, u64), Body>,
    /// How often each was stored again out of the dead letters.
    redriven: BTreeMap<(Name, Body), u32>,
    /// What was wrong.
    pub violations: Vec<Violation>,
}

impl Ledger {
    /// An empty ledger. Messages that expire before `horizon` (Unix milliseconds) may be gone without a trace.
    pub fn new(horizon: Millis) -> Self {
        Self { horizon, ..Self::default() }
    }

    /// The changes of one revision.
    pub fn apply(&mut self, revision: i64, changes: &[Change]) {
        let live = self.claims.clone();
        let now = Revision::of(changes);
        for change in changes {
            if let Change::Put(entry) = change {
                self.put_segment(entry, &now, revision);
            }
        }
        for change in changes {
            match change {
                Change::Put(entry) => self.put(entry, &live, &now, revision),
                Change::Deleted(key, _) => self.deleted(key, &live, &now, revision),
            }
        }
        for (key, places) in now.claims {
            let Some(tracked) = self.segments.get(&segment_key(&key)) else { continue };
            if let Some((place, delivery)) = places.iter().find(|(place, delivery)| {
                let fate = tracked.fates.get(*place as usize);
                !fate.is_some_and(|fate| fate.stage == Stage::Delivered && fate.deliveries == *delivery)
            }) {
                let text = format!("q3 at {revision}: place {place} handed out as {delivery}, not counted");
                self.violations.push(text);
            }
        }
    }

    fn put_segment(&mut self, entry: &Entry, now: &Revision, revision: i64) {
        let (Key::Segment { queue, partition, .. }, Record::Segment(segment)) = (&entry.key, &entry.record)
        else {
            return;
        };
        if !self.definitions.contains(queue) {
            self.violations.push(format!("q8 at {revision}: written to {queue}, which is not defined"));
        }
        let messages: Vec<_> =
            segment.messages.iter().map(|message| (message.body.clone(), message.expires)).collect();
        for ((body, _), place) in messages.iter().zip(0..) {
            let at = (queue.clone(), *partition, offset(revision, place));
            if now.deleted.iter().any(|key| self.dead.get(key) == Some(body)) {
                *self.redriven.entry((queue.clone(), body.clone())).or_default() += 1;
            }
            if self.offsets.insert(at, body.clone()).is_some() {
                self.violations.push(format!("q4 at {revision}: two messages at one offset"));
            }
        }
        let fates = vec![Fate::default(); messages.len()];
        let tracked = Tracked { queue: queue.clone(), partition: *partition, revision, messages, fates };
        self.segments.insert(entry.key.clone(), tracked);
    }

    fn put(&mut self, entry: &Entry, live: &BTreeMap<Key, Vec<(u32, u32)>>, now: &Revision, revision: i64) {
        match (&entry.key, &entry.record) {
            (Key::Definition { kind: Kind::Queue, name }, _) => {
                self.definitions.insert(name.clone());
            }
            (key, Record::Claim(claim)) => {
                self.claims.insert(key.clone(), claim.places.clone());
            }
            (key, Record::Dead(letter)) => {
                self.dead.insert(key.clone(), letter.message.body.clone());
                let place = Place::of_dead(key);
                if !place.is_some_and(|place| now.finishes(&place, self.segments.get(&place.segment))) {
                    self.violations
                        .push(format!("q6 at {revision}: a dead letter of a message not given up"));
                }
            }
            (key, Record::Progress(progress)) => {
                let segment = segment_key(key);
                let Some(mut tracked) = self.segments.remove(&segment) else { return };
                let fates = tracked.fates.iter().zip(&progress.fates).zip(0..);
                for ((old, new), place) in fates {
                    let named = named(live, &segment, place, old.deliveries);
                    let buried = self.buried(&tracked, &segment, place, now);
                    if let Some(why) = wrong_turn(old, new, named, buried) {
                        self.violations.push(format!("at {revision}, place {place}: {why}"));
                    }
                }
                tracked.fates.clone_from(&progress.fates);
                if tracked.fates.iter().all(Fate::finished) {
                    self.violations
                        .push(format!("q6 at {revision}: a segment stays with nothing left in it"));
                }
                self.segments.insert(segment, tracked);
            }
            _ => {}
        }
    }

    fn deleted(&mut self, key: &Key, live: &BTreeMap<Key, Vec<(u32, u32)>>, now: &Revision, revision: i64) {
        match key {
            Key::Definition { kind: Kind::Queue, name } => {
                self.definitions.remove(name);
            }
            Key::Claim { .. } => {
                self.claims.remove(key);
            }
            Key::Dead { .. } => {
                self.dead.remove(key);
            }
            Key::Segment { queue, .. } => {
                let Some(tracked) = self.segments.remove(key) else { return };
                for ((fate, (body, _)), place) in tracked.fates.iter().zip(&tracked.messages).zip(0..) {
                    let stage = if fate.finished() {
                        fate.stage
                    } else if self.buried(&tracked, key, place, now) {
                        Stage::GivenUp
                    } else if fate.stage == Stage::Delivered && named(live, key, place, fate.deliveries) {
                        Stage::Acknowledged
                    } else {
                        if self.definitions.contains(queue) {
                            self.violations
                                .push(format!("q1 at {revision}: place {place} is gone unfinished"));
                        }
                        Stage::GivenUp
                    };
                    self.ended
                        .entry((queue.clone(), body.clone()))
                        .or_default()
                        .push(Fate { stage, ..fate.clone() });
                }
            }
            _ => {}
        }
    }

    /// Whether a message given up in this revision went where it should: to the dead letters, or it had expired.
    fn buried(&self, tracked: &Tracked, segment: &Key, place: u32, now: &Revision) -> bool {
        let (body, expires) = &tracked.messages[place as usize];
        *expires < self.horizon
            || now.published.contains(body)
            || now.dead.contains(&Place { segment: segment.clone(), place })
    }

    /// Counts, of one queue.
    pub fn account(&self, queue: &Name) -> Account {
        let published = self.offsets.keys().filter(|(of, ..)| of == queue).count();
        let mut account = Account { published, ..Account::default() };
        for (key, tracked) in self.segments.iter().filter(|(_, tracked)| tracked.queue == *queue) {
            for (fate, place) in tracked.fates.iter().zip(0..) {
                match fate.stage {
                    Stage::Acknowledged => account.acknowledged += 1,
                    Stage::GivenUp => account.given_up += 1,
                    Stage::Delivered if named(&self.claims, key, place, fate.deliveries) => {
                        account.in_flight += 1;
                    }
                    Stage::Waiting | Stage::Delivered => account.ready += 1,
                }
            }
        }
        let ended = self.ended.iter().filter(|((of, _), _)| of == queue).flat_map(|(_, fates)| fates);
        let acknowledged = ended.clone().filter(|fate| fate.stage == Stage::Acknowledged).count();
        account.acknowledged += acknowledged;
        account.given_up += ended.count() - acknowledged;
        account
    }

    /// Every message body there is or was, with where it stands.
    fn standing(&self) -> BTreeMap<&Body, Vec<&Fate>> {
        let mut standing: BTreeMap<&Body, Vec<&Fate>> = BTreeMap::new();
        for tracked in self.segments.values() {
            for ((body, _), fate) in tracked.messages.iter().zip(&tracked.fates) {
                standing.entry(body).or_default().push(fate);
            }
        }
        for ((_, body), fates) in &self.ended {
            standing.entry(body).or_default().extend(fates);
        }
        standing
    }
}

/// Q1: a message answered as stored is there, or acknowledged at a consumer's wish, or given up by the rules.
pub fn q1_no_loss(history: &History, ledger: &Ledger) -> Result<(), Violation> {
    let standing = ledger.standing();
    for body in history.stored.keys() {
        let Some(fates) = standing.get(body) else { return Err(format!("q1: {body:?} is lost")) };
        let asked = history.ack_asked.iter().any(|(of, _)| of == body);
        if fates.iter().any(|fate| fate.stage == Stage::Acknowledged) && !asked {
            return Err(format!("q1: {body:?} is acknowledged, and nobody asked for it"));
        }
    }
    Ok(())
}

/// Q2: what is stored or delivered was sent.
pub fn q2_no_invention(history: &History, ledger: &Ledger) -> Result<(), Violation> {
    let delivered = history.delivered.keys().map(|(body, ..)| body);
    match delivered.chain(ledger.standing().into_keys()).find(|body| !history.attempted.contains_key(*body)) {
        Some(body) => Err(format!("q2: {body:?} was never sent")),
        None => Ok(()),
    }
}

/// Q3: a delivery reaches one consumer, once, and no message reaches one more than `max_deliveries` times; what is sent with its
/// producer's name is stored once, anything else at most as often as it was sent.
pub fn q3_bounded_duplicates(
    history: &History,
    ledger: &Ledger,
    max_deliveries: u32,
) -> Result<(), Violation> {
    let mut came: BTreeMap<(&Body, u64), u32> = BTreeMap::new();
    for ((body, offset, delivery), times) in &history.delivered {
        let all = came.entry((body, *offset)).or_default();
        *all += 1;
        if *times > 1 || *all > max_deliveries {
            return Err(format!("q3: delivery {delivery} of {body:?}, its {all}th, came {times} times"));
        }
    }
    let mut stored: BTreeMap<(&Name, &Body), u32> = BTreeMap::new();
    for ((queue, ..), body) in &ledger.offsets {
        *stored.entry((queue, body)).or_default() += 1;
    }
    for ((queue, body), times) in stored {
        let redriven = ledger.redriven.get(&(queue.clone(), body.clone())).copied().unwrap_or(0);
        let times = times - redriven;
        let once = history.once.contains(body);
        let most = if once { 1 } else { history.attempted.get(body).copied().unwrap_or(0) };
        if times > most {
            return Err(format!("q3: {body:?} is stored {times} times"));
        }
    }
    Ok(())
}

/// Q4: the answered offset of a message is where it is.
pub fn q4_offsets(history: &History, ledger: &Ledger, queue: &Name) -> Result<(), Violation> {
    for (body, offsets) in &history.stored {
        for (partition, at) in offsets {
            if ledger.offsets.get(&(queue.clone(), *partition, *at)) != Some(body) {
                return Err(format!("q4: {body:?} is not at {partition}/{at}"));
            }
        }
    }
    Ok(())
}

/// Q3: what was acknowledged with `ok` is finished so, by that very delivery.
pub fn q3_acked_stays(history: &History, ledger: &Ledger) -> Result<(), Violation> {
    let standing = ledger.standing();
    let acknowledged = |body: &Body, delivery: u32| {
        let fates = standing.get(body).into_iter().flatten();
        fates.into_iter().any(|fate| fate.stage == Stage::Acknowledged && fate.deliveries == delivery)
    };
    match history.acked.iter().find(|(body, delivery)| !acknowledged(body, *delivery)) {
        Some((body, delivery)) => Err(format!("q3: delivery {delivery} of {body:?} did not finish it")),
        None => Ok(()),
    }
}

/// Q6: at one revision every message is counted once.
pub fn q6_accounting(ledger: &Ledger, queue: &Name) -> Result<(), Violation> {
    let Account { published, ready, in_flight, acknowledged, given_up } = ledger.account(queue);
    if published == ready + in_flight + acknowledged + given_up {
        return Ok(());
    }
    Err(format!("q6: {:?}", ledger.account(queue)))
}

/// Q8: a refused publish leaves nothing behind.
pub fn q8_backpressure(history: &History, ledger: &Ledger) -> Result<(), Violation> {
    match ledger.offsets.values().find(|body| history.refused.contains(*body)) {
        Some(body) => Err(format!("q8: {body:?} was refused, and is stored")),
        None => Ok(()),
    }
}

/// All of the above and what the ledger saw on the way.
pub fn all(history: &History, ledger: &Ledger, queue: &Name, max_deliveries: u32) -> Result<(), Violation> {
    if let Some(violation) = ledger.violations.first() {
        return Err(violation.clone());
    }
    q1_no_loss(history, ledger)?;
    q2_no_invention(history, ledger)?;
    q3_bounded_duplicates(history, ledger, max_deliveries)?;
    q3_acked_stays(history, ledger)?;
    q4_offsets(history, ledger, queue)?;
    q6_accounting(ledger, queue)?;
    q8_backpressure(history, ledger)
}

/// Why a message may not turn from one fate to another; `named`: a claim that lived before named its delivery,
/// `buried`: it is in the dead letters from this revision on, or may be gone.
fn wrong_turn(old: &Fate, new: &Fate, named: bool, buried: bool) -> Option<&'static str> {
    use Stage::{Acknowledged, Delivered, GivenUp, Waiting};
    if old.finished() {
        return (old != new).then_some("q3: a finished message changed");
    }
    match (old.stage, new.stage) {
        (Delivered, Delivered) if old.deliveries == new.deliveries => None,
        (_, Delivered) if new.deliveries != old.deliveries + 1 => Some("q3: a delivery is not counted"),
        (Delivered, Delivered) if named => Some("q3: handed out while it is in delivery"),
        (_, Delivered) => None,
        (Waiting, Acknowledged) => Some("q3: acknowledged and not in delivery"),
        (Delivered, Acknowledged | Waiting) if !named => Some("q3: settled by one who had lost it"),
        (Delivered, Waiting) if new.deliveries + 1 < old.deliveries => Some("q3: deliveries forgotten"),
        (Waiting, Waiting) if old.deliveries != new.deliveries => Some("q3: deliveries forgotten"),
        (_, GivenUp) if !buried => Some("q6: given up and not among the dead letters"),
        _ => None,
    }
}

fn named(claims: &BTreeMap<Key, Vec<(u32, u32)>>, segment: &Key, place: u32, delivery: u32) -> bool {
    claims.iter().any(|(key, places)| segment_key(key) == *segment && places.contains(&(place, delivery)))
}

/// The key of the segment that a key belongs to.
fn segment_key(key: &Key) -> Key {
    match key.clone() {
        Key::Progress { queue, partition, segment }
        | Key::Claim { queue, partition, segment, .. }
        | Key::Dead { queue, partition, segment, .. } => Key::Segment { queue, partition, segment },
        key => key,
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    segment: Key,
    place: u32,
}

impl Place {
    fn of_dead(key: &Key) -> Option<Self> {
        match key {
            Key::Dead { index, .. } => Some(Self { segment: segment_key(key), place: *index }),
            _ => None,
        }
    }
}

/// What one revision brought.
struct Revision {
    published: BTreeSet<Body>,
    dead: BTreeSet<Place>,
    claims: BTreeMap<Key, Vec<(u32, u32)>>,
    progress: BTreeMap<Key, Vec<Fate>>,
    deleted: BTreeSet<Key>,
}

impl Revision {
    fn of(changes: &[Change]) -> Self {
        let mut all = Self {
            published: BTreeSet::new(),
            dead: BTreeSet::new(),
            claims: BTreeMap::new(),
            progress: BTreeMap::new(),
            deleted: BTreeSet::new(),
        };
        for change in changes {
            match change {
                Change::Deleted(key, _) => {
                    all.deleted.insert(key.clone());
                }
                Change::Put(Entry { key, record, .. }) => match record {
                    Record::Segment(segment) => {
                        all.published.extend(segment.messages.iter().map(|message| message.body.clone()));
                    }
                    Record::Dead(_) => all.dead.extend(Place::of_dead(key)),
                    Record::Claim(claim) => {
                        all.claims.insert(key.clone(), claim.places.clone());
                    }
                    Record::Progress(progress) => {
                        all.progress.insert(segment_key(key), progress.fates.clone());
                    }
                    _ => {}
                },
            }
        }
        all
    }

    /// Whether the message is given up in this revision, or its segment goes.
    fn finishes(&self, place: &Place, tracked: Option<&Tracked>) -> bool {
        let fate = |fates: &[Fate]| fates.get(place.place as usize).map(|fate| fate.stage);
        let before = tracked.and_then(|tracked| fate(&tracked.fates));
        let after = self.progress.get(&place.segment).and_then(|fates| fate(fates));
        self.deleted.contains(&place.segment) || (after == Some(Stage::GivenUp) && before.is_some())
    }
}
