//! Consuming from one queue: the watch, the waiters and the timers that drive its delivery machine.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use concordat_protocol::{
    Key, Kind, Lease, Millis, Name, Now, Plan,
    queue::{
        Outcome, Settings,
        delivery::{Change, Delivered, Delivery, Effect, Input, Status, Tag, Ticket, Verdict, Waiter},
        location::{Receipt, definition},
    },
    session::{Stat, counter},
};
use concordat_store::WatchEvent;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until, timeout},
};

use super::{Inner, gather};
use crate::{api, definitions::Defined, problem::Problem};

/// A queue that nobody consumes from here is watched no longer, after this.
const IDLE: Duration = Duration::from_mins(1);
/// How often is looked whether anybody still consumes; the operator is told no more often.
const LOOK: Duration = Duration::from_secs(2);
/// A settlement that takes longer is answered as unknown. Without space in etcd it may take until the last message of
/// its segment is settled.
const SETTLE: Duration = Duration::from_secs(10);
/// A receive that does not wait ends after this without what is there.
const LAST: Duration = Duration::from_secs(10);
/// One that has waited ends so soon without what is being taken for it: a client that waits no longer is answered in time.
const SOON: Duration = Duration::from_millis(200);
/// How long deliveries may take to be given back when the sidecar ends.
const DRAIN: Duration = Duration::from_secs(5);

/// The delivery of one queue.
pub(super) struct Consuming {
    inner: Arc<Inner>,
    queue: Name,
    life: i64,
    state: Mutex<State>,
    next: AtomicU64,
    /// Something happened that the driver must look at.
    stirred: Notify,
    over: AtomicBool,
}

struct State {
    machine: Delivery,
    settings: Arc<Settings>,
    waiters: HashMap<Waiter, oneshot::Sender<Vec<Delivered>>>,
    tickets: HashMap<Ticket, oneshot::Sender<Status>>,
}

impl Consuming {
    pub(super) fn start(inner: Arc<Inner>, queue: Name, defined: &Defined<Settings>) -> Arc<Self> {
        let settings = defined.settings.clone();
        let life = defined.create_revision;
        let machine = Delivery::new(queue.clone(), (*settings).clone(), life, inner.numbers());
        let (waiters, tickets) = (HashMap::new(), HashMap::new());
        let consuming = Arc::new(Self {
            inner,
            queue,
            life,
            state: Mutex::new(State { machine, settings, waiters, tickets }),
            next: AtomicU64::new(0),
            stirred: Notify::new(),
            over: AtomicBool::new(false),
        });
        tokio::spawn(consuming.clone().drive());
        consuming
    }

    /// Whether it serves the queue of this life.
    pub(super) fn lives(&self, life: i64) -> bool {
        self.life == life && !self.over.load(Ordering::Relaxed)
    }

    pub(super) async fn receive(
        self: &Arc<Self>,
        max: u32,
        wait: Millis,
        visibility: Millis,
    ) -> Result<Vec<Delivered>, Problem> {
        let waiter = self.next.fetch_add(1, Ordering::Relaxed);
        let (give, given) = oneshot::channel();
        self.state.lock().waiters.insert(waiter, give);
        let mut waiting = Waits { of: self.clone(), waiter, given: Some(given) };
        self.step(Input::Receive(waiter, max, visibility));
        let Some(given) = waiting.given.as_mut() else { return Err(Problem::internal()) };
        let served = match timeout(Duration::from_millis(wait), &mut *given).await {
            Ok(served) => Ok(served),
            Err(_) => {
                self.step(Input::WaitOver(waiter));
                timeout(if wait == 0 { LAST } else { SOON }, given).await
            }
        };
        match served {
            Ok(Ok(messages)) => {
                waiting.given = None;
                Ok(messages)
            }
            Ok(Err(_)) if self.inner.ending.is_cancelled() => Err(api::ending()),
            Ok(Err(_)) => Err(gone(&self.queue)),
            // What comes in this moment is given back by the drop.
            Err(_) => Ok(Vec::new()),
        }
    }

    pub(super) async fn settle(&self, receipts: Vec<Receipt>, verdict: Verdict) -> Vec<Status> {
        self.ask(receipts, |ticket, receipt| Input::Settle(Some(ticket), receipt, verdict.clone())).await
    }

    pub(super) async fn extend(&self, receipts: Vec<Receipt>, visibility: Millis) -> Vec<Status> {
        self.ask(receipts, |ticket, receipt| Input::Extend(ticket, receipt, visibility)).await
    }

