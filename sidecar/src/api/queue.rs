//! Placeholder: answers 501 until the column's routes are here.

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{context::Context, problem::Problem};

/// The routes.
pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(queue_placeholder))
}

#[utoipa::path(get, path = "/v1/queues/{queue}", responses((status = 501)))]
#[allow(clippy::unused_async, reason = "placeholder")]
async fn queue_placeholder() -> Problem {
    Problem::mode_not_supported("these routes are not here yet")
}
