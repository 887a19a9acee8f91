//! From a request to a message to publish.

use bytes::Bytes;
use concordat_protocol::{
    Millis, Name,
    queue::{
        Message, Settings,
        publish::{Offer, SEGMENT_BYTES},
    },
};
use http::{HeaderMap, HeaderName, StatusCode, header::CONTENT_TYPE};

use super::{
    answer::{essence, is_json},
    cloud_event,
};
use crate::{
    api::{duration::GoDuration, extract, header, trace::TraceParent},
    problem::Problem,
};

/// Headers that are handed on beside a CloudEvent's attributes.
static HANDED_ON: [&HeaderName; 2] = [&header::TRACEPARENT, &header::TRACESTATE];
/// The longest key, producer's name or Idempotency-Key, bytes.
const LONGEST_NAME: usize = 256;

/// What the queue says of every message, and the time it is published at, milliseconds since the Unix epoch.
pub(super) struct Terms<'a> {
    pub(super) settings: &'a Settings,
    pub(super) now: Millis,
    /// The publishing's own place in a trace, which goes with messages instead of the request's.
    pub(super) traced: Option<&'a TraceParent>,
}

/// What is said of one message beside its content.
#[derive(Default)]
pub(super) struct Wishes {
    pub(super) delay: Option<GoDuration>,
    pub(super) ttl: Option<GoDuration>,
    /// Not delivered after, milliseconds since the Unix epoch.
    pub(super) expires: Option<Millis>,
    pub(super) producer: Option<Name>,
}

impl Terms<'_> {
    /// Adds what is handed on of a request's own headers, unless the message says it itself.
    pub(super) fn hand_on(&self, headers: &HeaderMap, message: &mut Message) -> Result<(), Problem> {
        for name in HANDED_ON {
            let said = message.headers.iter().any(|(present, _)| present == name.as_str());
            let mut value = header::text(headers, name)?;
            if let (true, Some(own)) = (name == header::TRACEPARENT, self.traced) {
                // A trace that begins here must not be what makes a message too large.
                let most = self.settings.max_message_bytes;
                let fits = message.size() + (name.as_str().len() + own.as_str().len()) as u64 <= most;
                value = if value.is_some() || fits { Some(own.as_str()) } else { None };
            }
            if let (Some(value), false) = (value, said) {
                message.headers.push((name.to_string(), value.to_owned()));
            }
        }
        Ok(())
    }

    /// The offer of a message, checked.
    pub(super) fn offer(&self, mut message: Message, wishes: Wishes) -> Result<Offer, Problem> {
        let (most, size) = (self.settings.max_message_bytes, message.size());
        if size > most {
            let title = "The message is too large";
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "message-too-large", title)
                .detail(format!("it has {size} bytes with its headers; the queue takes at most {most}")));
        }
        if message.key.len() > LONGEST_NAME {
            return Err(Problem::invalid(format!("a key has at most {LONGEST_NAME} bytes")));
        }
        if is_json(&message.content_type)
            && let Err(error) = extract::readable(&message.body)
        {
            let kind = essence(&message.content_type);
            return Err(Problem::invalid(format!("body: it is called {kind} and is not: {error}")));
        }
        let retention = self.settings.retention_age;
        let kept = wishes.ttl.map_or(retention, |ttl| ttl.0.min(retention));
        message.published = self.now;
        message.expires = self.now.saturating_add(kept).min(wishes.expires.unwrap_or(Millis::MAX));
        let delay = wishes.delay.map_or(0, |delay| delay.0);
        let not_before = if delay == 0 { 0 } else { self.now.saturating_add(delay) };
        if not_before >= message.expires {
            return Err(Problem::invalid("delay: the message would expire before it is delivered"));
        }
        Ok(Offer { message, not_before, producer: wishes.producer })
    }
}

/// The one message of a request.
pub(super) fn one(terms: &Terms<'_>, headers: &HeaderMap, body: Bytes) -> Result<Offer, Problem> {
    let content_type = header::text(headers, &CONTENT_TYPE)?;
    let content_type = content_type.unwrap_or("application/octet-stream");
    let mut wishes = wishes(headers)?;
    let mut message = if essence(content_type).eq_ignore_ascii_case(cloud_event::STRUCTURED) {
        cloud_event::structured(&body, &mut wishes)?
    } else {
        let mut message =
            Message { body: body.into(), content_type: content_type.to_owned(), ..Message::default() };
        cloud_event::binary(headers, &mut message, &mut wishes)?;
        message
    };
    if let Some(key) = header::text(headers, &header::MESSAGE_KEY)? {
        key.clone_into(&mut message.key);
    }
    terms.hand_on(headers, &mut message)?;
    terms.offer(message, wishes)
}

fn wishes(headers: &HeaderMap) -> Result<Wishes, Problem> {
    let (delay, ttl) = (duration(headers, &header::DELAY)?, duration(headers, &header::TTL)?);
    let id = header::text(headers, &header::PRODUCER_ID)?;
    let seq = header::text(headers, &header::PRODUCER_SEQ)?;
    let seq = match seq {
        None => None,
        Some(seq) => {
            Some(seq.parse().map_err(|_| Problem::invalid("header Producer-Seq: write a whole number"))?)
        }
    };
    let key = header::text(headers, &header::IDEMPOTENCY_KEY)?;
    Ok(Wishes { delay, ttl, expires: None, producer: producer(id, seq, key)? })
}

fn duration(headers: &HeaderMap, name: &HeaderName) -> Result<Option<GoDuration>, Problem> {
    let Some(text) = header::text(headers, name)? else { return Ok(None) };
    text.parse().map(Some).map_err(|error| Problem::invalid(format!("header {name}: {error}")))
}

/// A producer's name for a message: of its id and number, or of an Idempotency-Key.
pub(super) fn producer(
    id: Option<&str>,
    seq: Option<u64>,
    key: Option<&str>,
) -> Result<Option<Name>, Problem> {
    let long = |text: &str| !(1..=LONGEST_NAME).contains(&text.len());
    if id.is_some_and(long) || key.is_some_and(long) {
        let names = "producer id and idempotency key";
        return Err(Problem::invalid(format!("{names}: write 1 to {LONGEST_NAME} bytes")));
    }
    match (id, seq, key) {
        (None, None, None) => Ok(None),
        (Some(id), Some(seq), None) => Ok(Some(format!("p/{seq}/{id}").into())),
        (None, None, Some(key)) => Ok(Some(format!("k/{key}").into())),
        _ => Err(Problem::invalid("give a producer's id and number together, or an idempotency key instead")),
    }
}

/// No message of a batch is larger than what one request may be; the segment's size is only what is aimed at.
const _: () = assert!(SEGMENT_BYTES < 1_536 * 1024);
