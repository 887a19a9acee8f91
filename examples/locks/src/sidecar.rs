//! Talking to the sidecar: HTTP and JSON, nothing else.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;

/// Where the sidecar is.
#[derive(clap::Args)]
pub(crate) struct Where {
    /// Port of the sidecar's API.
    #[arg(long, env = "CONCORDAT_PORT", default_value_t = 4700)]
    sidecar_port: u16,
    /// File of the sidecar's API token, where one is required.
    #[arg(long, env = "CONCORDAT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

/// The lock API of the sidecar.
pub(crate) struct Sidecar {
    client: Client,
    base: String,
    token: Option<String>,
}

/// A lock that is held.
pub(crate) struct Grant {
    /// Proof, for releasing and following.
    pub(crate) token: String,
    /// What the resource compares.
    pub(crate) fence: u64,
}

impl Sidecar {
    pub(crate) fn new(options: &Where) -> Result<Self> {
        let read = |file: &PathBuf| {
            std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
        };
        let token = options.token_file.as_ref().map(read).transpose()?;
        let base = format!("http://127.0.0.1:{}/v1/locks", options.sidecar_port);
        Ok(Self { client: Client::new(), base, token: token.map(|token| token.trim().to_owned()) })
    }

    /// Takes a key of a lock; `None` when it did not come free within a minute.
    pub(crate) async fn acquire(&self, place: &str, body: &Value) -> Result<Option<Grant>> {
        let request = self.request(Method::POST, &format!("{place}?wait=1m")).json(body);
        let answer = request.send().await?;
        let (status, body): (_, Value) = (answer.status(), answer.json().await?);
        match status {
            StatusCode::OK => {
                let token = body["token"].as_str().context("no token")?.to_owned();
                Ok(Some(Grant { token, fence: body["fence"].as_u64().context("no fence")? }))
            }
            StatusCode::CONFLICT => Ok(None),
            _ => bail!("the sidecar answered {status}: {body}"),
        }
    }

    /// Lets go; false when it was lost before.
    pub(crate) async fn release(&self, place: &str, grant: &Grant) -> Result<bool> {
        let request = self.request(Method::DELETE, place).header("Lock-Token", &grant.token);
        Ok(request.send().await?.status() == StatusCode::NO_CONTENT)
    }

    /// What becomes of a grant, as server-sent events.
    pub(crate) async fn events(&self, place: &str, grant: &Grant) -> Result<reqwest::Response> {
        let request = self.request(Method::GET, &format!("{place}/events"));
        Ok(request.header("Lock-Token", &grant.token).send().await?.error_for_status()?)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}/{path}", self.base));
        match &self.token {
            Some(token) => request.header("Concordat-Token", token),
            None => request,
        }
    }
}
