//! Publishing and receiving as spans.

use std::borrow::Cow;

use concordat_protocol::queue::delivery::Delivered;
use http::HeaderMap;
use opentelemetry::trace::SpanKind;

use crate::{
    api::{
        header::TRACEPARENT,
        trace::{self, TraceParent},
    },
    spans::{Said, Span},
};

/// Messages on their way into a queue.
pub(super) struct Publishing {
    span: Span,
    /// What goes with the messages, where it is not the request's own: whoever receives them is led to this.
    pub(super) traceparent: Option<TraceParent>,
}

impl Publishing {
    pub(super) fn begin(queue: &str, headers: &HeaderMap) -> Self {
        let mut span = Span::within(SpanKind::Producer, || name("publish", queue));
        span.say(|| said("send", "publish", queue));
        // A trace that nobody records is not begun in messages.
        let goes_on = |own: &TraceParent| own.parts().2 || headers.contains_key(&TRACEPARENT);
        let traceparent = span.traceparent().filter(goes_on);
        Self { span, traceparent }
    }

    /// It is so many messages, and some may have been refused.
    pub(super) fn batch(&mut self, messages: usize) {
        self.span.say(|| [count(messages)]);
    }

    /// Publishes as a part of this.
    pub(super) fn publishes<F: Future>(&self, run: F) -> impl Future<Output = F::Output> + use<F> {
        trace::within(self.span.traceparent().or_else(TraceParent::current), run)
    }
}

/// Messages on their way to a consumer.
pub(super) struct Receiving(Span);

impl Receiving {
    pub(super) fn begin(queue: &str) -> Self {
        let mut span = Span::within(SpanKind::Consumer, || name("receive", queue));
        span.say(|| said("receive", "receive", queue));
        Self(span)
    }

    /// Ends with these.
    pub(super) fn received(mut self, messages: &[Delivered]) {
        self.0.say(|| [count(messages.len())]);
        for Delivered { segment, receipt, .. } in messages {
            let message = segment.messages.get(receipt.place as usize);
            let mut headers = message.iter().flat_map(|message| &message.headers);
            if let Some((_, to)) = headers.find(|(name, _)| name == TRACEPARENT.as_str()) {
                self.0.link(to);
            }
        }
    }
}

fn name(what: &str, queue: &str) -> Cow<'static, str> {
    format!("{what} {queue}").into()
}

fn said(kind: &'static str, operation: &'static str, queue: &str) -> [Said; 4] {
    [
        ("messaging.system", "concordat".into()),
        ("messaging.operation.type", kind.into()),
        ("messaging.operation.name", operation.into()),
        ("messaging.destination.name", queue.to_owned().into()),
    ]
}

fn count(messages: usize) -> Said {
    ("messaging.batch.message_count", (messages as i64).into())
}
