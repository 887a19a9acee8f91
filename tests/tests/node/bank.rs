//! The bank of `examples/` in pods of its own namespace, and a teller beside it who asks for what it does.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use concordat_tests::{
    node::{BANK, Namespace, Node, SHELL},
    process::eventually,
};
use serde_json::{Value, json};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/bank");
/// What accounts begin with.
pub(crate) const OPENING: i64 = 1_000;

/// The running bank.
pub(crate) struct Bank {
    pub(crate) namespace: Namespace<'static>,
}

impl Bank {
    /// A namespace that asks for sidecars and admits no pod but restricted ones.
    pub(crate) async fn namespace(node: &'static Node) -> Result<Namespace<'static>> {
        let labels =
            [("concordat.dev/inject", "enabled"), ("pod-security.kubernetes.io/enforce", "restricted")];
        node.namespace("bank", &labels).await
    }

    /// In a namespace of its own.
    pub(crate) async fn open(node: &'static Node) -> Result<Self> {
        Self::open_in(Self::namespace(node).await?).await
    }

    /// In such a namespace.
    pub(crate) async fn open_in(namespace: Namespace<'static>) -> Result<Self> {
        let bank = Self { namespace };
        for file in fs::read_dir(Path::new(FOLDER).join("manifests"))? {
            let file = file?.path();
            bank.namespace
                .kubectl(&["apply", "--filename", file.to_str().context("a strange path")?])
                .await?;
        }
        for object in objects(&fs::read_to_string(Path::new(FOLDER).join("kubernetes/bank.yaml"))?)? {
            bank.namespace.apply(with_a_shell(object)).await?;
        }
        bank.namespace.apply(shell("teller")).await?;
        for app in ["accounts", "ledger", "worker", "teller"] {
            bank.rolled_out(app).await?;
        }
        for account in ["ada", "bob"] {
            let opened = bank.app("accounts", "PUT", &format!("accounts/{account}"), &json!(OPENING)).await?;
            ensure!(opened.0 == 201, "{opened:?}");
        }
        Ok(bank)
    }

    /// Waits until the pods of an app are those that it is to have.
    pub(crate) async fn rolled_out(&self, app: &str) -> Result<()> {
        let deployment = format!("deployment/{app}");
        let rolled = self.namespace.kubectl(&["rollout", "status", &deployment, "--timeout=4m"]).await;
        rolled.with_context(|| self.namespace.node().look(self.namespace.name())).map(drop)
    }

    /// New pods take the place of an app's.
    pub(crate) async fn roll(&self, app: &str) -> Result<()> {
        self.namespace.kubectl(&["rollout", "restart", &format!("deployment/{app}")]).await?;
        self.rolled_out(app).await
    }

    /// What a command prints beside an app.
    pub(crate) async fn beside(&self, app: &str, command: &[&str]) -> Result<String> {
        let place = ["exec", &format!("deployment/{app}"), "--container=shell", "--"];
        self.namespace.kubectl(&[&place, command].concat()).await
    }

    /// Asks an app on its localhost: status and JSON.
    pub(crate) async fn app(
        &self,
        app: &str,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<(u16, Value)> {
        let url = format!("http://127.0.0.1:8080/{path}");
        let request = ["-X", method, "-H", "Content-Type: application/json", "-d", &body.to_string(), &url]
            .map(str::to_owned);
        self.curl(app, &request).await
    }

    /// Asks the sidecar of an app, as the app would: status and JSON.
    pub(crate) async fn sidecar(
        &self,
        app: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<(u16, Value)> {
        let mut request = vec!["-X".to_owned(), method.to_owned()];
        for (name, value) in headers {
            request.extend(["-H".to_owned(), format!("{name}: {value}")]);
        }
        if let Some(body) = body {
            request.extend(["-H".to_owned(), "Content-Type: application/json".to_owned()]);
            request.extend(["-d".to_owned(), body.to_string()]);
        }
        request.push(format!("http://127.0.0.1:4700/v1/{path}"));
        self.curl(app, &request).await
    }

    /// The variables are those that the webhook gave the container.
    async fn curl(&self, app: &str, request: &[String]) -> Result<(u16, Value)> {
        const SCRIPT: &str = r#"test "$CONCORDAT_PORT" = 4700 || exit 90
            exec curl -sS -m 60 -w '\n%{http_code}' -H "Concordat-Token: $(cat "$CONCORDAT_TOKEN_FILE")" "$@""#;
        let mut command = vec!["/bin/sh", "-c", SCRIPT, "sh"];
        command.extend(request.iter().map(String::as_str));
        let printed = self.beside(app, &command).await?;
        let (body, status) = printed.trim_end().rsplit_once('\n').context("no status")?;
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(body).context(body.to_owned())?
        };
        Ok((status.parse()?, body))
    }

    /// What an app answers to GET.
    pub(crate) async fn get(&self, app: &str, path: &str) -> Result<Value> {
        let (status, body) = self.app(app, "GET", path, &Value::Null).await?;
        ensure!(status == 200, "{path} of {app} answered {status}: {body}");
        Ok(body)
    }

    /// Ada pays Bob. The teller's sidecar coordinates.
    pub(crate) async fn pay(&self, id: &str, amount: i64) -> Result<(u16, Value)> {
        let input = json!({"from": "ada", "to": "bob", "amount": amount});
        let path = "transactions/transfer?wait=20s";
        self.sidecar("teller", "POST", path, &[("Transaction-Id", id)], Some(&input)).await
    }

    /// What became of a payment, when it is decided: true if it was made.
    pub(crate) async fn outcome(&self, id: &str) -> Result<bool> {
        let path = format!("transactions/transfer/{id}?wait=5s");
        eventually("the payment is decided", async || {
            let (status, found) = self.sidecar("teller", "GET", &path, &[], None).await?;
            match (status, found["outcome"].as_str()) {
                (200, Some("committed")) => Ok(true),
                (200, Some("aborted")) | (404, _) => Ok(false),
                _ => bail!("{status}: {found}"),
            }
        })
        .await
    }

    /// Every payment that was made, and no other, is in the books once and in the balances.
    pub(crate) async fn adds_up(&self, made: &BTreeMap<String, i64>) -> Result<()> {
        let sum: i64 = made.values().sum();
        eventually("all is applied", async || {
            let balances = self.get("accounts", "accounts").await?;
            ensure!(balances == json!({"ada": OPENING - sum, "bob": OPENING + sum}), "{balances}, not {sum}");
            let entries = self.get("ledger", "entries").await?;
            let mut booked = BTreeMap::new();
            for entry in entries.as_array().context("no entries")? {
                let id = entry["id"].as_str().context("no id")?.to_owned();
                let amount = entry["amount"].as_i64().context("no amount")?;
                ensure!(booked.insert(id, amount).is_none(), "booked twice: {entry}");
            }
            ensure!(booked == *made, "booked {booked:?}, made {made:?}");
            Ok(())
        })
        .await
    }

    /// Asks for a statement of each of these.
    pub(crate) async fn ask_for_statements(&self, of: &[String]) -> Result<()> {
        for account in of {
            let path = "queues/statements/messages";
            let message = json!({"account": account});
            eventually("the queue takes it", async || {
                let (status, answer) = self.sidecar("teller", "POST", path, &[], Some(&message)).await?;
                ensure!(status == 201, "{status}: {answer}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until statements of all of these are written.
    pub(crate) async fn wrote_statements(&self, of: &[String]) -> Result<()> {
        eventually("the statements are written", async || {
            let written = self.get("worker", "statements").await?;
            let written: Vec<&str> =
                written.as_array().into_iter().flatten().filter_map(|one| one["account"].as_str()).collect();
            let missing: Vec<&String> = of.iter().filter(|one| !written.contains(&one.as_str())).collect();
            ensure!(missing.is_empty(), "{missing:?} are not");
            Ok(())
        })
        .await
    }
}

/// The documents of a file.
fn objects(text: &str) -> Result<Vec<Value>> {
    text.split("\n---\n").map(|document| Ok(serde_saphyr::from_str(document)?)).collect()
}

/// A container that requests are sent from beside the app's own, which has no shell.
fn with_a_shell(mut object: Value) -> Value {
    if object["kind"] == "Deployment"
        && let Some(containers) =
            object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut)
    {
        for container in containers.iter_mut() {
            container["image"] = json!(BANK);
        }
        containers.push(shell_container());
    }
    object
}

fn shell_container() -> Value {
    json!({
        "name": "shell",
        "image": SHELL,
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
    })
}

/// A deployment of nothing but a shell.
pub(crate) fn shell(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 10,
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [shell_container()],
                },
            },
        },
    })
}
