//! An app that takes part in transactions and answers as a person tells it to: busybox's web server and three scripts.

use anyhow::{Result, ensure};
use concordat_tests::process::eventually;
use serde_json::{Value, json};

use crate::{
    bank::{Bank, shell},
    kubectl::Plugin,
};

const ANSWER: &str = r#"#!/bin/sh
    answer() { printf 'Status: %s\r\n\r\n%s' "$1" "$2"; }
"#;
/// Looks whether the clerk votes yet.
const PREPARE: &str =
    "[ -e /data/votes ] && answer '200 OK' || answer '503 Service Unavailable' 'at lunch'\n";
/// Looks whether the account is open.
const COMMIT: &str = "[ -e /data/open ] && answer '200 OK' || answer '409 Conflict' 'account 7 is closed'\n";
const ABORT: &str = "answer '200 OK'\n";

/// The objects of it.
fn objects() -> [Value; 3] {
    let script = |text: &str| [ANSWER, text].concat();
    let scripts = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "clerk"},
        "data": {"prepare": script(PREPARE), "commit": script(COMMIT), "abort": script(ABORT)},
    });
    let mut clerk = shell("clerk");
    let pod = &mut clerk["spec"]["template"];
    pod["metadata"]["annotations"] = json!({"concordat.dev/app-port": "8080"});
    pod["spec"]["volumes"] = json!([
        {"name": "scripts", "configMap": {"name": "clerk", "defaultMode": 0o555}},
        {"name": "data", "emptyDir": {}},
    ]);
    let container = &mut pod["spec"]["containers"][0];
    container["command"] = json!(["/bin/httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/www"]);
    container["volumeMounts"] =
        json!([{"name": "scripts", "mountPath": "/www/cgi-bin"}, {"name": "data", "mountPath": "/data"}]);
    let closing = json!({
        "apiVersion": "concordat.dev/v1alpha1", "kind": "DistributedTransaction", "metadata": {"name": "closing"},
        "spec": {
            "protocol": "TwoPhaseCommit", "timeout": "10m",
            "participants": [{"name": "clerk", "app": "clerk", "path": "/cgi-bin", "retry": {"initial": "1s", "max": "1s"}}],
        },
    });
    [scripts, clerk, closing]
}

/// Begins a transaction; its outcome.
async fn begin(bank: &Bank, id: &str, wait: &str) -> Result<Value> {
    let path = format!("transactions/closing?wait={wait}");
    eventually("it is begun", async || {
        let (status, begun) =
            bank.sidecar("teller", "POST", &path, &[("Transaction-Id", id)], Some(&json!({}))).await?;
        ensure!(matches!(status, 200 | 202), "{status}: {begun}");
        Ok(begun["outcome"].clone())
    })
    .await
}

/// What waits for a person is told, and mended.
pub(crate) async fn transactions(plugin: &Plugin<'_>, bank: &Bank) -> Result<()> {
    let here = bank.namespace.name();
    for object in objects() {
        bank.namespace.apply(object).await?;
    }
    bank.rolled_out("clerk").await?;
    let becomes = async |id: &str, state: &str, branch: &str, error: &str| {
        eventually("it comes to that", async || {
            let told = plugin.tells(&["describe", "transaction", "closing", id, "-n", here]).await?;
            let of = &told["branches"][0];
            ensure!(told["state"] == state && of["state"] == branch, "not {state}, {branch}: {told}");
            ensure!(
                error.is_empty() || of["lastError"].as_str().is_some_and(|last| last.contains(error)),
                "{told}"
            );
            Ok(())
        })
        .await
    };
    let tx = |what: &'static str, id: &'static str| ["tx", what, "closing", id, "-n", here];

    // Nobody has decided yet: a person may.
    ensure!(begin(bank, "early", "1s").await? == "undecided");
    becomes("early", "preparing", "preparing", "503").await?;
    plugin.refuses(&tx("retry", "early"), "transaction-not-stuck").await?;
    let told = plugin.prints(&tx("rollback", "early")).await?;
    ensure!(told.contains("Outcome:       aborted\n"), "{told}");

    // It is committed, and the clerk will not do it: a person has it tried again, in vain, then not.
    bank.beside("clerk", &["touch", "/data/votes"]).await?;
    ensure!(begin(bank, "stuck", "30s").await? == "committed");
    becomes("stuck", "stuck", "stuck", "account 7 is closed").await?;
    let told = plugin.prints(&["describe", "tx", "closing", "--state", "stuck", "-n", here]).await?;
    ensure!(told.lines().any(|line| line.contains("stuck") && line.ends_with("clerk")), "{told}");
    plugin.refuses(&tx("rollback", "stuck"), "transaction-committed").await?;
    plugin.prints(&tx("retry", "stuck")).await?;
    becomes("stuck", "stuck", "stuck", "account 7 is closed").await?;
    bank.beside("clerk", &["touch", "/data/open"]).await?;
    plugin.prints(&tx("retry", "stuck")).await?;
    becomes("stuck", "finished", "applied", "").await?;

    // It is given up.
    bank.beside("clerk", &["rm", "/data/open"]).await?;
    ensure!(begin(bank, "given-up", "30s").await? == "committed");
    becomes("given-up", "stuck", "stuck", "409").await?;
    let skip = [&tx("skip", "given-up")[..], &["clerk", "--reason", "paid by hand"]].concat();
    plugin.prints(&skip).await?;
    becomes("given-up", "finished", "skipped", "").await?;
    let told = plugin.prints(&["describe", "tx", "closing", "given-up", "-n", here]).await?;
    ensure!(told.contains("paid by hand"), "{told}");
    bank.namespace.kubectl(&["delete", "deployment/clerk", "configmap/clerk"]).await?;
    bank.namespace.kubectl(&["delete", "distributedtransaction/closing", "--timeout=2m"]).await.map(drop)
}
