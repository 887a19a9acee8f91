//! Every CEL rule lets pass what it should and refuses the rest with its own message.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{Desk, Kind, causes, set};

/// One rule: the field that its refusal names, its message, and changes of a valid object on both sides of it.
struct Case {
    kind: Kind,
    field: &'static str,
    message: &'static str,
    /// The object as it was created, for a rule on updates.
    before: Option<Value>,
    passes: Vec<Value>,
    fails: Vec<Value>,
}

fn case(kind: Kind, field: &'static str, message: &'static str) -> Case {
    Case { kind, field, message, before: None, passes: Vec::new(), fails: Vec::new() }
}

impl Case {
    fn before(self, before: Value) -> Self {
        Self { before: Some(before), ..self }
    }

    fn passes(self, passes: impl IntoIterator<Item = Value>) -> Self {
        Self { passes: passes.into_iter().collect(), ..self }
    }

    fn fails(self, fails: impl IntoIterator<Item = Value>) -> Self {
        Self { fails: fails.into_iter().collect(), ..self }
    }
}

/// A rule on the value of one field alone.
fn bound<V: Into<Value>>(
    kind: Kind,
    field: &'static str,
    message: &'static str,
    passes: impl IntoIterator<Item = V>,
    fails: impl IntoIterator<Item = V>,
) -> Case {
    let change = |value: V| match field.strip_prefix("spec.participants[].") {
        Some(field) => participant(&set(field, value)),
        None => set(field, value),
    };
    case(kind, field, message).passes(passes.into_iter().map(change)).fails(fails.into_iter().map(change))
}

/// One participant with this change.
fn participant(change: &Value) -> Value {
    let mut participant = json!({ "name": "debit", "app": "accounts" });
    crate::merge(&mut participant, change);
    json!({ "spec": { "participants": [participant] } })
}

fn spec(spec: Value) -> Value {
    json!({ "spec": spec })
}

fn lock_cases() -> Vec<Case> {
    let bound = |field, message, passes: &[&str], fails: &[&str]| {
        bound(Kind::Lock, field, message, passes.iter().copied(), fails.iter().copied())
    };
    let case = |field, message| case(Kind::Lock, field, message);
    vec![
        bound("spec.ttl", "must be between 2s and 24h", &["2s", "24h"], &["1.999s", "0s", "24h1ns"]),
        bound("spec.lockDelay", "must be between 0s and 60s", &["0s", "1m"], &["60001ms"]),
        bound("spec.maxHold", "must be between 0s and 168h", &["0s", "168h"], &["168h1s"]),
        bound("spec.maxWait", "must be between 0s and 1h", &["0s", "60m"], &["61m"]),
        case("spec.maxWaiters", "must be between 0 and 65536")
            .passes([set("spec.maxWaiters", 0), set("spec.maxWaiters", 65536)])
            .fails([set("spec.maxWaiters", 65537)]),
        case("spec.permits", "must be between 1 and 1024")
            .passes([1, 1024].map(|permits| spec(json!({ "kind": "Semaphore", "permits": permits }))))
            .fails([0, 1025].map(|permits| spec(json!({ "kind": "Semaphore", "permits": permits })))),
        case("spec.permits", "permits are for kind Semaphore only")
            .passes([spec(json!({ "kind": "Semaphore", "permits": 3 })), spec(json!({ "kind": "Mutex" }))])
            .fails(["Mutex", "ReadWrite"].map(|kind| spec(json!({ "kind": kind, "permits": 3 })))),
        case("spec.kind", "kinds ReadWrite and Semaphore need mode FairQueue")
            .passes([
                spec(json!({ "mode": "FairQueue", "kind": "ReadWrite" })),
                spec(json!({ "mode": "FairQueue", "kind": "Semaphore" })),
                spec(json!({ "mode": "CompareAndSwap", "kind": "Mutex" })),
                spec(json!({ "mode": "Lease", "kind": "Mutex" })),
            ])
            .fails([
                spec(json!({ "mode": "CompareAndSwap", "kind": "ReadWrite" })),
                spec(json!({ "mode": "CompareAndSwap", "kind": "Semaphore" })),
                spec(json!({ "mode": "Lease", "kind": "ReadWrite" })),
                spec(json!({ "mode": "Lease", "kind": "Semaphore" })),
            ]),
        case("spec.lockDelay", "lockDelay is for modes Lease and FairQueue only")
            .passes([
                spec(json!({ "mode": "Lease", "lockDelay": "5s" })),
                spec(json!({ "mode": "FairQueue", "lockDelay": "5s" })),
                spec(json!({ "mode": "CompareAndSwap", "lockDelay": "0m" })),
            ])
            .fails([spec(json!({ "mode": "CompareAndSwap", "lockDelay": "5s" }))]),
        bound(
            "spec.daprStore",
            "must be the name of a store: DNS labels separated by dots",
            &["lockstore", "a.b-c.d"],
            &["", "Lockstore", "-a", "a-", "a..b", "a/b", "a_b"],
        ),
        case("spec.daprStore", "daprStore is for kind Mutex only")
            .passes([spec(json!({ "kind": "Mutex", "daprStore": "a" }))])
            .fails(
                ["ReadWrite", "Semaphore"]
                    .map(|kind| spec(json!({ "mode": "FairQueue", "kind": kind, "daprStore": "a" }))),
            ),
        case("spec.mode", "is immutable")
            .before(set("spec.mode", "Lease"))
            .passes([set("spec.ttl", "20s"), set("spec.mode", "Lease")])
            .fails([set("spec.mode", "FairQueue"), set("spec.mode", "CompareAndSwap")]),
        case("spec.kind", "is immutable")
            .before(set("spec.kind", "ReadWrite"))
            .passes([set("spec.ttl", "20s"), set("spec.kind", "ReadWrite")])
            .fails([set("spec.kind", "Semaphore"), set("spec.kind", "Mutex")]),
    ]
}

