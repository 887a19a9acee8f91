//! The store as engines use it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use concordat_protocol::{Answer, Key, Millis, Plan, Range, timeline::Remembered};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    CommitError, Config, ConnectError, Refusal, Restored,
    batch::FLUSHERS,
    clock::Clock,
    connection::{Connection, Dialer, back_off},
    exchange::Exchange,
    isolation, read,
    session::{Live, NotOpened, Session, SessionState},
    space::{self, Gauge, Space},
    timeline::Memory,
    version,
    watch::{Command, Scope, Watch},
};

/// A namespace of etcd, seen by one sidecar. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    clock: Clock,
    /// Plans, reads and watches.
    bulk: Exchange,
    /// Leases, so that a keepalive waits behind nothing.
    keep: Exchange,
    live: RwLock<Arc<Live>>,
    states: watch::Sender<SessionState>,
    /// The namespace's epoch, and what its revisions are raised by: the same for the life of the store.
    epoch: u64,
    offset: i64,
    memory: Arc<Memory>,
    /// Why this store has no more sessions.
    over: watch::Sender<Option<String>>,
    hub: mpsc::UnboundedSender<Command>,
    watches: AtomicU64,
    gauge: Gauge,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Store {
    /// Connects to etcd and opens a session.
    ///
    /// # Errors
    /// When no endpoint answers, etcd is too old or was restored from a snapshot, or the configuration cannot be used.
    pub async fn connect(config: Config) -> Result<Self, ConnectError> {
        let clock = Clock::start();
        let dialer = Dialer::new(&config)?;
        let memory = Arc::new(Memory::of(config.remembered.as_ref()));
        let exchange = async |start| {
            Ok::<_, ConnectError>(Exchange {
                namespace: config.namespace.as_str().into(),
                connection: Arc::new(Connection::open(dialer.clone(), start).await?),
                observer: config.observer.clone(),
                memory: Some(memory.clone()),
            })
        };
        // Sidecars spread over the members; each of them may answer for all.
        let start = spread(config.endpoints.len());
        let (bulk, keep) = (exchange(start).await?, exchange(start).await?);
        let version = check_version(&bulk, &config).await?;
        if config.isolated {
            isolation::prove(&bulk, &version).await?;
        }
        let live = first_session(&config, clock, &keep).await?;
        let (hub, inbox) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            states: watch::Sender::new(SessionState::Live(live.session.id.clone())),
            live: RwLock::new(live.clone()),
            epoch: live.timeline.epoch,
            offset: live.timeline.offset,
            memory: memory.clone(),
            over: watch::Sender::new(None),
            config,
            clock,
            bulk: bulk.clone(),
            keep,
            hub: hub.clone(),
            watches: AtomicU64::new(0),
            gauge: Gauge::new(),
            tasks: Mutex::new(Vec::new()),
        });
        shared.fly(&live);
        let (runner, gauging, keeping) = (shared.clone(), shared.clone(), shared.clone());
        *shared.tasks.lock() = vec![
            tokio::spawn(async move { runner.run(live).await }),
            tokio::spawn(crate::watch::run(bulk.clone(), hub, inbox)),
            tokio::spawn(async move { bulk.connection.renew().await }),
            tokio::spawn(async move { keeping.keep.connection.renew().await }),
            tokio::spawn(async move { space::refresh(&gauging.gauge, &gauging.bulk, gauging.clock).await }),
        ];
        Ok(Self { shared })
    }

    /// The clocks by which sessions are believed.
    pub fn clock(&self) -> Clock {
        self.shared.clock
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.shared.config.namespace
    }

    /// The current session, or the one that was lost last.
    pub fn session(&self) -> Session {
        self.shared.live.read().session.clone()
    }

    /// Tells what becomes of the session: lost when it is no longer believed, live when a new one is opened.
    pub fn sessions(&self) -> watch::Receiver<SessionState> {
        self.shared.states.subscribe()
    }

    /// What revisions are raised by before a fence is made of them. The same as long as the store lives: when the epoch is
    /// raised the store is over ([`Self::over`]).
    pub fn fence_offset(&self) -> i64 {
        self.shared.offset
    }

    /// Waits until this store can have no more sessions, because etcd was restored or its epoch was raised, and tells why.
    /// What was made of it must be dropped; another store goes on, given [`Self::remembered`].
    pub async fn over(&self) -> String {
        let mut over = self.shared.over.subscribe();
        let why = over.wait_for(Option::is_some).await.map(|why| why.clone());
        why.ok().flatten().unwrap_or_default()
    }

    /// What the next store of this process is to remember of etcd.
    pub fn remembered(&self) -> Remembered {
        self.shared.remembered()
    }

    /// Until when the lease of [`concordat_protocol::Lease::Ttl`] with this time to live is believed, on the monotonic
    /// clock; never longer than the session. `None` when nothing was put under such a lease, 0 when it is lost.
    pub fn believed_until(&self, ttl: Millis) -> Option<Millis> {
        let live = self.shared.live.read();
        live.believed_until(ttl).map(|until| until.min(live.session.believed_until()))
    }

    /// The time to live to put under instead of this one: itself, or when the session has lost that lease, a millisecond
    /// longer. What was put under the lost one is never believed again, so it gets no successor of its name.
    pub fn live_ttl(&self, ttl: Millis) -> Millis {
        self.shared.live.read().live_ttl(ttl)
    }

    /// Commits a plan together with whatever else waits, and answers when its fate is known.
    ///
    /// # Errors
    /// [`CommitError`]: only [`CommitError::Unknown`] leaves open whether it was applied. What was put under the
    /// session for a caller that no longer waits is deleted again.
    pub async fn commit(&self, plan: Plan) -> Result<Answer, CommitError> {
        let live = self.shared.live.read().clone();
        live.commit(plan, self.shared.config.resolve_timeout).await
    }

    /// Reads several ranges at one revision, linearizably: [`Answer::reads`] in this order.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when etcd does not answer.
    pub async fn read(&self, ranges: Vec<Range>) -> Result<Answer, CommitError> {
        read::read(&self.shared.bulk, ranges).await
    }

    /// How many keys a range holds, and the revision at which that is so.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when etcd does not answer.
    pub async fn count(&self, range: Range) -> Result<(u64, i64), CommitError> {
        read::count(&self.shared.bulk, &range).await
    }

    /// The keys of a range with their create and mod revisions, in the order of etcd's keys, and the revision at which
    /// that is so.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when etcd does not answer.
    pub async fn list_keys(&self, range: Range) -> Result<(Vec<(Key, i64, i64)>, i64), CommitError> {
        read::list_keys(&self.shared.bulk, range, 0).await
    }

    /// The keys of a range as they were at a revision, with their create and mod revisions.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when etcd does not answer, or has compacted the revision.
    pub async fn list_keys_at(
        &self,
        range: Range,
        revision: i64,
    ) -> Result<Vec<(Key, i64, i64)>, CommitError> {
        read::list_keys(&self.shared.bulk, range, revision).await.map(|(keys, _)| keys)
    }

    /// Watches a range: first all there is in it, then what changes. All watches of a store share one stream.
    pub fn watch(&self, range: Range) -> Watch {
        let scope = Scope { namespace: self.shared.bulk.namespace.clone(), range };
        let id = self.shared.watches.fetch_add(1, Ordering::Relaxed);
        Watch::start(id, scope, self.shared.hub.clone())
    }

    /// How much room etcd has, as of at most a few seconds ago.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when etcd does not answer.
    pub async fn space(&self) -> Result<Space, CommitError> {
        self.shared.gauge.space(&self.shared.bulk, self.shared.clock).await.map_err(read::unanswered)
    }

    /// Whether new work may be taken in: etcd's file is below 80 % of its quota, as far as was last heard.
    pub fn intake_open(&self) -> bool {
        self.shared.gauge.last().is_none_or(|space| space.intake_open())
    }

    /// Sends what waits, then ends the session and revokes its leases. Takes at most the resolve time-out.
    pub async fn close(self) {
        let live = self.shared.live.read().clone();
        let drained = async {
            while !live.is_idle() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let patience = Duration::from_millis(self.shared.config.resolve_timeout);
        let _ = tokio::time::timeout(patience, drained).await;
        for task in self.shared.tasks.lock().drain(..) {
            task.abort();
        }
        live.end();
        live.revoke(&self.shared.keep).await;
    }
}

