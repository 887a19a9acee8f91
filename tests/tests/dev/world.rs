//! A running `concordat dev` over a folder of manifests, with an app that takes part in whatever it is asked to.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use axum::{Router, extract, http::StatusCode, routing::post};
use concordat_tests::process::{Process, binary, eventually, free_port};
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;

pub(crate) const LOCK: &str = "
apiVersion: concordat.dev/v1alpha1
kind: Lock
metadata: {name: orders}
spec: {mode: CompareAndSwap, ttl: 15s}
";
pub(crate) const QUEUE: &str = "
apiVersion: concordat.dev/v1alpha1
kind: Queue
metadata: {name: mails}
spec: {mode: WorkQueue}
";
pub(crate) const TRANSACTION: &str = "
apiVersion: concordat.dev/v1alpha1
kind: DistributedTransaction
metadata: {name: pay}
spec: {protocol: TwoPhaseCommit, participants: [{name: debit, app: accounts}]}
";

/// A folder of manifests.
pub(crate) struct Manifests(TempDir);

impl Manifests {
    pub(crate) fn new(files: &[(&str, &str)]) -> Result<Self> {
        let manifests = Self(TempDir::with_prefix("concordat-manifests-")?);
        for (name, text) in files {
            manifests.write(name, text)?;
        }
        Ok(manifests)
    }

    /// Writes a file as an editor does: beside it first.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.0.path().join("new"), text)?;
        fs::rename(self.0.path().join("new"), self.0.path().join(name))?;
        Ok(())
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.0.path().join(name))?)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A `concordat dev` with one sidecar, of the app `accounts`.
pub(crate) struct Dev {
    pub(crate) process: Process,
    /// Of the sidecar.
    pub(crate) port: u16,
    client: reqwest::Client,
    refuses: Refuses,
}

/// Which operation the app answers otherwise than with yes, and how.
type Refuses = Arc<Mutex<Option<(&'static str, StatusCode)>>>;

/// An answer of the sidecar's API.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Dev {
    /// Starts it, and waits until it says that it is ready.
    pub(crate) async fn start(manifests: &Manifests, flags: &[&str]) -> Result<Self> {
        let mut dev = Self::starting(manifests, flags).await?;
        dev.process.says("ready     ").await?;
        Ok(dev)
    }

    /// One that has just been started.
    pub(crate) async fn starting(manifests: &Manifests, flags: &[&str]) -> Result<Self> {
        let app = TcpListener::bind("127.0.0.1:0").await?;
        let app_port = app.local_addr()?.port();
        let refuses = Refuses::default();
        tokio::spawn(axum::serve(app, taking_part(refuses.clone())).into_future());
        let port = free_port()?;
        let process =
            Process::start("dev", command(manifests, &format!("accounts:{port}:{app_port}"), flags)?)?;
        Ok(Self { process, port, client: reqwest::Client::new(), refuses })
    }

    /// Has the app answer this operation so from now on, and all others with yes.
    pub(crate) fn app_answers(&self, operation: &'static str, status: StatusCode) {
        *self.refuses.lock() = Some((operation, status));
    }

    /// Waits until it has said this.
    pub(crate) async fn says(&self, text: &str) -> Result<()> {
        eventually(&format!("dev says {text:?}"), async || {
            ensure!(self.process.log().contains(text), "{}", self.process.log());
            Ok(())
        })
        .await
    }

    /// The address of its etcd, as it said it.
    pub(crate) fn etcd(&self) -> Result<String> {
        let log = self.process.log();
        let url = log.lines().find_map(|line| line.strip_prefix("etcd      ")?.split(' ').next());
        Ok(url.context("dev did not say where etcd is")?.to_owned())
    }

    /// The folder in which it said that etcd has its data.
    pub(crate) fn data(&self) -> Result<PathBuf> {
        let log = self.process.log();
        let data =
            log.lines().find_map(|line| line.split_once("data in ")?.1.split_once(',').map(|(data, _)| data));
        Ok(data.context("dev did not say where the data is")?.into())
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let request = self.client.request(method.parse()?, url).header("content-type", "application/json");
        let response = request.body(body.to_owned()).send().await?;
        let status = response.status().as_u16();
        Ok(Answer { status, body: serde_json::from_str(&response.text().await?).unwrap_or_default() })
    }

    /// Acquires the lock `orders`, and answers what it was answered.
    pub(crate) async fn acquire(&self, key: &str) -> Result<Answer> {
        self.send("POST", &format!("/v1/locks/orders/{key}"), "").await
    }

    /// Waits until this is answered with that status.
    pub(crate) async fn answers(&self, method: &str, path: &str, status: u16) -> Result<Answer> {
        eventually(&format!("{method} {path} is answered {status}"), async || {
            let answer = self.send(method, path, "").await?;
            ensure!(answer.status == status, "{answer:?}");
            Ok(answer)
        })
        .await
    }

    /// Its children: etcd and the sidecar.
    pub(crate) fn children(&self) -> Result<Vec<u32>> {
        let mut children = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if stat(id).is_some_and(|(_, parent)| parent == self.process.id()) {
                children.push(id);
            }
        }
        Ok(children)
    }
}

fn taking_part(refuses: Refuses) -> Router {
    let answer = async move |extract::Path(path): extract::Path<String>| {
        let refused = *refuses.lock();
        match refused.filter(|(operation, _)| path.ends_with(operation)) {
            Some((_, status)) => (status, "it says no"),
            None => (StatusCode::OK, "{}"),
        }
    };
    Router::new().route("/{*path}", post(answer))
}

/// The program, told to run `dev` in the given folder.
pub(crate) fn command(manifests: &Manifests, sidecar: &str, flags: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary("concordat")?);
    command.args(["dev", "--sidecar", sidecar, "--manifests"]).arg(manifests.path()).args(flags);
    Ok(command)
}

/// What `concordat get` prints.
pub(crate) fn get(etcd: &str, arguments: &[&str]) -> Result<String> {
    let arguments: Vec<&str> = ["get"].iter().chain(arguments).copied().collect();
    concordat(etcd, &arguments)
}

/// What `concordat` prints, told of an etcd; its refusal as an error.
pub(crate) fn concordat(etcd: &str, arguments: &[&str]) -> Result<String> {
    let program = binary("concordat")?;
    let output = Command::new(program).args(arguments).args(["--etcd", etcd]).output()?;
    let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    if !output.status.success() {
        bail!("concordat {arguments:?}: {out}{err}");
    }
    Ok(out)
}

/// The same as JSON.
pub(crate) fn json(etcd: &str, arguments: &[&str]) -> Result<Value> {
    let arguments: Vec<&str> = arguments.iter().chain(&["-o", "json"]).copied().collect();
    Ok(serde_json::from_str(&concordat(etcd, &arguments)?)?)
}

/// The rows of a table that begins with these headings, as cells.
pub(crate) fn rows<'a>(printed: &'a str, headings: &[&str]) -> Vec<Vec<&'a str>> {
    let cells = |line: &'a str| -> Vec<&'a str> {
        line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
    };
    let table = printed.lines().map(cells).skip_while(|line| !line.starts_with(headings));
    table.skip(1).take_while(|line| line.len() > 1).collect()
}

/// Waits until none of these processes runs.
pub(crate) async fn are_gone(processes: &[u32]) -> Result<()> {
    eventually("the children are gone", async || {
        for id in processes {
            // Nobody may have asked yet how it ended.
            ensure!(stat(*id).is_none_or(|(state, _)| state == "Z"), "{id} runs");
        }
        Ok(())
    })
    .await
}

/// State and parent of a process.
fn stat(id: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
