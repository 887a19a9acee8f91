//! One request to etcd and its answer, whatever becomes of it.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use concordat_protocol::{Key, Range, Record, etcd::Item};
use etcd_client::{
    Client, EventType, GetOptions, GetResponse, KvClient, StatusResponse, WatchClient, WatchOptions,
    proto::PbTxnResponse,
};
use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};

use crate::{
    Refusal,
    batch::{Ask, Change, Told},
    connection::Connection,
    keys,
    observer::{Counts, Observer, Purpose},
    timeline::Memory,
    wire::{self, Txn, TxnAnswer},
};

/// So often a request is sent again that was overtaken by changes of permissions: an operator makes a namespace's in four.
const REPEATS: u32 = 16;

/// Asks etcd on one connection.
#[derive(Clone)]
pub(crate) struct Exchange {
    pub(crate) namespace: Arc<str>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) observer: Arc<dyn Observer>,
    /// What answers are held against; `None` for whoever looks after an etcd that may have been restored.
    pub(crate) memory: Option<Arc<Memory>>,
}

/// A request on its way: boxed, for the client's futures are ten kilobytes, which whatever awaits one would carry about.
pub(crate) type Asked<A> = BoxFuture<'static, Result<A, etcd_client::Error>>;

/// What a range held: keys and their items in the order of etcd's keys.
pub(crate) type Found = Vec<(Key, Item<Record>)>;

impl Exchange {
    /// Runs a transaction; answers also the revision after it.
    pub(crate) async fn txn(&self, purpose: Purpose, txn: &Txn) -> Result<(TxnAnswer, i64), Refusal> {
        self.plans(purpose, txn, 1).await
    }

    /// Runs a transaction of so many plans; answers also the revision after it.
    async fn plans(&self, purpose: Purpose, txn: &Txn, plans: usize) -> Result<(TxnAnswer, i64), Refusal> {
        let before = self.memory.as_ref().map(|memory| memory.last());
        let response = self.raw(purpose, txn, plans).await?;
        let header = response.header.unwrap_or_default();
        let (cluster, revision) = (header.cluster_id, header.revision);
        if let (Some(memory), Some(before)) = (&self.memory, before)
            && !memory.hear(before, cluster, revision)
        {
            return Err(Refusal::Unknown("etcd was restored from a snapshot".into()));
        }
        Ok((wire::answer(&self.namespace, response), revision))
    }

    /// Runs a transaction, whatever its answer says of this process's memory of etcd.
    pub(crate) async fn raw(
        &self,
        purpose: Purpose,
        txn: &Txn,
        plans: usize,
    ) -> Result<PbTxnResponse, Refusal> {
        let counts = Counts { plans, ..wire::count(txn) };
        let request = |mut kv: KvClient| {
            let txn = wire::txn(&self.namespace, txn);
            async move { kv.txn(txn).await }.boxed()
        };
        Ok(self.kv(purpose, counts, request).await?.0)
    }

    /// Does what a flusher is to do.
    pub(crate) async fn told(&self, ask: &Ask<Bytes>) -> Told {
        let told = match ask {
            Ask::Commit { txn, plans } => {
                self.plans(Purpose::Commit, txn, *plans).await.map(|(answer, at)| Told::Txn(answer, at))
            }
            Ask::Void(txn) => self.txn(Purpose::Resolve, txn).await.map(|(answer, at)| Told::Txn(answer, at)),
            Ask::ReadAt(ranges) => {
                let reads = ranges.iter().map(|(range, revision)| self.read_at(range, *revision));
                try_join_all(reads).await.map(Told::Read)
            }
            Ask::History(keys, after) => self.history(keys, *after).await.map(Told::History),
        };
        told.unwrap_or_else(Told::Refused)
    }

    async fn read_at(&self, range: &Range, revision: i64) -> Result<Found, Refusal> {
        let (from, options) = wire::get(&self.namespace, range);
        let options = options.with_revision(revision);
        let response = self.get(Purpose::Resolve, from, options).await?.0;
        Ok(response.kvs.into_iter().filter_map(|kv| wire::item(&self.namespace, kv)).collect())
    }