impl Shared {
    /// Starts a session's flushers.
    fn fly(&self, live: &Arc<Live>) {
        for flusher in 0..FLUSHERS {
            tokio::spawn(live.clone().flush(self.bulk.clone(), flusher));
        }
    }

    /// Keeps a session, and opens another when it is lost, for ever.
    async fn run(&self, mut live: Arc<Live>) {
        loop {
            let contradicted = tokio::select! {
                () = live.keep(self.clock, &self.keep) => None,
                why = self.memory.contradicted() => Some(why),
            };
            tracing::warn!(session = %live.session.id, "the session is lost");
            self.states.send_replace(SessionState::Lost(live.session.id.clone()));
            live.end();
            let (lost, keep) = (live, self.keep.clone());
            let revoked = tokio::spawn(async move { lost.revoke(&keep).await });
            if let Some(why) = contradicted {
                // Whoever holds the store may end with it.
                let _ = revoked.await;
                return self.end(why);
            }
            let mut failures = 0;
            live = loop {
                match Live::open(&self.config, self.clock, &self.keep, Some(&self.remembered())).await {
                    Ok(live) if live.timeline.epoch == self.epoch => break live,
                    Ok(live) => {
                        live.end();
                        live.revoke(&self.keep).await;
                        return self.end(format!("epoch {} has begun", live.timeline.epoch));
                    }
                    Err(NotOpened::Restored(lost)) => return self.end(lost.why),
                    Err(NotOpened::Refused(why)) => tracing::debug!(?why, "no session was opened"),
                }
                tokio::time::sleep(Duration::from_millis(back_off(failures))).await;
                failures += 1;
            };
            self.fly(&live);
            *self.live.write() = live.clone();
            self.states.send_replace(SessionState::Live(live.session.id.clone()));
        }
    }
}

