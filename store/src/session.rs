//! One life of this process in etcd: a lease kept alive on a connection of its own, and what hangs on it.

mod belief;
pub(crate) mod lease;
mod leases;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use concordat_protocol::{
    Answer, App, Key, Lease, Millis, Now, Plan, Range, SessionId, Write,
    etcd::{Op, Txn},
    record,
    timeline::{self as decided, Lost, Remembered, Timeline, Verdict},
};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use self::{belief::Belief, lease::Granted, leases::Leases};
use crate::{
    CommitError, Config, Refusal, admin,
    batch::{Abandoned, BatchRules, Batcher, FLUSHERS, LeaseId, Marker, Settled, lower},
    clock::Clock,
    connection::back_off,
    exchange::Exchange,
    observer::Purpose,
    record::encode,
    timeline,
};

/// A sidecar's session as it may be asked at any time.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its nonce.
    pub id: SessionId,
    /// The app whose part the sidecar takes.
    pub app: App,
    /// The pod it runs in.
    pub pod: String,
    belief: Arc<Belief>,
}

impl Session {
    /// Until when it is believed to live unless it is kept alive, on the monotonic clock; 0 when it is over.
    pub fn believed_until(&self) -> Millis {
        self.belief.until()
    }

    /// Time to live of its lease, milliseconds.
    pub fn ttl(&self) -> Millis {
        self.belief.ttl()
    }

    /// Whether it may be acted upon. Once false, false for good.
    pub fn is_believed(&self, now: Now) -> bool {
        self.belief.holds(now.monotonic)
    }
}

/// What became of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It lives.
    Live(SessionId),
    /// It is over, and with it all that was leased under it; a new one is being opened.
    Lost(SessionId),
}

type Ticket = oneshot::Sender<Result<Answer, CommitError>>;

/// Why there is no session.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// etcd did not answer, or refused.
    Refused(Refusal),
    /// etcd was restored.
    Restored(Lost),
}

impl From<Refusal> for NotOpened {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A session with its group commit.
pub(crate) struct Live {
    pub(crate) session: Session,
    /// The namespace's timeline when it was opened: the session ends with its epoch.
    pub(crate) timeline: Timeline,
    lease: Granted,
    leases: Arc<Leases>,
    rules: BatchRules,
    batcher: Mutex<Batcher<Bytes, Ticket>>,
    wake: Notify,
    roused: AtomicBool,
    ended: AtomicBool,
}

impl Live {
    /// Opens a session in an etcd that is what it was: its lease, its key, its markers. `exchange` asks on the connection
    /// for keepalives.
    pub(crate) async fn open(
        config: &Config,
        clock: Clock,
        exchange: &Exchange,
        remembered: Option<&Remembered>,
    ) -> Result<Arc<Self>, NotOpened> {
        loop {
            let found = timeline::find(exchange).await?;
            match decided::judge(found.recorded.as_ref(), &found.observed, remembered) {
                Verdict::Fine(newer) => {
                    // What is remembered of an earlier epoch is no measure of this one.
                    let epoch = found.recorded.as_ref().map_or(0, |recorded| recorded.epoch);
                    if let (Some(memory), Some(remembered)) = (&exchange.memory, remembered)
                        && remembered.epoch.is_some_and(|known| known < epoch)
                    {
                        memory.begin(&found.observed);
                    }
                    if let Some(live) = Self::begin(config, clock, exchange, found, newer).await? {
                        return Ok(live);
                    }
                }
                Verdict::Restored(lost) => {
                    if found.recorded.as_ref().is_some_and(|recorded| recorded.lost.as_ref() == Some(&lost))
                        // What is not written for want of an answer is for the next one to write.
                        || tell(exchange, &found, lost.clone()).await.unwrap_or(true)
                    {
                        return Err(NotOpened::Restored(lost));
                    }
                }
            }
        }
    }

