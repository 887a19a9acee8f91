//! `concordat describe transaction` and `concordat tx`.

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use concordat_tests::process::eventually;

use crate::world::{Dev, Manifests, TRANSACTION, concordat, json, rows};

const BRANCHES: &[&str] = &["NAME", "STATE", "ATTEMPTS", "LAST ERROR"];

/// Begins a transaction whose commit the app refuses, and waits until that is told.
async fn stuck(dev: &Dev) -> Result<String> {
    dev.app_answers("/commit", StatusCode::CONFLICT);
    let begun = dev.send("POST", "/v1/transactions/pay?wait=30s", "{}").await?;
    ensure!(begun.status == 200, "{begun:?}");
    let id = begun.body["id"].as_str().context("no id")?.to_owned();
    eventually("it is stuck", async || {
        let told = json(&dev.etcd()?, &["describe", "transaction", "pay", &id])?;
        ensure!(told["state"] == "stuck" && told["outcome"] == "committed", "{told}");
        Ok(())
    })
    .await?;
    Ok(id)
}

async fn finishes(dev: &Dev, id: &str, branch: &str) -> Result<()> {
    eventually("it is finished", async || {
        let told = json(&dev.etcd()?, &["describe", "tx", "pay", id])?;
        ensure!(told["state"] == "finished" && told["branches"][0]["state"] == branch, "{told}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_is_stuck_is_described_and_tried_again() -> Result<()> {
    let dev = Dev::start(&Manifests::new(&[("tx.yaml", TRANSACTION)])?, &[]).await?;
    let etcd = dev.etcd()?;
    let id = stuck(&dev).await?;
    let told = concordat(&etcd, &["describe", "tx", "pay", &id])?;
    assert!(told.contains("Outcome:       committed\n") && told.contains("State:         stuck\n"), "{told}");
    let branches = rows(&told, BRANCHES);
    assert_eq!(branches.len(), 1, "{told}");
    assert_eq!(branches[0][..2], ["debit", "stuck"], "{told}");
    assert!(branches[0][3].contains("409"), "what the app said is the last error: {told}");

    let listed = concordat(&etcd, &["describe", "tx", "pay", "--state", "stuck"])?;
    let listed = rows(&listed, &["ID", "OUTCOME", "STATE"]);
    assert_eq!((listed[0][0], *listed[0].last().unwrap()), (id.as_str(), "debit"));

    dev.app_answers("/commit", StatusCode::OK);
    let tried = json(&etcd, &["tx", "retry", "pay", &id])?;
    assert_eq!(tried["id"], id.as_str());
    finishes(&dev, &id, "applied").await?;
    let refused = concordat(&etcd, &["tx", "retry", "pay", &id]).expect_err("nothing is stuck").to_string();
    assert!(refused.contains("transaction-not-stuck"), "{refused}");
    let refused = concordat(&etcd, &["tx", "rollback", "pay", &id]).expect_err("it is committed").to_string();
    assert!(refused.contains("transaction-committed"), "{refused}");
    let none = json(&etcd, &["describe", "tx", "pay", "--state", "stuck"])?;
    assert_eq!(none["transactions"], serde_json::json!([]));
    Ok(())
}

#[tokio::test]
async fn a_stuck_branch_is_given_up_with_a_reason_that_is_kept() -> Result<()> {
    let dev = Dev::start(&Manifests::new(&[("tx.yaml", TRANSACTION)])?, &[]).await?;
    let etcd = dev.etcd()?;
    let id = stuck(&dev).await?;
    let skip = ["tx", "skip", "pay", &id, "debit"];
    let refused = concordat(&etcd, &skip).expect_err("without a reason").to_string();
    assert!(refused.contains("--reason"), "{refused}");
    concordat(&etcd, &[&skip[..], &["--reason", "paid by hand"]].concat())?;
    finishes(&dev, &id, "skipped").await?;
    let told = concordat(&etcd, &["describe", "tx", "pay", &id])?;
    assert!(told.contains("paid by hand"), "{told}");
    Ok(())
}

#[tokio::test]
async fn what_is_undecided_is_rolled_back() -> Result<()> {
    let dev = Dev::start(&Manifests::new(&[("tx.yaml", TRANSACTION)])?, &[]).await?;
    let etcd = dev.etcd()?;
    dev.app_answers("/prepare", StatusCode::SERVICE_UNAVAILABLE);
    let begun = dev.send("POST", "/v1/transactions/pay", "{}").await?;
    ensure!(begun.status == 202, "{begun:?}");
    let id = begun.body["id"].as_str().context("no id")?;
    let told = concordat(&etcd, &["tx", "rollback", "pay", id, "--wait", "30s"])?;
    assert!(told.contains("Outcome:       aborted\n"), "{told}");
    Ok(())
}

#[tokio::test]
async fn what_is_not_there_is_said() -> Result<()> {
    let dev = Dev::start(&Manifests::new(&[("tx.yaml", TRANSACTION)])?, &[]).await?;
    let etcd = dev.etcd()?;
    for (arguments, said) in [
        (&["describe", "tx", "pay", "nobody"][..], "transaction-not-found"),
        (&["describe", "tx", "pya"], "no-such-transaction"),
        (&["describe", "tx", "pay", "--state", "lost"], "preparing, applying, stuck"),
        (&["describe", "tx", "pay", ".."], "names nothing that can be asked for"),
        (&["describe", "tx", "pay", "--max", "0"], "1..=1000"),
        (&["tx", "retry", "pay", "nobody"], "transaction-not-found"),
        (&["tx", "rollback", "pay", "nobody", "--wait", "soon"], "wait"),
        (&["describe", "tx", "pay", "-n", "elsewhere"], "no sidecar was ever in namespace \"elsewhere\""),
    ] {
        let error = concordat(&etcd, arguments).expect_err("it is not there").to_string();
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    Ok(())
}
