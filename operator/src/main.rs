//! The binary `concordat-operator`.

use clap::Parser;
use concordat_operator::{args::Args, run};

/// The exit code for a wrong configuration (EX_USAGE of sysexits.h).
const USAGE: i32 = 64;

fn main() -> anyhow::Result<()> {
    let settings = Args::try_parse().and_then(run::Settings::check).unwrap_or_else(|error| {
        let _ = error.print();
        std::process::exit(if error.use_stderr() { USAGE } else { 0 });
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run::run(settings))?;
    Ok(())
}
