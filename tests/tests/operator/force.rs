//! A lock taken from its holder by force.

use concordat_crds::{Lock, names::FORCE_RELEASE_ANNOTATION};
use concordat_protocol::Key;
use concordat_tests::process::eventually;
use futures::StreamExt;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::world::World;

async fn annotate(world: &World, text: &str) {
    let patch = Patch::Merge(json!({ "metadata": { "annotations": { FORCE_RELEASE_ANNOTATION: text } } }));
    world.api::<Lock>().patch("orders", &PatchParams::default(), &patch).await.unwrap();
    let done = |lock: &Value| lock.pointer("/metadata/annotations").is_none_or(|of| of == &json!({}));
    world.until::<Lock>("orders", "the annotation is done with", done).await;
}

#[tokio::test]
async fn the_holder_with_the_fence_is_told_that_it_is_lost_and_no_other_is_hit() {
    hits_the_fence_alone(
        "the_holder_with_the_fence_is_told_that_it_is_lost_and_no_other_is_hit",
        "CompareAndSwap",
    )
    .await;
}

#[tokio::test]
async fn the_first_of_a_line_is_told_that_it_is_lost_and_the_next_is_not_hit() {
    hits_the_fence_alone("the_first_of_a_line_is_told_that_it_is_lost_and_the_next_is_not_hit", "FairQueue")
        .await;
}

async fn hits_the_fence_alone(test: &'static str, mode: &str) {
    let world = World::start(test).await;
    let _operator = world.operator("operator").await;
    world.create::<Lock>("orders", json!({ "mode": mode, "ttl": "1m" })).await;
    world.stands::<Lock>("orders", "True", "Accepted").await;
    let sidecar = world.sidecar("shop", None).await;
    let (client, url) = (reqwest::Client::new(), format!("{}/locks/orders/k", sidecar.url));
    let acquire = async || {
        eventually("the lock is granted", async || {
            let answer = client.post(&url).json(&json!({ "ttl": "1h" })).send().await?.error_for_status()?;
            Ok(answer.json::<Value>().await?)
        })
        .await
        .unwrap()
    };
    let first = acquire().await;
    let token = first["token"].as_str().unwrap();
    let events = client.get(format!("{url}/events")).header("Lock-Token", token).send().await.unwrap();

    annotate(&world, &format!("k={}", first["fence"])).await;
    let told = events.bytes_stream().map(|chunk| chunk.unwrap()).collect::<Vec<_>>().await.concat();
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("event: lost"), "the stream ended with {told}");
    let renewed = client.put(&url).header("Lock-Token", token).send().await.unwrap();
    assert_eq!(renewed.status(), 410);

    // The fence of the first is not that of the second.
    let second = acquire().await;
    assert!(second["fence"].as_u64() > first["fence"].as_u64());
    annotate(&world, &format!("k={}", first["fence"])).await;
    annotate(&world, "k").await;
    let holds = |key: &Key| matches!(key, Key::Holder { .. } | Key::Waiter { .. });
    assert!(world.state().await.keys().any(holds), "the later holder keeps it");
    let token = second["token"].as_str().unwrap();
    let renewed = client.put(&url).header("Lock-Token", token).send().await.unwrap();
    assert_eq!(renewed.status(), 200);
    eventually("all three are told", async || {
        let told = world.events("orders").await;
        anyhow::ensure!(
            told.iter().any(|(reason, _)| reason == "ForceReleased")
                && told
                    .iter()
                    .filter(|(reason, _)| reason == "ForceReleaseRefused")
                    .map(|(_, n)| n)
                    .sum::<i32>()
                    == 2,
            "{told:?}"
        );
        Ok(())
    })
    .await
    .unwrap();
    let lock: Lock = world.api().get("orders").await.unwrap();
    assert!(lock.annotations().is_empty());
}
