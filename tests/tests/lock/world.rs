//! An etcd, sidecars as processes, and callers over HTTP.

use std::{collections::BTreeMap, process::Command, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use concordat_protocol::{
    Definition, Entry, Key, Kind, Lease, Millis, Plan, Record, Settings,
    lock::{
        Mode, Sharing,
        invariant::{self, line},
    },
    session::Stat,
};
use concordat_store::{Admin, AdminConfig};
use concordat_tests::{
    etcd::Etcd,
    history::{
        Change, Recorder,
        lock::{Callers, RELEASE, RENEWAL},
    },
    process::{Process, binary_with, eventually, free_port, measures},
    proxy::Proxy,
};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

pub(crate) const NAMESPACE: &str = "shop";
/// A lock of each mode.
pub(crate) const LOCKS: [&str; 2] = ["orders", "fair"];

/// Everything that runs.
pub(crate) struct World {
    pub(crate) etcd: Etcd,
    pub(crate) admin: Admin,
    pub(crate) recorder: Recorder,
    pub(crate) callers: Arc<Callers>,
}

/// One sidecar.
pub(crate) struct Sidecar {
    pub(crate) process: Process,
    pod: String,
    pub(crate) api: String,
    pub(crate) admin: String,
    client: Client,
    pub(crate) callers: Arc<Callers>,
}

/// How a sidecar is started.
#[derive(Clone, Default)]
pub(crate) struct Options {
    /// etcd as it sees it; all members without.
    pub(crate) etcd: Option<String>,
    /// What happens at which fail point.
    pub(crate) failpoints: Option<String>,
    /// It will come to harm: its session is soon over then.
    pub(crate) victim: bool,
    /// It says little, since it lives long.
    pub(crate) terse: bool,
}

/// What was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<String>,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub(crate) fn fence(&self) -> u64 {
        self.body["fence"].as_u64().unwrap_or_default()
    }

    pub(crate) fn token(&self) -> String {
        self.body["token"].as_str().unwrap_or_default().to_owned()
    }
}

pub(crate) fn settings() -> concordat_protocol::lock::Settings {
    concordat_protocol::lock::Settings {
        mode: Mode::CompareAndSwap,
        sharing: Sharing::Mutex,
        permits: 1,
        ttl: 60_000,
        lock_delay: 0,
        max_hold: 0,
        max_wait: 120_000,
        max_waiters: 1_024,
        dapr_store: None,
    }
}

pub(crate) fn fair() -> concordat_protocol::lock::Settings {
    concordat_protocol::lock::Settings { mode: Mode::FairQueue, ..settings() }
}

impl World {
    pub(crate) async fn one() -> Result<Self> {
        Self::on(Etcd::start().await?).await
    }

    /// With a lock of each mode: `orders`, and `fair`.
    pub(crate) async fn of_both_modes(etcd: Etcd) -> Result<Self> {
        let world = Self::on(etcd).await?;
        world.define("fair", fair()).await?;
        Ok(world)
    }

    pub(crate) async fn with(etcd: Etcd) -> Result<Self> {
        Self::on(etcd).await
    }

    async fn on(etcd: Etcd) -> Result<Self> {
        let config = AdminConfig { endpoints: etcd.endpoints(), ..AdminConfig::default() };
        let world = Self {
            admin: Admin::connect(config).await?,
            recorder: Recorder::start(etcd.client().await?),
            etcd,
            callers: Arc::default(),
        };
        world.define("orders", settings()).await?;
        Ok(world)
    }

    pub(crate) async fn define(
        &self,
        name: &str,
        settings: concordat_protocol::lock::Settings,
    ) -> Result<()> {
        let key = Key::Definition { kind: Kind::Lock, name: name.into() };
        let record = Definition { uid: "uid".into(), generation: 1, settings: Settings::Lock(settings) };
        self.admin.write(NAMESPACE, Plan::new().put(key, record, Lease::Forever)).await?;
        Ok(())
    }

    pub(crate) async fn undefine(&self, name: &str) -> Result<()> {
        let key = Key::Definition { kind: Kind::Lock, name: name.into() };
        self.admin.write(NAMESPACE, Plan::new().delete(key)).await?;
        Ok(())
    }

