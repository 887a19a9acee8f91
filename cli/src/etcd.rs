//! Which etcd a command asks, and as whom.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use concordat_store::{Admin, AdminConfig, Tls};

use crate::ETCD_PORT;

/// The flags of it, named as the sidecar's.
#[derive(clap::Args)]
pub(crate) struct Etcd {
    /// etcd's addresses, separated by commas [default: where `concordat dev` has it]
    #[arg(long = "etcd", value_name = "URL", env = "CONCORDAT_ETCD_ENDPOINTS")]
    endpoints: Option<String>,
    /// Authority that signed etcd's certificate, PEM
    #[arg(long = "etcd-ca-file", value_name = "FILE", env = "CONCORDAT_ETCD_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// Client certificate, PEM
    #[arg(
        long = "etcd-cert-file",
        value_name = "FILE",
        requires = "key_file",
        env = "CONCORDAT_ETCD_CERT_FILE"
    )]
    cert_file: Option<PathBuf>,
    /// Key of the client certificate, PEM
    #[arg(
        long = "etcd-key-file",
        value_name = "FILE",
        requires = "cert_file",
        env = "CONCORDAT_ETCD_KEY_FILE"
    )]
    key_file: Option<PathBuf>,
    /// Name that etcd's certificate bears, if not its host's
    #[arg(long = "etcd-server-name", value_name = "NAME", env = "CONCORDAT_ETCD_SERVER_NAME")]
    server_name: Option<String>,
    /// etcd's user
    #[arg(long = "etcd-user", value_name = "NAME", requires = "password_file", env = "CONCORDAT_ETCD_USER")]
    user: Option<String>,
    /// File with the password of etcd's user
    #[arg(
        long = "etcd-password-file",
        value_name = "FILE",
        requires = "user",
        env = "CONCORDAT_ETCD_PASSWORD_FILE"
    )]
    password_file: Option<PathBuf>,
}

impl Etcd {
    /// Connects to it.
    pub(crate) async fn connect(self) -> Result<Admin> {
        // Only fails when one is installed already: then there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let endpoints: Vec<String> = match &self.endpoints {
            Some(urls) => urls.split(',').map(str::to_owned).collect(),
            None => vec![format!("http://127.0.0.1:{ETCD_PORT}")],
        };
        let told = endpoints.join(",");
        let tls = endpoints.iter().any(|endpoint| endpoint.starts_with("https://")).then(|| Tls {
            ca: self.ca_file,
            identity: self.cert_file.zip(self.key_file),
            server_name: self.server_name,
        });
        let password = |file: PathBuf| {
            let text = fs::read_to_string(&file)
                .with_context(|| format!("--etcd-password-file: {} cannot be read", file.display()))?;
            Ok::<_, anyhow::Error>(text.trim_end_matches(['\r', '\n']).to_owned())
        };
        let password = self.password_file.map(password).transpose()?;
        let user = self.user.zip(password);
        Admin::connect(AdminConfig { endpoints, tls, user, ..AdminConfig::default() }).await.with_context(
            || format!("etcd at {told}: does `concordat dev` run? --etcd names another address"),
        )
    }
}
