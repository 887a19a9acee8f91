//! Extractors that take nothing they do not know: what is missing, malformed, doubled or unknown is refused by a problem
//! document that says what to change.
//!
//! The types they fill should `#[serde(deny_unknown_fields)]`. Content types are not looked at where JSON is the only
//! thing a route takes, so that `curl -d` works; a browser is kept out by the guard, not by them.

use std::{fmt, marker::PhantomData, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::PathRejection},
};
use bytes::Bytes;
use http::{StatusCode, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use percent_encoding::percent_decode_str;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::guard;
use crate::problem::Problem;

/// A body that takes longer to arrive is given up.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The most levels of arrays and objects in each other: many parsers stop at 128, what we put around it included.
const DEEPEST: usize = 100;

/// The largest key in bytes, decoded.
const LONGEST_KEY: usize = 512;

/// A body as it came, within the size that the guard allows.
pub struct Raw(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        read(request.into_body()).await.map(Self)
    }
}

/// Reads a whole body of at most [`guard::LARGEST_BODY`] bytes.
pub async fn read(body: Body) -> Result<Bytes, Problem> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let collected = Limited::new(body, guard::LARGEST_BODY).collect();
    let collected = tokio::time::timeout(BODY_TIMEOUT, collected).await.map_err(|_| {
        Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "The request took too long to arrive")
            .detail("the body did not arrive within 30s")
    })?;
    match collected {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(guard::body_too_large()),
        Err(error) => Err(Problem::invalid(format!("the body cannot be read: {error}"))),
    }
}

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        parse(&read(request.into_body()).await?).map(Self)
    }
}

/// A JSON body, or none at all.
pub struct OptionalJson<T>(pub T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let body = read(request.into_body()).await?;
        if body.is_empty() { Ok(Self(T::default())) } else { parse(&body).map(Self) }
    }
}

/// Parses a JSON object. No more than 128 levels deep: serde_json refuses what would exhaust the stack.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    // serde would take an array for a struct, its fields in the order in which we declare them.
    match body.trim_ascii_start().first() {
        None => Err(Problem::invalid("a JSON body is required")),
        Some(b'{') => json(body),
        Some(_) => Err(Problem::invalid("body: it is not a JSON object")),
    }
}

/// A JSON object within another, and no array for it either.
pub struct Fields<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Fields<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Named<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Named<T> {
            type Value = Fields<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Fields<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Fields)
            }
        }
        deserializer.deserialize_map(Named(PhantomData))
    }
}

/// Any JSON as text, checked to be [`readable`] and not changed.
pub fn json_text(body: &[u8]) -> Result<String, Problem> {
    readable(body).map_err(|error| Problem::invalid(format!("body: {error}")))?;
    String::from_utf8(body.to_vec()).map_err(|_| Problem::invalid("body: it is not UTF-8"))
}

/// Checks JSON that is kept as it came: whoever gets it later, within an answer of ours, must be able to read that. So
/// its texts are Unicode, its numbers fit into 64 bits or a double, and it is no more than 100 levels deep.
pub fn readable(json: &[u8]) -> Result<(), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(json);
    Readable(DEEPEST).deserialize(&mut json)?;
    json.end()
}

/// What reads everything and keeps nothing, with the levels that are left.
struct Readable(usize);

impl<'de> DeserializeSeed<'de> for Readable {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Readable {
    fn within<E: serde::de::Error>(&self) -> Result<usize, E> {
        self.0.checked_sub(1).ok_or_else(|| E::custom(format!("it is more than {DEEPEST} levels deep")))
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let within = self.within()?;
        while items.next_element_seed(Self(within))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let within = self.within()?;
        while members.next_key_seed(Self(within))?.is_some() {
            members.next_value_seed(Self(within))?;
        }
        Ok(())
    }
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| Problem::invalid(format!("body: {error}")))
}

/// Query parameters.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // The parser would mend it.
        if percent_decode_str(parts.uri.query().unwrap_or_default()).decode_utf8().is_err() {
            return Err(Problem::invalid("query: it is not UTF-8"));
        }
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => Err(Problem::invalid(format!("query: {}", innermost(&error)))),
        }
    }
}

/// The percent-decoded parts of a path.
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => {
                Err(Problem::invalid(format!("path: {}", error.kind())))
            }
            Err(_) => Err(Problem::internal()),
        }
    }
}

/// A key in a path: any UTF-8, 1 to 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserKey(pub String);

impl TryFrom<String> for UserKey {
    type Error = String;

    fn try_from(key: String) -> Result<Self, String> {
        match key.len() {
            0 => Err("a key has at least one byte".into()),
            1..=LONGEST_KEY => Ok(Self(key)),
            length => Err(format!("a key has at most {LONGEST_KEY} bytes, this one {length}")),
        }
    }
}

