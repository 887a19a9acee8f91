//! Fuzz targets: what bodies of queues come to, and that what is taken can be given out.

use std::sync::Arc;

use concordat_protocol::{
    SessionId,
    queue::{
        Mode, OnFull, Ordering, Segment, Settings,
        delivery::{Delivered, Verdict},
        location::{ClaimId, Receipt, SegmentAt},
        publish::Offer,
    },
};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::{
    answer::Messages,
    batch::{self, Form},
    offer::{self, Terms},
    request::{self, AckBody, Encoded, ExtendBody, NackBody, ReceiveBody, RedriveBody},
};
use crate::api::fuzz::{
    Choices, Field,
    Holds::{List, One},
    Through, bodies,
};

/// `0.1.0.1.1.s`, one of a far place, one of too wide a number, and some that are none.
const RECEIPTS: &[&str] = &[
    "\"MC4xLjAuMS4xLnM\"",
    "\"ZmYuN2ZmZmZmZmZmZmZmZmZmZi5mLmYuZi5ub2JvZHkuYQ\"",
    "\"MC4xLjEwMDAwMDAwMC4xLjEucw\"",
    "\"MC4xLjAuMS4xLg\"",
    "\"MC4xLjAuMS4xLnM=\"",
    "\"r\"",
];
const DELAYS: &[&str] = &["\"5s\"", "\"0\"", "\"12h\"", "\"12h1s\"", "\"1us\"", "\"876000h\"", "null"];

fn receipts(encoded: &[Encoded], through: &Through) {
    let Ok(receipts) = request::receipts(encoded) else { return };
    through.count();
    assert!((1..=1_000).contains(&receipts.len()));
    let again: Vec<_> = receipts.iter().map(Encoded::from).collect();
    assert_eq!(request::receipts(&again), Ok(receipts));
}

#[test]
fn fuzz_ack_body() {
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        bodies(input, &[("receipts", List(RECEIPTS))], |body: AckBody, _| receipts(&body.receipts, &through));
    });
}

#[test]
fn fuzz_receive_body() {
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        bodies(input, &[("ack", List(RECEIPTS))], |body: ReceiveBody, _| {
            receipts(&body.ack.unwrap_or_default(), &through);
        });
    });
}

#[test]
fn fuzz_nack_body() {
    const FIELDS: &[Field] = &[
        ("receipts", List(RECEIPTS)),
        ("delay", One(DELAYS)),
        ("reason", One(&["\"\"", "\"é\"", "\"because\""])),
        ("deadLetter", One(&["true", "false"])),
    ];
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        bodies(input, FIELDS, |body: NackBody, _| {
            receipts(&body.receipts, &through);
            if let Ok(Verdict::Nack { delay, reason, dead_letter: _ }) = body.verdict() {
                assert!(delay.unwrap_or_default() <= 43_200_000 && (1..=1_024).contains(&reason.len()));
            }
        });
    });
}

#[test]
fn fuzz_extend_body() {
    const FIELDS: &[Field] = &[("receipts", List(RECEIPTS)), ("visibility", One(DELAYS))];
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        bodies(input, FIELDS, |body: ExtendBody, _| {
            receipts(&body.receipts, &through);
            if let Some(Ok(visibility)) = body.visibility.map(request::visibility) {
                assert!((1_000..=43_200_000).contains(&visibility));
            }
        });
    });
}

#[test]
fn fuzz_redrive_body() {
    const FIELDS: &[Field] =
        &[("ids", List(&["\"0-1024\"", "\"\"", "\"é\"", "\"0-1024\""])), ("all", One(&["true", "false"]))];
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        bodies(input, FIELDS, |body: RedriveBody, _| {
            if body.check().is_ok() {
                through.count();
            }
        });
    });
}

const NOW: u64 = 1_700_000_000_000;
const KEYS: &[&str] = &["\"\"", "\"k\"", "\"é\""];
const IDS: &[&str] = &["null", "null", "null", "\"p\"", "\"é\""];
const NUMBERS: &[&str] = &["null", "null", "null", "1", "18446744073709551615"];
const BODIES: &[&str] = &["\"text\"", "\"eA==\"", "{\"a\":[1,{}]}", "1e999", "[1,2]", "\"\\u0000\"", "null"];
const KINDS: &[&str] = &[
    "\"application/json\"",
    "\"text/plain\"",
    "\"image/png\"",
    "\"Application/A+JSON; a=b\"",
    "\"\"",
    "\"é\"",
    "null",
];
const TIMES: &[&str] = &["\"5s\"", "\"0\"", "\"1h\"", "\"1us\"", "\"876000h\"", "null"];

const LINE: &[Field] = &[
    ("body", One(BODIES)),
    ("contentType", One(KINDS)),
    ("encoding", One(&["\"base64\"", "null", "null", "\"gzip\""])),
    ("key", One(KEYS)),
    ("headers", One(&["{\"a\":\"b\"}", "{}", "{\"traceparent\":\"é\"}", "{\"A\":\"b\",\"a\":\"c\"}"])),
    ("delay", One(TIMES)),
    ("ttl", One(TIMES)),
    ("producerId", One(IDS)),
    ("producerSeq", One(NUMBERS)),
];

