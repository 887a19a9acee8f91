//! `Idempotency-Key` where only this sidecar need remember it: a repeat of an acquire is answered what the first one was.
//! (Publish and begin remember theirs in etcd.)

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    extract,
    header::{self, IDEMPOTENCY_KEY},
};
use crate::problem::Problem;

/// How long an answer is remembered: well past the time a client goes on repeating a request.
const RETENTION: Duration = Duration::from_mins(10);
/// How many are remembered, at less than a KiB each; beyond that the oldest is forgotten.
const MOST: usize = 16_384;
/// What is told of both to those who call.
pub const PROMISE: &str = "A repeat within ten minutes is answered what the first call was; a sidecar remembers the last \
                           16,384 of these";
/// The longest key in bytes.
const LONGEST_KEY: usize = 256;

/// What a key was first used for.
type Id = [u8; 32];

#[derive(Clone)]
struct Remembered {
    status: StatusCode,
    /// A map of them would take more than all the rest.
    headers: Box<[(HeaderName, HeaderValue)]>,
    body: Bytes,
}

struct Slot {
    request: Id,
    /// Held while the first request runs: repeats wait here. Still empty afterwards when it was dropped or came to
    /// nothing; then the next one runs.
    answer: tokio::sync::Mutex<Option<Remembered>>,
}

#[derive(Default)]
struct Slots {
    by_key: HashMap<Id, Arc<Slot>>,
    by_age: VecDeque<(Instant, Id)>,
}

impl Slots {
    /// Forgets what is too old or too much, but nothing that is under way: a repeat is to join it, however long it waits.
    fn forget(&mut self, now: Instant) {
        for _ in 0..self.by_age.len() {
            let Some((since, oldest)) = self.by_age.front().copied() else { return };
            if now - since < RETENTION && self.by_age.len() < MOST {
                return;
            }
            self.by_age.pop_front();
            // Whoever runs it or waits for it has it too.
            if self.by_key.get(&oldest).is_some_and(|slot| Arc::strong_count(slot) > 1) {
                self.by_age.push_back((since, oldest));
            } else {
                self.by_key.remove(&oldest);
            }
        }
    }
}

/// The answers that are remembered.
#[derive(Clone, Default)]
pub struct Replays(Arc<Mutex<Slots>>);

impl Replays {
    /// The slot of a key, made when there is none.
    fn slot(&self, key: Id, request: Id) -> Result<Arc<Slot>, Problem> {
        let mut slots = self.0.lock();
        let now = Instant::now();
        slots.forget(now);
        if let Some(slot) = slots.by_key.get(&key) {
            if slot.request == request {
                return Ok(slot.clone());
            }
            return Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "The Idempotency-Key belongs to another request",
            )
            .detail(
                "the first request with this Idempotency-Key differed: use a new key for a new request",
            ));
        }
        let slot = Arc::new(Slot { request, answer: tokio::sync::Mutex::new(None) });
        slots.by_key.insert(key, slot.clone());
        slots.by_age.push_back((now, key));
        Ok(slot)
    }
}