    /// Opens a session, `None` when the timeline is no more as it was found.
    async fn begin(
        config: &Config,
        clock: Clock,
        exchange: &Exchange,
        found: timeline::Found,
        newer: Option<Timeline>,
    ) -> Result<Option<Arc<Self>>, Refusal> {
        let id = nonce()?;
        let lease = lease::grant(&exchange.connection, clock, config.session_ttl).await?;
        let marker = |name: String| Key::Marker { session: id.clone(), name: name.into() };
        let value: Bytes = encode(&record::Marker.into()).into();
        let put = |key, value| Op::Put { key, value, lease: lease.id };
        let mut then = vec![put(Key::Session(id.clone()), encode(&config.session.clone().into()).into())];
        then.extend((0..FLUSHERS).map(|flusher| put(marker(flusher.to_string()), value.clone())));
        let record = newer.as_ref().map(|record| encode(&record.clone().into()).into());
        then.extend(record.map(|value| Op::Put { key: Key::Timeline, value, lease: 0 }));
        let compares = Plan::new().unchanged(Key::Timeline, found.revision).compares;
        let opened = exchange.txn(Purpose::Session, &Txn { compares, then, ..Txn::default() }).await;
        let revision = match opened {
            Ok((answer, revision)) if answer.held => revision,
            Ok(_) => {
                lease::revoke(&exchange.connection, lease.id).await;
                return Ok(None);
            }
            Err(refusal) => {
                lease::revoke(&exchange.connection, lease.id).await;
                return Err(refusal);
            }
        };
        let markers = std::array::from_fn(|flusher| Marker {
            key: marker(flusher.to_string()),
            void: marker(format!("{flusher}-void")),
            value: value.clone(),
            lease: lease.id,
            revision,
        });
        let session = Session {
            id: id.clone(),
            app: config.session.app.clone(),
            pod: config.session.pod.clone(),
            belief: lease.belief.clone(),
        };
        let Some(timeline) = newer.or(found.recorded) else { return Ok(None) };
        Ok(Some(Arc::new(Self {
            session,
            timeline,
            lease,
            leases: Arc::new(Leases::new(id, exchange.clone(), clock)),
            rules: config.rules,
            batcher: Mutex::new(Batcher::new(config.rules, markers)),
            wake: Notify::new(),
            roused: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })))
    }

    /// Keeps it alive; returns when it is over.
    pub(crate) async fn keep(&self, clock: Clock, exchange: &Exchange) {
        lease::keep(&exchange.connection, clock, &self.lease).await;
    }

    /// No plan goes any more; those in flight are found out about.
    pub(crate) fn end(self: &Arc<Self>) {
        self.session.belief.end();
        let settled = self.batcher.lock().end();
        self.deliver(settled);
        self.ended.store(true, Ordering::Release);
        self.wake.notify_waiters();
        self.wake.notify_one();
    }

    /// Revokes its leases, so that others need not wait for them to run out.
    pub(crate) async fn revoke(&self, exchange: &Exchange) {
        self.leases.revoke().await;
        lease::revoke(&exchange.connection, self.lease.id).await;
    }

    /// Until when a lease of this session with this time to live is believed; `None` when there is none.
    pub(crate) fn believed_until(&self, ttl: Millis) -> Option<Millis> {
        self.leases.believed_until(ttl)
    }

    /// This time to live, or the next longer one whose lease of this session was not lost.
    pub(crate) fn live_ttl(&self, ttl: Millis) -> Millis {
        self.leases.live_ttl(ttl)
    }

    /// Whether no plan waits or is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.batcher.lock().is_idle()
    }

