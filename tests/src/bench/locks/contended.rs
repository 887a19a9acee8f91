//! Many clients that want one key. What counts is a grant, and how long it came after the release before it.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse, WatchOptions, WatchStream,
};
use hyper::Method;

use super::super::{
    http::{Http, text},
    load::{Figure, Meter, all},
};

/// When the key was last let go.
type Released = Rc<Cell<Option<Instant>>>;

/// Through sidecars, the clients spread evenly over them.
pub(super) async fn sidecars(ports: &[u16], lock: &str, clients: usize, time: Duration) -> Result<Figure> {
    let mut connections = Vec::new();
    for client in 0..clients {
        connections.push(Http::connect(ports[client % ports.len()]).await?);
    }
    let (path, released) = (format!("/v1/locks/{lock}/contended"), Released::default());
    let asking = format!("{path}?wait=60s");
    let meter = Meter::start(time)?;
    all(connections.iter_mut().map(|http| {
        let (meter, released, path, asking) = (meter.clone(), released.clone(), &path, &asking);
        async move {
            while meter.goes_on() {
                let grant = http.send(Method::POST, asking, &[], "", &[200]).await?;
                handed_over(&meter, &released);
                let token = text(grant, "token")?.to_owned();
                let token = [("lock-token", &*token)];
                http.send(Method::DELETE, path, &token, "", &[204]).await?;
            }
            Ok(())
        }
    }))
    .await?;
    Ok(meter.figure())
}

/// By the recipe of etcd's own client (clientv3/concurrency, mutex.go): a leased key a client, in the order of create
/// revisions; each watches the one before it, all its watches being on one stream.
pub(super) async fn recipe(client: &Client, clients: usize, time: Duration) -> Result<Figure> {
    let mut contenders = Vec::new();
    for _ in 0..clients {
        contenders.push(Contender::new(client.clone()).await?);
    }
    let released = Released::default();
    let meter = Meter::start(time)?;
    all(contenders.iter_mut().map(|contender| {
        let (meter, released) = (meter.clone(), released.clone());
        async move {
            while meter.goes_on() {
                contender.acquire().await?;
                handed_over(&meter, &released);
                contender.client.delete(contender.key.as_str(), None).await?;
            }
            Ok(())
        }
    }))
    .await?;
    for contender in &mut contenders {
        contender.client.lease_revoke(contender.lease).await?;
    }
    Ok(meter.figure())
}

/// Counts a grant; its holder lets go at once.
fn handed_over(meter: &Meter, released: &Released) {
    let now = Instant::now();
    meter.done(1, released.replace(Some(now)).unwrap_or(now));
}

const PREFIX: &str = "/recipe/";

struct Contender {
    client: Client,
    lease: i64,
    key: String,
    stream: WatchStream,
    watches: i64,
}

impl Contender {
    async fn new(mut client: Client) -> Result<Self> {
        let lease = client.lease_grant(60, None).await?.id();
        let stream = client.watch("/nothing", Some(WatchOptions::new().with_watch_id(1))).await?;
        Ok(Self { client, lease, key: format!("{PREFIX}{lease:x}"), stream, watches: 1 })
    }

    async fn acquire(&mut self) -> Result<()> {
        let first =
            GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend).with_limit(1);
        let key = self.key.as_str();
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put(key, "", Some(PutOptions::new().with_lease(self.lease))),
                TxnOp::get(PREFIX, Some(first.clone())),
            ])
            .or_else([TxnOp::get(key, None), TxnOp::get(PREFIX, Some(first))]);
        let answer = self.client.txn(txn).await?;
        ensure!(answer.succeeded(), "{key} stands although it was deleted");
        let own = answer.header().context("no header")?.revision();
        let owner = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(found) => found.kvs().first().map(etcd_client::KeyValue::create_revision),
            _ => None,
        });
        if owner.is_some_and(|owner| owner != own) {
            self.wait_for_those_before(own).await?;
            let found = self.client.get(self.key.as_str(), None).await?;
            ensure!(!found.kvs().is_empty(), "its lease is over");
        }
        Ok(())
    }

    async fn wait_for_those_before(&mut self, own: i64) -> Result<()> {
        loop {
            let last = GetOptions::new()
                .with_prefix()
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(1)
                .with_max_create_revision(own - 1);
            let found = self.client.get(PREFIX, Some(last)).await?;
            let Some(before) = found.kvs().first() else { return Ok(()) };
            self.watches += 1;
            let options = WatchOptions::new()
                .with_watch_id(self.watches)
                .with_start_revision(found.header().context("no header")?.revision());
            self.stream.watch(before.key(), Some(options)).await?;
            loop {
                let message = self.stream.message().await?.context("the watch ended")?;
                let gone = |event: &etcd_client::Event| event.event_type() == EventType::Delete;
                if message.watch_id() == self.watches && message.events().iter().any(gone) {
                    break;
                }
            }
            self.stream.cancel(self.watches).await?;
        }
    }
}
