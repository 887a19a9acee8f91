//! A request's place in its caller's trace.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, Method};
use opentelemetry::trace::SpanKind;

use super::header;
use crate::{problem::Code, spans::Span};

/// A caller's `traceparent` (W3C Trace Context, version 00; what later versions add is left out).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(Arc<str>);

/// The one flag that is handed on: the caller may have recorded this trace.
const SAMPLED: u8 = 1;

tokio::task_local! {
    static CURRENT: Option<TraceParent>;
}

impl TraceParent {
    /// What is done on behalf of the request in whose task this is called is a child of this: of the request's own span
    /// where that is traced, else of its caller's.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok().flatten()
    }

    /// The header's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parent of what is called on its behalf: the same trace, a span of its own, sampled alike.
    pub fn child(&self) -> Self {
        let (trace, _, sampled) = self.parts();
        let span = rand::random_range(1..=u64::MAX);
        Self(format!("00-{trace}-{span:016x}-{:02x}", u8::from(sampled)).into())
    }

    /// The trace and the span in it, both in hexadecimal, and whether the caller may have recorded it.
    pub fn parts(&self) -> (&str, &str, bool) {
        let flags = self.0.get(53..).and_then(|flags| u8::from_str_radix(flags, 16).ok()).unwrap_or_default();
        (self.trace_id(), self.0.get(36..52).unwrap_or_default(), flags & SAMPLED != 0)
    }

    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(&header::TRACEPARENT)?.to_str().ok()?)
    }

    /// One that is malformed is as good as none: the standard asks to start anew, not to refuse.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let lengths = [2, 32, 16, 2];
        let hex = |field: &str| field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let well_formed = lengths
            .iter()
            .all(|length| fields.next().is_some_and(|field| field.len() == *length && hex(field)));
        let version = text.get(..2)?;
        let known = version != "ff" && (version != "00" || fields.next().is_none());
        let zeroed = text.get(3..35)?.bytes().all(|byte| byte == b'0')
            || text.get(36..52)?.bytes().all(|byte| byte == b'0');
        let fields = text.get(2..55).filter(|_| well_formed && known && !zeroed)?;
        Some(Self(format!("00{fields}").into()))
    }

    pub(super) fn trace_id(&self) -> &str {
        self.0.get(3..35).unwrap_or_default()
    }
}

/// Runs a request with that at hand which what is done on its behalf is a child of.
pub(crate) fn within<F: Future>(
    parent: Option<TraceParent>,
    run: F,
) -> tokio::task::futures::TaskLocalFuture<Option<TraceParent>, F> {
    CURRENT.scope(parent, run)
}

/// What a request is as a span, and what is done on its behalf is a child of: of its caller's, where it is none itself.
pub(crate) fn request(
    headers: &HeaderMap,
    method: &'static str,
    route: &Arc<str>,
) -> (Span, Option<TraceParent>) {
    let caller = TraceParent::of(headers);
    let method = if method == OTHER { "_OTHER" } else { method };
    let known = &**route != UNMATCHED;
    let mut span = Span::of(caller.as_ref(), SpanKind::Server, || match (method, known) {
        ("_OTHER", _) => "HTTP".into(),
        (_, true) => format!("{method} {route}").into(),
        (_, false) => method.into(),
    });
    span.say(|| [("http.request.method", method.into()), ("url.scheme", "http".into())]);
    if known {
        span.say(|| [("http.route", route.to_string().into())]);
    }
    let parent = span.traceparent().or(caller);
    (span, parent)
}

/// Says how a request was answered.
pub(crate) fn answered(span: &mut Span, response: &Response) {
    let status = response.status();
    let code = response.extensions().get().map(|Code(code)| *code);
    span.say(|| [("http.response.status_code", i64::from(status.as_u16()).into())]);
    if let Some(code) = code {
        span.say(|| [("concordat.code", code.into())]);
    }
    if status.is_server_error() {
        span.fail(|| code.map_or_else(|| status.as_u16().to_string().into(), Into::into));
    }
}

/// The route of what is none.
pub(crate) const UNMATCHED: &str = "unmatched";
/// The method of those that nobody knows.
const OTHER: &str = "other";

/// Methods are labels: those nobody knows must not become series of their own.
pub fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parsed(text: &str) -> Option<TraceParent> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", text.parse().unwrap());
        TraceParent::of(&headers)
    }

    #[test]
    fn a_malformed_parent_is_as_good_as_none() {
        assert_eq!(parsed(PARENT).unwrap().trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert!(
            parsed(&format!("01{}-later", &PARENT[2..])) == parsed(PARENT),
            "later versions may have more fields"
        );
        for text in [
            "",
            "00",
            &PARENT[..54],
            &PARENT.to_uppercase(),
            &format!("ff{}", &PARENT[2..]),
            &format!("{PARENT}-more"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319cé-b7ad6b716920333-01",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    #[test]
    fn a_child_is_another_span_of_the_same_trace() {
        let parent = TraceParent::parse(PARENT).unwrap();
        let child = parent.child();
        assert_eq!(TraceParent::parse(child.as_str()).as_ref(), Some(&child));
        assert_eq!((child.trace_id(), &child.as_str()[53..]), (parent.trace_id(), "01"));
        assert_ne!(child, parent);
        assert_ne!(child, parent.child());
        let unsampled = TraceParent::parse(&PARENT.replace("-01", "-fe")).unwrap().child();
        assert_eq!(&unsampled.as_str()[53..], "00", "a flag that nobody knows is not handed on");
    }
}
