//! The operator's own authority, and the certificates it signs: the webhook's, etcd's, and those by which etcd knows its
//! clients. All that decides is pure and is told the time; the authority lives in one Secret that the replicas share.
//!
//! | certificate | lives | is renewed | is in |
//! |---|---|---|---|
//! | the authority's | 10 years | a next one is trusted from two thirds, and signs from five sixths | Secret `--ca-secret` |
//! | any other | 30 days | at two thirds | a Secret; the webhook's in memory, one a replica |
//!
//! Ten days are left when a renewal is due: for so long the operator may be away. A next authority's being trusted and
//! its signing lie 20 months apart, or as long as `--turn-pause` says where somebody asked for the turn. etcd reads whom
//! to trust only when it starts: its members are started anew when that changes (`members`), and nobody signs before
//! they know him.

mod authority;
mod certificate;
pub mod keeper;
mod members;
pub mod secret;

pub use authority::{Asked, Authority, Issued, Request, Usage};
pub use certificate::{Certificate, Life};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be made.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// It could not be read.
    #[error("{0}")]
    Read(String),
    /// Its Secret, or what is to bear it, cannot be read or written.
    #[error("{what}: {why}")]
    Kubernetes {
        /// Which.
        what: String,
        /// Why.
        why: kube::Error,
    },
    /// Its Secret is somebody else's.
    #[error("Secret {0} was not made by the operator: delete it, or give the operator another name")]
    Foreign(String),
    /// Its Secret is to be made by somebody else, and is not there.
    #[error("Secret {0} is not there yet")]
    Awaited(String),
    /// It cannot be written where the operator keeps its own.
    #[error("{0}")]
    File(String),
}
