//! What comes of each thing that can happen.

use concordat_protocol::{
    Answer, Entry, Key, Now, Plan, Range, Record,
    lock::{Caller, Effect, Failure, Input, Mode, Reply, Request, Seen, Token},
};

use crate::{
    run::{entry, leases, run, seen},
    state::{Client, Sidecar, State, Told, UnderWay},
    world::{Action, Bug, DELAY, NEVER, Slot, TTL, World, line},
};

impl World {
    pub(crate) fn next(&self, state: &State, action: &Action) -> State {
        let mut state = state.clone();
        match *action {
            Action::Acquire(at) => self.acquire(&mut state, at),
            Action::HangUp(at) => {
                state.left.hang_ups -= 1;
                if let Client::Waiting { calls, number } = state.clients[at] {
                    state.clients[at] = Client::Idle { calls, old: None };
                    self.step(&mut state, self.callers[at].sidecar, Input::Cancel(Caller(number)));
                }
            }
            Action::Release(at) => self.release(&mut state, at),
            Action::ReleaseOld(at) => self.release_old(&mut state, at),
            Action::Land(at, slot) => {
                if let Some(UnderWay { plan, answer }) = state.sidecars[at].slot_mut(slot) {
                    *answer = Some(run(&mut state.etcd, plan));
                }
            }
            Action::LandLate(at) => {
                let plan = state.late.remove(at);
                run(&mut state.etcd, &plan);
            }
            Action::Answer(at, slot) => {
                if let Some(UnderWay { answer: Some(answer), .. }) = state.sidecars[at].slot_mut(slot).take()
                {
                    self.land(&mut state, at, slot, Ok(answer));
                }
            }
            Action::LoseReply(at, slot) => self.lose_reply(&mut state, at, slot),
            Action::Watch(at) => self.watch(&mut state, at),
            Action::Tick(at) => {
                let sidecar = &mut state.sidecars[at];
                let (now, wake) = (sidecar.now, sidecar.machine.wake_at().unwrap_or_default());
                sidecar.now = wake.max(now);
                self.step(&mut state, at, Input::Tick { believed: 0 });
                state.sidecars[at].now = now;
            }
            Action::Delay(at) => {
                state.sidecars[at].now += DELAY;
                self.step(&mut state, at, Input::Tick { believed: 0 });
            }
            Action::Pause(at) => {
                state.left.pauses -= 1;
                let session = state.sidecars[at].session.clone();
                if self.bug != Some(Bug::BelievesTooLong) {
                    state.disbelieve(&session);
                }
                state.sidecars[at].believes = false;
            }
            Action::Rejoin(at) => {
                let old = state.sidecars[at].session.clone();
                if self.bug != Some(Bug::GrantsToTheDead) {
                    self.step(&mut state, at, Input::Lost(old));
                }
                state.sidecars[at].session = state.open_session();
                state.sidecars[at].believes = true;
            }
            Action::Restart(at) => self.restart(&mut state, at),
            Action::EndSession(at) => {
                state.sessions[at].1 = false;
                let session = state.sessions[at].0.clone();
                state.etcd.end_lease(leases(&session).0);
            }
            Action::EndLease(at) => {
                state.sessions[at].2 = false;
                let session = state.sessions[at].0.clone();
                state.etcd.end_lease(leases(&session).1);
            }
        }
        for sidecar in &mut state.sidecars {
            if !sidecar.machine.watches() {
                sidecar.watched = None;
            }
        }
        state
    }

    fn acquire(&self, state: &mut State, at: usize) {
        let Client::Idle { calls, .. } = state.clients[at] else { return };
        state.arrivals += 1;
        let (number, of) = (state.arrivals, self.callers[at].sidecar);
        let request = Request {
            caller: Caller(number),
            token: Token(u128::from(number)),
            session: state.sidecars[of].session.clone(),
            pod: String::new(),
            owner: String::new(),
            definition: state.definition(),
            mode: Mode::FairQueue,
            wait: NEVER,
            max_waiters: 8,
            share: self.callers[at].share,
            lock_delay: if self.delay { DELAY } else { 0 },
            ttl: TTL,
            max_hold: 0,
            renew: false,
        };
        state.clients[at] = Client::Waiting { calls: calls - 1, number };
        if !self.step(state, of, Input::Acquire(request)) {
            state.clients[at] = Client::Idle { calls: calls - 1, old: None };
        }
    }

