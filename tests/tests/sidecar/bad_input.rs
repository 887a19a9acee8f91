//! Wrong input, for every route: it is refused by its code, and etcd is as it was before.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use hyper::Method;

use crate::world::{Answer, Sidecar, World};

/// A route with a path and a body that would be taken, were it not for what a row of a table spoils.
struct Route {
    method: Method,
    path: &'static str,
    takes: Takes,
}

#[derive(Clone, Copy, PartialEq)]
enum Takes {
    Nothing,
    /// A JSON object of these fields: a good value and one of a wrong type.
    Object(&'static [(&'static str, &'static str, &'static str)], Must),
    /// Any JSON.
    Json,
    /// Any bytes.
    Bytes,
}

#[derive(Clone, Copy, PartialEq)]
enum Must {
    BeThere,
    MayLack,
}

const ACQUIRE: &[(&str, &str, &str)] = &[
    ("ttl", "\"5s\"", "5"),
    ("owner", "\"me\"", "7"),
    ("renew", "true", "\"yes\""),
    ("maxHold", "\"1m\"", "[]"),
];
const RECEIPTS: &[(&str, &str, &str)] = &[("receipts", "[]", "\"r\"")];
const REASON: &[(&str, &str, &str)] = &[("reason", "\"because\"", "{}")];

fn routes() -> Vec<Route> {
    use Must::{BeThere, MayLack};
    use Takes::{Bytes, Json, Nothing, Object};
    let route = |method, path, takes| Route { method, path, takes };
    vec![
        route(Method::POST, "/v1/locks/orders/k", Object(ACQUIRE, MayLack)),
        route(Method::POST, "/v1/locks/orders", Object(ACQUIRE, MayLack)),
        route(Method::PUT, "/v1/locks/orders/k", Nothing),
        route(Method::DELETE, "/v1/locks/orders/k", Nothing),
        route(Method::GET, "/v1/locks/orders/k", Nothing),
        route(Method::GET, "/v1/locks/orders/k/verify", Nothing),
        route(Method::GET, "/v1/locks/orders/k/events", Nothing),
        route(Method::POST, "/v1/queues/jobs/messages", Bytes),
        route(Method::POST, "/v1/queues/jobs/receive", Nothing),
        route(Method::POST, "/v1/queues/jobs/ack", Object(RECEIPTS, BeThere)),
        route(Method::POST, "/v1/queues/jobs/nack", Object(RECEIPTS, BeThere)),
        route(Method::POST, "/v1/queues/jobs/extend", Object(RECEIPTS, BeThere)),
        route(Method::DELETE, "/v1/queues/jobs/receipts/r", Nothing),
        route(Method::GET, "/v1/queues/jobs", Nothing),
        route(Method::GET, "/v1/queues/jobs/dead", Nothing),
        route(
            Method::POST,
            "/v1/queues/jobs/dead/redrive",
            Object(&[("all", "true", "1"), ("ids", "[]", "\"a\"")], BeThere),
        ),
        route(Method::POST, "/v1/transactions/transfer", Json),
        route(Method::GET, "/v1/transactions/transfer", Nothing),
        route(Method::GET, "/v1/transactions/transfer/t", Nothing),
        route(Method::POST, "/v1/transactions/transfer/t/rollback", Nothing),
        route(Method::POST, "/v1/transactions/transfer/t/retry", Nothing),
        route(Method::POST, "/v1/transactions/transfer/t/branches/debit/skip", Object(REASON, BeThere)),
    ]
}

/// Requests that must be refused, and what must not have happened.
struct Trial {
    world: World,
    sidecar: Sidecar,
    revision: i64,
    wrong: Vec<String>,
}

impl Trial {
    async fn begin() -> Result<Self> {
        let world = World::new().await?;
        let sidecar = world.sidecar(&[]).await?;
        let revision = world.etcd.revision().await?;
        Ok(Self { world, sidecar, revision, wrong: Vec::new() })
    }

    async fn refused(
        &mut self,
        (method, path): (&Method, &str),
        headers: &[(&str, &str)],
        body: impl Into<hyper::body::Bytes>,
        (status, code): (u16, &str),
    ) -> Result<Answer> {
        let answer = self.sidecar.ask(method, path, headers, body).await?;
        let told = (answer.status.as_u16(), answer.code());
        let is_problem =
            answer.headers.get("content-type").is_some_and(|of| of == "application/problem+json");
        if (told.0, told.1.as_str()) != (status, code) || !is_problem {
            let shown: String = path.chars().take(80).collect();
            let text: String = answer.text.chars().take(300).collect();
            self.wrong.push(format!("{method} {shown} {headers:.60?}: {told:?} for {status} {code}: {text}"));
        }
        Ok(answer)
    }

