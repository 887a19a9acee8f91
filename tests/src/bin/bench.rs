//! `make bench`: the sidecars over HTTP beside etcd's own lock service and plain puts, in one run on one machine.

use anyhow::Result;
use clap::Parser;
use concordat_tests::bench::{self, Command};

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match Command::parse() {
            Command { app: Some(port), .. } => bench::app::serve(port).await,
            command => bench::run(command).await,
        }
    })
}
