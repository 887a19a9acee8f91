//! `kubectl concordat` as people have it: a program on kubectl's PATH that reaches etcd through a port of one of its pods.

use std::{env, fs, os::unix::fs::symlink, path::PathBuf};

use anyhow::{Context, Result, ensure};
use concordat_tests::{
    node::Node,
    process::{binary, eventually},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{bank::Bank, clerk, installation::Installation};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The plugin of a kubectl.
pub(crate) struct Plugin<'a> {
    node: &'a Node,
    /// On its PATH.
    folder: TempDir,
}

impl<'a> Plugin<'a> {
    /// Puts it on the PATH.
    pub(crate) fn new(node: &'a Node) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        symlink(binary("concordat")?, folder.path().join("kubectl-concordat"))?;
        Ok(Self { node, folder })
    }

    /// Whether it did what it was asked, and what it printed and said.
    async fn ask(&self, arguments: &[&str]) -> Result<(bool, String, String)> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.folder.path().to_owned()).chain(env::split_paths(&path));
        let mut command = self.node.kubectl_command()?;
        command.env("PATH", env::join_paths(folders)?).env_remove("CONCORDAT_ETCD_ENDPOINTS");
        let output = command.arg("concordat").args(arguments).output().await?;
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }

    /// What it prints.
    pub(crate) async fn prints(&self, arguments: &[&str]) -> Result<String> {
        let (done, printed, said) = self.ask(arguments).await?;
        ensure!(done, "kubectl concordat {}: {said}{printed}", arguments.join(" "));
        Ok(printed)
    }

    /// The same for programs.
    pub(crate) async fn tells(&self, arguments: &[&str]) -> Result<Value> {
        let printed = self.prints(&[arguments, &["--output=json"]].concat()).await?;
        serde_json::from_str(&printed).context(printed)
    }

    /// It is refused, and this is said.
    pub(crate) async fn refuses(&self, arguments: &[&str], why: &str) -> Result<()> {
        let (done, printed, said) = self.ask(arguments).await?;
        ensure!(!done && said.contains(why), "{arguments:?}, not {why:?}: {said}{printed}");
        Ok(())
    }

    /// What `check` finds, whether all is well or not.
    async fn checks(&self) -> Result<Vec<Value>> {
        let (well, printed, said) = self.ask(&["check", "--output=json"]).await?;
        let found: Vec<Value> = serde_json::from_str(&printed).with_context(|| said + &printed)?;
        ensure!(well == found.iter().all(|of| of["status"] != "failed"), "the exit code says otherwise");
        Ok(found)
    }

    /// `check` finds this, whatever else.
    pub(crate) async fn finds(&self, status: &str, check: &str, found: &str) -> Result<()> {
        let all = self.checks().await?;
        let is_it = |of: &Value| {
            of["status"] == status
                && of["check"] == check
                && of["found"].as_str().is_some_and(|text| text.contains(found))
        };
        ensure!(all.iter().any(is_it), "{status} {check} {found:?} is not in {all:#?}");
        Ok(())
    }

    /// `check` finds nothing that is not well, and looked at all of these.
    pub(crate) async fn finds_all_well(&self, looked_at: &[&str]) -> Result<()> {
        eventually("all is well", async || {
            let all = self.checks().await?;
            ensure!(all.iter().all(|of| of["status"] == "ok"), "{all:#?}");
            for check in looked_at {
                ensure!(all.iter().any(|of| of["check"] == *check), "{check} is not in {all:#?}");
            }
            Ok(())
        })
        .await
    }
}

/// All that the page of it shows.
pub(crate) async fn works(plugin: &Plugin<'_>, installation: &Installation<'_>, bank: &Bank) -> Result<()> {
    let system = installation.namespace;
    let authority = format!("certificate {system}/concordat-ca");
    let of_the_bank = format!("certificate {}/concordat-etcd-client", bank.namespace.name());
    let etcd = ["etcd members", "etcd", "etcd space"];
    plugin
        .finds_all_well(
            &[&["cluster", "operator", "webhook", &*authority, &*of_the_bank][..], &etcd].concat(),
        )
        .await?;
    let versions = plugin.tells(&["version"]).await?;
    ensure!(versions["client"] == VERSION && versions["operator"] == VERSION, "{versions}");
    ensure!(versions["etcd"] == "3.7.2" && versions["notReached"].is_null(), "{versions}");
    ensure!(versions["kubernetes"].as_str().is_some_and(|of| of.starts_with("v1.")), "{versions}");
    let completion = plugin.prints(&["completion", "bash"]).await?;
    ensure!(completion.contains("complete -F") && completion.contains("redrive"), "{completion}");

    objects(plugin, bank).await?;
    lock(plugin, bank).await?;
    queue(plugin, bank).await?;
    clerk::transactions(plugin, bank).await?;
    few_rights(plugin, installation, bank).await?;
    without_webhook(plugin, installation).await
}