    async fn end(self) -> Result<()> {
        ensure!(self.wrong.is_empty(), "{} were wrong:\n{}", self.wrong.len(), self.wrong.join("\n"));
        ensure!(self.world.etcd.revision().await? == self.revision, "something was written");
        let metrics = self.sidecar.health("/metrics").await?.text;
        ensure!(metrics.contains("concordat_sidecar_panics_total 0"), "it panicked");
        ensure!(self.sidecar.health("/ready").await?.status == 200);
        Ok(())
    }
}

const INVALID: (u16, &str) = (400, "invalid-request");

#[tokio::test]
async fn what_stands_before_every_route_stands_before_each() -> Result<()> {
    let mut trial = Trial::begin().await?;
    let huge = vec![b'1'; 1_536 * 1024 + 1];
    for Route { method, path, .. } in &routes() {
        let to = (method, *path);
        for host in ["example.com", "127.0.0.1.nip.io:4700", "10.0.0.1"] {
            trial.refused(to, &[("host", host)], "", (421, "foreign-host")).await?;
        }
        for origin in ["https://example.com", "null", "http://127.0.0.1"] {
            trial.refused(to, &[("origin", origin)], "", (403, "origin-refused")).await?;
        }
        trial.refused((&Method::PATCH, path), &[], "", (405, "method-not-allowed")).await?;
        trial.refused(to, &[], huge.clone(), (413, "payload-too-large")).await?;
        let unknown = format!("{path}?nonsense=1");
        trial.refused((method, &unknown), &[], "", INVALID).await?;
        trial
            .refused((method, &format!("{path}/no/such/route/at/all")), &[], "", (404, "no-such-route"))
            .await?;
    }
    trial.end().await
}

#[tokio::test]
async fn objects_that_are_not_there_or_do_not_work_yet_are_named() -> Result<()> {
    let mut trial = Trial::begin().await?;
    for Route { method, path, takes } in &routes() {
        let body = match takes {
            Takes::Object(fields, Must::BeThere) => format!("{{\"{}\":{}}}", fields[0].0, fields[0].1),
            Takes::Json => "{}".into(),
            _ => String::new(),
        };
        let verify = if path.ends_with("/verify") { "?fence=1" } else { "" };
        let kind = path.split('/').nth(2).unwrap_or_default();
        let (there, code) = match kind {
            "locks" => ("/orders", "no-such-lock"),
            "queues" => ("/jobs", "no-such-queue"),
            _ if path.contains("/t/") || path.ends_with("/t") => ("/transfer", "transaction-not-found"),
            _ => ("/transfer", "no-such-transaction"),
        };
        for name in ["none", "Orders", "%C3%A9", "a%2Fb", "%00"] {
            let path = format!("{}{verify}", path.replacen(there, &format!("/{name}"), 1));
            // What is released, renewed or acknowledged is known by its token or receipt alone.
            let known_otherwise = kind == "locks" && (*method == Method::PUT || *method == Method::DELETE)
                || ["/events", "/ack", "/nack", "/extend", "/receipts/r"]
                    .iter()
                    .any(|end| path.ends_with(end));
            if known_otherwise {
                continue;
            }
            trial.refused((method, &path), &[], body.clone(), (404, code)).await?;
        }
        let begins = ["/k", "/orders", "/messages", "/receive", "/redrive", "/transfer"];
        if *method == Method::POST && begins.iter().any(|end| path.ends_with(end)) {
            let path = path.replacen(there, "/later", 1);
            trial.refused((method, &path), &[], body, (501, "mode-not-supported")).await?;
        }
    }
    trial.end().await
}

