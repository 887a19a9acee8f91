//! What clients do.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use hyper::Method;

use super::{
    http::{Http, text},
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
    Put,
    /// etcd's own lock service (v3lock): lock and unlock, straight to it.
    EtcdLock,
    /// A lock acquired and released, one key a client.
    Lock,
    /// One message published a request.
    Publish,
    /// A hundred messages published a request.
    PublishBatch,
    /// A message published, received and acknowledged, each by a request.
    Deliver,
    /// Two-phase commit with two participants.
    Transaction,
}

impl Work {
    pub(super) const ALL: [Self; 7] = [
        Self::Put,
        Self::EtcdLock,
        Self::Lock,
        Self::Publish,
        Self::PublishBatch,
        Self::Deliver,
        Self::Transaction,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Put => "etcd, plain puts",
            Self::EtcdLock => "etcd's v3lock, pairs",
            Self::Lock => "lock, acquire + release",
            Self::Publish => "publish, 1 a request",
            Self::PublishBatch => "publish, 100 a request",
            Self::Deliver => "publish → receive → ack",
            Self::Transaction => "two-phase commit",
        }
    }

    /// etcd round trips that one operation needs, those of a watch included.
    pub(super) fn round_trips(self) -> u32 {
        match self {
            Self::Put | Self::Publish | Self::PublishBatch => 1,
            Self::EtcdLock | Self::Lock => 2,
            Self::Deliver => 3,
            Self::Transaction => 5,
        }
    }

    pub(super) async fn run(self, stage: &Stage, clients: usize, time: Duration) -> Result<Figure> {
        let before = stage.spent()?;
        let figure = self.load(stage, clients, time).await?;
        Ok(figure.spending(before, stage.spent()?))
    }

    async fn load(self, stage: &Stage, clients: usize, time: Duration) -> Result<Figure> {
        match self {
            Self::Put => puts(stage, clients, time).await,
            Self::EtcdLock => pairs::v3lock(&stage.client, clients, time).await,
            Self::Lock => pairs::sidecar(stage.port()?, "bench", clients, time).await,
            Self::Publish => publish(stage, clients, time, 1).await,
            Self::PublishBatch => publish(stage, clients, time, BATCH).await,
            Self::Deliver => deliver(stage, clients, time).await,
            Self::Transaction => transactions(stage, clients, time).await,
        }
    }
}

async fn puts(stage: &Stage, clients: usize, time: Duration) -> Result<Figure> {
    let meter = Meter::start(time)?;
    all((0..clients).map(|number| {
        let (mut client, meter) = (stage.client.clone(), meter.clone());
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

async fn publish(stage: &Stage, clients: usize, time: Duration, messages: usize) -> Result<Figure> {
    let queue = fresh_name();
    stage.new_queue(&queue).await?;
    let mut connections = Http::several(stage.port()?, clients).await?;
    let path = format!("/v1/queues/{queue}/messages");
    let (kind, body) = payload(messages);
    let meter = Meter::start(time)?;
    all(connections.iter_mut().map(|http| {
        let (meter, path, body) = (meter.clone(), &path, &body);
        async move {
            while meter.goes_on() {
                let since = Instant::now();
                http.send(Method::POST, path, &[("content-type", kind)], body, &[200, 201]).await?;
                meter.done(messages as u64, since);
            }
            Ok(())
        }
    }))
    .await?;
    stage.drop_queue(&queue).await?;
    Ok(meter.figure())
}

/// As many consumers as publishers; what counts is an acknowledged message, and how long publish, receive and ack of
/// one client took together when each got one.
async fn deliver(stage: &Stage, clients: usize, time: Duration) -> Result<Figure> {
    let queue = fresh_name();
    stage.new_queue(&queue).await?;
    let mut publishers = Http::several(stage.port()?, clients).await?;
    let mut consumers = Http::several(stage.port()?, clients).await?;
    let (kind, body) = payload(1);
    let (publish, receive, ack) = (
        format!("/v1/queues/{queue}/messages"),
        format!("/v1/queues/{queue}/receive?max=1&wait=2s"),
        format!("/v1/queues/{queue}/ack"),
    );
    let meter = Meter::start(time)?;
    all(publishers.iter_mut().zip(&mut consumers).map(|(publisher, consumer)| {
        let (meter, body) = (meter.clone(), &body);
        let (publish, receive, ack) = (&publish, &receive, &ack);
        async move {
            while meter.goes_on() {
                let since = Instant::now();
                let content = [("content-type", kind)];
                let published = publisher.send(Method::POST, publish, &content, body, &[201]);
                let received = consumer.send(Method::POST, receive, &[], "", &[200]);
                let (published, received) = tokio::join!(published, received);
                published?;
                let (_, received) = received?;
                let receipt = text(received, "receipt")?;
                let receipts = format!("{{\"receipts\":[\"{receipt}\"]}}");
                let json = [("content-type", "application/json")];
                consumer.send(Method::POST, ack, &json, receipts, &[200]).await?;
                meter.done(1, since);
            }
            Ok(())
        }
    }))
    .await?;
    stage.drop_queue(&queue).await?;
    Ok(meter.figure())
}

async fn transactions(stage: &Stage, clients: usize, time: Duration) -> Result<Figure> {
    let mut connections = Http::several(stage.port()?, clients).await?;
    let meter = Meter::start(time)?;
    all(connections.iter_mut().map(|http| {
        let meter = meter.clone();
        async move {
            let json = [("content-type", "application/json")];
            while meter.goes_on() {
                let since = Instant::now();
                let path = "/v1/transactions/bench?wait=30s";
                let (_, answer) = http.send(Method::POST, path, &json, "{}", &[200]).await?;
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
