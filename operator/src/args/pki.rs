//! Flags of the operator's own certificates.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    args::{Args, refused},
    pki::keeper::{Etcd, Kept, Source, Webhook},
};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Certificates {
    /// Secret, in the namespace of the lease, of the authority that signs certificates; it is made if it is not there
    #[arg(long, env = "CONCORDAT_CA_SECRET", value_name = "NAME")]
    ca_secret: Option<String>,
    /// The authority's Secret is made and renewed by somebody else, cert-manager say: it is only read
    #[arg(long, env = "CONCORDAT_CA_GIVEN", requires = "ca_secret")]
    ca_given: bool,
    /// How long a next authority is trusted before it signs, and then the former one, when the annotation
    /// concordat.dev/distrust-before of the authority's Secret asks for a turn, from 10s to 7 days
    #[arg(long, env = "CONCORDAT_TURN_PAUSE", value_name = "DURATION", default_value = "10m", value_parser = pause)]
    turn_pause: Duration,
    /// headless Service and StatefulSet of etcd, whose certificates are made in the Secrets NAME-tls and NAME-root unless
    /// --etcd-cert-file or --ca-given says that somebody else makes them. Its members are started anew when `ca.crt` of
    /// NAME-tls changes
    #[arg(long, env = "CONCORDAT_ETCD_SERVICE", value_name = "NAME", requires = "ca_secret")]
    etcd_service: Option<String>,
    /// How many members that etcd has
    #[arg(long, env = "CONCORDAT_ETCD_REPLICAS", value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=9))]
    etcd_replicas: u16,
    /// Whether etcd, which trusts the authority, is told to know each namespace that uses Concordat as a user of its own
    #[arg(long, env = "CONCORDAT_IDENTITIES", requires = "ca_secret")]
    pub(crate) identities: bool,
    /// Folder, best in memory, where the operator keeps its own certificate for that etcd
    #[arg(long, env = "CONCORDAT_PKI_DIR", value_name = "FOLDER", default_value = "/run/concordat")]
    pki_dir: PathBuf,
}

impl Args {
    /// Where this operator keeps what it makes for itself to be known by etcd, if it does.
    pub(crate) fn own_identity(&self) -> Option<&Path> {
        let made = self.pki.etcd_service.is_some() && self.etcd_cert_file.is_none() && !self.is_ca_given();
        made.then_some(&self.pki.pki_dir)
    }

    fn is_ca_given(&self) -> bool {
        self.pki.ca_given || self.injection.webhook_cert_dir.is_some()
    }

    /// Which certificates are kept, in this namespace.
    pub(crate) fn kept(&self, namespace: &str) -> Result<Kept, clap::Error> {
        let pause = self.pki.turn_pause;
        let source = |secret| Source { secret, given: self.is_ca_given(), pause };
        let authority = self.pki.ca_secret.clone().map(source);
        let etcd = self.own_identity().zip(self.pki.etcd_service.clone()).map(|(folder, service)| Etcd {
            service,
            replicas: self.pki.etcd_replicas,
            folder: folder.to_owned(),
        });
        let flags = &self.injection;
        let webhook = match (flags.webhook_listen, &flags.webhook_cert_dir) {
            (None, _) => None,
            (Some(_), Some(folder)) => Some(Webhook::Folder(folder.clone())),
            (Some(_), None) if authority.is_none() => {
                return Err(refused("--webhook-listen: set --ca-secret or --webhook-cert-dir"));
            }
            (Some(_), None) => Some(Webhook::Issued {
                service: flags.webhook_service.clone(),
                configuration: flags.webhook_name.clone(),
            }),
        };
        let members = self.pki.etcd_service.clone();
        Ok(Kept { namespace: namespace.to_owned(), authority, etcd, members, webhook })
    }
}

fn pause(text: &str) -> Result<Duration, String> {
    let pause = Duration::from(text.parse::<concordat_crds::Duration>().map_err(|error| error.to_string())?);
    let [least, most] = [Duration::from_secs(10), Duration::from_hours(7 * 24)];
    if (least..=most).contains(&pause) { Ok(pause) } else { Err("set it from 10s to 168h".into()) }
}
