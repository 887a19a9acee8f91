//! Errors as Dapr's clients know them.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;
use tonic::{Code, Status};

use crate::problem;

/// Why a call was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status over HTTP.
    pub status: StatusCode,
    /// The code over gRPC.
    pub grpc: Code,
    /// Dapr's `errorCode`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// 400: a field cannot be so.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            grpc: Code::InvalidArgument,
            code: "ERR_MALFORMED_REQUEST",
            message: message.into(),
        }
    }

    /// 401: the token is missing or wrong.
    pub(super) fn token() -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            grpc: Code::Unauthenticated,
            code: "ERR_INVALID_API_TOKEN",
            message: "invalid api token".to_owned(),
        }
    }

    /// 500: a lock could not be tried.
    pub(super) fn try_lock(why: impl ToString) -> Self {
        Self::failed("ERR_TRY_LOCK", format!("failed to try acquiring lock: {}", why.to_string()))
    }

    /// 500: a lock could not be let go.
    pub(super) fn unlock(why: impl ToString) -> Self {
        Self::failed("ERR_UNLOCK", format!("failed to release lock: {}", why.to_string()))
    }

    /// 500.
    pub(super) fn failed(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            grpc: Code::Internal,
            code,
            message: message.into(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "errorCode": self.code, "message": self.message });
        let mut response = (self.status, axum::Json(body)).into_response();
        response.extensions_mut().insert(problem::Code(self.code));
        response
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.grpc, refusal.message)
    }
}
