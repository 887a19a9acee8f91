//! The tables of wrong input, and what of them is right in some place after all.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::described::{Body, Call, Class, Field, Object, Operation, Parameter, Place, good};

/// A call with one thing wrong, and how it must be refused.
pub(super) struct Row {
    pub(super) what: String,
    pub(super) call: Call,
    pub(super) refusal: Refusal,
}

/// How a call is refused.
#[derive(Clone, Copy)]
pub(super) enum Refusal {
    /// By one of these statuses and codes; those of no code by their status.
    By(&'static [(u16, &'static str)]),
    /// As the only entry of a batch, which itself is answered.
    Entry,
}

const INVALID: Refusal = Refusal::By(&[(400, "invalid-request")]);
/// Too long for what it is, or for anything.
const TOO_LONG: Refusal =
    Refusal::By(&[(400, "invalid-request"), (413, "payload-too-large"), (413, "message-too-large")]);
/// A name is looked for, whatever it is.
const NO_SUCH: Refusal = Refusal::By(&[
    (404, "no-such-lock"),
    (404, "no-such-queue"),
    (404, "no-such-transaction"),
    (404, "transaction-not-found"),
]);
/// What a path names is looked for, unless it is malformed, or a token says that it is not held.
const NOT_THERE: Refusal = Refusal::By(&[
    (400, "invalid-request"),
    (404, "no-such-lock"),
    (404, "no-such-queue"),
    (404, "no-such-transaction"),
    (404, "transaction-not-found"),
    (404, "no-such-route"),
    (412, "lock-token-mismatch"),
]);
/// Any text may be a token, and is not one of ours.
const NOT_HELD: Refusal = Refusal::By(&[(400, "invalid-request"), (412, "lock-token-mismatch")]);

/// Longer than any text may be that is no message.
const LONG: usize = 4 << 10;
/// Deeper than anybody means.
const DEEP: usize = 100_000;

/// Texts that their callers choose: legal of any characters, up to so many bytes. Every other text is refused whatever
/// of the table it is.
const CHOSEN: &[(&str, usize)] = &[
    ("path key", 512),
    ("header Message-Key", 256),
    ("header Producer-Id", 256),
    ("header Idempotency-Key", 512),
    ("header Transaction-Id", 128),
    ("field owner", 256),
    ("field reason", 1_024),
    ("field locks[].key", 512),
    ("field ids[]", usize::MAX),
    // Of a message in a batch.
    ("field key", 256),
    ("field producerId", 256),
    ("field contentType", usize::MAX),
];

/// Of those, which may be empty.
const MAY_BE_EMPTY: &[&str] =
    &["header Message-Key", "field owner", "field reason", "field ids[]", "field key", "field contentType"];

/// Lists that may be of any length.
const ANY_NUMBER: &[&str] = &["ids"];

/// What is refused alone, with what goes with it.
const TOGETHER: &[(&str, &str, &str)] =
    &[("Producer-Id", "Producer-Seq", "1"), ("Producer-Seq", "Producer-Id", "x")];

fn chosen(what: &str) -> Option<usize> {
    CHOSEN.iter().find(|(name, _)| *name == what).map(|(_, most)| *most)
}

