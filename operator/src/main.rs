//! The binary `concordat-operator`.

use clap::Parser;
use concordat_operator::{args::Args, run, task};

/// The exit code for a wrong configuration (EX_USAGE of sysexits.h).
const USAGE: i32 = 64;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let args = Args::try_parse().unwrap_or_else(|error| end(&error));
    if let Some(task) = args.task {
        // Two TLS providers may be compiled in; rustls then wants to be told.
        let _ = rustls::crypto::ring::default_provider().install_default();
        return Ok(runtime.block_on(task::run(task))?);
    }
    let settings = run::Settings::check(args).unwrap_or_else(|error| end(&error));
    Ok(runtime.block_on(run::run(settings))?)
}

/// Says what is wrong with the flags, or what was asked about them.
fn end(said: &clap::Error) -> ! {
    let _ = said.print();
    std::process::exit(if said.use_stderr() { USAGE } else { 0 });
}
