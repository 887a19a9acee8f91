//! An etcd that is recorded, sidecars on it, and clients whose history is kept.

use std::{collections::BTreeMap, path::PathBuf, process::Command, sync::Arc};

use anyhow::{Context, Result, anyhow, ensure};
use concordat_protocol::{
    Definition, Entry, Key, Kind, Name, Settings,
    queue::{
        self, Mode, OnFull, Ordering,
        delivery::Change,
        invariant::{self, Account, History, Ledger},
    },
};
use concordat_store::{keys, record};
use concordat_tests::{
    etcd::{self, Etcd},
    history::Recorder,
    process::{Process, binary, binary_with, eventually, free_port},
    proxy::Proxy,
};
use parking_lot::Mutex;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

pub(crate) const NAMESPACE: &str = "default";
pub(crate) const QUEUE: &str = "orders";

/// Messages of these tests expire long after the test.
const HORIZON: u64 = 1;

pub(crate) struct World {
    pub(crate) etcd: Etcd,
    recorder: Recorder,
    pub(crate) history: Arc<Mutex<History>>,
    max_deliveries: u32,
}

/// A sidecar and its address.
pub(crate) struct Sidecar {
    pub(crate) process: Process,
    port: u16,
    base: String,
    history: Arc<Mutex<History>>,
    client: reqwest::Client,
}

/// A message as it was received.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) body: Value,
    pub(crate) deliveries: u64,
    pub(crate) receipt: String,
    pub(crate) all: Value,
}

pub(crate) fn settings() -> queue::Settings {
    queue::Settings {
        mode: Mode::WorkQueue,
        partitions: 2,
        ordering: Ordering::None,
        visibility: 60_000,
        max_deliveries: 5,
        backoff: vec![10],
        dead_letter_queue: None,
        dead_letter_retention: 3_600_000,
        retention_age: 3_600_000,
        retention_bytes: 64 << 20,
        on_full: OnFull::Refuse,
        max_message_bytes: 256 << 10,
        dedup_window: 600_000,
    }
}

impl World {
    /// With the queue `orders`.
    pub(crate) async fn start(settings: queue::Settings) -> Result<Self> {
        Self::on(etcd::Settings::default(), settings).await
    }

    pub(crate) async fn on(etcd: etcd::Settings, settings: queue::Settings) -> Result<Self> {
        let etcd = Etcd::with(etcd).await?;
        let recorder = Recorder::start(etcd.client().await?);
        let max_deliveries = settings.max_deliveries;
        let world = Self { etcd, recorder, history: Arc::default(), max_deliveries };
        world.define(QUEUE, settings).await?;
        Ok(world)
    }

    pub(crate) async fn define(&self, name: &str, settings: queue::Settings) -> Result<()> {
        let key = Key::Definition { kind: Kind::Queue, name: name.into() };
        let definition = Definition { uid: name.into(), generation: 1, settings: Settings::Queue(settings) };
        let (key, value) = (keys::encode(NAMESPACE, &key), record::encode(&definition.into()));
        self.etcd.client().await?.put(key, value, None).await?;
        Ok(())
    }

    pub(crate) async fn undefine(&self, name: &str) -> Result<()> {
        let key = Key::Definition { kind: Kind::Queue, name: name.into() };
        self.etcd.client().await?.delete(keys::encode(NAMESPACE, &key), None).await?;
        Ok(())
    }

    /// A sidecar that knows the queue.
    pub(crate) async fn sidecar(&self, name: &str) -> Result<Sidecar> {
        self.sidecar_with(name, None).await
    }

    /// A sidecar with fail points, as the variable `FAILPOINTS` says them, whose session is soon over then.
    pub(crate) async fn sidecar_with(&self, name: &str, failpoints: Option<&str>) -> Result<Sidecar> {
        self.sidecar_at(name, failpoints, self.etcd.endpoints().join(",")).await
    }

    /// A sidecar that reaches etcd by a proxy.
    pub(crate) async fn sidecar_behind(&self, name: &str, proxy: &Proxy) -> Result<Sidecar> {
        self.sidecar_at(name, None, proxy.endpoint()).await
    }

