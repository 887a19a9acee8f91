//! Callers, sidecars and an etcd: every order in which things can happen to one key of one lock.
//!
//! The sidecars run the product's machine, the plans run on the model of etcd. What the real parts promise is an
//! assumption here: a lease ends only when its sidecar has stopped believing in it, and whoever was told a time stops
//! by then.

use std::collections::{BTreeMap, BTreeSet};

use concordat_protocol::{
    Answer, Key, Millis, Name, Now, Plan, Range, Record, SessionId, Write,
    etcd::Etcd,
    lock::{Caller, Effect, Failure, Input, Mode, Reply, Request, Seen, Share, Token, fence::PLACES, plans},
};

use crate::{
    Bug,
    run::{entry, leases, run, seen},
    state::{Client, Sidecar, State, Told, UnderWay},
};

pub(crate) const TTL: Millis = 15_000;
const BELIEF: Millis = 10_000;
/// Longer than anything else is waited for.
pub(crate) const DELAY: Millis = 60_000;
pub(crate) const NEVER: Millis = 1_000_000;

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub acquires: u8,
    pub pauses: u8,
    pub restarts: u8,
    pub lost_replies: u8,
    pub redefinitions: u8,
    pub hang_ups: u8,
    pub expiries: u8,
    /// How often what a sidecar has lasts until it is told of, or let go.
    pub lapses: u8,
}

/// The lock's mode, which sidecar each caller talks to, whether it waits, and what may happen.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub mode: Mode,
    pub callers: Vec<(usize, bool)>,
    pub budget: Budget,
    pub bug: Option<Bug>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Acquire(usize),
    HangUp(usize),
    Renew(usize),
    Release(usize),
    ReleaseOld(usize),
    Land(usize),
    LandLate(usize),
    Answer(usize),
    LoseReply(usize),
    Watch(usize),
    Hear(usize),
    Tick(usize),
    Lapse(usize),
    Expire(usize),
    Pause(usize),
    Rejoin(usize),
    Restart(usize),
    EndSession(usize),
    EndLease(usize),
    Redefine,
    LearnDefinition(usize),
}

pub(crate) fn lock() -> Name {
    "orders".into()
}

pub(crate) fn key() -> Name {
    "c42".into()
}

pub(crate) fn holder() -> Key {
    plans::holder(&lock(), &key())
}

pub(crate) fn shadow() -> Key {
    plans::shadow(&lock(), &key())
}

/// All there is of the key.
pub(crate) fn all() -> Range {
    Range::LockKey(lock(), key())
}

pub(crate) fn definition() -> Key {
    plans::definition(&lock())
}

impl World {
    pub(crate) fn start(&self) -> State {
        let mut state = State {
            etcd: Etcd::with_history(),
            sidecars: Vec::new(),
            clients: vec![Client::Idle { old: None }; self.callers.len()],
            late: Vec::new(),
            grants: Vec::new(),
            forged: false,
            in_force: BTreeMap::new(),
            losses: Vec::new(),
            expired: BTreeSet::new(),
            left: self.budget,
            sessions: Vec::new(),
            arrivals: 0,
        };
        state.define(self.mode);
        let count = self.callers.iter().map(|(sidecar, _)| sidecar + 1).max().unwrap_or(0);
        for _ in 0..count {
            let session = state.open_session();
            let defined = state.etcd.get(&definition()).map(|item| item.create_revision);
            state.sidecars.push(Sidecar::new(self.mode, session, defined));
        }
        state
    }