    fn release(&self, state: &mut State, at: usize) {
        let Client::Holding { calls, token, grant } = state.clients[at] else { return };
        let told = state.grants.len();
        let of = &mut state.grants[grant];
        of.until = of.until.or(Some(told));
        let caller = Caller(of.who.1);
        state.clients[at] = Client::Releasing { calls, token };
        // It counts before it is answered: a hand-over comes of the same step.
        state.grants[grant].let_go = true;
        if !self.step(state, self.callers[at].sidecar, Input::Release { caller, token }) {
            state.grants[grant].let_go = false;
            state.clients[at] = Client::Idle { calls, old: Some(token) };
        }
    }

    fn release_old(&self, state: &mut State, at: usize) {
        let Client::Idle { calls, old: Some(token) } = state.clients[at] else { return };
        state.clients[at] = Client::Idle { calls, old: None };
        let sidecar = self.callers[at].sidecar;
        self.believe(&mut state.sidecars[sidecar]);
        let before = state.sidecars[sidecar].machine.clone();
        self.step(state, sidecar, Input::Release { caller: Caller(0), token });
        state.forged |= state.sidecars[sidecar].machine != before;
    }

    fn lose_reply(&self, state: &mut State, at: usize, slot: Slot) {
        state.left.lost_replies -= 1;
        let Some(UnderWay { plan, answer }) = state.sidecars[at].slot_mut(slot).take() else { return };
        let done = Answer { held: true, revision: state.etcd.revision(), reads: Vec::new() };
        let outcome = match (self.bug, slot) {
            (Some(Bug::DeletesOnce), Slot::Free) => Ok(done),
            (Some(Bug::ForgetsDoubt), Slot::Join) => Err(Failure::NotApplied),
            _ => Err(Failure::Unknown),
        };
        // What is said to be done, and is not, never lands.
        if answer.is_none() && outcome.is_err() {
            state.late.push(plan);
        }
        self.land(state, at, slot, outcome);
    }

    fn restart(&self, state: &mut State, at: usize) {
        state.left.restarts -= 1;
        let old = state.sidecars[at].session.clone();
        state.disbelieve(&old);
        for (client, _) in self.callers.iter().enumerate().filter(|(_, caller)| caller.sidecar == at) {
            let (Client::Idle { calls, .. }
            | Client::Waiting { calls, .. }
            | Client::Holding { calls, .. }
            | Client::Releasing { calls, .. }) = state.clients[client];
            state.clients[client] = Client::Idle { calls, old: None };
        }
        for slot in [Slot::Join, Slot::Free] {
            if let Some(UnderWay { plan, answer: None }) = state.sidecars[at].slot_mut(slot).take() {
                state.late.push(plan);
            }
        }
        state.sidecars[at] = Sidecar::new(state.open_session());
    }

    /// The watch tells all there is, or the next event.
    fn watch(&self, state: &mut State, at: usize) {
        let watched = state.sidecars[at].watched;
        let event = watched.and_then(|told| state.etcd.since(0, &line()).nth(told).cloned());
        let (told, seen) = match (watched, event) {
            (Some(told), Some(event)) => (told + 1, seen(&event)),
            _ => {
                let entries = state.etcd.range(&line()).map(|(key, item)| entry(key, item)).collect();
                (state.etcd.since(0, &line()).count(), Seen::All { revision: state.etcd.revision(), entries })
            }
        };
        state.sidecars[at].watched = Some(told);
        note_losses(state, at, &seen);
        let seen = self.distorted(state, seen);
        self.step(state, at, Input::Seen(seen));
    }

    fn distorted(&self, state: &State, seen: Seen) -> Seen {
        let Some(bug) = self.bug else { return seen };
        let distort = |entry| bug.distort(&state.etcd, entry);
        match seen {
            Seen::All { revision, entries } => {
                Seen::All { revision, entries: entries.into_iter().map(distort).collect() }
            }
            Seen::Put(entry) => Seen::Put(distort(entry)),
            deleted @ Seen::Deleted { .. } => deleted,
        }
    }

