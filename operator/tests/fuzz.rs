//! Fuzz targets: no manifest, whatever is in it, makes an operator fail; and what compiles is kept as it is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers")]

use std::sync::atomic::{AtomicUsize, Ordering};

use concordat_operator::{
    kind::Kind,
    lock::Locks,
    queue::Queues,
    transaction::{Transactions, hand_over},
};
use concordat_protocol::{Definition, Now, Record, Settings, Write};
use concordat_store::record::{decode, encode};
use kube::CustomResourceExt;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What a text may be: at and past the bounds of durations and sizes, names and paths, and what is none.
const TEXTS: &[&str] = &[
    "1s",
    "2s",
    "100ms",
    "1ms",
    "24h",
    "168h",
    "8760h",
    "8760h1ns",
    "0s",
    "0.5ms",
    "1.5h",
    "99999999h",
    "-1s",
    "1Ki",
    "256Ki",
    "1Mi",
    "1Ti",
    "18446744073709551615",
    "18014398509481984Ki",
    "a",
    "b",
    "c.d",
    "/a",
    "/a/b",
    "/..",
    "",
    "é",
    "a/b",
    "A",
    "\u{0}",
    "null",
    "1e3",
    "~",
    "*a",
    "&a",
    "- a",
    "a: b",
];
const NUMBERS: &[u64] = &[1, 0, 2, 3, 10, 11, 64, 65, 1_000, 1_001, 1_024, 65_536, 65_537, 1 << 31, u64::MAX];

/// A fuzzer's bytes as decisions; all alike once they are used up.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn below(&mut self, count: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or_default()) % count
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// A value of a schema, now and then of none.
    fn value(&mut self, schema: &Value) -> Value {
        if self.below(32) == 31 {
            return self.any(3);
        }
        if let Some(choices) = schema["enum"].as_array() {
            return choices[self.below(choices.len())].clone();
        }
        // What most objects leave as it is.
        if !schema["default"].is_null() && self.below(4) != 3 {
            return schema["default"].clone();
        }
        match schema["type"].as_str() {
            Some("object") if schema["properties"].is_object() => self.object(schema),
            Some("object") => json!({ "a": self.any(2) }),
            Some("array") => (0..self.below(4)).map(|_| self.value(&schema["items"])).collect(),
            Some("integer") => self.of(NUMBERS).into(),
            Some("boolean") => (self.below(2) == 1).into(),
            // A name, for the most part: what most texts without a default are.
            _ if self.below(3) != 2 => self.of(&["a", "b", "c", "/a"]).into(),
            _ => self.of(TEXTS).into(),
        }
    }

    fn object(&mut self, schema: &Value) -> Value {
        let required = |name: &str| {
            schema["required"].as_array().is_some_and(|all| all.iter().any(|required| required == name))
        };
        let mut fields = Map::new();
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let there = if required(name) { self.below(32) != 31 } else { self.below(3) == 2 };
            if there {
                fields.insert(name.clone(), self.value(schema));
            }
        }
        Value::Object(fields)
    }

    fn any(&mut self, levels: usize) -> Value {
        match self.below(if levels > 0 { 7 } else { 5 }) {
            0 => Value::Null,
            1 => self.of(TEXTS).into(),
            2 => self.of(NUMBERS).into(),
            3 => json!(-1.5),
            4 => true.into(),
            5 => (0..self.below(3)).map(|_| self.any(levels - 1)).collect(),
            _ => json!({ "a": self.any(levels - 1), "b": self.any(levels - 1) }),
        }
    }
}

/// A manifest of a kind, as YAML or JSON, sometimes broken in one place.
fn manifest(kind: &Value, choices: &mut Choices<'_>) -> String {
    let schema = kind.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap();
    let manifest = json!({
        "apiVersion": "concordat.dev/v1alpha1",
        "kind": kind.pointer("/spec/names/kind").unwrap(),
        "metadata": { "name": choices.of(&["a", "b", "c"]), "uid": "u" },
        "spec": choices.value(schema),
    });
    let mut text = match choices.below(2) {
        0 => manifest.to_string(),
        _ => serde_saphyr::to_string(&manifest).unwrap(),
    };
    if choices.below(8) == 7 {
        let at = choices.below(text.len());
        if text.is_char_boundary(at) {
            text.insert(at, choices.of(&['"', '{', '[', ':', '\n', ' ', '&', '*', '-', '!', '\u{0}', '9']));
        }
    }
    text
}

fn compiles<K: Kind<Object: CustomResourceExt + Serialize + PartialEq>>(
    kind: &Value,
    input: &[u8],
) -> Option<(K::Object, Settings)> {
    // What is no manifest at all.
    let _ = serde_json::from_slice::<K::Object>(input);
    let _ = serde_saphyr::from_str::<K::Object>(&String::from_utf8_lossy(input));
    let text = manifest(kind, &mut Choices(input.iter()));
    let object: K::Object = serde_saphyr::from_str(&text).ok()?;
    // As the API server keeps it.
    let kept = serde_json::from_value(serde_json::to_value(&object).unwrap()).unwrap();
    assert_eq!(object, kept, "{text}");
    let settings = K::compile(&object).ok()?;
    assert_eq!(K::compile(&object).as_ref(), Ok(&settings));
    let _ = K::unsupported(&object, &settings);
    stays(Record::Definition(Definition { uid: "u".into(), generation: 1, settings: settings.clone() }));
    Some((object, settings))
}

fn stays(record: Record) {
    assert_eq!(decode(&encode(&record)).as_ref(), Ok(&record));
}

fn definition<K: Kind<Object: CustomResourceExt>>() -> Value {
    serde_json::to_value(K::Object::crd()).unwrap()
}

#[test]
fn fuzz_manifests_of_locks() {
    let kind = definition::<Locks>();
    let compiled = AtomicUsize::new(0);
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        compiled.fetch_add(usize::from(compiles::<Locks>(&kind, input).is_some()), Ordering::Relaxed);
    });
    assert!(compiled.into_inner() > 0, "nothing compiles");
}

#[test]
fn fuzz_manifests_of_queues() {
    let kind = definition::<Queues>();
    let compiled = AtomicUsize::new(0);
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        compiled.fetch_add(usize::from(compiles::<Queues>(&kind, input).is_some()), Ordering::Relaxed);
    });
    assert!(compiled.into_inner() > 0, "nothing compiles");
}

#[test]
fn fuzz_manifests_of_transactions() {
    let kind = definition::<Transactions>();
    let compiled = AtomicUsize::new(0);
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        if let Some((object, Settings::Transaction(settings))) = compiles::<Transactions>(&kind, input) {
            let plan = hand_over(&object, &settings, 1, Now { monotonic: 0, unix: 42 });
            for write in plan.writes {
                if let Write::Put(_, record, _) = write {
                    stays(record);
                }
            }
            compiled.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(compiled.into_inner() > 0, "nothing compiles");
}