fn queue_cases() -> Vec<Case> {
    let bound = |field, message, passes: &[&str], fails: &[&str]| {
        bound(Kind::Queue, field, message, passes.iter().copied(), fails.iter().copied())
    };
    let number = |field, message, passes: [u32; 2], fails: [u32; 2]| {
        self::bound(Kind::Queue, field, message, passes, fails)
    };
    let case = |field, message| case(Kind::Queue, field, message);
    let backoff = |waits: Value| set("spec.backoff", waits);
    vec![
        number("spec.partitions", "must be between 1 and 64", [1, 64], [0, 65]),
        number("spec.maxDeliveries", "must be between 1 and 1000", [1, 1000], [0, 1001]),
        bound("spec.visibility", "must be between 1s and 12h", &["1s", "12h"], &["999ms", "12h1s"]),
        bound("spec.dedupWindow", "must be between 0s and 24h", &["0s", "24h"], &["25h"]),
        bound(
            "spec.deadLetter.retention",
            "must be between 1s and 8760h",
            &["1s", "8760h"],
            &["0s", "8761h"],
        ),
        bound("spec.retention.age", "must be between 1s and 8760h", &["1s", "8760h"], &["0s", "8761h"]),
        bound(
            "spec.retention.bytes",
            "must be between 1Ki and 1Ti",
            &["256Ki", "1Ti"],
            &["2Ti", "1099511627777"],
        ),
        bound("spec.maxMessageBytes", "must be between 1 and 1Mi", &["1", "1Mi"], &["0", "1025Ki", "2M"]),
        case("spec.backoff", "each must be between 0s and 24h")
            .passes([backoff(json!([])), backoff(json!(["0s", "24h"]))])
            .fails([backoff(json!(["1s", "25h"]))]),
        case("spec.maxMessageBytes", "must not exceed retention.bytes")
            .passes([spec(json!({ "maxMessageBytes": "4Ki", "retention": { "bytes": "4096" } }))])
            .fails([spec(json!({ "maxMessageBytes": "4097", "retention": { "bytes": "4Ki" } }))]),
        bound(
            "spec.deadLetter.queue",
            "must be empty or the name of a queue",
            &["", "dead", "a.b-c.d"],
            &["Dead", "-a", "a-", "a..b", "a/b", "a_b"],
        ),
        case("spec.deadLetter.queue", "a queue cannot be its own dead letter queue")
            .passes([
                json!({ "metadata": { "name": "orders" }, "spec": { "deadLetter": { "queue": "dead" } } }),
            ])
            .fails([
                json!({ "metadata": { "name": "orders" }, "spec": { "deadLetter": { "queue": "orders" } } }),
            ]),
        case("spec.onFull", "DropOldest is for modes PubSub and Log only")
            .passes([
                spec(json!({ "mode": "PubSub", "onFull": "DropOldest" })),
                spec(json!({ "mode": "Log", "onFull": "DropOldest" })),
                spec(json!({ "mode": "WorkQueue", "onFull": "Refuse" })),
            ])
            .fails([spec(json!({ "mode": "WorkQueue", "onFull": "DropOldest" }))]),
        case("spec.mode", "is immutable")
            .before(set("spec.mode", "PubSub"))
            .passes([set("spec.visibility", "20s"), set("spec.mode", "PubSub")])
            .fails([set("spec.mode", "Log"), set("spec.mode", "WorkQueue")]),
        case("spec.ordering", "ordering is immutable once it is Key")
            .before(set("spec.ordering", "Key"))
            .passes([set("spec.visibility", "20s"), set("spec.ordering", "Key")])
            .fails([set("spec.ordering", "None")]),
        case("spec.partitions", "partitions are immutable under ordering Key")
            .before(spec(json!({ "ordering": "Key", "partitions": 4 })))
            .passes([set("spec.visibility", "20s"), set("spec.partitions", 4)])
            .fails([set("spec.partitions", 8)]),
    ]
}