/// Texts of no form.
fn texts(class: Class) -> Vec<String> {
    let all = ["é", "a/b", "%2F", "..", "-1", "1.5", "٣", "0x1", "-1s", "1e3s", "[]", "{}", "null", "true"];
    let number = ["99999999999999999999".to_owned(), "9".repeat(LONG)];
    let mut texts: Vec<_> = all.map(str::to_owned).into();
    if class == Class::Number {
        texts.extend(number);
    }
    texts.push("x".repeat(LONG));
    texts
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Every row for one parameter of an operation.
pub(super) fn of_parameter(operation: &Operation, parameter: &Parameter) -> Vec<Row> {
    let Parameter { place, name, required, class } = parameter;
    let what = format!("{} {name}", format!("{place:?}").to_lowercase());
    let mut call = operation.call();
    if let Some((_, other, value)) = TOGETHER.iter().find(|(one, ..)| one == name) {
        call.headers.push(((*other).to_owned(), (*value).into()));
    }
    let mut rows = Vec::new();
    let mut add = |shown: &str, call: Call, refusal| {
        let shown: String = shown.chars().take(40).collect();
        rows.push(Row { what: format!("{what} {shown:?}"), call, refusal });
    };
    let with = |values: &[&[u8]]| parameter.set(&call, values);
    let legal = |text: &str| match chosen(&what) {
        Some(_) if text.is_empty() => MAY_BE_EMPTY.contains(&what.as_str()),
        Some(most) => text.len() <= most,
        None => false,
    };
    match place {
        Place::Path => {
            add("", with(&[b""]), NOT_THERE);
            add("%FF", with(&[b"%FF"]), INVALID);
            for text in texts(*class).into_iter().chain(["\0".into()]).filter(|text| !legal(text)) {
                add(&text, with(&[encoded(&text).as_bytes()]), NOT_THERE);
            }
        }
        Place::Query => {
            add("", with(&[b""]), INVALID);
            add("%FF", with(&[b"%FF"]), INVALID);
            let value = good(name, *class).to_string();
            let value = value.trim_matches('"').as_bytes();
            add("twice", with(&[value, value]), INVALID);
            for text in texts(*class).into_iter().chain(["\0".into()]).filter(|text| !legal(text)) {
                add(&text, with(&[encoded(&text).as_bytes()]), INVALID);
            }
        }
        Place::Header => {
            let any = if name == "Lock-Token" { NOT_HELD } else { INVALID };
            add("not UTF-8", with(&[b"\xff"]), INVALID);
            let value = good(name, *class).to_string();
            let value = value.trim_matches('"').as_bytes();
            add("twice", with(&[value, value]), INVALID);
            if !legal("") {
                add("", with(&[b""]), INVALID);
            }
            for text in texts(*class).into_iter().filter(|text| !legal(text)) {
                add(&text, with(&[text.as_bytes()]), any);
            }
        }
    }
    if *required && *place != Place::Path {
        add("left out", with(&[]), INVALID);
    }
    rows
}

impl Parameter {
    /// A call with these values of it instead.
    fn set(&self, call: &Call, values: &[&[u8]]) -> Call {
        let mut call = call.clone();
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        match self.place {
            Place::Path => {
                for segment in call.segments.iter_mut().filter(|(name, _)| *name == self.name) {
                    segment.1 = text(values[0]);
                }
            }
            Place::Query => {
                call.query.retain(|(name, _)| *name != self.name);
                call.query.extend(values.iter().map(|value| (self.name.clone(), text(value))));
            }
            Place::Header => {
                call.headers.retain(|(name, _)| *name != self.name);
                call.headers.extend(values.iter().map(|value| (self.name.clone(), value.to_vec())));
            }
        }
        call
    }
}

/// Every row for the body of an operation.
pub(super) fn of_body(operation: &Operation) -> Vec<Row> {
    let deep = "[".repeat(DEEP);
    let deep_object = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
    let malformed = ["{", "nul", "\u{fffd}", "{}{}", "{'a':1}", "{\"a\":1,}", &deep, &deep_object];
    let no_object = ["[]", "1", "null", "\"text\"", "\"\u{0}\""];
    let call = operation.call();
    let body = |headers: &[(&str, &str)], body: &str| {
        let mut call = Call { body: body.into(), ..call.clone() };
        call.headers.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
        call
    };
    let mut rows = Vec::new();
    let mut add = |what: &str, call: Call, refusal| {
        let what = format!("body {}", what.chars().take(60).collect::<String>());
        rows.push(Row { what, call, refusal });
    };
    match &operation.body {
        Body::Nothing => {}
        Body::Object(object, required) => {
            if *required {
                add("nothing", body(&[], ""), INVALID);
            }
            for text in malformed.iter().chain(&no_object) {
                add(text, body(&[], text), INVALID);
            }
            for (what, text, refusal) in of_object(object) {
                add(&what, body(&[], &text), refusal);
            }
        }
        Body::Json => {
            for text in malformed.iter().chain(&[""]) {
                add(text, body(&[], text), INVALID);
            }
            let long = format!("\"{}\"", "x".repeat(256 << 10));
            add("longer than 256 KiB", body(&[], &long), Refusal::By(&[(413, "payload-too-large")]));
        }
        Body::Bytes(line) => {
            let long = "x".repeat((256 << 10) + 1);
            add("longer than a message", body(&[], &long), Refusal::By(&[(413, "message-too-large")]));
            for kind in ["application/json", "application/json; a=b", "application/a+json"] {
                for text in malformed {
                    add(text, body(&[("content-type", kind)], text), INVALID);
                }
            }
            for kind in ["application/cloudevents+json", "application/cloudevents-batch+json"] {
                for text in malformed.iter().chain(&no_object).chain(&[""]) {
                    add(text, body(&[("content-type", kind)], text), INVALID);
                }
            }
            let lines = [("content-type", "application/x-ndjson")];
            add("no line", body(&lines, "\n\n"), INVALID);
            for text in malformed.iter().chain(&no_object).chain(&["[\"text\"]"]) {
                add(text, body(&lines, text), Refusal::Entry);
            }
            for (what, text, _) in of_object(line) {
                add(&what, body(&lines, &text), Refusal::Entry);
            }
        }
    }
    rows
}

/// Objects with one field wrong.
fn of_object(object: &Object) -> Vec<(String, String, Refusal)> {
    let mut rows = Vec::new();
    let mut levels = vec![String::new()];
    for field in &object.fields {
        let Field { path, class, required, nullable, filled } = field;
        let leaf = path.rsplit(['.']).next().unwrap_or_default();
        let mut add = |value: &str, refusal| {
            let shown: String = value.chars().take(40).collect();
            rows.push((format!("{path}: {shown}"), object.with(path, value), refusal));
        };
        for value in ["\"7\"", "7", "7.5", "-7", "true", "[]", "[7]", "{}", "{\"a\":7}", "[[]]", "1e400"] {
            if !class.takes(path, value) {
                add(value, INVALID);
            }
        }
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        if *class != Class::Any {
            add(&deep, INVALID);
        }
        if !nullable && *class != Class::Any {
            add("null", INVALID);
        }
        let name = format!("field {path}");
        match class {
            Class::Text | Class::Choice => {
                // What is looked for by its name is not found by another.
                let any = if leaf == "lock" { NO_SUCH } else { INVALID };
                for text in texts(*class).into_iter().chain([String::new(), "\0".into(), "x".repeat(1 << 20)])
                {
                    let legal = match chosen(&name) {
                        Some(_) if text.is_empty() => !filled && MAY_BE_EMPTY.contains(&name.as_str()),
                        Some(most) => text.len() <= most,
                        None => false,
                    };
                    if !legal {
                        let refusal = if text.len() >= LONG && leaf != "lock" { TOO_LONG } else { any };
                        add(&Value::from(text).to_string(), refusal);
                    }
                }
                add("\"\\ud800\"", INVALID);
            }
            Class::Number => {
                for value in ["99999999999999999999", "1e3", "\"\"", "\"é\""] {
                    add(value, INVALID);
                }
            }
            Class::List if !ANY_NUMBER.contains(&path.as_str()) => {
                let item = object.at(field)[0].to_string();
                add(&format!("[{}{item}]", format!("{item},").repeat(10_000)), TOO_LONG);
            }
            // Its fields without their names.
            Class::Object => {
                let good = object.at(field);
                let values: Value = good.as_object().into_iter().flat_map(Map::values).cloned().collect();
                add(&values.to_string(), INVALID);
            }
            Class::Map | Class::Switch | Class::List | Class::Any => {}
        }
        if !path.ends_with("[]") {
            let value = object.at(field);
            add(&format!("{value},\"{leaf}\":{value}"), INVALID);
        }
        if *required {
            rows.push((format!("{path} left out"), object.without(path), INVALID));
        }
        if *class == Class::Object {
            levels.push(format!("{path}."));
        }
    }
    for level in levels {
        let path = format!("{level}nonsense");
        rows.push((path.clone(), object.with(&path, "1"), INVALID));
    }
    rows
}

impl Class {
    /// Whether a JSON value of the table is of this type.
    fn takes(self, path: &str, value: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Text | Self::Choice => {
                value.starts_with('"')
                    && (path.rsplit('.').next() == Some("lock") || chosen(&format!("field {path}")).is_some())
            }
            Self::Number => value == "7",
            Self::Switch => value == "true",
            Self::List => value == "[]" && ANY_NUMBER.contains(&path),
            // Without what must be there, or with what nobody knows.
            Self::Object => false,
            Self::Map => value == "{}",
        }
    }
}
