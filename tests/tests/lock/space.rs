//! etcd is full: what gives space back goes, what would take more is refused, and all works again once there is some.

use anyhow::{Result, ensure};
use concordat_protocol::Key;
use concordat_tests::{
    etcd::{Etcd, Settings},
    process::eventually,
};
use etcd_client::DeleteOptions;
use reqwest::StatusCode;
use serde_json::json;

use crate::world::{LOCKS, World};

#[tokio::test]
async fn without_space_locks_are_let_go_and_none_is_taken_until_there_is_some() -> Result<()> {
    let world = World::of_both_modes(Etcd::with(Settings::default().quota(16 << 20)).await?).await?;
    let sidecar = world.sidecar("a").await?;
    let mut held = Vec::new();
    for lock in LOCKS {
        let path = format!("{lock}/k");
        let grant = world.acquire(&sidecar, &path, json!({"ttl": "5m"})).await?;
        assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
        held.push((path, grant));
    }
    let mut client = world.etcd.client().await?;
    let mut filled = 0;
    while client.put(format!("fill/{filled}"), vec![b'x'; 1 << 20], None).await.is_ok() {
        filled += 1;
    }
    ensure!(world.etcd.no_space_alarms().await? > 0, "etcd is not full after {filled} MiB");
    for (path, grant) in &held {
        let new = path.replace("/k", "/new");
        // Until the sidecar has looked, etcd refuses it; either way nothing is taken.
        let refused = eventually("the sidecar takes in nothing", async || {
            let refused = world.acquire(&sidecar, &new, json!({})).await?;
            ensure!(refused.code() == "out-of-space", "{refused:?}");
            Ok(refused)
        })
        .await?;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(world.let_go(&sidecar, path, grant).await?.status, StatusCode::NO_CONTENT);
        world.path_is_free(path).await?;
    }
    let taken =
        |key: &Key| matches!(key, Key::Holder { key, .. } | Key::Waiter { key, .. } if key.as_str() == "new");
    ensure!(!world.changes().await?.iter().any(|change| taken(&change.key)), "a new lock was taken");

    client.delete("fill/", Some(DeleteOptions::new().with_prefix())).await?;
    world.etcd.compact().await?;
    world.etcd.defragment().await?;
    world.etcd.disarm().await?;
    for (path, before) in held {
        let grant = eventually("locks are taken again", async || {
            let grant = world.acquire(&sidecar, &path, json!({})).await?;
            ensure!(grant.status == StatusCode::OK, "{grant:?}");
            Ok(grant)
        })
        .await?;
        assert!(grant.fence() > before.fence());
        world.judge_path(&path).await?;
    }
    Ok(())
}
