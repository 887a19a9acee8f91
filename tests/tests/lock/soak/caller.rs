//! A caller: asks for a lock, writes to what it protects, lets go; or does not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use concordat_protocol::{Millis, lock::Sharing};
use concordat_tests::history::lock::{RELEASE, RENEWAL};
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{KEYS, LOCKS, PERMITS, PODS, Pod, Scene};

/// How long it leaves a sidecar in peace that could not do what it was asked.
const BACK_OFF: Duration = Duration::from_millis(20);

/// How long it holds a lock at most, when it takes its time.
const MOMENT: Duration = Duration::from_millis(50);

pub(super) struct Caller {
    scene: Arc<Scene>,
    pod: usize,
    random: StdRng,
}

/// A lock that it holds.
pub(super) struct Held {
    pub(super) path: String,
    token: String,
    pub(super) fence: u64,
    /// Until when it relies on it.
    to: Millis,
    /// Nobody else holds it, so it may write.
    exclusive: bool,
}

impl Caller {
    pub(super) fn new(scene: Arc<Scene>, pod: usize, random: StdRng) -> Self {
        Self { scene, pod, random }
    }

    /// Calls until the round is over; what is wrong ends it for all.
    pub(super) async fn run(mut self) -> Result<()> {
        while !self.scene.over() {
            if let Err(error) = self.once().await {
                *self.scene.wrong.lock() = Some(format!("{error:#}"));
                self.scene.over.store(true, SeqCst);
                // Whoever waits for grants looks what is wrong.
                self.scene.grants.send_modify(|_| {});
                return Err(error);
            }
        }
        Ok(())
    }

    async fn once(&mut self) -> Result<()> {
        let Some((lock, _, sharing, _)) = LOCKS.choose(&mut self.random) else { return Ok(()) };
        let path = format!("{lock}/{}", KEYS.choose(&mut self.random).context("no key")?);
        let mut body = json!({});
        let exclusive = match sharing {
            Sharing::Mutex => true,
            Sharing::ReadWrite if self.random.random_bool(0.7) => {
                body["mode"] = json!("shared");
                false
            }
            Sharing::ReadWrite => true,
            Sharing::Semaphore => {
                body["permits"] = json!(self.random.random_range(1..=PERMITS));
                false
            }
        };
        let leaves = self.scene.calm.load(SeqCst) && self.random.random_bool(0.02);
        match self.random.random_range(0..4) {
            _ if leaves => body["ttl"] = json!("2s"),
            0 => body["ttl"] = json!("3s"),
            1 => {
                body["renew"] = json!(true);
                body["maxHold"] = json!("10s");
            }
            _ => {}
        }
        let wait = if self.random.random_bool(0.8) { "30s" } else { "" };
        let asking = acquire(&self.scene, self.pod, &path, body, wait, exclusive);
        if self.random.random_bool(0.05) {
            let patience = Duration::from_millis(self.random.random_range(1..30));
            let Ok(answered) = tokio::time::timeout(patience, asking).await else {
                self.scene.tally.hung_up.fetch_add(1, SeqCst);
                return Ok(());
            };
            return match answered? {
                Some(held) => self.hold(held, leaves).await,
                None => Ok(()),
            };
        }
        match asking.await? {
            Some(held) => self.hold(held, leaves).await,
            None => Ok(()),
        }
    }

    async fn hold(&mut self, mut held: Held, leaves: bool) -> Result<()> {
        if self.random.random_bool(0.25) {
            // Until others got theirs, or for a moment when there are none.
            let others = self.scene.more(self.random.random_range(1..10));
            if let Ok(done) = tokio::time::timeout(MOMENT, others).await {
                done?;
            }
        }
        if leaves {
            self.scene.tally.left.fetch_add(1, SeqCst);
            return self.write_late(&held).await;
        }
        held.write(&self.scene)?;
        if self.random.random_bool(0.15) && !held.renew(&self.scene, self.pod).await? {
            return self.write_late(&held).await;
        }
        if !held.release(&self.scene, self.pod).await? {
            self.write_late(&held).await?;
        }
        Ok(())
    }

    /// Writes after it was lost, once somebody else did.
    async fn write_late(&self, held: &Held) -> Result<()> {
        if !held.exclusive {
            return Ok(());
        }
        let callers = &self.scene.callers;
        while callers.last_write(&held.path) <= held.fence {
            if self.scene.over() {
                return Ok(());
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), self.scene.more(1)).await;
        }
        ensure!(!callers.write_to(&held.path, held.fence), "L3: a stale write of {} was taken", held.path);
        self.scene.tally.stale_writes.fetch_add(1, SeqCst);
        Ok(())
    }
}

