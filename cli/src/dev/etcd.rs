//! The embedded etcd: the real one, from the crate `etcd-bin-vendored`.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::ETCD_PORT;

/// How long it may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// So many ports are tried. All lie below those that Linux takes for outgoing connections.
const PORTS: u16 = 1_000;

/// A running etcd.
pub(super) struct Etcd {
    child: Child,
    url: String,
    data: PathBuf,
    temporary: Option<TempDir>,
}

impl Etcd {
    /// Starts it on `data`, or on a folder that goes with it.
    pub(super) async fn start(data: Option<PathBuf>) -> Result<Self> {
        let (data, temporary) = match data {
            Some(data) => (data, None),
            None => {
                let folder = tempfile::Builder::new().prefix("concordat-dev-").tempdir()?;
                (folder.path().join("etcd"), Some(folder))
            }
        };
        std::fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
        // The lock file tells who has the data: etcd itself would wait for it in silence.
        let log = std::fs::File::create(data.join("etcd.log"))?;
        let client = port(ETCD_PORT)?;
        let peer = port(client + 1)?;
        let (url, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let program = etcd_bin_vendored::etcd_bin_path().map_err(|error| anyhow!("{error}"))?;
        let child = Command::new(program)
            .args(["--name=dev", "--log-level=warn"])
            .arg(format!("--data-dir={}", data.join("data").display()))
            .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=dev={peer}"))
            .args([
                "--force-new-cluster",
                "--auto-compaction-mode=periodic",
                "--auto-compaction-retention=1m",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C goes to the whole group: etcd ends after the sidecars, when told.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut etcd = Self { child, url, data, temporary };
        etcd.healthy().await?;
        Ok(etcd)
    }

    async fn healthy(&mut self) -> Result<()> {
        let health = format!("{}/health", self.url);
        let answers = async {
            while reqwest::get(&health).await.and_then(reqwest::Response::error_for_status).is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let log = self.data.join("etcd.log");
        tokio::select! {
            () = answers => Ok(()),
            status = self.child.wait() => bail!("etcd ended with {}; see {}", status?, log.display()),
            () = tokio::time::sleep(PATIENCE) => bail!("etcd does not answer; see {}", log.display()),
        }
    }

    /// Where it listens.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// What to say of it beside its address.
    pub(super) fn described(&self) -> String {
        let kept = if self.temporary.is_some() { "removed at the end" } else { "kept" };
        format!("  data in {}, {kept}", self.data.display())
    }

    /// Waits until it ends by itself; for ever when there is none.
    pub(super) async fn ended(own: &mut Option<Self>) -> Result<ExitStatus> {
        match own {
            Some(etcd) => Ok(etcd.child.wait().await?),
            None => std::future::pending().await,
        }
    }

    /// Stops it.
    pub(super) async fn stop(mut self) {
        stop(&mut self.child, PATIENCE).await;
    }
}

/// Asks a child to end, and ends it when it does not.
pub(super) async fn stop(child: &mut Child, patience: Duration) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        let _ = kill_process(pid, Signal::TERM);
        // A frozen process hears nothing.
        let _ = kill_process(pid, Signal::CONT);
    }
    if tokio::time::timeout(patience, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// The first free port from `wanted` on.
fn port(wanted: u16) -> Result<u16> {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (wanted..wanted + PORTS)
        .find(free)
        .with_context(|| format!("the {PORTS} ports from {wanted} on are taken"))
}