    async fn sidecar_at(&self, name: &str, failpoints: Option<&str>, etcd: String) -> Result<Sidecar> {
        let (api, admin) = (free_port()?, free_port()?);
        let mut command = Command::new(program(failpoints.is_some())?);
        command
            .args(["--namespace", NAMESPACE, "--app", name, "--pod", name])
            .args(["--api-port", &api.to_string(), "--admin-port", &admin.to_string()])
            .args(["--admin-address", "127.0.0.1", "--etcd-endpoints", &etcd])
            .args(["--log", "info,concordat_sidecar=debug"]);
        if let Some(failpoints) = failpoints {
            command.args(["--session-ttl", "3s"]).env("FAILPOINTS", failpoints);
        }
        let mut process = Process::start(name, command)?;
        process.answers(&format!("http://127.0.0.1:{admin}/ready")).await?;
        let base = format!("http://127.0.0.1:{api}/v1/queues");
        process.answers(&format!("{base}/{QUEUE}")).await?;
        Ok(Sidecar {
            process,
            port: api,
            base,
            history: self.history.clone(),
            client: reqwest::Client::new(),
        })
    }

    /// The ledger of the queue up to now.
    pub(crate) async fn ledger(&self) -> Result<Ledger> {
        let mut ledger = Ledger::new(HORIZON);
        let changes = self.recorder.changes().await?;
        for revision in changes.chunk_by(|a, b| a.revision == b.revision) {
            let changes: Vec<Change> = revision
                .iter()
                .map(|change| match &change.entry {
                    Some(entry) => Change::Put(entry.clone()),
                    None => Change::Deleted(change.key.clone(), change.revision),
                })
                .collect();
            ledger.apply(revision[0].revision, &changes);
        }
        Ok(ledger)
    }

    /// What stands under each key.
    pub(crate) async fn state(&self) -> Result<BTreeMap<Key, Entry>> {
        self.recorder.state().await
    }

    /// How many messages stand where, by the record of etcd's changes.
    pub(crate) async fn account(&self) -> Result<Account> {
        Ok(self.ledger().await?.account(&QUEUE.into()))
    }

    /// Judges the history.
    pub(crate) async fn judge(&self) -> Result<Account> {
        let (ledger, history) = (self.ledger().await?, self.history.lock().clone());
        let queue: Name = QUEUE.into();
        invariant::all(&history, &ledger, &queue, self.max_deliveries)
            .map_err(|violation| anyhow!(violation))?;
        Ok(ledger.account(&queue))
    }

    /// Judges once every message has ended one way or another.
    pub(crate) async fn settled(&self) -> Result<Account> {
        eventually("every message to have ended", async || {
            let account = self.account().await?;
            ensure!(account.ready + account.in_flight == 0, "{account:?}");
            Ok(())
        })
        .await?;
        self.judge().await
    }
}

fn program(failpoints: bool) -> Result<PathBuf> {
    if failpoints {
        binary_with("concordat-sidecar", &["concordat-sidecar/failpoints"])
    } else {
        binary("concordat-sidecar")
    }
}

impl Sidecar {
    /// Asked from now on by a proxy.
    pub(crate) async fn behind_proxy(&mut self) -> Result<Proxy> {
        let proxy = Proxy::start(format!("127.0.0.1:{}", self.port)).await?;
        self.base = format!("{}/v1/queues", proxy.endpoint());
        Ok(proxy)
    }

    /// Asked from now on over one HTTP/2 connection for all requests.
    pub(crate) fn over_http2(mut self) -> Result<Self> {
        self.client = reqwest::Client::builder().http2_prior_knowledge().build()?;
        Ok(self)
    }

