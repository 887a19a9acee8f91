//! What really happened: every change of etcd, by a watch from revision 1, and what clients asked and were told.
//!
//! Scenarios turn both into the histories of `protocol::{lock,queue,transaction}::invariant`, which judge them.

pub mod lock;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use concordat_protocol::{Entry, Key};
use concordat_store::{keys, record};
use etcd_client::{Client, EventType, WatchOptions};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::process::eventually;

/// One change of one key. Those of one revision were made at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Revision at which it was made.
    pub revision: i64,
    /// The namespace, empty for a key that is in none.
    pub namespace: String,
    /// The key.
    pub key: Key,
    /// What stands there now; `None`: it was deleted.
    pub entry: Option<Entry>,
    /// When the watch told of it.
    pub seen: Instant,
}

/// Records every change under `/concordat/`, from the first one on. It lives in the runtime it is started in.
pub struct Recorder {
    client: Client,
    seen: Arc<Mutex<Seen>>,
    _stop: DropGuard,
}

#[derive(Debug, Default)]
struct Seen {
    changes: Vec<Change>,
    /// Everything up to here was seen.
    through: i64,
    /// Why the record is worth nothing: a gap, or something that is no record.
    void: Option<String>,
}

impl Recorder {
    /// Starts to record what `client`'s etcd remembers; better a client of all members, as one may be killed.
    pub fn start(client: Client) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let stop = CancellationToken::new();
        let work = record(client.clone(), Arc::clone(&seen));
        tokio::spawn(stop.clone().run_until_cancelled_owned(work));
        Self { client, seen, _stop: stop.drop_guard() }
    }

    /// Every change up to now, the oldest first; what follows is recorded on.
    pub async fn changes(&self) -> Result<Vec<Change>> {
        let revision = eventually("etcd tells its revision", async || {
            let answer = self.client.clone().get("revision", None).await?;
            Ok(answer.header().context("an answer without header")?.revision())
        })
        .await?;
        self.through(revision).await
    }

    /// Every change that the watch told of so far: etcd may be ahead.
    pub fn seen(&self) -> Vec<Change> {
        self.seen.lock().changes.clone()
    }

    /// Every change up to `revision` and perhaps beyond, once they are seen.
    pub async fn through(&self, revision: i64) -> Result<Vec<Change>> {
        // A void record never gets any better: that is no reason to wait.
        eventually(&format!("revision {revision} is recorded"), async || {
            let seen = self.seen.lock();
            ensure!(seen.void.is_some() || seen.through >= revision, "only {} is", seen.through);
            Ok(seen.void.clone().map_or_else(|| Ok(seen.changes.clone()), |why| Err(anyhow!("{why}"))))
        })
        .await?
    }

    /// Everything up to this revision was seen. etcd may compact what came before it: the record has it.
    pub fn reached(&self) -> i64 {
        self.seen.lock().through
    }

    /// Forgets what was seen, so that a record of a long run does not grow: of each key the last change stays unless that
    /// deleted it, of who holds a lock every change since it was free, and of definitions and sessions, of which there are
    /// few, every change.
    pub fn forget(&self) {
        let changes = &mut self.seen.lock().changes;
        let (mut met, mut freed) = (HashSet::new(), HashSet::new());
        let mut kept: Vec<Change> = std::mem::take(changes)
            .into_iter()
            .rev()
            .filter(|Change { namespace, key, entry, .. }| {
                let of = (namespace.clone(), key.clone());
                match key {
                    Key::Definition { .. } | Key::Session(_) => true,
                    Key::Holder { .. } if entry.is_some() => !freed.contains(&of),
                    Key::Holder { .. } => {
                        freed.insert(of);
                        false
                    }
                    _ => met.insert(of) && entry.is_some(),
                }
            })
            .collect();
        kept.reverse();
        *changes = kept;
    }

    /// What stands under each key, after every change up to now.
    pub async fn state(&self) -> Result<BTreeMap<Key, Entry>> {
        let mut state = BTreeMap::new();
        for Change { key, entry, .. } in self.changes().await? {
            match entry {
                Some(entry) => state.insert(key, entry),
                None => state.remove(&key),
            };
        }
        Ok(state)
    }
}