    pub(crate) async fn sidecar(&self, pod: &str) -> Result<Sidecar> {
        self.sidecar_with(pod, Options::default()).await
    }

    pub(crate) async fn sidecar_with(&self, pod: &str, options: Options) -> Result<Sidecar> {
        let mut sidecar = self.starting(pod, options)?;
        let ready = format!("{}/ready", sidecar.admin);
        sidecar.process.answers(&ready).await?;
        Ok(sidecar)
    }

    /// A sidecar that has just been started.
    pub(crate) fn starting(&self, pod: &str, options: Options) -> Result<Sidecar> {
        let (api, admin) = (free_port()?, free_port()?);
        let etcd = options.etcd.unwrap_or_else(|| self.etcd.endpoints().join(","));
        let mut command = Command::new(binary_with("concordat-sidecar", &["concordat-sidecar/failpoints"])?);
        command
            .args(["--namespace", NAMESPACE, "--app", "shop", "--pod", pod])
            .args(["--api-port", &api.to_string(), "--admin-port", &admin.to_string()])
            .args(["--admin-address", "127.0.0.1", "--etcd-endpoints", &etcd])
            .args(["--log", if options.terse { "warn" } else { "info,concordat_sidecar=debug" }]);
        if let Some(points) = options.failpoints {
            command.env("FAILPOINTS", points);
        }
        if options.victim {
            command.args(["--session-ttl", "4s"]);
        }
        let process = Process::start(pod, command)?;
        let admin = format!("http://127.0.0.1:{admin}");
        let client = Client::builder().timeout(Duration::from_mins(2)).build()?;
        Ok(Sidecar {
            process,
            pod: pod.to_owned(),
            api: format!("http://127.0.0.1:{api}"),
            admin,
            client,
            callers: self.callers.clone(),
        })
    }

    /// Milliseconds of the clock of all callers.
    pub(crate) fn now(&self) -> Millis {
        self.callers.now()
    }

    /// Acquires, and records a grant: it is believed until `expiresInMs` is over.
    pub(crate) async fn acquire(&self, sidecar: &Sidecar, path: &str, body: Value) -> Result<Answer> {
        sidecar.call(path, body, false).await
    }

    /// Whoever holds a key stops believing in it.
    pub(crate) fn give_up(&self, path: &str) {
        self.callers.give_up(path);
    }

    /// The caller of a grant stops believing in it, as it does before it lets go.
    pub(crate) fn stop_believing(&self, grant: &Answer) {
        self.callers.stop_believing(&grant.token());
    }

    pub(crate) async fn release(&self, sidecar: &Sidecar, key: &str, grant: &Answer) -> Result<Answer> {
        self.let_go(sidecar, &format!("orders/{key}"), grant).await
    }

    /// Lets go of a grant of a key of any lock.
    pub(crate) async fn let_go(&self, sidecar: &Sidecar, path: &str, grant: &Answer) -> Result<Answer> {
        self.stop_believing(grant);
        sidecar.with_token(RELEASE, path, &grant.token()).await
    }

    /// A resource that keeps the highest fence beside its data; whether it takes this write.
    pub(crate) fn write(&self, fence: u64) -> bool {
        self.callers.write(fence)
    }

    /// What its sidecars count for `orders`; of one sidecar only.
    pub(crate) async fn stat(&self) -> Result<Stat> {
        let state = self.recorder.state().await?;
        let stat = state.into_values().find_map(|entry| match entry.record {
            Record::Stat(stat) => Some(stat),
            _ => None,
        });
        Ok(stat.unwrap_or_default())
    }

    /// Who holds a key of `orders`, or with whose sidecar it stays, as etcd has it.
    pub(crate) async fn holder(&self, key: &str) -> Result<Option<concordat_protocol::lock::Holder>> {
        let key = Key::Holder { lock: "orders".into(), key: key.into() };
        Ok(match self.recorder.state().await?.remove(&key).map(|entry| entry.record) {
            Some(Record::Holder(holder)) => Some(holder),
            _ => None,
        })
    }

