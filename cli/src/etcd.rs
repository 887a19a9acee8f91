//! Which etcd a command asks, and as whom, when flags say so.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use concordat_store::{AdminConfig, Tls};

use crate::ETCD_PORT;

/// The flags of it, named as the sidecar's.
#[derive(clap::Args)]
#[command(next_help_heading = "etcd")]
pub(crate) struct Etcd {
    /// etcd's addresses, separated by commas [default: that of the kubeconfig's cluster, else where `concordat dev` has it]
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

/// An etcd's addresses, and what shows it who asks.
pub(crate) struct Endpoint {
    /// For a program that looks after it.
    pub(crate) config: AdminConfig,
    /// The same as flags of a sidecar.
    pub(crate) flags: Vec<OsString>,
}

impl Etcd {
    /// Whether the flags say where it is.
    pub(crate) fn is_given(&self) -> bool {
        self.endpoints.is_some()
    }

    /// Where it is by these flags, else where `concordat dev` has it.
    pub(crate) fn endpoint(self) -> Result<Endpoint> {
        let endpoints: Vec<String> = match &self.endpoints {
            Some(urls) => urls.split(',').map(str::to_owned).collect(),
            None => vec![format!("http://127.0.0.1:{ETCD_PORT}")],
        };
        let tls = endpoints.iter().any(|endpoint| endpoint.starts_with("https://")).then(|| Tls {
            ca: self.ca_file,
            identity: self.cert_file.zip(self.key_file),
            server_name: self.server_name,
        });
        Endpoint::of(endpoints, tls, self.user.zip(self.password_file))
    }
}

impl Endpoint {
    /// An etcd whose user, if there is one, is given with the file of its password.
    pub(crate) fn of(
        endpoints: Vec<String>,
        tls: Option<Tls>,
        user: Option<(String, PathBuf)>,
    ) -> Result<Self> {
        let mut flags = Vec::new();
        let mut flag = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            flags.extend([OsString::from(format!("--etcd-{name}")), value.as_ref().to_owned()]);
        };
        flag("endpoints", &endpoints.join(","));
        if let Some(Tls { ca, identity, server_name }) = &tls {
            if let Some(ca) = ca {
                flag("ca-file", ca);
            }
            if let Some((certificate, key)) = identity {
                flag("cert-file", certificate);
                flag("key-file", key);
            }
            if let Some(name) = server_name {
                flag("server-name", name);
            }
        }
        if let Some((name, file)) = &user {
            flag("user", name);
            flag("password-file", file);
        }
        let user = user.map(|(name, file)| Ok::<_, anyhow::Error>((name, password(&file)?))).transpose()?;
        Ok(Self { config: AdminConfig { endpoints, tls, user, ..AdminConfig::default() }, flags })
    }
}

fn password(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("--etcd-password-file: {} cannot be read", file.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
