//! etcd is out of reach of every sidecar for half a minute, in the midst of locks, a queue and a transaction: nobody
//! holds twice, whoever waits is answered, and afterwards all goes on by itself.

#[allow(dead_code, reason = "shared with the scenarios of transactions, which need more of it")]
#[path = "transaction/app.rs"]
mod app;
#[allow(dead_code, reason = "shared with the scenarios of transactions, which need more of it")]
#[path = "transaction/world.rs"]
mod world;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use concordat_protocol::{
    Definition, Key, Kind, Lease, Plan, Settings, lock,
    queue::{self, delivery, invariant},
};
use concordat_tests::{
    etcd::Etcd,
    history::lock::{Callers, RELEASE, RENEWAL},
    process::eventually,
    proxy::Proxy,
};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::sync::Notify;
use world::{Answer, Pod, World};

/// How long the way is closed: three times what a session lasts.
const OUTAGE: Duration = Duration::from_secs(30);
const LOCKS: [(&str, lock::Mode); 2] =
    [("swap", lock::Mode::CompareAndSwap), ("fair", lock::Mode::FairQueue)];
const QUEUE: &str = "jobs";

struct Scene {
    world: World,
    client: Client,
    callers: Arc<Callers>,
    queue: parking_lot::Mutex<invariant::History>,
}

impl Scene {
    async fn define(&self, kind: Kind, name: &str, settings: Settings) -> Result<()> {
        let key = Key::Definition { kind, name: name.into() };
        let definition = Definition { uid: name.into(), generation: 1, settings };
        let plan = Plan::new().put(key, definition, Lease::Forever);
        self.world.admin.write(&self.world.namespace, plan).await?;
        Ok(())
    }