/// Asks a sidecar for a lock, and records what it said.
pub(super) async fn acquire(
    scene: &Scene,
    pod: usize,
    path: &str,
    mut body: Value,
    wait: &str,
    exclusive: bool,
) -> Result<Option<Held>> {
    let callers = &scene.callers;
    let owner = format!("{}-{}", PODS[pod], callers.arrive());
    body["owner"] = json!(owner);
    let query = if wait.is_empty() { String::new() } else { format!("?wait={wait}") };
    let asked = callers.now();
    let Some((status, answer)) =
        scene.pods[pod].ask(scene, Method::POST, &format!("{path}{query}"), None, Some(body)).await
    else {
        return Ok(None);
    };
    let code = answer["code"].as_str().unwrap_or_default();
    match status {
        StatusCode::OK => {
            let number = |name: &str| answer[name].as_u64().with_context(|| format!("no {name}"));
            let token = answer["token"].as_str().context("no token")?.to_owned();
            let fence = number("fence")?;
            // What the sidecar said holds since it decided: it may have slept before it said so.
            let to = asked + number("waitedMs")? + number("expiresInMs")?;
            callers.granted_until(path, (owner.clone(), 0), &token, fence, to);
            if !wait.is_empty() && callers.now() < to {
                callers.waited(path, &owner, asked);
            }
            scene.pods[pod].grants.fetch_add(1, SeqCst);
            scene.grants.send_modify(|grants| *grants += 1);
            Ok(Some(Held { path: path.to_owned(), token, fence, to, exclusive }))
        }
        StatusCode::CONFLICT => {
            if code == "lock-wait-timeout" {
                callers.waited(path, &owner, asked);
            }
            ensure!(matches!(code, "lock-wait-timeout" | "lock-held"), "{answer}");
            Ok(None)
        }
        StatusCode::GONE => Ok(None),
        StatusCode::SERVICE_UNAVAILABLE => {
            tokio::time::sleep(BACK_OFF).await;
            Ok(None)
        }
        _ => anyhow::bail!("an acquire of {path} was answered {status} {answer}"),
    }
}

impl Held {
    /// Writes to what the lock protects, which keeps the highest fence it has seen.
    fn write(&self, scene: &Scene) -> Result<()> {
        if !self.exclusive {
            return Ok(());
        }
        let taken = scene.callers.write_to(&self.path, self.fence);
        // From whom etcd took it as a leader went on is for the judge to say.
        if scene.callers.now() < self.to && !scene.callers.leader_thawed() {
            ensure!(taken, "L3: a write of {} by its holder with {} was refused", self.path, self.fence);
        }
        let tally = if taken { &scene.tally.writes } else { &scene.tally.stale_writes };
        tally.fetch_add(1, SeqCst);
        Ok(())
    }

    /// Whether it is still held.
    async fn renew(&mut self, scene: &Scene, pod: usize) -> Result<bool> {
        let asked = scene.callers.now();
        let asking = scene.pods[pod].ask(scene, Method::PUT, &self.path, Some(&self.token), None);
        match asking.await {
            Some((StatusCode::OK, answer)) => {
                self.to = asked + answer["expiresInMs"].as_u64().context("no expiresInMs")?;
                scene.callers.renewed_until(&self.token, self.to);
                scene.callers.succeeded(RENEWAL, &self.path, &self.token, asked);
                Ok(true)
            }
            // Of a sidecar that ended the next one knows nothing.
            Some((StatusCode::GONE | StatusCode::PRECONDITION_FAILED, _)) => Ok(false),
            Some((StatusCode::SERVICE_UNAVAILABLE, _)) | None => Ok(true),
            Some((status, answer)) => {
                anyhow::bail!("a renewal of {} was answered {status} {answer}", self.path)
            }
        }
    }

    /// Lets go, however often it takes to know; whether it was still held.
    pub(super) async fn release(&self, scene: &Scene, pod: usize) -> Result<bool> {
        scene.callers.stop_believing(&self.token);
        loop {
            let asked = scene.callers.now();
            let asking = scene.pods[pod].ask(scene, Method::DELETE, &self.path, Some(&self.token), None);
            match asking.await {
                Some((StatusCode::NO_CONTENT, _)) => {
                    scene.callers.succeeded(RELEASE, &self.path, &self.token, asked);
                    return Ok(true);
                }
                Some((StatusCode::GONE | StatusCode::PRECONDITION_FAILED, _)) => return Ok(false),
                Some((StatusCode::SERVICE_UNAVAILABLE, _)) | None => tokio::time::sleep(BACK_OFF).await,
                Some((status, answer)) => {
                    anyhow::bail!("a release of {} was answered {status} {answer}", self.path)
                }
            }
        }
    }
}

impl Pod {
    /// Asks for something of a key; `None` when the connection broke.
    async fn ask(
        &self,
        scene: &Scene,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Option<(StatusCode, Value)> {
        let count = |what: &AtomicU64| what.fetch_add(1, SeqCst);
        let url = format!("{}/v1/locks/{path}", self.api.read());
        let mut request = self.client.request(method, url);
        if let Some(token) = token {
            request = request.header("Lock-Token", token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answered = async {
            let response = request.send().await?;
            let status = response.status();
            Ok::<_, reqwest::Error>((status, response.text().await?))
        };
        let Ok((status, text)) = answered.await else {
            count(&scene.tally.broken);
            tokio::time::sleep(BACK_OFF).await;
            return None;
        };
        match status {
            StatusCode::GONE => count(&scene.tally.lost),
            StatusCode::SERVICE_UNAVAILABLE => count(&scene.tally.unavailable),
            _ => return Some((status, serde_json::from_str(&text).unwrap_or_default())),
        };
        count(&self.refusals);
        Some((status, serde_json::from_str(&text).unwrap_or_default()))
    }
}
