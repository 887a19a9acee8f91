//! What it starts, and what keeps it from starting.

use std::net::TcpListener;

use anyhow::Result;
use concordat_tests::{etcd::Etcd, process::Process};

use crate::world::{Dev, LOCK, Manifests, QUEUE, TRANSACTION, command};

#[tokio::test]
async fn it_says_what_it_started_and_all_of_it_works() -> Result<()> {
    let files = [("lock.yaml", LOCK), ("queue.yml", QUEUE), ("readme.md", "no manifest")];
    let manifests = Manifests::new(&files)?;
    // One file may hold several objects, and those of others.
    manifests.write(
        "two.yaml",
        &format!("{TRANSACTION}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: other}}\n"),
    )?;
    let dev = Dev::start(&manifests, &[]).await?;
    let log = dev.process.log();
    for said in [
        format!("etcd      {}  data in {}, removed at the end", dev.etcd()?, dev.data()?.display()),
        "lock      orders  ready".into(),
        "queue     mails  ready".into(),
        "tx        pay  ready".into(),
        format!("sidecar   accounts  http://127.0.0.1:{}  calls its app on 127.0.0.1:", dev.port),
        format!("ready     look with: concordat get locks --etcd {}", dev.etcd()?),
    ] {
        assert!(log.contains(&said), "{said:?} is missing in:\n{log}");
    }
    assert_eq!(dev.children()?.len(), 2, "etcd and a sidecar");
    assert_eq!(dev.acquire("1").await?.status, 200);
    assert_eq!(dev.send("POST", "/v1/queues/mails/messages", "{}").await?.status, 201);
    let paid = dev.send("POST", "/v1/transactions/pay?wait=30s", "{}").await?;
    assert_eq!((paid.status, &paid.body["outcome"]), (200, &"committed".into()), "{paid:?}");
    Ok(())
}

#[tokio::test]
async fn a_given_etcd_is_used_and_left_running() -> Result<()> {
    let etcd = Etcd::start().await?;
    let manifests = Manifests::new(&[("lock.yaml", LOCK)])?;
    let mut dev = Dev::start(&manifests, &["--etcd", &etcd.endpoint(0), "--namespace", "shop"]).await?;
    assert_eq!(dev.etcd()?, etcd.endpoint(0));
    assert_eq!(dev.children()?.len(), 1, "a sidecar and no etcd");
    assert_eq!(dev.acquire("1").await?.status, 200);
    assert!(dev.process.terminate().await?.success());
    let mut client = etcd.client().await?;
    let kept = client.get("/concordat/shop/def/lock/orders", None).await?;
    assert_eq!(kept.kvs().len(), 1, "what is defined stays");
    Ok(())
}

/// What a sidecar writes can be told from what `dev` writes, and from other sidecars' lines.
#[tokio::test]
async fn a_sidecar_s_lines_carry_its_app_s_name() -> Result<()> {
    let mut etcd = Etcd::start().await?;
    let manifests = Manifests::new(&[("lock.yaml", LOCK)])?;
    let dev = Dev::start(&manifests, &["--etcd", &etcd.endpoint(0)]).await?;
    etcd.kill(0)?;
    dev.says("accounts  | ").await
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let manifests = Manifests::new(&[])?;
    for (sidecar, said) in [
        (format!("accounts:{port}:1"), format!("--sidecar: port {port} is not free for accounts")),
        ("accounts".into(), "write it as in accounts:4701:8081".into()),
    ] {
        let mut dev = Process::start("dev", command(&manifests, &sidecar, &[])?)?;
        assert!(!dev.wait().await?.success());
        assert!(dev.log().contains(&said), "{}", dev.log());
    }
    Ok(())
}

/// Not waited for in silence, as etcd would.
#[tokio::test]
async fn data_in_use_is_refused() -> Result<()> {
    let data = tempfile::tempdir()?;
    let manifests = Manifests::new(&[("lock.yaml", LOCK)])?;
    let flags = ["--data", data.path().to_str().unwrap_or_default()];
    let _first = Dev::start(&manifests, &flags).await?;
    let sidecar = format!("accounts:{}:1", concordat_tests::process::free_port()?);
    let mut second = Process::start("second", command(&manifests, &sidecar, &flags)?)?;
    assert!(!second.wait().await?.success());
    assert!(second.log().contains("another `concordat dev` uses"), "{}", second.log());
    Ok(())
}