    fn land(&self, state: &mut State, at: usize, slot: Slot, outcome: Result<Answer, Failure>) {
        if slot == Slot::Free {
            self.step(state, at, Input::Freed(outcome));
            return;
        }
        let outcome = outcome.map(|answer| {
            let revision = answer.revision;
            let reads = answer.reads.into_iter().map(|entries| {
                let all = Seen::All { revision, entries };
                note_losses(state, at, &all);
                match self.distorted(state, all) {
                    Seen::All { entries, .. } => entries,
                    _ => Vec::new(),
                }
            });
            Answer { reads: reads.collect(), ..answer }
        });
        let landed = outcome.as_ref().ok().filter(|answer| answer.held).map(|answer| answer.revision);
        self.step(state, at, Input::Landed { outcome, believed: 0 });
        if let (Some(Bug::OrdersItself), Some(revision)) = (self.bug, landed) {
            let own = |key: &Key| matches!(key, Key::Waiter { session, .. } if *session == state.sidecars[at].session);
            let put = state.etcd.range(&Range::All);
            let put = put.filter(|(key, item)| item.create_revision == revision && own(key));
            let put: Vec<Entry> = put.map(|(key, item)| entry(key, item)).collect();
            for entry in put {
                self.step(state, at, Input::Seen(Seen::Put(entry)));
            }
        }
    }

    /// Feeds an input and does what comes of it; false when it was rejected.
    fn step(&self, state: &mut State, at: usize, input: Input) -> bool {
        let sidecar = &mut state.sidecars[at];
        let now = Now { monotonic: sidecar.now, unix: 0 };
        self.believe(sidecar);
        let Ok(effects) = sidecar.machine.step(input, now) else { return false };
        for effect in effects {
            match effect {
                Effect::Commit(plan) => self.send(state, at, Slot::Join, plan),
                Effect::Free(plan) => self.send(state, at, Slot::Free, plan),
                Effect::Reply(caller, reply) => reply_to(state, at, caller, reply.ok()),
                Effect::Lost(_) => {}
            }
        }
        true
    }

    fn believe(&self, sidecar: &mut Sidecar) {
        let (session, believed) = (sidecar.session.clone(), sidecar.believed());
        let always = matches!(self.bug, Some(Bug::BelievesTooLong | Bug::GrantsToTheDead));
        sidecar.machine.believe(|of, _| match () {
            () if always => NEVER,
            () if *of == session => believed,
            () => 0,
        });
    }

    fn send(&self, state: &mut State, at: usize, slot: Slot, plan: Plan) {
        let plan = self.bug.map_or(plan.clone(), |bug| bug.plant(plan));
        let slot = state.sidecars[at].slot_mut(slot);
        assert!(slot.is_none(), "one plan of a kind at a time");
        *slot = Some(UnderWay { plan, answer: None });
    }
}

/// What is told of holders that were lost.
fn note_losses(state: &mut State, at: usize, seen: &Seen) {
    let now = state.sidecars[at].now;
    let lost: Vec<_> = state.lost_holders().map(|told| told.who.clone()).collect();
    for who in lost {
        let about = match seen {
            Seen::Deleted { key: Key::Waiter { session, number, .. }, .. } => {
                (session, number) == (&who.0, &who.1)
            }
            Seen::All { .. } => true,
            _ => false,
        };
        if about {
            state.sidecars[at].losses.entry(who).or_insert(now);
        }
    }
}

fn reply_to(state: &mut State, at: usize, caller: Caller, reply: Option<Reply>) {
    let client = state.clients.iter().position(|client| match client {
        Client::Waiting { number, .. } => *number == caller.0,
        Client::Releasing { token, .. } => token.0 == u128::from(caller.0),
        _ => false,
    });
    let Some(client) = client else { return };
    state.clients[client] = match (reply, &state.clients[client]) {
        (Some(Reply::Granted { token, fence, .. }), Client::Waiting { calls, number }) => {
            let stands = state.etcd.since(0, &line()).find_map(|event| match (&event.key, &event.item) {
                (Key::Waiter { session, number: of, .. }, Some(item)) if of == number => match &item.value {
                    Record::Waiter(waiter) => Some(((session.clone(), *number), waiter.share)),
                    _ => None,
                },
                _ => None,
            });
            let (who, share) = stands.expect("whoever is granted stood in the line");
            state.delays_kept &= state.keeps_delays(at, share);
            state.grants.push(Told {
                share,
                fence: fence.get(),
                until: None,
                let_go: false,
                released: false,
                session_alive: state.etcd.get(&Key::Session(who.0.clone())).is_some(),
                who,
            });
            Client::Holding { calls: *calls, token, grant: state.grants.len() - 1 }
        }
        (reply, Client::Releasing { calls, token }) => {
            let released = |told: &&mut Told| u128::from(told.who.1) == token.0;
            if matches!(reply, Some(Reply::Released)) {
                state.grants.iter_mut().filter(released).for_each(|told| told.released = true);
            }
            Client::Idle { calls: *calls, old: Some(*token) }
        }
        (_, Client::Waiting { calls, .. }) => Client::Idle { calls: *calls, old: None },
        (_, other) => other.clone(),
    };
}
