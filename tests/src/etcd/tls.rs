//! Certificates of an etcd that asks for them.

use anyhow::Result;
use tempfile::TempDir;

use crate::kube::pki::{Authority, Identity};

#[derive(Debug)]
pub(super) struct Pki {
    pub(super) authority: String,
    pub(super) client: Identity,
}

impl Pki {
    pub(super) fn write(folder: &TempDir) -> Result<Self> {
        let authority = Authority::new()?;
        let server = authority.server()?;
        let client = authority.user("concordat", None)?;
        for (name, text) in [
            ("ca.pem", &authority.certificate),
            ("server.pem", &server.certificate),
            ("server.key", &server.key),
        ] {
            std::fs::write(folder.path().join(name), text)?;
        }
        Ok(Self { authority: authority.certificate, client })
    }
}
