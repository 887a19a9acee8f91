//! Every operation as the sidecar itself describes it, and what it would take: a route that is added is in every table.

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use concordat_protocol::queue::location::{ClaimId, Receipt, SegmentAt};
use hyper::Method;
use serde_json::{Value, json};

use crate::world::Sidecar;

/// One method of one path.
pub(super) struct Operation {
    pub(super) method: Method,
    /// The path, its parameters in braces.
    pub(super) path: String,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Body,
    /// Whether any answer but a refusal is described.
    pub(super) works: bool,
}

pub(super) struct Parameter {
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) required: bool,
    pub(super) class: Class,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Path,
    Query,
    Header,
}

pub(super) enum Body {
    Nothing,
    /// A JSON object; whether there must be one.
    Object(Object, bool),
    /// Any JSON.
    Json,
    /// Any bytes, or objects a line.
    Bytes(Object),
}

/// A JSON object's fields, those of the objects within it included.
#[derive(Default)]
pub(super) struct Object {
    pub(super) fields: Vec<Field>,
    /// One with only what must be there.
    pub(super) least: Value,
}

pub(super) struct Field {
    /// As `locks[].key`.
    pub(super) path: String,
    pub(super) class: Class,
    pub(super) required: bool,
    pub(super) nullable: bool,
    /// Whether a text without a character is refused.
    pub(super) filled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Text,
    Number,
    Switch,
    Choice,
    List,
    /// An object of named fields.
    Object,
    /// An object of any names.
    Map,
    /// Any JSON.
    Any,
}

/// What an operation would take, in parts.
#[derive(Clone, Default)]
pub(super) struct Call {
    pub(super) segments: Vec<(String, String)>,
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
}

/// All of them.
pub(super) async fn operations(sidecar: &Sidecar) -> Result<Vec<Operation>> {
    let text = sidecar.ask(&Method::GET, "/openapi.json", &[], "").await?.text;
    let description: Value = serde_json::from_str(&text)?;
    let mut operations = Vec::new();
    for (path, methods) in description["paths"].as_object().context("no paths")? {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            operations.push(Operation::of(&description, method, path, operation)?);
        }
    }
    ensure!(!operations.is_empty(), "nothing is described");
    Ok(operations)
}

impl Operation {
    fn of(description: &Value, method: &str, path: &str, of: &Value) -> Result<Self> {
        let parameter = |parameter: &Value| {
            Ok(Parameter {
                place: match parameter["in"].as_str() {
                    Some("path") => Place::Path,
                    Some("query") => Place::Query,
                    Some("header") => Place::Header,
                    other => anyhow::bail!("{method} {path}: a parameter in {other:?}"),
                },
                name: parameter["name"].as_str().context("a parameter without a name")?.to_owned(),
                required: parameter["required"] == true,
                class: Schema::of(description, &parameter["schema"]).class(),
            })
        };
        let parameters = of["parameters"].as_array().into_iter().flatten();
        Ok(Self {
            method: Method::from_bytes(method.to_uppercase().as_bytes())?,
            path: path.to_owned(),
            parameters: parameters.map(parameter).collect::<Result<_>>()?,
            body: Body::of(description, &of["requestBody"]),
            works: of["responses"]
                .as_object()
                .is_some_and(|all| all.keys().any(|code| code.starts_with('2'))),
        })
    }

    pub(super) fn has(&self, place: Place, name: &str) -> bool {
        self.parameters.iter().any(|parameter| parameter.place == place && parameter.name == name)
    }

    /// A call of it in which nothing is wrong in itself.
    pub(super) fn call(&self) -> Call {
        let mut call = Call::default();
        for Parameter { place, name, required, class } in &self.parameters {
            let value = good(name, *class);
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            match place {
                Place::Path => call.segments.push((name.clone(), value)),
                Place::Query if *required => call.query.push((name.clone(), value)),
                Place::Header if *required => call.headers.push((name.clone(), value.into())),
                Place::Query | Place::Header => {}
            }
        }
        match &self.body {
            Body::Object(object, true) => call.body = object.some().to_string().into(),
            Body::Json => call.body = b"{}".to_vec(),
            Body::Bytes(_) => call.body = b"a message".to_vec(),
            Body::Object(_, false) | Body::Nothing => {}
        }
        call
    }

