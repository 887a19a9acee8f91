//! Talking to the sidecar: HTTP and JSON, nothing else.

use anyhow::{Context, Result};
use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::Value;

use crate::Service;

/// The sidecar's API on localhost.
#[derive(Clone)]
pub(crate) struct Sidecar {
    client: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Sidecar {
    /// The sidecar of a service.
    pub(crate) fn new(service: &Service) -> Result<Self> {
        let token = match &service.token_file {
            Some(file) => Some(
                std::fs::read_to_string(file)
                    .with_context(|| format!("read {}", file.display()))?
                    .trim()
                    .to_owned(),
            ),
            None => None,
        };
        Ok(Self {
            client: reqwest::Client::new(),
            base: format!("http://127.0.0.1:{}", service.sidecar_port),
            token,
        })
    }

    /// Posts JSON; the answer's status and body (null when it is empty).
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<(StatusCode, Value)> {
        self.send(self.client.post(self.url(path)).json(body)).await
    }

    /// Posts nothing.
    pub(crate) async fn call(&self, path: &str) -> Result<(StatusCode, Value)> {
        self.send(self.client.post(self.url(path))).await
    }

    /// Releases a lock by its token.
    pub(crate) async fn release(&self, path: &str, token: &str) -> Result<(StatusCode, Value)> {
        self.send(self.client.delete(self.url(path)).header("Lock-Token", token)).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> Result<(StatusCode, Value)> {
        if let Some(token) = &self.token {
            request = request.header("Concordat-Token", token);
        }
        let response = request.send().await?;
        let status = response.status();
        let body = response.bytes().await?;
        Ok((status, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? }))
    }
}

/// Serves on the port of 127.0.0.1, where the sidecar of the same pod calls.
pub(crate) async fn listen(port: u16, app: Router) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    Ok(axum::serve(listener, app).await?)
}

/// A service's own failure as a 500, so that the sidecar tries again.
pub(crate) fn answer(result: Result<impl IntoResponse>) -> Response {
    match result {
        Ok(response) => response.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