    /// The changes of a marker and of its void, up to the deletion of the marker.
    async fn history(&self, [marker, void]: &[Key; 2], after: i64) -> Result<Vec<Change>, Refusal> {
        let (from, mut to) = (keys::encode(&self.namespace, marker), keys::encode(&self.namespace, void));
        to.push(0);
        let options = WatchOptions::new().with_range(to).with_start_revision(after + 1);
        let namespace = &self.namespace;
        let changes = |client: Client| {
            let (from, options, namespace) = (from.clone(), options.clone(), namespace.clone());
            let (marker, watches) = (marker.clone(), client.watch_client());
            changes(watches, from, options, namespace, marker).boxed()
        };
        self.client(Purpose::Resolve, Counts::default(), changes).await?
    }

    /// Asks for a key or range.
    pub(crate) async fn get(
        &self,
        purpose: Purpose,
        from: Vec<u8>,
        options: GetOptions,
    ) -> Result<GetResponse, Refusal> {
        let request = |mut kv: KvClient| {
            let (from, options) = (from.clone(), options.clone());
            async move { kv.get(from, Some(options)).await }.boxed()
        };
        self.kv(purpose, Counts { gets: 1, ..Counts::default() }, request).await
    }

    /// Asks the member that is asked for everything how it does.
    pub(crate) async fn status(&self) -> Result<StatusResponse, Refusal> {
        let request = |mut client: Client| async move { client.status().await }.boxed();
        self.client(Purpose::Session, Counts::default(), request).await
    }

    async fn kv<A>(
        &self,
        purpose: Purpose,
        counts: Counts,
        request: impl Fn(KvClient) -> Asked<A>,
    ) -> Result<A, Refusal> {
        let request = |connection: &Connection| {
            let (kv, of) = connection.kv();
            (request(kv), of)
        };
        self.ask(purpose, counts, request).await
    }

    /// Asks something that is not of keys and values.
    pub(crate) async fn client<A>(
        &self,
        purpose: Purpose,
        counts: Counts,
        request: impl Fn(Client) -> Asked<A>,
    ) -> Result<A, Refusal> {
        let request = |connection: &Connection| {
            let (client, of) = connection.client();
            (request(client), of)
        };
        self.ask(purpose, counts, request).await
    }

    /// Waits for an answer, moves the connection on when none comes, and tells the observer. What etcd refused because
    /// somebody's permissions were being changed is asked again: nothing of it was applied.
    async fn ask<A>(
        &self,
        purpose: Purpose,
        counts: Counts,
        request: impl Fn(&Connection) -> (Asked<A>, u64),
    ) -> Result<A, Refusal> {
        let start = Instant::now();
        let mut repeats = 0;
        let (result, of) = loop {
            let (asked, of) = request(&self.connection);
            let result = match tokio::time::timeout(self.connection.timeout(), asked).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(Refusal::of(&error)),
                Err(_) => Err(Refusal::Unknown("etcd did not answer in time".into())),
            };
            if !matches!(result, Err(Refusal::Stale)) || repeats == REPEATS {
                break (result, of);
            }
            repeats += 1;
        };
        self.observer.request(purpose, counts, start.elapsed(), result.is_ok());
        if let Err(Refusal::Unknown(why) | Refusal::NotSent(why)) = &result {
            tracing::debug!(?purpose, why, "etcd gave no answer");
            self.connection.failed(of).await;
        }
        result
    }
}

/// The changes of a marker and of what else is watched with it, up to the deletion of the marker.
async fn changes(
    mut watches: WatchClient,
    from: Vec<u8>,
    options: WatchOptions,
    namespace: Arc<str>,
    marker: Key,
) -> Result<Result<Vec<Change>, Refusal>, etcd_client::Error> {
    let mut stream = watches.watch(from, Some(options)).await?;
    let mut changes = Vec::new();
    while let Some(response) = stream.message().await? {
        if response.compact_revision() > 0 {
            return Ok(Err(Refusal::Compacted));
        }
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let Ok(key) = keys::decode(&namespace, kv.key()) else { continue };
            let put = event.event_type() == EventType::Put;
            let last = key == marker && !put;
            changes.push(Change { revision: kv.mod_revision(), key, put });
            if last {
                return Ok(Ok(changes));
            }
        }
    }
    Ok(Err(Refusal::Unknown("the watch ended".into())))
}
