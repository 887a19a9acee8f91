//! The sidecar that a command starts to ask: it adopts nothing and leaves nothing behind.

use std::{collections::BTreeMap, os::unix::fs::symlink, process::Command};

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use concordat_tests::{
    etcd::Etcd,
    process::{binary, eventually},
};
use etcd_client::GetOptions;
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{Dev, Manifests, QUEUE, TRANSACTION, concordat};

/// Every key of etcd with the revision at which it was last written: but for the namespace's timeline, into which every
/// sidecar writes how far it saw etcd.
async fn keys(etcd: &Etcd) -> Result<BTreeMap<String, i64>> {
    let options = GetOptions::new().with_prefix();
    let found = etcd.client().await?.get("/", Some(options)).await?;
    let keys = found.kvs().iter().map(|kv| Ok((kv.key_str()?.to_owned(), kv.mod_revision())));
    keys.filter(|key| key.as_ref().map_or(true, |(key, _)| !key.ends_with("/timeline"))).collect()
}

#[tokio::test]
async fn what_has_no_owner_is_left_as_it_is_and_nothing_stays_behind() -> Result<()> {
    let etcd = Etcd::start().await?;
    let url = etcd.endpoint(0);
    let files = [("tx.yaml", TRANSACTION), ("queue.yaml", QUEUE)];
    let manifests = Manifests::new(&files)?;
    let dev = Dev::start(&manifests, &["--etcd", &url]).await?;
    dev.app_answers("/prepare", StatusCode::SERVICE_UNAVAILABLE);
    let begun = dev.send("POST", "/v1/transactions/pay", "{}").await?;
    ensure!(begun.status == 202, "{begun:?}");
    let id = begun.body["id"].as_str().context("no id")?;

    // Its only sidecar is killed: from then on it has no coordinator.
    let [sidecar] = dev.children()?[..] else { anyhow::bail!("a sidecar and no etcd") };
    kill_process(Pid::from_raw(sidecar.cast_signed()).context("no process")?, Signal::KILL)?;
    let before = eventually("the session of what was killed is over", async || {
        let keys = keys(&etcd).await?;
        ensure!(!keys.keys().any(|key| key.contains("/default/session/")), "{keys:?}");
        Ok(keys)
    })
    .await?;
    let refused =
        concordat(&url, &["tx", "rollback", "pay", id, "--wait", "4s"]).expect_err("nobody is there");
    assert!(refused.to_string().contains("no-coordinator"), "{refused}");
    for arguments in
        [&["describe", "tx", "pay", id][..], &["describe", "queue", "mails"], &["queue", "peek", "mails"]]
    {
        concordat(&url, arguments)?;
    }
    assert_eq!(keys(&etcd).await?, before);

    // A namespace in which nobody ever was stays one.
    let other =
        concordat(&url, &["describe", "tx", "pay", "--namespace", "other"]).expect_err("nobody is there");
    assert!(other.to_string().contains("(of which etcd knows: default)"), "{other}");
    assert_eq!(keys(&etcd).await?, before);
    Ok(())
}

#[tokio::test]
async fn it_is_a_plugin_of_kubectl_by_its_name_and_completes_itself() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let plugin = folder.path().join("kubectl-concordat");
    symlink(binary("concordat")?, &plugin)?;
    let help = Command::new(&plugin).arg("--help").output()?;
    let help = String::from_utf8(help.stdout)?;
    assert!(help.contains("Usage: kubectl concordat <COMMAND>"), "{help}");
    let version = Command::new(&plugin).args(["version", "--client", "-o", "json"]).output()?;
    let version: serde_json::Value = serde_json::from_slice(&version.stdout)?;
    assert_eq!(version, serde_json::json!({"client": env!("CARGO_PKG_VERSION")}));
    for shell in ["bash", "zsh", "fish"] {
        let printed = Command::new(&plugin).args(["completion", shell]).output()?;
        let printed = String::from_utf8(printed.stdout)?;
        assert!(
            printed.contains("rollback") && printed.contains("concordat-namespace"),
            "{shell}: {printed}"
        );
    }
    // bash takes it.
    let printed = Command::new(&plugin).args(["completion", "bash"]).output()?;
    let checked = Command::new("bash").arg("-nc").arg(String::from_utf8(printed.stdout)?).output()?;
    assert!(checked.status.success(), "{checked:?}");
    Ok(())
}
