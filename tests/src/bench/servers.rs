//! Servers that are measured: how they are started, and what they take.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use concordat_protocol::{Definition, Key, Kind, Settings, lock};
use concordat_store::{keys, record};
use etcd_client::Client;

use super::http::Connections;
use crate::{
    etcd::{self, Etcd},
    process::{Process, eventually, free_port},
};

pub(super) const NAMESPACE: &str = "bench";

/// An etcd with room enough that no figure is one of a full store; what a round leaves is deleted after it.
pub(super) async fn etcd() -> Result<Etcd> {
    let settings = etcd::Settings::default()
        .quota(8 << 30)
        .flag("--auto-compaction-mode=periodic")
        .flag("--auto-compaction-retention=1m");
    Etcd::with(settings).await
}

/// So many clients of it.
pub(super) async fn clients(etcd: &Etcd, connections: Connections, count: usize) -> Result<Vec<Client>> {
    let mut clients = vec![etcd.client().await?];
    while clients.len() < count {
        clients.push(match connections {
            Connections::Own => etcd.client().await?,
            Connections::Shared => clients[0].clone(),
        });
    }
    Ok(clients)
}

/// A sidecar that runs.
pub(super) struct Sidecar {
    pub(super) process: Process,
    /// Port of its API.
    pub(super) api: u16,
    /// Port of its metrics.
    #[cfg_attr(not(feature = "peers"), expect(dead_code, reason = "only the benchmarks of locks read them"))]
    pub(super) admin: u16,
}

impl Sidecar {
    /// Starts one of an app of this name, with further flags; back when it is ready.
    pub(super) async fn start(program: &Path, etcd: &Etcd, name: &str, flags: &[&str]) -> Result<Self> {
        let (api, admin) = (free_port()?, free_port()?);
        let mut command = Command::new(program);
        command
            .args(["--namespace", NAMESPACE, "--app", name, "--pod", name])
            .args(["--api-port", &api.to_string(), "--admin-port", &admin.to_string()])
            .args(["--admin-address", "127.0.0.1", "--etcd-endpoints", &etcd.endpoints().join(",")])
            .args(flags);
        let mut process = Process::start(name, command)?;
        process.answers(&format!("http://127.0.0.1:{admin}/ready")).await?;
        Ok(Self { process, api, admin })
    }

    /// Waits until it knows what this path names.
    pub(super) async fn knows(&self, path: &str) -> Result<()> {
        let url = format!("http://127.0.0.1:{}{path}", self.api);
        eventually(&format!("{path} to be known"), async || {
            Ok(reqwest::get(&url).await?.error_for_status().map(|_| ())?)
        })
        .await
    }

    /// What it takes while nobody asks anything of it for `time`.
    pub(super) async fn idle(&self, time: Duration) -> Result<Idle> {
        // What it did to start is over when its clock stands still for a moment.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = ticks(self.process.id())?;
        tokio::time::sleep(time).await;
        let used = ticks(self.process.id())? - before;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
        // A tick is 10 ms (USER_HZ, proc(5)).
        Ok(Idle { memory: kib / 1024.0, cpu: used as f64 / time.as_secs_f64() })
    }
}

/// What a sidecar takes while nobody asks anything of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    /// Resident memory, MiB.
    pub(super) memory: f64,
    /// Share of one core, percent.
    pub(super) cpu: f64,
}

/// Processor time that processes have used together, in microseconds.
pub(super) fn spent(processes: impl IntoIterator<Item = u32>) -> Result<f64> {
    let ticks = processes.into_iter().map(ticks).sum::<Result<u64>>()?;
    // A tick is 10 ms (USER_HZ, proc(5)).
    Ok(ticks as f64 * 10_000.0)
}

/// Processor time a process has used, in ticks.
fn ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    Ok(fields.get(11).context("utime")?.parse::<u64>()? + fields.get(12).context("stime")?.parse::<u64>()?)
}

/// Writes the definition of an object, as the operator does.
pub(super) async fn define(client: &mut Client, kind: Kind, name: &str, settings: Settings) -> Result<()> {
    let key = Key::Definition { kind, name: name.into() };
    let definition = Definition { uid: name.into(), generation: 1, settings };
    client.put(keys::encode(NAMESPACE, &key), record::encode(&definition.into()), None).await?;
    Ok(())
}

/// Settings of a lock that one holds at a time.
pub(super) fn lock(mode: lock::Mode) -> lock::Settings {
    lock::Settings {
        mode,
        sharing: lock::Sharing::Mutex,
        permits: 1,
        ttl: 15_000,
        lock_delay: 0,
        max_hold: 0,
        max_wait: 60_000,
        max_waiters: 1024,
        dapr_store: None,
    }
}
