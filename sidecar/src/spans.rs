//! Spans of what the sidecar does: where an endpoint is set they are exported, and what is called or stored on a request's
//! behalf carries on its trace. Where none is, no span is begun, and a `traceparent` goes on as it came.

mod export;

use std::{borrow::Cow, sync::OnceLock};

use concordat_store::CommitError;
use futures::FutureExt;
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
        Tracer,
    },
};
use opentelemetry_sdk::trace::SdkTracer;

pub use self::export::{Export, start};
use crate::api::trace::TraceParent;

/// What makes spans; a process has one, as it has one log.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// What a span is said to be: a name and a value.
pub type Said = (&'static str, Value);

/// A piece of work that is part of a trace. It ends when it is dropped.
#[must_use]
#[derive(Debug)]
// Boxed: where nothing is traced, what holds one is three hundred bytes smaller to move.
pub struct Span(Option<Box<opentelemetry_sdk::trace::Span>>);

impl Span {
    /// A request's, or of what is done on behalf of `parent`, which may be another process's; without one the sampler
    /// says whether a trace begins.
    pub fn of(
        parent: Option<&TraceParent>,
        kind: SpanKind,
        name: impl FnOnce() -> Cow<'static, str>,
    ) -> Self {
        Self(TRACER.get().map(|tracer| begin(tracer, parent, true, kind, name())))
    }

    /// Of a part of the request in whose task this is called; of nothing outside of one.
    pub fn within(kind: SpanKind, name: impl FnOnce() -> Cow<'static, str>) -> Self {
        let begun = TRACER.get().and_then(|tracer| {
            let request = TraceParent::current()?;
            Some(begin(tracer, Some(&request), false, kind, name()))
        });
        Self(begun)
    }

    /// A commit of this step, waited for on behalf of `parent`, if anybody traces that.
    pub fn commit_for(parent: &str, step: &'static str) -> Self {
        let begun = TRACER.get().and_then(|tracer| {
            let parent = TraceParent::parse(parent)?;
            Some(begin(tracer, Some(&parent), true, SpanKind::Client, "etcd commit".into()))
        });
        Self(begun).asking("commit", step)
    }

    /// A commit of this step, waited for by the request in whose task this is called.
    pub fn commit(step: &'static str) -> Self {
        Self::within(SpanKind::Client, || "etcd commit".into()).asking("commit", step)
    }

    /// A read, waited for by the request in whose task this is called.
    pub fn read() -> Self {
        Self::within(SpanKind::Client, || "etcd read".into()).asking("read", "")
    }

    fn asking(mut self, operation: &'static str, step: &'static str) -> Self {
        self.say(|| [("db.system.name", "etcd".into()), ("db.operation.name", operation.into())]);
        if !step.is_empty() {
            self.say(|| [("concordat.step", step.into())]);
        }
        self
    }

    /// Says more of it; not asked what, where nobody records it.
    pub fn say<const N: usize>(&mut self, said: impl FnOnce() -> [Said; N]) {
        if let Some(span) = self.recording() {
            span.set_attributes(said().map(|(name, value)| KeyValue::new(name, value)));
        }
    }

    /// Says that it came to nothing, by the name of why.
    pub fn fail(&mut self, why: impl FnOnce() -> Value) {
        if let Some(span) = self.recording() {
            span.set_attribute(KeyValue::new("error.type", why()));
            // What people may have written into an error is nothing to export.
            span.set_status(Status::error(""));
        }
    }

    /// Ties it to another trace.
    pub fn link(&mut self, to: &str) {
        if let Some(span) = self.recording()
            && let Some(to) = TraceParent::parse(to)
        {
            span.add_link(context(&to, true), Vec::new());
        }
    }

    /// What is done on its behalf is a child of this; `None` where nothing is traced.
    pub fn traceparent(&self) -> Option<TraceParent> {
        let context = self.0.as_ref()?.span_context();
        let (trace, span) = (context.trace_id(), context.span_id());
        TraceParent::parse(&format!("00-{trace:032x}-{span:016x}-{:02x}", context.trace_flags().to_u8() & 1))
    }

    /// Waits for etcd.
    pub fn awaits<T>(
        mut self,
        asked: impl Future<Output = Result<T, CommitError>>,
    ) -> impl Future<Output = Result<T, CommitError>> {
        // An async function would be twice as large as what it awaits.
        asked.inspect(move |answer| {
            if let Err(error) = answer {
                self.fail(|| name(error).into());
            }
        })
    }

    fn recording(&mut self) -> Option<&mut opentelemetry_sdk::trace::Span> {
        self.0.as_deref_mut().filter(|span| span.is_recording())
    }
}

fn begin(
    tracer: &SdkTracer,
    parent: Option<&TraceParent>,
    remote: bool,
    kind: SpanKind,
    name: Cow<'static, str>,
) -> Box<opentelemetry_sdk::trace::Span> {
    let mut around = Context::new();
    if let Some(parent) = parent {
        around = around.with_remote_span_context(context(parent, remote));
    }
    Box::new(tracer.build_with_context(tracer.span_builder(name).with_kind(kind), &around))
}

fn context(of: &TraceParent, remote: bool) -> SpanContext {
    let (trace, span, sampled) = of.parts();
    let trace = TraceId::from_hex(trace).unwrap_or(TraceId::INVALID);
    let span = SpanId::from_hex(span).unwrap_or(SpanId::INVALID);
    SpanContext::new(trace, span, TraceFlags::new(u8::from(sampled)), remote, TraceState::default())
}

fn name(error: &CommitError) -> &'static str {
    match error {
        CommitError::NotApplied(_) => "not-applied",
        CommitError::Unknown(_) => "unknown",
        CommitError::TooLarge { .. } => "too-large",
        CommitError::SessionEnded => "session-ended",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_parent_is_handed_over_as_it_is() {
        let parent = TraceParent::parse(PARENT).unwrap();
        let context = context(&parent, true);
        assert!(context.is_valid() && context.is_sampled() && context.is_remote());
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.span_id().to_string(), "b7ad6b7169203331");
        let unsampled = TraceParent::parse(&PARENT.replace("-01", "-00")).unwrap();
        assert!(!super::context(&unsampled, false).is_sampled());
    }

    #[test]
    fn where_no_endpoint_is_set_nothing_is_traced() {
        let parent = TraceParent::parse(PARENT).unwrap();
        let asked = || -> Cow<'static, str> { unreachable!("a name is not made for nothing") };
        let mut span = Span::of(Some(&parent), SpanKind::Server, asked);
        span.say::<0>(|| unreachable!("nor is what is said of it"));
        assert_eq!(span.traceparent(), None);
    }
}