async fn record(client: Client, seen: Arc<Mutex<Seen>>) {
    loop {
        // A watch that ends, as with the member it is on, goes on where it was.
        let ended = watch(&client, &seen).await;
        if seen.lock().void.is_some() {
            return;
        }
        tracing::debug!("the recorder watches again: {ended:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn watch(client: &Client, seen: &Mutex<Seen>) -> Result<()> {
    let (start, end) = keys::everything();
    let from = seen.lock().through + 1;
    let options = WatchOptions::new().with_range(end).with_start_revision(from);
    let mut stream = client.clone().watch(start, Some(options)).await?;
    loop {
        // Nothing may happen for long: ask how far the watch is.
        let message = tokio::select! {
            message = stream.message() => message?.context("the watch ended")?,
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                stream.request_progress().await?;
                continue;
            }
        };
        if message.compact_revision() > 0 {
            seen.lock().void = Some(format!("history before {} is compacted", message.compact_revision()));
        }
        ensure!(!message.canceled(), "the watch was cancelled: {}", message.cancel_reason());
        let mut seen = seen.lock();
        for event in message.events() {
            match change(event) {
                Ok(change) => seen.changes.push(change),
                Err(error) => seen.void = Some(format!("{error:#}")),
            }
        }
        let last = seen.changes.last().map_or(0, |change| change.revision);
        // The header of a message with events may be ahead of them; that of one without is how far the watch is.
        let reached = match message.header() {
            Some(header) if message.events().is_empty() && !message.created() => header.revision(),
            _ => last,
        };
        seen.through = seen.through.max(reached);
    }
}

fn change(event: &etcd_client::Event) -> Result<Change> {
    let kv = event.kv().context("an event without a key")?;
    let (namespace, key) = keys::decode_any(kv.key())?;
    let namespace = namespace.unwrap_or_default().into_owned();
    let revision = kv.mod_revision();
    let entry = match event.event_type() {
        EventType::Delete => None,
        EventType::Put => {
            let record = record::decode(kv.value())
                .with_context(|| format!("the record under {}", kv.key_str().unwrap_or_default()))?;
            Some(Entry {
                key: key.clone(),
                record,
                create_revision: kv.create_revision(),
                mod_revision: revision,
                lease: kv.lease(),
            })
        }
    };
    Ok(Change { revision, namespace, key, entry, seen: Instant::now() })
}

/// What became of an operation, as far as its client knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<O> {
    /// It happened, with this answer.
    Ok(O),
    /// It certainly did not happen.
    Fail(String),
    /// It may have happened, or may yet.
    Info(String),
}

/// One operation of a client; times are since the recording began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<I, O> {
    /// Which client: one operation at a time, unless one before it is [`Outcome::Info`].
    pub client: usize,
    /// What was asked.
    pub input: I,
    /// When.
    pub invoked: Duration,
    /// When its outcome was known; of [`Outcome::Info`] when the client gave up.
    pub ended: Duration,
    /// What became of it.
    pub outcome: Outcome<O>,
}

/// Records the operations of clients. A clone records to the same place.
#[derive(Debug)]
pub struct Operations<I, O> {
    start: Instant,
    done: Arc<Mutex<Vec<Operation<I, O>>>>,
}

impl<I, O> Clone for Operations<I, O> {
    fn clone(&self) -> Self {
        Self { start: self.start, done: Arc::clone(&self.done) }
    }
}

impl<I, O> Default for Operations<I, O> {
    fn default() -> Self {
        Self { start: Instant::now(), done: Arc::default() }
    }
}

impl<I: Clone, O: Clone> Operations<I, O> {
    /// Records that a client asks something. What becomes of it is recorded by the methods of what this returns.
    pub fn invoke(&self, client: usize, input: I) -> Invocation<I, O> {
        Invocation { operations: self.clone(), pending: Some((client, input, self.start.elapsed())) }
    }

    /// Every operation that ended, in that order.
    pub fn recorded(&self) -> Vec<Operation<I, O>> {
        self.done.lock().clone()
    }
}

/// An operation under way. Dropping it means that its client never heard of it again.
#[derive(Debug)]
pub struct Invocation<I, O> {
    operations: Operations<I, O>,
    pending: Option<(usize, I, Duration)>,
}

impl<I, O> Invocation<I, O> {
    /// It happened.
    pub fn ok(mut self, answer: O) {
        self.end(Outcome::Ok(answer));
    }
    /// It certainly did not happen.
    pub fn fail(mut self, why: impl Into<String>) {
        self.end(Outcome::Fail(why.into()));
    }
    /// It may have happened.
    pub fn info(mut self, why: impl Into<String>) {
        self.end(Outcome::Info(why.into()));
    }

    fn end(&mut self, outcome: Outcome<O>) {
        if let Some((client, input, invoked)) = self.pending.take() {
            let ended = self.operations.start.elapsed();
            self.operations.done.lock().push(Operation { client, input, invoked, ended, outcome });
        }
    }
}

impl<I, O> Drop for Invocation<I, O> {
    fn drop(&mut self) {
        self.end(Outcome::Info("nobody waited for it".into()));
    }
}
