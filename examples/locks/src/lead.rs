//! A candidate: whoever holds the lock leads. The grant lasts as long as the candidate follows its events, and it stops
//! leading when they say that the end comes near, which is before anybody else can be elected.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::sidecar::{Grant, Sidecar, Where};

/// Who stands, and for what.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    sidecar: Where,
    /// What is led: candidates for one thing give one name.
    #[arg(long, default_value = "shop")]
    of: String,
    /// Who it is, for people.
    #[arg(long)]
    name: String,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let sidecar = Sidecar::new(&options.sidecar)?;
    let place = format!("leaders/{}", options.of);
    let terms = json!({ "renew": true, "owner": options.name });
    loop {
        match sidecar.acquire(&place, &terms).await {
            Ok(Some(grant)) => {
                println!("{} leads, fence {}", options.name, grant.fence);
                let why = lead(&sidecar, &place, &grant).await;
                println!("{} leads no more: {why:#}", options.name);
                // What is over already is not there to be released.
                let _ = sidecar.release(&place, &grant).await;
            }
            Ok(None) => {}
            Err(error) => {
                eprintln!("{} cannot stand: {error:#}", options.name);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Leads until the events say that it must stop; answers why.
async fn lead(sidecar: &Sidecar, place: &str, grant: &Grant) -> anyhow::Error {
    let followed = async {
        let mut events = sidecar.events(place, grant).await?;
        let mut text = String::new();
        loop {
            let chunk = events.chunk().await?.context("the sidecar is gone")?;
            text.push_str(&String::from_utf8_lossy(&chunk));
            while let Some((line, rest)) = text.split_once('\n') {
                // A real leader ends its work on each of these, and tells the grant's fence with all it does before.
                if let Some(event @ ("expiring" | "lost" | "released")) =
                    line.strip_prefix("event:").map(str::trim)
                {
                    anyhow::bail!("{event}");
                }
                text = rest.to_owned();
            }
        }
    };
    let ended: Result<()> = followed.await;
    ended.err().unwrap_or_else(|| anyhow::anyhow!("it ended"))
}
