//! Certificates as they are in their files now: they are renewed there while the process runs.

use std::{fs, path::Path};

use etcd_client::{Certificate, Identity, TlsOptions};

use crate::{ConnectError, Tls};

/// What the files of a [`Tls`] hold, PEM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Certificates {
    ca: Option<Vec<u8>>,
    /// A certificate and its key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Certificates {
    /// Reads the files. They are small and, in a pod, in memory: nothing else need go on meanwhile.
    ///
    /// # Errors
    /// [`ConnectError::File`]
    pub(crate) fn read(tls: &Tls) -> Result<Self, ConnectError> {
        let identity = match &tls.identity {
            Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
            None => None,
        };
        Ok(Self { ca: tls.ca.as_deref().map(read).transpose()?, identity })
    }

    /// As the client takes them. A certificate that is not the key's is refused when a member is dialled: that is how a
    /// pair shows that was read while it was replaced.
    pub(crate) fn options(&self, server_name: Option<&str>) -> TlsOptions {
        let mut options = TlsOptions::new();
        if let Some(ca) = &self.ca {
            options = options.ca_certificate(Certificate::from_pem(ca));
        }
        if let Some((certificate, key)) = &self.identity {
            options = options.identity(Identity::from_pem(certificate, key));
        }
        match server_name {
            Some(name) => options.domain_name(name),
            None => options,
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    fs::read(path).map_err(|source| ConnectError::File { path: path.to_owned(), source })
}