    /// Where a call goes.
    pub(super) fn uri(&self, call: &Call) -> String {
        let path = call
            .segments
            .iter()
            .fold(self.path.clone(), |path, (name, value)| path.replacen(&format!("{{{name}}}"), value, 1));
        let query: Vec<_> = call.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
    }
}

impl Body {
    fn of(description: &Value, body: &Value) -> Self {
        let content = &body["content"];
        if !content.is_object() {
            return Self::Nothing;
        }
        let object = |schema: &Value| Object::of(&Schema::of(description, schema));
        if content["application/x-ndjson"].is_object() {
            return Self::Bytes(object(&content["application/x-ndjson"]["schema"]));
        }
        let schema = Schema::of(description, &content["application/json"]["schema"]);
        match schema.class() {
            Class::Object => Self::Object(Object::of(&schema), !schema.nullable),
            _ => Self::Json,
        }
    }
}

impl Object {
    fn of(schema: &Schema<'_>) -> Self {
        let mut fields = Vec::new();
        walk(schema, "", &mut fields);
        Self { fields, least: least(schema) }
    }
}

/// What stands in an object's text where a value is to be put that no [`Value`] is.
const HERE: &str = "put it here";

/// What is refused alone, with what goes with it.
const TOGETHER: &[(&str, &str)] = &[("producerId", "producerSeq"), ("producerSeq", "producerId")];

impl Object {
    /// The least object with this JSON text in a field.
    pub(super) fn with(&self, path: &str, text: &str) -> String {
        let mut object = self.least.clone();
        if let Some((_, other)) = TOGETHER.iter().find(|(one, _)| *one == path) {
            let class = self.fields.iter().find(|field| field.path == *other).map(|field| field.class);
            object[*other] = good(other, class.unwrap_or(Class::Any));
        }
        *place(&mut object, path) = HERE.into();
        object.to_string().replacen(&format!("\"{HERE}\""), text, 1)
    }

    /// One that is taken: it has something in it.
    fn some(&self) -> Value {
        match self.fields.first() {
            Some(first) if self.least == json!({}) => json!({ &first.path: self.at(first) }),
            _ => self.least.clone(),
        }
    }

    /// The least object without this field.
    pub(super) fn without(&self, path: &str) -> String {
        let mut object = self.least.clone();
        let (within, name) = path.rsplit_once('.').unwrap_or(("", path));
        if let Some(fields) = place(&mut object, within).as_object_mut() {
            fields.remove(name);
        }
        object.to_string()
    }

    /// A good value of a field.
    pub(super) fn at(&self, field: &Field) -> Value {
        let there = place(&mut self.least.clone(), &field.path).clone();
        if !there.is_null() {
            return there;
        }
        let items = format!("{}[]", field.path);
        match self.fields.iter().find(|other| other.path == items) {
            Some(item) => json!([self.at(item)]),
            None => {
                let leaf = field.path.rsplit('.').next().unwrap_or_default();
                good(leaf.trim_end_matches("[]"), field.class)
            }
        }
    }
}

/// The place of a field in an object: the first item of each list on the way.
fn place<'a>(object: &'a mut Value, path: &str) -> &'a mut Value {
    let mut at = object;
    for name in path.split('.').filter(|name| !name.is_empty()) {
        at = &mut at[name.trim_end_matches("[]")];
        if name.ends_with("[]") {
            if !at.is_array() {
                *at = json!([null]);
            }
            at = &mut at[0];
        }
    }
    at
}

fn walk(object: &Schema<'_>, within: &str, found: &mut Vec<Field>) {
    for (name, schema, required) in object.properties() {
        let path = if within.is_empty() { name.to_owned() } else { format!("{within}.{name}") };
        member(&schema, path, required, found);
    }
}