impl Shared {
    fn remembered(&self) -> Remembered {
        let (cluster, revision) = self.memory.last();
        Remembered { epoch: Some(self.epoch), cluster, revision, offset: self.offset }
    }

    fn end(&self, why: String) {
        tracing::warn!(why, "this is not the etcd that it was");
        self.over.send_replace(Some(why));
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("namespace", &self.namespace()).finish_non_exhaustive()
    }
}

fn spread(endpoints: usize) -> usize {
    let mut byte = [0];
    match getrandom::fill(&mut byte) {
        Ok(()) => usize::from(byte[0]) % endpoints.max(1),
        Err(_) => 0,
    }
}

/// Asks every member in turn until one says its version, and answers it.
pub(crate) async fn check_version(exchange: &Exchange, config: &Config) -> Result<String, ConnectError> {
    let mut why = String::new();
    for _ in &config.endpoints {
        match exchange.status().await {
            Ok(status) => {
                version::check(status.version())?;
                return Ok(status.version().to_owned());
            }
            Err(refusal) => why = read::unanswered(refusal).to_string(),
        }
    }
    Err(ConnectError::Unreachable { endpoints: config.endpoints.join(", "), why })
}

async fn first_session(config: &Config, clock: Clock, keep: &Exchange) -> Result<Arc<Live>, ConnectError> {
    let mut last = Refusal::NotSent(String::new());
    for _ in &config.endpoints {
        match Live::open(config, clock, keep, config.remembered.as_ref()).await {
            Ok(live) => return Ok(live),
            Err(NotOpened::Refused(refusal)) => last = refusal,
            Err(NotOpened::Restored(lost)) => {
                let (endpoints, namespace) = (config.endpoints.clone(), config.namespace.clone());
                return Err(ConnectError::Restored(Restored { why: lost.why, endpoints, namespace }));
            }
        }
    }
    let why = format!("no session was opened: {}", read::unanswered(last));
    Err(ConnectError::Unreachable { endpoints: config.endpoints.join(", "), why })
}
