//! What each operation costs etcd, held to docs/budget.md: a change is a red test. `CONCORDAT_BLESS=1` writes it anew.

use std::{fmt::Write as _, process::Command};

use anyhow::{Result, ensure};
use concordat_crds::{DistributedTransaction, Lock, Queue};
use concordat_operator::{lock, queue, transaction};
use concordat_protocol::{Definition, Key, Kind, Lease, Plan, Settings};
use concordat_store::{Admin, AdminConfig};
use concordat_tests::{
    bench::app,
    budget::{Cost, Meter},
    etcd::Etcd,
    process::{Process, binary, eventually, free_port},
};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/budget.md");
const NAMESPACE: &str = "budget";
const INTRODUCTION: &str = "\
# What an operation costs etcd
Counted by `cargo test -p concordat-tests --test budget` on a real etcd, one operation at a time on sidecars that do
nothing else, with all that it leaves to be done later; the test fails when a count changes, and
`CONCORDAT_BLESS=1` before it writes this page anew. A *round trip* is a request to etcd; a *commit* is a revision, that
is a Raft round and an fsync; under load plans of many operations share one. Every batch that puts also puts its
flusher's marker. What keeps sessions alive and counts for `.status` is left out.

| operation | round trips | commits | puts | deletes |
|---|---|---|---|---|
";

struct World {
    client: Client,
    meter: Meter,
    port: u16,
    table: String,
    _processes: Vec<Process>,
    _etcd: Etcd,
}

impl World {
    async fn start() -> Result<Self> {
        let etcd = Etcd::start().await?;
        let admin =
            Admin::connect(AdminConfig { endpoints: etcd.endpoints(), ..AdminConfig::default() }).await?;
        for (kind, settings) in settings()? {
            let key = Key::Definition { kind, name: "budget".into() };
            let definition = Definition { uid: "budget".into(), generation: 1, settings };
            admin.write(NAMESPACE, Plan::new().put(key, definition, Lease::Forever)).await?;
        }
        let (mut processes, mut port) = (Vec::new(), 0);
        for name in ["left", "right", "teller"] {
            let (api, admin, of_app) = (free_port()?, free_port()?, free_port()?);
            tokio::spawn(app::serve(of_app));
            let mut sidecar = Command::new(binary("concordat-sidecar")?);
            sidecar
                .args(["--namespace", NAMESPACE, "--app", name, "--pod", name])
                .args(["--app-port", &of_app.to_string(), "--api-port", &api.to_string()])
                .args(["--admin-port", &admin.to_string(), "--admin-address", "127.0.0.1"])
                .args(["--etcd-endpoints", &etcd.endpoint(0)]);
            let mut process = Process::start(name, sidecar)?;
            process.answers(&format!("http://127.0.0.1:{admin}/ready")).await?;
            processes.push(process);
            port = api;
        }
        let meter = Meter::start(&etcd).await?;
        let world = Self {
            client: Client::new(),
            meter,
            port,
            table: INTRODUCTION.into(),
            _processes: processes,
            _etcd: etcd,
        };
        eventually("the definitions to be known", async || {
            ensure!(world.get("locks/budget/warm").send().await?.status().is_success());
            Ok(())
        })
        .await?;
        Ok(world)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v1/{path}", self.port)
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path))
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(self.url(path)).json(body)
    }

    /// Counts one request, whose answer must be a success, and adds it to the table.
    async fn count(&mut self, what: &str, request: RequestBuilder) -> Result<Value> {
        let (answer, cost) = self.meter.measure(ask(request)).await?;
        let list = |of: &std::collections::BTreeMap<&str, u64>| {
            let kinds: Vec<String> = of.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            if kinds.is_empty() { "–".to_owned() } else { kinds.join(", ") }
        };
        let Cost { commits, puts, deletes, .. } = &cost;
        writeln!(
            self.table,
            "| {what} | {} | {commits} | {} | {} |",
            cost.rounds(),
            list(puts),
            list(deletes)
        )?;
        answer
    }

    /// Does once what is counted next, so that leases, watches and connections are there.
    async fn warm(&self, request: RequestBuilder) -> Result<Value> {
        ask(request).await
    }
}

