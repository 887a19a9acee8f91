//! `concordat get`: what the operator would show.

use anyhow::{Context, Result, ensure};
use concordat_tests::process::eventually;
use serde_json::Value;

use crate::world::{Dev, LOCK, Manifests, QUEUE, TRANSACTION, get};

#[tokio::test]
async fn it_prints_what_is_held_queued_and_done() -> Result<()> {
    let files = [("lock.yaml", LOCK), ("queue.yaml", QUEUE), ("tx.yaml", TRANSACTION)];
    let dev = Dev::start(&Manifests::new(&files)?, &[]).await?;
    let etcd = dev.etcd()?;
    for (path, body, status) in [
        ("/v1/locks/orders/42", r#"{"owner": "me"}"#, 200),
        ("/v1/queues/mails/messages", "{}", 201),
        ("/v1/transactions/pay?wait=30s", "{}", 200),
    ] {
        let answer = dev.send("POST", path, body).await?;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }

    // What is held is told after 2 s.
    eventually("the holder is told", async || {
        let locks = get(&etcd, &["locks"])?;
        let rows: Vec<Vec<&str>> = locks
            .lines()
            .map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        ensure!(
            rows[0] == ["NAME", "READY", "HELD", "WAITERS", "OLDEST WAIT", "FIRST KEY", "OWNER", "FENCE"]
        );
        ensure!(rows[1][..7] == ["orders", "True", "1", "0", "-", "42", "me"], "{locks}");
        Ok(())
    })
    .await?;

    let queues = get(&etcd, &["queues"])?;
    assert!(queues.lines().nth(1).is_some_and(|row| row.starts_with("mails   True    1  ")), "{queues}");

    let everywhere = get(&etcd, &["lock", "-A"])?;
    assert!(everywhere.starts_with("NAMESPACE   NAME     READY"), "{everywhere}");
    assert!(everywhere.lines().nth(1).is_some_and(|row| row.starts_with("default     orders   True")));
    let yaml: Value = serde_saphyr::from_str(&get(&etcd, &["queues", "-o", "yaml"])?)?;
    assert_eq!((&yaml[0]["namespace"], &yaml[0]["name"]), (&"default".into(), &"mails".into()), "{yaml}");

    // Sidecars count transactions, and put their counters within 2 s.
    eventually("the counters are put", async || {
        let printed: Value = serde_json::from_str(&get(&etcd, &["transactions", "--output", "json"])?)?;
        let pay = printed.as_array().and_then(|all| all.first()).context("nothing")?;
        ensure!(pay["name"] == "pay" && pay["ready"] == "True", "{pay}");
        ensure!(pay["status"]["committed"] == 1 && pay["status"]["aborted"] == 0, "{pay}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named() -> Result<()> {
    let url = format!("http://127.0.0.1:{}", concordat_tests::process::free_port()?);
    let error = get(&url, &["locks"]).expect_err("nothing listens there").to_string();
    assert!(error.contains(&url) && error.contains("does `concordat dev` run?"), "{error}");
    Ok(())
}
