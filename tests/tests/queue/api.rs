//! What the API promises.

use anyhow::{Context, Result, ensure};
use concordat_protocol::{
    Key,
    queue::{Mode, Settings},
};
use concordat_tests::{etcd, process::eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{QUEUE, World, read, settings};

#[tokio::test]
async fn a_message_is_published_received_and_acknowledged() -> Result<()> {
    let world = World::start(settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    let request = sidecar
        .ask(Method::POST, "orders/messages")
        .header("Message-Key", "c42")
        .header("content-type", "text/plain; charset=utf-8")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .body("größer");
    let (status, stored) = read(request.send().await?).await?;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(stored["duplicate"], false);
    let (_, counts) = sidecar.get(QUEUE).await?;
    assert_eq!((&counts["ready"], &counts["inFlight"]), (&json!(1), &json!(0)), "{counts}");

    let received = sidecar.receive_some(1).await?;
    let message = &received[0].all;
    assert_eq!(message["id"], stored["id"]);
    assert_eq!(message["offset"], stored["offset"]);
    assert_eq!(message["key"], "c42");
    assert_eq!(message["body"], "größer");
    assert_eq!(message["contentType"], "text/plain; charset=utf-8");
    assert_eq!(message["deliveries"], 1);
    assert!(message["headers"]["traceparent"].as_str().is_some_and(|parent| parent.starts_with("00-4bf")));
    let (_, counts) = sidecar.get(QUEUE).await?;
    assert_eq!((&counts["ready"], &counts["inFlight"]), (&json!(0), &json!(1)), "{counts}");

    let path = format!("orders/receipts/{}", received[0].receipt);
    for _ in 0..2 {
        let (status, answer) = read(sidecar.ask(Method::DELETE, &path).send().await?).await?;
        assert_eq!(status, StatusCode::NO_CONTENT, "a repeat is well too: {answer}");
    }
    assert!(sidecar.receive("max=10").await?.is_empty());
    let (_, counts) = sidecar.get(QUEUE).await?;
    assert_eq!((&counts["ready"], &counts["inFlight"], &counts["bytes"]), (&json!(0), &json!(0), &json!(0)));
    Ok(())
}

#[tokio::test]
async fn a_poison_message_reaches_the_dead_letters_and_is_driven_back() -> Result<()> {
    let world = World::start(Settings { max_deliveries: 2, ..settings() }).await?;
    let sidecar = world.sidecar("shop").await?;
    sidecar.publish(&json!("poison"), None).await?;
    for delivery in 1..=2 {
        let received = sidecar.receive_some(1).await?;
        assert_eq!(received[0].deliveries, delivery);
        assert_eq!(sidecar.nack(&received, json!({"reason": "it burns"})).await?, ["ok"]);
    }
    let (_, dead) = sidecar.get("orders/dead?max=10").await?;
    let letter = &dead["messages"][0];
    assert_eq!((&letter["body"], &letter["reason"]), (&json!("poison"), &json!("it burns")));
    assert_eq!(letter["deliveries"], 2);
    let (_, counts) = sidecar.get(QUEUE).await?;
    assert_eq!((&counts["ready"], &counts["dead"]), (&json!(0), &json!(1)));
    world.judge().await?;

    let none = json!({"ids": ["0-1"]});
    assert_eq!(sidecar.json(Method::POST, "orders/dead/redrive", none).await?.1, json!({"redriven": 0}));
    let ids = json!({"ids": [letter["id"]]});
    assert_eq!(sidecar.json(Method::POST, "orders/dead/redrive", ids).await?.1, json!({"redriven": 1}));
    let received = sidecar.receive_some(1).await?;
    assert_eq!((&received[0].body, received[0].deliveries), (&json!("poison"), 1));
    assert_eq!(sidecar.nack(&received, json!({"deadLetter": true})).await?, ["ok"]);
    let all = json!({"all": true});
    assert_eq!(sidecar.json(Method::POST, "orders/dead/redrive", all).await?.1, json!({"redriven": 1}));
    let received = sidecar.receive_some(1).await?;
    assert_eq!(sidecar.ack(&received).await?, ["ok"]);
    let (_, dead) = sidecar.get("orders/dead").await?;
    assert_eq!(dead["messages"], json!([]));
    world.settled().await?;
    Ok(())
}

#[tokio::test]
async fn dead_letters_go_to_the_queue_that_is_named() -> Result<()> {
    let world =
        World::start(Settings { max_deliveries: 1, dead_letter_queue: Some("graves".into()), ..settings() })
            .await?;
    world.define("graves", settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    eventually("the graves to be known", async || {
        let (status, _) = sidecar.get("graves").await?;
        ensure!(status == StatusCode::OK, "{status}");
        Ok(())
    })
    .await?;
    sidecar.publish(&json!({"n": 1}), None).await?;
    let received = sidecar.receive_some(1).await?;
    sidecar.nack(&received, json!({"reason": "no"})).await?;
    let answer = eventually("the dead letter", async || {
        let answer = sidecar.ask(Method::POST, "graves/receive?wait=2s").send().await?;
        ensure!(answer.status() == StatusCode::OK, "nothing came");
        Ok(read(answer).await?.1)
    })
    .await?;
    let letter = &answer["messages"][0];
    assert_eq!(letter["body"], json!({"n": 1}));
    assert_eq!(letter["headers"]["concordat-dead-letter-queue"], "orders");
    assert_eq!(letter["headers"]["concordat-dead-letter-reason"], "no");
    world.judge().await?;
    Ok(())
}

#[tokio::test]
async fn a_repeat_is_stored_once_even_by_another_sidecar() -> Result<()> {
    let world = World::start(settings()).await?;
    let mut first = world.sidecar("shop").await?;
    let (status, stored) = first.publish(&json!("a"), Some(("till", 7))).await?;
    assert_eq!(status, StatusCode::CREATED);
    first.process.kill()?;
    let second = world.sidecar("shop").await?;
    let (status, repeated) = second.publish(&json!("a"), Some(("till", 7))).await?;
    assert_eq!((status, &repeated["duplicate"]), (StatusCode::OK, &json!(true)));
    assert_eq!((&repeated["id"], &repeated["offset"]), (&stored["id"], &stored["offset"]));
    let (status, _) = second.publish(&json!("b"), Some(("till", 8))).await?;
    assert_eq!(status, StatusCode::CREATED);

    // In a batch each entry is told by itself, and others are stored beside a duplicate.
    let lines = [("till", 8, "b"), ("till", 9, "c"), ("till", 9, "c")];
    let lines: String = lines
        .iter()
        .map(|(id, seq, body)| format!("{}\n", json!({"body": body, "producerId": id, "producerSeq": seq})))
        .collect();
    world.history.lock().attempted.insert(serde_json::to_vec("c")?, 2);
    world.history.lock().once.insert(serde_json::to_vec("c")?);
    let request = second.ask(Method::POST, "orders/messages").header("content-type", "application/x-ndjson");
    let (status, answer) = read(request.body(lines).send().await?).await?;
    assert_eq!(status, StatusCode::OK);
    let duplicates: Vec<_> = answer["results"]
        .as_array()
        .context("no results")?
        .iter()
        .map(|result| &result["duplicate"])
        .collect();
    assert_eq!(duplicates, [true, false, true]);
    assert_eq!(world.judge().await?.published, 3);
    Ok(())
}

#[tokio::test]
async fn without_a_window_what_is_named_is_stored_every_time() -> Result<()> {
    let world = World::start(Settings { dedup_window: 0, ..settings() }).await?;
    let sidecar = world.sidecar("shop").await?;
    for _ in 0..2 {
        let request = sidecar.ask(Method::POST, "orders/messages").header("Idempotency-Key", "k1").body("x");
        assert_eq!(request.send().await?.status(), StatusCode::CREATED);
    }
    assert_eq!(world.account().await?.published, 2);
    Ok(())
}

/// By a sidecar through which nobody consumed before.
#[tokio::test]
async fn who_does_not_wait_gets_what_is_there() -> Result<()> {
    let world = World::start(settings()).await?;
    let (first, second) = (world.sidecar("shop").await?, world.sidecar("till").await?);
    assert!(first.receive("").await?.is_empty());
    first.publish(&json!("a"), None).await?;
    let received = second.receive("").await?;
    assert_eq!(received.len(), 1);
    assert!(second.receive("").await?.is_empty());
    second.ack(&received).await?;
    world.settled().await?;
    Ok(())
}

/// Else what was acknowledged would come again once the shorter time is over.
#[tokio::test]
async fn a_shorter_retention_lets_go_of_nothing_before_its_message() -> Result<()> {
    let world = World::start(settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    let lines: String = (0..4).map(|n| format!("{}\n", json!({ "body": n }))).collect();
    let request = sidecar.ask(Method::POST, "orders/messages").header("content-type", "application/x-ndjson");
    assert_eq!(request.body(lines).send().await?.status(), StatusCode::OK);
    world.define(QUEUE, Settings { retention_age: 1_000, max_message_bytes: 1_024, ..settings() }).await?;
    eventually("the shorter retention to be known", async || {
        let long = sidecar.ask(Method::POST, "orders/messages").body("x".repeat(2_000));
        let status = long.send().await?.status();
        ensure!(status == StatusCode::PAYLOAD_TOO_LARGE, "{status}");
        Ok(())
    })
    .await?;
    for _ in 0..2 {
        let received = sidecar.receive("max=1").await?;
        assert_eq!(sidecar.ack(&received).await?, ["ok"]);
        let state = world.state().await?;
        let lease = |of: fn(&Key) -> bool| {
            let found = state.iter().find(|(key, _)| of(key));
            found.map(|(_, entry)| entry.lease).context("it is not there")
        };
        let progress = lease(|key| matches!(key, Key::Progress { .. }))?;
        assert_eq!(progress, lease(|key| matches!(key, Key::Segment { .. }))?);
        assert_ne!(progress, 0);
    }
    Ok(())
}

#[tokio::test]
async fn an_idempotency_key_works_as_a_producers_name() -> Result<()> {
    let world = World::start(settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    let publish = async |key: &str| {
        let request = sidecar.ask(Method::POST, "orders/messages").header("Idempotency-Key", key).body("x");
        read(request.send().await?).await
    };
    let (status, first) = publish("k1").await?;
    assert_eq!(status, StatusCode::CREATED);
    let (status, second) = publish("k1").await?;
    assert_eq!((status, &second["id"]), (StatusCode::OK, &first["id"]));
    assert_eq!(publish("k2").await?.0, StatusCode::CREATED);
    Ok(())
}

#[tokio::test]
async fn an_old_receipt_settles_nothing() -> Result<()> {
    let world = World::start(settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    sidecar.publish(&json!("a"), None).await?;
    let old = sidecar.receive("max=1&wait=5s&visibility=1s").await?;
    let new = sidecar.receive_some(1).await?;
    assert_eq!((old[0].deliveries, new[0].deliveries), (1, 2));
    let path = format!("orders/receipts/{}", old[0].receipt);
    let (status, problem) = read(sidecar.ask(Method::DELETE, &path).send().await?).await?;
    assert_eq!((status, &problem["code"]), (StatusCode::GONE, &json!("receipt-stale")));
    assert_eq!(sidecar.ack(&old).await?, ["stale"]);
    assert_eq!(sidecar.settle("extend", &old, json!({})).await?, ["stale"]);
    assert_eq!(world.account().await?.in_flight, 1);
    assert_eq!(sidecar.settle("extend", &new, json!({"visibility": "30s"})).await?, ["ok"]);
    assert_eq!(sidecar.ack(&new).await?, ["ok"]);
    assert_eq!(sidecar.ack(&new).await?, ["ok"], "a repeat is well");
    assert_eq!(sidecar.ack(&old).await?, ["stale"]);
    world.settled().await?;
    Ok(())
}

#[tokio::test]
async fn batches_succeed_and_fail_entry_by_entry() -> Result<()> {
    let world = World::start(Settings { max_message_bytes: 1_000, ..settings() }).await?;
    let sidecar = world.sidecar("shop").await?;
    let lines = [
        json!({"body": {"n": 1}, "key": "k", "headers": {"X": "y"}}).to_string(),
        json!({"body": "hello", "contentType": "text/plain"}).to_string(),
        json!({"body": "AAEC", "contentType": "application/octet-stream", "encoding": "base64"}).to_string(),
        json!({"body": "x".repeat(2_000)}).to_string(),
        json!({"body": 1, "nobodyKnows": true}).to_string(),
        "{".to_owned(),
        json!({"body": {"contentType": "is not text"}, "contentType": "text/plain"}).to_string(),
    ];
    let request = sidecar.ask(Method::POST, "orders/messages").header("content-type", "application/x-ndjson");
    let (status, answer) = read(request.body(lines.join("\n")).send().await?).await?;
    assert_eq!(status, StatusCode::OK);
    let results = answer["results"].as_array().context("no results")?;
    let statuses: Vec<_> =
        results.iter().map(|result| result["status"].as_u64().unwrap_or_default()).collect();
    assert_eq!(statuses, [201, 201, 201, 413, 400, 400, 400], "{answer}");

    let mut bodies = Vec::new();
    while bodies.len() < 3 {
        for message in sidecar.receive_some(10).await? {
            bodies.push((message.all["body"].clone(), message.all["encoding"].clone()));
        }
    }
    bodies.sort_by_key(|(body, _)| body.to_string());
    let expected =
        [(json!("AAEC"), json!("base64")), (json!("hello"), Value::Null), (json!({"n": 1}), Value::Null)];
    assert_eq!(bodies, expected);
    Ok(())
}

#[tokio::test]
async fn cloud_events_come_in_every_mode() -> Result<()> {
    let world = World::start(settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    let event = |id: &str| {
        json!({"specversion": "1.0", "id": id, "source": "/shop", "type": "sold", "partitionkey": "c1", "sequence": 3,
               "data": {"price": 1.50}})
    };
    let publish = async |content_type: &str, body: String| {
        let request = sidecar.ask(Method::POST, "orders/messages").header("content-type", content_type);
        read(request.body(body).send().await?).await
    };
    assert_eq!(publish("application/cloudevents+json", event("1").to_string()).await?.0, StatusCode::CREATED);
    let batch = json!([event("2"), {"specversion": "1.0", "id": "3"}]).to_string();
    let (status, answer) = publish("application/cloudevents-batch+json; charset=utf-8", batch).await?;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        (&answer["results"][0]["status"], &answer["results"][1]["status"]),
        (&json!(201), &json!(400))
    );
    let binary = sidecar
        .ask(Method::POST, "orders/messages")
        .header("content-type", "application/json")
        .header("ce-specversion", "1.0")
        .header("ce-id", "4")
        .header("ce-source", "/shop")
        .header("ce-type", "sold")
        .header("ce-subject", "caf%C3%A9")
        .body(r#"{"price":1.50}"#);
    assert_eq!(read(binary.send().await?).await?.0, StatusCode::CREATED);

    let mut events = Vec::new();
    while events.len() < 3 {
        events.extend(sidecar.receive_some(10).await?);
    }
    for event in &events {
        assert_eq!(event.body, json!({"price": 1.5}));
        assert_eq!(event.all["contentType"], "application/json");
        assert_eq!(event.all["headers"]["ce-type"], "sold");
        let binary = event.all["headers"]["ce-id"] == "4";
        assert_eq!(event.all["key"], if binary { Value::Null } else { json!("c1") });
        assert_eq!(event.all["headers"]["ce-subject"], if binary { json!("café") } else { Value::Null });
    }
    Ok(())
}

#[tokio::test]
async fn delays_and_lifetimes_are_kept() -> Result<()> {
    let world = World::start(settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    let publish = async |header: &str, value: &str| {
        let request = sidecar.ask(Method::POST, "orders/messages").header(header, value).body("late");
        Ok::<_, anyhow::Error>(request.send().await?.status())
    };
    let sent = std::time::Instant::now();
    assert_eq!(publish("Delay", "1s").await?, StatusCode::CREATED);
    let (_, counts) = sidecar.get(QUEUE).await?;
    assert_eq!((&counts["ready"], &counts["delayed"]), (&json!(0), &json!(1)), "{counts}");
    let received = sidecar.receive_some(1).await?;
    assert!(sent.elapsed().as_millis() >= 1_000, "never early");
    assert_eq!(sidecar.ack(&received).await?, ["ok"]);

    assert_eq!(publish("Ttl", "1ms").await?, StatusCode::CREATED);
    assert!(sidecar.receive("max=1&wait=500ms").await?.is_empty(), "it expired");
    assert_eq!(publish("Delay", "48h").await?, StatusCode::BAD_REQUEST, "it would expire first");
    assert_eq!(publish("Delay", "soon").await?, StatusCode::BAD_REQUEST);
    Ok(())
}

#[tokio::test]
async fn a_full_queue_refuses_and_keeps_nothing() -> Result<()> {
    let world = World::start(Settings { retention_bytes: 1_000, ..settings() }).await?;
    let sidecar = world.sidecar("shop").await?;
    let big = |name: &str| json!(format!("{name}{}", "x".repeat(600)));
    assert_eq!(sidecar.publish(&big("a"), None).await?.0, StatusCode::CREATED);
    let (status, problem) = sidecar.publish(&big("b"), None).await?;
    assert_eq!((status, &problem["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("queue-full")));
    assert_eq!(problem["outcome"], "notApplied");
    let received = sidecar.receive_some(1).await?;
    sidecar.ack(&received).await?;
    eventually("room again", async || {
        let (status, _) = sidecar.publish(&big("c"), None).await?;
        ensure!(status == StatusCode::CREATED, "{status}");
        Ok(())
    })
    .await?;
    world.judge().await?;
    Ok(())
}

#[tokio::test]
async fn what_is_malformed_or_not_supported_is_refused() -> Result<()> {
    let world = World::start(settings()).await?;
    world.define("log", Settings { mode: Mode::Log, ..settings() }).await?;
    let sidecar = world.sidecar("shop").await?;
    let post = async |path: &str, body: &str| {
        let (status, answer) =
            read(sidecar.ask(Method::POST, path).body(body.to_owned()).send().await?).await?;
        Ok::<_, anyhow::Error>((status.as_u16(), answer["code"].as_str().unwrap_or_default().to_owned()))
    };
    for (path, body, status, code) in [
        ("nobody/messages", "x", 404, "no-such-queue"),
        ("orders/receive?max=0", "", 400, "invalid-request"),
        ("orders/receive?max=1001", "", 400, "invalid-request"),
        ("orders/receive?visibility=1ms", "", 400, "invalid-request"),
        ("orders/receive?group=g", "", 400, "invalid-request"),
        ("orders/receive?nobody=knows", "", 400, "invalid-request"),
        ("orders/ack", r#"{"receipts":[]}"#, 400, "invalid-request"),
        ("orders/ack", r#"{"receipts":["x"]}"#, 400, "invalid-request"),
        ("orders/ack", r#"{"receipts":[],"delay":"1s"}"#, 400, "invalid-request"),
        ("orders/nack", r#"{"receipts":["MC4xLjAuMS4wLnM"],"delay":"999h"}"#, 400, "invalid-request"),
        ("orders/dead/redrive", r#"{"ids":[],"all":true}"#, 400, "invalid-request"),
        ("orders/dead/redrive", "{}", 400, "invalid-request"),
    ] {
        assert_eq!(post(path, body).await?, (status, code.to_owned()), "{path} {body}");
    }
    eventually("the other queue to be known", async || {
        let (status, code) = post("log/messages", "x").await?;
        ensure!((status, code.as_str()) == (501, "mode-not-supported"), "{status} {code}");
        Ok(())
    })
    .await?;
    assert_eq!(sidecar.get("orders/stream?group=g").await?.0, StatusCode::NOT_IMPLEMENTED);
    let body = json!({"to": "earliest"});
    assert_eq!(
        sidecar.json(Method::PUT, "orders/groups/g/offset", body).await?.0,
        StatusCode::NOT_IMPLEMENTED
    );
    let bad =
        sidecar.ask(Method::POST, "orders/messages").header("content-type", "application/json").body("{");
    assert_eq!(read(bad.send().await?).await?.0, StatusCode::BAD_REQUEST);
    Ok(())
}

#[tokio::test]
async fn a_poller_that_hangs_up_leaves_nothing_behind() -> Result<()> {
    let world = World::start(settings()).await?;
    for sidecar in [world.sidecar("shop").await?, world.sidecar("shop").await?.over_http2()?] {
        for _ in 0..5 {
            let poll = sidecar
                .ask(Method::POST, "orders/receive?max=10&wait=1m")
                .timeout(std::time::Duration::from_millis(50));
            assert!(poll.send().await.is_err(), "it hangs up");
        }
        sidecar.publish(&json!("a"), None).await?;
        let received = sidecar.receive_some(1).await?;
        assert_eq!((received.len(), received[0].deliveries), (1, 1));
        assert_eq!(sidecar.ack(&received).await?, ["ok"]);
    }
    world.settled().await?;
    Ok(())
}

#[tokio::test]
async fn without_space_consumers_can_still_drain() -> Result<()> {
    let world = World::on(etcd::Settings::default().quota(32 << 20), settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    let lines: String = (0..3).map(|n| format!("{}\n", json!({ "body": n }))).collect();
    for n in 0..3 {
        world.history.lock().attempted.insert(serde_json::to_vec(&json!(n))?, 1);
    }
    let request = sidecar.ask(Method::POST, "orders/messages").header("content-type", "application/x-ndjson");
    assert_eq!(request.body(lines).send().await?.status(), StatusCode::OK);
    let mut received = Vec::new();
    while received.len() < 3 {
        received.extend(sidecar.receive_some(10).await?);
    }
    // Fill etcd until it raises the alarm.
    let mut client = world.etcd.client().await?;
    let filler = vec![0; 1 << 20];
    let mut filled = 0;
    while client.put(format!("/filler/{filled}"), filler.clone(), None).await.is_ok() {
        filled += 1;
    }
    eventually("the sidecar to take in nothing", async || {
        let (status, problem) = sidecar.publish(&json!("no"), None).await?;
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status}: {problem}");
        Ok(())
    })
    .await?;
    // Part of the segment cannot be acknowledged alone; with the last message all of it can.
    let (early, late) = received.split_at(2);
    let refusals = || sidecar.process.log().matches("a plan was not applied").count();
    let before = refusals();
    let (early, late) = tokio::join!(sidecar.ack(early), async {
        eventually("etcd to refuse a part", async || {
            ensure!(refusals() > before, "it was not asked yet");
            Ok(())
        })
        .await?;
        sidecar.ack(late).await
    });
    assert_eq!((early?, late?), (vec!["ok".to_owned(), "ok".to_owned()], vec!["ok".to_owned()]));
    Ok(())
}

#[tokio::test]
async fn a_queue_deleted_in_use_takes_nothing_more() -> Result<()> {
    let world = World::start(settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    sidecar.publish(&json!("a"), None).await?;
    let received = sidecar.receive_some(1).await?;
    let poll = sidecar.ask(Method::POST, "orders/receive?wait=1m").send();
    let (polled, ()) = tokio::join!(poll, async {
        if let Err(error) = world.undefine(QUEUE).await {
            panic!("{error:#}");
        }
    });
    assert_eq!(polled?.status(), StatusCode::NOT_FOUND, "who waits is told");
    eventually("the sidecar to know", async || {
        let (status, _) = sidecar.publish(&json!("b"), None).await?;
        ensure!(status == StatusCode::NOT_FOUND, "{status}");
        Ok(())
    })
    .await?;
    // A queue of the same name is another one: it does not deliver what was left.
    world.define(QUEUE, settings()).await?;
    eventually("the new queue", async || {
        let (status, answer) = sidecar.publish(&json!("c"), None).await?;
        ensure!(status == StatusCode::CREATED, "{status} {answer}");
        Ok(())
    })
    .await?;
    let fresh = sidecar.receive_some(10).await?;
    assert_eq!(fresh.iter().map(|message| &message.body).collect::<Vec<_>>(), [&json!("c")]);
    assert_eq!(sidecar.ack(&received).await?, ["stale"]);
    Ok(())
}