    pub(crate) fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        for (at, client) in state.clients.iter().enumerate() {
            let sidecar = &state.sidecars[self.callers[at].0];
            match client {
                Client::Idle { old } => {
                    if state.left.acquires > 0 && sidecar.definition.is_some() && sidecar.believes {
                        actions.push(Action::Acquire(at));
                    }
                    if old.is_some() {
                        actions.push(Action::ReleaseOld(at));
                    }
                }
                Client::Waiting { .. } if state.left.hang_ups > 0 => actions.push(Action::HangUp(at)),
                Client::Holding { .. } => actions.extend([Action::Renew(at), Action::Release(at)]),
                Client::Waiting { .. } | Client::Releasing { .. } => {}
            }
        }
        for (at, sidecar) in state.sidecars.iter().enumerate() {
            if let Some(under_way) = &sidecar.under_way {
                actions.push(if under_way.answer.is_some() { Action::Answer(at) } else { Action::Land(at) });
                if state.left.lost_replies > 0 {
                    actions.push(Action::LoseReply(at));
                }
            }
            if sidecar.unseen(&state.etcd) {
                actions.push(Action::Watch(at));
            }
            if sidecar.unheard(&state.etcd).is_some() {
                actions.push(Action::Hear(at));
            }
            if sidecar.is_due(DELAY) {
                actions.push(Action::Tick(at));
            }
            if sidecar.may_lapse() && state.left.lapses > 0 {
                actions.push(Action::Lapse(at));
            }
            if sidecar.machine.grant().is_some() && sidecar.believes && state.left.expiries > 0 {
                actions.push(Action::Expire(at));
            }
            if sidecar.believes && state.left.pauses > 0 {
                actions.push(Action::Pause(at));
            }
            if !sidecar.believes {
                actions.push(Action::Rejoin(at));
            }
            if state.left.restarts > 0 {
                actions.push(Action::Restart(at));
            }
            if sidecar.definition != state.etcd.get(&definition()).map(|item| item.create_revision) {
                actions.push(Action::LearnDefinition(at));
            }
        }
        for (at, (session, alive, leased)) in state.sessions.iter().enumerate() {
            if !state.sidecars.iter().any(|sidecar| sidecar.session == *session && sidecar.believes) {
                if *alive {
                    actions.push(Action::EndSession(at));
                }
                if *leased {
                    actions.push(Action::EndLease(at));
                }
            }
        }
        actions.extend((0..state.late.len()).map(Action::LandLate));
        if state.left.redefinitions > 0 {
            actions.push(Action::Redefine);
        }
        actions
    }

    pub(crate) fn next(&self, state: &State, action: &Action) -> State {
        let mut state = state.clone();
        match *action {
            Action::Acquire(at) => {
                let (sidecar, waits) = self.callers[at];
                state.left.acquires -= 1;
                state.arrivals += 1;
                let (caller, of) = (Caller(state.arrivals), &state.sidecars[sidecar]);
                let request = Request {
                    caller,
                    token: Token(u128::from(caller.0)),
                    session: of.session.clone(),
                    pod: String::new(),
                    owner: String::new(),
                    definition: of.definition.unwrap_or_default(),
                    mode: self.mode,
                    wait: if waits { NEVER } else { 0 },
                    max_waiters: 8,
                    share: Share::EXCLUSIVE,
                    lock_delay: DELAY,
                    ttl: TTL,
                    max_hold: 0,
                    renew: false,
                };
                state.clients[at] = Client::Waiting { caller };
                if !self.step(&mut state, sidecar, Input::Acquire(request)) {
                    state.clients[at] = Client::Idle { old: None };
                }
            }
            Action::HangUp(at) => {
                state.left.hang_ups -= 1;
                if let Client::Waiting { caller } = state.clients[at] {
                    state.clients[at] = Client::Idle { old: None };
                    self.step(&mut state, self.callers[at].0, Input::Cancel(caller));
                }
            }
            Action::Renew(at) => {
                if let Client::Holding { token, grant } = state.clients[at] {
                    let sidecar = self.callers[at].0;
                    let believed = self.believed(&state.sidecars[sidecar]);
                    let renewed =
                        self.step(&mut state, sidecar, Input::Renew { caller: Caller(0), token, believed });
                    state.grants[grant].believed = renewed;
                }
            }
            Action::Release(at) => {
                if let Client::Holding { token, grant } = state.clients[at] {
                    state.grants[grant].believed = false;
                    state.grants[grant].let_go = true;
                    state.clients[at] = Client::Releasing { token };
                    let caller = Caller(state.grants[grant].caller);
                    if !self.step(&mut state, self.callers[at].0, Input::Release { caller, token }) {
                        state.grants[grant].let_go = false;
                        state.clients[at] = Client::Idle { old: Some(token) };
                    }
                }
            }
            Action::ReleaseOld(at) => {
                if let Client::Idle { old: Some(token) } = state.clients[at] {
                    let machine = &mut state.sidecars[self.callers[at].0].machine;
                    let before = machine.grant();
                    let input = Input::Release { caller: Caller(0), token };
                    let _ = machine.step(input, Now::default());
                    state.forged |= machine.grant() != before;
                }
            }
            Action::Land(at) => {
                if let Some(mut under_way) = state.sidecars[at].under_way.take() {
                    // The store sends nothing that touches what an unknown plan writes before that has landed, or is
                    // void for ever.
                    let touched = wants_written(&under_way.plan);
                    let of_one_store = |late: &UnderWay| late.session == under_way.session;
                    state.late.retain(|late| {
                        let holder = writes_holder(&late.plan) && touches_holder(&under_way.plan);
                        wants_written(&late.plan).is_disjoint(&touched) && !(holder && of_one_store(late))
                    });
                    let in_force = in_force(&state.etcd, &under_way.plan);
                    let answer = self.commit(&mut state, &under_way);
                    if answer.held && takes(&under_way.plan) {
                        state.in_force.insert(answer.revision, in_force);
                    }
                    under_way.answer = Some(answer);
                    state.sidecars[at].under_way = Some(under_way);
                }
            }
            Action::LandLate(at) => {
                let late = state.late.remove(at);
                self.commit(&mut state, &late);
            }
            Action::Answer(at) => {
                if let Some(UnderWay { answer: Some(answer), .. }) = state.sidecars[at].under_way.take() {
                    self.land(&mut state, at, Ok(answer));
                }
            }
            Action::LoseReply(at) => {
                state.left.lost_replies -= 1;
                if let Some(under_way) = state.sidecars[at].under_way.take() {
                    if under_way.answer.is_none() {
                        state.late.push(under_way);
                    }
                    self.land(&mut state, at, Err(Failure::Unknown));
                }
            }
            Action::Watch(at) => self.watch(&mut state, at),
            Action::Hear(at) => {
                let life = state.sidecars[at].unheard(&state.etcd).unwrap_or_default();
                state.sidecars[at].heard += 1;
                if self.bug != Some(Bug::IgnoresWants) {
                    self.step(&mut state, at, Input::Wanted { life });
                }
            }
            Action::Tick(at) | Action::Lapse(at) => {
                state.left.lapses -= u8::from(matches!(action, Action::Lapse(_)));
                let sidecar = &mut state.sidecars[at];
                let wake = sidecar.machine.wake_at().unwrap_or_default();
                let (now, input) = (sidecar.now, Input::Tick { believed: self.believed(sidecar) });
                sidecar.now = wake.max(now);
                self.step(&mut state, at, input);
                state.sidecars[at].now = now;
            }
            Action::Expire(at) => {
                state.left.expiries -= 1;
                state.disbelieve_sidecar(at);
                let now = state.sidecars[at].now;
                state.sidecars[at].now = now + TTL;
                self.step(&mut state, at, Input::Tick { believed: NEVER });
                state.sidecars[at].now = now;
            }
            Action::Pause(at) => {
                state.left.pauses -= 1;
                state.disbelieve_sidecar(at);
                state.sidecars[at].believes = false;
                state.sidecars[at].now += BELIEF;
            }
            Action::Rejoin(at) => {
                let old = state.sidecars[at].session.clone();
                if self.bug != Some(Bug::GrantsToTheDead) {
                    self.step(&mut state, at, Input::Lost(old));
                }
                state.sidecars[at].session = state.open_session();
                (state.sidecars[at].believes, state.sidecars[at].heard) = (true, 0);
            }
            Action::Restart(at) => {
                state.left.restarts -= 1;
                for (client, _) in self.callers.iter().enumerate().filter(|(_, (sidecar, _))| *sidecar == at)
                {
                    state.clients[client] = Client::Idle { old: None };
                }
                if let Some(under_way @ UnderWay { answer: None, .. }) = state.sidecars[at].under_way.take() {
                    state.late.push(under_way);
                }
                let Sidecar { now, definition, .. } = state.sidecars[at];
                let session = state.open_session();
                state.sidecars[at] = Sidecar { now, ..Sidecar::new(self.mode, session, definition) };
            }
            Action::EndSession(at) => {
                state.sessions[at].1 = false;
                let session = state.sessions[at].0.clone();
                state.etcd.end_lease(leases(&session).0);
            }
            Action::EndLease(at) => {
                state.sessions[at].2 = false;
                let session = state.sessions[at].0.clone();
                state.grants.iter_mut().filter(|told| told.session == session).for_each(|told| {
                    told.believed &= self.bug == Some(Bug::BelievesTooLong);
                });
                if let Some(item) = state.etcd.get(&holder())
                    && matches!(&item.value, Record::Holder(holder) if holder.session == session)
                {
                    state.expired.insert(item.mod_revision);
                }
                state.etcd.end_lease(leases(&session).1);
            }
            Action::Redefine => {
                state.left.redefinitions -= 1;
                let gone = Plan::new().delete(definition());
                run(&mut state.etcd, &gone);
                state.define(self.mode);
            }
            Action::LearnDefinition(at) => {
                let created = state.etcd.get(&definition()).map(|item| item.create_revision);
                state.sidecars[at].definition = created;
                self.step(&mut state, at, Input::Defined(created));
            }
        }
        for sidecar in &mut state.sidecars {
            if !sidecar.machine.watches() {
                sidecar.watched = None;
            }
        }
        state
    }

    /// Until when the sidecar believes in the lease that its machine asks about.
    fn believed(&self, sidecar: &Sidecar) -> Millis {
        let of_session = match sidecar.machine.lease() {
            Some((session, _)) => session == sidecar.session,
            None => true,
        };
        let never_asks = matches!(self.bug, Some(Bug::BelievesTooLong | Bug::GrantsToTheDead));
        let believes = sidecar.believes && of_session || never_asks;
        if believes { sidecar.now + BELIEF } else { sidecar.now }
    }

    /// The watch tells all there is, or the next event.
    fn watch(&self, state: &mut State, at: usize) {
        let watched = state.sidecars[at].watched;
        let event = watched.and_then(|told| state.etcd.since(0, &all()).nth(told).cloned());
        let (told, revision, seen) = match (watched, event) {
            (Some(told), Some(event)) => (told + 1, event.revision, seen(&event)),
            _ => {
                let entries = state.etcd.range(&all()).map(|(key, item)| entry(key, item)).collect();
                let revision = state.etcd.revision();
                (state.etcd.since(0, &all()).count(), revision, Seen::All { revision, entries })
            }
        };
        state.sidecars[at].watched = Some(told);
        self.note_losses(state, at, revision);
        let seen = match self.bug {
            None => Some(seen),
            Some(bug) => bug.distort(seen),
        };
        if let Some(seen) = seen {
            self.step(state, at, Input::Seen(seen));
        }
    }

    /// Runs a plan, and notes whether it is a grant that follows a loss.
    fn commit(&self, state: &mut State, UnderWay { plan, known, .. }: &UnderWay) -> Answer {
        let answer = run(&mut state.etcd, plan);
        if answer.held && self.mode == Mode::Lease {
            state.note_grant(known, answer.revision);
        }
        answer
    }

    /// A sidecar is told what there is as of a revision.
    fn note_losses(&self, state: &mut State, at: usize, as_of: i64) {
        if self.mode == Mode::Lease {
            state.note_losses(at, as_of);
        }
    }

    fn land(&self, state: &mut State, at: usize, outcome: Result<Answer, Failure>) {
        let outcome = outcome.map(|mut answer| {
            if !answer.held {
                self.note_losses(state, at, answer.revision);
                let hides = |entries: &mut Vec<_>| {
                    entries.retain(|entry| self.bug.is_none_or(|bug| bug.shows(entry)));
                };
                answer.reads.iter_mut().for_each(hides);
            }
            answer
        });
        let sidecar = &state.sidecars[at];
        let believed = self.believed(sidecar);
        if !sidecar.believes && !matches!(self.bug, Some(Bug::GrantsToTheDead | Bug::BelievesTooLong)) {
            let lost = Input::Lost(sidecar.session.clone());
            self.step(state, at, lost);
        }
        self.step(state, at, Input::Landed { outcome, believed });
    }

    /// Feeds an input and does what comes of it; false when it was rejected.
    fn step(&self, state: &mut State, at: usize, input: Input) -> bool {
        let sidecar = &mut state.sidecars[at];
        let now = Now { monotonic: sidecar.now, unix: 0 };
        let (session, believes) = (sidecar.session.clone(), sidecar.believes);
        let believes = believes || self.bug == Some(Bug::RegrantsTheLost);
        let until = |of: &SessionId, _| if believes && *of == session { now.monotonic + BELIEF } else { 0 };
        sidecar.machine.believe(until);
        sidecar.machine.hears(NEVER);
        let mut machine = sidecar.machine.clone();
        let wanted = matches!(input, Input::Wanted { .. });
        let Ok(effects) = machine.step(input, now) else { return false };
        if self.bug == Some(Bug::RegrantsTheFreed) && wanted && sidecar.machine.stays().is_some() {
            // It frees what stays, and does not remember that it did.
            let plans = effects.into_iter().filter_map(|effect| match effect {
                Effect::Commit(plan) => {
                    Some(UnderWay { plan, session: session.clone(), answer: None, known: BTreeMap::new() })
                }
                _ => None,
            });
            state.late.extend(plans);
            return true;
        }
        sidecar.machine = machine;
        for effect in effects {
            match effect {
                Effect::Commit(plan) => {
                    let plan = self.bug.map_or(plan.clone(), |bug| bug.plant(plan));
                    let sidecar = &mut state.sidecars[at];
                    assert!(sidecar.under_way.is_none(), "one plan at a time");
                    let known = sidecar.losses.iter().map(|(lost, since)| (*lost, sidecar.now - since));
                    let known = known.collect();
                    let session = sidecar.session.clone();
                    sidecar.under_way = Some(UnderWay { plan, session, answer: None, known });
                }
                Effect::Reply(caller, reply) => self.reply(state, at, caller, reply.ok()),
                Effect::Free(_) | Effect::Lost(_) => {}
            }
        }
        true
    }

    fn reply(&self, state: &mut State, at: usize, caller: Caller, reply: Option<Reply>) {
        let client = state.clients.iter().position(|client| match client {
            Client::Waiting { caller: of } => *of == caller,
            Client::Releasing { token } => token.0 == u128::from(caller.0),
            _ => false,
        });
        let Some(client) = client else { return };
        state.clients[client] = match (reply, &state.clients[client]) {
            (Some(Reply::Granted { token, fence, .. }), _) => {
                let session = state.etcd.get(&holder()).and_then(|item| match &item.value {
                    Record::Holder(holder) => Some(holder.session.clone()),
                    _ => None,
                });
                let session = session.unwrap_or_else(|| state.sidecars[at].session.clone());
                let revision = (fence.get() / PLACES) as i64;
                state.grants.push(Told {
                    sidecar: at,
                    caller: caller.0,
                    revision,
                    fence: self.bug.map_or(fence.get(), |bug| bug.forge(fence.get(), &session)),
                    believed: true,
                    session_alive: state.etcd.get(&Key::Session(session.clone())).is_some(),
                    in_force: state.in_force.get(&revision).copied().unwrap_or_default(),
                    let_go: false,
                    released: false,
                    session,
                });
                Client::Holding { token, grant: state.grants.len() - 1 }
            }
            (Some(Reply::Released), Client::Releasing { token }) => {
                let released = |told: &&mut Told| u128::from(told.caller) == token.0;
                state.grants.iter_mut().filter(released).for_each(|told| told.released = true);
                Client::Idle { old: Some(*token) }
            }
            (_, Client::Releasing { token }) => Client::Idle { old: Some(*token) },
            _ => Client::Idle { old: None },
        };
    }
}

