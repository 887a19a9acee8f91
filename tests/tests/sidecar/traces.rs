//! What is traced of requests, and that nobody waits for a collector.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};
use concordat_tests::{
    otlp::{Collector, Span},
    process::eventually,
};
use hyper::Method;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};

use crate::world::{Answer, Sidecar, World};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TOKEN: &str = "secret-token";

/// Asks as part of the trace, with the token.
async fn ask(
    sidecar: &Sidecar,
    method: &Method,
    path: &str,
    more: &[(&str, &str)],
    body: &str,
) -> Result<Answer> {
    let headers = [&[("concordat-token", TOKEN), ("traceparent", PARENT)], more].concat();
    sidecar.ask(method, path, &headers, body.to_owned()).await
}

async fn is_ready(sidecar: &mut Sidecar) -> Result<()> {
    let ready = format!("http://127.0.0.1:{}/ready", sidecar.admin);
    sidecar.process.answers(&ready).await
}

fn named<'a>(spans: &'a [Span], name: &str) -> Result<&'a Span> {
    spans.iter().find(|span| span.name == name).with_context(|| format!("no {name} in {spans:#?}"))
}

#[tokio::test]
async fn what_is_asked_is_traced_and_nothing_that_is_secret() -> Result<()> {
    let (world, collector) = (World::new().await?, Collector::start().await?);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    std::fs::write(&file, TOKEN)?;
    let token = format!("--token-file={}", file.display());
    // Nothing is exported before the end, unless that is half a minute away.
    let variables =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "30000")];
    let mut sidecar = world.starting_with(&[&token], &variables)?;
    is_ready(&mut sidecar).await?;

    let lock = "/v1/locks/orders/secret-key";
    let held = ask(&sidecar, &Method::POST, lock, &[], r#"{"owner":"secret-owner"}"#).await?;
    let held: Value = serde_json::from_str(&held.text)?;
    let grant = held["token"].as_str().context("no token")?;
    assert_eq!(ask(&sidecar, &Method::POST, lock, &[], "").await?.code(), "lock-held");
    assert_eq!(ask(&sidecar, &Method::GET, lock, &[], "").await?.status, 200);
    assert_eq!(ask(&sidecar, &Method::DELETE, lock, &[("lock-token", grant)], "").await?.status, 204);
    let several = json!({ "locks": [{ "lock": "orders", "key": "secret-a" }, { "lock": "orders", "key": "secret-b" }] });
    assert_eq!(
        ask(&sidecar, &Method::POST, "/v1/locks:acquire", &[], &several.to_string()).await?.status,
        200
    );

    let key = ("message-key", "secret-message");
    let messages = "/v1/queues/jobs/messages";
    assert_eq!(ask(&sidecar, &Method::POST, messages, &[key], "secret-body").await?.status, 201);
    let received = ask(&sidecar, &Method::POST, "/v1/queues/jobs/receive?wait=10s", &[], "").await?;
    let received: Value = serde_json::from_str(&received.text)?;
    let receipt = json!({ "receipts": [received["messages"][0]["receipt"]] }).to_string();
    assert_eq!(ask(&sidecar, &Method::POST, "/v1/queues/jobs/ack", &[], &receipt).await?.status, 200);

    assert_eq!(ask(&sidecar, &Method::GET, "/secret-path?secret=1", &[], "").await?.status, 404);
    let refused = sidecar.ask(&Method::GET, lock, &[("traceparent", PARENT)], "").await?;
    assert_eq!(refused.code(), "token-required");
    // What is left is exported at the end.
    ensure!(sidecar.process.terminate().await?.success(), "{}", sidecar.process.log());

    let spans = collector.trace(TRACE);
    let requests: Vec<_> = spans.iter().filter(|span| span.kind == SpanKind::Server).collect();
    let mut answers = BTreeMap::<&str, Vec<&str>>::new();
    for request in &requests {
        assert_eq!(request.parent, "b7ad6b7169203331");
        answers.entry(&request.name).or_default().push(request.says("http.response.status_code"));
    }
    let expected: BTreeMap<&str, Vec<&str>> = [
        ("DELETE /v1/locks/{lock}/{key}", vec!["204"]),
        ("GET", vec!["404"]),
        ("GET /v1/locks/{lock}/{key}", vec!["200", "401"]),
        ("POST /v1/locks/{lock}/{key}", vec!["200", "409"]),
        ("POST /v1/locks:acquire", vec!["200"]),
        ("POST /v1/queues/{queue}/ack", vec!["200"]),
        ("POST /v1/queues/{queue}/messages", vec!["201"]),
        ("POST /v1/queues/{queue}/receive", vec!["200"]),
    ]
    .into();
    assert_eq!(answers, expected);
    let held = requests.iter().find(|span| span.says("concordat.code") == "lock-held");
    ensure!(held.is_some_and(|span| !span.failed), "a refusal is no failure of the sidecar's: {held:?}");

    let below = |parent: &Span| -> Vec<(&str, &str)> {
        let children = spans.iter().filter(|span| span.parent == parent.id);
        children.map(|span| (span.name.as_str(), span.says("concordat.step"))).collect()
    };
    let acquiring = named(&spans, "acquire lock")?;
    assert_eq!((acquiring.kind, acquiring.says("concordat.lock.name")), (SpanKind::Internal, "orders"));
    assert_eq!(
        (acquiring.says("concordat.lock.mode"), acquiring.says("concordat.lock.granted")),
        ("CompareAndSwap", "true")
    );
    assert_eq!(below(acquiring), [("etcd commit", "acquire")]);
    assert_eq!(below(named(&spans, "POST /v1/locks/{lock}/{key}")?), [("acquire lock", "")]);
    assert_eq!(below(named(&spans, "GET /v1/locks/{lock}/{key}")?), [("etcd read", "")]);
    let several = below(named(&spans, "POST /v1/locks:acquire")?);
    assert_eq!(several, [("acquire lock", ""), ("acquire lock", "")]);
    assert_eq!(below(named(&spans, "POST /v1/queues/{queue}/ack")?), [("etcd commit", "settle")]);

    let publishing = named(&spans, "publish jobs")?;
    assert_eq!(publishing.kind, SpanKind::Producer);
    assert_eq!(publishing.parent, named(&spans, "POST /v1/queues/{queue}/messages")?.id);
    assert_eq!(below(publishing), [("etcd commit", "publish")]);
    assert_eq!(received["messages"][0]["headers"]["traceparent"], json!(publishing.traceparent()));
    let receiving = named(&spans, "receive jobs")?;
    assert_eq!(receiving.kind, SpanKind::Consumer);
    assert_eq!(receiving.parent, named(&spans, "POST /v1/queues/{queue}/receive")?.id);
    assert_eq!(receiving.links, [(publishing.trace.clone(), publishing.id.clone())]);
    for span in [publishing, receiving] {
        assert_eq!(
            (span.says("messaging.system"), span.says("messaging.destination.name")),
            ("concordat", "jobs")
        );
    }

    let all = format!("{spans:?}");
    let receipt = received["messages"][0]["receipt"].as_str().context("no receipt")?;
    for secret in ["secret", grant, receipt] {
        ensure!(!all.contains(secret), "{secret} is in {all}");
    }
    Ok(())
}

