//! A `DistributedTransaction` becomes settings.

use std::collections::BTreeSet;

use concordat_crds::{
    DistributedTransaction, DistributedTransactionSpec,
    transaction::{Participant as Declared, Protocol as Wanted, Retry, Run},
};
use concordat_protocol::{
    Branch, Now,
    definition::Backoff,
    transaction::{
        Participant, Protocol, Settings,
        plans::{self, MAX_INPUT},
    },
};
use serde_json::{Map, Value};

use crate::invalid::{Invalid, dns_label, duration, hours, milliseconds, seconds, unique, within};

/// Levels of an input: far below what the operator still sees of it, and what participants' parsers take.
const MAX_LEVELS: usize = 64;

/// The settings that sidecars get, or what to change.
pub fn compile(object: &DistributedTransaction) -> Result<Settings, Invalid> {
    let DistributedTransactionSpec { protocol, participants, timeout, run, input, retention } = &object.spec;
    let protocol = match protocol {
        Wanted::TwoPhaseCommit => Protocol::TwoPhaseCommit,
        Wanted::ThreePhaseCommit => Protocol::ThreePhaseCommit,
        Wanted::Saga => Protocol::Saga,
        Wanted::Tcc => Protocol::Tcc,
        Wanted::Message => Protocol::Message,
    };
    within("the number of spec.participants", participants.len(), 1..=64)?;
    let names = unique("spec.participants[*].name", participants.iter().map(|of| of.name.as_str()))?;
    let participants = participants
        .iter()
        .enumerate()
        .map(|(place, declared)| {
            participant(&format!("spec.participants[{place}]"), protocol, &names, declared)
        })
        .collect::<Result<Vec<_>, _>>()?;
    acyclic(&participants)?;
    match (run, input) {
        (Run::Once, None) => {
            return Err(Invalid::new("spec.input", "must be there: run Once needs an input"));
        }
        (Run::OnDemand, Some(_)) => {
            return Err(Invalid::new(
                "spec.input",
                "must be absent: with run OnDemand whoever begins a transaction gives its input",
            ));
        }
        (Run::Once, Some(input)) => {
            shallow("spec.input", input)?;
            within("the size in bytes of spec.input", text(input).len(), 0..=MAX_INPUT)?
        }
        (Run::OnDemand, None) => 0,
    };
    let settings = Settings {
        protocol,
        participants,
        timeout: duration("spec.timeout", *timeout, milliseconds(100)..=hours(168))?,
        once: *run == Run::Once,
        retention: duration("spec.retention", *retention, seconds(1)..=hours(720))?,
    };
    let largest =
        plans::new("".into(), &settings, 0, input.as_ref().map(text).unwrap_or_default(), Now::default());
    plans::check_size(&largest)
        .map_err(|refused| Invalid::new("spec.participants", format!("must be less: {refused}")))?;
    Ok(settings)
}

fn participant(
    path: &str,
    protocol: Protocol,
    names: &BTreeSet<&str>,
    declared: &Declared,
) -> Result<Participant, Invalid> {
    let Declared { name, app, path: _, timeout, retry, after, input } = declared;
    let field = |name: &str| format!("{path}.{name}");
    dns_label(&field("name"), name)?;
    dns_label(&field("app"), app)?;
    let after_field = field("after");
    unique(&after_field, after.iter().map(String::as_str))?;
    for other in after {
        let refusal = if protocol != Protocol::Saga {
            "must be empty: it is for protocol Saga only".to_owned()
        } else if other == name {
            "must not name the participant itself".to_owned()
        } else if !names.contains(other.as_str()) {
            format!("must name participants of this transaction: there is no {other:?}")
        } else {
            continue;
        };
        return Err(Invalid::new(after_field, refusal));
    }
    let Retry { initial, max, factor, attempts } = retry;
    let waits = milliseconds(1)..=hours(24);
    let retry = Backoff {
        initial: duration(&field("retry.initial"), *initial, waits.clone())?,
        max: duration(&field("retry.max"), *max, waits)?,
        factor_milli: within(&field("retry.factor"), *factor, 1..=10)? * 1000,
    };
    if retry.initial > retry.max {
        return Err(Invalid::new(
            field("retry.initial"),
            format!("must not exceed retry.max, which is {max}"),
        ));
    }
    Ok(Participant {
        name: name.as_str().into(),
        app: app.as_str().into(),
        path: callback_path(&field("path"), declared)?,
        timeout: duration(&field("timeout"), *timeout, milliseconds(10)..=hours(1))?,
        retry,
        attempts: within(&field("retry.attempts"), *attempts, 0..=1000)?,
        after: after.iter().map(|other| other.as_str().into()).collect(),
        input: match input {
            Some(input) => {
                shallow(&field("input"), input)?;
                Some(text(input))
            }
            None => None,
        },
    })
}

