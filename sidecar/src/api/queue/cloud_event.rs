//! CloudEvents 1.0: HTTP protocol binding 3.1 (binary) and 3.2 (structured), JSON event format 3.

use base64::{Engine, engine::general_purpose::STANDARD};
use concordat_protocol::queue::Message;
use http::HeaderMap;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, value::RawValue};

use super::offer::Wishes;
use crate::{api::header, problem::Problem};

/// Content type of an event in structured mode.
pub(super) const STRUCTURED: &str = "application/cloudevents+json";
const PREFIX: &str = "ce-";
const REQUIRED: [&str; 4] = ["id", "source", "specversion", "type"];

/// An event in the JSON event format: its attributes become headers, its data the body.
pub(super) fn structured(event: &[u8], wishes: &mut Wishes) -> Result<Message, Problem> {
    let mut attributes: Map<String, Value> = serde_json::from_slice(event)
        .map_err(|error| Problem::invalid(format!("the CloudEvent: {error}")))?;
    attributes.remove("data");
    let data = data(event)?;
    let base64 = attributes.remove("data_base64");
    let content_type = match attributes.remove("datacontenttype") {
        None => "application/json".to_owned(),
        Some(Value::String(text)) => text,
        Some(_) => return Err(Problem::invalid("datacontenttype: it is not a string")),
    };
    let mut message = Message { content_type, ..Message::default() };
    for (name, value) in attributes {
        let value = match value {
            Value::String(text) => text,
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            Value::Null => continue,
            _ => return Err(Problem::invalid(format!("{name}: an attribute is no array and no object"))),
        };
        message.headers.push((format!("{PREFIX}{name}"), value));
    }
    message.body = match (data, base64) {
        (None, None) => Vec::new(),
        (Some(data), None) => match serde_json::from_str::<String>(data.get()) {
            Ok(text) if !super::answer::is_json(&message.content_type) => text.into_bytes(),
            _ => data.get().as_bytes().to_vec(),
        },
        (None, Some(Value::String(text))) => {
            STANDARD.decode(text).map_err(|_| Problem::invalid("data_base64: it is not base64"))?
        }
        _ => return Err(Problem::invalid("an event has data or data_base64, a string")),
    };
    if message.body.is_empty() {
        "application/octet-stream".clone_into(&mut message.content_type);
    }
    finish(&mut message, wishes)?;
    Ok(message)
}

/// The data as it stands, byte for byte.
fn data(event: &[u8]) -> Result<Option<&RawValue>, Problem> {
    #[derive(serde::Deserialize)]
    struct Data<'a> {
        #[serde(borrow)]
        data: Option<&'a RawValue>,
    }
    let Data { data } = serde_json::from_slice(event)
        .map_err(|error| Problem::invalid(format!("the CloudEvent: {error}")))?;
    Ok(data)
}

/// The attributes of an event in binary mode, if the request is one: the body is its data already.
pub(super) fn binary(headers: &HeaderMap, message: &mut Message, wishes: &mut Wishes) -> Result<(), Problem> {
    for name in headers.keys().filter(|name| name.as_str().starts_with(PREFIX)) {
        let value = header::text(headers, name)?.unwrap_or_default();
        let Ok(value) = percent_decode_str(value.trim_matches('"')).decode_utf8() else {
            return Err(Problem::invalid(format!("header {name}: it is not UTF-8")));
        };
        message.headers.push((name.to_string(), value.into_owned()));
    }
    if message.headers.is_empty() { Ok(()) } else { finish(message, wishes) }
}

/// Checks the attributes and takes over those that say something to a queue.
fn finish(message: &mut Message, wishes: &mut Wishes) -> Result<(), Problem> {
    let find = |name: &str| {
        let found = message.headers.iter().find(|(header, _)| header.strip_prefix(PREFIX) == Some(name));
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    };
    for name in REQUIRED {
        if find(name).is_none() {
            return Err(Problem::invalid(format!("the CloudEvent has no attribute {name}")));
        }
    }
    if find("specversion") != Some("1.0") {
        return Err(Problem::invalid("specversion: 1.0 is understood, no other"));
    }
    let malformed = |name: &&(String, String)| {
        let name = name.0.strip_prefix(PREFIX).unwrap_or_default();
        name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    if let Some((name, _)) = message.headers.iter().find(malformed) {
        return Err(Problem::invalid(format!("{name}: an attribute's name is of a to z and 0 to 9")));
    }
    if let Some(expires) = find("expirytime") {
        let expires: Timestamp =
            expires.parse().map_err(|_| Problem::invalid("expirytime: it is not RFC 3339"))?;
        wishes.expires = Some(u64::try_from(expires.as_millisecond()).unwrap_or_default());
    }
    let key = find("partitionkey").map(str::to_owned);
    message.key = key.unwrap_or_default();
    Ok(())
}
