//! What this program starts of itself ends with it, however it ends: it may be killed without being able to stop anything.

use anyhow::{Context, Result, ensure};
pub(crate) use rustix::process::Signal;
use rustix::process::{Pid, getppid, set_parent_process_death_signal};
use tokio::process::Command;

/// A hidden subcommand of this program, told whose end is its own.
pub(crate) fn subcommand(name: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([name, &std::process::id().to_string()]);
    Ok(command)
}

/// Has this process get the signal when `parent` has ended. It stays so for what it becomes by `exec`.
pub(crate) fn end_with(parent: i32, signal: Signal) -> Result<()> {
    set_parent_process_death_signal(Some(signal)).context("it would outlive what started it")?;
    // It may have ended before that.
    ensure!(getppid() == Pid::from_raw(parent), "what started it has ended");
    Ok(())
}