    pub(crate) fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/{path}", self.base))
    }

    pub(crate) async fn json(&self, method: Method, path: &str, body: Value) -> Result<(StatusCode, Value)> {
        read(self.ask(method, path).json(&body).send().await?).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<(StatusCode, Value)> {
        read(self.ask(Method::GET, path).send().await?).await
    }

    /// Publishes a JSON body and records what was answered. `name`: producer and number.
    pub(crate) async fn publish(
        &self,
        body: &Value,
        name: Option<(&str, u64)>,
    ) -> Result<(StatusCode, Value)> {
        let bytes = serde_json::to_vec(body)?;
        {
            let mut history = self.history.lock();
            let attempts = history.attempted.entry(bytes.clone()).or_default();
            *attempts += 1;
            let first = *attempts == 1;
            history.refused.remove(&bytes);
            if first && name.is_some() {
                history.once.insert(bytes.clone());
            } else if name.is_none() {
                history.once.remove(&bytes);
            }
        }
        let mut request = self.ask(Method::POST, "orders/messages").json(body);
        if let Some((producer, number)) = name {
            request = request.header("Producer-Id", producer).header("Producer-Seq", number);
        }
        let (status, answer) = read(request.send().await?).await?;
        let mut history = self.history.lock();
        if status.is_success() {
            let partition =
                answer["id"].as_str().and_then(|id| id.split_once('-')).context("no id")?.0.parse()?;
            let offset = answer["offset"].as_u64().context("no offset")?;
            history.stored.entry(bytes).or_default().insert((partition, offset));
        } else if answer["outcome"] != "unknown" && history.attempted.get(&bytes) == Some(&1) {
            history.refused.insert(bytes);
        }
        Ok((status, answer))
    }

    /// Receives and records.
    pub(crate) async fn receive(&self, query: &str) -> Result<Vec<Message>> {
        Ok(self.receive_and_ack(query, &[]).await?.0)
    }

    /// Receives, acknowledges by the same request, and records: messages, and the statuses.
    pub(crate) async fn receive_and_ack(
        &self,
        query: &str,
        ack: &[Message],
    ) -> Result<(Vec<Message>, Vec<String>)> {
        let mut request = self.ask(Method::POST, &format!("orders/receive?{query}"));
        if !ack.is_empty() {
            self.asks_ack(ack)?;
            request = request.json(&json!({ "ack": receipts(ack) }));
        }
        let (status, answer) = read(request.send().await?).await?;
        if status == StatusCode::NO_CONTENT && ack.is_empty() {
            return Ok((vec![], vec![]));
        }
        ensure!(status == StatusCode::OK, "{status}: {answer}");
        let statuses = if ack.is_empty() { vec![] } else { statuses(&answer["acked"])? };
        self.is_acked(ack, &statuses)?;
        let messages = answer["messages"].as_array().context("no messages")?.iter();
        let messages: Vec<Message> = messages
            .map(|message| {
                Ok(Message {
                    body: message["body"].clone(),
                    deliveries: message["deliveries"].as_u64().context("no deliveries")?,
                    receipt: message["receipt"].as_str().context("no receipt")?.to_owned(),
                    all: message.clone(),
                })
            })
            .collect::<Result<_>>()?;
        let mut history = self.history.lock();
        for message in &messages {
            let offset = message.all["offset"].as_u64().context("no offset")?;
            let delivery = (serde_json::to_vec(&message.body)?, offset, message.deliveries as u32);
            *history.delivered.entry(delivery).or_default() += 1;
        }
        Ok((messages, statuses))
    }

    /// Receives until there is something.
    pub(crate) async fn receive_some(&self, max: usize) -> Result<Vec<Message>> {
        eventually("a message to come", async || {
            let messages = self.receive(&format!("max={max}&wait=5s")).await?;
            ensure!(!messages.is_empty(), "nothing came");
            Ok(messages)
        })
        .await
    }

    /// Acknowledges and records; the statuses.
    pub(crate) async fn ack(&self, messages: &[Message]) -> Result<Vec<String>> {
        self.asks_ack(messages)?;
        let statuses = self.settle("ack", messages, json!({})).await?;
        self.is_acked(messages, &statuses)?;
        Ok(statuses)
    }

    fn asks_ack(&self, messages: &[Message]) -> Result<()> {
        for message in messages {
            self.history.lock().ack_asked.insert(message.delivery()?);
        }
        Ok(())
    }

    fn is_acked(&self, messages: &[Message], statuses: &[String]) -> Result<()> {
        for (message, _) in messages.iter().zip(statuses).filter(|(_, status)| *status == "ok") {
            self.history.lock().acked.insert(message.delivery()?);
        }
        Ok(())
    }

    pub(crate) async fn nack(&self, messages: &[Message], more: Value) -> Result<Vec<String>> {
        self.settle("nack", messages, more).await
    }

    pub(crate) async fn settle(
        &self,
        how: &str,
        messages: &[Message],
        mut body: Value,
    ) -> Result<Vec<String>> {
        body["receipts"] = receipts(messages);
        let (status, answer) = self.json(Method::POST, &format!("orders/{how}"), body).await?;
        ensure!(status == StatusCode::OK, "{status}: {answer}");
        statuses(&answer["results"])
    }
}

impl Message {
    fn delivery(&self) -> Result<(Vec<u8>, u32)> {
        Ok((serde_json::to_vec(&self.body)?, self.deliveries as u32))
    }
}

fn receipts(messages: &[Message]) -> Value {
    messages.iter().map(|message| message.receipt.clone()).collect()
}

fn statuses(results: &Value) -> Result<Vec<String>> {
    let results = results.as_array().context("no results")?;
    Ok(results.iter().map(|result| result["status"].as_str().unwrap_or_default().to_owned()).collect())
}

pub(crate) async fn read(response: Response) -> Result<(StatusCode, Value)> {
    let (status, body) = (response.status(), response.bytes().await?);
    let value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? };
    Ok((status, value))
}
