//! Fuzz targets: what bodies of transactions come to.

use concordat_protocol::{
    Now, Record,
    definition::Backoff,
    transaction::{Participant, Protocol, Settings, plans},
};
use concordat_store::record::{decode, encode};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::request::{Skip, id_to_begin};
use crate::api::{
    extract,
    fuzz::{
        Choices, Field,
        Holds::{List, Objects, One},
        Through, bodies,
    },
};

const INPUT: &[Field] = &[
    ("amount", One(&["10", "1e999", "-0.0", "\"é\"", "null"])),
    ("lines", Objects(&[("to", One(&["\"a\"", "{\"b\":{}}"])), ("of", List(&["1", "[]"]))])),
];

const HEADERS: &[(&str, &[&str])] = &[
    ("transaction-id", &["t", "", "é", "a/b"]),
    ("idempotency-key", &["k", "", "é"]),
    ("Traceparent", &["x"]),
];

#[test]
fn fuzz_skip() {
    const FIELDS: &[Field] = &[("reason", One(&["\"because\"", "\"\"", "\"é\""]))];
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        bodies(input, FIELDS, |body: Skip, _| {
            if let Ok(reason) = body.checked() {
                assert!((1..=1_024).contains(&reason.len()));
                through.count();
            }
        });
    });
}

#[test]
fn fuzz_begin() {
    let participant = Participant {
        name: "debit".into(),
        app: "accounts".into(),
        path: "/debit".into(),
        timeout: 3_000,
        retry: Backoff { initial: 100, max: 30_000, factor_milli: 2_000 },
        attempts: 0,
        after: vec![],
        input: None,
    };
    let settings = Settings {
        protocol: Protocol::TwoPhaseCommit,
        participants: vec![participant],
        timeout: 30_000,
        once: false,
        retention: 600_000,
    };
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        let mut choices = Choices::new(input);
        let mut headers = HeaderMap::new();
        for _ in 0..choices.below(3) {
            let (name, values) = choices.of(HEADERS);
            let value = HeaderValue::from_bytes(choices.of(values).as_bytes()).unwrap();
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
        let body = choices.body(INPUT);
        let (Ok(id), Ok(text)) = (id_to_begin(&"transfer".into(), &headers), extract::json_text(&body))
        else {
            return;
        };
        assert!((1..=128).contains(&id.as_str().len()));
        assert_eq!(text.as_bytes(), body);
        through.count();
        // As it is remembered.
        let now = Now { monotonic: 0, unix: 42 };
        let record = Record::Transaction(plans::new("transfer".into(), &settings, 1, text, now));
        assert_eq!(decode(&encode(&record)), Ok(record));
    });
}
