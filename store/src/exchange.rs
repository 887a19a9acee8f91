//! One request to etcd and its answer, whatever becomes of it.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use concordat_protocol::{Key, Range, Record, etcd::Item};
use etcd_client::{EventType, WatchOptions};
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

/// Asks etcd on one connection.
#[derive(Clone)]
pub(crate) struct Exchange {
    pub(crate) namespace: Arc<str>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) observer: Arc<dyn Observer>,
    /// What answers are held against; `None` for whoever looks after an etcd that may have been restored.
    pub(crate) memory: Option<Arc<Memory>>,
}

/// What a range held: keys and their items in the order of etcd's keys.
pub(crate) type Found = Vec<(Key, Item<Record>)>;

impl Exchange {
    /// Runs a transaction; answers also the revision after it.
    pub(crate) async fn txn(&self, purpose: Purpose, txn: &Txn) -> Result<(TxnAnswer, i64), Refusal> {
        let (mut kv, of) = self.connection.kv();
        let request = kv.txn(wire::txn(&self.namespace, txn)).boxed();
        let mut counts = wire::count(txn);
        counts.plans = counts.plans.max(1);
        let before = self.memory.as_ref().map(|memory| memory.last());
        let response = self.ask(purpose, counts, of, request).await?.0;
        let header = response.header.unwrap_or_default();
        let (cluster, revision) = (header.cluster_id, header.revision);
        if let (Some(memory), Some(before)) = (&self.memory, before)
            && !memory.hear(before, cluster, revision)
        {
            return Err(Refusal::Unknown("etcd was restored from a snapshot".into()));
        }
        Ok((wire::answer(&self.namespace, response), revision))
    }

    /// Does what a flusher is to do.
    pub(crate) async fn told(&self, ask: &Ask<Bytes>) -> Told {
        let told = match ask {
            Ask::Commit(txn) => {
                self.txn(Purpose::Commit, txn).await.map(|(answer, at)| Told::Txn(answer, at))
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
        let (mut kv, of) = self.connection.kv();
        let request = kv.get(from, Some(options.with_revision(revision))).boxed();
        let counts = Counts { gets: 1, ..Counts::default() };
        let response = self.ask(Purpose::Resolve, counts, of, request).await?.0;
        Ok(response.kvs.into_iter().filter_map(|kv| wire::item(&self.namespace, kv)).collect())
    }

    /// The changes of a marker and of its void, up to the deletion of the marker.
    async fn history(&self, [marker, void]: &[Key; 2], after: i64) -> Result<Vec<Change>, Refusal> {
        let (from, mut to) = (keys::encode(&self.namespace, marker), keys::encode(&self.namespace, void));
        to.push(0);
        let options = WatchOptions::new().with_range(to).with_start_revision(after + 1);
        let (client, of) = self.connection.client();
        let changes = async {
            let mut stream = client.watch_client().watch(from, Some(options)).await?;
            let mut changes = Vec::new();
            while let Some(response) = stream.message().await? {
                if response.compact_revision() > 0 {
                    return Ok(Err(Refusal::Compacted));
                }
                for event in response.events() {
                    let Some(kv) = event.kv() else { continue };
                    let Ok(key) = keys::decode(&self.namespace, kv.key()) else { continue };
                    let put = event.event_type() == EventType::Put;
                    let last = key == *marker && !put;
                    changes.push(Change { revision: kv.mod_revision(), key, put });
                    if last {
                        return Ok(Ok(changes));
                    }
                }
            }
            Ok(Err(Refusal::Unknown("the watch ended".into())))
        };
        self.ask(Purpose::Resolve, Counts::default(), of, changes.boxed()).await?
    }

    /// Waits for an answer, moves the connection on when none comes, and tells the observer. A request is boxed: the
    /// client's futures are ten kilobytes, which whatever awaits one would carry about.
    pub(crate) async fn ask<A>(
        &self,
        purpose: Purpose,
        counts: Counts,
        of: u64,
        request: BoxFuture<'_, Result<A, etcd_client::Error>>,
    ) -> Result<A, Refusal> {
        let start = Instant::now();
        let result = match tokio::time::timeout(self.connection.timeout(), request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Refusal::of(&error)),
            Err(_) => Err(Refusal::Unknown("etcd did not answer in time".into())),
        };
        self.observer.request(purpose, counts, start.elapsed(), result.is_ok());
        if let Err(Refusal::Unknown(why) | Refusal::NotSent(why)) = &result {
            tracing::debug!(?purpose, why, "etcd gave no answer");
            self.connection.failed(of).await;
        }
        result
    }
}