async fn objects(plugin: &Plugin<'_>, bank: &Bank) -> Result<()> {
    let here = bank.namespace.name();
    let locks = plugin.prints(&["get", "locks", "-n", here]).await?;
    ensure!(locks.starts_with("NAME") && locks.contains("accounts   True"), "{locks}");
    let queues = plugin.prints(&["get", "queues", "-A"]).await?;
    let row = queues.lines().find(|line| line.starts_with(here)).context(queues.clone())?;
    ensure!(queues.starts_with("NAMESPACE") && row.contains("statements"), "{queues}");
    eventually("what was paid is counted", async || {
        let transactions = plugin.tells(&["get", "transactions", "-n", here]).await?;
        let status = &transactions[0]["status"];
        ensure!(
            transactions[0]["name"] == "transfer" && transactions[0]["namespace"] == here,
            "{transactions}"
        );
        ensure!(status["committed"] == 1 && status["aborted"] == 1, "{transactions}");
        Ok(())
    })
    .await?;
    let yaml = plugin.prints(&["get", "tx", "-n", here, "-o", "yaml"]).await?;
    let read: Value = serde_saphyr::from_str(&yaml).with_context(|| yaml.clone())?;
    ensure!(read[0]["name"] == "transfer", "{yaml}");
    plugin
        .refuses(&["get", "locks", "-n", here, "-o", "xml"], "[possible values: table, json, yaml]")
        .await?;
    plugin.refuses(&["describe", "lock", "account", "-n", here], "(there: accounts)").await
}

/// Who holds a lock and who waits is told; the lock is taken from its holder.
async fn lock(plugin: &Plugin<'_>, bank: &Bank) -> Result<()> {
    let here = bank.namespace.name();
    let line = json!({
        "apiVersion": "concordat.dev/v1alpha1", "kind": "Lock", "metadata": {"name": "tills"},
        "spec": {"mode": "FairQueue", "ttl": "10m"},
    });
    bank.namespace.apply(line).await?;
    let path = "locks/tills/3";
    let held = eventually("it is held", async || {
        let body = json!({"owner": "till-3"});
        let (status, held) = bank.sidecar("teller", "POST", path, &[], Some(&body)).await?;
        ensure!(status == 200, "{status}: {held}");
        Ok(held)
    })
    .await?;
    let waits = async {
        let body = json!({"owner": "till-5"});
        bank.sidecar("worker", "POST", &format!("{path}?wait=55s"), &[], Some(&body)).await
    };
    let fence = held["fence"].to_string();
    let release = ["lock", "release", "tills", "3", "-n", here, "--fence"];
    let looks = async {
        let told = eventually("the waiter is told", async || {
            let told = plugin.tells(&["describe", "lock", "tills", "-n", here]).await?;
            ensure!(told["waiters"][0]["owner"] == "till-5", "{told}");
            Ok(told)
        })
        .await?;
        let (holder, waiter) = (&told["holders"][0], &told["waiters"][0]);
        ensure!(holder["owner"] == "till-3" && holder["fence"] == held["fence"], "{told}");
        for (of, app) in [(holder, "teller-"), (waiter, "worker-")] {
            ensure!(of["pod"].as_str().is_some_and(|pod| pod.starts_with(app)), "{told}");
        }
        let table = plugin.prints(&["describe", "lock", "tills", "-n", here]).await?;
        ensure!(table.contains("Holders:\n  KEY") && table.contains("Waiters:\n  KEY"), "{table}");
        let one = plugin.tells(&["describe", "lock", "tills", "3", "-n", here]).await?;
        ensure!(one["waiters"] == 1 && one["holders"][0]["owner"] == "till-3", "{one}");
        plugin.refuses(&[&release[..], &["1"]].concat(), "is not held with fence 1 any more").await?;
        let released = plugin.prints(&[&release[..], &[&fence]].concat()).await?;
        ensure!(released.starts_with("released: \"3\" was taken from pod \"teller-"), "{released}");
        anyhow::Ok(())
    };
    let (waited, looked) = tokio::join!(waits, looks);
    looked?;
    let (status, next) = waited?;
    ensure!(
        status == 200 && next["fence"].as_i64() > held["fence"].as_i64(),
        "{status}: {held}, then {next}"
    );
    let token = next["token"].as_str().unwrap_or_default();
    let (status, _) = bank.sidecar("worker", "DELETE", path, &[("Lock-Token", token)], None).await?;
    ensure!(status == 204, "{status}");
    Ok(())
}

