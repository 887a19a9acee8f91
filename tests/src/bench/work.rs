//! What clients do.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use hyper::Method;
use tokio::sync::Semaphore;

use super::{
    http::{Connections, Http, text},
    load::{Figure, Meter, all},
    pairs,
    stage::Stage,
};

/// Bytes of a message and of a plain put.
const PAYLOAD: usize = 128;
/// Messages of a batch.
const BATCH: usize = 100;

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// etcd: one put, straight to it.
    Put(Connections),
    /// etcd: one transaction such as a sidecar commits for a request, straight to it; by one client, of whom a round trip is
    /// told.
    Commit,
    /// The same, of as many bytes as a batch has.
    LargeCommit,
    /// etcd's own lock service (v3lock): lock and unlock, straight to it.
    EtcdLock(Connections),
    /// A lock acquired and released, one key a client.
    Lock(Connections),
    /// One message published a request.
    Publish(Connections),
    /// A hundred messages published a request.
    PublishBatch(Connections),
    /// A message published, received and acknowledged, each by a request.
    Deliver(Connections),
    /// A message published and received, each by a request, of which the second acknowledges the last one received.
    DeliverOn(Connections),
    /// Two-phase commit with two participants.
    Transaction(Connections),
}

impl Work {
    pub(super) const ALL: [Self; 18] = [
        Self::Put(Connections::Own),
        Self::Put(Connections::Shared),
        Self::Commit,
        Self::LargeCommit,
        Self::EtcdLock(Connections::Own),
        Self::EtcdLock(Connections::Shared),
        Self::Lock(Connections::Own),
        Self::Lock(Connections::Shared),
        Self::Publish(Connections::Own),
        Self::Publish(Connections::Shared),
        Self::PublishBatch(Connections::Own),
        Self::PublishBatch(Connections::Shared),
        Self::Deliver(Connections::Own),
        Self::Deliver(Connections::Shared),
        Self::DeliverOn(Connections::Own),
        Self::DeliverOn(Connections::Shared),
        Self::Transaction(Connections::Own),
        Self::Transaction(Connections::Shared),
    ];

    pub(super) fn name(self) -> String {
        let (what, how) = match self {
            Self::Put(connections) => ("etcd, plain puts", connections.counted()),
            Self::Commit => return "etcd, 2 compares and 2 puts in a transaction".into(),
            Self::LargeCommit => return "the same, as large as 100 messages".into(),
            Self::EtcdLock(connections) => ("etcd's v3lock, pairs", connections.counted()),
            Self::Lock(connections) => ("lock, acquire + release", connections.spoken()),
            Self::Publish(connections) => ("publish, 1 a request", connections.spoken()),
            Self::PublishBatch(connections) => ("publish, 100 a request", connections.spoken()),
            Self::Deliver(connections) => ("publish → receive → ack", connections.spoken()),
            Self::DeliverOn(connections) => ("publish → receive with the last ack", connections.spoken()),
            Self::Transaction(connections) => ("two-phase commit", connections.spoken()),
        };
        format!("{what}; {how}")
    }

    /// Whether it tells something of so many clients.
    pub(super) fn told_of(self, clients: usize) -> bool {
        clients == 1 || !matches!(self, Self::Commit | Self::LargeCommit)
    }

    /// etcd round trips that one operation of ours needs, those of a watch included, and what they are compared with;
    /// `None` of what goes straight to etcd.
    pub(super) fn round_trips(self) -> Option<(u32, Self)> {
        match self {
            Self::Put(_) | Self::Commit | Self::LargeCommit | Self::EtcdLock(_) => None,
            // Its two commits are under way at the same time.
            Self::DeliverOn(_) => None,
            Self::Publish(_) => Some((1, Self::Commit)),
            Self::PublishBatch(_) => Some((1, Self::LargeCommit)),
            // A consumer that waits beside the publisher has a message by the commit that stores it.
            Self::Lock(_) | Self::Deliver(_) => Some((2, Self::Commit)),
            Self::Transaction(_) => Some((5, Self::Commit)),
        }
    }