    async fn ask(&self, receipts: Vec<Receipt>, input: impl Fn(Ticket, Receipt) -> Input) -> Vec<Status> {
        let mut answers = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            let ticket = self.next.fetch_add(1, Ordering::Relaxed);
            let (tell, told) = oneshot::channel();
            self.state.lock().tickets.insert(ticket, tell);
            self.step(input(ticket, receipt));
            answers.push((ticket, told));
        }
        let until = Instant::now() + SETTLE;
        let mut statuses = Vec::with_capacity(answers.len());
        for (ticket, told) in answers {
            let status = tokio::time::timeout_at(until, told).await;
            if status.is_err() {
                self.state.lock().tickets.remove(&ticket);
            }
            statuses.push(status.ok().and_then(Result::ok).unwrap_or(Status::Unknown));
        }
        statuses
    }

    /// Gives back what never reached its consumer.
    pub(super) fn give_back(&self, messages: Vec<Delivered>) {
        for Delivered { receipt, .. } in messages {
            self.step(Input::Settle(None, receipt, Verdict::Returned));
        }
    }

    /// Ends all deliveries and answers all who wait.
    pub(super) async fn drain(&self) {
        self.state.lock().waiters.clear();
        self.step(Input::Drain);
        let idle = async {
            while !self.state.lock().machine.idle() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(DRAIN, idle).await.is_err() {
            tracing::warn!(queue = %self.queue, "deliveries were not given back: they go with the session");
        }
    }

    fn now(&self) -> Now {
        self.inner.store.clock().now()
    }

    /// One step; the driver does what follows from it.
    fn step(&self, input: Input) {
        let effects = self.state.lock().machine.step(input, self.now());
        self.answer(effects);
        self.stirred.notify_one();
    }

    /// Runs the effects that need no plan; returns those that do.
    fn answer(&self, effects: Vec<Effect>) -> Vec<(Tag, Plan)> {
        let mut plans = Vec::new();
        for effect in effects {
            match effect {
                Effect::Commit(tag, plan) => plans.push((tag, plan)),
                Effect::Deliver(waiter, messages) => {
                    let give = self.state.lock().waiters.remove(&waiter);
                    // When the sidecar ends nobody waits any more.
                    let unseen = match give {
                        Some(give) => give.send(messages).err(),
                        None => Some(messages),
                    };
                    self.give_back(unseen.unwrap_or_default());
                }
                Effect::Settled(ticket, status) => {
                    let tell = self.state.lock().tickets.remove(&ticket);
                    if let Some(tell) = tell {
                        let _ = tell.send(status);
                    }
                }
            }
        }
        plans
    }

    async fn drive(self: Arc<Self>) {
        let store = &self.inner.store;
        let mut watch = store.watch(self.state.lock().machine.range());
        let mut sessions = store.sessions();
        let mut definitions = self.inner.definitions.changes();
        if !self.redefine() {
            return self.end();
        }
        let (mut look_at, mut idle_since, mut told) = (Instant::now(), Instant::now(), None);
        loop {
            let wake = self.state.lock().machine.wake().map(|at| store.clock().instant(at));
            tokio::select! {
                events = watch.next() => self.take(events),
                _ = sessions.changed() => told = None,
                _ = definitions.changed() => if !self.redefine() {
                    return self.end();
                },
                () = self.stirred.notified() => {
                    // Whoever is ready now shares the plans.
                    gather(&self.next).await;
                }
                () = sleep_until(wake.map_or(look_at, |wake| wake.min(look_at))) => {}
            }
            self.pump();
            if Instant::now() < look_at {
                continue;
            }
            look_at = Instant::now() + LOOK;
            let consumed = self.consumed();
            if consumed {
                idle_since = Instant::now();
            } else if idle_since.elapsed() > IDLE {
                return self.end();
            }
            if told != Some(consumed) {
                told = Some(consumed);
                self.tell(consumed);
            }
        }
    }

    /// Whether somebody waits for messages or works on some.
    fn consumed(&self) -> bool {
        !self.state.lock().machine.idle()
    }

    /// Takes over the queue's settings; whether the queue is still the one it was.
    fn redefine(&self) -> bool {
        let definitions = &self.inner.definitions;
        let Ok(defined) = definitions.queue(self.queue.as_str()) else {
            return !definitions.synced();
        };
        let mut state = self.state.lock();
        if !Arc::ptr_eq(&state.settings, &defined.settings) {
            state.settings = defined.settings.clone();
            state.machine.step(Input::Settings((*defined.settings).clone()), self.now());
        }
        let letters = defined.settings.dead_letter_queue.clone().filter(|name| *name != self.queue);
        let letters = letters.and_then(|name| {
            let of = definitions.queue(name.as_str()).ok()?;
            Some((name, of.create_revision, of.settings.retention_age))
        });
        state.machine.step(Input::DeadLetters(letters), self.now());
        defined.create_revision == self.life
    }

    fn take(&self, events: Vec<WatchEvent>) {
        let mut changes = Vec::new();
        let mut inputs = Vec::new();
        for event in events {
            match event {
                WatchEvent::Snapshot { revision, entries } => {
                    changes.clear();
                    inputs.push(Input::Snapshot(revision, entries));
                }
                WatchEvent::Put(entry) => changes.push(Change::Put(entry)),
                WatchEvent::Deleted { key, revision } => changes.push(Change::Deleted(key, revision)),
                WatchEvent::Progress(_) => {}
            }
        }
        inputs.push(Input::Changed(changes));
        for input in inputs {
            let effects = self.state.lock().machine.step(input, self.now());
            self.answer(effects);
        }
    }

    /// Lets the machine do what it can, as long as the session is believed.
    fn pump(self: &Arc<Self>) {
        self.believe();
        let effects = self.state.lock().machine.step(Input::Pump, self.now());
        self.run(effects);
    }

    fn run(self: &Arc<Self>, effects: Vec<Effect>) {
        for (tag, plan) in self.answer(effects) {
            let of = self.clone();
            tokio::spawn(async move { of.commit(tag, plan).await });
        }
    }

    async fn commit(&self, tag: Tag, plan: Plan) -> Outcome {
        let outcome = self.inner.commit(plan).await;
        self.believe();
        self.step(Input::Done(tag, outcome.clone()));
        outcome
    }

    /// Commits a plan that stores messages. Those that somebody here waits for go out with its answer.
    pub(super) async fn publish(self: &Arc<Self>, plan: Plan) -> Outcome {
        self.believe();
        let (tag, plan, effects) = self.state.lock().machine.join(plan, self.now());
        self.run(effects);
        match tag {
            Some(tag) => self.commit(tag, plan).await,
            None => self.inner.commit(plan).await,
        }
    }

    /// A delivery's deadline is that of the session as it is now.
    fn believe(&self) {
        let (session, now) = (self.inner.store.session(), self.now());
        let believed = session.is_believed(now).then(|| (session.id.clone(), session.believed_until()));
        let effects = self.state.lock().machine.step(Input::Session(believed), now);
        self.answer(effects);
    }

    /// Tells the operator whether somebody consumes here.
    fn tell(&self, consumed: bool) {
        let session = self.inner.store.session().id;
        let key = Key::Stat { kind: Kind::Queue, name: self.queue.clone(), session: session.clone() };
        let counters = vec![(counter::CONSUMERS.to_owned(), u64::from(consumed))];
        let plan = Plan::new().same_life(definition(&self.queue), self.life).put(
            key,
            Stat { counters },
            Lease::Session(session),
        );
        let inner = self.inner.clone();
        tokio::spawn(async move {
            if let Err(error) = inner.store.commit(plan).await {
                tracing::debug!(%error, "counters were not put");
            }
        });
    }

    /// Nobody is served any more: those who wait are told.
    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.waiters.clear();
        state.tickets.clear();
        drop(state);
        let mut all = self.inner.consuming.lock();
        if all.get(&self.queue).is_some_and(|of| std::ptr::eq(Arc::as_ptr(of), self)) {
            all.remove(&self.queue);
        }
    }
}

fn gone(queue: &Name) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no-such-queue", "There is no such object")
        .detail(format!("the Queue {queue:?} was deleted or replaced"))
}

/// A long poll. Dropped while it waits, it leaves nothing behind: what was given to it is given back.
struct Waits {
    of: Arc<Consuming>,
    waiter: Waiter,
    given: Option<oneshot::Receiver<Vec<Delivered>>>,
}

impl Drop for Waits {
    fn drop(&mut self) {
        let Some(mut given) = self.given.take() else { return };
        self.of.state.lock().waiters.remove(&self.waiter);
        match given.try_recv() {
            Ok(messages) => self.of.give_back(messages),
            Err(_) => self.of.step(Input::GiveUp(self.waiter)),
        }
    }
}
