//! Wrong input in every field of every spec, and around it: refused, with the field named, and nothing is written.

use std::collections::BTreeSet;

use kube::core::Status;
use serde_json::{Value, json};

use crate::{Desk, Kind, causes, rules};

/// Every field of every spec that holds a value, with what it takes.
const FIELDS: &[(Kind, &str, Class)] = &[
    (Kind::Lock, "spec", Class::Object),
    (Kind::Lock, "spec.mode", Class::Choice),
    (Kind::Lock, "spec.kind", Class::Choice),
    (Kind::Lock, "spec.permits", Class::Number),
    (Kind::Lock, "spec.ttl", Class::Duration),
    (Kind::Lock, "spec.lockDelay", Class::Duration),
    (Kind::Lock, "spec.maxHold", Class::Duration),
    (Kind::Lock, "spec.maxWait", Class::Duration),
    (Kind::Lock, "spec.maxWaiters", Class::Number),
    (Kind::Lock, "spec.daprStore", Class::Text { longest: 253 }),
    (Kind::Queue, "spec", Class::Object),
    (Kind::Queue, "spec.mode", Class::Choice),
    (Kind::Queue, "spec.partitions", Class::Number),
    (Kind::Queue, "spec.ordering", Class::Choice),
    (Kind::Queue, "spec.visibility", Class::Duration),
    (Kind::Queue, "spec.maxDeliveries", Class::Number),
    (Kind::Queue, "spec.backoff", Class::List { most: 16 }),
    (Kind::Queue, "spec.backoff[]", Class::Duration),
    (Kind::Queue, "spec.deadLetter", Class::Object),
    (Kind::Queue, "spec.deadLetter.queue", Class::Text { longest: 253 }),
    (Kind::Queue, "spec.deadLetter.retention", Class::Duration),
    (Kind::Queue, "spec.retention", Class::Object),
    (Kind::Queue, "spec.retention.age", Class::Duration),
    (Kind::Queue, "spec.retention.bytes", Class::Bytes),
    (Kind::Queue, "spec.onFull", Class::Choice),
    (Kind::Queue, "spec.maxMessageBytes", Class::Bytes),
    (Kind::Queue, "spec.dedupWindow", Class::Duration),
    (Kind::Transaction, "spec", Class::Object),
    (Kind::Transaction, "spec.protocol", Class::Choice),
    (Kind::Transaction, "spec.participants", Class::List { most: 64 }),
    (Kind::Transaction, "spec.participants[]", Class::Object),
    (Kind::Transaction, "spec.participants[].name", Class::Text { longest: 63 }),
    (Kind::Transaction, "spec.participants[].app", Class::Text { longest: 63 }),
    (Kind::Transaction, "spec.participants[].path", Class::Text { longest: 256 }),
    (Kind::Transaction, "spec.participants[].timeout", Class::Duration),
    (Kind::Transaction, "spec.participants[].retry", Class::Object),
    (Kind::Transaction, "spec.participants[].retry.initial", Class::Duration),
    (Kind::Transaction, "spec.participants[].retry.max", Class::Duration),
    (Kind::Transaction, "spec.participants[].retry.factor", Class::Number),
    (Kind::Transaction, "spec.participants[].retry.attempts", Class::Number),
    (Kind::Transaction, "spec.participants[].after", Class::List { most: 63 }),
    (Kind::Transaction, "spec.participants[].after[]", Class::Text { longest: 63 }),
    (Kind::Transaction, "spec.participants[].input", Class::Object),
    (Kind::Transaction, "spec.timeout", Class::Duration),
    (Kind::Transaction, "spec.run", Class::Choice),
    (Kind::Transaction, "spec.input", Class::Object),
    (Kind::Transaction, "spec.retention", Class::Duration),
];

/// What a field takes.
#[derive(Clone, Copy)]
enum Class {
    Choice,
    Number,
    Duration,
    Bytes,
    Text { longest: usize },
    List { most: usize },
    Object,
}

/// More than etcd stores in a value.
const HUGE: usize = 3 << 19;
/// Deeper than anybody means.
const DEEP: usize = 5_000;
/// A JSON value that no field holds, for a text to be put in its place.
const HERE: &str = "\"put it here\"";

