//! An etcd, a sidecar as a process, and requests that no client library would send.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result};
use concordat_protocol::{
    Definition, Key, Kind, Lease, Millis, Plan, Range, Settings, definition::Backoff, lock, queue,
    transaction,
};
use concordat_store::{Admin, AdminConfig, Tls, access};
use concordat_tests::{
    etcd::{self, Etcd},
    process::{Process, binary, free_port},
};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

pub(crate) const NAMESPACE: &str = "shop";

/// etcd with an object of each kind that works, and one of each that does not yet.
pub(crate) struct World {
    pub(crate) etcd: Etcd,
    pub(crate) admin: Admin,
}

/// One sidecar.
pub(crate) struct Sidecar {
    pub(crate) process: Process,
    pub(crate) api: u16,
    pub(crate) admin: u16,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// The problem's code, empty for none.
    pub(crate) fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.text).unwrap_or_default();
        body["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl World {
    pub(crate) async fn new() -> Result<Self> {
        let etcd = Etcd::start().await?;
        let config = AdminConfig { endpoints: etcd.endpoints(), ..AdminConfig::default() };
        Self::on(etcd, config).await
    }

    /// The same on an etcd that knows its users by their certificates.
    pub(crate) async fn guarded() -> Result<Self> {
        let etcd = Etcd::with(etcd::Settings { tls: true, ..etcd::Settings::default() }).await?;
        let folder = tempfile::tempdir()?;
        etcd.issue(access::ROOT, folder.path())?;
        let file = |name: &str| folder.path().join(name);
        let identity = Some((file("tls.crt"), file("tls.key")));
        let tls = Some(Tls { ca: Some(file("ca.crt")), identity, server_name: None });
        let config = AdminConfig { endpoints: etcd.endpoints(), tls, ..AdminConfig::default() };
        let world = Self::on(etcd, config).await?;
        world.admin.require_users().await?;
        Ok(world)
    }

    async fn on(etcd: Etcd, config: AdminConfig) -> Result<Self> {
        let world = Self { admin: Admin::connect(config).await?, etcd };
        for (name, sharing) in [("orders", lock::Sharing::Mutex), ("later", lock::Sharing::Semaphore)] {
            world.define(Kind::Lock, name, Settings::Lock(a_lock(sharing))).await?;
        }
        for (name, mode) in [("jobs", queue::Mode::WorkQueue), ("later", queue::Mode::Log)] {
            world.define(Kind::Queue, name, Settings::Queue(a_queue(mode))).await?;
        }
        let protocols =
            [("transfer", transaction::Protocol::TwoPhaseCommit), ("later", transaction::Protocol::Saga)];
        for (name, protocol) in protocols {
            world.define(Kind::Transaction, name, Settings::Transaction(a_transaction(protocol))).await?;
        }
        let mut own = a_transaction(transaction::Protocol::TwoPhaseCommit);
        own.participants.iter_mut().for_each(|participant| participant.app = NAMESPACE.into());
        world.define(Kind::Transaction, "own", Settings::Transaction(own)).await?;
        Ok(world)
    }

    async fn define(&self, kind: Kind, name: &str, settings: Settings) -> Result<()> {
        let key = Key::Definition { kind, name: name.into() };
        let definition = Definition { uid: format!("uid-{name}"), generation: 1, settings };
        self.admin.write(NAMESPACE, Plan::new().put(key, definition, Lease::Forever)).await?;
        Ok(())
    }

    /// A sidecar that is ready, with further flags.
    pub(crate) async fn sidecar(&self, flags: &[&str]) -> Result<Sidecar> {
        let mut sidecar = self.starting(flags)?;
        let ready = format!("http://127.0.0.1:{}/ready", sidecar.admin);
        sidecar.process.answers(&ready).await?;
        Ok(sidecar)
    }

    /// A sidecar that has just been started.
    pub(crate) fn starting(&self, flags: &[&str]) -> Result<Sidecar> {
        self.starting_with(flags, &[])
    }

    /// The same, with variables.
    pub(crate) fn starting_with(&self, flags: &[&str], variables: &[(&str, &str)]) -> Result<Sidecar> {
        let (api, admin) = (free_port()?, free_port()?);
        let mut command = Command::new(binary("concordat-sidecar")?);
        command
            .args(["--namespace", NAMESPACE, "--app", "shop", "--pod", "shop-0"])
            .args(["--api-port", &api.to_string(), "--admin-port", &admin.to_string()])
            .args(["--admin-address", "127.0.0.1", "--etcd-endpoints", &self.etcd.endpoints().join(",")])
            .args(flags)
            .envs(variables.iter().copied());
        let client = Client::builder(TokioExecutor::new()).build_http();
        Ok(Sidecar { process: Process::start("sidecar", command)?, api, admin, client })
    }

    /// How many sessions etcd knows.
    pub(crate) async fn sessions(&self) -> Result<usize> {
        let found = self.admin.read(NAMESPACE, vec![Range::Sessions]).await?;
        Ok(found.reads.iter().flatten().count())
    }
}

impl Sidecar {
    /// Sends a request with these headers and no other but `Host`, unless it is among them.
    pub(crate) async fn ask(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        let mut request =
            Request::builder().method(method).uri(format!("http://127.0.0.1:{}{path}", self.api));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Full::new(body.into()))?).await
    }

    /// GETs a path of the health port.
    pub(crate) async fn health(&self, path: &str) -> Result<Answer> {
        let uri = format!("http://127.0.0.1:{}{path}", self.admin);
        self.send(Request::get(uri).body(Full::default())?).await
    }

    /// Sends a request as it is.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = tokio::time::timeout(Duration::from_mins(2), self.client.request(request));
        let (parts, body) = answer.await.context("no answer")?.with_context(|| what)?.into_parts();
        let text = String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned();
        Ok(Answer { status: parts.status, headers: parts.headers, text })
    }
}

fn a_lock(sharing: lock::Sharing) -> lock::Settings {
    lock::Settings {
        mode: lock::Mode::CompareAndSwap,
        sharing,
        permits: 1,
        ttl: 15_000,
        lock_delay: 0,
        max_hold: 0,
        max_wait: 60_000,
        max_waiters: 1_024,
        dapr_store: None,
    }
}

fn a_queue(mode: queue::Mode) -> queue::Settings {
    queue::Settings {
        mode,
        partitions: 1,
        ordering: queue::Ordering::None,
        visibility: 30_000,
        max_deliveries: 5,
        backoff: vec![1_000],
        dead_letter_queue: None,
        dead_letter_retention: HOUR,
        retention_age: HOUR,
        retention_bytes: 1 << 28,
        on_full: queue::OnFull::Refuse,
        max_message_bytes: 256 << 10,
        dedup_window: 300_000,
    }
}

const HOUR: Millis = 3_600_000;

fn a_transaction(protocol: transaction::Protocol) -> transaction::Settings {
    let participant = |name: &str| transaction::Participant {
        name: name.into(),
        app: "elsewhere".into(),
        path: format!("/{name}"),
        timeout: 3_000,
        retry: Backoff { initial: 100, max: 30_000, factor_milli: 2_000 },
        attempts: 0,
        after: vec![],
        input: None,
    };
    transaction::Settings {
        protocol,
        participants: vec![participant("debit"), participant("credit")],
        timeout: 30_000,
        once: false,
        retention: 600_000,
    }
}
