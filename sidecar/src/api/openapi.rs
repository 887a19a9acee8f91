//! What describes the API, generated from the routes.

use utoipa::{
    OpenApi,
    openapi::{
        OpenApi as Description,
        security::{ApiKey, ApiKeyValue, SecurityScheme},
    },
};

use crate::problem::{Document, Outcome};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Concordat",
        description = "Locks, queues and distributed transactions for the apps of a pod, on 127.0.0.1. Every refusal \
                       is an application/problem+json document (RFC 9457) with a stable code.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Document, Outcome)),
    tags(
        (name = "locks", description = "Who may do it now"),
        (name = "queues", description = "What is to be done"),
        (name = "transactions", description = "All of it or nothing")
    )
)]
struct Base;

/// The description without any routes.
pub fn base() -> Description {
    let mut base = Base::openapi();
    let token = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
        "Concordat-Token",
        "Required when the sidecar was started with a token file",
    )));
    base.components.get_or_insert_default().add_security_scheme("token", token);
    base
}
