//! Queues.

use anyhow::Result;
use concordat_crds::Queue;
use concordat_operator::queue;
use concordat_protocol::{Kind, Settings};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::world::{World, ask};

pub(crate) async fn rows() -> Result<String> {
    let queue = Queue::new("work", serde_json::from_value(json!({"mode": "WorkQueue", "visibility": "5m"}))?);
    let definition = ("work", Kind::Queue, Settings::Queue(queue::compile(&queue)?));
    let world = World::start([definition], &["till"], "queues/work").await?;
    let url = |path: &str| world.sidecars[0].url(&format!("queues/work{path}"));
    let publish = || ask(world.client.post(url("/messages")).json(&json!({"n": 1})));
    let receive = || ask(world.client.post(url("/receive?max=10&wait=5s")));
    let settle = |how: &str, received: &[Value], more: Value| -> RequestBuilder {
        let mut body = more;
        body["receipts"] = received.iter().map(|message| message["receipt"].clone()).collect();
        world.client.post(url(how)).json(&body)
    };
    let ack = |received: &[Value]| ask(settle("/ack", received, json!({})));

    publish().await?;
    ack(&messages(receive().await?)).await?;
    world.count("queue: publish 1", publish()).await?;
    let received = messages(world.count("queue: receive 1", receive()).await?);
    world.count("queue: ack 1, the last of its segment", ack(&received)).await?;
    world.counted("consumers", 0).await?;
    let wait = ask(world.client.post(url("/receive?wait=30s")));
    let publish_when_he_waits = async {
        world.counted("consumers", 1).await?;
        publish().await
    };
    let both = async { tokio::try_join!(wait, publish_when_he_waits) };
    let (received, _) = world.count("queue: publish 1 to who waits here", both).await?;
    ack(&messages(received)).await?;
    let lines = "{\"body\":{\"n\":1}}\n".repeat(10);
    let batch =
        world.client.post(url("/messages")).header("content-type", "application/x-ndjson").body(lines);
    world.count("queue: publish 10 in a batch", ask(batch)).await?;
    let received = messages(world.count("queue: receive 10", receive()).await?);
    let (one, others) = received.split_at(1);
    world.count("queue: ack 1, others of its segment left", ack(one)).await?;
    world.count("queue: ack 9, the last of their segment", ack(others)).await?;

    publish().await?;
    let received = messages(receive().await?);
    let extend = settle("/extend", &received, json!({"visibility": "10m"}));
    world.count("queue: extend 1", ask(extend)).await?;
    let nack = settle("/nack", &received, json!({"delay": "100ms"}));
    world.count("queue: nack 1 with a delay", ask(nack)).await?;
    let received = messages(world.count("queue: receive 1 again", receive()).await?);
    let nack = settle("/nack", &received, json!({"deadLetter": true, "reason": "broken"}));
    world.count("queue: nack 1 to the dead letters", ask(nack)).await?;
    world.count("queue: browse 1 dead letter", ask(world.client.get(url("/dead")))).await?;
    let redrive = world.client.post(url("/dead/redrive")).json(&json!({"all": true}));
    world.count("queue: redrive 1 dead letter", ask(redrive)).await?;
    ack(&messages(receive().await?)).await?;
    world.count("queue: counts", ask(world.client.get(url("")))).await?;
    Ok(world.rows())
}

fn messages(received: Value) -> Vec<Value> {
    received["messages"].as_array().cloned().unwrap_or_default()
}