const EVENT: &[Field] = &[
    ("specversion", One(&["\"1.0\"", "\"1.0\"", "\"1.0\"", "\"0.3\"", "1.0"])),
    ("id", One(&["\"1\"", "\"é\"", "7"])),
    ("source", One(&["\"/a\"", "\"a b\""])),
    ("type", One(&["\"t\"", "true"])),
    ("datacontenttype", One(KINDS)),
    ("data", One(BODIES)),
    ("data_base64", One(&["\"eA==\"", "null", "null", "\"x\""])),
    ("partitionkey", One(KEYS)),
    ("expirytime", One(&["\"2033-01-01T00:00:00Z\"", "\"-009999-01-01T00:00:00Z\"", "\"soon\""])),
    ("Bad_Name", One(&["null", "null", "null", "\"a\""])),
];

const HEADERS: &[(&str, &[&str])] = &[
    (
        "content-type",
        &["application/json", "text/plain", "", "application/cloudevents+json", "é", "a/b+json"],
    ),
    ("message-key", &["k", "", "é"]),
    ("producer-id", &["p", "", "é"]),
    ("producer-seq", &["1", "-1", "18446744073709551615", "18446744073709551616"]),
    ("idempotency-key", &["k", "", "é"]),
    ("delay", &["5s", "", "0", "876000h"]),
    ("ttl", &["5s", "0", "1us", "soon"]),
    ("traceparent", &["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "nonsense"]),
    ("ce-id", &["1", "%C3%A9", "%FF", "\"1\""]),
    ("ce-source", &["/a"]),
    ("ce-type", &["t"]),
    ("ce-specversion", &["1.0", "0.3"]),
    ("ce-partitionkey", &["k"]),
    ("ce-expirytime", &["2033-01-01T00:00:00Z", "soon"]),
    ("ce-", &["a"]),
];

fn headers(choices: &mut Choices<'_>, most: usize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for _ in 0..choices.below(most) {
        let (name, values) = choices.of(HEADERS);
        headers.append(
            HeaderName::from_static(name),
            HeaderValue::from_bytes(choices.of(values).as_bytes()).unwrap(),
        );
    }
    headers
}

fn settings(choices: &mut Choices<'_>) -> Settings {
    Settings {
        mode: Mode::WorkQueue,
        partitions: 1,
        ordering: Ordering::None,
        visibility: 30_000,
        max_deliveries: 5,
        backoff: vec![1_000],
        dead_letter_queue: None,
        dead_letter_retention: 3_600_000,
        retention_age: choices.of(&[1_000, 3_600_000, 31_536_000_000]),
        retention_bytes: 1 << 28,
        on_full: OnFull::Refuse,
        max_message_bytes: choices.of(&[256 << 10, 256 << 10, 256 << 10, 40]),
        dedup_window: 300_000,
    }
}

/// What is taken keeps to the queue's bounds, and can be given out: as JSON that a parser with ordinary limits reads,
/// in which nothing stands twice.
fn can_be_given_out(offer: Offer, settings: &Settings) {
    let Offer { message, not_before, producer } = offer;
    assert!(message.size() <= settings.max_message_bytes && message.key.len() <= 256);
    assert!(message.published == NOW && message.expires <= NOW + settings.retention_age);
    assert!(not_before < message.expires || not_before == 0);
    assert!(producer.is_none_or(|name| !name.as_str().is_empty()));
    let headers = message.headers.clone();
    let receipt = Receipt {
        segment: SegmentAt { revision: 1, partition: 0 },
        place: 0,
        delivery: 1,
        claim: ClaimId { session: SessionId::from("s"), number: 1 },
    };
    let segment = Arc::new(Segment { messages: vec![message] });
    let delivered = [Delivered { receipt, segment, deadline: NOW }];
    let shown = serde_json::to_string(&Messages::of(&delivered, None)).unwrap();
    let read: Value = serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{error}: {shown:.200}"));
    let read = &read["messages"][0]["headers"];
    assert_eq!(read.as_object().unwrap().len(), headers.len(), "{headers:?}");
}

#[test]
fn fuzz_publish() {
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        let mut choices = Choices::new(input);
        let (settings, headers) = (settings(&mut choices), headers(&mut choices, 8));
        let terms = Terms { settings: &settings, now: NOW, traced: None };
        let body =
            if choices.below(2) == 0 { choices.body(EVENT) } else { choices.of(BODIES).as_bytes().to_vec() };
        if let Ok(offer) = offer::one(&terms, &headers, body.into()) {
            can_be_given_out(offer, &settings);
            through.count();
        }
    });
}

#[test]
fn fuzz_publish_of_batches() {
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        let mut choices = Choices::new(input);
        let (settings, headers) = (settings(&mut choices), headers(&mut choices, 2));
        let form = choices.of(&[Form::Lines, Form::CloudEvents]);
        let fields = if form == Form::Lines { LINE } else { EVENT };
        let entries: Vec<_> = (0..=choices.below(3)).map(|_| choices.body(fields)).collect();
        let body = match form {
            Form::CloudEvents => [&b"["[..], &entries.join(&b","[..]), b"]"].concat(),
            _ => entries.join(&b"\n"[..]),
        };
        let terms = Terms { settings: &settings, now: NOW, traced: None };
        for entry in batch::parse(form, &terms, &headers, &body).into_iter().flatten() {
            if let Ok(Some(offer)) = entry {
                can_be_given_out(offer, &settings);
                through.count();
            }
        }
    });
}