impl Class {
    fn json_type(self) -> &'static str {
        match self {
            Self::Choice | Self::Duration | Self::Bytes | Self::Text { .. } => "string",
            Self::Number => "integer",
            Self::List { .. } => "array",
            Self::Object => "object",
        }
    }

    /// Values (JSON text) that the field refuses, each with words of the refusal.
    fn wrong(self) -> Vec<(String, String)> {
        // A number is named by its format, int32.
        let expected = format!("must be of type {}", self.json_type().trim_end_matches("eger"));
        let deep = format!("{}{}", "[".repeat(DEEP), "]".repeat(DEEP));
        let nested = format!("[{deep}]");
        let mut wrong: Vec<_> = [
            ("integer", "7"),
            ("number", "7.5"),
            ("boolean", "true"),
            ("string", "\"seven\""),
            ("array", "[]"),
            ("array", &deep),
            ("object", "{}"),
        ]
        .into_iter()
        .filter(|(json_type, _)| *json_type != self.json_type())
        .map(|(_, value)| (value.to_owned(), expected.clone()))
        .collect();
        let mut add = |value: String, words: &str| wrong.push((value, words.to_owned()));
        let text = |value: &str| Value::from(value).to_string();
        let long = |length: usize| text(&"a".repeat(length));
        match self {
            Self::Choice => {
                for value in ["", "wrong", "mutex", "Mutex ", "é", "a/b", "../Mutex"].map(text) {
                    add(value, "Unsupported value");
                }
                add(long(HUGE), "Unsupported value");
            }
            Self::Number => {
                add("-1".into(), "should be greater than or equal to 0");
                add("2147483648".into(), "must be between");
                add("9223372036854775807".into(), "must be between");
                add("100000000000000000000".into(), &expected);
            }
            Self::Duration => {
                for value in
                    ["", "7", "s", "-7s", "+7s", "7 s", "7d", "7S", "1e3s", "1µs", "٣s", "7s/7s", "7s\n"]
                {
                    add(text(value), "should match");
                }
                // Beyond what Go's durations hold.
                add(text("9999999999h"), "");
                add(long(33), "Too long");
                add(long(HUGE), "Too long");
            }
            Self::Bytes => {
                for value in ["", "Ki", "-7", "7.5Ki", "7 Ki", "7K", "7ki", "7m", "7e3", "٣", "7/7"].map(text)
                {
                    add(value, "should match");
                }
                add(text("99999999999999999Ti"), "must be between");
                add(long(21), "Too long");
                add(long(HUGE), "Too long");
            }
            Self::Text { longest } => {
                for value in ["é", "..", "../..", "a//b", "a b", "\u{0}", "A%2FB"].map(text) {
                    add(value, "must");
                }
                add(long(longest + 1), "Too long");
                add(long(HUGE), "Too long");
            }
            Self::List { most } => {
                add(format!("[{}7]", "7,".repeat(most)), "Too many");
                add("[7]".into(), "must be of type");
                add(nested, "must be of type");
            }
            Self::Object => {}
        }
        wrong
    }
}

