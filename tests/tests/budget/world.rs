//! An etcd whose requests are counted, definitions and sidecars on it.

use std::{collections::BTreeMap, fmt::Write as _, process::Command};

use anyhow::{Result, ensure};
use concordat_protocol::{Definition, Key, Kind, Lease, Plan, Record, Settings};
use concordat_store::{Admin, AdminConfig};
use concordat_tests::{
    budget::{Cost, Meter},
    etcd::Etcd,
    history::Change,
    process::{Process, binary, eventually, free_port},
};
use parking_lot::Mutex;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;

use crate::app::App;

const NAMESPACE: &str = "budget";

pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) sidecars: Vec<Sidecar>,
    meter: Meter,
    rows: Mutex<String>,
    _etcd: Etcd,
}

/// One sidecar and the app beside it.
pub(crate) struct Sidecar {
    pub(crate) app: App,
    port: u16,
    _process: Process,
}

impl World {
    /// With these definitions, and a sidecar of each app that knows them, which an answered GET of `path` shows.
    pub(crate) async fn start(
        definitions: impl IntoIterator<Item = (&str, Kind, Settings)>,
        apps: &[&str],
        path: &str,
    ) -> Result<Self> {
        let etcd = Etcd::start().await?;
        let admin =
            Admin::connect(AdminConfig { endpoints: etcd.endpoints(), ..AdminConfig::default() }).await?;
        for (name, kind, settings) in definitions {
            let key = Key::Definition { kind, name: name.into() };
            let definition = Definition { uid: name.into(), generation: 1, settings };
            admin.write(NAMESPACE, Plan::new().put(key, definition, Lease::Forever)).await?;
        }
        let mut sidecars = Vec::new();
        for name in apps {
            let (port, admin, app) = (free_port()?, free_port()?, App::start().await?);
            let mut command = Command::new(binary("concordat-sidecar")?);
            command
                .args(["--namespace", NAMESPACE, "--app", name, "--pod", name])
                .args(["--app-port", &app.port.to_string(), "--api-port", &port.to_string()])
                .args(["--admin-port", &admin.to_string(), "--admin-address", "127.0.0.1"])
                .args(["--etcd-endpoints", &etcd.endpoint(0)]);
            let mut process = Process::start(name, command)?;
            process.answers(&format!("http://127.0.0.1:{admin}/ready")).await?;
            process.answers(&format!("http://127.0.0.1:{port}/v1/{path}")).await?;
            sidecars.push(Sidecar { app, port, _process: process });
        }
        let meter = Meter::start(&etcd).await?;
        Ok(Self { client: Client::new(), sidecars, meter, rows: Mutex::default(), _etcd: etcd })
    }

    /// Counts what an operation costs, and makes a row of it.
    pub(crate) async fn count<T>(&self, what: &str, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let (answer, cost) = self.meter.measure(operation).await?;
        let list = |of: &BTreeMap<&str, u64>| {
            let kinds: Vec<String> = of.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            if kinds.is_empty() { "–".to_owned() } else { kinds.join(", ") }
        };
        let Cost { commits, puts, deletes, .. } = &cost;
        let (rounds, puts, deletes) = (cost.rounds(), list(puts), list(deletes));
        writeln!(self.rows.lock(), "| {what} | {rounds} | {commits} | {puts} | {deletes} |")?;
        answer
    }

    /// Waits until the sidecars count so many of what a counter of theirs counts; etcd is not asked for it.
    pub(crate) async fn counted(&self, counter: &str, count: u64) -> Result<()> {
        eventually(&format!("{count} {counter}"), async || {
            let stats: BTreeMap<Key, u64> = self
                .meter
                .seen()
                .into_iter()
                .filter_map(|change| match change.entry.map(|entry| entry.record) {
                    Some(Record::Stat(stat)) => Some((change.key, stat.get(counter))),
                    _ => None,
                })
                .collect();
            let all: u64 = stats.values().sum();
            ensure!(all == count, "there are {all}");
            Ok(())
        })
        .await
    }

    /// Waits until nobody has a key, whatever it is; etcd is not asked for it.
    pub(crate) async fn gone(&self, key: &Key) -> Result<()> {
        eventually("it is gone", async || {
            let last = self.meter.seen().into_iter().rfind(|change| change.key == *key);
            ensure!(last.is_some_and(|change| change.entry.is_none()), "it is there");
            Ok(())
        })
        .await
    }

    /// How many votes and acknowledgements were put so far.
    pub(crate) fn answers(&self) -> usize {
        let puts = |change: &Change| matches!(change.key, Key::Answer { .. }) && change.entry.is_some();
        self.meter.seen().iter().filter(|change| puts(change)).count()
    }

    /// Waits until one more was put than these; etcd is not asked for it.
    pub(crate) async fn answered(&self, earlier: usize) -> Result<()> {
        eventually("a participant answers", async || {
            ensure!(self.answers() > earlier, "none did");
            Ok(())
        })
        .await
    }

    /// The rows so far.
    pub(crate) fn rows(self) -> String {
        self.rows.into_inner()
    }
}

impl Sidecar {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v1/{path}", self.port)
    }
}

/// What a request is answered, which must be a success.
pub(crate) async fn ask(request: RequestBuilder) -> Result<Value> {
    let (status, answer) = answer(request).await?;
    ensure!(status.is_success(), "{status}: {answer}");
    Ok(answer)
}

/// The answer to a request that must be refused so.
pub(crate) async fn refused(request: RequestBuilder, with: StatusCode) -> Result<Value> {
    let (status, answer) = answer(request).await?;
    ensure!(status == with, "{status}: {answer}");
    Ok(answer)
}

async fn answer(request: RequestBuilder) -> Result<(StatusCode, Value)> {
    let answer = request.send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    Ok((status, serde_json::from_str(&text).unwrap_or_default()))
}