#[tokio::test]
async fn bodies_are_taken_as_they_are_described_or_not_at_all() -> Result<()> {
    let mut trial = Trial::begin().await?;
    let deep = "[".repeat(100_000);
    let deep_object = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
    for Route { method, path, takes } in &routes() {
        let to = (method, *path);
        let malformed = ["{", "nul", "\u{fffd}", "{}{}", "{'a':1}", "{\"a\":1,}", &deep, &deep_object];
        match takes {
            Takes::Object(fields, must) => {
                for body in malformed.iter().chain(&["[]", "1", "null", "\"text\""]) {
                    trial.refused(to, &[], (*body).to_owned(), INVALID).await?;
                }
                if *must == Must::BeThere {
                    trial.refused(to, &[], "", INVALID).await?;
                }
                for (field, good, wrong) in *fields {
                    trial.refused(to, &[], format!("{{\"{field}\":{wrong}}}"), INVALID).await?;
                    trial
                        .refused(to, &[], format!("{{\"{field}\":{good},\"{field}\":{good}}}"), INVALID)
                        .await?;
                    let answer = trial
                        .refused(to, &[], format!("{{\"{field}\":{good},\"nonsense\":1}}"), INVALID)
                        .await?;
                    ensure!(answer.text.contains("nonsense"), "it is not said which field: {answer:?}");
                }
            }
            Takes::Json => {
                for body in malformed.iter().chain(&[""]) {
                    trial.refused(to, &[], (*body).to_owned(), INVALID).await?;
                }
                let long = format!("\"{}\"", "x".repeat(256 * 1024));
                trial.refused(to, &[], long, (413, "payload-too-large")).await?;
            }
            Takes::Bytes | Takes::Nothing => {}
        }
    }
    trial.end().await
}

