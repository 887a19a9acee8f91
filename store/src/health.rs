//! How etcd is, for those who look after it.

use crate::{Admin, CommitError, Space, read::unanswered};

/// What the member of etcd that was asked tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Its version, as in `3.7.2`.
    pub version: String,
    /// Its database.
    pub space: Space,
    /// What it complains of: alarms, no leader.
    pub errors: Vec<String>,
}

impl Admin {
    /// How etcd is, as the member tells that is asked at present.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when etcd does not answer.
    pub async fn health(&self) -> Result<Health, CommitError> {
        let status = self.exchange("").status().await.map_err(unanswered)?;
        Ok(Health {
            version: status.version().to_owned(),
            space: Space::of(&status),
            errors: status.errors().to_vec(),
        })
    }
}
