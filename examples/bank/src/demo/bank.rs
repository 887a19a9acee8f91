//! The running bank: `concordat dev` with four sidecars, and three services.

use std::{
    net::TcpListener,
    ops::Range,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::Options;

/// Where all of them listen: below the ports that Linux takes for outgoing connections.
const PORTS: Range<u16> = 14_700..16_000;

/// One app: its sidecar's port and its own.
pub(super) struct App {
    pub(super) name: &'static str,
    pub(super) sidecar: u16,
    pub(super) port: u16,
}

/// Everything that runs; it ends with this value.
pub(super) struct Bank {
    concordat: PathBuf,
    folder: tempfile::TempDir,
    apps: Vec<App>,
    client: reqwest::Client,
    dev: Child,
    services: Vec<Child>,
}

impl Bank {
    pub(super) async fn start(options: &Options) -> Result<Self> {
        let own = std::env::current_exe()?;
        let concordat = options.concordat.clone().unwrap_or_else(|| own.with_file_name("concordat"));
        let folder = tempfile::Builder::new().prefix("concordat-bank-").tempdir()?;
        let mut free = PORTS.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
        let apps = ["accounts", "ledger", "worker", "teller"]
            .into_iter()
            .map(|name| Some(App { name, sidecar: free.next()?, port: free.next()? }))
            .collect::<Option<Vec<_>>>()
            .with_context(|| format!("the ports {PORTS:?} are taken"))?;

        let mut dev = Command::new(&concordat);
        dev.arg("dev")
            .arg("--manifests")
            .arg(&options.manifests)
            .arg("--data")
            .arg(folder.path().join("etcd"));
        for app in &apps {
            dev.arg("--sidecar").arg(format!("{}:{}:{}", app.name, app.sidecar, app.port));
        }
        let log = std::fs::File::create(folder.path().join("concordat.log"))?;
        let dev = dev
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", concordat.display()))?;
        let services = apps
            .iter()
            .filter(|app| app.name != "teller")
            .map(|app| service(&own, folder.path(), app))
            .collect::<Result<_>>()?;
        let bank = Self { concordat, folder, apps, client: reqwest::Client::new(), dev, services };
        bank.wait_until_ready().await?;
        println!(
            "The bank is open: concordat dev with 4 sidecars, and the services accounts, ledger and worker."
        );
        for (account, balance) in [("ada", 100), ("bob", 50)] {
            bank.client
                .put(bank.app("accounts", &format!("/accounts/{account}")))
                .json(&balance)
                .send()
                .await?
                .error_for_status()?;
        }
        Ok(bank)
    }

    async fn wait_until_ready(&self) -> Result<()> {
        for app in &self.apps {
            let mut urls = vec![self.sidecar(app.name, "/v1/transactions/transfer?limit=1")];
            if app.name != "teller" {
                urls.push(format!("http://127.0.0.1:{}/", app.port));
            }
            for url in urls {
                eventually(&format!("{url} to answer"), || async {
                    let answer = self.client.get(&url).send().await?;
                    ensure!(
                        !answer.status().is_server_error(),
                        "{} {}",
                        answer.status(),
                        answer.text().await?
                    );
                    Ok(())
                })
                .await
                .with_context(|| self.log())?;
            }
        }
        Ok(())
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("concordat.log")).unwrap_or_default();
        format!("what concordat dev said:\n{log}")
    }

    fn find(&self, name: &str) -> &App {
        // The names are this program's own.
        self.apps.iter().find(|app| app.name == name).unwrap_or(&self.apps[0])
    }

    /// URL of an app's own route.
    pub(super) fn app(&self, name: &str, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.find(name).port)
    }

    /// URL of a route of an app's sidecar.
    pub(super) fn sidecar(&self, name: &str, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.find(name).sidecar)
    }

    /// Gets JSON.
    pub(super) async fn get(&self, url: String) -> Result<Value> {
        let answer = self.client.get(&url).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "GET {url} answered {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// Posts JSON; status and JSON.
    pub(super) async fn post(&self, url: String, body: &Value) -> Result<(u16, Value)> {
        let answer = self.client.post(&url).json(body).send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        Ok((status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? }))
    }

    /// Releases a lock.
    pub(super) async fn release(&self, url: String, token: &str) -> Result<u16> {
        Ok(self.client.delete(url).header("Lock-Token", token).send().await?.status().as_u16())
    }

    /// Sends a signal to an app's sidecar.
    pub(super) fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let port = self.find(name).sidecar.to_string();
        let dev = self.dev.id().context("concordat dev has ended")?;
        let pid = child_with_argument(dev, &port)?;
        Ok(kill_process(pid, signal)?)
    }

    /// The balances of ada and bob; together they are what they were at the start.
    pub(super) async fn balances(&self) -> Result<(i64, i64)> {
        let accounts = self.get(self.app("accounts", "/accounts")).await?;
        let (ada, bob) = (accounts["ada"].as_i64().context("ada")?, accounts["bob"].as_i64().context("bob")?);
        ensure!(ada + bob == 150, "money was made or lost: ada has {ada}, bob has {bob}");
        let entries = self.get(self.app("ledger", "/entries")).await?;
        let booked: i64 =
            entries.as_array().into_iter().flatten().filter_map(|entry| entry["amount"].as_i64()).sum();
        ensure!(booked == 100 - ada, "the ledger has {booked}, but ada has paid {}", 100 - ada);
        Ok((ada, bob))
    }

    pub(super) fn say_how_to_go_on(&self) {
        println!("\nEvery sum was right. To go on by hand, in three terminals:");
        println!(
            "  {} dev --manifests examples/bank/manifests --sidecar accounts:4701:8081 --sidecar ledger:4702:8082",
            self.concordat.display()
        );
        println!("  {} accounts --port 8081 --sidecar-port 4701 --database accounts.db", own_name());
        println!("  {} ledger --port 8082 --sidecar-port 4702 --database ledger.db", own_name());
        println!("and then:");
        println!("  curl -X PUT  localhost:8081/accounts/ada -H 'content-type: application/json' -d 100");
        println!("  curl -X PUT  localhost:8081/accounts/bob -H 'content-type: application/json' -d 50");
        println!(
            "  curl -X POST localhost:8081/transfers -H 'content-type: application/json' \
             -d '{{\"from\":\"ada\",\"to\":\"bob\",\"amount\":30}}'"
        );
        println!("  curl -X POST 'localhost:4701/v1/locks/accounts/ada?wait=5s'");
        println!("  {} get locks", self.concordat.display());
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        for service in &mut self.services {
            let _ = service.start_kill();
        }
        // As Ctrl-C would: `concordat dev` stops its sidecars and its etcd.
        if let Some(pid) = self.dev.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process(pid, Signal::INT);
            for _ in 0..100 {
                if !matches!(self.dev.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn service(own: &Path, folder: &Path, app: &App) -> Result<Child> {
    let log = std::fs::File::create(folder.join(format!("{}.log", app.name)))?;
    Ok(Command::new(own)
        .arg(app.name)
        .args(["--port", &app.port.to_string(), "--sidecar-port", &app.sidecar.to_string()])
        .arg("--database")
        .arg(folder.join(format!("{}.db", app.name)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?)
}

fn own_name() -> String {
    std::env::args().next().unwrap_or_else(|| "concordat-bank".into())
}

/// The child of `parent` that has `argument` in its command line.
fn child_with_argument(parent: u32, argument: &str) -> Result<Pid> {
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(id) = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok()) else { continue };
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        let command = std::fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        let is_child = status
            .lines()
            .any(|line| line.strip_prefix("PPid:").is_some_and(|id| id.trim() == parent.to_string()));
        if is_child && command.split(['\0', ':', '=']).any(|part| part == argument) {
            return Pid::from_raw(id).context("pid 0");
        }
    }
    bail!("no sidecar of concordat dev has port {argument}")
}

/// Repeats `check` until it holds, for half a minute at most.
pub(super) async fn eventually<F: Future<Output = Result<()>>>(
    what: &str,
    check: impl Fn() -> F,
) -> Result<()> {
    let mut last = None;
    for _ in 0..300 {
        match check().await {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("waited in vain for {what}: {:#}", last.context("never tried")?)
}