    async fn ask(
        &self,
        pod: &Pod,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Result<Answer> {
        let mut request = self.client.request(method, format!("http://127.0.0.1:{}/v1/{path}", pod.port));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let (status, text) = (response.status().as_u16(), response.text().await?);
        Ok(Answer { status, body: serde_json::from_str(&text).unwrap_or_default() })
    }

    /// Acquires `lock/k` and records what came of it.
    async fn acquire(&self, pod: &Pod, path: &str, wait: &str) -> Result<Answer> {
        let (arrival, from) = (self.callers.arrive(), self.callers.now());
        let owner = format!("caller-{arrival}");
        let body = json!({"owner": owner, "ttl": "8s", "renew": true, "maxHold": "10m"});
        let answer = self.ask(pod, Method::POST, &format!("locks/{path}?wait={wait}"), &[], body).await?;
        if answer.status == 200 {
            let field = |name: &str| answer.body[name].as_u64().with_context(|| format!("no {name}"));
            let token = world::text(&answer.body, "token")?;
            let caller = (owner.clone(), arrival);
            self.callers.granted(path, caller, token, field("fence")?, field("expiresInMs")?);
        }
        if answer.status == 200 || answer.body["code"] == "lock-wait-timeout" {
            self.callers.waited(path, &owner, from);
        }
        Ok(answer)
    }

    async fn with_token(&self, pod: &Pod, what: &'static str, path: &str, token: &str) -> Result<Answer> {
        let method = if what == RENEWAL { Method::PUT } else { Method::DELETE };
        if what == RELEASE {
            self.callers.stop_believing(token);
        }
        let from = self.callers.now();
        let headers = [("Lock-Token", token)];
        let answer = self.ask(pod, method, &format!("locks/{path}"), &headers, Value::Null).await?;
        if matches!(answer.status, 200 | 204) {
            self.callers.succeeded(what, path, token, from);
        }
        Ok(answer)
    }

    /// Publishes a number once, however often it is asked to.
    async fn publish(&self, pod: &Pod, number: u64) -> Result<Answer> {
        let body = serde_json::to_vec(&json!(number))?;
        {
            let mut history = self.queue.lock();
            *history.attempted.entry(body.clone()).or_default() += 1;
            history.once.insert(body.clone());
        }
        let sequence = number.to_string();
        let headers = [("Producer-Id", "till"), ("Producer-Seq", &*sequence)];
        let path = format!("queues/{QUEUE}/messages");
        let answer = self.ask(pod, Method::POST, &path, &headers, json!(number)).await?;
        if matches!(answer.status, 200 | 201) {
            let partition = world::text(&answer.body, "id")?.split_once('-').context("no id")?.0.parse()?;
            let offset = answer.body["offset"].as_u64().context("no offset")?;
            self.queue.lock().stored.entry(body).or_default().insert((partition, offset));
        }
        Ok(answer)
    }

    /// What is received now.
    async fn receive(&self, pod: &Pod) -> Result<Vec<Value>> {
        let path = format!("queues/{QUEUE}/receive?max=10&wait=1s");
        let answer = self.ask(pod, Method::POST, &path, &[], Value::Null).await?;
        ensure!(matches!(answer.status, 200 | 204), "{answer:?}");
        let messages = answer.body["messages"].as_array().cloned().unwrap_or_default();
        for message in &messages {
            let offset = message["offset"].as_u64().context("no offset")?;
            let delivery = (serde_json::to_vec(&message["body"])?, offset, deliveries(message));
            *self.queue.lock().delivered.entry(delivery).or_default() += 1;
        }
        Ok(messages)
    }

    /// Acknowledges; whether all of it was taken.
    async fn ack(&self, pod: &Pod, messages: &[Value]) -> Result<bool> {
        let receipts: Vec<&Value> = messages.iter().map(|message| &message["receipt"]).collect();
        for message in messages {
            let delivery = (serde_json::to_vec(&message["body"])?, deliveries(message));
            self.queue.lock().ack_asked.insert(delivery);
        }
        let path = format!("queues/{QUEUE}/ack");
        let answer = self.ask(pod, Method::POST, &path, &[], json!({ "receipts": receipts })).await?;
        let mut all = answer.status == 200;
        for (at, message) in messages.iter().enumerate() {
            if answer.body["results"][at]["status"] == "ok" {
                let delivery = (serde_json::to_vec(&message["body"])?, deliveries(message));
                self.queue.lock().acked.insert(delivery);
            } else {
                all = false;
            }
        }
        Ok(all)
    }

    /// Q1 to Q8 over all that happened; how many messages stand where.
    async fn judge_queue(&self) -> Result<invariant::Account> {
        let mut ledger = invariant::Ledger::new(1);
        for revision in self.world.changes().await?.chunk_by(|a, b| a.revision == b.revision) {
            let changes: Vec<delivery::Change> = revision
                .iter()
                .map(|change| match &change.entry {
                    Some(entry) => delivery::Change::Put(entry.clone()),
                    None => delivery::Change::Deleted(change.key.clone(), change.revision),
                })
                .collect();
            ledger.apply(revision[0].revision, &changes);
        }
        let (history, name) = (self.queue.lock().clone(), QUEUE.into());
        invariant::all(&history, &ledger, &name, 5).map_err(|violation| anyhow!(violation))?;
        Ok(ledger.account(&name))
    }
}

fn deliveries(message: &Value) -> u32 {
    message["deliveries"].as_u64().unwrap_or_default() as u32
}

fn unavailable(answer: &Answer) -> Result<()> {
    ensure!(answer.status == 503 && answer.body["outcome"].is_string(), "{answer:?}");
    Ok(())
}

async fn scene(etcd: &Etcd, proxy: &Proxy) -> Result<Scene> {
    let world = World::through(etcd, "outage", proxy.endpoint()).await?;
    let scene = Scene { world, client: Client::new(), callers: Arc::default(), queue: Default::default() };
    for (name, mode) in LOCKS {
        let settings = lock::Settings {
            mode,
            sharing: lock::Sharing::Mutex,
            permits: 1,
            ttl: 10_000,
            lock_delay: 0,
            max_hold: 0,
            max_wait: 120_000,
            max_waiters: 100,
            dapr_store: None,
        };
        scene.define(Kind::Lock, name, Settings::Lock(settings)).await?;
    }
    let settings = queue::Settings {
        mode: queue::Mode::WorkQueue,
        partitions: 1,
        ordering: queue::Ordering::None,
        visibility: 600_000,
        max_deliveries: 5,
        backoff: vec![10],
        dead_letter_queue: None,
        dead_letter_retention: 3_600_000,
        retention_age: 3_600_000,
        retention_bytes: 64 << 20,
        on_full: queue::OnFull::Refuse,
        max_message_bytes: 256 << 10,
        dedup_window: 600_000,
    };
    scene.define(Kind::Queue, QUEUE, Settings::Queue(settings)).await?;
    Ok(scene)
}

#[tokio::test]
async fn half_a_minute_without_etcd_is_survived_by_locks_queues_and_transactions() -> Result<()> {
    let etcd = Etcd::start().await?;
    let proxy = Proxy::start(etcd.address(0)).await?;
    let scene = scene(&etcd, &proxy).await?;
    let (p, q) = (scene.world.start("p", "").await?, scene.world.start("q", "").await?);

    // In the midst: held and waited for, delivered and ready, asked to prepare.
    let mut held = Vec::new();
    for (lock, _) in LOCKS {
        let path = format!("{lock}/k");
        let grant = eventually("a grant", async || {
            let grant = scene.acquire(&p, &path, "0s").await?;
            ensure!(grant.status == 200, "{grant:?}");
            Ok(grant)
        })
        .await?;
        scene.callers.write(grant.body["fence"].as_u64().context("no fence")?);
        held.push((path, world::text(&grant.body, "token")?.to_owned()));
    }
    for number in 0..2 {
        ensure!(scene.publish(&p, number).await?.status < 300, "{number} is not stored");
        if number == 0 {
            eventually("one is delivered", async || {
                ensure!(scene.receive(&p).await?.len() == 1, "nothing came");
                Ok(())
            })
            .await?;
        }
    }
    let go = Arc::new(Notify::new());
    scene.world.q.behave("credit", "prepare", [app::Behaviour::Await(go.clone())]);
    let cut = async {
        for (path, _) in &held {
            eventually("q waits", async || {
                let shown = scene.ask(&q, Method::GET, &format!("locks/{path}"), &[], Value::Null).await?;
                ensure!(shown.body["waiters"] == 1, "{shown:?}");
                Ok(())
            })
            .await?;
        }
        eventually("q is asked to prepare", async || {
            ensure!(!scene.world.q.calls().is_empty(), "not yet");
            Ok(())
        })
        .await?;
        proxy.swallow();
        go.notify_one();
        for (path, token) in &held {
            eventually("the loss is told", async || {
                let renewed = scene.with_token(&p, RENEWAL, path, token).await?;
                ensure!(renewed.body["code"] == "lock-lost", "{renewed:?}");
                Ok(())
            })
            .await?;
        }
        anyhow::Ok(())
    };
    let waits = async |path: &str| scene.acquire(&q, path, "110s").await;
    let (told, swap, fair, cut) =
        tokio::join!(scene.world.begin(&p, "t1"), waits("swap/k"), waits("fair/k"), cut);
    cut?;
    for waited in [swap?, fair?] {
        ensure!(matches!(waited.status, 410 | 503), "whoever waits is told: {waited:?}");
    }
    let told = told?;

    // Nothing is taken in meanwhile, and nothing is said to be.
    for (lock, _) in LOCKS {
        unavailable(&scene.acquire(&q, &format!("{lock}/new"), "0s").await?)?;
    }
    unavailable(&scene.publish(&q, 2).await?)?;
    let begun = scene.world.post(&q, &format!("{}?wait=1s", world::NAME), Some("t2"), &json!({})).await?;
    unavailable(&begun)?;
    scene.world.session_ended(&p).await?;
    scene.world.session_ended(&q).await?;
    // The fault itself lasts this long: nothing is waited for here.
    proxy.closed_for(OUTAGE).await;
    proxy.heal();

    for (path, token) in &held {
        let next = eventually("it is granted again", async || {
            let grant = scene.acquire(&q, path, "5s").await?;
            ensure!(grant.status == 200, "{grant:?}");
            Ok(grant)
        })
        .await?;
        ensure!(scene.callers.write(next.body["fence"].as_u64().context("no fence")?), "fences rise");
        let stale = scene.with_token(&p, RENEWAL, path, token).await?;
        ensure!(stale.body["code"] == "lock-lost", "lost once is lost for good: {stale:?}");
        let token = world::text(&next.body, "token")?;
        ensure!(scene.with_token(&q, RENEWAL, path, token).await?.status == 200, "it is held");
        ensure!(scene.with_token(&q, RELEASE, path, token).await?.status == 204, "it is let go");
        scene.callers.judge(path, &scene.world.changes().await?)?;
    }
    eventually("a message is stored again", async || {
        let stored = scene.publish(&q, 2).await?;
        ensure!(stored.status < 300, "{stored:?}");
        Ok(())
    })
    .await?;
    eventually("every message is acknowledged", async || {
        let received = scene.receive(&q).await?;
        ensure!(received.is_empty() || scene.ack(&q, &received).await?, "not all were acknowledged");
        let account = scene.judge_queue().await?;
        ensure!(account.acknowledged == 3, "{account:?}");
        Ok(())
    })
    .await?;
    let finished = scene.world.finished(&p, "t1").await?;
    scene.world.check("t1", &[&told.body, &finished], true).await?;
    let after = eventually("a transaction is begun again", async || {
        let begun = scene.world.begin(&q, "t3").await?;
        ensure!(begun.status == 200, "{begun:?}");
        Ok(begun)
    })
    .await?;
    scene.world.finished(&q, "t3").await?;
    scene.world.check("t3", &[&after.body], true).await
}
