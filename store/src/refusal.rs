//! What an error of etcd's says about a request: that nothing was applied, or nothing at all.

use etcd_client::Error;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A put names a lease that has ended; nothing was applied.
    LeaseNotFound,
    /// A key is put twice, or put and deleted; nothing was applied.
    DuplicateKey,
    /// A revision that is read is compacted; nothing was applied.
    Compacted,
    /// It has too many bytes or operations; nothing was applied.
    TooLarge,
    /// etcd has no space; nothing was applied, unless it took the last of it.
    NoSpace,
    /// etcd's user may not do this; nothing was applied.
    Denied,
    /// Permissions, anyone's, were changed while it was on its way; nothing was applied.
    Stale,
    /// It never left this process; nothing was applied.
    NotSent(String),
    /// It may have been applied, or still be.
    Unknown(String),
}

impl Refusal {
    /// From an error of etcd's client: refused only if the message is one of those that etcd gives before it applies
    /// anything (`api/v3rpc/rpctypes/error.go`), or that there is no space.
    pub fn of(error: &Error) -> Self {
        let Error::GRpcStatus(status) = error else {
            return Self::Unknown(error.to_string());
        };
        if never_sent(status) {
            return Self::NotSent(status.message().to_owned());
        }
        match status.message() {
            "etcdserver: requested lease not found" => Self::LeaseNotFound,
            "etcdserver: duplicate key given in txn request" => Self::DuplicateKey,
            "etcdserver: mvcc: required revision has been compacted" => Self::Compacted,
            "etcdserver: request is too large" | "etcdserver: too many operations in txn request" => {
                Self::TooLarge
            }
            "etcdserver: mvcc: database space exceeded" => Self::NoSpace,
            "etcdserver: permission denied" => Self::Denied,
            "etcdserver: revision of auth store is old" => Self::Stale,
            message => Self::Unknown(message.to_owned()),
        }
    }
}

/// Whether no connection could be made for the request.
fn never_sent(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
