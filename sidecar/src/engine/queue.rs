//! Runs queues: for each a publisher while somebody publishes here, and a delivery while somebody consumes here.

mod consuming;
mod counts;
mod dead;
mod publishing;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use concordat_protocol::{
    Key, Millis, Name, Plan, Write,
    queue::{
        Outcome, Settings,
        delivery::{Delivered, Status, Verdict},
        location::Receipt,
        publish::{Offer, Published},
    },
};
use concordat_store::{CommitError, Store};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio_util::sync::CancellationToken;

use self::{consuming::Consuming, publishing::Publishing};
pub use self::{counts::Inspection, dead::DeadMessage};
use crate::{
    api,
    context::Identity,
    definitions::{Defined, Definitions},
    failpoint,
    metrics::Metrics,
    problem::Problem,
    spans::Span,
};

/// Each machine of a session numbers what it makes from a multiple of this on.
const NUMBERS: u64 = 1 << 32;
/// How many turns of the scheduler callers may come in before a plan is made of what they want.
const TURNS: usize = 8;

/// Runs queues. Cheap to clone.
#[derive(Clone)]
pub struct QueueEngine(Arc<Inner>);

struct Inner {
    store: Store,
    definitions: Definitions,
    publishing: Mutex<HashMap<Name, Arc<Publishing>>>,
    consuming: Mutex<HashMap<Name, Arc<Consuming>>>,
    machines: AtomicU64,
    ending: CancellationToken,
    counted: Counted,
}

/// What is counted, over all queues.
#[derive(Default)]
struct Counted {
    published: Counter,
    delivered: Counter,
    settled: Counter,
}

impl QueueEngine {
    /// Starts.
    pub fn start(
        store: &Store,
        definitions: &Definitions,
        metrics: &Arc<Metrics>,
        _: &Arc<Identity>,
    ) -> Self {
        let counted = Counted::default();
        metrics.register("queue_published", "Messages stored", counted.published.clone());
        metrics.register("queue_delivered", "Messages handed out", counted.delivered.clone());
        metrics.register("queue_settled", "Deliveries settled by consumers", counted.settled.clone());
        Self(Arc::new(Inner {
            store: store.clone(),
            definitions: definitions.clone(),
            publishing: Mutex::default(),
            consuming: Mutex::default(),
            machines: AtomicU64::new(1),
            ending: CancellationToken::new(),
            counted,
        }))
    }

    /// Gives deliveries back and answers who waits; nothing new is taken.
    pub async fn drain(&self) {
        self.0.ending.cancel();
        let consuming: Vec<_> = self.0.consuming.lock().values().cloned().collect();
        for queue in consuming {
            queue.drain().await;
        }
    }

    /// Stores messages: what became of each, in their order.
    ///
    /// # Errors
    /// 404 and 501 as the definition says, 503 when nothing is taken in.
    pub async fn publish(&self, queue: &str, offers: Vec<Offer>) -> Result<Vec<Published>, Problem> {
        let defined = self.intake(queue)?;
        let publishing = self.publishing(queue, &defined);
        let mut traced = Span::commit("publish");
        let results = publishing.publish(&self.0, &defined, offers).await?;
        if let Some(Published::Unknown | Published::NotApplied) = results.first() {
            traced.fail(|| "not-committed".into());
        }
        drop(traced);
        let stored = |result: &&Published| matches!(result, Published::Stored { duplicate: false, .. });
        self.0.counted.published.inc_by(results.iter().filter(stored).count() as u64);
        Ok(results)
    }

    /// Waits for messages; none when the wait ends first. Dropped, it leaves nothing behind.
    ///
    /// # Errors
    /// 404 and 501 as the definition says, 503 while the sidecar ends.
    pub async fn receive(
        &self,
        queue: &str,
        max: u32,
        wait: Millis,
        visibility: Option<Millis>,
    ) -> Result<Received, Problem> {
        let defined = self.0.definitions.queue(queue)?;
        if self.0.ending.is_cancelled() {
            return Err(api::ending());
        }
        let visibility = visibility.unwrap_or(defined.settings.visibility);
        let consuming = self.consuming(queue, &defined);
        let messages = consuming.receive(max, wait, visibility).await?;
        self.0.counted.delivered.inc_by(messages.len() as u64);
        Ok(Received { messages, of: consuming })
    }

    /// Ends deliveries: a status for each receipt.
    ///
    /// # Errors
    /// 404 and 501 as the definition says.
    pub async fn settle(
        &self,
        queue: &str,
        receipts: Vec<Receipt>,
        verdict: Verdict,
    ) -> Result<Vec<Status>, Problem> {
        let defined = self.0.definitions.queue(queue)?;
        let mut traced = Span::commit("settle");
        let statuses = self.consuming(queue, &defined).settle(receipts, verdict).await;
        if statuses.contains(&Status::Unknown) {
            traced.fail(|| "unknown".into());
        }
        drop(traced);
        let settled = statuses.iter().filter(|status| **status == Status::Ok).count();
        self.0.counted.settled.inc_by(settled as u64);
        Ok(statuses)
    }