    /// Takes a key of `orders` from its holder as the operator does.
    pub(crate) async fn take_by_force(&self, key: &str) -> Result<()> {
        self.callers.give_up(&format!("orders/{key}"));
        let definition = Key::Definition { kind: Kind::Lock, name: "orders".into() };
        let found = self.admin.read(NAMESPACE, vec![definition.clone().into()]).await?;
        let entry = found.reads.into_iter().flatten().next().context("no definition")?;
        let holder = Key::Holder { lock: "orders".into(), key: key.into() };
        let plan = Plan::new().delete(holder).put(definition, entry.record, Lease::Forever);
        self.admin.write(NAMESPACE, plan).await?;
        Ok(())
    }

    /// Waits until nobody holds a key of a lock of any mode or waits for it.
    pub(crate) async fn path_is_free(&self, path: &str) -> Result<()> {
        let (of, under) = path.split_once('/').context("a path is lock/key")?;
        eventually(&format!("{path} comes free"), async || {
            let left = self.state().await?.into_keys().find(|left| match left {
                Key::Holder { lock, key } | Key::Waiter { lock, key, .. } => {
                    (lock.as_str(), key.as_str()) == (of, under)
                }
                _ => false,
            });
            ensure!(left.is_none(), "{left:?} is there");
            Ok(())
        })
        .await
    }

    /// Waits until nobody holds a key.
    pub(crate) async fn is_free(&self, key: &str) -> Result<()> {
        eventually(&format!("{key} comes free"), async || {
            ensure!(self.holder(key).await?.is_none(), "it is held");
            Ok(())
        })
        .await
    }

    /// Every change of etcd up to now.
    pub(crate) async fn changes(&self) -> Result<Vec<Change>> {
        self.recorder.changes().await
    }

    /// What stands under the keys of etcd now.
    pub(crate) async fn state(&self) -> Result<BTreeMap<Key, Entry>> {
        self.recorder.state().await
    }

    /// Holds L1 to L7 over all that was recorded of a key, by the mode of its lock.
    pub(crate) async fn judge_path(&self, path: &str) -> Result<()> {
        self.callers.judge(path, &self.changes().await?)
    }

    /// The same of a fair lock; and the history.
    pub(crate) async fn judge_line(&self, lock: &str, key: &str) -> Result<line::History> {
        self.callers.judge_line(&format!("{lock}/{key}"), &self.changes().await?)
    }

    /// The same of a key of `orders`; and the history.
    pub(crate) async fn judge(&self, key: &str) -> Result<invariant::History> {
        self.callers.judge_swap(&format!("orders/{key}"), &self.changes().await?)
    }
}