async fn ask(request: RequestBuilder) -> Result<Value> {
    let answer = request.send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    ensure!(status.is_success(), "{status}: {text}");
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

fn settings() -> Result<[(Kind, Settings); 3]> {
    let lock = Lock::new("budget", serde_json::from_value(json!({"mode": "CompareAndSwap"}))?);
    let queue = Queue::new("budget", serde_json::from_value(json!({"mode": "WorkQueue"}))?);
    let participants = ["left", "right"].map(|name| json!({"name": name, "app": name}));
    let transfer = json!({"protocol": "TwoPhaseCommit", "participants": participants});
    let transfer = DistributedTransaction::new("budget", serde_json::from_value(transfer)?);
    Ok([
        (Kind::Lock, Settings::Lock(lock::compile(&lock)?)),
        (Kind::Queue, Settings::Queue(queue::compile(&queue)?)),
        (Kind::Transaction, Settings::Transaction(transaction::compile(&transfer)?)),
    ])
}

#[tokio::test]
async fn every_operation_costs_what_the_page_says() -> Result<()> {
    let mut world = World::start().await?;
    locks(&mut world).await?;
    queues(&mut world).await?;
    transactions(&mut world).await?;
    if std::env::var_os("CONCORDAT_BLESS").is_some() {
        std::fs::write(FILE, &world.table)?;
    }
    assert_eq!(std::fs::read_to_string(FILE)?, world.table, "CONCORDAT_BLESS=1 writes docs/budget.md anew");
    Ok(())
}

async fn locks(world: &mut World) -> Result<()> {
    let nothing = json!({});
    let grant = world.warm(world.post("locks/budget/warm", &nothing)).await?;
    let release = |world: &World, key: &str, grant: &Value| {
        let token = grant["token"].as_str().unwrap_or_default().to_owned();
        world.client.delete(world.url(&format!("locks/budget/{key}"))).header("lock-token", token)
    };
    world.warm(release(world, "warm", &grant)).await?;
    let grant = world.count("lock: acquire, free", world.post("locks/budget/a", &nothing)).await?;
    let token = grant["token"].as_str().unwrap_or_default();
    let renew = world.client.put(world.url("locks/budget/a")).header("lock-token", token);
    world.count("lock: renew", renew).await?;
    world.count("lock: inspect", world.get("locks/budget/a")).await?;
    world.count("lock: release", release(world, "a", &grant)).await?;
    Ok(())
}

async fn queues(world: &mut World) -> Result<()> {
    let message = json!({"n": 1});
    let receive = "queues/budget/receive?max=10&wait=5s";
    let receipts = |received: &Value| {
        let receipts: Vec<Value> =
            received["messages"].as_array().into_iter().flatten().map(|m| m["receipt"].clone()).collect();
        json!({"receipts": receipts})
    };
    world.warm(world.post("queues/budget/messages", &message)).await?;
    let received = world.warm(world.client.post(world.url(receive))).await?;
    world.warm(world.post("queues/budget/ack", &receipts(&received))).await?;
    world.count("queue: publish 1", world.post("queues/budget/messages", &message)).await?;
    let received = world.count("queue: receive 1", world.client.post(world.url(receive))).await?;
    world
        .count("queue: ack 1, the last of its segment", world.post("queues/budget/ack", &receipts(&received)))
        .await?;
    let batch = world
        .client
        .post(world.url("queues/budget/messages"))
        .header("content-type", "application/x-ndjson")
        .body("{\"body\":{\"n\":1}}\n".repeat(10));
    world.count("queue: publish 10 in a batch", batch).await?;
    let received = world.count("queue: receive 10", world.client.post(world.url(receive))).await?;
    world
        .count(
            "queue: ack 10, the last of their segment",
            world.post("queues/budget/ack", &receipts(&received)),
        )
        .await?;
    world.count("queue: counts", world.get("queues/budget")).await?;
    Ok(())
}

async fn transactions(world: &mut World) -> Result<()> {
    let begin = "transactions/budget?wait=20s";
    world.warm(world.post(begin, &json!({}))).await?;
    let done = world.count("transaction: commit with 2 participants", world.post(begin, &json!({}))).await?;
    let path = format!("transactions/budget/{}", done["id"].as_str().unwrap_or_default());
    world.count("transaction: read a finished one", world.get(&path)).await?;
    Ok(())
}
