//! A namespace on a real etcd, with real sidecars and apps that take part.

use std::{
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use concordat_protocol::{
    Definition, Key, Kind, Lease, Plan, Range, Record, Settings,
    definition::Backoff,
    transaction::{
        self, Operation, Participant, Protocol, Verdict,
        invariant::{self, History},
    },
};
use concordat_store::{Admin, AdminConfig};
use concordat_tests::{
    etcd::Etcd,
    history::{Change, Recorder},
    process::{Process, binary_with, eventually, free_port, measures},
};
use serde_json::{Value, json};

use super::app::App;

pub(crate) const NAME: &str = "pay";
/// What a traced transaction is about.
pub(crate) const PAYLOAD: &str = "DE02120300000000202051";

/// A sidecar of a pod.
pub(crate) struct Pod {
    pub(crate) process: Process,
    pub(crate) port: u16,
    pub(crate) name: String,
    admin: String,
}

impl Pod {
    /// Waits until its sidecar has counted this.
    pub(crate) async fn counts(&self, lines: &[&str]) -> Result<()> {
        measures(&self.admin, lines).await
    }
}

pub(crate) struct World {
    pub(crate) namespace: String,
    endpoint: String,
    pub(crate) admin: Admin,
    recorder: Recorder,
    client: reqwest::Client,
    pub(crate) p: App,
    pub(crate) q: App,
    /// Where sidecars export traces to, if anywhere.
    pub(crate) collector: Option<String>,
    /// The file of the authority that signed its certificate, if any.
    pub(crate) collector_ca: Option<PathBuf>,
    started: AtomicUsize,
}

/// An answer of the API.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl World {
    /// A namespace with the DistributedTransaction [`NAME`]: branch `debit` at the app `p`, `credit` at the app `q`.
    pub(crate) async fn new(etcd: &Etcd, namespace: &str) -> Result<Self> {
        Self::through(etcd, namespace, etcd.endpoint(0)).await
    }

    /// The same, with sidecars that reach etcd at an address of their own.
    pub(crate) async fn through(etcd: &Etcd, namespace: &str, endpoint: String) -> Result<Self> {
        let config = AdminConfig { endpoints: etcd.endpoints(), ..AdminConfig::default() };
        let admin = Admin::connect(config).await?;
        let world = Self {
            namespace: namespace.to_owned(),
            endpoint,
            admin,
            recorder: Recorder::start(etcd.client().await?),
            client: reqwest::Client::new(),
            p: App::start().await?,
            q: App::start().await?,
            collector: None,
            collector_ca: None,
            started: AtomicUsize::new(0),
        };
        world.define(&settings()).await?;
        Ok(world)
    }

    pub(crate) fn definition() -> Key {
        Key::Definition { kind: Kind::Transaction, name: NAME.into() }
    }

    /// Puts the definition as the operator does.
    pub(crate) async fn define(&self, settings: &transaction::Settings) -> Result<i64> {
        let definition =
            Definition { uid: "u1".into(), generation: 1, settings: Settings::Transaction(settings.clone()) };
        let plan = Plan::new().put(Self::definition(), definition, Lease::Forever);
        let answer = eventually("etcd takes the definition", async || {
            Ok(self.admin.write(&self.namespace, plan.clone().read(Self::definition())).await?)
        })
        .await?;
        Ok(answer.reads[0][0].create_revision)
    }

    /// Starts a sidecar of an app (`p`, `q` or any other, which takes no part), with fail points if any; its session is soon over
    /// then.
    pub(crate) async fn start(&self, app: &str, failpoints: &str) -> Result<Pod> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{app}-{number}", self.namespace);
        let (port, admin) = (free_port()?, free_port()?);
        let mut command = Command::new(binary_with("concordat-sidecar", &["concordat-sidecar/failpoints"])?);
        command
            .args(["--namespace", &self.namespace, "--app", app, "--pod", &name])
            .args(["--api-port", &port.to_string(), "--admin-port", &admin.to_string()])
            .args(["--admin-address", "127.0.0.1", "--etcd-endpoints", &self.endpoint])
            .args(["--log", "info,concordat_sidecar=debug"])
            .env("FAILPOINTS", failpoints);
        if let Some(collector) = &self.collector {
            command.args(["--otlp-endpoint", collector]).env("OTEL_BSP_SCHEDULE_DELAY", "50");
        }
        if let Some(file) = &self.collector_ca {
            command.arg("--otlp-ca-file").arg(file);
        }
        if !failpoints.is_empty() {
            command.args(["--session-ttl", "3s"]);
        }
        let app_port = match app {
            "p" => Some(self.p.port),
            "q" => Some(self.q.port),
            _ => None,
        };
        if let Some(port) = app_port {
            command.args(["--app-port", &port.to_string()]);
        }
        let mut process = Process::start(&name, command)?;
        let admin = format!("http://127.0.0.1:{admin}");
        process.answers(&format!("{admin}/ready")).await?;
        Ok(Pod { process, port, name, admin })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let response = request.timeout(Duration::from_mins(1)).send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? };
        Ok(Answer { status, body })
    }

    pub(crate) async fn post(&self, pod: &Pod, path: &str, id: Option<&str>, body: &Value) -> Result<Answer> {
        let mut request = self
            .client
            .post(format!("http://127.0.0.1:{}/v1/transactions/{path}", pod.port))
            .body(body.to_string());
        if let Some(id) = id {
            request = request.header("Transaction-Id", id);
        }
        self.send(request).await
    }

    pub(crate) async fn begin(&self, pod: &Pod, id: &str) -> Result<Answer> {
        self.post(pod, &format!("{NAME}?wait=30s"), Some(id), &json!({ "amount": 10 })).await
    }

    /// The same, as part of a trace; without an answer when the sidecar dies before it.
    pub(crate) async fn begin_traced(&self, pod: &Pod, id: &str, traceparent: &str) -> Option<Answer> {
        let url = format!("http://127.0.0.1:{}/v1/transactions/{NAME}?wait=30s", pod.port);
        let request = self.client.post(url).header("Transaction-Id", id).header("traceparent", traceparent);
        self.send(request.body(format!("{{\"iban\":\"{PAYLOAD}\"}}"))).await.ok()
    }

    /// Begins one; `None` when the sidecar dies before it answers.
    pub(crate) async fn begin_or_lose(&self, pod: &Pod, id: &str) -> Option<Answer> {
        self.begin(pod, id).await.ok()
    }

    pub(crate) async fn get(&self, pod: &Pod, path: &str) -> Result<Answer> {
        self.send(self.client.get(format!("http://127.0.0.1:{}/v1/transactions/{NAME}{path}", pod.port)))
            .await
    }

    /// Waits until a transaction is finished, and answers it.
    pub(crate) async fn finished(&self, pod: &Pod, id: &str) -> Result<Value> {
        self.reaches(pod, id, "finished").await
    }

    /// Waits until a transaction is in a state, and answers it.
    pub(crate) async fn reaches(&self, pod: &Pod, id: &str, state: &str) -> Result<Value> {
        eventually(&format!("{id} is {state}"), async || {
            let answer = self.get(pod, &format!("/{id}")).await?;
            ensure!(answer.body["state"] == state, "it is {answer:?}");
            Ok(answer.body)
        })
        .await
    }

    /// Waits until no session of a pod is left in etcd.
    pub(crate) async fn session_ended(&self, pod: &Pod) -> Result<()> {
        eventually(&format!("the session of {} ends", pod.name), async || {
            let answer = self.admin.read(&self.namespace, vec![Range::Sessions]).await?;
            let lives = answer.reads[0]
                .iter()
                .any(|entry| matches!(&entry.record, Record::Session(session) if session.pod == pod.name));
            ensure!(!lives, "it lives");
            Ok(())
        })
        .await
    }

    /// Every change of etcd up to now.
    pub(crate) async fn changes(&self) -> Result<Vec<Change>> {
        self.recorder.changes().await
    }

    /// What was seen of a transaction.
    pub(crate) async fn history(&self, id: &str) -> Result<History> {
        let mut history = History::default();
        let mut participants = settings().participants;
        for change in self.recorder.changes().await? {
            if change.namespace != self.namespace {
                continue;
            }
            match (&change.key, change.entry.map(|entry| entry.record)) {
                (Key::Transaction(of), Some(Record::Transaction(record))) if of.as_str() == id => {
                    participants = record.branches.into_iter().map(|branch| branch.participant).collect();
                    if let Some(decision) = record.decision
                        && !history.decisions.iter().any(|(_, of)| *of == decision)
                    {
                        history.decisions.insert((change.revision, decision));
                    }
                }
                (Key::Answer { transaction, branch, .. }, Some(Record::Answer(reply)))
                    if transaction.as_str() == id && reply.operation == Operation::Prepare =>
                {
                    let yes = matches!(reply.verdict, Verdict::Yes(_));
                    history.votes.insert((branch.clone(), change.revision, yes));
                }
                _ => {}
            }
        }
        for Participant { name: branch, app, .. } in participants {
            let app = if app.as_str() == "p" { &self.p } else { &self.q };
            history.ledger.insert(branch.clone(), app.ledger(id, branch.as_str()));
            for call in app.calls() {
                if call.transaction != id || call.branch != branch.as_str() {
                    continue;
                }
                let operation = match call.operation.as_str() {
                    "prepare" => Operation::Prepare,
                    "commit" => Operation::Commit,
                    _ => Operation::Abort,
                };
                // Which sidecar called is not told: their epochs, which rise, put them in order.
                history.calls.entry((branch.clone(), 0)).or_default().push(operation);
            }
            history.branches.insert(branch);
        }
        Ok(history)
    }

    /// Checks what must hold of a finished transaction, of which clients were told `told`.
    pub(crate) async fn check(&self, id: &str, told: &[&Value], disturbed: bool) -> Result<()> {
        let mut history = self.history(id).await?;
        history.disturbed = disturbed;
        for told in told {
            match told["outcome"].as_str() {
                Some("committed") => drop(history.told.insert(transaction::Decision::Commit)),
                Some("aborted") => drop(history.told.insert(transaction::Decision::Abort)),
                _ => {}
            }
        }
        type Holds = fn(&History) -> bool;
        let invariants: [(&str, Holds); 7] = [
            ("ac1", invariant::ac1_agreement),
            ("ac2", invariant::ac2_irrevocable),
            ("ac3", invariant::ac3_validity),
            ("ac4", invariant::ac4_non_triviality),
            ("ac5", invariant::ac5_termination),
            ("ac6", invariant::ac6_truth),
            ("ac7", invariant::ac7_effect_once),
        ];
        for (name, holds) in invariants {
            ensure!(holds(&history), "{name} does not hold of {id}: {history:#?}");
        }
        // Nothing is left of it but what is remembered, and never was anything asked for what is not.
        let mut remembered = std::collections::BTreeSet::new();
        let mut revision = 0;
        let changes = self.recorder.changes().await?;
        for (index, change) in changes.iter().enumerate() {
            if change.namespace != self.namespace {
                continue;
            }
            match change.entry {
                Some(_) => drop(remembered.insert(change.key.clone())),
                None => drop(remembered.remove(&change.key)),
            }
            revision = revision.max(change.revision);
            let whole = changes.get(index + 1).is_none_or(|next| next.revision != change.revision);
            let keys = remembered.iter().collect();
            ensure!(
                !whole || invariant::ac8_no_orphan(&keys),
                "an item without its transaction at {revision}"
            );
        }
        let left: Vec<&Key> = remembered
            .iter()
            .filter(|key| match key {
                Key::Work { transaction, .. }
                | Key::Answer { transaction, .. }
                | Key::Transaction(transaction) => transaction.as_str() == id,
                _ => false,
            })
            .collect();
        ensure!(left.is_empty(), "left of {id}: {left:?}");
        Ok(())
    }
}

/// Two-phase commit over `p` and `q`.
pub(crate) fn settings() -> transaction::Settings {
    let participant = |name: &str, app: &str| Participant {
        name: name.into(),
        app: app.into(),
        path: format!("/transfer/{name}"),
        timeout: 2_000,
        retry: Backoff { initial: 50, max: 500, factor_milli: 2_000 },
        attempts: 0,
        after: Vec::new(),
        input: None,
    };
    transaction::Settings {
        protocol: Protocol::TwoPhaseCommit,
        participants: vec![participant("debit", "p"), participant("credit", "q")],
        timeout: 25_000,
        once: false,
        retention: 60_000,
    }
}

/// Two-phase commit over this many branches, all of them `p`'s.
pub(crate) fn many(branches: usize) -> transaction::Settings {
    let mut settings = settings();
    let one = settings.participants[0].clone();
    let branch = |number| Participant { name: format!("b{number}").into(), ..one.clone() };
    settings.participants = (0..branches).map(branch).collect();
    settings
}

/// A value of an answer that must be there.
pub(crate) fn text<'a>(body: &'a Value, field: &str) -> Result<&'a str> {
    body[field].as_str().with_context(|| format!("no {field} in {body}"))
}
