//! `concordat describe lock` and `concordat lock release`.

use anyhow::{Result, ensure};
use concordat_tests::process::eventually;

use crate::world::{Dev, LOCK, Manifests, concordat, json, rows};

const FAIR: &str = "
apiVersion: concordat.dev/v1alpha1
kind: Lock
metadata: {name: orders}
spec: {mode: FairQueue, ttl: 15s}
";

const HOLDERS: &[&str] = &["KEY", "POD", "OWNER", "FENCE", "SINCE", "STATE"];
const WAITERS: &[&str] = &["KEY", "POD", "OWNER", "CALLERS"];

#[tokio::test]
async fn who_holds_and_who_waits_is_shown_by_name() -> Result<()> {
    let dev = Dev::start(&Manifests::new(&[("lock.yaml", FAIR)])?, &[]).await?;
    let etcd = dev.etcd()?;
    let held = dev.send("POST", "/v1/locks/orders/a%2Fb", r#"{"owner": "first"}"#).await?;
    ensure!(held.status == 200, "{held:?}");
    let fence = held.body["fence"].to_string();
    let waits = dev.send("POST", "/v1/locks/orders/a%2Fb?wait=5m", r#"{"owner": "second"}"#);
    let shown = async {
        eventually("the waiter is shown", async || {
            let told = concordat(&etcd, &["describe", "lock", "orders"])?;
            let (holders, waiters) = (rows(&told, HOLDERS), rows(&told, WAITERS));
            ensure!(holders.len() == 1 && waiters.len() == 1, "{told}");
            ensure!(holders[0][..4] == ["a/b", "accounts-0", "first", &fence], "{told}");
            ensure!(waiters[0][..4] == ["a/b", "accounts-0", "second", "1"], "{told}");
            Ok(())
        })
        .await?;
        let one = json(&etcd, &["describe", "lock", "orders", "a/b"])?;
        assert_eq!((&one["holders"][0]["owner"], &one["waiters"]), (&"first".into(), &1.into()), "{one}");
        // By force, and only who has this fence.
        let release = ["lock", "release", "orders", "a/b", "--fence"];
        let told = concordat(&etcd, &[&release[..], &[&fence]].concat())?;
        assert!(
            told.starts_with("released: \"a/b\" was taken from pod \"accounts-0\", owner \"first\""),
            "{told}"
        );
        let again = concordat(&etcd, &[&release[..], &[&fence]].concat()).expect_err("another has it by now");
        assert!(again.to_string().contains("is not held with fence"), "{again}");
        Ok::<_, anyhow::Error>(())
    };
    // Whoever waited has it then.
    let (granted, shown) = tokio::join!(waits, shown);
    shown?;
    assert_eq!(granted?.status, 200);
    Ok(())
}

#[tokio::test]
async fn callers_of_a_lock_that_knows_no_line_are_counted() -> Result<()> {
    let dev = Dev::start(&Manifests::new(&[("lock.yaml", LOCK)])?, &[]).await?;
    let etcd = dev.etcd()?;
    ensure!(dev.acquire("1").await?.status == 200);
    let waits = dev.send("POST", "/v1/locks/orders/1?wait=5m", "");
    let shown = eventually("the waiter is counted", async || {
        let told = json(&etcd, &["describe", "lock", "orders"])?;
        ensure!(told["waiters"][0]["callers"] == 1 && told["waiters"][0]["pod"] == "accounts-0", "{told}");
        Ok(())
    });
    tokio::select! {
        answer = waits => anyhow::bail!("another holds it: {answer:?}"),
        shown = shown => shown,
    }
}

#[tokio::test]
async fn what_is_not_there_is_said() -> Result<()> {
    let dev = Dev::start(&Manifests::new(&[("lock.yaml", LOCK)])?, &[]).await?;
    let etcd = dev.etcd()?;
    for (arguments, said) in [
        (&["describe", "lock", "order"][..], "there is no lock \"order\" in namespace \"default\""),
        (&["lock", "release", "order", "k", "--fence", "1"], "there is no Lock \"order\""),
        (&["lock", "release", "orders", "k", "--fence", "1"], "nobody holds \"k\": nothing was released"),
        (&["lock", "release", "orders", "k"], "--fence"),
        (&["lock", "release", "orders", "k", "--fence", "x"], "--fence"),
        (&["describe", "lock", "orders", "."], "names nothing that can be asked for"),
    ] {
        let error = concordat(&etcd, arguments).expect_err("it is not there").to_string();
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    let told = json(&etcd, &["describe", "lock", "orders", "-"])?;
    assert_eq!(told["holders"], serde_json::json!([]), "{told}");
    Ok(())
}
