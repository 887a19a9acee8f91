//! The embedded etcd: the real one, from the crate `etcd-bin-vendored`.

use std::{
    ffi::OsString,
    fs::File,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::Child;

use crate::ETCD_PORT;
use crate::guard;

/// How long it may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// So many ports are tried. All lie below those that Linux takes for outgoing connections.
const PORTS: u16 = 1_000;

/// etcd's own folder in that of the data.
const DATA: &str = "data";
/// Locked in the data's folder by the `dev` that uses it.
const LOCK: &str = "dev.lock";
/// Locked in the temporary folder of the machine by the `dev` whose turn it is to choose ports.
const TURN: &str = "concordat-dev.lock";
/// How temporary folders are named.
const TEMPORARY: &str = "concordat-dev-";

/// A running etcd.
pub(super) struct Etcd {
    child: Child,
    url: String,
    data: PathBuf,
    /// Held as long as this lives.
    _lock: File,
    temporary: Option<TempDir>,
}

impl Etcd {
    /// Starts it on `data`, or on a folder that goes with it.
    pub(super) async fn start(data: Option<PathBuf>) -> Result<Self> {
        let (data, temporary) = match data {
            Some(data) => (data, None),
            None => {
                remove_left();
                let folder = tempfile::Builder::new().prefix(TEMPORARY).tempdir()?;
                (folder.path().to_owned(), Some(folder))
            }
        };
        std::fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
        // etcd itself would wait for the data in silence, and it may: one whose `dev` was killed is about to end.
        let lock = File::create(data.join(LOCK))?;
        if lock.try_lock().is_err() {
            bail!("--data: another `concordat dev` uses {}: stop it, or give another folder", data.display());
        }
        let log = File::create(data.join("etcd.log"))?;
        let _turn = turn().await?;
        let client = port(ETCD_PORT)?;
        let peer = port(client + 1)?;
        let (url, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let child = guard::subcommand("etcd")?
            .args(["--name=dev", "--log-level=warn"])
            .arg(format!("--data-dir={}", data.join(DATA).display()))
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
            .context("cannot start etcd")?;
        let mut etcd = Self { child, url, data, _lock: lock, temporary };
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

/// Becomes etcd; returns only when that fails.
pub(super) fn exec(arguments: Vec<OsString>) -> Result<()> {
    let program = etcd_bin_vendored::etcd_bin_path().map_err(|error| anyhow!("{error}"))?;
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// Removes temporary folders whose `dev` was killed. What fails is tried again the next time.
fn remove_left() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let folder = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(TEMPORARY) || !folder.join(DATA).is_dir() {
            continue;
        }
        let lock = File::open(folder.join(LOCK));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// Asks a child to end, and ends it when it does not.
pub(super) async fn stop(child: &mut Child, patience: Duration) {
    terminate(child);
    if tokio::time::timeout(patience, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Asks a child to end.
pub(super) fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        let _ = kill_process(pid, Signal::TERM);
        // A frozen process hears nothing.
        let _ = kill_process(pid, Signal::CONT);
    }
}

/// Waits for the turn to choose ports, which lasts until etcd listens on them: two that start at once would choose the
/// same, and one would take the other's etcd for its own.
async fn turn() -> Result<File> {
    let path = std::env::temp_dir().join(TURN);
    // Another user's can be locked, if not written.
    let file = File::options().create(true).append(true).open(&path).or_else(|_| File::open(&path));
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    while file.try_lock().is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(file)
}

/// The first free port from `wanted` on.
fn port(wanted: u16) -> Result<u16> {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (wanted..wanted + PORTS)
        .find(free)
        .with_context(|| format!("the {PORTS} ports from {wanted} on are taken"))
}
