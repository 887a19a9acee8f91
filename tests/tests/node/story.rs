//! From `helm install` to `helm uninstall`.

use std::{collections::BTreeMap, rc::Rc};

use anyhow::{Result, ensure};
use concordat_tests::{node::Node, process::eventually};
use serde_json::json;
use tokio::task::LocalSet;

use crate::{
    bank::Bank,
    installation::Installation,
    isolation,
    kubectl::{self, Plugin},
    life, observed,
};

#[tokio::test]
async fn a_cluster_agrees_from_install_to_uninstall() -> Result<()> {
    LocalSet::new().run_until(story()).await
}

async fn story() -> Result<()> {
    let node = Node::shared().await?;
    let plugin = Plugin::new(node)?;
    let installation = Installation::install(node).await?;
    installation.test().await?;
    let bank = Rc::new(Bank::open(node).await?);
    let mut made = BTreeMap::new();

    agrees(&bank, &mut made).await?;
    kubectl::works(&plugin, &installation, &bank).await?;
    observed::all_of_it(&installation, &bank).await?;
    life::rolls(&installation, &bank, &mut made).await?;
    life::no_operator(&installation, &plugin, &bank, &mut made).await?;
    life::short_of_memory(&bank, &mut made).await?;
    life::drained(&bank, &mut made).await?;
    life::job_ends(&bank).await?;
    isolation::holds(node, &bank).await?;

    installation.uninstall().await?;
    installation.left_nothing().await?;
    // Neither finalizer nor webhook keeps the namespace.
    let name = bank.namespace.name();
    node.kubectl(&["delete", "namespace", name, "--timeout=3m"]).await?;
    Ok(())
}

/// What `make demo` shows: payments that are made and that are not, one holder at a time, a message that nobody can read.
async fn agrees(bank: &Bank, made: &mut BTreeMap<String, i64>) -> Result<()> {
    let (status, paid) = bank.pay("first", 30).await?;
    ensure!(status == 200 && paid["outcome"] == "committed", "{status}: {paid}");
    made.insert("first".into(), 30);
    let (status, refused) = bank.pay("too-much", 1_000_000).await?;
    ensure!(status == 409 && refused["outcome"] == "aborted", "{status}: {refused}");
    bank.adds_up(made).await?;

    let lock = "locks/accounts/counter";
    let (status, held) = bank.sidecar("teller", "POST", lock, &[], None).await?;
    ensure!(status == 200, "{status}: {held}");
    let (status, other) = bank.sidecar("worker", "POST", lock, &[], None).await?;
    ensure!(status == 409, "two hold it: {status} {other}");
    let token = held["token"].as_str().unwrap_or_default();
    let (status, _) = bank.sidecar("teller", "DELETE", lock, &[("Lock-Token", token)], None).await?;
    ensure!(status == 204, "{status}");
    let (status, next) = bank.sidecar("worker", "POST", &format!("{lock}?wait=10s"), &[], None).await?;
    ensure!(status == 200 && next["fence"].as_i64() > held["fence"].as_i64(), "{held}, then {next}");

    let poison = json!({"accuont": "typo"});
    let (status, answer) =
        bank.sidecar("teller", "POST", "queues/statements/messages", &[], Some(&poison)).await?;
    ensure!(status == 201, "{status}: {answer}");
    bank.ask_for_statements(&["ada".into(), "bob".into()]).await?;
    bank.wrote_statements(&["ada".into(), "bob".into()]).await?;
    eventually("what nobody can read is set aside", async || {
        let (_, dead) = bank.sidecar("ledger", "GET", "queues/statements/dead", &[], None).await?;
        ensure!(dead["messages"][0]["body"] == poison, "{dead}");
        Ok(())
    })
    .await?;
    // What operators of a cluster look at.
    eventually("the status tells of it", async || {
        let dead = bank.namespace.kubectl(&[
            "get",
            "queue.concordat.dev/statements",
            "-o",
            "jsonpath={.status.dead}",
        ]);
        ensure!(dead.await? == "1", "it does not");
        Ok(())
    })
    .await
}