const LABEL: &str =
    "must be a DNS label: lower-case letters, digits and '-', beginning and ending with a letter or digit";
const PATH: &str = "must be a path such as /transfer/debit: segments of letters, digits and '-', '_', '~', '.', none \
                    beginning with a dot";

fn transaction_cases() -> Vec<Case> {
    let bound = |field, message, passes: &[&str], fails: &[&str]| {
        bound(Kind::Transaction, field, message, passes.iter().copied(), fails.iter().copied())
    };
    let number = |field, message, passes: Vec<u32>, fails: Vec<u32>| {
        self::bound(Kind::Transaction, field, message, passes, fails)
    };
    let case = |field, message| case(Kind::Transaction, field, message);
    let labels: (&[&str], &[&str]) = (&["a", "0", "a-1"], &["", "A", "-a", "a-", "a.b", "a/b", "a b", "é"]);
    let steps = |after: &[&str]| {
        spec(json!({ "participants": [
            { "name": "debit", "app": "accounts" },
            { "name": "credit", "app": "accounts", "after": after },
        ] }))
    };
    vec![
        bound("spec.timeout", "must be between 100ms and 168h", &["100ms", "168h"], &["99ms", "169h"]),
        bound("spec.retention", "must be between 1s and 720h", &["1s", "720h"], &["999ms", "721h"]),
        bound("spec.participants[].name", LABEL, labels.0, labels.1),
        bound("spec.participants[].app", LABEL, labels.0, labels.1),
        bound(
            "spec.participants[].path",
            PATH,
            &["/a", "/transfer/debit", "/v1.2/a_b~c-d"],
            &[
                "",
                "/",
                "a",
                "/a/",
                "//a",
                "/../a",
                "/a/./b",
                "/a?b",
                "/a#b",
                "/%2F",
                "/a b",
                "/é",
                "http://a/b",
            ],
        ),
        bound("spec.participants[].timeout", "must be between 10ms and 1h", &["10ms", "1h"], &["9ms", "61m"]),
        case("spec.participants[].retry.initial", "must be between 1ms and 24h")
            .passes(
                ["1ms", "24h"]
                    .map(|initial| participant(&json!({ "retry": { "initial": initial, "max": "24h" } }))),
            )
            .fails([participant(&json!({ "retry": { "initial": "999us" } }))]),
        case("spec.participants[].retry.max", "must be between 1ms and 24h")
            .passes(
                ["1ms", "24h"].map(|max| participant(&json!({ "retry": { "initial": "1ms", "max": max } }))),
            )
            .fails([participant(&json!({ "retry": { "max": "25h" } }))]),
        case("spec.participants[].retry.initial", "must not exceed max")
            .passes([participant(&json!({ "retry": { "initial": "1000ms", "max": "1s" } }))])
            .fails([participant(&json!({ "retry": { "initial": "1001ms", "max": "1s" } }))]),
        number("spec.participants[].retry.factor", "must be between 1 and 10", vec![1, 10], vec![0, 11]),
        number("spec.participants[].retry.attempts", "must be between 0 and 1000", vec![0, 1000], vec![1001]),
        case("spec.participants[].after", "a participant cannot come after itself")
            .passes([steps(&["debit"])])
            .fails([steps(&["credit"]), steps(&["debit", "credit"])]),
        case("spec.participants", "after must name participants of this transaction")
            .passes([steps(&[]), steps(&["debit"])])
            .fails([steps(&["nobody"]), steps(&["debit", "nobody"])]),
        case("spec.participants", "after is for protocol Saga only")
            .passes([steps(&["debit"]), set("spec.protocol", "TwoPhaseCommit")])
            .fails(["TwoPhaseCommit", "ThreePhaseCommit", "TCC", "Message"].map(|protocol| {
                let mut object = steps(&["debit"]);
                crate::merge(&mut object, &set("spec.protocol", protocol));
                object
            })),
        case("spec.input", "run Once needs an input")
            .passes([spec(json!({ "run": "Once", "input": {} })), spec(json!({ "run": "OnDemand" }))])
            .fails([spec(json!({ "run": "Once" }))]),
        case(
            "spec.input",
            "input is for run Once only: with OnDemand whoever begins a transaction gives its input",
        )
        .passes([spec(json!({ "run": "Once", "input": { "amount": 5 } }))])
        .fails([spec(json!({ "run": "OnDemand", "input": {} })), spec(json!({ "input": { "amount": 5 } }))]),
        case("spec.protocol", "is immutable")
            .before(set("spec.protocol", "TCC"))
            .passes([set("spec.timeout", "20s"), set("spec.protocol", "TCC")])
            .fails([set("spec.protocol", "Saga"), set("spec.protocol", "TwoPhaseCommit")]),
        case("spec.run", "is immutable")
            .before(spec(json!({ "run": "Once", "input": {} })))
            .passes([set("spec.timeout", "20s"), set("spec.run", "Once")])
            .fails([json!({ "spec": { "run": "OnDemand", "input": null } })]),
    ]
}

