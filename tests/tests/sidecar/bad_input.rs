//! Wrong input, for every route: it is refused by its code, and etcd is as it was before. The routes and what they take
//! are those that the sidecar itself describes.

mod described;
mod wrong;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use http_body_util::Full;
use hyper::{Method, Request};
use serde_json::Value;

use self::{
    described::{Body, Call, Operation, Place, operations},
    wrong::{Refusal, Row, of_body, of_parameter},
};
use crate::world::{Answer, Sidecar, World};

/// Requests that must be refused, and what must not have happened.
struct Trial {
    world: World,
    sidecar: Sidecar,
    revision: i64,
    wrong: Vec<String>,
}

impl Trial {
    async fn begin() -> Result<(Self, Vec<Operation>)> {
        let world = World::new().await?;
        let sidecar = world.sidecar(&[]).await?;
        let operations = operations(&sidecar).await?;
        let revision = world.etcd.revision().await?;
        Ok((Self { world, sidecar, revision, wrong: Vec::new() }, operations))
    }

    async fn refused(
        &mut self,
        (method, path): (&Method, &str),
        headers: &[(&str, &str)],
        body: impl Into<hyper::body::Bytes>,
        by: (u16, &str),
    ) -> Result<Answer> {
        let answer = self.sidecar.ask(method, path, headers, body).await?;
        let what = format!("{method} {path:.80} {headers:.60?}");
        self.judge(&what, &answer, &[by]);
        Ok(answer)
    }

    fn judge(&mut self, what: &str, answer: &Answer, by: &[(u16, &str)]) {
        let told = (answer.status.as_u16(), answer.code());
        let is_problem =
            answer.headers.get("content-type").is_some_and(|of| of == "application/problem+json");
        if !by.contains(&(told.0, &*told.1)) || !is_problem {
            self.wrong.push(format!("{what}: {told:?} for {by:?}: {:.300}", answer.text));
        }
    }

    /// Sends a call of an operation.
    async fn send(&self, operation: &Operation, call: Call) -> Result<Answer> {
        let uri = format!("http://127.0.0.1:{}{}", self.sidecar.api, operation.uri(&call));
        let mut request = Request::builder().method(&operation.method).uri(uri);
        for (name, value) in &call.headers {
            request = request.header(name, value.as_slice());
        }
        self.sidecar.send(request.body(Full::new(call.body.into()))?).await
    }

    /// Sends a call that has one thing wrong.
    async fn row(&mut self, operation: &Operation, Row { what, call, refusal }: Row) -> Result<()> {
        let answer = self.send(operation, call).await?;
        let what = format!("{} {}: {what}", operation.method, operation.path);
        match refusal {
            // What no mode has yet is refused as such, too.
            Refusal::By(by) if !operation.works => {
                self.judge(&what, &answer, &[by, &[(501, "mode-not-supported")]].concat());
            }
            Refusal::By(by) => self.judge(&what, &answer, by),
            Refusal::Entry => {
                let of: Value = serde_json::from_str(&answer.text).unwrap_or_default();
                let refused = |of: &Value| matches!(of["status"].as_u64(), Some(400..500));
                let results = of["results"].as_array();
                if !results.is_some_and(|all| !all.is_empty() && all.iter().all(refused)) {
                    self.wrong.push(format!("{what}: an entry is taken: {:.300}", answer.text));
                }
            }
        }
        if what.ends_with("nonsense") && !answer.text.contains("nonsense") {
            self.wrong.push(format!("{what}: it is not said which field: {:.300}", answer.text));
        }
        Ok(())
    }

