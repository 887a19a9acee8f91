//! `concordat queue`: dead letters.

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use crate::{
    output::Format,
    reach::Scope,
    table::{self, Column},
};

const DEAD: &[Column] = &[
    ("ID", "/id"),
    ("KEY", "/key"),
    ("DELIVERIES", "/deliveries"),
    ("REASON", "/reason"),
    ("DEAD SINCE", "/deadSince"),
    ("BODY", "/body"),
];

/// What `queue` is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Prints dead letters with their bodies, oldest first, and takes none
    Peek {
        /// Name of the Queue
        name: String,
        /// At most so many
        #[arg(long, value_name = "NUMBER", default_value_t = 10)]
        #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
        max: u32,
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        format: Format,
    },
    /// Puts dead letters back into their queue as new messages
    Redrive {
        /// Name of the Queue
        name: String,
        /// Ids of dead letters, as `peek` prints them
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// All of them
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        format: Format,
    },
}

/// Does what is asked.
pub(crate) fn run(options: Options) -> Result<()> {
    crate::dev::runtime()?.block_on(async {
        match options.what {
            What::Peek { name, max, scope, format } => {
                let reached = scope.reach().await?;
                let guest = reached.guest().await?;
                let told = guest.get(&["queues", &name, "dead"], &[("max", &max.to_string())]).await;
                guest.stop().await?;
                format.print(&told?["messages"], |letters| {
                    table::of(DEAD, letters.as_array().map(Vec::as_slice).unwrap_or_default())
                })
            }
            What::Redrive { name, ids, all, scope, format } => {
                let reached = scope.reach().await?;
                let guest = reached.guest().await?;
                let body = if all { json!({"all": true}) } else { json!({"ids": ids}) };
                let told = guest.post(&["queues", &name, "dead", "redrive"], &[], Some(&body)).await;
                guest.stop().await?;
                format.print(&told?, |told| format!("put back into {name}: {}\n", told["redriven"]))
            }
        }
    })
}
