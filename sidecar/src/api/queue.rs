//! Queues over HTTP.

mod answer;
mod batch;
mod cloud_event;
#[cfg(test)]
mod fuzz;
mod offer;
mod request;
mod traced;

use std::collections::BTreeSet;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use concordat_protocol::queue::{
    delivery::{Status, Verdict},
    publish::Published,
};
use http::{HeaderMap, StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

pub use self::answer::message_id;
use self::{
    answer::{Counted, DeadMessages, Messages, Redriven, Results, Settled, Stored, problem},
    batch::Form,
    request::{
        AckBody, DeadParams, Encoded, ExtendBody, Group, NackBody, QueueName, ReceiptPath, ReceiveBody,
        ReceiveParams, RedriveBody,
    },
    traced::{Publishing, Receiving},
};
use crate::{
    api::extract::{Json, OptionalJson, Params, Raw, Segments},
    context::Context,
    failpoint,
    problem::{Document, Outcome, Problem},
};

type Answer<T> = Result<axum::Json<T>, Problem>;

/// A long poll ends this long before the wait that was asked for, milliseconds.
const EARLY: u64 = 250;

/// The routes.
pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(publish))
        .routes(routes!(receive))
        .routes(routes!(ack))
        .routes(routes!(nack))
        .routes(routes!(extend))
        .routes(routes!(ack_one))
        .routes(routes!(inspect))
        .routes(routes!(dead))
        .routes(routes!(redrive))
        .routes(routes!(stream))
        .routes(routes!(seek))
}

/// Publishes one message of any content type, a CloudEvent, or a batch.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/messages",
    tag = "queues",
    params(
        QueueName,
        ("Message-Key" = Option<String>, Header, description = "The message's key"),
        ("Producer-Id" = Option<String>, Header, description = "With Producer-Seq: a repeat within the queue's dedupWindow is stored once"),
        ("Producer-Seq" = Option<u64>, Header, description = "The producer's own number of the message"),
        ("Idempotency-Key" = Option<String>, Header, description = "Instead of Producer-Id and Producer-Seq"),
        ("Delay" = Option<String>, Header, description = "Not delivered before, from now"),
        ("Ttl" = Option<String>, Header, description = "Not delivered after, from now")
    ),
    request_body(
        description = "One message; a CloudEvent (structured as application/cloudevents+json, or binary); or a batch as application/x-ndjson or application/cloudevents-batch+json",
        content((Vec<u8> = "*/*"), (batch::Line<'static> = "application/x-ndjson"))
    ),
    responses(
        (status = 201, body = Stored, description = "One message is stored"),
        (status = 200, body = Results, description = "One message was stored before (then the body is as of 201), or a batch: a status each"),
        (status = 404, body = Document, description = "no-such-queue"),
        (status = 413, body = Document, description = "message-too-large, payload-too-large"),
        (status = 429, body = Document, description = "queue-full"),
        (status = 501, body = Document, description = "mode-not-supported"),
        (status = 503, body = Document, description = "outcome says whether it may be stored")
    )
)]
async fn publish(
    State(context): State<Context>,
    Segments(QueueName { queue }): Segments<QueueName>,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, Problem> {
    let defined = context.definitions.queue(&queue)?;
    let now = context.store.clock().now();
    let mut publishing = Publishing::begin(&queue, &headers);
    let terms =
        offer::Terms { settings: &defined.settings, now: now.unix, traced: publishing.traceparent.as_ref() };
    match batch::form(&headers)? {
        Form::One => {
            let offer = offer::one(&terms, &headers, body)?;
            let results = publishing.publishes(context.queues.publish(&queue, vec![offer])).await?;
            one(results.first().copied().unwrap_or(Published::NotApplied), &queue)
        }
        form => {
            let mut results = batch::parse(form, &terms, &headers, &body)?;
            let offers = results.iter_mut().filter_map(|result| result.as_mut().ok().and_then(Option::take));
            let offers: Vec<_> = offers.collect();
            publishing.batch(offers.len());
            let stored = publishing.publishes(context.queues.publish(&queue, offers)).await?;
            let mut stored = stored.into_iter();
            let results = results.into_iter().map(|result| match result {
                Ok(_) => answer::result(stored.next().unwrap_or(Published::NotApplied), &queue),
                Err(refused) => answer::refused(refused),
            });
            Ok(axum::Json(Results { results: results.collect() }).into_response())
        }
    }
}

fn one(result: Published, queue: &str) -> Result<Response, Problem> {
    match result {
        Published::Stored { partition, revision, index, duplicate } => {
            let stored = Stored::of(partition, revision, index, duplicate);
            let status = if duplicate { StatusCode::OK } else { StatusCode::CREATED };
            Ok((status, axum::Json(stored)).into_response())
        }
        refused => Err(problem(refused, queue)),
    }
}

/// Receives messages, waiting for some if asked to. Each is to be acknowledged before its deadline, for instance by the
/// next receive.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/receive",
    tag = "queues",
    params(QueueName, ReceiveParams),
    request_body = Option<ReceiveBody>,
    responses(
        (status = 200, body = Messages<'static>),
        (status = 204, description = "The wait ended without a message, and nothing was to be acknowledged"),
        (status = 404, body = Document, description = "no-such-queue"),
        (status = 501, body = Document, description = "mode-not-supported"),
        (status = 503, body = Document)
    )
)]
async fn receive(
    State(context): State<Context>,
    Segments(QueueName { queue }): Segments<QueueName>,
    Params(params): Params<ReceiveParams>,
    OptionalJson(body): OptionalJson<ReceiveBody>,
) -> Result<Response, Problem> {
    let (max, visibility) = params.check()?;
    let ack = body.ack.as_deref().map(request::receipts).transpose()?;
    let wait = params.wait.0.saturating_sub(EARLY);
    let receiving = Receiving::begin(&queue);
    let receive = context.queues.receive(&queue, max, wait, visibility);
    let (received, statuses) = match ack {
        None => (Some(receive.await?), None),
        Some(ack) => {
            let settle = context.queues.settle(&queue, ack, Verdict::Ack);
            let (statuses, received) = tokio::join!(settle, receive);
            // What was acknowledged is told in any case. Why nothing can be received, the next call is told.
            (received.ok(), Some(statuses?))
        }
    };
    let acked = body.ack.zip(statuses).map(|(receipts, statuses)| Settled::of(&receipts, &statuses));
    let messages = received.as_ref().map(|received| &*received.messages).unwrap_or_default();
    receiving.received(messages);
    if messages.is_empty() && acked.is_none() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let answer = axum::Json(Messages::of(messages, acked)).into_response();
    failpoint!("queue-before-answer");
    if let Some(received) = received {
        received.sent();
    }
    Ok(answer)
}

