//! Calls to the app on 127.0.0.1, and to nobody else: what participants are asked.

use std::time::Duration;

use bytes::Bytes;
use concordat_protocol::{
    Branch, Millis, TransactionId,
    transaction::{
        Operation,
        participant::{Call, Called},
        plans::MAX_RESULT,
    },
};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use opentelemetry::trace::SpanKind;

use crate::{
    api::{extract, trace::TraceParent},
    spans::{Said, Span},
};

/// How long a call that has timed out is still waited for: until the app has answered or closed its connection, so that
/// the next operation does not meet with it, but not for ever.
const LINGER: Duration = Duration::from_secs(10);
/// Of what an app says with a no, so many characters are kept.
const REASON: usize = 1_024;
/// An app that takes no connection in this time is not there.
const CONNECT: Duration = Duration::from_secs(2);

/// Calls the app. Cheap to clone; connections are kept and shared.
#[derive(Clone)]
pub struct Callbacks {
    app_port: Option<u16>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Callbacks {
    /// For the app at this port of 127.0.0.1, if there is one.
    pub fn new(app_port: Option<u16>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            // A call that met with a closed connection may have been heard: it is the machine that tries again.
            .retry_canceled_requests(false)
            .build(connector);
        Self { app_port, client }
    }

    /// Calls the app for a branch with its input as JSON text. A call that takes longer than the participant's time-out
    /// is to be tried again, unless its answer comes before the next attempt could have begun.
    pub async fn call(&self, id: &TransactionId, branch: &Branch, call: &Call, input: String) -> Called {
        let Some(port) = self.app_port else {
            return Called::Again("the sidecar was not told the app's port".into());
        };
        let parent = TraceParent::parse(&call.work.traceparent);
        let mut span = Span::of(parent.as_ref(), SpanKind::Client, || "POST callback".into());
        span.say(|| said(id, branch, call));
        let own = span.traceparent().or_else(|| parent.map(|parent| parent.child()));
        let request = match request(port, id, branch, call, input, own) {
            Ok(request) => request,
            Err(error) => return Called::No(format!("the call cannot be made: {error}")),
        };
        span.say(|| asked(port, &request));
        let timeout = call.work.participant.timeout.max(1);
        let linger = Duration::from_millis(timeout).min(LINGER);
        match tokio::time::timeout(Duration::from_millis(timeout) + linger, self.answer(request)).await {
            Ok(Ok((status, body))) => {
                span.say(|| [("http.response.status_code", i64::from(status.as_u16()).into())]);
                if !status.is_success() {
                    span.fail(|| status.as_u16().to_string().into());
                }
                heard(status, &body)
            }
            Ok(Err(why)) => {
                span.fail(|| "no-answer".into());
                Called::Again(why)
            }
            Err(_) => {
                span.fail(|| "timeout".into());
                Called::Again(timed_out(timeout))
            }
        }
    }

    /// The status and what of the body is kept.
    async fn answer(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
        let response = self.client.request(request).await.map_err(|error| describe(&error))?;
        let status = response.status();
        match Limited::new(response.into_body(), MAX_RESULT).collect().await {
            Ok(body) => Ok((status, body.to_bytes())),
            // The code alone decides; what is too long is not kept.
            Err(error) if error.is::<LengthLimitError>() => Ok((status, Bytes::new())),
            Err(error) => Err(format!("the answer broke off: {error}")),
        }
    }
}

/// What a call is about, as its span says it.
fn said(id: &TransactionId, branch: &Branch, call: &Call) -> [Said; 4] {
    [
        ("concordat.transaction.id", id.to_string().into()),
        ("concordat.participant", branch.to_string().into()),
        ("concordat.action", name(call.work.operation).into()),
        ("concordat.attempt", i64::from(call.attempt).into()),
    ]
}

/// Whom a call asks, as its span says it.
fn asked(port: u16, request: &Request<Full<Bytes>>) -> [Said; 4] {
    [
        ("http.request.method", "POST".into()),
        ("url.full", request.uri().to_string().into()),
        ("server.address", "127.0.0.1".into()),
        ("server.port", i64::from(port).into()),
    ]
}

fn request(
    port: u16,
    id: &TransactionId,
    branch: &Branch,
    call: &Call,
    input: String,
    traceparent: Option<TraceParent>,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let path = call.work.participant.path.trim_end_matches('/');
    let uri = format!("http://127.0.0.1:{port}{path}/{}", name(call.work.operation));
    let mut request = Request::builder();
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent.as_str());
    }
    request
        .method(Method::POST)
        .uri(uri)
        .header(header::CONTENT_TYPE, "application/json")
        // An id may be any UTF-8.
        .header("concordat-transaction", HeaderValue::from_bytes(id.as_str().as_bytes())?)
        .header("concordat-branch", branch.as_str())
        .header("concordat-operation", name(call.work.operation))
        .header("concordat-attempt", call.attempt)
        .header("concordat-epoch", call.epoch)
        .body(Full::new(Bytes::from(input)))
}

/// What an operation is called.
pub(crate) fn name(operation: Operation) -> &'static str {
    match operation {
        Operation::Prepare => "prepare",
        Operation::Commit => "commit",
        Operation::Abort => "abort",
    }
}

/// What a status means. Codes alone decide, never the body's words.
fn heard(status: StatusCode, body: &Bytes) -> Called {
    let text = std::str::from_utf8(body).unwrap_or_default();
    match status.as_u16() {
        200..=299 => {
            let json = extract::readable(text.as_bytes()).is_ok();
            Called::Yes(if json { text.to_owned() } else { String::new() })
        }
        408 | 425 | 429 => Called::Again(status.to_string()),
        400..=499 => {
            let said: String = text.trim().chars().take(REASON).collect();
            Called::No(if said.is_empty() { status.to_string() } else { format!("{status}: {said}") })
        }
        _ => Called::Again(status.to_string()),
    }
}

fn timed_out(timeout: Millis) -> String {
    format!("no answer within {timeout} ms")
}

fn describe(error: &hyper_util::client::legacy::Error) -> String {
    if error.is_connect() {
        return "the app takes no connection".into();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_alone_decide() {
        let hear = |status: u16, body: &'static str| {
            heard(StatusCode::from_u16(status).unwrap(), &Bytes::from_static(body.as_bytes()))
        };
        assert_eq!(hear(200, "{\"FAILURE\": true}"), Called::Yes("{\"FAILURE\": true}".into()));
        assert_eq!(hear(204, ""), Called::Yes(String::new()));
        assert_eq!(hear(200, "not JSON"), Called::Yes(String::new()));
        assert_eq!(hear(409, "no funds"), Called::No("409 Conflict: no funds".into()));
        assert_eq!(hear(404, ""), Called::No("404 Not Found".into()));
        for status in [408, 425, 429, 500, 503, 301] {
            assert!(matches!(hear(status, "{\"result\": \"SUCCESS\"}"), Called::Again(_)), "{status}");
        }
    }
}
