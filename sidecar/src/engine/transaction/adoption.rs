//! Adoption: what has no live owner is found by looking at the state, at the start and as long as there is any.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use concordat_protocol::{
    Definition, Entry, Key, Kind, Millis, Name, Range, Record, SessionId, Settings, TransactionId,
    session::Session,
    transaction::{Coordinator, Peers, Transaction, once_id, plans},
};
use concordat_store::{CommitError, WatchEvent};

use super::Inner;

/// Every candidate but the first waits this much longer than the one before it.
const STAGGER: Millis = 2_000;
/// While something without an owner is left, it is looked at so often.
const AGAIN: Duration = Duration::from_millis(500);
/// How many keys one read asks for.
const CHUNK: usize = 32;

/// Looks whenever it is told to, and goes on while something is left.
pub(super) async fn sweep(inner: Arc<Inner>) {
    let mut synced = inner.synced.subscribe();
    let _ = synced.wait_for(|synced| *synced).await;
    // When what a session left (or an unowned transaction) was first seen without an owner.
    let mut since = HashMap::new();
    loop {
        match look(&inner, &mut since).await {
            Ok(false) => inner.sweep.notified().await,
            Ok(true) => tokio::time::sleep(AGAIN).await,
            Err(error) => {
                tracing::debug!(%error, "the state was not seen");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Adopts what has no live owner and is this sidecar's to adopt. True when something is left without one.
async fn look(inner: &Arc<Inner>, since: &mut HashMap<String, Millis>) -> Result<bool, CommitError> {
    if inner.draining() {
        return Ok(false);
    }
    let app = inner.identity.app.clone();
    let answer =
        inner.store.read(vec![Range::Sessions, Range::Transactions, Range::Inbox(app.clone())]).await?;
    let mut reads = answer.reads.into_iter();
    let mut next = || reads.next().unwrap_or_default();
    let (sessions, transactions, inbox) = (next(), next(), next());
    let mut seen =
        Seen { peers: peers(sessions), own: inner.session.lock().clone(), since, left: BTreeSet::new() };

    for entry in &transactions {
        let (Key::Transaction(id), Record::Transaction(record)) = (&entry.key, &entry.record) else {
            continue;
        };
        let adopt = match &record.coordinator {
            Some((_, session)) if *session == seen.own => !inner.runs.lock().contains_key(id),
            Some((_, session)) => seen.is_mine(inner, session.as_str(), seen.peers.is_live(session), None),
            None => seen.is_mine(inner, id.as_str(), false, None),
        };
        if adopt {
            adopt_transaction(inner, id, record, entry.mod_revision);
        }
    }
    for item in &inbox {
        let Key::Work { session, transaction, .. } = &item.key else { continue };
        let (owner, live) = match session {
            Some(session) => (session.as_str(), seen.peers.is_live(session)),
            None => (transaction.as_str(), false),
        };
        if seen.is_mine(inner, owner, live, Some(&app)) {
            let key = Key::Transaction(transaction.clone());
            let known = transactions.iter().find(|entry| entry.key == key);
            if let Some(plan) = plans::relocate(item, &seen.own, known) {
                let (inner, key) = (inner.clone(), item.key.clone());
                tokio::spawn(async move {
                    if let Err(error) = inner.store.commit(plan).await {
                        tracing::debug!(?key, %error, "an item was not moved");
                    }
                });
            }
        }
    }
    let left = seen.left;
    since.retain(|owner, _| left.contains(owner));
    Ok(!left.is_empty())
}

struct Seen<'a> {
    peers: Peers,
    own: SessionId,
    since: &'a mut HashMap<String, Millis>,
    left: BTreeSet<String>,
}

impl Seen<'_> {
    /// Whether what `owner` left is this sidecar's to adopt by now.
    fn is_mine(
        &mut self,
        inner: &Inner,
        owner: &str,
        live: bool,
        app: Option<&concordat_protocol::App>,
    ) -> bool {
        if live {
            return false;
        }
        self.left.insert(owner.to_owned());
        let now = inner.store.clock().now().monotonic;
        let first = *self.since.entry(owner.to_owned()).or_insert(now);
        let rank = self.peers.rank(owner, &self.own, app) as Millis;
        self.peers.is_live(&self.own) && now >= first + rank * STAGGER
    }
}

fn peers(sessions: Vec<Entry>) -> Peers {
    let mut peers = Peers::default();
    for entry in sessions {
        if let (Key::Session(id), Record::Session(Session { .. })) = (&entry.key, &entry.record)
            && let Record::Session(session) = entry.record.clone()
        {
            peers.put(id.clone(), session);
        }
    }
    peers
}

fn adopt_transaction(inner: &Arc<Inner>, id: &TransactionId, record: &Transaction, revision: i64) {
    if inner.runs.lock().contains_key(id) {
        return;
    }
    tracing::info!(transaction = %id, former = ?record.coordinator, "adopting");
    let own = (inner.identity.app.clone(), inner.session.lock().clone());
    let now = inner.store.clock().now();
    let begun = Coordinator::adopt(id.clone(), record.clone(), revision, own, &inner.peers.lock(), now);
    inner.run(id, begun, None);
}

/// Waits for transactions of `run: Once` to be handed over: nothing tells of it but their definitions.
pub(super) async fn follow_once(inner: Arc<Inner>) {
    let mut watch = inner.store.watch(Range::Definitions);
    let mut awaited: HashMap<Name, TransactionId> = HashMap::new();
    let mut wait = AGAIN;
    loop {
        let events = tokio::select! {
            events = watch.next() => events,
            () = tokio::time::sleep(wait), if !awaited.is_empty() => {
                wait = (wait * 2).min(Duration::from_secs(30));
                match handed_over(&inner, &awaited).await {
                    Ok(seen) => awaited.retain(|name, _| !seen.contains(name)),
                    Err(error) => tracing::debug!(%error, "what was handed over was not seen"),
                }
                continue;
            }
        };
        for event in events {
            match event {
                WatchEvent::Snapshot { entries, .. } => {
                    awaited = entries.into_iter().filter_map(once).collect();
                    wait = AGAIN;
                }
                WatchEvent::Put(entry) => {
                    if let Some((name, id)) = once(entry) {
                        awaited.insert(name, id);
                        wait = AGAIN;
                    }
                }
                WatchEvent::Deleted { key: Key::Definition { kind: Kind::Transaction, name }, .. } => {
                    awaited.remove(&name);
                }
                WatchEvent::Deleted { .. } | WatchEvent::Progress(_) => {}
            }
        }
    }
}

fn once(entry: Entry) -> Option<(Name, TransactionId)> {
    match (entry.key, entry.record) {
        (
            Key::Definition { kind: Kind::Transaction, name },
            Record::Definition(Definition { uid, settings: Settings::Transaction(settings), .. }),
        ) if settings.once => Some((name, once_id(&uid))),
        _ => None,
    }
}

/// Which of them have been handed over by now: they are there, or finished, or were and are forgotten.
async fn handed_over(
    inner: &Inner,
    awaited: &HashMap<Name, TransactionId>,
) -> Result<Vec<Name>, CommitError> {
    let mut seen = Vec::new();
    let all: Vec<_> = awaited.iter().collect();
    for chunk in all.chunks(CHUNK) {
        let mark = |name: &Name| Key::Stat {
            kind: Kind::Transaction,
            name: name.clone(),
            session: SessionId::from("-"),
        };
        let ranges = chunk
            .iter()
            .flat_map(|(name, id)| {
                [Key::Transaction((*id).clone()), Key::Done((*id).clone()), mark(name)].map(Range::One)
            })
            .collect();
        let answer = inner.store.read(ranges).await?;
        for ((name, _), reads) in chunk.iter().zip(answer.reads.chunks(3)) {
            if reads.iter().any(|entries| !entries.is_empty()) {
                seen.push((*name).clone());
            }
        }
    }
    if !seen.is_empty() {
        inner.sweep.notify_one();
    }
    Ok(seen)
}
