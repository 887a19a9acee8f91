//! `concordat tx`: what a person wants of a transaction, told to whoever coordinates it.

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use crate::{describe::transaction_shown, output::Format, reach::Scope};

/// What `tx` is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Has what is stuck tried again
    Retry(One),
    /// Gives a stuck branch up: what it should have done is left undone
    Skip {
        #[command(flatten)]
        one: One,
        /// Name of the participant
        branch: String,
        /// Why, for those who read it later: it is kept with the transaction
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Rolls it back unless it is decided
    Rollback {
        #[command(flatten)]
        one: One,
        /// How long to wait for the decision
        #[arg(long, value_name = "DURATION", default_value = "10s")]
        wait: String,
    },
}

#[derive(clap::Args)]
struct One {
    /// Name of the DistributedTransaction
    name: String,
    /// Id of the transaction
    id: String,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    format: Format,
}

/// Does what is asked, and prints what came of it.
pub(crate) fn run(options: Options) -> Result<()> {
    crate::dev::runtime()?.block_on(async {
        let (one, path, query, body) = match options.what {
            What::Retry(one) => (one, vec!["retry".to_owned()], vec![], None),
            What::Skip { one, branch, reason } => {
                let path = ["branches", &branch, "skip"].map(str::to_owned).to_vec();
                (one, path, vec![], Some(json!({"reason": reason})))
            }
            What::Rollback { one, wait } => (one, vec!["rollback".to_owned()], vec![("wait", wait)], None),
        };
        let reached = one.scope.reach().await?;
        let path: Vec<&str> =
            ["transactions", &one.name, &one.id].into_iter().chain(path.iter().map(String::as_str)).collect();
        let query: Vec<(&str, &str)> = query.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let guest = reached.guest().await?;
        let told = guest.post(&path, &query, body.as_ref()).await;
        guest.stop().await?;
        transaction_shown(&reached.namespace, told?, &one.format)
    })
}
