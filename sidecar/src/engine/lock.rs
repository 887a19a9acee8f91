//! Runs locks: one machine a key, on the store.

mod calls;
mod commit;
mod counted;
mod following;
mod holdings;
mod inspect;
mod keys;
mod several;
mod stats;
mod wants;
mod watch;

use std::{collections::HashMap, sync::Arc, time::Duration};

use concordat_protocol::{
    Entry, Millis, Name, Now, Range,
    lock::{Caller, Effect, Fence, Input, Machine, Rejected, Reply, Seen, Share, Token},
};
use concordat_store::{SessionState, Store};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use self::{
    commit::Sent,
    counted::Counted,
    holdings::Holdings,
    keys::{Keys, Stepped},
};
pub use self::{
    following::{Event, Following},
    holdings::Held,
    inspect::{Holding, Inspection},
    keys::Place,
    several::{Asked, GrantedSeveral},
};
use crate::{context::Identity, definitions::Definitions, metrics::Metrics};

/// How soon etcd is asked again about what is held, when it did not answer.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Runs locks. Cheap to clone.
#[derive(Clone)]
pub struct LockEngine(Arc<Inner>);

struct Inner {
    store: Store,
    definitions: Definitions,
    identity: Arc<Identity>,
    keys: Mutex<Keys>,
    holdings: Mutex<Holdings>,
    /// The earliest timer changed.
    rearmed: Notify,
    /// A counter changed.
    counted: Notify,
    /// The machines have nothing under way any more, perhaps.
    settled: Notify,
    metrics: Counted,
}

/// How a caller wants a lock; durations in milliseconds.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What it calls itself, for people.
    pub owner: String,
    /// How much of the lock it asks for.
    pub share: Share,
    /// How long it waits; 0: not at all.
    pub wait: Millis,
    /// How long the grant lasts unless it is renewed.
    pub ttl: Millis,
    /// How long it lasts at most; 0: no bound.
    pub max_hold: Millis,
    /// Whether the sidecar renews it: up to `max_hold` if there is one, and as long as its app follows it.
    pub renew: bool,
}

/// A grant as its caller is told.
#[derive(Clone, Copy, Debug)]
pub struct Granted {
    /// Proof.
    pub token: Token,
    /// Fence.
    pub fence: Fence,
    /// How long it is safe to rely on, milliseconds.
    pub expires_in: Millis,
    /// How long the caller waited, milliseconds.
    pub waited: Millis,
}

impl LockEngine {
    /// Starts.
    pub fn start(
        store: &Store,
        definitions: &Definitions,
        metrics: &Arc<Metrics>,
        identity: &Arc<Identity>,
    ) -> Self {
        let inner = Arc::new(Inner {
            store: store.clone(),
            definitions: definitions.clone(),
            identity: identity.clone(),
            keys: Mutex::default(),
            holdings: Mutex::default(),
            rearmed: Notify::new(),
            counted: Notify::new(),
            settled: Notify::new(),
            metrics: Counted::register(metrics),
        });
        tokio::spawn(inner.clone().tick());
        tokio::spawn(inner.clone().follow_sessions());
        tokio::spawn(inner.clone().follow_definitions());
        tokio::spawn(inner.clone().publish_stats());
        tokio::spawn(inner.clone().listen());
        Self(inner)
    }

    /// Sends away who waits and frees what is held; answers when all of it is freed.
    pub async fn drain(&self) {
        let places = {
            let mut keys = self.0.keys.lock();
            keys.draining = true;
            keys.places()
        };
        // First nobody waits any more, to whom it could be handed on.
        for place in places {
            let _ = self.0.step(&place, Input::Drain);
        }
        let held = self.0.holdings.lock().tokens();
        for token in held {
            self.0.let_go(token);
        }
        loop {
            let settled = self.0.settled.notified();
            if self.0.keys.lock().all_idle() {
                return;
            }
            settled.await;
        }
    }

    async fn call(&self, place: Place, input: impl FnOnce(Caller) -> Input) -> Result<Reply, Rejected> {
        let (answer, reply) = oneshot::channel();
        let caller = self.0.keys.lock().admit(answer);
        let mut call = Call { engine: self, place, caller, answered: false };
        let stepped = self.0.step(&call.place, input(caller));
        if let Err(rejected) = stepped {
            if matches!(rejected, Rejected::Held(_) | Rejected::Full) {
                self.0.metrics.contended.inc();
            }
            call.answered = true;
            self.0.keys.lock().dismiss(caller);
            return Err(rejected);
        }
        let reply = reply.await;
        call.answered = true;
        reply.unwrap_or(Err(Rejected::Unavailable { unknown: true }))
    }
}

/// A call that awaits its answer; dropped before, the caller has hung up.
struct Call<'a> {
    engine: &'a LockEngine,
    place: Place,
    caller: Caller,
    answered: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.engine.0.keys.lock().dismiss(self.caller);
            let _ = self.engine.0.step(&self.place, Input::Cancel(self.caller));
        }
    }
}

impl Inner {
    fn now(&self) -> Now {
        self.store.clock().now()
    }

    /// Feeds one input to the machine of a key and does what comes of it.
    fn step(self: &Arc<Self>, place: &Place, input: Input) -> Result<(), Rejected> {
        let stepped = self.keys.lock().step(place, input, self.now(), &self.store)?;
        self.carry_out(place, stepped);
        Ok(())
    }