fn cases() -> Vec<Case> {
    [lock_cases(), queue_cases(), transaction_cases()].into_iter().flatten().collect()
}

#[tokio::test]
async fn each_lets_pass_what_it_should_and_refuses_the_rest() {
    let desk = Desk::open("rules").await;
    for Case { kind, field, message, before, passes, fails } in cases() {
        let existing = match &before {
            Some(before) => Some(desk.create(kind, &kind.with(before)).await.unwrap()),
            None => None,
        };
        let attempt = async |change: &Value| match &existing {
            Some(object) => desk.try_change(kind, object, change).await,
            None => desk.try_create(kind, &kind.with(change)).await,
        };
        assert!(!passes.is_empty() && !fails.is_empty(), "{kind:?} {field}: both sides of a rule are tried");
        for change in passes {
            if let Err(status) = attempt(&change).await {
                panic!("{kind:?} with {change} is refused: {}", status.message);
            }
        }
        for change in fails {
            let status = attempt(&change).await.expect_err(&format!("{kind:?} with {change}"));
            assert_eq!(status.code, 422, "{kind:?} with {change}: {}", status.message);
            let said: Vec<_> =
                causes(&status).into_iter().filter(|(_, said)| said.ends_with(message)).collect();
            assert!(
                said.iter().any(|(named, _)| named == field),
                "{kind:?} with {change}: {field} is not refused with \"{message}\", but: {}",
                status.message
            );
        }
    }
}

#[test]
fn each_is_in_the_table() {
    let mut defined = BTreeSet::new();
    for kind in Kind::ALL {
        walk(&kind.schema(), "", &mut |path, schema| {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                let field = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
                let message =
                    rule["message"].as_str().unwrap_or_else(|| panic!("{kind:?} {path}: no message"));
                defined.insert((kind, field.trim_start_matches('.').to_owned(), message.to_owned()));
            }
        });
    }
    let tried: BTreeSet<_> =
        cases().iter().map(|case| (case.kind, case.field.to_owned(), case.message.to_owned())).collect();
    assert_eq!(tried, defined);
}

/// Visits every schema within a schema with its path, as `spec.participants[].name`.
pub(crate) fn walk(schema: &Value, path: &str, visit: &mut dyn FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        walk(property, &path, visit);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], &format!("{path}[]"), visit);
    }
}