/// Acknowledges deliveries: their messages are done with.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/ack",
    tag = "queues",
    params(QueueName),
    request_body = AckBody,
    responses((status = 200, body = Settled), (status = 404, body = Document, description = "no-such-queue"))
)]
async fn ack(
    State(context): State<Context>,
    Segments(QueueName { queue }): Segments<QueueName>,
    Json(body): Json<AckBody>,
) -> Answer<Settled> {
    settle(&context, &queue, &body.receipts, Verdict::Ack).await
}

/// Gives messages back as failed: they come again after the queue's back-off or `delay`, or become dead letters.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/nack",
    tag = "queues",
    params(QueueName),
    request_body = NackBody,
    responses((status = 200, body = Settled), (status = 404, body = Document, description = "no-such-queue"))
)]
async fn nack(
    State(context): State<Context>,
    Segments(QueueName { queue }): Segments<QueueName>,
    Json(body): Json<NackBody>,
) -> Answer<Settled> {
    settle(&context, &queue, &body.receipts, body.verdict()?).await
}

async fn settle(context: &Context, queue: &str, receipts: &[Encoded], verdict: Verdict) -> Answer<Settled> {
    let statuses = context.queues.settle(queue, request::receipts(receipts)?, verdict).await?;
    Ok(axum::Json(Settled::of(receipts, &statuses)))
}

/// Lets deliveries last longer: `visibility` from now, by default the queue's.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/extend",
    tag = "queues",
    params(QueueName),
    request_body = ExtendBody,
    responses((status = 200, body = Settled), (status = 404, body = Document, description = "no-such-queue"))
)]
async fn extend(
    State(context): State<Context>,
    Segments(QueueName { queue }): Segments<QueueName>,
    Json(body): Json<ExtendBody>,
) -> Answer<Settled> {
    let visibility = body.visibility.map(request::visibility).transpose()?;
    let receipts = request::receipts(&body.receipts)?;
    let statuses = context.queues.extend(&queue, receipts, visibility).await?;
    Ok(axum::Json(Settled::of(&body.receipts, &statuses)))
}