    async fn end(self) -> Result<()> {
        let shown: Vec<_> = self.wrong.iter().take(50).map(String::as_str).collect();
        ensure!(self.wrong.is_empty(), "{} were wrong:\n{}", self.wrong.len(), shown.join("\n"));
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
    let (mut trial, operations) = Trial::begin().await?;
    let huge = vec![b'1'; 1_536 * 1024 + 1];
    let methods: BTreeSet<(&str, &str)> =
        operations.iter().map(|operation| (operation.path.as_str(), operation.method.as_str())).collect();
    for operation in &operations {
        let (method, call) = (&operation.method, operation.call());
        let path = operation.uri(&Call { query: Vec::new(), ..call.clone() });
        let to = (method, path.as_str());
        for host in ["example.com", "127.0.0.1.nip.io:4700", "10.0.0.1"] {
            trial.refused(to, &[("host", host)], "", (421, "foreign-host")).await?;
        }
        for origin in ["https://example.com", "null", "http://127.0.0.1"] {
            trial.refused(to, &[("origin", origin)], "", (403, "origin-refused")).await?;
        }
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            // HEAD is GET's.
            if !methods.contains(&(operation.path.as_str(), method)) {
                let method = Method::from_bytes(method.as_bytes())?;
                trial.refused((&method, &path), &[], "", (405, "method-not-allowed")).await?;
            }
        }
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
async fn every_parameter_of_every_route_refuses_what_it_cannot_be() -> Result<()> {
    let (mut trial, operations) = Trial::begin().await?;
    for operation in &operations {
        for parameter in &operation.parameters {
            for row in of_parameter(operation, parameter) {
                trial.row(operation, row).await?;
            }
        }
    }
    trial.end().await
}

#[tokio::test]
async fn every_body_is_taken_as_it_is_described_or_not_at_all() -> Result<()> {
    let (mut trial, operations) = Trial::begin().await?;
    for operation in &operations {
        for row in of_body(operation) {
            trial.row(operation, row).await?;
        }
    }
    trial.end().await
}

#[tokio::test]
async fn objects_that_are_not_there_or_do_not_work_yet_are_named() -> Result<()> {
    let (mut trial, operations) = Trial::begin().await?;
    for operation in &operations {
        let one = operation.has(Place::Path, "id");
        let Some((name, code)) = [
            ("lock", "no-such-lock"),
            ("queue", "no-such-queue"),
            ("transaction", if one { "transaction-not-found" } else { "no-such-transaction" }),
        ]
        .into_iter()
        .find(|(name, _)| operation.has(Place::Path, name)) else {
            continue;
        };
        let call = |object: &str| {
            let mut call = operation.call();
            let segments = call.segments.iter_mut().filter(|(segment, _)| segment == name);
            segments.for_each(|(_, value)| object.clone_into(value));
            call
        };
        // What is renewed or released is known by its token alone.
        if !operation.has(Place::Header, "Lock-Token") {
            for object in ["none", "Orders", "%C3%A9", "a%2Fb", "%00"] {
                let answer = trial.send(operation, call(object)).await?;
                let what = format!("{} {} of {object}", operation.method, operation.path);
                trial.judge(&what, &answer, &[(404, code)]);
            }
        }
        let begins = operation.method == Method::POST && !one;
        if begins {
            let answer = trial.send(operation, call("later")).await?;
            let what = format!("{} {} of what works later", operation.method, operation.path);
            trial.judge(&what, &answer, &[(501, "mode-not-supported")]);
        }
    }
    trial.end().await
}

/// What no description says: what is wrong together, or of this object.
#[tokio::test]
async fn what_is_wrong_only_together_is_refused_too() -> Result<()> {
    let (mut trial, _) = Trial::begin().await?;
    let (get, post) = (Method::GET, Method::POST);
    let long_key = format!("/v1/locks/orders/{}", "k".repeat(513));
    let rows: Vec<(&Method, String)> = [
        (&post, "/v1/locks/orders/k?w%61it=1s&wait=1s"),
        (&post, &long_key),
        (&get, &long_key),
        (&post, "/v1/queues/jobs/receive?max=0"),
        (&post, "/v1/queues/jobs/receive?max=1001"),
        (&post, "/v1/queues/jobs/receive?visibility=0"),
        (&post, "/v1/queues/jobs/receive?wait=11m"),
        (&post, "/v1/queues/jobs/receive?group=g"),
        (&get, "/v1/queues/jobs/dead?max=0"),
        (&get, "/v1/transactions/transfer?limit=0"),
        (&get, "/v1/transactions/transfer?limit=1001"),
        (&post, "/v1/transactions/transfer?wait=61m"),
    ]
    .into_iter()
    .map(|(method, path)| (method, path.to_owned()))
    .collect();
    for (method, path) in &rows {
        trial.refused((method, path), &[], "{}", INVALID).await?;
    }
    let lock = "/v1/locks/orders/k";
    for body in [
        r#"{"ttl":"1s"}"#,
        r#"{"maxHold":"0s"}"#,
        r#"{"mode":"shared"}"#,
        r#"{"permits":0}"#,
        r#"{"permits":2}"#,
    ] {
        trial.refused((&post, lock), &[], body, INVALID).await?;
    }
    let many: Vec<String> = (0..33).map(|key| format!(r#"{{"lock":"orders","key":"{key}"}}"#)).collect();
    let many = format!(r#"{{"locks":[{}]}}"#, many.join(","));
    for body in [
        r#"{"locks":[{"lock":"orders","key":""}]}"#,
        r#"{"locks":[{"lock":"orders","key":"k"},{"lock":"orders","key":"k"}]}"#,
        r#"{"locks":[{"lock":"orders"},{"lock":"orders","key":"-"}]}"#,
        r#"{"locks":[{"lock":"orders","mode":"shared"}]}"#,
        r#"{"locks":[{"lock":"orders","permits":2}]}"#,
        r#"{"locks":[{"lock":"orders"}],"ttl":"1s"}"#,
        &many,
    ] {
        trial.refused((&post, "/v1/locks:acquire"), &[], body.to_owned(), INVALID).await?;
    }
    let nowhere = r#"{"locks":[{"lock":"orders"},{"lock":"nowhere"}]}"#;
    trial.refused((&post, "/v1/locks:acquire"), &[], nowhere, (404, "no-such-lock")).await?;
    let redrive = "/v1/queues/jobs/dead/redrive";
    for body in ["{}", r#"{"all":false}"#, r#"{"all":true,"ids":[]}"#] {
        trial.refused((&post, redrive), &[], body, INVALID).await?;
    }
    for headers in [
        &[("producer-id", "p")][..],
        &[("producer-seq", "1")],
        &[("producer-id", "p"), ("producer-seq", "1"), ("idempotency-key", "k")],
        &[("delay", "2h")],
        &[("ttl", "1s"), ("delay", "1s")],
        &[("ce-specversion", "1.0")],
        &[("ce-specversion", "2.0"), ("ce-id", "1"), ("ce-source", "/"), ("ce-type", "t")],
    ] {
        trial.refused((&post, "/v1/queues/jobs/messages"), headers, "{", INVALID).await?;
    }
    let both = [("transaction-id", "a"), ("idempotency-key", "b")];
    trial.refused((&post, "/v1/transactions/transfer"), &both, "{}", INVALID).await?;
    trial.end().await
}

/// Bytes that no parser expects, from a seed that a failure names.
#[tokio::test]
async fn no_body_whatever_makes_it_fail() -> Result<()> {
    let (trial, operations) = Trial::begin().await?;
    let mut failed = BTreeMap::new();
    for operation in &operations {
        let Body::Object(object, _) = &operation.body else { continue };
        let names: Vec<_> = object
            .fields
            .iter()
            .map(|field| {
                format!("{:?}", field.path.rsplit('.').next().unwrap_or_default().trim_matches(['[', ']']))
            })
            .collect();
        for seed in 0..200 {
            let body = garbled(seed, &names);
            let answer = trial.send(operation, Call { body: body.clone(), ..operation.call() }).await?;
            if answer.status.is_server_error() {
                failed.insert(
                    (&operation.path, seed),
                    format!("{:?}: {answer:?}", String::from_utf8_lossy(&body)),
                );
            }
        }
    }
    ensure!(failed.is_empty(), "{failed:#?}");
    let metrics = trial.sidecar.health("/metrics").await?.text;
    ensure!(metrics.contains("concordat_sidecar_panics_total 0"), "it panicked");
    Ok(())
}

/// Something close to JSON of the API's own words.
fn garbled(seed: u64, names: &[String]) -> Vec<u8> {
    const WORDS: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
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
    let mut body: Vec<u8> = (0..length)
        .flat_map(|_| match next(WORDS.len() + names.len()).checked_sub(WORDS.len()) {
            None => WORDS[next(WORDS.len())].bytes(),
            Some(name) => names[name].bytes(),
        })
        .collect();
    if next(3) == 0 && !body.is_empty() {
        let at = next(body.len());
        body[at] = next(256) as u8;
    }
    body
}
