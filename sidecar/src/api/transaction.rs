//! Transactions over HTTP.

#[cfg(test)]
mod fuzz;
mod request;

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use concordat_protocol::{
    Branch, Name,
    transaction::{Verdict, plans::MAX_INPUT},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::request::{Of, One, OneBranch, Page, Skip, Wait, id, id_to_begin};
use crate::{
    api::{
        extract::{self, Params, Raw, Segments},
        trace::TraceParent,
    },
    context::Context,
    engine::transaction::{Begin, Outcome, View},
    problem::{self, Document, Problem},
};

/// Without a wait, a call takes at most this long to learn what it must know to answer.
const LEAST: Duration = Duration::from_secs(10);
/// Without a wait, a rollback is waited for this long.
const ROLLBACK: Duration = Duration::from_secs(5);

/// The routes.
pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(begin, list))
        .routes(routes!(get))
        .routes(routes!(roll_back))
        .routes(routes!(retry))
        .routes(routes!(skip))
}

/// Begins a transaction, and waits for its decision if asked to. The same id, or `Idempotency-Key`, is one transaction.
#[utoipa::path(
    post,
    path = "/v1/transactions/{transaction}",
    tag = "transactions",
    params(
        Of, Wait,
        ("Transaction-Id" = Option<String>, Header, description = "1 to 128 bytes; else one is made"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the id, the same for the same key")
    ),
    request_body(content = Object, description = "The input: any JSON up to 256 KiB", content_type = "application/json"),
    responses(
        (status = 200, body = View, description = "Committed"),
        (status = 202, body = View, description = "Undecided; Location tells where to ask"),
        (status = 404, body = Document, description = "no-such-transaction"),
        (status = 409, body = View, description = "Aborted"),
        (status = 413, body = Document, description = "payload-too-large, transaction-too-large"),
        (status = 422, body = Document, description = "transaction-id-reused: the id is that of another transaction; runs-once"),
        (status = 501, body = Document, description = "mode-not-supported"),
        (status = 503, body = Document, description = "outcome says whether it may have begun")
    )
)]
async fn begin(
    State(context): State<Context>,
    Segments(of): Segments<Of>,
    Params(wait): Params<Wait>,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, Problem> {
    let name = Name::from(of.transaction.as_str());
    let id = id_to_begin(&name, &headers)?;
    let (until, begun_until) = wait.until(LEAST)?;
    let defined = context.definitions.transaction(&of.transaction)?;
    if defined.settings.once {
        return Err(runs_once(&name));
    }
    if body.len() > MAX_INPUT {
        return Err(Problem::too_large(format!("a transaction's input has at most {MAX_INPUT} bytes")));
    }
    let input = extract::json_text(&body)?;
    let traceparent = TraceParent::current().map(|parent| parent.as_str().to_owned()).unwrap_or_default();
    let begin = Begin { id, name, input, traceparent, defined };
    context.transactions.begin(&begin, begun_until).await?;
    let view = context.transactions.decided(&begin.id, until).await?;
    Ok(answer(view.ok_or_else(forgotten)?))
}

fn runs_once(name: &Name) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "runs-once", "The transaction runs once, by itself")
        .detail(format!("{name} has run: Once, and began with its spec.input when it was applied; write run: OnDemand to begin it"))
        .outcome(problem::Outcome::NotApplied)
}

/// A transaction as it is now, or once it is decided.
#[utoipa::path(
    get,
    path = "/v1/transactions/{transaction}/{id}",
    tag = "transactions",
    params(One, Wait),
    responses((status = 200, body = View), (status = 404, body = Document, description = "transaction-not-found"))
)]
async fn get(
    State(context): State<Context>,
    Segments(one): Segments<One>,
    Params(wait): Params<Wait>,
) -> Result<Json<View>, Problem> {
    let id = id(&one.id)?;
    let (until, _) = wait.until(LEAST)?;
    if wait.wait.is_some() {
        context.transactions.decided(&id, until).await?;
    }
    // Much may have happened since it was decided.
    found(&one, context.transactions.get(&id).await?).map(Json)
}

/// Rolls a transaction back unless it is decided.
#[utoipa::path(
    post,
    path = "/v1/transactions/{transaction}/{id}/rollback",
    tag = "transactions",
    params(One, Wait),
    responses(
        (status = 200, body = View, description = "Aborted"),
        (status = 202, body = View, description = "Undecided yet; Location tells where to ask"),
        (status = 404, body = Document, description = "transaction-not-found"),
        (status = 409, body = Document, description = "transaction-committed"),
        (status = 503, body = Document, description = "no-coordinator: it is about to be adopted")
    )
)]
async fn roll_back(
    State(context): State<Context>,
    Segments(one): Segments<One>,
    Params(wait): Params<Wait>,
) -> Result<Response, Problem> {
    let id = id(&one.id)?;
    let (_, until) = wait.until(ROLLBACK)?;
    found(&one, context.transactions.get(&id).await?)?;
    let view = found(&one, context.transactions.roll_back(&id, until).await?)?;
    match view.outcome {
        Outcome::Committed => {
            Err(Problem::new(StatusCode::CONFLICT, "transaction-committed", "The transaction is committed")
                .detail("it was decided before: a committed transaction is not rolled back"))
        }
        Outcome::Aborted => Ok(Json(view).into_response()),
        Outcome::Undecided => Ok(accepted(view)),
    }
}

