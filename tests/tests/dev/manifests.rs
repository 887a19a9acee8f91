//! Files come, change and go while it runs; it takes what a cluster would take.

use anyhow::Result;

use crate::world::{Dev, LOCK, Manifests, QUEUE};

const ACQUIRE: &str = "/v1/locks/orders/1";

#[tokio::test]
async fn files_are_followed() -> Result<()> {
    let manifests = Manifests::new(&[("queue.yaml", QUEUE)])?;
    let dev = Dev::start(&manifests, &[]).await?;
    assert_eq!(dev.acquire("1").await?.status, 404);

    manifests.write("lock.yaml", LOCK)?;
    dev.answers("POST", ACQUIRE, 200).await?;
    manifests.write("lock.yaml", &LOCK.replace("15s", "7s"))?;
    dev.says("lock      orders  ready, generation 2").await?;
    manifests.remove("lock.yaml")?;
    dev.says("lock      orders  removed").await?;
    dev.answers("POST", ACQUIRE, 404).await?;
    // It comes back as another object, once what the first one left is gone: the lock was held.
    manifests.write("lock.yaml", LOCK)?;
    dev.answers("POST", ACQUIRE, 200).await?;
    Ok(())
}

#[tokio::test]
async fn a_malformed_file_disturbs_no_other() -> Result<()> {
    let bad = "metadata: [";
    let manifests = Manifests::new(&[("bad.yaml", bad), ("queue.yaml", QUEUE)])?;
    let dev = Dev::start(&manifests, &[]).await?;
    dev.says("bad.yaml  not taken: ").await?;
    assert_eq!(dev.send("POST", "/v1/queues/mails/messages", "{}").await?.status, 201);

    manifests.write("lock.yaml", LOCK)?;
    dev.answers("POST", ACQUIRE, 200).await?;
    // A file that is no longer readable counts as it was.
    manifests.write("queue.yaml", bad)?;
    dev.says("queue.yaml  not taken: ").await?;
    manifests.write("lock.yaml", &LOCK.replace("15s", "7s"))?;
    dev.says("lock      orders  ready, generation 2").await?;
    assert_eq!(dev.send("POST", "/v1/queues/mails/messages", "{}").await?.status, 201);

    // Nor does an object disturb those in the same file.
    manifests.remove("bad.yaml")?;
    manifests.write(
        "queue.yaml",
        &format!("{}---{}", LOCK.replace("orders", "O_o"), QUEUE.replace("mails", "news")),
    )?;
    dev.says("lock      O_o  not in force: metadata.name must be an object's name").await?;
    dev.answers("GET", "/v1/queues/news", 200).await?;
    dev.says("queue     mails  removed").await
}

/// As `kubectl apply` refuses them: what runs stays as it was.
#[tokio::test]
async fn what_a_cluster_refuses_is_refused() -> Result<()> {
    let manifests = Manifests::new(&[("lock.yaml", LOCK)])?;
    let dev = Dev::start(&manifests, &[]).await?;
    for (change, said) in [
        (
            ("ttl: 15s", "ttll: 15s"),
            "spec.ttll is not a field: those of spec are daprStore, kind, lockDelay, ",
        ),
        (("{name: orders}", "{name: orders, lables: {}}"), "metadata.lables is not a field of metadata"),
        (("CompareAndSwap", "Lease"), "spec.mode is immutable: change it back, or delete the object"),
        (("ttl: 15s", "ttl: 1s"), "spec.ttl must be between 2s and 24h, not 1s"),
        (("CompareAndSwap", "compareandswap"), "unknown variant `compareandswap`"),
        (
            ("{name: orders}", "{name: orders, namespace: shop}"),
            "metadata.namespace is shop, and this is default: ",
        ),
    ] {
        manifests.write("lock.yaml", &LOCK.replace(change.0, change.1))?;
        dev.says(&format!("lock      orders  not in force: {said}")).await?;
        assert!(!dev.process.log().contains("orders  removed"), "{change:?}");
        assert_eq!(dev.send("GET", ACQUIRE, "").await?.status, 200, "{change:?}");
    }
    manifests.write("lock.yaml", &LOCK.replace("15s", "20s"))?;
    dev.says("lock      orders  ready, generation 2").await?;
    assert_eq!(dev.acquire("1").await?.status, 200);
    Ok(())
}