    /// Lets deliveries last this much longer from now: a status for each receipt.
    ///
    /// # Errors
    /// 404 and 501 as the definition says.
    pub async fn extend(
        &self,
        queue: &str,
        receipts: Vec<Receipt>,
        visibility: Option<Millis>,
    ) -> Result<Vec<Status>, Problem> {
        let defined = self.0.definitions.queue(queue)?;
        let visibility = visibility.unwrap_or(defined.settings.visibility);
        Ok(self.consuming(queue, &defined).extend(receipts, visibility).await)
    }

    /// The definition, when new work may be taken in.
    fn intake(&self, queue: &str) -> Result<Defined<Settings>, Problem> {
        let defined = self.0.definitions.queue(queue)?;
        if self.0.ending.is_cancelled() {
            return Err(api::ending());
        }
        if !self.0.store.intake_open() {
            let why = "etcd's space is nearly used up: nothing new is taken in until some is freed";
            return Err(Problem::unavailable("out-of-space", why));
        }
        Ok(defined)
    }

    fn publishing(&self, queue: &str, defined: &Defined<Settings>) -> Arc<Publishing> {
        let mut all = self.0.publishing.lock();
        if let Some(found) = all.get(queue).filter(|found| found.life == defined.create_revision) {
            return found.clone();
        }
        let session = self.0.store.session().id;
        let new = Publishing::new(queue.into(), defined, session, self.0.numbers());
        all.insert(queue.into(), new.clone());
        new
    }

    fn consuming(&self, queue: &str, defined: &Defined<Settings>) -> Arc<Consuming> {
        let mut all = self.0.consuming.lock();
        if let Some(found) = all.get(queue).filter(|found| found.lives(defined.create_revision)) {
            return found.clone();
        }
        let new = Consuming::start(self.0.clone(), queue.into(), defined);
        all.insert(queue.into(), new.clone());
        new
    }
}

impl Inner {
    /// The first of the numbers of one more machine.
    fn numbers(&self) -> u64 {
        self.machines.fetch_add(1, Ordering::Relaxed) * NUMBERS
    }

    /// The delivery of a queue, if there is one here.
    fn consuming_here(&self, queue: &Name, life: i64) -> Option<Arc<Consuming>> {
        self.consuming.lock().get(queue).filter(|found| found.lives(life)).cloned()
    }

    /// Commits a plan, between the fail points of its kind.
    async fn commit(&self, plan: Plan) -> Outcome {
        let kind = Kind::of(&plan);
        match kind {
            Kind::Publish => failpoint!("queue-before-publish"),
            Kind::Claim => failpoint!("queue-before-claim"),
            Kind::DeadLetter => failpoint!("queue-before-dead-letter"),
            Kind::Settle => failpoint!("queue-before-ack"),
            Kind::Read => {}
        }
        let outcome = match self.store.commit(plan).await {
            Ok(answer) => Outcome::Answered(answer),
            Err(CommitError::Unknown(why)) => {
                tracing::debug!(why, "the outcome of a plan is not known");
                Outcome::Unknown
            }
            Err(why) => {
                tracing::debug!(%why, "a plan was not applied");
                Outcome::NotApplied
            }
        };
        match kind {
            Kind::Publish => failpoint!("queue-after-publish"),
            Kind::Claim => failpoint!("queue-after-claim-before-answer"),
            Kind::DeadLetter => failpoint!("queue-after-dead-letter"),
            Kind::Settle => failpoint!("queue-after-ack"),
            Kind::Read => {}
        }
        outcome
    }
}

/// Lets whoever is ready come first, as long as more do, so that they share one plan: under load a commit is dear and a
/// turn of the scheduler is not. `arrived` counts them.
async fn gather(arrived: &AtomicU64) {
    for _ in 0..TURNS {
        let before = arrived.load(Ordering::Relaxed);
        tokio::task::yield_now().await;
        if arrived.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// What a plan is about, for its fail points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Publish,
    Claim,
    Settle,
    DeadLetter,
}

impl Kind {
    fn of(plan: &Plan) -> Self {
        let puts = |which: fn(&Key) -> bool| {
            plan.writes.iter().any(|write| matches!(write, Write::Put(key, ..) if which(key)))
        };
        // One that stores messages and takes them is a publish.
        if plan.writes.is_empty() {
            Self::Read
        } else if puts(|key| matches!(key, Key::Dead { .. })) {
            Self::DeadLetter
        } else if puts(|key| matches!(key, Key::Segment { .. })) {
            Self::Publish
        } else if puts(|key| matches!(key, Key::Claim { .. })) {
            Self::Claim
        } else {
            Self::Settle
        }
    }
}

/// Messages on their way to a consumer. Dropped before [`Received::sent`], they are given back.
pub struct Received {
    /// The messages.
    pub messages: Vec<Delivered>,
    of: Arc<Consuming>,
}

impl Received {
    /// The answer that carries them is made: from here on they are delivered.
    pub fn sent(mut self) {
        self.messages.clear();
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.of.give_back(std::mem::take(&mut self.messages));
    }
}
