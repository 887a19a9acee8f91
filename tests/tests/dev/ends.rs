//! However it ends, nothing that it started outlives it, and what is to be kept is kept.

use anyhow::{Result, ensure};
use concordat_tests::process::eventually;

use crate::world::{Dev, LOCK, Manifests, TRANSACTION, are_gone};

#[tokio::test]
async fn told_to_end_it_leaves_nothing() -> Result<()> {
    let manifests = Manifests::new(&[("lock.yaml", LOCK)])?;
    for interrupted in [true, false] {
        let mut dev = Dev::start(&manifests, &[]).await?;
        assert_eq!(dev.acquire("1").await?.status, 200);
        let (children, data) = (dev.children()?, dev.data()?);
        assert!(data.is_dir());
        let status =
            if interrupted { dev.process.interrupt().await? } else { dev.process.terminate().await? };
        assert!(status.success(), "{status}");
        are_gone(&children).await?;
        assert!(!data.exists(), "{} is left", data.display());
    }
    Ok(())
}

#[tokio::test]
async fn killed_it_leaves_nothing_for_long() -> Result<()> {
    let manifests = Manifests::new(&[("lock.yaml", LOCK)])?;
    let mut dev = Dev::start(&manifests, &[]).await?;
    let (children, data) = (dev.children()?, dev.data()?);
    assert!(data.is_dir());
    dev.process.kill()?;
    are_gone(&children).await?;
    // The next one removes what is left on the disk.
    let _next = Dev::start(&manifests, &[]).await?;
    assert!(!data.exists(), "{} is left", data.display());
    Ok(())
}

#[tokio::test]
async fn data_is_kept_from_one_run_to_the_next() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let flags = ["--data", folder.path().to_str().unwrap_or_default()];
    let manifests = Manifests::new(&[("lock.yaml", LOCK), ("tx.yaml", TRANSACTION)])?;
    let mut dev = Dev::start(&manifests, &flags).await?;
    let done = dev.send("POST", "/v1/transactions/pay?wait=30s", "{}").await?;
    assert_eq!(done.status, 200, "{done:?}");
    let path = format!("/v1/transactions/pay/{}", done.body["id"].as_str().unwrap_or_default());
    let fence = dev.acquire("1").await?.body["fence"].as_u64();
    manifests.write("lock.yaml", &LOCK.replace("15s", "20s"))?;
    dev.says("lock      orders  ready, generation 2").await?;

    for killed in [true, false] {
        if killed {
            dev.process.kill()?;
        } else {
            assert!(dev.process.terminate().await?.success());
        }
        dev = Dev::start(&manifests, &flags).await?;
        assert!(dev.process.log().contains("lock      orders  ready, generation 2"), "{}", dev.process.log());
        let found = dev.send("GET", &path, "").await?;
        assert_eq!((found.status, &found.body["outcome"]), (200, &"committed".into()), "{found:?}");
        // Held by a session that is over by now, or is about to be.
        eventually("the lock is granted, with a higher fence", async || {
            let granted = dev.acquire("1").await?;
            ensure!(granted.status == 200 && granted.body["fence"].as_u64() > fence, "{granted:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
