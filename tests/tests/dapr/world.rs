//! An etcd, sidecars that serve Dapr's lock API, and callers over HTTP and gRPC.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use concordat_protocol::{
    Definition, Key, Kind, Lease, Plan, Settings,
    lock::{self, Mode, Sharing},
};
use concordat_store::{Admin, AdminConfig};
use concordat_tests::{
    etcd::Etcd,
    process::{Process, binary, eventually, free_port},
};
use reqwest::{Client, Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

/// What Dapr's apps call the Lock `orders`.
pub(crate) const STORE: &str = "lockstore";

/// Everything that runs.
pub(crate) struct World {
    etcd: Etcd,
    admin: Admin,
}

/// One sidecar.
pub(crate) struct Sidecar {
    process: Process,
    pub(crate) api: u16,
    pub(crate) http: u16,
    pub(crate) grpc: u16,
    client: Client,
}

/// What was answered over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The fence of a grant.
    pub(crate) fn fence(&self) -> Option<u64> {
        self.headers.get("concordat-fence")?.to_str().ok()?.parse().ok()
    }
}

pub(crate) fn settings(store: Option<&str>) -> lock::Settings {
    lock::Settings {
        mode: Mode::CompareAndSwap,
        sharing: Sharing::Mutex,
        permits: 1,
        ttl: 15_000,
        lock_delay: 0,
        max_hold: 0,
        max_wait: 60_000,
        max_waiters: 1_024,
        dapr_store: store.map(Into::into),
    }
}

impl World {
    /// Without any Lock.
    pub(crate) async fn empty() -> Result<Self> {
        let etcd = Etcd::start().await?;
        let config = AdminConfig { endpoints: etcd.endpoints(), ..AdminConfig::default() };
        Ok(Self { admin: Admin::connect(config).await?, etcd })
    }

    /// With the Lock `orders`.
    pub(crate) async fn new() -> Result<Self> {
        let world = Self::empty().await?;
        world.define("orders", settings(Some(STORE))).await?;
        Ok(world)
    }

    pub(crate) async fn define(&self, name: &str, settings: lock::Settings) -> Result<()> {
        let key = Key::Definition { kind: Kind::Lock, name: name.into() };
        let record = Definition { uid: "uid".into(), generation: 1, settings: Settings::Lock(settings) };
        self.admin.write("shop", Plan::new().put(key, record, Lease::Forever)).await?;
        Ok(())
    }

    /// A sidecar that is ready, with further flags.
    pub(crate) async fn sidecar(&self, pod: &str, flags: &[&str]) -> Result<Sidecar> {
        let [api, admin, http, grpc] = [free_port()?, free_port()?, free_port()?, free_port()?];
        let mut command = Command::new(binary("concordat-sidecar")?);
        command
            .args(["--namespace", "shop", "--app", "billing", "--pod", pod])
            .args(["--admin-address", "127.0.0.1", "--etcd-endpoints", &self.etcd.endpoints().join(",")])
            .args(["--api-port", &api.to_string(), "--admin-port", &admin.to_string()])
            .args(["--dapr-http-port", &http.to_string(), "--dapr-grpc-port", &grpc.to_string()])
            .args(["--session-ttl", "60s"])
            .args(flags);
        let mut process = Process::start(pod, command)?;
        process.answers(&format!("http://127.0.0.1:{admin}/ready")).await?;
        let client = Client::builder().timeout(Duration::from_mins(2)).build()?;
        Ok(Sidecar { process, api, http, grpc, client })
    }

    /// A sidecar that serves Dapr's lock API.
    pub(crate) async fn serving(&self, pod: &str) -> Result<Sidecar> {
        self.sidecar(pod, &["--dapr"]).await
    }
}

impl Sidecar {
    /// Sends a body as it is to Dapr's port.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Answer> {
        let url = format!("http://127.0.0.1:{}{path}", self.http);
        let mut request = self.client.request(method, url).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await?;
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).context(text)? };
        Ok(Answer { status, headers, body })
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        let headers = [("content-type", "application/json")];
        self.send(Method::POST, path, &headers, body.to_string()).await
    }

    pub(crate) async fn lock(&self, resource: &str, owner: &str, expiry: i64) -> Result<Answer> {
        let body = json!({ "resourceId": resource, "lockOwner": owner, "expiryInSeconds": expiry });
        self.post(&format!("/v1.0-alpha1/lock/{STORE}"), &body).await
    }

    /// What an unlock answers, as a number.
    pub(crate) async fn unlock(&self, resource: &str, owner: &str) -> Result<i64> {
        let body = json!({ "resourceId": resource, "lockOwner": owner });
        let answer = self.post(&format!("/v1.0-alpha1/unlock/{STORE}"), &body).await?;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        answer.body["status"].as_i64().context("no number")
    }

    /// What the localhost API says of a key of `orders`.
    pub(crate) async fn inspect(&self, key: &str) -> Result<Value> {
        let url = format!("http://127.0.0.1:{}/v1/locks/orders/{key}", self.api);
        Ok(self.client.get(url).send().await?.error_for_status()?.json().await?)
    }

    /// Waits until nobody holds a key.
    pub(crate) async fn is_free(&self, key: &str) -> Result<()> {
        eventually(&format!("{key} comes free"), async || {
            let held = self.inspect(key).await?["holders"].clone();
            ensure!(held == json!([]), "it is held: {held}");
            Ok(())
        })
        .await
    }

    /// Waits until it has written this.
    pub(crate) async fn says(&mut self, text: &str) -> Result<()> {
        self.process.says(text).await
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }
}
