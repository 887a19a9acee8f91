//! What programs want as a file and no disk should ever hold: it is gone with this process, however that ends.

use std::{fs::File, io::Write, os::fd::AsRawFd, path::PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, memfd_create};

/// A file in memory, which this process and those it starts can open by its path as long as this is there.
pub(crate) struct Secret {
    file: File,
}

impl Secret {
    /// A file that holds this.
    pub(crate) fn new(content: &[u8]) -> Result<Self> {
        let file = memfd_create("concordat", MemfdFlags::CLOEXEC).context("a file in memory")?;
        let mut file = File::from(file);
        file.write_all(content)?;
        Ok(Self { file })
    }

    /// Its path. Each who opens it reads from the beginning.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[test]
    fn it_is_read_from_its_beginning_by_whoever_is_started_and_gone_when_dropped() {
        let secret = Secret::new(b"of nobody").unwrap();
        let path = secret.path();
        for _ in 0..2 {
            assert_eq!(fs::read_to_string(&path).unwrap(), "of nobody");
            assert_eq!(Command::new("cat").arg(&path).output().unwrap().stdout, b"of nobody");
        }
        drop(secret);
        assert_ne!(fs::read_to_string(&path).unwrap_or_default(), "of nobody");
    }
}
