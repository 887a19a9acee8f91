//! How often a lock is found held, by which people find the one that is fought for.

use anyhow::Result;
use concordat_protocol::lock::Mode;
use reqwest::StatusCode;
use serde_json::json;

use crate::world::{World, fair, settings};

fn contended(count: u32) -> String {
    format!("concordat_sidecar_lock_contended_total {count}")
}

#[tokio::test]
async fn a_call_that_finds_a_lock_held_is_counted_once_by_the_sidecar_it_came_to() -> Result<()> {
    let world = World::one().await?;
    world.define("fair", fair()).await?;
    world.define("lease", concordat_protocol::lock::Settings { mode: Mode::Lease, ..settings() }).await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let body = || json!({"ttl": "1m"});
    let mut met = 0;
    for lock in ["orders", "fair", "lease"] {
        let path = format!("{lock}/k");
        for _ in 0..2 {
            let free = world.acquire(&a, &path, body()).await?;
            assert_eq!(free.status, StatusCode::OK, "{free:?}");
            world.let_go(&a, &path, &free).await?;
        }
        // It may stay with a sidecar that does not hold it: b waits, but not for a holder.
        let stayed = world.acquire(&b, &format!("{path}?wait=1m"), body()).await?;
        assert_eq!(stayed.status, StatusCode::OK, "{stayed:?}");
        world.let_go(&b, &path, &stayed).await?;
        b.counts(&contended(met)).await?;

        let held = world.acquire(&a, &format!("{path}?wait=1m"), body()).await?;
        assert_eq!(world.acquire(&b, &path, body()).await?.code(), "lock-held");
        b.counts(&contended(met + 1)).await?;
        let next = b.wait(&path, body());
        b.counts(&contended(met + 2)).await?;
        assert_eq!(world.let_go(&a, &path, &held).await?.status, StatusCode::NO_CONTENT);
        let next = next.await??;
        // The same of one that is held by a caller of the same sidecar.
        let last = b.wait(&path, body());
        met += 3;
        b.counts(&contended(met)).await?;
        assert_eq!(world.let_go(&b, &path, &next).await?.status, StatusCode::NO_CONTENT);
        let last = last.await??;
        assert_eq!(last.status, StatusCode::OK, "{last:?}");
        assert_eq!(world.let_go(&b, &path, &last).await?.status, StatusCode::NO_CONTENT);
        b.counts(&contended(met)).await?;
    }
    a.counts(&contended(0)).await?;
    Ok(())
}
