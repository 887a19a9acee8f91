//! What can go wrong, in the three kinds that matter to a caller: it did not happen, it may have, it never will.

use std::fmt;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(String),
    /// A certificate or key cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No endpoint answers.
    #[error("no etcd answers at {endpoints}: {why}")]
    Unreachable {
        /// All endpoints that were tried.
        endpoints: String,
        /// What the last one met with.
        why: String,
    },
    /// etcd's version is unsafe for nested transactions.
    #[error("{0}")]
    Unsupported(#[from] crate::version::Unsupported),
    /// etcd lets this credential beyond its namespace, and [`crate::Config::isolated`] says that it must not.
    #[error("{0}")]
    NotIsolated(crate::NotIsolated),
    /// etcd was restored from a snapshot, and the namespace's epoch was not raised since.
    #[error("{0}")]
    Restored(Restored),
}

/// That etcd was restored from a snapshot: nothing is served in the namespace until its epoch is raised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// How it was noticed.
    pub why: String,
    /// etcd's addresses.
    pub endpoints: Vec<String>,
    /// The namespace.
    pub namespace: String,
}

impl std::error::Error for Restored {}

impl Restored {
    /// The command that raises the epoch. An etcd that asks for certificates is a cluster's: its addresses lead nowhere from
    /// where a person is, and the command finds it by the kubeconfig.
    pub fn command(&self) -> String {
        if self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            return format!("kubectl concordat epoch raise --namespace {}", self.namespace);
        }
        format!("concordat epoch raise --etcd {} --namespace {}", self.endpoints.join(","), self.namespace)
    }
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "etcd was restored from a snapshot ({}): nothing is served until this was run: {}",
            self.why,
            self.command()
        )
    }
}

/// Why a plan or a read has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// It was not applied and never will be.
    #[error("not applied: {0}")]
    NotApplied(String),
    /// It may have been applied, or still be.
    #[error("it is not known whether it was applied: {0}")]
    Unknown(String),
    /// It is too large for one transaction of etcd; it was not applied.
    #[error("too large for one commit: {size} {unit}, at most {limit}")]
    TooLarge {
        /// How large it is.
        size: usize,
        /// How large it may be.
        limit: usize,
        /// Of what.
        unit: &'static str,
    },
    /// The session it belongs to is over; it was not applied and never will be.
    #[error("not applied: the session has ended")]
    SessionEnded,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_works_from_where_a_person_is() {
        let of = |endpoint: &str| Restored {
            why: "etcd had revision 3 and is at 2".into(),
            endpoints: vec![endpoint.into()],
            namespace: "shop".into(),
        };
        let here = "concordat epoch raise --etcd http://127.0.0.1:2379 --namespace shop";
        assert_eq!(of("http://127.0.0.1:2379").command(), here);
        let there = "https://concordat-etcd-0.concordat-etcd.concordat-system.svc:2379";
        assert_eq!(of(there).command(), "kubectl concordat epoch raise --namespace shop");
    }
}