    pub(super) async fn run(self, stage: &Stage, clients: usize, time: Duration) -> Result<Figure> {
        let before = stage.spent()?;
        let figure = self.load(stage, clients, time).await?;
        Ok(figure.spending(before, stage.spent()?))
    }

    async fn load(self, stage: &Stage, clients: usize, time: Duration) -> Result<Figure> {
        match self {
            Self::Put(connections) => puts(stage.clients(connections, clients).await?, time).await,
            Self::Commit => commits(stage.client.clone(), PAYLOAD, time).await,
            Self::LargeCommit => commits(stage.client.clone(), BATCH * PAYLOAD, time).await,
            Self::EtcdLock(connections) => {
                pairs::v3lock(stage.clients(connections, clients).await?, time).await
            }
            Self::Lock(connections) => {
                pairs::sidecar(connections, stage.port()?, "bench", clients, time).await
            }
            Self::Publish(connections) => publish(connections, stage, clients, time, 1).await,
            Self::PublishBatch(connections) => publish(connections, stage, clients, time, BATCH).await,
            Self::Deliver(connections) => deliver(connections, stage, clients, time, consume).await,
            Self::DeliverOn(connections) => deliver(connections, stage, clients, time, consume_on).await,
            Self::Transaction(connections) => transactions(connections, stage, clients, time).await,
        }
    }
}

async fn puts(clients: Vec<Client>, time: Duration) -> Result<Figure> {
    let meter = Meter::start(time)?;
    all(clients.into_iter().enumerate().map(|(number, mut client)| {
        let meter = meter.clone();
        async move {
            let key = format!("/plain/{number}");
            while meter.goes_on() {
                let since = Instant::now();
                client.put(key.as_str(), vec![b'x'; PAYLOAD], None).await?;
                meter.done(1, since);
            }
            Ok(())
        }
    }))
    .await?;
    Ok(meter.figure())
}

/// As a sidecar commits what one request asks: if the session lives and the key is as it was known, the marker and the key
/// are put.
async fn commits(mut client: Client, bytes: usize, time: Duration) -> Result<Figure> {
    let (session, marker, key) = ("/plan/session", "/plan/marker", "/plan/key");
    client.put(session, "", None).await?;
    client.put(key, "", None).await?;
    let mut known = client.get(key, None).await?.kvs().first().context("no key")?.mod_revision();
    let meter = Meter::start(time)?;
    while meter.goes_on() {
        let since = Instant::now();
        let plan = Txn::new()
            .when([
                Compare::create_revision(session, CompareOp::Greater, 0),
                Compare::mod_revision(key, CompareOp::Equal, known),
            ])
            .and_then([
                TxnOp::put(marker, known.to_string(), None),
                TxnOp::put(key, vec![b'x'; bytes], None),
            ]);
        let answer = client.txn(plan).await?;
        ensure!(answer.succeeded(), "somebody else has put {key}");
        known = answer.header().context("no header")?.revision();
        meter.done(1, since);
    }
    Ok(meter.figure())
}

async fn publish(
    connections: Connections,
    stage: &Stage,
    clients: usize,
    time: Duration,
    messages: usize,
) -> Result<Figure> {
    let queue = fresh_name();
    stage.new_queue(&queue).await?;
    let mut callers = Http::several(connections, stage.port()?, clients).await?;
    let path = format!("/v1/queues/{queue}/messages");
    let (kind, body) = payload(messages);
    let meter = Meter::start(time)?;
    all(callers.iter_mut().map(|http| {
        let (meter, path, body) = (meter.clone(), &path, &body);
        async move {
            while meter.goes_on() {
                let since = Instant::now();
                http.send(Method::POST, path, &[("content-type", kind)], body.clone(), &[200, 201]).await?;
                meter.done(messages as u64, since);
            }
            Ok(())
        }
    }))
    .await?;
    stage.drop_queue(&queue).await?;
    Ok(meter.figure())
}

