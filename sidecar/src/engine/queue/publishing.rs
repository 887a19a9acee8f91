//! Publishing to one queue.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use concordat_protocol::{
    Key, Millis, Name, Range, SessionId,
    queue::{
        Settings,
        publish::{Effect, Input, Offer, Published, Publisher, SEGMENT_BYTES, Ticket},
    },
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Inner, gather};
use crate::{definitions::Defined, problem::Problem};

/// How old a count of the queue's bytes may be, milliseconds.
const COUNT_FRESH: Millis = 1_000;

/// The publisher of one queue.
pub(super) struct Publishing {
    queue: Name,
    /// Create revision of the definition.
    pub(super) life: i64,
    state: Mutex<State>,
    tickets: AtomicU64,
    pumping: AtomicBool,
    counting: Arc<tokio::sync::Mutex<()>>,
    /// When the queue was counted last; 0: never.
    counted: AtomicU64,
}

struct State {
    machine: Publisher,
    settings: Arc<Settings>,
    replies: HashMap<Ticket, oneshot::Sender<Vec<Published>>>,
}

impl Publishing {
    pub(super) fn new(queue: Name, defined: &Defined<Settings>, session: SessionId, first: u64) -> Arc<Self> {
        let settings = defined.settings.clone();
        let life = defined.create_revision;
        let machine = Publisher::new(queue.clone(), (*settings).clone(), life, session, first);
        Arc::new(Self {
            queue,
            life,
            state: Mutex::new(State { machine, settings, replies: HashMap::new() }),
            tickets: AtomicU64::new(0),
            pumping: AtomicBool::new(false),
            counting: Arc::default(),
            counted: AtomicU64::new(0),
        })
    }

    pub(super) async fn publish(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        defined: &Defined<Settings>,
        offers: Vec<Offer>,
    ) -> Result<Vec<Published>, Problem> {
        let wanted = offers.iter().map(|offer| offer.message.size()).sum();
        self.count(inner, &defined.settings, wanted).await?;
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let effects = {
            let mut state = self.state.lock();
            if !Arc::ptr_eq(&state.settings, &defined.settings) {
                state.settings = defined.settings.clone();
                state.machine.step(Input::Define((*defined.settings).clone(), self.life));
            }
            state.machine.step(Input::Session(inner.store.session().id));
            state.replies.insert(ticket, reply);
            state.machine.step(Input::Offer(ticket, offers))
        };
        self.run(inner, effects);
        if !self.pumping.swap(true, Ordering::Relaxed) {
            let (of, inner) = (self.clone(), inner.clone());
            tokio::spawn(async move {
                // Whoever is ready to publish now shares the segment.
                gather(&of.tickets).await;
                of.pumping.store(false, Ordering::Relaxed);
                of.step(&inner, Input::Pump);
            });
        }
        answer.await.map_err(|_| Problem::internal())
    }

    fn step(self: &Arc<Self>, inner: &Arc<Inner>, input: Input) {
        let effects = self.state.lock().machine.step(input);
        self.run(inner, effects);
    }

    fn run(self: &Arc<Self>, inner: &Arc<Inner>, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Commit(tag, plan) => {
                    let (of, inner) = (self.clone(), inner.clone());
                    tokio::spawn(async move {
                        let outcome = match inner.consuming_here(&of.queue, of.life) {
                            Some(consuming) => consuming.publish(plan).await,
                            None => inner.commit(plan).await,
                        };
                        of.step(&inner, Input::Done(tag, outcome));
                    });
                }
                Effect::Reply(ticket, results) => {
                    let reply = self.state.lock().replies.remove(&ticket);
                    if let Some(reply) = reply {
                        // Its caller may have gone.
                        let _ = reply.send(results);
                    }
                }
            }
        }
    }

    /// Counts the queue's bytes, unless that was done a moment ago. Far below the limit, counting segments is enough.
    async fn count(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        settings: &Settings,
        wanted: u64,
    ) -> Result<(), Problem> {
        let now = inner.store.clock().monotonic().max(1);
        let fresh = |counted: Millis| counted > 0 && now < counted + COUNT_FRESH;
        let counted = self.counted.load(Ordering::Relaxed);
        if fresh(counted) {
            return Ok(());
        }
        if counted == 0 || self.state.lock().machine.room() < wanted {
            // Nobody is refused by an old count.
            let _counting = self.counting.lock().await;
            if !fresh(self.counted.load(Ordering::Relaxed)) {
                // Boxed: it is most of what each publisher's future would be, and one of them takes it.
                Box::pin(self.recount(inner, settings, now)).await?;
            }
        } else if let Ok(counting) = self.counting.clone().try_lock_owned() {
            // The old count is good enough for who publishes now.
            let (of, inner, settings) = (self.clone(), inner.clone(), settings.clone());
            tokio::spawn(async move {
                let _counting = counting;
                if let Err(why) = of.recount(&inner, &settings, now).await {
                    tracing::debug!(why = why.detail, queue = %of.queue, "the queue was not counted");
                }
            });
        }
        Ok(())
    }

    async fn recount(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        settings: &Settings,
        now: Millis,
    ) -> Result<(), Problem> {
        let range = Range::Segments(self.queue.clone());
        let (segments, _) = inner.store.count(range.clone()).await?;
        let most = segments * SEGMENT_BYTES.max(settings.max_message_bytes);
        let bytes = if most < settings.retention_bytes / 2 {
            most
        } else {
            let (keys, _) = inner.store.list_keys(range).await?;
            keys.iter().map(|(key, ..)| bytes(key)).sum()
        };
        self.step(inner, Input::Room(settings.retention_bytes.saturating_sub(bytes)));
        self.counted.store(now, Ordering::Relaxed);
        Ok(())
    }
}

fn bytes(key: &Key) -> u64 {
    match key {
        Key::Segment { segment, .. } => segment.bytes.into(),
        _ => 0,
    }
}
