//! What a lock is for, over plain HTTP and with no SDK: a resource that compares fences, an editor that may come too
//! late, and a leader that is told when it leads no more.
//!
//! docs/recipes tells how to run them by hand.

mod edit;
mod lead;
mod resource;
mod sidecar;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "concordat-locks", about = "A fenced resource, its editors, and an elected leader")]
enum Command {
    /// Keeps documents, and refuses whoever comes with an older fence than somebody before.
    Resource {
        /// Port to listen on, on 127.0.0.1.
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// SQLite file.
        #[arg(long)]
        database: PathBuf,
    },
    /// Takes the lock of a document, waits for Enter, and writes the document.
    Edit(edit::Options),
    /// Stands for election, leads when elected, and stands again afterwards.
    Lead(lead::Options),
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match Command::parse() {
            Command::Resource { port, database } => resource::serve(port, &database).await,
            Command::Edit(options) => edit::run(options).await,
            Command::Lead(options) => lead::run(options).await,
        }
    })
}