impl<'de> Deserialize<'de> for UserKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::any};
    use tower::ServiceExt;

    use super::*;
    use crate::api::duration::GoDuration;

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[allow(dead_code, reason = "only whether it parses is looked at")]
    struct Wanted {
        wait: GoDuration,
        max: u32,
        text: String,
    }

    async fn keyed(Segments(key): Segments<UserKey>) -> String {
        key.0
    }

    async fn ask(request: Request) -> (StatusCode, String) {
        let app = Router::new()
            .route("/json", any(async |_: Json<Wanted>| "yes"))
            .route("/optional", any(async |_: OptionalJson<Wanted>| "yes"))
            .route("/params", any(async |_: Params<Wanted>| "yes"))
            .route("/keys/{key}", any(keyed));
        let (parts, body) = app.oneshot(request).await.unwrap().into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        (parts.status, text)
    }

    async fn get(uri: &str) -> (StatusCode, String) {
        ask(Request::get(uri).body(Body::empty()).unwrap()).await
    }

    async fn post(uri: &str, body: impl Into<Body>) -> (StatusCode, String) {
        ask(Request::post(uri).body(body.into()).unwrap()).await
    }

    #[tokio::test]
    async fn bodies_are_taken_as_declared_or_not_at_all() {
        let deep = "[".repeat(100_000);
        for (body, says) in [
            ("", "is required"),
            ("{", "EOF"),
            ("[]", "body"),
            (r#"{"max":"7"}"#, "invalid type"),
            (r#"{"max":-1}"#, "invalid value"),
            (r#"{"max":1,"max":2}"#, "duplicate field"),
            (r#"{"mxa":1}"#, "unknown field `mxa`"),
            (r#"{"wait":5}"#, "invalid type"),
            (r#"{"wait":"5 minutes"}"#, "not a duration"),
            (r#"{"max":1} x"#, "trailing characters"),
            (&deep, "body"),
        ] {
            let (status, text) = post("/json", body.to_owned()).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
            assert!(text.contains("invalid-request") && text.contains(says), "{says:?} is not in {text}");
        }
        assert_eq!(post("/json", r#"{"wait":"5s"}"#).await.0, StatusCode::OK);
        assert_eq!(post("/optional", "").await.0, StatusCode::OK);
        assert_eq!(post("/optional", r#"{"mxa":1}"#).await.0, StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn parameters_are_taken_as_declared_or_not_at_all() {
        for query in [
            "wiat=5s",
            "wait=5",
            "wait=1s&wait=1s",
            "max=x",
            "max=-1",
            "w%61it=1s&wait=1s",
            "wait=%ff",
            "text=%ff",
            "%ff=1",
        ] {
            let (status, text) = get(&format!("/params?{query}")).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {text}");
            assert!(text.contains("invalid-request"), "{text}");
        }
        assert_eq!(get("/params?wait=1m30s&max=3&text=%C3%A9").await.0, StatusCode::OK);
        assert_eq!(get("/params").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn keys_are_any_text_within_their_length() {
        assert_eq!(get("/keys/a%2Fb%20%C3%A9").await, (StatusCode::OK, "a/b é".into()));
        assert_eq!(get(&format!("/keys/{}", "k".repeat(512))).await.0, StatusCode::OK);
        for key in ["k".repeat(513), "%FF".into(), "%C3%A9".repeat(257)] {
            let (status, text) = get(&format!("/keys/{key}")).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
            assert!(text.contains("invalid-request"), "{text}");
        }
    }

    #[test]
    fn any_json_is_taken_that_others_can_read() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        for json in [nested(DEEPEST), "1".into(), "\"[[{{\"".into(), r#"{"a\"[":"\\","b":[{}]}"#.into()] {
            assert_eq!(json_text(json.as_bytes()).as_deref(), Ok(json.as_str()));
        }
        let strings_hide = format!("[\"{}\"]", "[".repeat(1_000));
        assert!(json_text(strings_hide.as_bytes()).is_ok());
        for json in [
            nested(DEEPEST + 1),
            nested(100_000),
            "{".into(),
            String::new(),
            "1e400".into(),
            r#""\ud800""#.into(),
            r#"{"\ud800":1}"#.into(),
        ] {
            assert_eq!(json_text(json.as_bytes()).unwrap_err().code, "invalid-request");
        }
    }

    #[test]
    fn no_body_panics() {
        bolero::check!().for_each(|body: &[u8]| {
            let _ = parse::<Wanted>(body);
            if let Ok(text) = json_text(body) {
                assert_eq!(text.as_bytes(), body);
            }
        });
    }
}