    /// Does what came of a step.
    fn carry_out(self: &Arc<Self>, place: &Place, (effects, due): Stepped) {
        if due.timer {
            self.rearmed.notify_one();
        }
        if due.stats {
            self.counted.notify_one();
            self.metrics.waiters.inc_by(due.waiters);
        }
        self.metrics.contended.inc_by(due.contended);
        if due.settled {
            self.settled.notify_one();
        }
        let oldest = if due.crowded { self.keys.lock().overstaying() } else { None };
        if let Some(oldest) = oldest {
            let _ = self.step(&oldest, Input::LetGo);
        }
        for effect in effects {
            self.perform(place, effect);
        }
        if let Some(watch) = due.watch {
            self.watch_for(place, watch);
        }
    }

    fn perform(self: &Arc<Self>, place: &Place, effect: Effect) {
        match effect {
            Effect::Commit(plan) => {
                let landed = |outcome, believed| Input::Landed { outcome, believed };
                tokio::spawn(self.clone().commit(place.clone(), Sent::new(plan), landed));
            }
            Effect::Free(plan) => {
                let freed = |outcome, _| Input::Freed(outcome);
                tokio::spawn(self.clone().commit(place.clone(), Sent::new(plan), freed));
            }
            Effect::Reply(caller, reply) => {
                if let Ok(Reply::Granted { waited, .. }) = &reply {
                    self.metrics.grants.inc();
                    self.metrics.waits.observe(*waited as f64 / 1e3);
                }
                if !matches!(reply, Ok(Reply::Renewed { .. } | Reply::Released)) {
                    self.metrics.wakeups.inc();
                }
                // A caller that hung up at this very moment cancels by itself.
                let answer = self.keys.lock().dismiss(caller);
                if let Some(answer) = answer {
                    let _ = answer.send(reply);
                }
            }
            Effect::Lost(token) => self.lost(place, token),
        }
    }

    /// Until when the lease is believed that the machine of a key asks about.
    fn believed(&self, place: &Place) -> Millis {
        self.keys.lock().believed(place, &self.store)
    }

    fn tell_time(self: &Arc<Self>, place: &Place) {
        let ticked = self.keys.lock().tick(place, self.now(), &self.store);
        if let Ok(stepped) = ticked {
            self.carry_out(place, stepped);
        }
    }

    /// Tells the machine that the session its plan went under is no longer believed, if so: the announcement may be on
    /// its way.
    fn forget_lost_session(self: &Arc<Self>, place: &Place) {
        let lease = self.keys.lock().get(place).and_then(Machine::lease);
        let current = self.store.session();
        if let Some((session, _)) = lease
            && (session != current.id || !current.is_believed(self.now()))
        {
            let _ = self.step(place, Input::Lost(session));
        }
    }

    /// Tells machines their time.
    async fn tick(self: Arc<Self>) {
        loop {
            let rearmed = self.rearmed.notified();
            let due = self.keys.lock().due(self.now().monotonic);
            for place in &due {
                self.tell_time(place);
            }
            let next = self.keys.lock().next_timer();
            match next {
                Some(at) => {
                    let _ = tokio::time::timeout_at(self.store.clock().instant(at), rearmed).await;
                }
                None => rearmed.await,
            }
        }
    }

    async fn follow_sessions(self: Arc<Self>) {
        let mut sessions = self.store.sessions();
        let mut current = self.store.session().id;
        while sessions.changed().await.is_ok() {
            let state = sessions.borrow_and_update().clone();
            // A loss that a new session followed at once shows as the new one alone.
            let (SessionState::Lost(now) | SessionState::Live(now)) = &state;
            if matches!(state, SessionState::Lost(_)) || *now != current {
                let places = self.keys.lock().places();
                for place in places {
                    let _ = self.step(&place, Input::Lost(current.clone()));
                }
            }
            current = now.clone();
            self.keys.lock().count_all_anew();
            self.counted.notify_one();
        }
    }

    async fn follow_definitions(self: Arc<Self>) {
        let mut changes = self.definitions.changes();
        let mut written = HashMap::new();
        while changes.changed().await.is_ok() {
            if !self.definitions.synced() {
                continue;
            }
            let concerned = self.keys.lock().concerned();
            for place in concerned {
                let created = self.definitions.lock(place.lock.as_str()).ok();
                let created = created.map(|defined| defined.create_revision);
                let _ = self.step(&place, Input::Defined(created));
            }
            let mut held = self.holdings.lock().locks();
            held.extend(self.keys.lock().staying().map(|place| place.lock.clone()));
            for lock in held {
                let Ok(defined) = self.definitions.lock(lock.as_str()) else { continue };
                if written.insert(lock.clone(), defined.mod_revision) != Some(defined.mod_revision) {
                    tokio::spawn(self.clone().look_again(lock));
                }
            }
        }
    }

    /// Looks whether what is held of a lock, or stays, is still there: the operator, having taken a key from its holder,
    /// writes the lock's definition anew. Nobody watches what he holds.
    async fn look_again(self: Arc<Self>, lock: Name) {
        loop {
            let mut held = self.holdings.lock().places_of(&lock);
            held.extend(self.keys.lock().staying().filter(|place| place.lock == lock).cloned());
            if held.is_empty() {
                return;
            }
            let Ok(answer) = self.store.read(vec![Range::Lock(lock.clone())]).await else {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            };
            let entries = answer.reads.into_iter().next().unwrap_or_default();
            for place in held {
                let of_key = Range::LockKey(lock.clone(), place.key.clone());
                let of = |entry: &&Entry| of_key.contains(&entry.key);
                let entries = entries.iter().filter(of).cloned().collect();
                let seen = Seen::All { revision: answer.revision, entries };
                let _ = self.step(&place, Input::Seen(seen));
            }
            return;
        }
    }
}