/// Answers a request with an `Idempotency-Key` what the first one with it was answered; `run` answers the first.
pub async fn replay(
    replays: &Replays,
    request: Request,
    run: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    match remember(replays, request, run).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

async fn remember(
    replays: &Replays,
    request: Request,
    run: impl AsyncFnOnce(Request) -> Response,
) -> Result<Response, Problem> {
    let key = header::required(request.headers(), &IDEMPOTENCY_KEY)?;
    if !(1..=LONGEST_KEY).contains(&key.len()) {
        return Err(Problem::invalid(format!("header Idempotency-Key: write 1 to {LONGEST_KEY} bytes")));
    }
    // The key stands for itself on its own path; what else makes the request is what must not differ.
    let scope =
        digest(&[request.method().as_str().as_bytes(), request.uri().path().as_bytes(), key.as_bytes()]);
    let (parts, body) = request.into_parts();
    let body = extract::read(body).await?;
    let request_id = digest(&[parts.uri.query().unwrap_or_default().as_bytes(), &body]);
    let slot = replays.slot(scope, request_id)?;
    let mut answer = slot.answer.lock().await;
    if let Some(remembered) = answer.clone() {
        let mut response = Response::new(Body::from(remembered.body));
        *response.status_mut() = remembered.status;
        for (name, value) in remembered.headers {
            response.headers_mut().append(name, value);
        }
        return Ok(response);
    }
    let (head, body) = run(Request::from_parts(parts, Body::from(body))).await.into_parts();
    let body = extract::read(body).await?;
    // 429 and 5xx decided nothing that lasts: a repeat is worth a new attempt.
    if head.status != StatusCode::TOO_MANY_REQUESTS && !head.status.is_server_error() {
        let headers = head.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        *answer = Some(Remembered { status: head.status, headers, body: body.clone() });
    }
    Ok(Response::from_parts(head, Body::from(body)))
}

fn digest(parts: &[&[u8]]) -> Id {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use http_body_util::BodyExt;
    use tokio::sync::Semaphore;

    use super::*;

    #[derive(Clone)]
    struct App {
        replays: Replays,
        status: StatusCode,
        runs: Arc<AtomicU32>,
        gate: Arc<Semaphore>,
    }

    fn app(status: StatusCode, permits: usize) -> App {
        let (runs, gate) = (Arc::default(), Arc::new(Semaphore::new(permits)));
        App { replays: Replays::default(), status, runs, gate }
    }

    async fn ask(app: &App, uri: &str, key: &str, body: &'static str) -> (u16, String) {
        let request = Request::post(uri).header(&IDEMPOTENCY_KEY, key).body(Body::from(body)).unwrap();
        let run = async |_| {
            let run = app.runs.fetch_add(1, Ordering::Relaxed);
            app.gate.acquire().await.unwrap().forget();
            (app.status, [("x-run", run.to_string())], run.to_string()).into_response()
        };
        let response = replay(&app.replays, request, run).await;
        let (parts, body) = response.into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        if parts.status == StatusCode::OK {
            assert_eq!(parts.headers["x-run"], body.as_str());
        }
        (parts.status.as_u16(), body)
    }

    #[tokio::test]
    async fn a_repeat_is_answered_what_the_first_was_and_nothing_else_is() {
        let app = app(StatusCode::OK, 100);
        assert_eq!(ask(&app, "/a", "k", "x").await, (200, "0".into()));
        assert_eq!(ask(&app, "/a", "k", "x").await, (200, "0".into()));
        assert_eq!(ask(&app, "/a", "k", "y").await.0, 422, "another body");
        assert_eq!(ask(&app, "/a?wait=1s", "k", "x").await.0, 422, "another query");
        assert_eq!(ask(&app, "/a", "l", "x").await, (200, "1".into()), "another key");
        assert_eq!(ask(&app, "/b", "k", "x").await, (200, "2".into()), "another path");
        assert_eq!(ask(&app, "/a", "", "x").await.0, 400);
        assert_eq!(app.runs.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn what_decided_nothing_is_tried_again() {
        let app = app(StatusCode::SERVICE_UNAVAILABLE, 100);
        ask(&app, "/a", "k", "").await;
        ask(&app, "/a", "k", "").await;
        assert_eq!(app.runs.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_repeat_in_flight_joins_the_first() {
        let app = app(StatusCode::OK, 0);
        let both = async { tokio::join!(ask(&app, "/a", "k", ""), ask(&app, "/a", "k", "")) };
        let (answers, ()) = tokio::join!(both, async { app.gate.add_permits(2) });
        assert_eq!(answers, ((200, "0".into()), (200, "0".into())));
        assert_eq!(app.runs.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_first_that_hangs_up_leaves_its_place_to_the_repeat() {
        let app = app(StatusCode::OK, 0);
        {
            let mut first = Box::pin(ask(&app, "/a", "k", ""));
            assert!(futures::poll!(&mut first).is_pending());
            assert_eq!(app.runs.load(Ordering::Relaxed), 1);
        }
        app.gate.add_permits(1);
        assert_eq!(ask(&app, "/a", "k", "").await, (200, "1".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_forgotten_by_age_and_by_number() {
        let app = app(StatusCode::OK, 100_000);
        assert_eq!(ask(&app, "/a", "k", "").await.1, "0");
        tokio::time::advance(RETENTION).await;
        assert_eq!(ask(&app, "/a", "k", "").await.1, "1");
        for number in 0..MOST {
            ask(&app, "/a", &number.to_string(), "").await;
        }
        assert_eq!(ask(&app, "/a", "k", "").await.1, (MOST + 2).to_string());
        assert_eq!(app.replays.0.lock().by_key.len(), MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_not_forgotten() {
        let app = app(StatusCode::OK, 0);
        let mut first = Box::pin(ask(&app, "/a", "k", ""));
        assert!(futures::poll!(&mut first).is_pending());
        let others = App { gate: Arc::new(Semaphore::new(100_000)), ..app.clone() };
        for number in 0..2 * MOST {
            ask(&others, "/a", &number.to_string(), "").await;
        }
        tokio::time::advance(RETENTION).await;
        let both = async { tokio::join!(first, ask(&app, "/a", "k", "")) };
        let (answers, ()) = tokio::join!(both, async { app.gate.add_permits(2) });
        assert_eq!(answers, ((200, "0".into()), (200, "0".into())));
        assert_eq!(app.replays.0.lock().by_key.len(), 1);
    }
}
