//! What is measured, running: etcd with its disk, three sidecars, and the apps of two participants.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use concordat_protocol::{
    App, Branch, Key, Kind, Name, Settings,
    definition::Backoff,
    lock, queue,
    transaction::{self, Participant, Protocol},
};
use concordat_store::keys;
use etcd_client::Client;

use super::{
    http::Connections,
    servers::{self, Idle, NAMESPACE, Sidecar, define},
};
use crate::{
    etcd::Etcd,
    process::{Process, free_port},
};

/// Everything that runs.
pub(super) struct Stage {
    etcd: Etcd,
    pub(super) client: Client,
    sidecars: Vec<Sidecar>,
    apps: Vec<Process>,
}

impl Stage {
    pub(super) async fn set(program: &Path) -> Result<Self> {
        let etcd = servers::etcd().await?;
        let mut client = etcd.client().await?;
        let own = std::env::current_exe()?;
        let (mut sidecars, mut apps) = (Vec::new(), Vec::new());
        for (name, has_app) in [("teller", false), ("left", true), ("right", true)] {
            let app_port = free_port()?.to_string();
            if has_app {
                let mut app = Command::new(&own);
                app.args(["--app", &app_port]);
                let mut app = Process::start(&format!("{name}-app"), app)?;
                app.listens(app_port.parse()?).await?;
                apps.push(app);
            }
            sidecars.push(Sidecar::start(program, &etcd, name, &["--app-port", &app_port]).await?);
        }
        for (kind, name, settings) in definitions() {
            define(&mut client, kind, name, settings).await?;
        }
        let stage = Self { etcd, client, sidecars, apps };
        stage.asked()?.knows("/v1/locks/bench/ready").await?;
        Ok(stage)
    }

    /// The sidecar that is asked.
    fn asked(&self) -> Result<&Sidecar> {
        self.sidecars.first().context("no sidecar")
    }

    /// API port of the sidecar that is asked.
    pub(super) fn port(&self) -> Result<u16> {
        Ok(self.asked()?.api)
    }

    /// So many clients of etcd.
    pub(super) async fn clients(&self, connections: Connections, count: usize) -> Result<Vec<Client>> {
        servers::clients(&self.etcd, connections, count).await
    }

    /// A queue that no round has used.
    pub(super) async fn new_queue(&self, name: &str) -> Result<()> {
        define(&mut self.client.clone(), Kind::Queue, name, queue_settings()).await?;
        self.asked()?.knows(&format!("/v1/queues/{name}")).await
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

    /// Processor time used so far, microseconds: by etcd, by the sidecar that is asked, by the other sidecars and the apps,
    /// and by this process, which asks.
    pub(super) fn spent(&self) -> Result<[f64; 4]> {
        let [asked, others @ ..] = &*self.sidecars else { bail!("no sidecar") };
        let others = others.iter().map(|sidecar| sidecar.process.id());
        Ok([
            servers::spent([self.etcd.process_id(0)?])?,
            servers::spent([asked.process.id()])?,
            servers::spent(others.chain(self.apps.iter().map(Process::id)))?,
            servers::spent([std::process::id()])?,
        ])
    }

    /// What the asked sidecar takes, idle for `time`.
    pub(super) async fn idle(&self, time: Duration) -> Result<Idle> {
        self.asked()?.idle(time).await
    }
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
    [
        (Kind::Transaction, "bench", Settings::Transaction(transfer)),
        // Without a delay: a release is a commit, where CompareAndSwap would keep the key.
        (Kind::Lock, "bench", Settings::Lock(servers::lock(lock::Mode::Lease))),
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
