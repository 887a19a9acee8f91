//! What `dev` remembers of its etcd beside etcd's data: when those are put back to an older state, this is not.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use concordat_protocol::timeline::Remembered;
use concordat_store::{Admin, Restored};
use serde_json::{Value, json};
use tokio::time::sleep;

/// In the folder of the data.
const FILE: &str = "remembered.json";
/// How often it is brought up to date.
pub(super) const EVERY: Duration = Duration::from_secs(2);
/// How soon it is asked again whether the epoch was raised.
const AGAIN: Duration = Duration::from_secs(1);

/// Remembers in a file, if there is a folder that is kept.
pub(super) struct Witness {
    file: Option<PathBuf>,
    remembered: Option<Remembered>,
}

impl Witness {
    pub(super) fn open(data: Option<&Path>) -> Result<Self> {
        let file = data.map(|data| data.join(FILE));
        let text = file.as_ref().filter(|file| file.exists()).map(fs::read_to_string).transpose()?;
        let remembered = text.as_deref().map(read).transpose().with_context(|| {
            format!("{}: remove it if it is no longer true", file.clone().unwrap_or_default().display())
        })?;
        Ok(Self { file, remembered })
    }

    /// Holds etcd against what is remembered, tells every namespace when it was restored, and remembers it as it is.
    pub(super) async fn look(&mut self, admin: &Admin) -> Result<()> {
        // An etcd that is away is the sidecars' to tell of.
        let Ok(looked) = admin.look_after(self.remembered.as_ref()).await else { return Ok(()) };
        if self.remembered == Some(looked.remember) {
            return Ok(());
        }
        self.remembered = Some(looked.remember);
        if let Some(file) = &self.file {
            let new = file.with_extension("new");
            fs::write(&new, written(&looked.remember))?;
            fs::rename(new, file)?;
        }
        Ok(())
    }
}

/// Waits until a namespace's epoch was raised, if it must be, and says so meanwhile.
pub(super) async fn raised(admin: &Admin, url: &str, namespace: &str) -> Result<()> {
    let mut said = false;
    while let Some(lost) = admin.timeline(namespace).await?.lost {
        if !said {
            let (endpoints, namespace) = (vec![url.to_owned()], namespace.to_owned());
            println!("restored  {}", Restored { why: lost.why, endpoints, namespace });
            said = true;
        }
        sleep(AGAIN).await;
    }
    Ok(())
}

fn written(Remembered { cluster, revision, .. }: &Remembered) -> String {
    json!({ "cluster": format!("{cluster:x}"), "revision": revision }).to_string()
}

fn read(text: &str) -> Result<Remembered> {
    let value: Value = serde_json::from_str(text)?;
    let cluster = value["cluster"].as_str().and_then(|cluster| u64::from_str_radix(cluster, 16).ok());
    let revision = value["revision"].as_i64();
    let (cluster, revision) = cluster.zip(revision).context("it must hold a cluster and a revision")?;
    Ok(Remembered { epoch: None, cluster, revision, offset: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let remembered =
            Remembered { epoch: None, cluster: 0xcdf8_181a_8c3c_7fb1, revision: 4_711, offset: 0 };
        assert_eq!(read(&written(&remembered)).unwrap(), remembered);
        for wrong in ["", "{}", r#"{"cluster":"x","revision":1}"#, r#"{"cluster":"a"}"#] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