/// Acknowledges one delivery.
#[utoipa::path(
    delete,
    path = "/v1/queues/{queue}/receipts/{receipt}",
    tag = "queues",
    params(ReceiptPath),
    responses(
        (status = 204),
        (status = 410, body = Document, description = "receipt-stale: the delivery has ended otherwise"),
        (status = 503, body = Document, description = "outcome-unknown")
    )
)]
async fn ack_one(
    State(context): State<Context>,
    Segments(ReceiptPath { queue, receipt }): Segments<ReceiptPath>,
) -> Result<StatusCode, Problem> {
    let receipts = request::receipts(&[receipt])?;
    let statuses = context.queues.settle(&queue, receipts, Verdict::Ack).await?;
    match statuses.first() {
        Some(Status::Ok) => Ok(StatusCode::NO_CONTENT),
        Some(Status::Stale) => {
            let detail =
                "its time ran out, or it was settled otherwise: the message may be with another consumer";
            Err(Problem::new(StatusCode::GONE, "receipt-stale", "The delivery has ended").detail(detail))
        }
        _ => {
            let detail = "it is not known whether the delivery was acknowledged: ask again";
            Err(Problem::unavailable("outcome-unknown", detail).outcome(Outcome::Unknown))
        }
    }
}

/// Counts a queue's messages, all at one revision of etcd.
#[utoipa::path(
    get,
    path = "/v1/queues/{queue}",
    operation_id = "inspect_queue",
    tag = "queues",
    params(QueueName),
    responses((status = 200, body = Counted), (status = 404, body = Document, description = "no-such-queue"))
)]
async fn inspect(
    State(context): State<Context>,
    Segments(QueueName { queue }): Segments<QueueName>,
) -> Answer<Counted> {
    let inspection = context.queues.inspect(&queue).await?;
    Ok(axum::Json(Counted::of(queue, &inspection, context.store.clock().now().unix)))
}

/// Browses the dead letters kept beside a queue, oldest first: `max` of them, or as many as are 4 MiB. Nothing is consumed.
#[utoipa::path(
    get,
    path = "/v1/queues/{queue}/dead",
    tag = "queues",
    params(QueueName, DeadParams),
    responses((status = 200, body = DeadMessages<'static>), (status = 404, body = Document, description = "no-such-queue"))
)]
async fn dead(
    State(context): State<Context>,
    Segments(QueueName { queue }): Segments<QueueName>,
    Params(params): Params<DeadParams>,
) -> Result<Response, Problem> {
    let messages = context.queues.dead(&queue, params.check()?).await?;
    Ok(axum::Json(DeadMessages::of(&messages)).into_response())
}

/// Puts dead letters back into their queue as new messages.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/dead/redrive",
    tag = "queues",
    params(QueueName),
    request_body = RedriveBody,
    responses((status = 200, body = Redriven), (status = 404, body = Document, description = "no-such-queue"))
)]
async fn redrive(
    State(context): State<Context>,
    Segments(QueueName { queue }): Segments<QueueName>,
    Json(body): Json<RedriveBody>,
) -> Answer<Redriven> {
    let ids: Option<BTreeSet<String>> = body.check()?;
    let redriven = context.queues.redrive(&queue, ids).await?;
    Ok(axum::Json(Redriven { redriven }))
}

/// Streams messages to a subscriber; of no mode that works yet.
#[utoipa::path(
    get,
    path = "/v1/queues/{queue}/stream",
    tag = "queues",
    params(
        QueueName,
        ("group" = Option<String>, Query, description = "The consumer group"),
        ("from" = Option<String>, Query, description = "latest, earliest, offset:n or time:t"),
        ("Last-Event-ID" = Option<String>, Header, description = "Resumes after this event")
    ),
    responses((status = 501, body = Document, description = "mode-not-supported"))
)]
async fn stream(
    State(context): State<Context>,
    Segments(QueueName { queue }): Segments<QueueName>,
) -> Problem {
    not_of_this_mode(&context, &queue)
}

/// Sets a group's offset; of no mode that works yet.
#[utoipa::path(
    put,
    path = "/v1/queues/{queue}/groups/{group}/offset",
    tag = "queues",
    params(Group),
    responses((status = 501, body = Document, description = "mode-not-supported"))
)]
async fn seek(State(context): State<Context>, Segments(Group { queue, .. }): Segments<Group>) -> Problem {
    not_of_this_mode(&context, &queue)
}

fn not_of_this_mode(context: &Context, queue: &str) -> Problem {
    let detail = "streams and groups belong to the modes PubSub and Log; this is a WorkQueue";
    context.definitions.queue(queue).err().unwrap_or_else(|| Problem::mode_not_supported(detail))
}
