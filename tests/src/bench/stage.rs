//! What is measured, running: etcd with its disk, four sidecars, and the apps of two participants.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use concordat_protocol::{
    App, Branch, Definition, Key, Kind, Name, Settings,
    definition::Backoff,
    lock, queue,
    transaction::{self, Participant, Protocol},
};
use concordat_store::{keys, record};
use etcd_client::Client;

use crate::{
    etcd::{self, Etcd},
    process::{Process, eventually, free_port},
};

pub(super) const NAMESPACE: &str = "bench";

/// Everything that runs.
pub(super) struct Stage {
    etcd: Etcd,
    pub(super) client: Client,
    /// API port of the sidecar that is asked.
    pub(super) sidecar: u16,
    processes: Vec<Process>,
}

/// What a sidecar takes while nobody asks anything of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    /// Resident memory, MiB.
    pub(super) memory: f64,
    /// Share of one core, percent.
    pub(super) cpu: f64,
}

impl Stage {
    pub(super) async fn set(program: &Path) -> Result<Self> {
        // Room enough that no figure is one of a full store; what a round leaves is deleted after it.
        let settings = etcd::Settings::default()
            .quota(8 << 30)
            .flag("--auto-compaction-mode=periodic")
            .flag("--auto-compaction-retention=1m");
        let etcd = Etcd::with(settings).await?;
        let mut client = etcd.client().await?;
        let own = std::env::current_exe()?;
        let mut processes = Vec::new();
        let mut asked = 0;
        for (name, has_app) in [("teller", false), ("left", true), ("right", true)] {
            let app_port = free_port()?;
            if has_app {
                let mut app = Command::new(&own);
                app.args(["--app", &app_port.to_string()]);
                let mut app = Process::start(&format!("{name}-app"), app)?;
                app.listens(app_port).await?;
                processes.push(app);
            }
            let (api, admin) = (free_port()?, free_port()?);
            let mut sidecar = Command::new(program);
            sidecar
                .args(["--namespace", NAMESPACE, "--app", name, "--app-port", &app_port.to_string()])
                .args(["--pod", name, "--api-port", &api.to_string(), "--admin-port", &admin.to_string()])
                .args(["--admin-address", "127.0.0.1", "--etcd-endpoints", &etcd.endpoints().join(",")]);
            let mut sidecar = Process::start(name, sidecar)?;
            sidecar.answers(&format!("http://127.0.0.1:{admin}/ready")).await?;
            processes.push(sidecar);
            if name == "teller" {
                asked = api;
            }
        }
        for (kind, name, settings) in definitions() {
            define(&mut client, kind, name, settings).await?;
        }
        let stage = Self { etcd, client, sidecar: asked, processes };
        stage.knows("/v1/locks/bench/ready").await?;
        Ok(stage)
    }

    /// Waits until the sidecar that is asked knows what this path names.
    pub(super) async fn knows(&self, path: &str) -> Result<()> {
        let url = format!("http://127.0.0.1:{}{path}", self.sidecar);
        eventually(&format!("{path} to be known"), async || {
            Ok(reqwest::get(&url).await?.error_for_status().map(|_| ())?)
        })
        .await
    }

    /// A queue that no round has used.
    pub(super) async fn new_queue(&self, name: &str) -> Result<()> {
        define(&mut self.client.clone(), Kind::Queue, name, queue_settings()).await?;
        self.knows(&format!("/v1/queues/{name}")).await
    }

    /// Deletes a queue with all that it holds, and gives etcd its space back.
    pub(super) async fn drop_queue(&self, name: &str) -> Result<()> {
        let mut client = self.client.clone();
        let definition = Key::Definition { kind: Kind::Queue, name: name.into() };
        client.delete(keys::encode(NAMESPACE, &definition), None).await?;
        let (start, end) = keys::range(NAMESPACE, &concordat_protocol::Range::Queue(name.into()));
        let options = etcd_client::DeleteOptions::new().with_range(end);
        let answer = client.delete(start, Some(options)).await?;
        let revision = answer.header().context("no header")?.revision();
        client.compact(revision, None).await?;
        Ok(())
    }

    /// Processor time used so far: by etcd, by the sidecar that is asked, by the other sidecars and the apps, and by this
    /// process, which asks.
    pub(super) fn spent(&self) -> Result<Spent> {
        let [asked, rest @ ..] = &*self.processes else { bail!("no sidecar") };
        let rest = rest.iter().map(|process| ticks(process.id()));
        let spent = [
            ticks(self.etcd.process_id(0)?)?,
            ticks(asked.id())?,
            rest.sum::<Result<u64>>()?,
            ticks(std::process::id())?,
        ];
        // A tick is 10 ms (USER_HZ, proc(5)).
        Ok(Spent(spent.map(|ticks| ticks as f64 * 10_000.0)))
    }

    /// What the asked sidecar takes, idle for `time`.
    pub(super) async fn idle(&self, time: Duration) -> Result<Idle> {
        let process = self.processes.first().context("no sidecar")?;
        // What it did to start is over when its clock stands still for a moment.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = ticks(process.id())?;
        tokio::time::sleep(time).await;
        let used = ticks(process.id())? - before;
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
        // A tick is 10 ms (USER_HZ, proc(5)).
        Ok(Idle { memory: kib / 1024.0, cpu: used as f64 / time.as_secs_f64() })
    }
}

/// Processor time in microseconds: etcd's, the asked sidecar's, that of the other processes, the generator's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent(pub(super) [f64; 4]);

/// Processor time a process has used, in ticks.
fn ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    Ok(fields.get(11).context("utime")?.parse::<u64>()? + fields.get(12).context("stime")?.parse::<u64>()?)
}

async fn define(client: &mut Client, kind: Kind, name: &str, settings: Settings) -> Result<()> {
    let key = Key::Definition { kind, name: name.into() };
    let definition = Definition { uid: name.into(), generation: 1, settings };
    client.put(keys::encode(NAMESPACE, &key), record::encode(&definition.into()), None).await?;
    Ok(())
}

fn definitions() -> [(Kind, &'static str, Settings); 2] {
    let participant = |name: &str| Participant {
        name: Branch::from(name),
        app: App::from(name),
        path: "/part".into(),
        timeout: 5_000,
        retry: Backoff { initial: 100, max: 30_000, factor_milli: 2_000 },
        attempts: 0,
        after: Vec::new(),
        input: None,
    };
    let transfer = transaction::Settings {
        protocol: Protocol::TwoPhaseCommit,
        participants: vec![participant("left"), participant("right")],
        timeout: 30_000,
        once: false,
        retention: 10_000,
    };
    let lock = lock::Settings {
        mode: lock::Mode::CompareAndSwap,
        sharing: lock::Sharing::Mutex,
        permits: 1,
        ttl: 15_000,
        lock_delay: 0,
        max_hold: 0,
        max_wait: 60_000,
        max_waiters: 1024,
        dapr_store: None,
    };
    [
        (Kind::Transaction, "bench", Settings::Transaction(transfer)),
        (Kind::Lock, "bench", Settings::Lock(lock)),
    ]
}

fn queue_settings() -> Settings {
    Settings::Queue(queue::Settings {
        mode: queue::Mode::WorkQueue,
        partitions: 1,
        ordering: queue::Ordering::None,
        visibility: 30_000,
        max_deliveries: 5,
        backoff: vec![1_000],
        dead_letter_queue: None::<Name>,
        dead_letter_retention: 60_000,
        retention_age: 3_600_000,
        retention_bytes: 1 << 40,
        on_full: queue::OnFull::Refuse,
        max_message_bytes: 256 << 10,
        dedup_window: 60_000,
    })
}