/// The wants that a plan puts or takes back.
fn wants_written(plan: &Plan) -> BTreeSet<&Key> {
    let keys = plan.writes.iter().filter_map(|write| match write {
        Write::Put(key, ..) | Write::Delete(Range::One(key)) => Some(key),
        Write::Delete(_) => None,
    });
    keys.filter(|key| matches!(key, Key::Want { .. })).collect()
}

/// Whether a plan may change who holds the lock.
fn writes_holder(plan: &Plan) -> bool {
    plan.writes.iter().any(|write| match write {
        Write::Put(key, ..) => *key == holder(),
        Write::Delete(range) => range.contains(&holder()),
    })
}

/// Whether what a plan comes to depends on who holds the lock, or changes it.
fn touches_holder(plan: &Plan) -> bool {
    plan.compares.iter().any(|compare| compare.key == holder()) || writes_holder(plan)
}

/// Whether a plan takes the lock.
fn takes(plan: &Plan) -> bool {
    plan.compares.iter().any(|compare| compare.key == definition())
        || plan.writes.iter().any(|write| matches!(write, Write::Put(Key::Holder { .. }, ..)))
}

/// Whether the definition that a plan compares is in force.
fn in_force(etcd: &Etcd<Key, Range, Record>, plan: &Plan) -> bool {
    let asked = plan.compares.iter().find(|compare| compare.key == definition());
    asked.is_some_and(|asked| etcd.get(&definition()).is_some_and(|item| item.create_revision == asked.value))
}