/// The text of a valid object with `value` in `field`.
fn with_text(kind: Kind, field: &str, value: &str) -> String {
    let mut object = kind.valid();
    let mut place = &mut object;
    for name in field.split('.') {
        let (name, of_list) = name.strip_suffix("[]").map_or((name, false), |name| (name, true));
        place = &mut place[name];
        if of_list {
            if !place.is_array() {
                *place = json!([null]);
            }
            place = &mut place[0];
        }
    }
    *place = serde_json::from_str(HERE).unwrap();
    object.to_string().replacen(HERE, value, 1)
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

#[tokio::test]
async fn every_field_refuses_what_it_cannot_be() {
    let desk = Desk::open("inputs").await;
    let mut wrong = Vec::new();
    for &(kind, field, class) in FIELDS {
        for (value, words) in class.wrong() {
            match desk.send("POST", &desk.path(kind), with_text(kind, field, &value)).await {
                Ok(_) => wrong.push(format!("{kind:?} {field} takes {}", short(&value))),
                Err(status) if names(&status, field, &words) => {}
                Err(status) => wrong.push(format!(
                    "{kind:?} {field}: {} should be refused with \"{words}\", not {} {}",
                    short(&value),
                    status.code,
                    short(&status.message)
                )),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(written(&desk).await, 0);
}

/// Whether a refusal is an invalid object's and says `words` of `field` or of something in it. A rule over the items
/// of a list names the list.
fn names(status: &Status, field: &str, words: &str) -> bool {
    let field = if field.ends_with("[]") { field.split("[]").next().unwrap() } else { field };
    status.code == 422
        && causes(status).iter().any(|(named, said)| named.starts_with(field) && said.contains(words))
}

#[tokio::test]
async fn what_is_no_object_of_ours_is_refused() {
    let desk = Desk::open("malformed").await;
    let lock = |change: Value| Kind::Lock.with(&change).to_string();
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let unknown = with_text(Kind::Lock, "spec.unheard", "1");
    let unknown_within = with_text(Kind::Transaction, "spec.participants[].retry.unheard", "1");
    let doubled = lock(json!({})).replacen("\"mode\":", "\"mode\":\"Lease\",\"mode\":", 1);
    let named = |name: &str| lock(json!({ "metadata": { "name": name } }));
    let twice = |field: &str, items: &str| with_text(Kind::Transaction, field, items);
    let once = |input: &str| {
        with_text(Kind::Transaction, "spec.input", input).replacen(
            "\"spec\":{",
            "\"spec\":{\"run\":\"Once\",",
            1,
        )
    };
    let cases: Vec<(&str, Kind, String, u16, &str)> = vec![
        ("nothing", Kind::Lock, String::new(), 400, "unexpected end of JSON"),
        ("no JSON", Kind::Lock, "mode: Lease".into(), 400, "invalid character"),
        ("half of it", Kind::Lock, lock(json!({})).split_at(40).0.into(), 400, "unexpected end of JSON"),
        ("more after it", Kind::Lock, lock(json!({})) + "{}", 400, "after top-level value"),
        ("a list", Kind::Lock, "[]".into(), 400, "cannot"),
        (
            "a number beyond floats",
            Kind::Lock,
            with_text(Kind::Lock, "spec.permits", "1e400"),
            400,
            "cannot unmarshal",
        ),
        ("too deep", Kind::Transaction, once(&format!("{{\"a\":{deep}}}")), 400, "exceeded max depth"),
        (
            "another kind",
            Kind::Lock,
            Kind::Queue.valid().to_string(),
            422,
            "kind: Invalid value: \"Queue\": must be Lock",
        ),
        (
            "another version",
            Kind::Lock,
            lock(json!({ "apiVersion": "concordat.dev/v1" })),
            400,
            "in version \"v1\" cannot be handled",
        ),
        ("no spec", Kind::Lock, lock(json!({ "spec": null })), 422, "spec: Required value"),
        ("no mode", Kind::Lock, lock(json!({ "spec": { "mode": null } })), 422, "spec.mode: Required value"),
        (
            "no protocol",
            Kind::Transaction,
            with_text(Kind::Transaction, "spec.protocol", "null"),
            422,
            "spec.protocol",
        ),
        (
            "no participant",
            Kind::Transaction,
            with_text(Kind::Transaction, "spec.participants", "[]"),
            422,
            "at least 1",
        ),
        ("a field nobody knows", Kind::Lock, unknown, 400, "unknown field \"spec.unheard\""),
        (
            "one deeper",
            Kind::Transaction,
            unknown_within,
            400,
            "unknown field \"spec.participants[0].retry.unheard\"",
        ),
        ("a field twice", Kind::Lock, doubled, 400, "duplicate field \"spec.mode\""),
        (
            "a participant twice",
            Kind::Transaction,
            twice("spec.participants", r#"[{"name":"a","app":"a"},{"name":"a","app":"b"}]"#),
            422,
            "spec.participants[1]: Duplicate value",
        ),
        (
            "the same step twice",
            Kind::Transaction,
            twice(
                "spec.participants",
                r#"[{"name":"a","app":"a"},{"name":"b","app":"b","after":["a","a"]}]"#,
            ),
            422,
            "spec.participants[1].after[1]: Duplicate value",
        ),
        ("a name with a slash", Kind::Lock, named("a/b"), 422, "metadata.name: Invalid value"),
        ("a name with an escaped slash", Kind::Lock, named("a%2Fb"), 422, "metadata.name: Invalid value"),
        ("a path as name", Kind::Lock, named(".."), 422, "metadata.name: Invalid value"),
        ("a name in Unicode", Kind::Lock, named("é"), 422, "metadata.name: Invalid value"),
        ("a long name", Kind::Lock, named(&"a".repeat(254)), 422, "metadata.name: Invalid value"),
        (
            "an input of 1.5 MiB",
            Kind::Transaction,
            once(&json!({ "a": "a".repeat(HUGE) }).to_string()),
            500,
            "too large",
        ),
        (
            "an input of 4 MiB",
            Kind::Transaction,
            once(&json!({ "a": "a".repeat(4 << 20) }).to_string()),
            413,
            "too large",
        ),
    ];
    let mut wrong = Vec::new();
    for (what, kind, body, code, words) in cases {
        match desk.send("POST", &format!("{}?fieldValidation=Strict", desk.path(kind)), body).await {
            Ok(_) => wrong.push(format!("{what} is taken")),
            Err(status) if status.code == code && status.message.contains(words) => {}
            Err(status) => wrong.push(format!(
                "{what}: {} {}",
                status.code,
                status.message.chars().take(300).collect::<String>()
            )),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(written(&desk).await, 0);
}

/// How many objects there are in the namespace.
async fn written(desk: &Desk<'_>) -> usize {
    let mut count = 0;
    for kind in Kind::ALL {
        count += desk.send("GET", &desk.path(kind), "").await.unwrap()["items"].as_array().unwrap().len();
    }
    count
}

#[test]
fn every_field_is_in_the_table() {
    let mut defined = BTreeSet::new();
    for kind in Kind::ALL {
        rules::walk(&kind.schema()["properties"]["spec"], "spec", &mut |path, _| {
            defined.insert((kind, path.to_owned()));
        });
    }
    let tried: BTreeSet<_> = FIELDS.iter().map(|(kind, field, _)| (*kind, (*field).to_owned())).collect();
    assert_eq!(tried, defined);
}