fn member(schema: &Schema<'_>, path: String, required: bool, found: &mut Vec<Field>) {
    let (class, nullable) = (schema.class(), schema.nullable);
    let filled = schema.of["minLength"].as_u64().is_some_and(|least| least > 0);
    match class {
        Class::List => member(&schema.items(), format!("{path}[]"), false, found),
        Class::Object => walk(schema, &path, found),
        _ => {}
    }
    found.push(Field { path, class, required, nullable, filled });
}

fn least(object: &Schema<'_>) -> Value {
    let required = object.properties().into_iter().filter(|(_, _, required)| *required);
    required.map(|(name, schema, _)| (name.to_owned(), some(name, &schema))).collect()
}

/// A good value of a schema.
fn some(name: &str, schema: &Schema<'_>) -> Value {
    match schema.class() {
        Class::List => json!([some(name, &schema.items())]),
        Class::Object => least(schema),
        class => good(name, class),
    }
}

/// A good value for a parameter or a field: by its name where not any will do.
pub(super) fn good(name: &str, class: Class) -> Value {
    match (name, class) {
        ("lock", _) => "orders".into(),
        ("queue", _) => "jobs".into(),
        ("transaction", _) => "transfer".into(),
        ("receipt" | "receipts", _) => receipt().into(),
        ("Lock-Token", _) => "0123456789abcdef0123456789abcdef".into(),
        ("ttl" | "wait" | "maxHold" | "delay" | "visibility" | "Delay" | "Ttl", _) => "5s".into(),
        ("mode", _) => "exclusive".into(),
        ("encoding", _) => "base64".into(),
        (_, Class::Text | Class::Choice | Class::Any) => "x".into(),
        (_, Class::Number) => 1.into(),
        (_, Class::Switch) => true.into(),
        (_, Class::List) => json!([]),
        (_, Class::Object | Class::Map) => json!({}),
    }
}

/// A receipt as it would be given out, of a delivery that never was.
fn receipt() -> String {
    let receipt = Receipt {
        segment: SegmentAt { revision: 1, partition: 0 },
        place: 0,
        delivery: 1,
        claim: ClaimId { session: "nobody".into(), number: 1 },
    };
    URL_SAFE_NO_PAD.encode(receipt.to_string())
}

/// A schema with references followed and `null` set apart.
struct Schema<'a> {
    description: &'a Value,
    of: &'a Value,
    nullable: bool,
}

impl<'a> Schema<'a> {
    fn of(description: &'a Value, mut schema: &'a Value) -> Self {
        let mut nullable = false;
        loop {
            nullable |= schema["type"].as_array().is_some_and(|types| types.contains(&json!("null")));
            let only = ["oneOf", "anyOf", "allOf"].iter().find_map(|of| {
                let all = schema[of].as_array()?;
                nullable |= all.iter().any(|one| one["type"] == "null");
                let mut others = all.iter().filter(|one| one["type"] != "null");
                others.next().filter(|_| others.next().is_none())
            });
            let named = schema["$ref"].as_str().and_then(|at| description.pointer(at.strip_prefix('#')?));
            match only.or(named) {
                Some(next) => schema = next,
                None => return Self { description, of: schema, nullable },
            }
        }
    }

    fn class(&self) -> Class {
        let types = &self.of["type"];
        let is =
            |name: &str| *types == name || types.as_array().is_some_and(|all| all.contains(&json!(name)));
        if self.of["enum"].is_array() {
            Class::Choice
        } else if is("string") {
            Class::Text
        } else if is("integer") || is("number") {
            Class::Number
        } else if is("boolean") {
            Class::Switch
        } else if is("array") {
            Class::List
        } else if self.of["properties"].is_object() {
            Class::Object
        } else if self.of["additionalProperties"].is_object() {
            Class::Map
        } else {
            Class::Any
        }
    }

    fn properties(&self) -> Vec<(&'a str, Schema<'a>, bool)> {
        let required = |name: &str| {
            self.of["required"].as_array().is_some_and(|all| all.iter().any(|required| required == name))
        };
        let all = self.of["properties"].as_object().into_iter().flatten();
        all.map(|(name, schema)| (name.as_str(), Self::of(self.description, schema), required(name)))
            .collect()
    }

    fn items(&self) -> Schema<'a> {
        Self::of(self.description, &self.of["items"])
    }
}