/// The transactions of a DistributedTransaction, newest first.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct List {
    transactions: Vec<View>,
}

/// Lists transactions, newest first. Of finished ones the newest 4096 of the namespace are looked at.
#[utoipa::path(
    get,
    path = "/v1/transactions/{transaction}",
    tag = "transactions",
    params(Of, Page),
    responses((status = 200, body = List))
)]
async fn list(
    State(context): State<Context>,
    Segments(of): Segments<Of>,
    Params(page): Params<Page>,
) -> Result<Json<List>, Problem> {
    let (filter, limit) = page.filter()?;
    let name = Name::from(of.transaction.as_str());
    let transactions = context.transactions.list(&name, filter, limit).await?;
    // What a deleted object left is listed; an object that never was is told apart.
    if transactions.is_empty() {
        context.definitions.transaction(&of.transaction)?;
    }
    Ok(Json(List { transactions }))
}

/// Has what is stuck tried again.
#[utoipa::path(
    post,
    path = "/v1/transactions/{transaction}/{id}/retry",
    tag = "transactions",
    params(One),
    responses(
        (status = 202, body = View, description = "It is tried again"),
        (status = 404, body = Document, description = "transaction-not-found"),
        (status = 409, body = Document, description = "transaction-not-stuck"),
        (status = 503, body = Document, description = "no-coordinator: it is about to be adopted")
    )
)]
async fn retry(State(context): State<Context>, Segments(one): Segments<One>) -> Result<Response, Problem> {
    help(&context, &one, None, Verdict::Retry).await
}

/// Gives a stuck branch up.
#[utoipa::path(
    post,
    path = "/v1/transactions/{transaction}/{id}/branches/{branch}/skip",
    tag = "transactions",
    params(OneBranch),
    request_body = Skip,
    responses(
        (status = 202, body = View, description = "It is given up"),
        (status = 404, body = Document, description = "transaction-not-found"),
        (status = 409, body = Document, description = "transaction-not-stuck"),
        (status = 503, body = Document, description = "no-coordinator: it is about to be adopted")
    )
)]
async fn skip(
    State(context): State<Context>,
    Segments(OneBranch { transaction, id, branch }): Segments<OneBranch>,
    extract::Json(skip): extract::Json<Skip>,
) -> Result<Response, Problem> {
    let verdict = Verdict::Skip(skip.checked()?);
    help(&context, &One { transaction, id }, Some(&branch.into()), verdict).await
}

async fn help(
    context: &Context,
    one: &One,
    branch: Option<&Branch>,
    verdict: Verdict,
) -> Result<Response, Problem> {
    let id = id(&one.id)?;
    let (_, until) = Wait::default().until(ROLLBACK)?;
    found(one, context.transactions.get(&id).await?)?;
    match context.transactions.help(&id, branch, &verdict, until).await? {
        None => Err(not_found(one)),
        Some(false) => {
            Err(Problem::new(StatusCode::CONFLICT, "transaction-not-stuck", "Nothing of it is stuck")
                .detail("only a branch that refused what was decided, or was undecided when etcd was restored, is tried again or given up"))
        }
        Some(true) => Ok(accepted(found(one, context.transactions.get(&id).await?)?)),
    }
}

/// The answer to begin: its status tells the outcome.
fn answer(view: View) -> Response {
    match view.outcome {
        Outcome::Committed => Json(view).into_response(),
        Outcome::Aborted => (StatusCode::CONFLICT, Json(view)).into_response(),
        Outcome::Undecided => accepted(view),
    }
}

fn accepted(view: View) -> Response {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let location = format!("/v1/transactions/{}/{}", encoded(&view.transaction), encoded(&view.id));
    let mut response = (StatusCode::ACCEPTED, Json(view)).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn found(one: &One, view: Option<View>) -> Result<View, Problem> {
    view.filter(|view| view.transaction == one.transaction).ok_or_else(|| not_found(one))
}

fn not_found(one: &One) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "transaction-not-found", "There is no such transaction").detail(
        format!(
            "there is no transaction {:?} of {:?}, or it is finished and forgotten",
            one.id, one.transaction
        ),
    )
}

fn forgotten() -> Problem {
    Problem::unavailable("outcome-unknown", "it was finished and forgotten before it could be read")
        .outcome(crate::problem::Outcome::Unknown)
}
