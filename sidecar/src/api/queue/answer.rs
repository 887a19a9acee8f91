//! What is answered of queues.

use base64::{Engine, engine::general_purpose::STANDARD};
use concordat_protocol::{
    Millis,
    queue::{
        Message,
        delivery::{Delivered, Status},
        location::offset,
        publish::Published,
    },
};
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::request::Encoded;
use crate::{
    api::duration::GoDuration,
    engine::queue::{DeadMessage, Inspection},
    problem::{Outcome, Problem},
};

/// A message's id: unique in its queue.
pub fn message_id(partition: u32, offset: u64) -> String {
    format!("{partition}-{offset}")
}

/// A message that is stored.
#[derive(Serialize, ToSchema)]
pub(super) struct Stored {
    id: String,
    /// Strictly rising within a partition, not dense; below 2^53.
    offset: u64,
    /// Whether an earlier call stored it.
    duplicate: bool,
}

impl Stored {
    pub(super) fn of(partition: u32, revision: i64, index: u32, duplicate: bool) -> Self {
        let offset = offset(revision, index);
        Self { id: message_id(partition, offset), offset, duplicate }
    }
}

/// What became of the entries of a batch, in their order.
#[derive(Serialize, ToSchema)]
pub(super) struct Results {
    pub(super) results: Vec<EntryResult>,
}

/// What became of one entry.
#[derive(Serialize, ToSchema)]
pub(super) struct EntryResult {
    /// What the status would be if it had come alone.
    status: u16,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    stored: Option<Stored>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
}

/// The result of an entry that was sent to be stored.
pub(super) fn result(published: Published, queue: &str) -> EntryResult {
    let Published::Stored { partition, revision, index, duplicate } = published else {
        return refused(problem(published, queue));
    };
    EntryResult {
        status: if duplicate { 200 } else { 201 },
        stored: Some(Stored::of(partition, revision, index, duplicate)),
        code: None,
        detail: None,
        outcome: None,
    }
}

/// The result of an entry that was refused.
pub(super) fn refused(problem: Problem) -> EntryResult {
    EntryResult {
        status: problem.status.as_u16(),
        stored: None,
        code: Some(problem.code),
        detail: Some(problem.detail),
        outcome: problem.outcome,
    }
}

/// Why a message is not stored, or may not be.
pub(super) fn problem(published: Published, queue: &str) -> Problem {
    match published {
        Published::Full => Problem::new(StatusCode::TOO_MANY_REQUESTS, "queue-full", "The queue is full")
            .detail(format!("the Queue {queue:?} holds as many bytes as its spec.retention.bytes says"))
            .outcome(Outcome::NotApplied),
        Published::NoSuchQueue => {
            Problem::new(StatusCode::NOT_FOUND, "no-such-queue", "There is no such object")
                .detail(format!("the Queue {queue:?} was deleted or replaced"))
        }
        Published::Unknown => {
            let detail = "it is not known whether the message is stored: publish it again with the same \
                          Producer-Id and Producer-Seq, and it is stored once";
            Problem::unavailable("outcome-unknown", detail).outcome(Outcome::Unknown)
        }
        Published::NotApplied | Published::Stored { .. } => {
            Problem::unavailable("not-committed", "etcd did not take it")
        }
    }
}

/// Messages with what settles them.
#[derive(Serialize, ToSchema)]
pub(super) struct Messages<'a> {
    messages: Vec<Received<'a>>,
    /// What became of each receipt that the call brought along.
    #[serde(skip_serializing_if = "Option::is_none")]
    acked: Option<Vec<SettledOne>>,
}

/// A message in delivery.
#[derive(Serialize, ToSchema)]
struct Received<'a> {
    #[serde(flatten)]
    content: Content<'a>,
    /// How often it was handed out, this time included.
    deliveries: u32,
    /// What settles this delivery, and no other.
    receipt: Encoded,
    /// Until when it is this consumer's, RFC 3339.
    deadline: String,
}

impl<'a> Messages<'a> {
    pub(super) fn of(delivered: &'a [Delivered], acked: Option<Settled>) -> Self {
        let received = |delivered: &'a Delivered| {
            let receipt = &delivered.receipt;
            let offset = offset(receipt.segment.revision, receipt.place);
            let message = delivered.segment.messages.get(receipt.place as usize)?;
            Some(Received {
                content: Content::of(receipt.segment.partition, offset, message),
                deliveries: receipt.delivery,
                receipt: receipt.into(),
                deadline: timestamp(delivered.deadline),
            })
        };
        let messages = delivered.iter().filter_map(received).collect();
        Self { messages, acked: acked.map(|settled| settled.results) }
    }
}

