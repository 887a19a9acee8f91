//! A disk that is slow, for one process.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result};

use crate::process::Process;

/// Every `fdatasync` of a process takes longer, by strace, until this is ended.
#[derive(Debug)]
pub struct SlowDisk(Process);

impl SlowDisk {
    /// Slows what a process writes by `delay` a time; back when it is slow.
    ///
    /// # Errors
    /// When strace is not there or may not trace the process.
    pub async fn of(process: u32, delay: Duration) -> Result<Self> {
        let mut command = Command::new("strace");
        command
            .args(["-f", "-e", "trace=fdatasync", "-o", "/dev/null", "-e"])
            .arg(format!("inject=fdatasync:delay_exit={}", delay.as_micros()))
            .args(["-p", &process.to_string()]);
        let mut strace = Process::start("strace", command).context("strace, of Debian's package strace")?;
        strace.says("attached").await?;
        Ok(Self(strace))
    }

    /// Ends it; back when the disk is as fast as it was.
    pub async fn end(mut self) -> Result<()> {
        self.0.terminate().await?;
        Ok(())
    }
}
