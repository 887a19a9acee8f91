//! An editor: whatever happens between taking the lock and writing, its write tells with which fence it comes.

use anyhow::{Context, Result, bail};
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::sidecar::{Sidecar, Where};

/// What it edits.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    sidecar: Where,
    /// Base URL of the resource.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    resource: String,
    /// Name of the document.
    #[arg(long)]
    document: String,
    /// What to write.
    #[arg(long)]
    text: String,
    /// How long the lock is held unless Enter comes before.
    #[arg(long, default_value = "15s")]
    ttl: String,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let sidecar = Sidecar::new(&options.sidecar)?;
    let place = format!("documents/{}", options.document);
    let grant = sidecar.acquire(&place, &json!({ "ttl": options.ttl })).await?;
    let grant = grant.context("somebody else edits it")?;
    println!("editing with fence {}; press Enter to write", grant.fence);
    BufReader::new(tokio::io::stdin()).read_line(&mut String::new()).await?;

    let document = format!("{}/documents/{}", options.resource, options.document);
    let write = reqwest::Client::new().put(document).header("Fence", grant.fence).body(options.text);
    let written = write.send().await?;
    sidecar.release(&place, &grant).await?;
    match written.status() {
        StatusCode::NO_CONTENT => println!("written"),
        StatusCode::PRECONDITION_FAILED => bail!("refused: {}", written.text().await?),
        status => bail!("the resource answered {status}"),
    }
    Ok(())
}
