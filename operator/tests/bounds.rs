//! The compile functions accept what the CRDs' rules accept, at every bound: `concordat dev` has no API server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers")]

use std::time;

use concordat_crds::{Bytes, DistributedTransaction, Duration, Lock, Queue};
use concordat_operator::{Invalid, lock, queue, transaction};
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// A field and what its rule says: the values at and just past its bounds.
struct Bound {
    /// JSON pointer under `/spec`, the first element of each list on the way.
    pointer: String,
    accepted: Vec<Value>,
    refused: Vec<Value>,
}

/// Every bound in a CRD's schema, found by the form in which the rules are written.
fn bounds(crd: &impl serde::Serialize) -> Vec<Bound> {
    let crd = serde_json::to_value(crd).unwrap();
    let spec = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap();
    let mut found = Vec::new();
    walk(spec, String::new(), &mut found);
    found
}

fn walk(schema: &Value, pointer: String, found: &mut Vec<Bound>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        found.extend(parse(rule["rule"].as_str().unwrap(), &pointer));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(property, format!("{pointer}/{name}"), found);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], format!("{pointer}/0"), found);
    }
}

fn parse(rule: &str, pointer: &str) -> Option<Bound> {
    let texts: Vec<&str> = rule.split('\'').skip(1).step_by(2).collect();
    let two = |texts: &[&str]| Some((texts.first()?.to_string(), texts.get(1)?.to_string()));
    let bound = |pointer: &str, min: Value, max: Value, below: Option<Value>, above: Value| Bound {
        pointer: pointer.into(),
        accepted: vec![min, max],
        refused: below.into_iter().chain([above]).collect(),
    };
    if rule.contains("duration('") && rule.contains(">=") {
        let (min, max) = two(&texts)?;
        let pointer = if rule.contains("self.all(") { format!("{pointer}/0") } else { pointer.into() };
        let nanosecond = time::Duration::from_nanos(1);
        let at = |text: &str| time::Duration::from(text.parse::<Duration>().unwrap());
        let below = at(&min).checked_sub(nanosecond).map(|at| json!(Duration::from(at)));
        let above = json!(Duration::from(at(&max) + nanosecond));
        return Some(bound(&pointer, json!(min), json!(max), below, above));
    }
    if rule.contains("quantity('") && rule.contains(">= 0") {
        let (min, max) = two(&texts)?;
        let at = |text: &str| text.parse::<Bytes>().unwrap().get();
        let below = at(&min).checked_sub(1).map(|at| json!(Bytes::new(at)));
        let above = json!(Bytes::new(at(&max) + 1));
        return Some(bound(pointer, json!(min), json!(max), below, above));
    }
    let (min, max) = rule.strip_prefix("self >= ")?.split_once(" && self <= ")?;
    let (min, max): (u64, u64) = (min.parse().ok()?, max.parse().ok()?);
    Some(bound(pointer, json!(min), json!(max), min.checked_sub(1).map(|at| json!(at)), json!(max + 1)))
}

/// Tries every bound on top of a spec that leaves it room; tells how many there were.
fn holds(bounds: &[Bound], spec: &Value, compile: impl Fn(Value) -> Result<(), Invalid>) -> usize {
    assert_eq!(compile(spec.clone()), Ok(()));
    for Bound { pointer, accepted, refused } in bounds {
        let with = |value: &Value| {
            let mut spec = spec.clone();
            *spec.pointer_mut(pointer).unwrap_or_else(|| panic!("the spec tried has no {pointer}")) =
                value.clone();
            spec
        };
        for value in accepted {
            assert_eq!(compile(with(value)), Ok(()), "{pointer} = {value}");
        }
        for value in refused {
            let invalid = compile(with(value)).expect_err(&format!("{pointer} = {value}"));
            let field = format!(
                "/{}",
                invalid.field.replace("spec.", "").replace('[', "/").replace(']', "").replace('.', "/")
            );
            assert_eq!(&field, pointer, "{pointer} = {value}: {invalid}");
        }
    }
    bounds.len()
}

fn from<T: serde::de::DeserializeOwned>(spec: Value) -> T {
    serde_json::from_value(spec).unwrap()
}

#[test]
fn of_a_lock() {
    let spec = json!({
        "mode": "FairQueue", "kind": "Semaphore", "permits": 1, "ttl": "2s", "lockDelay": "0s", "maxHold": "0s",
        "maxWait": "0s", "maxWaiters": 0,
    });
    let compile = |spec| lock::compile(&Lock::new("l", from(spec))).map(drop);
    assert_eq!(holds(&bounds(&Lock::crd()), &spec, compile), 6);
}

#[test]
fn of_a_queue() {
    let spec = json!({
        "mode": "WorkQueue", "partitions": 1, "visibility": "1s", "maxDeliveries": 1, "backoff": ["0s"],
        "deadLetter": { "retention": "1s" }, "retention": { "age": "1s", "bytes": "1Gi" }, "maxMessageBytes": "1",
        "dedupWindow": "0s",
    });
    let compile = |spec| queue::compile(&Queue::new("q", from(spec))).map(drop);
    assert_eq!(holds(&bounds(&Queue::crd()), &spec, compile), 9);
}

#[test]
fn of_a_transaction() {
    let spec = json!({
        "protocol": "TwoPhaseCommit", "timeout": "1s", "retention": "1s",
        "participants": [{
            "name": "a", "app": "a", "timeout": "1s",
            "retry": { "initial": "1ms", "max": "24h", "factor": 1, "attempts": 0 },
        }],
    });
    let compile = |spec| transaction::compile(&DistributedTransaction::new("t", from(spec))).map(drop);
    assert_eq!(holds(&bounds(&DistributedTransaction::crd()), &spec, compile), 7);
}
