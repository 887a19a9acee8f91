//! What a client traces goes on at the participants, whoever coordinates.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, ensure};
use concordat_tests::{
    etcd::Etcd,
    kube::pki::Authority,
    otlp::{Collector, Span},
    process::eventually,
};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use super::{
    app::Behaviour::Answer,
    world::{PAYLOAD, World},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

#[tokio::test]
async fn callbacks_are_children_of_the_call_that_began_it() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "trace").await?;
    let (c, _p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    // Whoever finishes it was not there when it began.
    let first = world.start("c", "tx-before-decide=return(kill)").await?;

    let parent = format!("00-{TRACE}-{SPAN}-01");
    ensure!(world.begin_traced(&first, "t1", &parent).await.is_none(), "the coordinator dies");
    world.finished(&c, "t1").await?;
    let mut spans = BTreeSet::from([SPAN.to_owned()]);
    for app in [&world.p, &world.q] {
        let calls = app.calls();
        assert_eq!(calls.iter().map(|call| &*call.operation).collect::<Vec<_>>(), ["prepare", "commit"]);
        for call in calls {
            let fields: Vec<&str> = call.traceparent.split('-').collect();
            assert_eq!((fields[0], fields[1], fields[3]), ("00", TRACE, "01"), "{call:?}");
            ensure!(spans.insert(fields[2].to_owned()), "each call is a span of its own: {call:?}");
        }
    }

    // Of what nobody traces no trace is made up.
    world.begin(&c, "t2").await?;
    world.finished(&c, "t2").await?;
    let calls = world.p.calls();
    let traced: Vec<_> =
        calls.iter().filter(|call| call.transaction == "t2").map(|call| &call.traceparent).collect();
    assert_eq!(traced, ["", ""]);
    Ok(())
}

/// The steps that etcd was asked for in a trace, each with the app whose sidecar asked.
fn commits(spans: &[Span]) -> BTreeSet<(&str, &str)> {
    let commits = spans.iter().filter(|span| span.name == "etcd commit");
    commits.map(|span| (span.of("concordat.app"), span.says("concordat.step"))).collect()
}

fn callbacks(spans: &[Span]) -> Vec<&Span> {
    spans.iter().filter(|span| span.name == "POST callback").collect()
}

/// Waits until all of a finished transfer is exported.
async fn exported(collector: &Collector, trace: &str) -> Result<Vec<Span>> {
    eventually("the transfer is exported", async || {
        let spans = collector.trace(trace);
        let steps = commits(&spans);
        for step in [("p", "vote"), ("q", "vote"), ("p", "acknowledge"), ("q", "acknowledge")] {
            ensure!(steps.contains(&step), "{step:?} is not in {steps:?}");
        }
        ensure!(steps.iter().any(|(_, step)| *step == "finish"), "nobody finishes it in {steps:?}");
        ensure!(callbacks(&spans).len() == 4, "{spans:?}");
        Ok(spans)
    })
    .await
}