impl Sidecar {
    /// Port of its API.
    pub(crate) fn port(&self) -> u16 {
        self.api.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_default()
    }

    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.api));
        if let Some(token) = token {
            request = request.header("Lock-Token", token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        Self::read(request.send().await?).await
    }

    pub(crate) async fn read(response: reqwest::Response) -> Result<Answer> {
        let status = response.status();
        let retry_after =
            response.headers().get("retry-after").map(|value| value.to_str().map(str::to_owned));
        let text = response.text().await?;
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? };
        Ok(Answer { status, retry_after: retry_after.transpose()?, body })
    }

    /// Asked from now on over one HTTP/2 connection for all requests.
    pub(crate) fn over_http2(mut self) -> Result<Self> {
        self.client = Client::builder().http2_prior_knowledge().build()?;
        Ok(self)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.request_of(&self.client, method, path)
    }

    /// The same by a client of the caller's own.
    pub(crate) fn request_of(&self, client: &Client, method: Method, path: &str) -> reqwest::RequestBuilder {
        client.request(method, format!("{}{path}", self.api))
    }

    /// Whether it is ready, and why not.
    pub(crate) async fn ready(&self) -> Result<(StatusCode, String)> {
        let response = self.client.get(format!("{}/ready", self.admin)).send().await?;
        Ok((response.status(), response.text().await?))
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        self.ask(Method::GET, path, None, None).await
    }

    /// Asked from now on by a proxy.
    pub(crate) async fn behind_proxy(&mut self) -> Result<Proxy> {
        let proxy = Proxy::start(self.api.trim_start_matches("http://")).await?;
        self.api = proxy.endpoint();
        Ok(proxy)
    }

    /// Acquires under an `Idempotency-Key`.
    pub(crate) async fn acquire_as(&self, path: &str, body: &Value, id: &str) -> Result<Answer> {
        self.call_as(path, body.clone(), false, Some(id)).await
    }

    /// A call that waits: begun now, read later. Its sidecar knows which of these came before which.
    pub(crate) fn wait(&self, path: &str, body: Value) -> JoinHandle<Result<Answer>> {
        tokio::spawn(self.call(&format!("{path}?wait=110s"), body, true))
    }

    /// The same of any call.
    pub(crate) fn call(
        &self,
        path: &str,
        body: Value,
        in_order: bool,
    ) -> impl Future<Output = Result<Answer>> + use<> {
        self.call_as(path, body, in_order, None)
    }

    /// Acquires and records what came of it, under a name of its own if the body has none.
    fn call_as(
        &self,
        path: &str,
        body: Value,
        in_order: bool,
        id: Option<&str>,
    ) -> impl Future<Output = Result<Answer>> + use<> {
        let (callers, arrival, from) = (self.callers.clone(), self.callers.arrive(), self.callers.now());
        let mut owned = json!({"owner": format!("{}-{arrival}", self.pod)});
        if let (Value::Object(owned), Value::Object(body)) = (&mut owned, body) {
            owned.extend(body);
        }
        let mut request = self.request(Method::POST, &format!("/v1/locks/{path}")).json(&owned);
        if let Some(id) = id {
            request = request.header("Idempotency-Key", id);
        }
        let place = if in_order { self.pod.clone() } else { format!("{}/{arrival}", self.pod) };
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (path, waits) = (path.to_owned(), query.contains("wait="));
        async move {
            let answer = Self::read(request.send().await?).await?;
            let granted = answer.status == StatusCode::OK;
            if granted {
                let expires_in = answer.body["expiresInMs"].as_u64().context("no expiresInMs")?;
                callers.granted(&path, (place, arrival), &answer.token(), answer.fence(), expires_in);
            }
            if waits && (granted || answer.code() == "lock-wait-timeout") {
                callers.waited(&path, owned["owner"].as_str().unwrap_or_default(), from);
            }
            Ok(answer)
        }
    }

    /// Whether it says that nobody holds a key of `orders`.
    pub(crate) async fn shows_nobody(&self, key: &str) -> Result<bool> {
        Ok(self.get(&format!("/v1/locks/orders/{key}")).await?.body["holders"] == json!([]))
    }

    pub(crate) async fn renew(&self, key: &str, token: &str) -> Result<Answer> {
        self.with_token(RENEWAL, &format!("orders/{key}"), token).await
    }

    /// Renews or releases, and records that it succeeded.
    pub(crate) async fn with_token(&self, what: &'static str, path: &str, token: &str) -> Result<Answer> {
        let method = if what == RENEWAL { Method::PUT } else { Method::DELETE };
        let from = self.callers.now();
        let answer = self.ask(method, &format!("/v1/locks/{path}"), Some(token), None).await?;
        if answer.status.is_success() {
            self.callers.succeeded(what, path, token, from);
            if let Some(expires_in) = answer.body["expiresInMs"].as_u64() {
                self.callers.renewed(token, expires_in);
            }
        }
        Ok(answer)
    }

    /// Waits until so many callers of it wait for a key.
    pub(crate) async fn waiters(&self, key: &str, count: u64) -> Result<()> {
        self.waiters_of(&format!("orders/{key}"), count).await
    }

    /// The same of a key of any lock; over all sidecars of a fair one.
    pub(crate) async fn waiters_of(&self, path: &str, count: u64) -> Result<()> {
        eventually(&format!("{count} wait for {path}"), async || {
            let waiters = self.get(&format!("/v1/locks/{path}")).await?.body["waiters"].clone();
            ensure!(waiters == json!(count), "{waiters} do");
            Ok(())
        })
        .await
    }

    /// Waits until its metrics have a line.
    pub(crate) async fn counts(&self, line: &str) -> Result<()> {
        measures(&self.admin, &[line]).await
    }
}
