//! Batches: entries that succeed and fail one by one.

use std::{collections::HashSet, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use concordat_protocol::queue::{Message, publish::Offer};
use http::{HeaderMap, header::CONTENT_TYPE};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    answer::{essence, is_json},
    cloud_event,
    offer::{Terms, Wishes, producer},
};
use crate::{
    api::{duration::GoDuration, extract, header},
    problem::Problem,
};

/// The most entries of a batch.
const MOST: usize = 10_000;

/// What a request's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One message.
    One,
    /// A JSON object a line.
    Lines,
    /// A JSON array of CloudEvents.
    CloudEvents,
}

/// An entry, or why it is refused. An offer is taken out of it when it is sent.
pub(super) type Entry = Result<Option<Offer>, Problem>;

/// By the content type.
pub(super) fn form(headers: &HeaderMap) -> Result<Form, Problem> {
    let content_type = header::text(headers, &CONTENT_TYPE)?.unwrap_or_default();
    Ok(match essence(content_type).to_ascii_lowercase().as_str() {
        "application/x-ndjson" => Form::Lines,
        "application/cloudevents-batch+json" => Form::CloudEvents,
        _ => Form::One,
    })
}

/// One message of a batch.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Line<'a> {
    /// JSON; with another content type text, or base64 with `encoding`.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    body: &'a RawValue,
    /// By default application/json.
    #[serde(default)]
    content_type: Option<String>,
    /// `base64` when the body is.
    #[serde(default)]
    encoding: Option<String>,
    #[serde(default)]
    key: String,
    /// Handed on with the message.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    headers: Headers,
    #[serde(default)]
    delay: Option<GoDuration>,
    #[serde(default)]
    ttl: Option<GoDuration>,
    #[serde(default)]
    producer_id: Option<String>,
    #[serde(default)]
    producer_seq: Option<u64>,
}

/// Headers of a message, their names in lower case and none twice.
#[derive(Default)]
struct Headers(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Headers, A::Error> {
                let (mut headers, mut names) = (Vec::new(), HashSet::new());
                while let Some((name, value)) = members.next_entry::<String, String>()? {
                    let name = name.to_ascii_lowercase();
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("headers: {name:?} is there twice")));
                    }
                    headers.push((name, value));
                }
                Ok(Headers(headers))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// The entries of a batch.
///
/// # Errors
/// When the request as a whole is malformed.
pub(super) fn parse(
    form: Form,
    terms: &Terms<'_>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Vec<Entry>, Problem> {
    for name in
        [&header::MESSAGE_KEY, &header::PRODUCER_ID, &header::PRODUCER_SEQ, &header::DELAY, &header::TTL]
    {
        if headers.contains_key(name) {
            return Err(Problem::invalid(format!("header {name}: in a batch each entry says it for itself")));
        }
    }
    let key = header::text(headers, &header::IDEMPOTENCY_KEY)?;
    let mut batch = Batch { terms, headers, key, entries: Vec::new() };
    if form == Form::CloudEvents {
        let events: Vec<&RawValue> =
            serde_json::from_slice(body).map_err(|error| Problem::invalid(format!("body: {error}")))?;
        for event in events {
            batch.push(|wishes| cloud_event::structured(event.get().as_bytes(), wishes));
        }
    } else {
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            batch.push(|wishes| line_message(line, wishes));
        }
    }
    match batch.entries.len() {
        0 => Err(Problem::invalid("body: a batch has at least one entry")),
        1..=MOST => Ok(batch.entries),
        _ => Err(Problem::too_large(format!("a batch has at most {MOST} entries"))),
    }
}

struct Batch<'a> {
    terms: &'a Terms<'a>,
    headers: &'a HeaderMap,
    key: Option<&'a str>,
    entries: Vec<Entry>,
}

impl Batch<'_> {
    fn push(&mut self, message: impl FnOnce(&mut Wishes) -> Result<Message, Problem>) {
        let entry = self.entry(message);
        self.entries.push(entry);
    }

    fn entry(&self, message: impl FnOnce(&mut Wishes) -> Result<Message, Problem>) -> Entry {
        let mut wishes = Wishes::default();
        let mut message = message(&mut wishes)?;
        self.terms.hand_on(self.headers, &mut message)?;
        if let (Some(key), None) = (self.key, &wishes.producer) {
            wishes.producer = producer(None, None, Some(&format!("{}/{key}", self.entries.len())))?;
        }
        self.terms.offer(message, wishes).map(Some)
    }
}

fn line_message(line: &[u8], wishes: &mut Wishes) -> Result<Message, Problem> {
    let line: Line<'_> = extract::parse(line)?;
    wishes.delay = line.delay;
    wishes.ttl = line.ttl;
    wishes.producer = producer(line.producer_id.as_deref(), line.producer_seq, None)?;
    let content_type = line.content_type.unwrap_or_else(|| "application/json".to_owned());
    let body = match line.encoding.as_deref() {
        Some("base64") => {
            STANDARD.decode(text(line.body)?).map_err(|_| Problem::invalid("body: it is not base64"))?
        }
        Some(_) => return Err(Problem::invalid("encoding: write base64, or nothing")),
        None if is_json(&content_type) => line.body.get().as_bytes().to_vec(),
        None => text(line.body)?.into_bytes(),
    };
    Ok(Message { body, content_type, key: line.key, headers: line.headers.0, ..Message::default() })
}

fn text(body: &RawValue) -> Result<String, Problem> {
    serde_json::from_str(body.get())
        .map_err(|_| Problem::invalid("body: of a content type that is not JSON it is a string"))
}
