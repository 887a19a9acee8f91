//! What a store is told.

use std::{path::PathBuf, sync::Arc};

use concordat_protocol::{Millis, session, timeline::Remembered};

use crate::{
    batch::BatchRules,
    observer::{Observer, Silent},
};

/// How etcd is reached, as whom, and for how long.
#[derive(Clone)]
pub struct Config {
    /// `http://` or `https://` addresses of etcd's members; one of them is used at a time, the next one when it fails.
    pub endpoints: Vec<String>,
    /// The namespace whose keys are read and written.
    pub namespace: String,
    /// Certificates, for `https://`.
    pub tls: Option<Tls>,
    /// etcd's user and password, if it asks for them.
    pub user: Option<(String, String)>,
    /// Whether the wall around the namespace is proven before anything else: what this credential might do beyond is tried,
    /// and if any of it is allowed the store is not opened.
    pub isolated: bool,
    /// Time to live of the session's lease, milliseconds; etcd counts in whole seconds, at least 2.
    pub session_ttl: Millis,
    /// What this sidecar says of itself.
    pub session: session::Session,
    /// How long one request to etcd may take, milliseconds.
    pub request_timeout: Millis,
    /// How long a commit may stay unresolved before its caller is told so, milliseconds.
    pub resolve_timeout: Millis,
    /// What an earlier store of this process remembers ([`crate::Store::remembered`]): an etcd that has fallen behind it
    /// was restored.
    pub remembered: Option<Remembered>,
    /// The rules of the group commit: all of them on, but in a test that plants a bug.
    pub rules: BatchRules,
    /// Who is told of requests and batches.
    pub observer: Arc<dyn Observer>,
}

impl Config {
    /// The usual settings: a session of 10 s, requests of 5 s, no certificates, no user.
    pub fn new(
        endpoints: impl IntoIterator<Item = impl Into<String>>,
        namespace: impl Into<String>,
        session: session::Session,
    ) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            namespace: namespace.into(),
            tls: None,
            user: None,
            isolated: false,
            session_ttl: 10_000,
            session,
            request_timeout: 5_000,
            resolve_timeout: 15_000,
            remembered: None,
            rules: BatchRules::default(),
            observer: Arc::new(Silent),
        }
    }
}

/// Files with certificates in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authority that signed etcd's certificate; without it none is trusted.
    pub ca: Option<PathBuf>,
    /// The client's certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that etcd's certificate must bear, if it is not the host of the endpoint.
    pub server_name: Option<String>,
}