/// Segments of letters, digits and `-._~`, none beginning with a dot: nothing that a server could take for another path.
fn callback_path(field: &str, declared: &Declared) -> Result<String, Invalid> {
    let path = declared.path();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let segment = |text: &str| !text.is_empty() && !text.starts_with('.') && text.bytes().all(plain);
    let valid =
        path.len() <= 256 && path.strip_prefix('/').is_some_and(|segments| segments.split('/').all(segment));
    valid.then_some(path).ok_or_else(|| {
        Invalid::new(
            field,
            "must be a path of at most 256 characters such as /transfer/debit: segments of letters, digits and '-', \
             '_', '~', '.', none beginning with a dot",
        )
    })
}

/// Whether every participant can have its turn.
fn acyclic(participants: &[Participant]) -> Result<(), Invalid> {
    let mut ready: BTreeSet<&Branch> = BTreeSet::new();
    loop {
        let (next, waiting): (Vec<&Participant>, Vec<&Participant>) = participants
            .iter()
            .filter(|of| !ready.contains(&of.name))
            .partition(|of| of.after.iter().all(|other| ready.contains(other)));
        match (next.is_empty(), waiting.first()) {
            (_, None) => return Ok(()),
            (true, Some(stuck)) => {
                return Err(Invalid::new(
                    "spec.participants[*].after",
                    format!("must not go round in a circle, as {:?} does", stuck.name),
                ));
            }
            (false, _) => ready.extend(next.into_iter().map(|of| &of.name)),
        }
    }
}

/// Refuses what is nested deeper than every parser on its way takes it.
fn shallow(field: &str, object: &Map<String, Value>) -> Result<(), Invalid> {
    fn fits(value: &Value, levels: usize) -> bool {
        match value {
            Value::Array(inner) => levels > 0 && inner.iter().all(|value| fits(value, levels - 1)),
            Value::Object(inner) => levels > 0 && inner.values().all(|value| fits(value, levels - 1)),
            _ => true,
        }
    }
    if object.values().all(|value| fits(value, MAX_LEVELS - 1)) {
        return Ok(());
    }
    Err(Invalid::new(field, format!("must be nested at most {MAX_LEVELS} levels deep")))
}

