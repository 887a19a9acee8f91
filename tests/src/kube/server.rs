//! A server as a child process that cannot outlive its test process.

use std::{
    fs::{self, File},
    future::Future,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How long a server may take to answer, on a machine busy with other builds.
const START: Duration = Duration::from_mins(2);
/// Statics are never dropped, so a process of its own ends the server when this one is gone: its standard input
/// ends with us, however we end.
const REAPER: &str = r#"cat >/dev/null; kill -KILL "$0"; rm -rf "$1""#;

/// A running server. Dropping it ends it and removes its folder.
pub(super) struct Server {
    child: Child,
    reaper: Child,
    folder: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Starts `command` with its output in a log file in `folder`, which is the server's own.
    pub(super) fn start(mut command: Command, folder: &Path) -> Result<Self> {
        let log = folder.join("log");
        let output = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child =
            command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
        let reaper = Command::new("sh")
            .args(["-c", REAPER, &child.id().to_string()])
            .arg(folder)
            .stdin(Stdio::piped())
            .spawn()
            .context("starting a shell")?;
        Ok(Self { child, reaper, folder: folder.into(), log })
    }

    /// Waits until `probe` succeeds. Fails with the log when the server ends, or stays silent for too long.
    pub(super) async fn ready<F: Future<Output = Result<()>>>(
        &mut self,
        probe: impl Fn() -> F,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            let Err(error) = probe().await else { return Ok(()) };
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status}; its log ends:\n{}", self.log_tail());
            }
            if start.elapsed() > START {
                bail!("not ready after {START:?} ({error:#}); its log ends:\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The folder that lives as long as the server.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The last lines that the server wrote.
    pub(super) fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The reaper goes first: it must not kill a process that gets this id later.
        for child in [&mut self.reaper, &mut self.child] {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}
