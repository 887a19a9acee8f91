//! The one stream that carries all watches of a process.

use std::{collections::HashMap, sync::Arc, time::Duration};

use concordat_protocol::{
    Key, Range,
    etcd::{Op, Txn},
};
use etcd_client::{EventType, WatchOptions, WatchStream, proto::PbWatchResponse};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{Mailbox, WatchEvent, list};
use crate::{connection::back_off, exchange::Exchange, keys, observer::Purpose, wire};

/// How often etcd is asked how far it has told.
const PROGRESS: Duration = Duration::from_secs(1);
/// A stream on which even that is not answered is dead.
const SILENCE: Duration = Duration::from_secs(6);
/// The watch id with which etcd answers for all watches of a stream.
const ALL: i64 = -1;

/// What is watched.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) namespace: Arc<str>,
    pub(crate) range: Range,
}

impl Scope {
    pub(crate) fn range(&self) -> (Vec<u8>, Vec<u8>) {
        keys::range(&self.namespace, &self.range)
    }
}

/// What a hub is told.
#[derive(Debug)]
pub(crate) enum Command {
    Start { id: u64, scope: Scope, mailbox: Arc<Mailbox> },
    Relist { id: u64 },
    Stop { id: u64 },
    Listed { id: u64, listing: u64, revision: i64, entries: Vec<concordat_protocol::Entry> },
}

struct Watched {
    scope: Scope,
    mailbox: Arc<Mailbox>,
    stage: Stage,
}

enum Stage {
    /// Being listed, for the so-manieth time.
    Listing(u64),
    /// Told until `next`, by etcd's watch `id`.
    Following { id: i64, next: i64, created: bool, part: Vec<WatchEvent> },
    /// Its reader fell behind, and has not read since.
    Overflown,
}

struct Hub {
    exchange: Exchange,
    commands: mpsc::UnboundedSender<Command>,
    watches: HashMap<u64, Watched>,
    /// etcd's watch ids, and ours.
    ids: HashMap<i64, u64>,
    next_id: i64,
    listings: u64,
    stream: Option<WatchStream>,
    /// The move of the connection that the stream belongs to.
    of: u64,
    heard: Instant,
    /// The cluster id and revision that had been heard of when etcd was last asked how far it is.
    asked: (u64, i64),
    /// Streams that broke before they told anything.
    failures: u32,
}

/// Runs the watches of one process until nobody can start one any more.
pub(crate) async fn run(
    exchange: Exchange,
    commands: mpsc::UnboundedSender<Command>,
    mut inbox: mpsc::UnboundedReceiver<Command>,
) {
    let mut moves = exchange.connection.moves();
    let mut hub = Hub {
        exchange,
        commands,
        watches: HashMap::new(),
        ids: HashMap::new(),
        next_id: 1,
        listings: 0,
        stream: None,
        of: 0,
        heard: Instant::now(),
        asked: (0, 0),
        failures: 0,
    };
    let mut progress = interval(PROGRESS);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if hub.stream.is_none() && !hub.following().is_empty() {
            if let Some(attempt) = hub.failures.checked_sub(1) {
                sleep(Duration::from_millis(back_off(attempt))).await;
            }
            if !hub.open().await {
                hub.drop_stream(true).await;
            }
        }
        tokio::select! {
            command = inbox.recv() => match command {
                Some(command) => hub.command(command).await,
                None => return,
            },
            response = message(&mut hub.stream) => match response {
                Some(response) => hub.response(response).await,
                None => hub.drop_stream(true).await,
            },
            _ = progress.tick() => hub.ask_progress().await,
            moved = moves.changed() => {
                if moved.is_ok() && *moves.borrow_and_update() != hub.of {
                    hub.drop_stream(false).await;
                }
            }
        }
    }
}

async fn message(stream: &mut Option<WatchStream>) -> Option<PbWatchResponse> {
    let Some(stream) = stream else {
        return std::future::pending().await;
    };
    match stream.message().await {
        Ok(response) => response.map(|response| response.0),
        Err(error) => {
            tracing::debug!(%error, "the watch stream broke");
            None
        }
    }
}

