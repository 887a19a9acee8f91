//! Child processes: our own binaries, built from what is checked out, and any other server.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    net::TcpListener,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long [`eventually`] waits: for a machine that is busy with other builds. Never a measure of anything.
const PATIENCE: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(20);
/// Where servers of tests listen.
const PORTS: Range<u16> = 10_000..32_000;
/// The file of a process's folder that its output goes to, and how many lines of it are shown.
const LOG: &str = "log";
const TAIL: usize = 100;
/// Ends the process and removes its folder when its standard input ends, as it does with this process, however that
/// ends: statics are never dropped.
const REAPER: &str = r#"cat >/dev/null; kill -KILL "$0"; rm -rf "$1""#;

/// Tries until it succeeds; fails with the last error when that takes more than a generous limit. For all that a test
/// would otherwise sleep for.
pub async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error.context(format!("not within {PATIENCE:?}: {what}")));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Waits until the metrics of a program, whose `/metrics` are at this address, have all of these lines.
pub async fn measures(admin: &str, lines: &[&str]) -> Result<()> {
    eventually(&lines.join(", "), async || {
        let text = reqwest::get(format!("{admin}/metrics")).await?.error_for_status()?.text().await?;
        let missing: Vec<_> = lines.iter().filter(|line| !text.lines().any(|of| of == **line)).collect();
        ensure!(missing.is_empty(), "no {missing:?} in\n{text}");
        Ok(())
    })
    .await
}

/// A port of 127.0.0.1 that nobody listens on, and that is not given twice. It lies below what Linux takes for outgoing
/// connections (`ip_local_port_range`, from 32768), so that none of the many that tests open comes to sit on it.
pub fn free_port() -> Result<u16> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side begin at places of their own.
    let begin = std::process::id().wrapping_mul(487);
    for _ in PORTS {
        let place =
            begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % u32::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(place)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port of {PORTS:?} is free")
}

/// Where scripts keep what tests use and is made or fetched once.
pub fn cache() -> Result<PathBuf> {
    let cache = env::var_os("CONCORDAT_CACHE").filter(|cache| !cache.is_empty()).map(PathBuf::from);
    cache.or_else(|| Some(env::home_dir()?.join(".cache/concordat"))).context("no HOME")
}

/// A new temporary folder for a process of this name.
pub fn folder(name: &str) -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix(&format!("concordat-{name}-")).tempdir()?)
}

/// A child process with its output in a file of a folder that goes with it. Dropping it kills it, and shows the end of
/// its output where the test harness shows a test's own: when the test failed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    reaper: Child,
    folder: TempDir,
}

impl Process {
    /// Starts `command` under a name for people.
    pub fn start(name: &str, command: Command) -> Result<Self> {
        Self::start_in(folder(name)?, name, command)
    }

    /// The same with a [`folder`] that holds what the command needs, and that nobody else uses.
    pub fn start_in(folder: TempDir, name: &str, mut command: Command) -> Result<Self> {
        let output = File::options().create(true).append(true).open(folder.path().join(LOG))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let reaper = Command::new("sh")
            .args(["-c", REAPER, &child.id().to_string()])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .spawn()
            .context("starting a shell")?;
        Ok(Self { name: name.to_owned(), child, reaper, folder })
    }

    /// The folder that goes with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory it has taken so far, bytes (`VmHWM` of proc_pid_status(5)).
    pub fn peak(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Kills it (SIGKILL) and waits until it is gone. Of one that ended this changes nothing.
    pub fn kill(&mut self) -> Result<()> {
        self.reap()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it where it is (SIGSTOP), until [`Process::resume`].
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Asks it to end (SIGTERM).
    pub fn ask_to_end(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.ask_to_end()?;
        self.wait().await
    }

    /// Interrupts it as Ctrl-C does (SIGINT) and waits until it has ended.
    pub async fn interrupt(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::INT)?;
        self.wait().await
    }

    /// Waits until it ends.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        let name = self.name.clone();
        let status = eventually(&format!("{name} ends"), async || {
            self.child.try_wait()?.ok_or_else(|| anyhow!("it still runs"))
        })
        .await?;
        self.reap()?;
        Ok(status)
    }

