//! An etcd that is put back to what it was, in the ways in which that happens.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use etcd_client::GetOptions;
use tempfile::TempDir;

use super::Etcd;
use crate::process::folder;

/// The data of a member at a moment.
#[derive(Debug)]
pub struct Backup(TempDir);

impl Etcd {
    /// Copies the data of the one member, which is down meanwhile.
    pub async fn back_up(&mut self) -> Result<Backup> {
        ensure!(self.members.len() == 1, "only one member's data is all there is");
        self.terminate(0).await?;
        let backup = folder("backup")?;
        copy(&self.data(), backup.path())?;
        self.restart(0).await?;
        Ok(Backup(backup))
    }

    /// Kills the one member and starts it again on the data of a backup: the same cluster, and the same log up to there.
    pub async fn put_back(&mut self, backup: &Backup) -> Result<()> {
        self.kill(0)?;
        fs::remove_dir_all(self.data())?;
        copy(backup.0.path(), &self.data())?;
        self.restart(0).await
    }

    /// Kills the one member and starts another in its place with the same keys, but what was leased, as `etcdutl snapshot
    /// restore` does: the log begins anew, and so do revisions here. With a `token` of its own (`--initial-cluster-token`)
    /// it is another cluster, without one it has the id of the first: etcd makes it of the token and the peers' addresses.
    pub async fn restore(&mut self, token: Option<&str>) -> Result<()> {
        ensure!(self.members.len() == 1, "only one member is restored");
        let options = GetOptions::new().with_all_keys();
        let kept = self.client().await?.get("", Some(options)).await?;
        self.kill(0)?;
        fs::remove_dir_all(self.data())?;
        self.token = token.map(ToOwned::to_owned);
        self.restart(0).await?;
        let mut client = self.client().await?;
        for kv in kept.kvs().iter().filter(|kv| kv.lease() == 0) {
            client.put(kv.key(), kv.value(), None).await?;
        }
        Ok(())
    }

    fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("m0")
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    // etcd wants its folder for itself alone.
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    Ok(())
}
