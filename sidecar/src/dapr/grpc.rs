//! Dapr's lock API over gRPC: three methods of the service `dapr.proto.runtime.v1.Dapr`; all others are unimplemented.
//!
//! Messages carry the field numbers of Dapr's protocol files, and of its fields those that are used here.

use std::{collections::HashMap, future::Future};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::post,
};
use tonic::{Status, server::Grpc};
use tonic_prost::ProstCodec;

use super::{COMPONENT, Dapr, FENCE, Refusal, Subject, observe};
use crate::api::guard;

/// Asks for a lock.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TryLockRequest {
    /// Dapr's name of the Lock.
    #[prost(string, tag = "1")]
    pub store_name: String,
    /// The key.
    #[prost(string, tag = "2")]
    pub resource_id: String,
    /// What the caller calls itself.
    #[prost(string, tag = "3")]
    pub lock_owner: String,
    /// How long it is held unless it is let go.
    #[prost(int32, tag = "4")]
    pub expiry_in_seconds: i32,
}

/// Whether it was granted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TryLockResponse {
    /// False when it is held.
    #[prost(bool, tag = "1")]
    pub success: bool,
}

/// Lets go of a lock.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnlockRequest {
    /// Dapr's name of the Lock.
    #[prost(string, tag = "1")]
    pub store_name: String,
    /// The key.
    #[prost(string, tag = "2")]
    pub resource_id: String,
    /// What the caller calls itself.
    #[prost(string, tag = "3")]
    pub lock_owner: String,
}

/// What became of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnlockResponse {
    /// The number of a [`super::Unlocked`].
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// Asks what is served.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetMetadataRequest {}

/// What is served.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetMetadataResponse {
    /// The app.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The stores.
    #[prost(message, repeated, tag = "3")]
    pub registered_components: Vec<Component>,
    /// The version.
    #[prost(map = "string, string", tag = "4")]
    pub extended_metadata: HashMap<String, String>,
}

/// A store.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Component {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it is.
    #[prost(string, tag = "2")]
    pub r#type: String,
    /// Its version.
    #[prost(string, tag = "3")]
    pub version: String,
}

/// The methods as they are served.
pub fn router(dapr: Dapr) -> Router {
    Router::new()
        .route("/dapr.proto.runtime.v1.Dapr/TryLockAlpha1", post(try_lock))
        .route("/dapr.proto.runtime.v1.Dapr/UnlockAlpha1", post(unlock))
        .route("/dapr.proto.runtime.v1.Dapr/GetMetadata", post(metadata))
        .fallback(unimplemented)
        .layer(from_fn_with_state(dapr.clone(), admit))
        .layer(from_fn_with_state(dapr.clone(), observe))
        .with_state(dapr)
}

async fn admit(State(dapr): State<Dapr>, request: Request, next: Next) -> Response {
    if let Err(problem) = guard::admit_local(&request) {
        return Status::permission_denied(problem.detail).into_http();
    }
    if !dapr.admits(request.headers()) {
        return Status::from(Refusal::token()).into_http();
    }
    next.run(request).await
}

async fn unimplemented() -> Response {
    Status::unimplemented("only Dapr's lock API is served here: TryLockAlpha1, UnlockAlpha1 and GetMetadata")
        .into_http()
}

async fn try_lock(State(dapr): State<Dapr>, request: Request) -> Response {
    unary(request, async move |asked: TryLockRequest| {
        let subject =
            Subject { store: &asked.store_name, resource: &asked.resource_id, owner: &asked.lock_owner };
        let fence = dapr.try_lock(subject, asked.expiry_in_seconds).await?;
        let mut response = tonic::Response::new(TryLockResponse { success: fence.is_some() });
        if let Some(fence) = fence {
            response.metadata_mut().insert(FENCE, fence.get().into());
        }
        Ok(response)
    })
    .await
}

async fn unlock(State(dapr): State<Dapr>, request: Request) -> Response {
    unary(request, async move |asked: UnlockRequest| {
        let subject =
            Subject { store: &asked.store_name, resource: &asked.resource_id, owner: &asked.lock_owner };
        let status = dapr.unlock(subject).await? as i32;
        Ok(tonic::Response::new(UnlockResponse { status }))
    })
    .await
}

async fn metadata(State(dapr): State<Dapr>, request: Request) -> Response {
    unary(request, async move |_: GetMetadataRequest| {
        let component = |store: concordat_protocol::Name| Component {
            name: store.to_string(),
            r#type: COMPONENT.to_owned(),
            version: "v1".to_owned(),
        };
        let version = ("daprRuntimeVersion".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        Ok(tonic::Response::new(GetMetadataResponse {
            id: dapr.context.identity.app.to_string(),
            registered_components: dapr.stores().map(component).collect(),
            extended_metadata: [version].into(),
        }))
    })
    .await
}

/// Answers a call of one message by one message.
async fn unary<Q, A, F, Fut>(request: Request, answer: F) -> Response
where
    Q: prost::Message + Default + Send + 'static,
    A: prost::Message + Default + Send + 'static,
    F: FnOnce(Q) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<tonic::Response<A>, Status>> + Send + 'static,
{
    let service = tower::service_fn(move |request: tonic::Request<Q>| answer.clone()(request.into_inner()));
    let codec = ProstCodec::<A, Q>::default();
    Grpc::new(codec).unary(service, request).await.map(Body::new)
}