/// Accepts connections and closes them at once.
fn slams_the_door() -> Result<(u16, Arc<AtomicUsize>, TcpListener)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (port, count) = (listener.local_addr()?.port(), Arc::new(AtomicUsize::new(0)));
    let (door, slammed) = (listener.try_clone()?, count.clone());
    thread::spawn(move || {
        while door.accept().is_ok() {
            slammed.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok((port, count, listener))
}

#[tokio::test]
async fn a_collector_that_is_away_disturbs_nobody_and_is_told_of_once() -> Result<()> {
    let world = World::new().await?;
    let (port, slammed, _door) = slams_the_door()?;
    let endpoint = format!("--otlp-endpoint=http://127.0.0.1:{port}");
    let mut sidecar = world.starting_with(&[&endpoint], &[("OTEL_BSP_SCHEDULE_DELAY", "20")])?;
    is_ready(&mut sidecar).await?;
    assert_eq!(ask(&sidecar, &Method::GET, "/v1/locks/orders/a", &[], "").await?.status, 200);
    sidecar.process.says("traces are not exported").await?;
    // More is exported in vain.
    let before = slammed.load(Ordering::Relaxed);
    eventually("it tries again and again", async || {
        assert_eq!(ask(&sidecar, &Method::GET, "/v1/locks/orders/a", &[], "").await?.status, 200);
        ensure!(slammed.load(Ordering::Relaxed) > before + 12, "{slammed:?}");
        Ok(())
    })
    .await?;
    ensure!(sidecar.process.terminate().await?.success(), "{}", sidecar.process.log());
    let log = sidecar.process.log();
    assert_eq!(log.matches("traces are not exported").count(), 1, "{log}");
    Ok(())
}

#[tokio::test]
async fn a_collector_that_hangs_disturbs_nobody_and_no_end_waits_for_it() -> Result<()> {
    let world = World::new().await?;
    // Connections are taken by the kernel, and nothing ever comes back.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("--otlp-endpoint=http://{}", listener.local_addr()?);
    // Longer than this test waits for the end.
    let variables = [("OTEL_BSP_SCHEDULE_DELAY", "20"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "600000")];
    let mut sidecar = world.starting_with(&[&endpoint], &variables)?;
    is_ready(&mut sidecar).await?;
    // More than are kept.
    for _ in 0..3_000 {
        let unknown = ask(&sidecar, &Method::GET, "/unknown", &[], "").await?;
        ensure!(unknown.status == 404, "{unknown:?}");
    }
    let (_taken, _) = listener.accept()?;
    ensure!(sidecar.process.terminate().await?.success(), "{}", sidecar.process.log());
    Ok(())
}

#[tokio::test]
async fn a_collector_that_comes_late_is_told_of_and_exported_to() -> Result<()> {
    let world = World::new().await?;
    let port = concordat_tests::process::free_port()?;
    let endpoint = format!("--otlp-endpoint=http://127.0.0.1:{port}");
    let mut sidecar = world.starting_with(&[&endpoint], &[("OTEL_BSP_SCHEDULE_DELAY", "20")])?;
    is_ready(&mut sidecar).await?;
    assert_eq!(ask(&sidecar, &Method::GET, "/v1/locks/orders/a", &[], "").await?.status, 200);
    sidecar.process.says("traces are not exported").await?;
    let collector = Collector::start_at(port).await?;
    eventually("spans arrive", async || {
        assert_eq!(ask(&sidecar, &Method::GET, "/v1/locks/orders/a", &[], "").await?.status, 200);
        ensure!(!collector.trace(TRACE).is_empty(), "none");
        Ok(())
    })
    .await?;
    sidecar.process.says("traces are exported again").await?;
    Ok(())
}
