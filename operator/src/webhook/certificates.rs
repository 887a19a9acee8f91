//! The certificate that the webhook shows, exchanged while it serves.

use std::{fs, path::Path, sync::Arc};

use parking_lot::RwLock;
use rustls::{
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::pki::{Certificate, Error, Issued};

/// The certificate that is shown to whoever connects next; none at first.
#[derive(Debug, Default)]
pub struct Certificates {
    shown: RwLock<Option<Arc<CertifiedKey>>>,
}

impl Certificates {
    /// Shows another certificate from now on.
    ///
    /// # Errors
    /// [`Error::Read`] when it is none, or not the key's; then the last one stays.
    pub fn show(&self, issued: &Issued) -> Result<(), Error> {
        let wrong = |why: String| Error::Read(format!("the webhook's certificate cannot be used: {why}"));
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(issued.certificate.as_bytes()).collect();
        let chain = chain.map_err(|error| wrong(error.to_string()))?;
        let key =
            PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let key = CertifiedKey::from_der(chain, key, &default_provider())
            .map_err(|error| wrong(error.to_string()))?;
        *self.shown.write() = Some(Arc::new(key));
        Ok(())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown.read().clone()
    }
}

/// Reads `tls.crt` and `tls.key` of a folder, as cert-manager and the kubelet write them.
///
/// # Errors
/// [`Error::Read`], also for a certificate that cannot be read.
pub fn in_folder(folder: &Path) -> Result<(Issued, Certificate), Error> {
    let file = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(|error| Error::Read(format!("{}: {error}", path.display())))
    };
    let issued = Issued { certificate: file("tls.crt")?, key: file("tls.key")? };
    let certificate = Certificate::read(&issued.certificate)?;
    Ok((issued, certificate))
}