/// A dead letter is looked at and put back, and is one again: the worker still cannot read it.
async fn queue(plugin: &Plugin<'_>, bank: &Bank) -> Result<()> {
    let here = bank.namespace.name();
    let describe = ["describe", "queue", "statements", "-n", here];
    let letter = async |but: &Value| {
        eventually("it is set aside", async || {
            let told = plugin.tells(&describe).await?;
            let id = &told["deadLetters"][0]["id"];
            ensure!(told["dead"] == 1 && id.is_string() && id != but, "{told}");
            ensure!(told["consumers"][0]["app"] == "worker", "{told}");
            Ok(id.clone())
        })
        .await
    };
    let first = letter(&Value::Null).await?;
    let table = plugin.prints(&describe).await?;
    ensure!(table.contains("Dead letters:     1\n") && table.contains("Consumers:\n  APP"), "{table}");
    let peek = ["queue", "peek", "statements", "-n", here];
    let peeked = plugin.prints(&peek).await?;
    ensure!(peeked.contains(r#"{"accuont":"typo"}"#), "{peeked}");
    let redrive = ["queue", "redrive", "statements", "-n", here];
    let put = plugin.prints(&[&redrive[..], &[first.as_str().unwrap_or_default()]].concat()).await?;
    ensure!(put == "put back into statements: 1\n", "{put}");
    letter(&first).await?;
    let put = plugin.tells(&[&redrive[..], &["--all"]].concat()).await?;
    ensure!(put["redriven"] == 1, "{put}");
    eventually("it is set aside again", async || {
        let peeked = plugin.tells(&peek).await?;
        ensure!(peeked[0]["body"] == json!({"accuont": "typo"}), "{peeked}");
        Ok(())
    })
    .await
}

/// What the page says that it takes is enough, and each of it is needed.
async fn few_rights(plugin: &Plugin<'_>, installation: &Installation<'_>, bank: &Bank) -> Result<()> {
    let (system, here) = (installation.namespace, bank.namespace.name());
    let kubeconfig = plugin.folder.path().join("looker.kubeconfig");
    let file = kubeconfig.to_str().context("a strange path")?;
    let as_looker = ["-n", here, "--kubeconfig", file];
    let get = [&["get", "locks"][..], &as_looker].concat();
    let release = [&["lock", "release", "tills", "3", "--fence", "1"][..], &as_looker].concat();
    installation.kubectl(&["create", "serviceaccount", "looker"]).await?;
    log_in(installation, "looker", &kubeconfig).await?;
    for (namespace, role, what, asks, refusal) in [
        (system, "secret", &["get", "secrets", "--resource-name=concordat-etcd-root"][..], &get, "secrets"),
        (system, "pods", &["list", "pods"], &get, "cannot list resource"),
        (system, "forward", &["get,create", "pods/portforward"], &get, "the right to get and create"),
        (here, "locks", &["get,list,watch,patch", "locks.concordat.dev"], &release, "cannot get resource"),
        (here, "events", &["list", "events.events.k8s.io"], &release, "the Events that tell"),
    ] {
        let (name, account) = (format!("--role={role}"), format!("--serviceaccount={system}:looker"));
        let (verbs, resource) = (format!("--verb={}", what[0]), format!("--resource={}", what[1]));
        eventually("the rights of before are known", async || plugin.refuses(asks, refusal).await).await?;
        let rights = [&["-n", namespace, "create", "role", role, &verbs, &resource], &what[2..]].concat();
        installation.node.kubectl(&rights).await?;
        let binding = ["-n", namespace, "create", "rolebinding", role, &name, &account];
        installation.node.kubectl(&binding).await?;
    }
    let locks = eventually("the rights are known", async || plugin.prints(&get).await).await?;
    ensure!(locks.contains("accounts"), "{locks}");
    eventually("the rights are known", async || {
        plugin.refuses(&release, "is not held with fence 1 any more").await
    })
    .await?;
    installation.kubectl(&["delete", "role,rolebinding", "secret", "pods", "forward"]).await?;
    installation.kubectl(&["delete", "serviceaccount", "looker"]).await.map(drop)
}

/// Writes a kubeconfig with a token of a service account.
async fn log_in(installation: &Installation<'_>, account: &str, file: &PathBuf) -> Result<()> {
    let mut config: Value = serde_saphyr::from_str(&fs::read_to_string(installation.node.kubeconfig())?)?;
    let token = installation.kubectl(&["create", "token", account]).await?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    fs::write(file, config.to_string())?;
    Ok(())
}

/// What somebody took away is named, and comes back as is said.
async fn without_webhook(plugin: &Plugin<'_>, installation: &Installation<'_>) -> Result<()> {
    let webhook = ["delete", "mutatingwebhookconfiguration", "concordat-injector"];
    installation.node.kubectl(&webhook).await?;
    plugin.finds("failed", "webhook", "there is no MutatingWebhookConfiguration concordat-injector").await?;
    plugin.refuses(&["check"], "one check failed").await?;
    installation.upgrade(&[]).await?;
    plugin.finds_all_well(&["webhook", "webhook Service"]).await
}
