//! Drives the bank and checks every sum: what `make demo` runs.

mod bank;
mod scenes;

use std::path::PathBuf;

use anyhow::Result;

/// What the demonstration needs.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The `concordat` program; the one beside this program unless given.
    #[arg(long)]
    concordat: Option<PathBuf>,
    /// Folder of the bank's manifests.
    #[arg(long, default_value = "examples/bank/manifests")]
    manifests: PathBuf,
}

/// Runs every scene; fails at the first wrong sum.
pub(crate) async fn run(options: Options) -> Result<()> {
    let mut bank = bank::Bank::start(&options).await?;
    scenes::commits(&bank).await?;
    scenes::aborts(&bank).await?;
    scenes::survives_its_coordinator(&mut bank).await?;
    scenes::one_holder_at_a_time(&bank).await?;
    scenes::poison_is_set_aside(&bank).await?;
    bank.say_how_to_go_on();
    Ok(())
}