/// As many consumers as publishers, and at most as many messages on their way from one to the other; each goes at its own
/// pace. What counts is an acknowledged message, and how long its consumer waited for it and for an acknowledgement.
async fn deliver(
    connections: Connections,
    stage: &Stage,
    clients: usize,
    time: Duration,
    consume: impl AsyncFn(&mut Http, &str, &Meter, &Semaphore) -> Result<()>,
) -> Result<Figure> {
    let queue = fresh_name();
    stage.new_queue(&queue).await?;
    let mut publishers = Http::several(connections, stage.port()?, clients).await?;
    let mut consumers = Http::several(connections, stage.port()?, clients).await?;
    let (kind, body) = payload(1);
    let base = format!("/v1/queues/{queue}");
    let publish = format!("{base}/messages");
    let meter = Meter::start(time)?;
    let ahead = Semaphore::new(clients);
    let publishing = all(publishers.iter_mut().map(|http| {
        let (meter, body, publish, ahead) = (meter.clone(), &body, &publish, &ahead);
        async move {
            while let Ok(Ok(place)) = tokio::time::timeout_at(meter.end.into(), ahead.acquire()).await {
                place.forget();
                http.send(Method::POST, publish, &[("content-type", kind)], body.clone(), &[201]).await?;
            }
            Ok(())
        }
    }));
    let consuming = all(consumers.iter_mut().map(|http| consume(http, &base, &meter, &ahead)));
    tokio::try_join!(publishing, consuming)?;
    stage.drop_queue(&queue).await?;
    Ok(meter.figure())
}

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// Receives, and acknowledges by another request.
async fn consume(http: &mut Http, queue: &str, meter: &Meter, ahead: &Semaphore) -> Result<()> {
    let (receive, ack) = (format!("{queue}/receive?max=1&wait=2s"), format!("{queue}/ack"));
    while meter.goes_on() {
        let since = Instant::now();
        let received = http.send(Method::POST, &receive, &[], "", &[200, 204]).await?;
        // Without a message: none came within the wait, and the end is near.
        let Ok(receipt) = text(received, "receipt") else { continue };
        let receipts = format!("{{\"receipts\":[\"{receipt}\"]}}");
        http.send(Method::POST, &ack, &JSON, receipts, &[200]).await?;
        ahead.add_permits(1);
        meter.done(1, since);
    }
    Ok(())
}

/// Receives, and acknowledges what the last receive brought: that is not on its way any more.
async fn consume_on(http: &mut Http, queue: &str, meter: &Meter, ahead: &Semaphore) -> Result<()> {
    let receive = format!("{queue}/receive?max=1&wait=2s");
    let mut last = None;
    while meter.goes_on() {
        let since = Instant::now();
        let ack = last.take().map(|receipt| format!("{{\"ack\":[\"{receipt}\"]}}"));
        let acks = ack.is_some();
        let received = http.send(Method::POST, &receive, &JSON, ack.unwrap_or_default(), &[200, 204]).await?;
        if acks {
            ensure!(text(received, "status")? == "ok", "{}", String::from_utf8_lossy(received));
            meter.done(1, since);
        }
        if !received.is_empty() && !received.starts_with(b"{\"messages\":[]") {
            last = Some(text(received, "receipt")?.to_owned());
            ahead.add_permits(1);
        }
    }
    Ok(())
}

async fn transactions(
    connections: Connections,
    stage: &Stage,
    clients: usize,
    time: Duration,
) -> Result<Figure> {
    let mut callers = Http::several(connections, stage.port()?, clients).await?;
    let meter = Meter::start(time)?;
    all(callers.iter_mut().map(|http| {
        let meter = meter.clone();
        async move {
            while meter.goes_on() {
                let since = Instant::now();
                let path = "/v1/transactions/bench?wait=30s";
                let answer = http.send(Method::POST, path, &JSON, "{}", &[200]).await?;
                ensure!(text(answer, "outcome")? == "committed", "{}", String::from_utf8_lossy(answer));
                meter.done(1, since);
            }
            Ok(())
        }
    }))
    .await?;
    Ok(meter.figure())
}

fn payload(messages: usize) -> (&'static str, Bytes) {
    let message = "x".repeat(PAYLOAD);
    if messages == 1 {
        return ("text/plain", message.into());
    }
    let line = format!("{{\"body\":\"{message}\"}}\n");
    ("application/x-ndjson", line.repeat(messages).into())
}

fn fresh_name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("bench-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}