    /// Commits a plan together with whatever else waits.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        plan: Plan,
        patience: Millis,
    ) -> Result<Answer, CommitError> {
        for write in &plan.writes {
            if let Write::Put(_, _, lease @ (Lease::Ttl(of, _) | Lease::Retention(of, _))) = write {
                if *of != self.session.id {
                    return Err(CommitError::SessionEnded);
                }
                if self.leases.find(lease).is_none() {
                    self.leases.ensure(lease).boxed().await?;
                }
            }
        }
        let (ticket, answer) = oneshot::channel();
        let number = self.submit(plan, ticket)?;
        let patience = Duration::from_millis(patience);
        if let Ok(answer) = tokio::time::timeout(patience, answer).await {
            return answer.unwrap_or(Err(CommitError::Unknown("the store was closed".into())));
        }
        let abandoned = self.batcher.lock().abandon(number);
        Err(match abandoned {
            Abandoned::Waiting => CommitError::NotApplied("etcd cannot be reached".into()),
            Abandoned::InFlight | Abandoned::Settled => CommitError::Unknown("etcd does not answer".into()),
        })
    }

    fn submit(&self, plan: Plan, ticket: Ticket) -> Result<u64, CommitError> {
        let encode = |record| {
            let bytes: Bytes = encode(&record).into();
            let size = bytes.len();
            (bytes, size)
        };
        let prepared = lower(plan, self.rules, |lease| self.lease_id(lease), encode)?;
        let number = self.batcher.lock().submit(prepared, ticket).map_err(|(_, error)| error)?;
        self.rouse();
        Ok(number)
    }

    fn lease_id(&self, lease: &Lease) -> Option<LeaseId> {
        match lease {
            Lease::Forever => Some(LeaseId { id: 0, guard: None }),
            Lease::Session(of) => {
                (*of == self.session.id).then(|| LeaseId { id: self.lease.id, guard: lease.guard() })
            }
            Lease::With(_, id) => Some(LeaseId { id: *id, guard: lease.guard() }),
            lease => self.leases.find(lease),
        }
    }

    /// Wakes a flusher, unless one is awake already and has not taken anything yet.
    fn rouse(&self) {
        if !self.roused.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    /// Sends what waits, batch after batch, until the session is over and nothing is in flight.
    pub(crate) async fn flush(self: Arc<Self>, exchange: Exchange, flusher: usize) {
        let mut failures = 0;
        loop {
            // Whoever is about to submit does so now, and the batch is the larger for it.
            tokio::task::yield_now().await;
            self.roused.store(false, Ordering::Release);
            let (mut ask, more) = {
                let mut batcher = self.batcher.lock();
                (batcher.take(flusher), batcher.waiting() > 0)
            };
            if ask.is_none() {
                if self.ended.load(Ordering::Acquire) {
                    return self.wake.notify_one();
                }
                self.wake.notified().await;
                continue;
            }
            if more {
                self.rouse();
            }
            while let Some(asked) = ask {
                let told = exchange.told(&asked).await;
                let step = self.batcher.lock().told(flusher, told);
                self.deliver(step.settled);
                ask = step.ask;
                if step.wait {
                    tokio::time::sleep(Duration::from_millis(back_off(failures))).await;
                    failures += 1;
                } else {
                    failures = 0;
                }
            }
        }
    }

    /// Tells callers; what was put for one that no longer waits is deleted again.
    fn deliver(&self, settled: Vec<Settled<Ticket>>) {
        for Settled { ticket, result, holdings } in settled {
            let applied = result.as_ref().ok().filter(|answer| answer.held).map(|answer| answer.revision);
            let told = ticket.is_some_and(|ticket| ticket.send(result).is_ok());
            let Some(revision) = applied.filter(|_| !told) else { continue };
            for key in holdings {
                tracing::info!(?key, "nobody waits for what was put here: it is deleted");
                let plan = Plan::new().unchanged(key.clone(), revision).delete(Range::One(key));
                let (ticket, _) = oneshot::channel();
                if let Err(error) = self.submit(plan, ticket) {
                    tracing::debug!(%error, "it goes with its session");
                }
            }
        }
    }
}

/// Writes down that etcd was restored; false when the timeline is no more as it was found.
pub(crate) async fn tell(exchange: &Exchange, found: &timeline::Found, lost: Lost) -> Result<bool, Refusal> {
    let plan = decided::tell(found.recorded.as_ref(), found.revision, &found.observed, lost);
    let txn = admin::lower(plan).map_err(|error| Refusal::NotSent(error.to_string()))?;
    let exchange = Exchange { memory: None, ..exchange.clone() };
    Ok(exchange.txn(Purpose::Session, &txn).await?.0.held)
}

/// A session's id: never used before or again.
fn nonce() -> Result<SessionId, Refusal> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Refusal::NotSent(format!("no random numbers: {error}")))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)).into())
}