/// An object of JSON as text, its fields in order.
pub(super) fn text(object: &Map<String, Value>) -> String {
    Value::Object(object.clone()).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn transaction(spec: Value) -> DistributedTransaction {
        DistributedTransaction::new("t", serde_json::from_value(spec).unwrap())
    }

    fn two_phase(participant: Value) -> DistributedTransaction {
        transaction(json!({ "protocol": "TwoPhaseCommit", "participants": [participant] }))
    }

    /// An object of so many levels.
    fn nested(levels: usize) -> Value {
        (1..levels).fold(json!({}), |inner, _| json!({ "a": inner }))
    }

    #[test]
    fn every_field_reaches_the_settings() {
        let object = transaction(json!({
            "protocol": "Saga",
            "participants": [
                {
                    "name": "debit", "app": "accounts", "path": "/transfer/debit", "timeout": "4s",
                    "retry": { "initial": "5ms", "max": "6s", "factor": 7, "attempts": 8 },
                    "after": ["credit"], "input": { "b": 1, "a": [2] },
                },
                { "name": "credit", "app": "ledger" },
            ],
            "timeout": "9s", "run": "Once", "input": { "amount": 10 }, "retention": "11s",
        }));
        assert_eq!(
            compile(&object),
            Ok(Settings {
                protocol: Protocol::Saga,
                participants: vec![
                    Participant {
                        name: "debit".into(),
                        app: "accounts".into(),
                        path: "/transfer/debit".into(),
                        timeout: 4_000,
                        retry: Backoff { initial: 5, max: 6_000, factor_milli: 7_000 },
                        attempts: 8,
                        after: vec!["credit".into()],
                        input: Some(r#"{"a":[2],"b":1}"#.into()),
                    },
                    Participant {
                        name: "credit".into(),
                        app: "ledger".into(),
                        path: "/concordat/credit".into(),
                        timeout: 3_000,
                        retry: Backoff { initial: 100, max: 30_000, factor_milli: 2_000 },
                        attempts: 0,
                        after: vec![],
                        input: None,
                    },
                ],
                timeout: 9_000,
                once: true,
                retention: 11_000,
            })
        );
    }

    #[test]
    fn what_is_left_out_has_the_documented_default() {
        let settings = compile(&two_phase(json!({ "name": "a", "app": "a" }))).unwrap();
        assert_eq!((settings.timeout, settings.once, settings.retention), (30_000, false, 600_000));
    }

    #[test]
    fn only_what_works_counts_as_supported() {
        for (protocol, supported) in [
            ("TwoPhaseCommit", true),
            ("ThreePhaseCommit", false),
            ("Saga", false),
            ("TCC", false),
            ("Message", false),
        ] {
            let object = transaction(json!({
                "protocol": protocol, "participants": [{ "name": "a", "app": "a" }],
            }));
            assert_eq!(compile(&object).unwrap().supported(), supported, "{protocol}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_change() {
        let label = "must be a DNS label of at most 63 characters: lower-case letters, digits and '-', beginning and \
                     ending with a letter or digit";
        let big = json!({ "x": "y".repeat(MAX_INPUT) });
        let huge = json!({ "x": "y".repeat(700_000) });
        let size = MAX_INPUT + r#"{"x":""}"#.len();
        let saga = |after: [Value; 3]| {
            let [a, b, c] = after;
            transaction(json!({ "protocol": "Saga", "participants": [
                { "name": "a", "app": "a", "after": a },
                { "name": "b", "app": "b", "after": b },
                { "name": "c", "app": "c", "after": c },
            ]}))
        };
        let none = || json!([]);
        let simple = || json!([{ "name": "a", "app": "a" }]);
        for (object, refusal) in [
            (
                transaction(json!({ "protocol": "Saga", "participants": [] })),
                "the number of spec.participants must be between 1 and 64, not 0".to_owned(),
            ),
            (
                transaction(json!({ "protocol": "TwoPhaseCommit", "participants": [
                    { "name": "a", "app": "x" }, { "name": "a", "app": "y" },
                ]})),
                "spec.participants[*].name must be unique: \"a\" is there twice".to_owned(),
            ),
            (
                two_phase(json!({ "name": "A", "app": "a" })),
                format!("spec.participants[0].name {label}; not \"A\""),
            ),
            (
                two_phase(json!({ "name": "a", "app": "" })),
                format!("spec.participants[0].app {label}; not \"\""),
            ),
            (
                two_phase(json!({ "name": "a", "app": "a", "timeout": "9ms" })),
                "spec.participants[0].timeout must be between 10ms and 1h, not 9ms".to_owned(),
            ),
            (
                two_phase(json!({ "name": "a", "app": "a", "retry": { "initial": "2s", "max": "1s" } })),
                "spec.participants[0].retry.initial must not exceed retry.max, which is 1s".to_owned(),
            ),
            (
                two_phase(json!({ "name": "a", "app": "a", "retry": { "factor": 11 } })),
                "spec.participants[0].retry.factor must be between 1 and 10, not 11".to_owned(),
            ),
            (
                two_phase(json!({ "name": "a", "app": "a", "after": ["b"] })),
                "spec.participants[0].after must be empty: it is for protocol Saga only".to_owned(),
            ),
            (
                saga([json!(["a"]), none(), none()]),
                "spec.participants[0].after must not name the participant itself".to_owned(),
            ),
            (
                saga([json!(["z"]), none(), none()]),
                "spec.participants[0].after must name participants of this transaction: there is no \"z\""
                    .to_owned(),
            ),
            (
                saga([json!(["b", "b"]), none(), none()]),
                "spec.participants[0].after must be unique: \"b\" is there twice".to_owned(),
            ),
            (
                saga([json!(["c"]), json!(["a"]), json!(["b"])]),
                "spec.participants[*].after must not go round in a circle, as \"a\" does".to_owned(),
            ),
            (
                transaction(json!({ "protocol": "TwoPhaseCommit", "participants": simple(), "run": "Once" })),
                "spec.input must be there: run Once needs an input".to_owned(),
            ),
            (
                transaction(json!({
                    "protocol": "TwoPhaseCommit", "participants": simple(), "run": "Once", "input": nested(65),
                })),
                "spec.input must be nested at most 64 levels deep".to_owned(),
            ),
            (
                two_phase(json!({ "name": "a", "app": "a", "input": nested(65) })),
                "spec.participants[0].input must be nested at most 64 levels deep".to_owned(),
            ),
            (
                transaction(json!({ "protocol": "TwoPhaseCommit", "participants": simple(), "input": {} })),
                "spec.input must be absent: with run OnDemand whoever begins a transaction gives its input"
                    .to_owned(),
            ),
            (
                transaction(json!({
                    "protocol": "TwoPhaseCommit", "participants": simple(), "run": "Once", "input": big,
                })),
                format!("the size in bytes of spec.input must be between 0 and 262144, not {size}"),
            ),
            (
                transaction(json!({ "protocol": "TwoPhaseCommit", "participants": [
                    { "name": "a", "app": "a", "input": huge.clone() }, { "name": "b", "app": "b", "input": huge },
                ]})),
                "spec.participants must be less: the transaction with its branches' inputs and results may come to \
                 1437956 bytes, 1300000 are allowed"
                    .to_owned(),
            ),
            (
                many(65),
                "the number of spec.participants must be between 1 and 64, not 65".to_owned(),
            ),
        ] {
            assert_eq!(compile(&object).unwrap_err().to_string(), refusal);
        }
    }

    fn many(participants: usize) -> DistributedTransaction {
        let participant = |number| json!({ "name": format!("p{number}"), "app": "a" });
        let participants: Vec<_> = (0..participants).map(participant).collect();
        transaction(json!({ "protocol": "TwoPhaseCommit", "participants": participants }))
    }

    #[test]
    fn sixty_four_participants_are_taken() {
        assert!(compile(&many(64)).is_ok());
    }

    #[test]
    fn an_order_without_circles_is_taken() {
        let object = transaction(json!({ "protocol": "Saga", "participants": [
            { "name": "a", "app": "a", "after": ["b", "c"] },
            { "name": "b", "app": "b", "after": ["c"] },
            { "name": "c", "app": "c" },
        ]}));
        assert!(compile(&object).is_ok());
    }

    #[test]
    fn a_path_can_be_taken_for_no_other() {
        for path in
            ["", "/", "x", "//x", "/x/", "/x//y", "/..", "/x/../y", "/.x", "/x%2Fy", "/x?y", "/x y", "/ü"]
        {
            let refusal = compile(&two_phase(json!({ "name": "a", "app": "a", "path": path }))).unwrap_err();
            assert_eq!(refusal.field, "spec.participants[0].path", "{path}");
        }
        let long = format!("/{}", "x".repeat(256));
        assert!(compile(&two_phase(json!({ "name": "a", "app": "a", "path": long }))).is_err());
        for path in ["/x", "/a/B.c/_1~-"] {
            assert!(compile(&two_phase(json!({ "name": "a", "app": "a", "path": path }))).is_ok(), "{path}");
        }
    }
}
