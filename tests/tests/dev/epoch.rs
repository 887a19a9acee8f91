//! etcd's data are put back to an older state: noticed by what lies beside them, and gone on with by `concordat epoch`.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};
use concordat_tests::process::binary;

use crate::world::{Answer, Dev, LOCK, Manifests, concordat, get};

/// What `concordat epoch` prints, and whether it succeeded.
fn epoch(etcd: &str, arguments: &[&str]) -> Result<(bool, String)> {
    let command = [&["epoch", arguments[0], "--etcd", etcd], &arguments[1..]].concat();
    let output = Command::new(binary("concordat")?).args(command).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(text)?))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").args([from, to]).status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

fn fence(answer: &Answer) -> u64 {
    answer.body["fence"].as_u64().unwrap_or_default()
}

#[tokio::test]
async fn data_that_were_put_back_are_refused_until_the_command_has_raised_the_epoch() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, backup) = (folder.path().join("dev"), folder.path().join("backup"));
    let flags = ["--data", data.to_str().unwrap_or_default()];
    let manifests = Manifests::new(&[("lock.yaml", LOCK)])?;
    let mut dev = Dev::start(&manifests, &flags).await?;
    ensure!(dev.acquire("1").await?.status == 200);
    ensure!(dev.process.terminate().await?.success());
    copy(&data.join("data"), &backup)?;

    let mut dev = Dev::start(&manifests, &flags).await?;
    let before = dev.acquire("2").await?;
    let (shown, text) = epoch(&dev.etcd()?, &["show"])?;
    ensure!(shown && text.starts_with("default: epoch 0, revision ") && text.ends_with(": ok\n"), "{text}");
    let (raised, text) = epoch(&dev.etcd()?, &["raise"])?;
    ensure!(
        !raised && text.contains("no sign of having been restored") && text.contains("--force"),
        "{text}"
    );
    ensure!(dev.process.terminate().await?.success());
    std::fs::remove_dir_all(data.join("data"))?;
    copy(&backup, &data.join("data"))?;

    let dev = Dev::starting(&manifests, &flags).await?;
    dev.says("restored  etcd was restored from a snapshot (etcd had revision ").await?;
    let etcd = dev.etcd()?;
    ensure!(
        dev.process.log().contains(&format!("concordat epoch raise --etcd {etcd} --namespace default")),
        "{}",
        dev.process.log()
    );
    let (shown, text) = epoch(&etcd, &["show", "--namespace", "default"])?;
    ensure!(shown && text.contains("restored (etcd had revision "), "{text}");
    for arguments in [&["describe", "lock", "orders", "2"][..], &["check"]] {
        let told = concordat(&etcd, arguments).expect_err("nothing is served").to_string();
        ensure!(told.contains("concordat epoch raise --namespace default"), "{arguments:?}: {told}");
    }
    let (raised, text) = epoch(&etcd, &["raise", "--namespace", "default"])?;
    ensure!(raised && text.starts_with("default: epoch 1 has begun at revision "), "{text}");
    dev.says("ready     ").await?;
    let after = dev.acquire("2").await?;
    ensure!(fence(&after) > fence(&before) && fence(&before) > 0, "{after:?} after {before:?}");
    let (_, text) = epoch(&etcd, &["show"])?;
    ensure!(text.starts_with("default: epoch 1, ") && text.ends_with(": ok\n"), "{text}");
    concordat_tests::process::eventually("what is shown is the fence that was given", async || {
        let held = get(&etcd, &["locks", "--output", "json"])?;
        ensure!(held.contains(&fence(&after).to_string()), "{held}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_cannot_be_asked_of_it_is_refused_with_what_to_change() -> Result<()> {
    let etcd = concordat_tests::etcd::Etcd::start().await?;
    for (arguments, says) in [
        (&["raise", "--above=-1"][..], "--above"),
        (&["raise", "--above=9007199254740992"], "--above"),
        (&["raise"], "name one with --namespace"),
        (&["show", "--nothing"], "--nothing"),
    ] {
        let (done, text) = epoch(&etcd.endpoint(0), arguments)?;
        ensure!(!done && text.contains(says), "{arguments:?}: {text}");
    }
    let (done, text) = epoch("http://127.0.0.1:1", &["show"])?;
    ensure!(!done && text.contains("--etcd names another address"), "{text}");
    Ok(())
}