    /// Waits until `probe` succeeds. Fails at once, with the log, when the process ends before that.
    pub async fn ready<T>(&mut self, what: &str, mut probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        let name = self.name.clone();
        let outcome = eventually(&format!("{name}: {what}"), async || match self.child.try_wait()? {
            Some(status) => Ok(Err(status)),
            None => probe().await.map(Ok),
        })
        .await;
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => bail!("{name} ended with {status}; its output ends:\n{}", self.log_tail()),
            Err(error) => Err(error.context(format!("the output of {name} ends:\n{}", self.log_tail()))),
        }
    }

    /// Waits until it listens on a port of 127.0.0.1.
    pub async fn listens(&mut self, port: u16) -> Result<()> {
        self.ready(&format!("listens on {port}"), async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            Ok(())
        })
        .await
    }

    /// Waits until a GET of `url` is answered by a success, as `/ready` is.
    pub async fn answers(&mut self, url: &str) -> Result<()> {
        let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
        self.ready(&format!("answers {url}"), async || {
            client.get(url).send().await?.error_for_status()?;
            Ok(())
        })
        .await
    }

    /// Waits until it has written this.
    pub async fn says(&mut self, text: &str) -> Result<()> {
        let log = self.folder.path().join(LOG);
        self.ready(&format!("says {text:?}"), async || {
            ensure!(String::from_utf8_lossy(&fs::read(&log)?).contains(text), "it has not");
            Ok(())
        })
        .await
    }

    /// All that it wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join(LOG)).unwrap_or_default()).into_owned()
    }

    /// The last lines of it.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(id, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Ends the reaper, which must not kill whoever gets the process id next.
    fn reap(&mut self) -> Result<()> {
        self.reaper.kill()?;
        self.reaper.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
        println!("--- the output of {} ends:\n{}\n---", self.name, self.log_tail());
    }
}

/// Where `NAME` among the workspace's binaries is, built from what is checked out now. See [`binary_with`].
pub fn binary(name: &str) -> Result<PathBuf> {
    binary_with(name, &[])
}

/// The same with features of workspace members, as in `concordat-sidecar/failpoints`. The file stays this build's own:
/// builds with other features do not replace it.
///
/// Cargo builds it, as it built this test, so that it is never stale: once a test process, a second or so when nothing
/// changed.
pub fn binary_with(name: &str, features: &[&str]) -> Result<PathBuf> {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().map_err(|_| anyhow!("an earlier build panicked"))?;
    let key = std::iter::once(&name).chain(features).map(|part| part.replace('/', ".")).collect::<Vec<_>>();
    let key = key.join("+");
    if let Some(path) = built.get(&key) {
        return Ok(path.clone());
    }
    let path = build(name, features, &key).with_context(|| format!("building {key}"))?;
    Ok(built.entry(key).or_insert(path).clone())
}

/// Keeps from a program that builds something what cargo told this test of its own package: ring's build script looks at
/// it, and would be run again and all that depends on it compiled again, now and by the next cargo that nobody told.
pub(crate) fn forget_package(command: &mut Command) {
    for (variable, _) in env::vars_os() {
        let is_of_package =
            |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if variable.to_str().is_some_and(is_of_package) {
            command.env_remove(variable);
        }
    }
}

fn build(name: &str, features: &[&str], key: &str) -> Result<PathBuf> {
    // This test is <target>/<profile>/deps/<test>.
    let folder = env::current_exe()?.ancestors().nth(2).context("no target folder")?.to_owned();
    let target = folder.parent().context("no target folder")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With the whole workspace, and a test beside, dependencies have the features that `cargo test --workspace` gave
    // them and are not compiled a second time.
    cargo
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["build", "--locked", "--workspace", "--bin", name, "--test", "codec"])
        .args(["--message-format=json", "--target-dir"])
        .arg(target)
        .args(["--features", &features.join(",")]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    forget_package(&mut cargo);
    let output = cargo.output()?;
    ensure!(output.status.success(), "cargo failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let executable = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|message| message["target"]["name"] == name && message["executable"].is_string())
        .and_then(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo named no executable")?;
    // Linked under another name at once: the next build with other features replaces cargo's.
    let own = folder.join("harness");
    fs::create_dir_all(&own)?;
    let fresh = tempfile::Builder::new().prefix(key).tempdir_in(&own)?;
    fs::hard_link(&executable, fresh.path().join(key))?;
    fs::rename(fresh.path().join(key), own.join(key))?;
    Ok(own.join(key))
}
