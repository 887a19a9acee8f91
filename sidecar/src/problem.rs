//! Refusals: problem documents (RFC 9457) whose `code` never changes its meaning.

use axum::response::{IntoResponse, Response};
use concordat_store::{CommitError, Restored};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Where a code is explained.
const TYPE_BASE: &str = "https://concordat.dev/problems/";

/// What is known of a write that was not answered as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It was not made and never will be.
    NotApplied,
    /// It may have been made, or still be.
    Unknown,
}

/// Why a request was refused, and what to change.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Kebab-case, stable: what programs look at.
    pub code: &'static str,
    /// HTTP status.
    pub status: StatusCode,
    /// The same for every problem of this code.
    pub title: &'static str,
    /// What was wrong this time, and what to change.
    pub detail: String,
    /// Where a write's fate is in doubt.
    pub outcome: Option<Outcome>,
    /// Seconds after which it is worth trying again; always told with 429 and 503.
    pub retry_after: Option<u64>,
    /// Further members of the document, such as a lock's `owner`.
    pub extra: Map<String, Value>,
}

/// The document as it is described in OpenAPI.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Problem)]
pub struct Document {
    /// A stable URI ending in the code.
    r#type: String,
    /// The same for every problem of this code.
    title: &'static str,
    /// HTTP status.
    status: u16,
    /// What was wrong this time, and what to change.
    detail: String,
    /// Kebab-case, stable.
    code: &'static str,
    /// Where a write's fate is in doubt.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    #[serde(flatten)]
    #[schema(ignore)]
    extra: Map<String, Value>,
}

/// Left in a response so that refusals are counted by code.
#[derive(Clone, Copy, Debug)]
pub struct Code(pub &'static str);

impl Problem {
    /// A problem without particulars.
    pub fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self {
            code,
            status,
            title,
            detail: String::new(),
            outcome: None,
            retry_after: None,
            extra: Map::new(),
        }
    }

    /// Says what was wrong this time and what to change.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// Says what is known of the write.
    #[must_use]
    pub fn outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// Says when to try again, in seconds (at least one).
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds.max(1));
        self
    }

    /// Adds a member to the document.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(member.to_owned(), value.into());
        self
    }

    /// 400: a missing or malformed parameter, header, body or field.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-request", "The request is malformed").detail(detail)
    }

    /// 413: more bytes than are taken.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload-too-large", "The request is too large")
            .detail(detail)
    }

    /// 501: a mode that does not work yet.
    pub fn mode_not_supported(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "mode-not-supported", "This mode does not work yet")
            .detail(detail)
    }

    /// 503: nothing was done; try again.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, "It cannot be done at present")
            .detail(detail)
            .outcome(Outcome::NotApplied)
    }

    /// 503: etcd was restored from a snapshot, and its epoch must be raised first.
    pub fn restored(restored: &Restored) -> Self {
        Self::unavailable("etcd-restored", restored.to_string()).with("command", restored.command())
    }

    /// 500: our fault.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal-error", "The sidecar failed")
            .detail("this is a bug in the sidecar; its log says more")
            .outcome(Outcome::Unknown)
    }
}

/// What became of a plan, for the client whose request made it.
impl From<CommitError> for Problem {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::NotApplied(why) => Self::unavailable("not-committed", why),
            CommitError::SessionEnded => Self::unavailable(
                "session-lost",
                "the sidecar's session in etcd is over, and what it held is lost; another one is being opened",
            ),
            CommitError::Unknown(why) => {
                Self::unavailable("outcome-unknown", format!("it is not known whether it was done: {why}"))
                    .outcome(Outcome::Unknown)
            }
            CommitError::TooLarge { size, limit, unit } => {
                Self::too_large(format!("it makes {size} {unit}, and one commit holds at most {limit}"))
                    .outcome(Outcome::NotApplied)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let waits = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let retry_after = self.retry_after.or(waits.then_some(1));
        let document = Document {
            r#type: format!("{TYPE_BASE}{}", self.code),
            title: self.title,
            status: self.status.as_u16(),
            detail: self.detail,
            code: self.code,
            outcome: self.outcome,
            extra: self.extra,
        };
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(Code(self.code));
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::json;

    use super::*;

    async fn read(problem: Problem) -> (http::response::Parts, Value) {
        let (parts, body) = problem.into_response().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (parts, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn a_problem_is_a_document_of_rfc_9457() {
        let problem = Problem::new(StatusCode::CONFLICT, "lock-held", "The lock is held")
            .detail("held by the nightly job")
            .with("owner", "nightly")
            .retry_after(0);
        let (parts, document) = read(problem).await;
        assert_eq!(parts.status, StatusCode::CONFLICT);
        assert_eq!(parts.headers[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(parts.headers[header::RETRY_AFTER], "1");
        assert_eq!(
            document,
            json!({
                "type": "https://concordat.dev/problems/lock-held",
                "title": "The lock is held",
                "status": 409,
                "detail": "held by the nightly job",
                "code": "lock-held",
                "owner": "nightly",
            })
        );
    }

    #[tokio::test]
    async fn unavailable_says_when_to_try_again_and_what_is_known() {
        let (parts, document) = read(Problem::unavailable("not-committed", "etcd is not reachable")).await;
        assert_eq!(parts.headers[header::RETRY_AFTER], "1");
        assert_eq!(document["outcome"], "notApplied");
    }
}