/// A message as it was published.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the API's names")]
struct Content<'a> {
    id: String,
    offset: u64,
    /// Its Message-Key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    content_type: &'a str,
    /// JSON when the content type is, text when it is text, else base64.
    #[schema(value_type = Object)]
    body: Body<'a>,
    /// `base64` when the body is.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    #[serde(serialize_with = "headers")]
    #[schema(value_type = Object)]
    headers: &'a [(String, String)],
    /// When it was published, RFC 3339.
    published: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    Json(&'a RawValue),
    Text(&'a str),
    Base64(String),
}

impl<'a> Content<'a> {
    fn of(partition: u32, offset: u64, message: &'a Message) -> Self {
        let body = body(&message.content_type, &message.body);
        Self {
            id: message_id(partition, offset),
            offset,
            key: (!message.key.is_empty()).then_some(&message.key),
            content_type: &message.content_type,
            encoding: matches!(body, Body::Base64(_)).then_some("base64"),
            body,
            headers: &message.headers,
            published: timestamp(message.published),
        }
    }
}

fn body<'a>(content_type: &str, body: &'a [u8]) -> Body<'a> {
    if is_json(content_type)
        && let Ok(json) = serde_json::from_slice(body)
    {
        return Body::Json(json);
    }
    match std::str::from_utf8(body) {
        Ok(text) if is_text(content_type) => Body::Text(text),
        _ => Body::Base64(STANDARD.encode(body)),
    }
}

fn headers<S: serde::Serializer>(headers: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(headers.iter().map(|(name, value)| (name, value)))
}

/// Whether a body of this content type is JSON.
pub(super) fn is_json(content_type: &str) -> bool {
    let essence = essence(content_type);
    essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
}

fn is_text(content_type: &str) -> bool {
    let essence = essence(content_type).to_ascii_lowercase();
    let types = ["application/x-www-form-urlencoded", "application/xml", "application/yaml"];
    essence.starts_with("text/") || essence.ends_with("+xml") || types.contains(&essence.as_str())
}

/// A content type without its parameters.
pub(super) fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

fn timestamp(millis: Millis) -> String {
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX).to_string()
}

/// What became of deliveries, in the order of the receipts.
#[derive(Serialize, ToSchema)]
pub(super) struct Settled {
    results: Vec<SettledOne>,
}

#[derive(Serialize, ToSchema)]
struct SettledOne {
    receipt: Encoded,
    /// `ok`; `stale`: the delivery had ended otherwise; `unknown`: ask again.
    status: &'static str,
}

impl Settled {
    pub(super) fn of(receipts: &[Encoded], statuses: &[Status]) -> Self {
        let results = receipts.iter().zip(statuses).map(|(receipt, status)| SettledOne {
            receipt: receipt.clone(),
            status: match status {
                Status::Ok => "ok",
                Status::Stale => "stale",
                Status::Unknown => "unknown",
            },
        });
        Self { results: results.collect() }
    }
}

/// A queue's messages by where they stand.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Counted {
    queue: String,
    mode: &'static str,
    /// etcd's revision at which all of it was counted.
    revision: i64,
    /// Those that a consumer could have now.
    ready: u64,
    /// Those that a consumer has.
    in_flight: u64,
    /// Those that wait for their time.
    delayed: u64,
    /// Dead letters.
    dead: u64,
    /// Bytes of all segments.
    bytes: u64,
    /// Age of the oldest message that may still be delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_age: Option<GoDuration>,
}

impl Counted {
    pub(super) fn of(queue: String, inspection: &Inspection, now: Millis) -> Self {
        let Inspection { revision, counts, oldest } = *inspection;
        Self {
            queue,
            mode: "WorkQueue",
            revision,
            ready: counts.ready,
            in_flight: counts.in_flight,
            delayed: counts.delayed,
            dead: counts.dead,
            bytes: counts.bytes,
            oldest_age: oldest.map(|published| GoDuration(now.saturating_sub(published))),
        }
    }
}

/// Dead letters, oldest first.
#[derive(Serialize, ToSchema)]
pub(super) struct DeadMessages<'a> {
    messages: Vec<Dead<'a>>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the API's names")]
struct Dead<'a> {
    #[serde(flatten)]
    content: Content<'a>,
    /// How often it was handed out.
    deliveries: u32,
    /// Why it was given up.
    reason: &'a str,
    /// When, RFC 3339.
    dead_since: String,
}

impl<'a> DeadMessages<'a> {
    pub(super) fn of(dead: &'a [DeadMessage]) -> Self {
        let letters = dead.iter().map(|dead| Dead {
            content: Content::of(dead.partition, dead.offset, &dead.letter.message),
            deliveries: dead.letter.deliveries,
            reason: &dead.letter.reason,
            dead_since: timestamp(dead.letter.at),
        });
        Self { messages: letters.collect() }
    }
}

/// How many dead letters were put back.
#[derive(Serialize, ToSchema)]
pub(super) struct Redriven {
    pub(super) redriven: usize,
}
