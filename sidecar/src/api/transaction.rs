//! Placeholder: answers 501 until the column's routes are here.

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{context::Context, problem::Problem};

/// The routes.
pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(transaction_placeholder))
}

#[utoipa::path(get, path = "/v1/transactions/{transaction}", responses((status = 501)))]
#[allow(clippy::unused_async, reason = "placeholder")]
async fn transaction_placeholder() -> Problem {
    Problem::mode_not_supported("these routes are not here yet")
}