#[tokio::test]
async fn a_transfer_is_one_trace_from_the_request_to_every_callback() -> Result<()> {
    let (etcd, collector) = (Etcd::start().await?, Collector::start().await?);
    let mut world = World::new(&etcd, "traces").await?;
    world.collector = Some(collector.endpoint.clone());
    let (c, p, q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    let answer = world.begin_traced(&c, "t1", &format!("00-{TRACE}-{SPAN}-01")).await;
    ensure!(answer.as_ref().is_some_and(|answer| answer.status == 200), "{answer:?}");
    world.finished(&c, "t1").await?;
    let spans = exported(&collector, TRACE).await?;

    let begins = |span: &&Span| span.name == "POST /v1/transactions/{transaction}";
    let request = spans.iter().find(begins).context("no span of the request")?;
    assert_eq!((request.kind, request.parent.as_str()), (SpanKind::Server, SPAN));
    assert_eq!(request.says("http.route"), "/v1/transactions/{transaction}");
    assert_eq!(
        (request.says("http.request.method"), request.says("http.response.status_code")),
        ("POST", "200")
    );
    assert_eq!(
        (request.of("service.name"), request.of("k8s.namespace.name")),
        ("concordat-sidecar", "traces")
    );
    assert_eq!((request.of("k8s.pod.name"), request.of("concordat.app")), (c.name.as_str(), "c"));
    // All that is done for it is below it, wherever it is done.
    for span in spans.iter().filter(|span| span.id != request.id) {
        assert_eq!((span.kind, &span.parent), (SpanKind::Client, &request.id), "{span:?}");
        ensure!(!span.failed, "{span:?}");
    }
    let steps = commits(&spans);
    for step in ["begin", "decide", "finish"] {
        ensure!(steps.contains(&("c", step)), "{step} is not in {steps:?}");
    }
    for (app, pod, branch) in [(&world.p, &p, "debit"), (&world.q, &q, "credit")] {
        for (call, action) in app.calls().iter().zip(["prepare", "commit"]) {
            let of = |span: &&&Span| {
                span.says("concordat.participant") == branch && span.says("concordat.action") == action
            };
            let span = callbacks(&spans).into_iter().find(|span| of(&span)).context("no span of a call")?;
            // The app's own spans nest below the call.
            assert_eq!(call.traceparent, span.traceparent());
            assert_eq!(span.of("k8s.pod.name"), pod.name);
            assert_eq!(
                (span.says("concordat.attempt"), span.says("http.response.status_code")),
                ("1", "204")
            );
            assert_eq!(span.says("concordat.transaction.id"), "t1");
        }
    }
    ensure!(!format!("{spans:?}").contains(PAYLOAD), "what it is about is nobody's");

    // Who begins it says whether it is recorded, at every sidecar.
    let silent = TRACE.replace('0', "1");
    let answer = world.begin_traced(&c, "t2", &format!("00-{silent}-{SPAN}-00")).await;
    ensure!(answer.is_some_and(|answer| answer.status == 200));
    world.finished(&c, "t2").await?;
    let after = TRACE.replace('0', "2");
    world.begin_traced(&c, "t3", &format!("00-{after}-{SPAN}-01")).await;
    world.finished(&c, "t3").await?;
    exported(&collector, &after).await?;
    assert_eq!(collector.trace(&silent).len(), 0);
    for call in world.p.calls().iter().filter(|call| call.transaction == "t2") {
        let fields: Vec<&str> = call.traceparent.split('-').collect();
        assert_eq!((fields[1], fields[3]), (silent.as_str(), "00"), "{call:?}");
        ensure!(fields[2] != SPAN, "{call:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_collector_is_told_by_tls_where_its_authority_is_known() -> Result<()> {
    let (etcd, authority, folder) = (Etcd::start().await?, Authority::new()?, tempfile::tempdir()?);
    let collector = Collector::start_of(&authority).await?;
    let mut world = World::new(&etcd, "encrypted").await?;
    world.collector = Some(collector.endpoint.clone());
    let (known, another) = (folder.path().join("known"), folder.path().join("another"));
    fs::write(&known, &authority.certificate)?;
    fs::write(&another, &Authority::new()?.certificate)?;
    world.collector_ca = Some(known);
    let (_p, _q) = (world.start("p", "").await?, world.start("q", "").await?);
    world.collector_ca = Some(another);
    let mut c = world.start("c", "").await?;
    world.begin_traced(&c, "t1", &format!("00-{TRACE}-{SPAN}-01")).await;
    world.finished(&c, "t1").await?;
    eventually("both participants export it", async || {
        let spans = collector.trace(TRACE);
        let steps = commits(&spans);
        ensure!(steps.contains(&("p", "acknowledge")) && steps.contains(&("q", "acknowledge")), "{steps:?}");
        Ok(())
    })
    .await?;
    c.process.says("traces are not exported").await?;
    assert!(collector.spans().iter().all(|span| span.of("k8s.pod.name") != c.name));
    Ok(())
}

#[tokio::test]
async fn a_call_that_fails_is_a_span_for_each_attempt() -> Result<()> {
    let (etcd, collector) = (Etcd::start().await?, Collector::start().await?);
    let mut world = World::new(&etcd, "attempts").await?;
    world.collector = Some(collector.endpoint.clone());
    let (c, _p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    world.p.behave("debit", "prepare", [Answer(503), Answer(409)]);
    world.begin_traced(&c, "t1", &format!("00-{TRACE}-{SPAN}-01")).await;
    world.finished(&c, "t1").await?;
    eventually("both attempts are exported", async || {
        let spans = collector.trace(TRACE);
        let mut attempts: Vec<_> = callbacks(&spans)
            .into_iter()
            .filter(|span| span.says("concordat.action") == "prepare" && span.of("concordat.app") == "p")
            .map(|span| (span.says("concordat.attempt"), span.says("error.type"), span.failed))
            .collect();
        attempts.sort_unstable();
        ensure!(attempts == [("1", "503", true), ("2", "409", true)], "{attempts:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn whoever_adopts_it_goes_on_with_the_trace() -> Result<()> {
    let (etcd, collector) = (Etcd::start().await?, Collector::start().await?);
    let mut world = World::new(&etcd, "adopted").await?;
    world.collector = Some(collector.endpoint.clone());
    let (c, _p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    let first = world.start("c", "tx-before-decide=return(kill)").await?;
    let parent = format!("00-{TRACE}-{SPAN}-01");
    ensure!(world.begin_traced(&first, "t1", &parent).await.is_none(), "the coordinator dies");
    world.finished(&c, "t1").await?;
    let spans = exported(&collector, TRACE).await?;
    // By a sidecar of any app.
    ensure!(commits(&spans).iter().any(|(_, step)| *step == "adopt"), "{spans:?}");
    // The request's span died with its sidecar, and is known as the parent of all else.
    ensure!(spans.iter().all(|span| span.kind == SpanKind::Client), "{spans:?}");
    let parents: BTreeSet<&str> = spans.iter().map(|span| span.parent.as_str()).collect();
    ensure!(parents.len() == 1 && !parents.contains(SPAN) && !parents.contains(""), "{spans:?}");
    Ok(())
}
