//! Certificates of an etcd that asks for them.

use std::{fs, path::Path};

use anyhow::Result;

use crate::kube::pki::{Authority, Identity};

#[derive(Debug)]
pub(super) struct Pki {
    pub(super) authority: Authority,
    /// Of whoever may do everything.
    pub(super) client: Identity,
}

impl Pki {
    /// A new authority, with what members read of it when they start.
    pub(super) fn write(folder: &Path) -> Result<Self> {
        let authority = Authority::new()?;
        let server = authority.server()?;
        let client = authority.user("root", None)?;
        for (name, text) in [
            ("ca.pem", &authority.certificate),
            ("server.pem", &server.certificate),
            ("server.key", &server.key),
        ] {
            fs::write(folder.join(name), text)?;
        }
        Ok(Self { authority, client })
    }

    pub(super) fn issue(&self, user: &str, folder: &Path) -> Result<()> {
        let Identity { certificate, key } = self.authority.user(user, None)?;
        for (name, text) in
            [("ca.crt", &self.authority.certificate), ("tls.crt", &certificate), ("tls.key", &key)]
        {
            fs::write(folder.join(name), text)?;
        }
        Ok(())
    }
}