impl Hub {
    fn following(&self) -> Vec<u64> {
        let follows = |watched: &Watched| matches!(watched.stage, Stage::Following { .. });
        self.watches.iter().filter(|(_, watched)| follows(watched)).map(|(id, _)| *id).collect()
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Start { id, scope, mailbox } => {
                self.watches.insert(id, Watched { scope, mailbox, stage: Stage::Overflown });
                self.list(id);
            }
            Command::Relist { id } => self.list(id),
            Command::Stop { id } => {
                self.cancel(id).await;
                self.watches.remove(&id);
            }
            Command::Listed { id, listing, revision, entries } => {
                let Some(watched) = self.watches.get_mut(&id) else { return };
                if !matches!(watched.stage, Stage::Listing(number) if number == listing) {
                    return;
                }
                watched.mailbox.put([WatchEvent::Snapshot { revision, entries }]);
                watched.stage =
                    Stage::Following { id: 0, next: revision + 1, created: false, part: Vec::new() };
                if self.stream.is_some() && !self.follow(id).await {
                    self.drop_stream(true).await;
                }
            }
        }
    }

    /// Lists a range from the start, in the background, for as long as it takes.
    fn list(&mut self, id: u64) {
        let Some(watched) = self.watches.get_mut(&id) else { return };
        self.listings += 1;
        let listing = self.listings;
        watched.stage = Stage::Listing(listing);
        let (exchange, scope, commands) =
            (self.exchange.clone(), watched.scope.clone(), self.commands.clone());
        let mailbox = Arc::downgrade(&watched.mailbox);
        tokio::spawn(async move {
            let mut failures = 0;
            while mailbox.strong_count() > 0 {
                match list(&exchange, &scope).await {
                    Ok((entries, revision)) => {
                        let _ = commands.send(Command::Listed { id, listing, revision, entries });
                        return;
                    }
                    Err(why) => tracing::debug!(?why, ?scope, "a range was not listed"),
                }
                sleep(Duration::from_millis(back_off(failures))).await;
                failures += 1;
            }
        });
    }

    /// Opens the stream, with all watches that follow.
    async fn open(&mut self) -> bool {
        let mut following = self.following();
        let Some(first) = following.pop() else { return true };
        let Some((from, options)) = self.create(first) else { return false };
        let (client, of) = self.exchange.connection.client();
        let mut watches = client.watch_client().max_decoding_message_size(usize::MAX);
        self.of = of;
        self.ask();
        let patience = self.exchange.connection.timeout();
        match timeout(patience, watches.watch(from, Some(options))).await {
            Ok(Ok(stream)) => self.stream = Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no watch stream");
                return false;
            }
            Err(_) => return false,
        }
        self.heard = Instant::now();
        for id in following {
            if !self.follow(id).await {
                return false;
            }
        }
        true
    }

    /// Asks etcd to tell a watch from where it is.
    async fn follow(&mut self, id: u64) -> bool {
        let Some((from, options)) = self.create(id) else { return true };
        match &mut self.stream {
            Some(stream) => stream.watch(from, Some(options)).await.is_ok(),
            None => false,
        }
    }

    /// A new watch of etcd's, under an id that was never used: what still comes for an old one is nobody's.
    fn create(&mut self, ours: u64) -> Option<(Vec<u8>, WatchOptions)> {
        let watched = self.watches.get_mut(&ours)?;
        let (from, to) = watched.scope.range();
        let Stage::Following { id, next, created, part } = &mut watched.stage else { return None };
        self.ids.remove(id);
        *id = self.next_id;
        *created = false;
        part.clear();
        self.next_id += 1;
        self.ids.insert(*id, ours);
        let options = WatchOptions::new()
            .with_watch_id(*id)
            .with_start_revision(*next)
            .with_progress_notify()
            .with_fragment();
        Some((from, if to.is_empty() { options } else { options.with_range(to) }))
    }

    /// Ends etcd's watch of one of ours.
    async fn cancel(&mut self, ours: u64) {
        let Some(Watched { stage: Stage::Following { id, .. }, .. }) = self.watches.get(&ours) else {
            return;
        };
        let id = *id;
        self.ids.remove(&id);
        if let Some(stream) = &mut self.stream {
            let _ = stream.cancel(id).await;
        }
    }

    /// Notes what is known before etcd is asked.
    fn ask(&mut self) {
        self.asked = self.exchange.memory.as_ref().map_or((0, 0), |memory| memory.last());
    }

    /// Gives the stream up; every watch goes on from where it is on the next one.
    async fn drop_stream(&mut self, failed: bool) {
        self.stream = None;
        self.ids.clear();
        if failed {
            self.failures += 1;
            self.exchange.connection.failed(self.of).await;
        }
    }

    async fn ask_progress(&mut self) {
        self.ask();
        let Some(stream) = &mut self.stream else { return };
        if self.heard.elapsed() > SILENCE || stream.request_progress().await.is_err() {
            self.drop_stream(true).await;
        }
    }

    async fn response(&mut self, response: PbWatchResponse) {
        self.heard = Instant::now();
        let header = response.header.unwrap_or_default();
        let revision = header.revision;
        if response.created || response.watch_id == ALL {
            self.doubt(header.cluster_id, revision);
        }
        if !response.canceled && !response.created {
            self.failures = 0;
        }
        if response.watch_id == ALL && !response.canceled {
            for watched in self.watches.values_mut() {
                if let Stage::Following { created: true, next, .. } = &mut watched.stage {
                    *next = (*next).max(revision + 1);
                    watched.mailbox.put([WatchEvent::Progress(revision)]);
                }
            }
            return;
        }
        let Some(&ours) = self.ids.get(&response.watch_id) else { return };
        if response.canceled {
            self.cancelled(ours, &response).await;
            return;
        }
        let Some(watched) = self.watches.get_mut(&ours) else { return };
        let Stage::Following { next, created, part, .. } = &mut watched.stage else { return };
        if response.created {
            *created = true;
            return;
        }
        let silent = response.events.is_empty();
        let last =
            response.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
        for event in response.events {
            let deleted = event.r#type == EventType::Delete as i32;
            let Some(kv) = event.kv else { continue };
            let namespace = &watched.scope.namespace;
            if deleted {
                let revision = kv.mod_revision;
                part.extend(wire::key(namespace, &kv.key).map(|key| WatchEvent::Deleted { key, revision }));
            } else {
                part.extend(wire::item(namespace, kv).map(wire::entry).map(WatchEvent::Put));
            }
        }
        // Until the last piece has come nothing was told, and all of it is to come again on another stream.
        if response.fragment {
            return;
        }
        *next = (*next).max(last.unwrap_or_default() + 1);
        if silent && part.is_empty() {
            *next = (*next).max(revision + 1);
            part.push(WatchEvent::Progress(revision));
        }
        if !watched.mailbox.put(part.drain(..)) {
            self.cancel(ours).await;
            if let Some(watched) = self.watches.get_mut(&ours) {
                watched.stage = Stage::Overflown;
            }
        }
    }

    /// Asks etcd linearizably when a member tells of less than was heard before it was asked: it lags behind, or etcd was
    /// restored.
    fn doubt(&self, cluster: u64, revision: i64) {
        let (known, at) = self.asked;
        if known != 0 && (cluster != known || revision < at) {
            let exchange = self.exchange.clone();
            let ask = Txn { then: vec![Op::Get(Range::One(Key::Timeline))], ..Txn::default() };
            tokio::spawn(async move { exchange.txn(Purpose::Session, &ask).await.map(drop) });
        }
    }

    /// etcd ended a watch: what came next is compacted, or it cannot tell it now.
    async fn cancelled(&mut self, ours: u64, response: &PbWatchResponse) {
        self.ids.remove(&response.watch_id);
        if response.compact_revision > 0 {
            tracing::info!("what a watch was to tell next is compacted: it lists again");
            self.list(ours);
            return;
        }
        tracing::debug!(reason = response.cancel_reason, "etcd cancelled a watch");
        self.drop_stream(true).await;
    }
}
