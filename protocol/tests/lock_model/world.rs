//! Callers, sidecars and an etcd: every order in which things can happen to one key of one lock.
//!
//! The sidecars run the product's machine, the plans run on the model of etcd. What the real parts promise is an
//! assumption here: a lease ends only when its sidecar has stopped believing in it, and whoever was told a time stops
//! by then.

use concordat_protocol::{
    Answer, Definition, Key, Lease, Millis, Name, Now, Plan, Range, Record, SessionId, Settings,
    etcd::{Etcd, Op, Txn},
    lock::{
        Caller, Effect, Failure, Input, Machine, Mode, Reply, Request, Seen, Share, Sharing, Token,
        invariant::{Change, Grant, History, Wait},
        machine::PATIENCE,
        plans,
    },
    record::Marker,
    session::Session,
};

use crate::{
    Bug,
    run::{entry, leases, run, seen},
};

pub(crate) const TTL: Millis = 15_000;
const BELIEF: Millis = 10_000;
const NEVER: Millis = 1_000_000;

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
}

/// Which sidecar each caller talks to, whether it waits, and what may happen.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub callers: Vec<(usize, bool)>,
    pub budget: Budget,
    pub bug: Option<Bug>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub etcd: Etcd<Key, Range, Record>,
    pub sidecars: Vec<Sidecar>,
    pub clients: Vec<Client>,
    /// Plans whose sidecar gave up on them: each may land yet.
    pub late: Vec<Plan>,
    pub grants: Vec<Told>,
    pub forged: bool,
    pub left: Budget,
    /// Sessions whose lease, and whose lease of the lock's ttl, have not ended.
    sessions: Vec<(SessionId, bool, bool)>,
    arrivals: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sidecar {
    pub machine: Machine,
    pub session: SessionId,
    pub believes: bool,
    now: Millis,
    definition: Option<i64>,
    under_way: Option<UnderWay>,
    watched: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct UnderWay {
    plan: Plan,
    answer: Option<(Answer, bool)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    Idle { old: Option<Token> },
    Waiting { caller: Caller },
    Holding { token: Token, grant: usize },
    Releasing { token: Token },
}

/// A grant as it was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Told {
    sidecar: usize,
    session: SessionId,
    caller: u64,
    fence: u64,
    believed: bool,
    session_alive: bool,
    in_force: bool,
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
    Tick(usize),
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

fn definition() -> Key {
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
            left: self.budget,
            sessions: Vec::new(),
            arrivals: 0,
        };
        state.define();
        let count = self.callers.iter().map(|(sidecar, _)| sidecar + 1).max().unwrap_or(0);
        for _ in 0..count {
            let session = state.open_session();
            state.sidecars.push(Sidecar {
                machine: Machine::new(lock(), key(), 0, Mode::CompareAndSwap),
                session,
                believes: true,
                now: 0,
                definition: state.etcd.get(&definition()).map(|item| item.create_revision),
                under_way: None,
                watched: None,
            });
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
            let unseen =
                sidecar.watched.is_none_or(|seen| state.etcd.since(seen, &holder().into()).next().is_some());
            if sidecar.machine.watches() && unseen {
                actions.push(Action::Watch(at));
            }
            if sidecar.machine.wake_at().is_some_and(|wake| wake <= sidecar.now + PATIENCE) {
                actions.push(Action::Tick(at));
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
                    mode: Mode::CompareAndSwap,
                    wait: if waits { NEVER } else { 0 },
                    max_waiters: 8,
                    share: Share::EXCLUSIVE,
                    lock_delay: 0,
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
                    state.clients[at] = Client::Releasing { token };
                    let caller = Caller(state.grants[grant].caller);
                    if !self.step(&mut state, self.callers[at].0, Input::Release { caller, token }) {
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
                let sidecar = &mut state.sidecars[at];
                if let Some(UnderWay { plan, answer }) = &mut sidecar.under_way {
                    let in_force = in_force(&state.etcd, plan);
                    *answer = Some((run(&mut state.etcd, plan), in_force));
                }
            }
            Action::LandLate(at) => {
                let plan = state.late.remove(at);
                run(&mut state.etcd, &plan);
            }
            Action::Answer(at) => {
                if let Some(UnderWay { answer: Some((answer, in_force)), .. }) =
                    state.sidecars[at].under_way.take()
                {
                    self.land(&mut state, at, Ok(answer), in_force);
                }
            }
            Action::LoseReply(at) => {
                state.left.lost_replies -= 1;
                if let Some(UnderWay { plan, answer }) = state.sidecars[at].under_way.take() {
                    if answer.is_none() {
                        state.late.push(plan);
                    }
                    self.land(&mut state, at, Err(Failure::Unknown), false);
                }
            }
            Action::Watch(at) => {
                let watched = state.sidecars[at].watched;
                let range = holder().into();
                let (revision, seen) = match watched.and_then(|seen| state.etcd.since(seen, &range).next()) {
                    Some(event) => (event.revision, seen(event)),
                    None => {
                        let entries = state.etcd.range(&range).map(|(key, item)| entry(key, item)).collect();
                        let revision = state.etcd.revision();
                        (revision, Seen::All { revision, entries })
                    }
                };
                state.sidecars[at].watched = Some(revision);
                self.step(&mut state, at, Input::Seen(seen));
            }
            Action::Tick(at) => {
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
                state.sidecars[at].believes = true;
            }
            Action::Restart(at) => {
                state.left.restarts -= 1;
                for (client, _) in self.callers.iter().enumerate().filter(|(_, (sidecar, _))| *sidecar == at)
                {
                    state.clients[client] = Client::Idle { old: None };
                }
                if let Some(UnderWay { plan, answer: None }) = state.sidecars[at].under_way.take() {
                    state.late.push(plan);
                }
                let session = state.open_session();
                let sidecar = &mut state.sidecars[at];
                sidecar.machine = Machine::new(lock(), key(), 0, Mode::CompareAndSwap);
                sidecar.session = session;
                sidecar.believes = true;
                sidecar.watched = None;
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
                state.etcd.end_lease(leases(&session).1);
            }
            Action::Redefine => {
                state.left.redefinitions -= 1;
                let gone = Plan::new().delete(definition());
                run(&mut state.etcd, &gone);
                state.define();
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

    fn land(&self, state: &mut State, at: usize, outcome: Result<Answer, Failure>, in_force: bool) {
        let sidecar = &state.sidecars[at];
        let believed = self.believed(sidecar);
        if !sidecar.believes && !matches!(self.bug, Some(Bug::GrantsToTheDead | Bug::BelievesTooLong)) {
            let lost = Input::Lost(sidecar.session.clone());
            self.step(state, at, lost);
        }
        let told = state.grants.len();
        self.step(state, at, Input::Landed { outcome, believed });
        for grant in &mut state.grants[told..] {
            grant.in_force = in_force;
        }
    }

    /// Feeds an input and does what comes of it; false when it was rejected.
    fn step(&self, state: &mut State, at: usize, input: Input) -> bool {
        let sidecar = &mut state.sidecars[at];
        let now = Now { monotonic: sidecar.now, unix: 0 };
        let Ok(effects) = sidecar.machine.step(input, now) else { return false };
        for effect in effects {
            match effect {
                Effect::Commit(plan) => {
                    let plan = self.bug.map_or(plan.clone(), |bug| bug.plant(plan));
                    assert!(state.sidecars[at].under_way.is_none(), "one plan at a time");
                    state.sidecars[at].under_way = Some(UnderWay { plan, answer: None });
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
                state.grants.push(Told {
                    sidecar: at,
                    caller: caller.0,
                    fence: self.bug.map_or(fence.get(), |bug| bug.forge(fence.get(), &session)),
                    believed: true,
                    session_alive: state.etcd.get(&Key::Session(session.clone())).is_some(),
                    in_force: false,
                    session,
                });
                Client::Holding { token, grant: state.grants.len() - 1 }
            }
            (_, Client::Releasing { token }) => Client::Idle { old: Some(*token) },
            _ => Client::Idle { old: None },
        };
    }
}

/// Whether the definition that a plan compares is in force; so for every plan that compares none and puts nothing.
fn in_force(etcd: &Etcd<Key, Range, Record>, plan: &Plan) -> bool {
    let asked = plan.compares.iter().find(|compare| compare.key == definition());
    asked.is_some_and(|asked| etcd.get(&definition()).is_some_and(|item| item.create_revision == asked.value))
}

impl State {
    fn define(&mut self) {
        let settings = concordat_protocol::lock::Settings {
            mode: Mode::CompareAndSwap,
            sharing: Sharing::Mutex,
            permits: 1,
            ttl: TTL,
            lock_delay: 0,
            max_hold: 0,
            max_wait: NEVER,
            max_waiters: 8,
            dapr_store: None,
        };
        let record = Definition { uid: String::new(), generation: 1, settings: Settings::Lock(settings) };
        run(&mut self.etcd, &Plan::new().put(definition(), record, Lease::Forever));
    }

    fn open_session(&mut self) -> SessionId {
        let session = SessionId::from(self.sessions.len().to_string());
        let (life, ttl) = leases(&session);
        for lease in [life, ttl] {
            self.etcd.grant(lease).expect("there is space");
        }
        let record = Session { pod: String::new(), app: "app".into(), accepts: true };
        let lease = Lease::Ttl(session.clone(), TTL);
        let marker = lease.guard().expect("a ttl has a marker");
        for (key, value, lease) in
            [(Key::Session(session.clone()), record.into(), life), (marker, Marker.into(), ttl)]
        {
            let put =
                Txn { compares: Vec::new(), then: vec![Op::Put { key, value, lease }], or_else: Vec::new() };
            self.etcd.txn(&put).expect("its lease lives");
        }
        self.sessions.push((session.clone(), true, true));
        session
    }

    /// What a sidecar told its callers has run out.
    fn disbelieve_sidecar(&mut self, at: usize) {
        let session = &self.sidecars[at].session;
        self.grants.iter_mut().filter(|told| told.session == *session).for_each(|told| told.believed = false);
    }

    /// Whether nothing can happen of itself any more.
    fn at_rest(&self) -> bool {
        self.late.is_empty()
            && self.sidecars.iter().all(|sidecar| {
                let seen = sidecar
                    .watched
                    .is_some_and(|seen| self.etcd.since(seen, &holder().into()).next().is_none());
                let due = sidecar.machine.wake_at().is_some_and(|wake| wake <= sidecar.now + PATIENCE);
                sidecar.believes
                    && sidecar.under_way.is_none()
                    && !due
                    && (seen || !sidecar.machine.watches())
            })
    }

    /// Whether a live sidecar keeps a lock that none of its callers has.
    pub(crate) fn orphaned(&self) -> bool {
        let Some(Record::Holder(holder)) = self.etcd.get(&holder()).map(|item| &item.value) else {
            return false;
        };
        let owner = self.sidecars.iter().find(|sidecar| sidecar.session == holder.session);
        self.at_rest() && owner.is_some_and(|owner| owner.machine.grant().is_none())
    }

    pub(crate) fn history(&self) -> History {
        let range = holder().into();
        let changes = self.etcd.since(0, &range).map(|event| Change {
            revision: event.revision,
            at: 0,
            holder: event.item.as_ref().and_then(|item| match &item.value {
                Record::Holder(holder) => Some(holder.session.clone()),
                _ => None,
            }),
        });
        let grants = self.grants.iter().map(|told| Grant {
            caller: (format!("{}/{}", told.sidecar, told.session), told.caller),
            fence: told.fence,
            from: 0,
            to: if told.believed { Millis::MAX } else { 0 },
            session_alive: told.session_alive,
            definition_in_force: told.in_force,
        });
        let waiting = self.clients.iter().filter(|client| matches!(client, Client::Waiting { .. }));
        History {
            changes: changes.collect(),
            grants: grants.collect(),
            accepted: Vec::new(),
            vain: if self.at_rest() {
                waiting.map(|_| Wait { from: 0, to: 1 }).collect()
            } else {
                Vec::new()
            },
            forged: if self.forged { vec!["an old token changed a grant".into()] } else { Vec::new() },
        }
    }
}