#[tokio::test]
async fn parameters_keys_and_headers_are_checked() -> Result<()> {
    let mut trial = Trial::begin().await?;
    let long_key = format!("/v1/locks/orders/{}", "k".repeat(513));
    let (get, post, put, delete) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    let rows: Vec<(&Method, String)> = [
        (&post, "/v1/locks/orders/k?wait=5"),
        (&post, "/v1/locks/orders/k?wait=-5s"),
        (&post, "/v1/locks/orders/k?wait=1s&wait=1s"),
        (&post, "/v1/locks/orders/k?w%61it=1s&wait=1s"),
        (&post, "/v1/locks/orders/k?wait=%FF"),
        (&post, "/v1/locks/orders/%FF"),
        (&get, "/v1/locks/orders/%FF"),
        (&post, &long_key),
        (&get, &long_key),
        (&get, "/v1/locks/orders/k/verify"),
        (&get, "/v1/locks/orders/k/verify?fence=x"),
        (&get, "/v1/locks/orders/k/verify?fence=-1"),
        (&get, "/v1/locks/orders/k/verify?fence=1.5"),
        (&post, "/v1/queues/jobs/receive?max=0"),
        (&post, "/v1/queues/jobs/receive?max=-1"),
        (&post, "/v1/queues/jobs/receive?max=many"),
        (&post, "/v1/queues/jobs/receive?max=1&max=1"),
        (&post, "/v1/queues/jobs/receive?wait=forever"),
        (&post, "/v1/queues/jobs/receive?visibility=0"),
        (&get, "/v1/queues/jobs/dead?max=x"),
        (&get, "/v1/transactions/transfer?state=nonsense"),
        (&get, "/v1/transactions/transfer?limit=x"),
        (&get, "/v1/transactions/transfer/t?wait=x"),
        (&get, "/v1/transactions/transfer/%FF"),
        (&post, "/v1/transactions/transfer?wait=x"),
    ]
    .into_iter()
    .map(|(method, path)| (method, path.to_owned()))
    .collect();
    for (method, path) in &rows {
        trial.refused((method, path), &[], "{}", INVALID).await?;
    }
    let lock = "/v1/locks/orders/k";
    let (events, release) = ("/v1/locks/orders/k/events", "/v1/locks:release");
    for (method, path) in [(&put, lock), (&delete, lock), (&get, events), (&post, release)] {
        trial.refused((method, path), &[], "", INVALID).await?;
        trial.refused((method, path), &[("lock-token", "a"), ("lock-token", "a")], "", INVALID).await?;
        let unknown = (412, "lock-token-mismatch");
        trial.refused((method, path), &[("lock-token", "a")], "", unknown).await?;
    }
    let many: Vec<String> = (0..33).map(|key| format!(r#"{{"lock":"orders","key":"{key}"}}"#)).collect();
    let many = format!(r#"{{"locks":[{}]}}"#, many.join(","));
    for body in [
        "",
        "{}",
        r#"{"locks":[]}"#,
        r#"{"locks":["orders"]}"#,
        r#"{"locks":[{"key":"k"}]}"#,
        r#"{"locks":[{"lock":"orders","key":""}]}"#,
        r#"{"locks":[{"lock":"orders","kye":"k"}]}"#,
        r#"{"locks":[{"lock":"orders","key":"k"},{"lock":"orders","key":"k"}]}"#,
        r#"{"locks":[{"lock":"orders"},{"lock":"orders","key":"-"}]}"#,
        r#"{"locks":[{"lock":"orders","mode":"shared"}]}"#,
        r#"{"locks":[{"lock":"orders","permits":2}]}"#,
        r#"{"locks":[{"lock":"orders"}],"ttl":"1s"}"#,
        r#"{"locks":[{"lock":"orders"}],"wait":5}"#,
        &many,
    ] {
        trial.refused((&post, "/v1/locks:acquire"), &[], body.to_owned(), INVALID).await?;
    }
    let nowhere = r#"{"locks":[{"lock":"orders"},{"lock":"nowhere"}]}"#;
    trial.refused((&post, "/v1/locks:acquire"), &[], nowhere, (404, "no-such-lock")).await?;
    let key = "k".repeat(1024);
    trial.refused((&post, lock), &[("idempotency-key", "")], "", INVALID).await?;
    trial.refused((&post, lock), &[("idempotency-key", &key)], "", INVALID).await?;
    trial.refused((&post, lock), &[("idempotency-key", "a"), ("idempotency-key", "a")], "", INVALID).await?;

    let messages = "/v1/queues/jobs/messages";
    for headers in [
        &[("delay", "soon")][..],
        &[("ttl", "-1s")],
        &[("producer-id", "p")],
        &[("producer-seq", "1")],
        &[("producer-id", "p"), ("producer-seq", "x")],
        &[("message-key", "a"), ("message-key", "a")],
        &[("content-type", "application/cloudevents+json")],
        &[("content-type", "application/cloudevents-batch+json")],
    ] {
        trial.refused((&post, messages), headers, "{", INVALID).await?;
    }
    trial.refused((&post, messages), &[], vec![b'x'; 256 * 1024 + 1], (413, "message-too-large")).await?;

    let id = "i".repeat(129);
    for headers in [
        &[("transaction-id", "")][..],
        &[("transaction-id", &id)],
        &[("transaction-id", "a"), ("transaction-id", "b")],
    ] {
        trial.refused((&post, "/v1/transactions/transfer"), headers, "{}", INVALID).await?;
    }
    trial.end().await
}

/// Bytes that no parser expects, from a seed that a failure names.
#[tokio::test]
async fn no_body_whatever_makes_it_fail() -> Result<()> {
    let trial = Trial::begin().await?;
    let mut failed = BTreeMap::new();
    let routes = routes();
    for Route { method, path, takes } in &routes {
        if !matches!(takes, Takes::Object(..)) {
            continue;
        }
        for seed in 0..200 {
            let body = garbled(seed);
            let answer = trial.sidecar.ask(method, path, &[], body.clone()).await?;
            if answer.status.is_server_error() {
                failed.insert((path, seed), format!("{:?}: {answer:?}", String::from_utf8_lossy(&body)));
            }
        }
    }
    ensure!(failed.is_empty(), "{failed:#?}");
    let metrics = trial.sidecar.health("/metrics").await?.text;
    ensure!(metrics.contains("concordat_sidecar_panics_total 0"), "it panicked");
    Ok(())
}

/// Something close to JSON of the API's own words.
fn garbled(seed: u64) -> Vec<u8> {
    const WORDS: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\"ttl\"",
        "\"owner\"",
        "\"receipts\"",
        "\"reason\"",
        "\"all\"",
        "\"ids\"",
        "\"delay\"",
        "null",
        "true",
        "1",
        "-1",
        "1e400",
        "9223372036854775808",
        "\"5s\"",
        "\"\\ud800\"",
        "\\",
        "\u{0}",
        "é",
    ];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    };
    let length = next(24);
    let mut body: Vec<u8> = (0..length).flat_map(|_| WORDS[next(WORDS.len())].bytes()).collect();
    if next(3) == 0 && !body.is_empty() {
        let at = next(body.len());
        body[at] = next(256) as u8;
    }
    body
}
