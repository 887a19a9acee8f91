//! Configuration: flags, and for each the variable `CONCORDAT_*` of the same name. All of it is checked, and refused
//! with what to change, before anything is started.

mod injection;
mod pki;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::http::Uri;
use clap::{CommandFactory, Parser, ValueEnum, error::ErrorKind};
use concordat_store::Tls;
use tracing_subscriber::EnvFilter;

use crate::task::Task;

/// Concordat's operator: brings custom resources to etcd and what happens there back into their status.
#[derive(Clone, Debug, Parser)]
#[command(name = "concordat-operator", version)]
pub struct Args {
    /// What is done once instead of looking after objects.
    #[command(subcommand)]
    pub task: Option<Task>,
    /// The only namespace whose objects it looks after [default: all]
    #[arg(long, env = "CONCORDAT_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
    /// Namespace of the lease by which replicas elect a leader [default: that of the kubeconfig or of the pod]
    #[arg(long, env = "CONCORDAT_LEASE_NAMESPACE", value_name = "NAME")]
    pub lease_namespace: Option<String>,
    /// Name of that lease
    #[arg(long, env = "CONCORDAT_LEASE_NAME", value_name = "NAME", default_value = "concordat-operator")]
    pub lease_name: String,
    /// How long other replicas wait for a leader that is not heard of, 1s to 5m, in whole seconds
    #[arg(long, env = "CONCORDAT_LEASE_DURATION", value_name = "DURATION", default_value = "15s", value_parser = lease_duration)]
    pub lease_duration: Duration,
    /// This replica among others: the pod's name
    #[arg(long, env = "CONCORDAT_POD", value_name = "NAME", default_value_t = host_name())]
    pub pod: String,
    /// Address of /live, /ready and /metrics; port 0 for any that is free
    #[arg(long, env = "CONCORDAT_ADMIN_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:4701")]
    pub admin_listen: SocketAddr,

    /// Addresses of Concordat's etcd, never the cluster's own, separated by commas
    #[arg(
        long,
        env = "CONCORDAT_ETCD_ENDPOINTS",
        value_name = "URL,URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379",
        value_parser = endpoint
    )]
    pub etcd_endpoints: Vec<String>,
    /// Authority that signed etcd's certificate, PEM
    #[arg(long, env = "CONCORDAT_ETCD_CA_FILE", value_name = "FILE", value_parser = readable)]
    pub etcd_ca_file: Option<PathBuf>,
    /// Client certificate, PEM
    #[arg(long, env = "CONCORDAT_ETCD_CERT_FILE", value_name = "FILE", value_parser = readable, requires = "etcd_key_file")]
    pub etcd_cert_file: Option<PathBuf>,
    /// Key of the client certificate, PEM
    #[arg(long, env = "CONCORDAT_ETCD_KEY_FILE", value_name = "FILE", value_parser = readable, requires = "etcd_cert_file")]
    pub etcd_key_file: Option<PathBuf>,
    /// Name that etcd's certificate bears, if not its host's
    #[arg(long, env = "CONCORDAT_ETCD_SERVER_NAME", value_name = "NAME")]
    pub etcd_server_name: Option<String>,
    /// etcd's user
    #[arg(long, env = "CONCORDAT_ETCD_USER", value_name = "NAME", requires = "etcd_password_file")]
    pub etcd_user: Option<String>,
    /// File with the password of etcd's user
    #[arg(long, env = "CONCORDAT_ETCD_PASSWORD_FILE", value_name = "FILE", value_parser = readable, requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) pki: pki::Certificates,
    #[command(flatten)]
    pub(crate) injection: injection::Injection,

    /// How logs are written
    #[arg(long, env = "CONCORDAT_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Which logs are written: a level, or directives as in `info,concordat_operator=debug`
    #[arg(long, env = "CONCORDAT_LOG", value_name = "FILTER", default_value = "info", value_parser = filter)]
    pub log: String,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON document a line.
    Json,
    /// For people.
    Text,
}

impl Args {
    /// Certificates for etcd, where its addresses are `https://`.
    pub fn etcd_tls(&self) -> Result<Option<Tls>, clap::Error> {
        let secure = self.etcd_endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
        if secure != 0 && secure != self.etcd_endpoints.len() {
            return Err(refused("--etcd-endpoints: either all are https:// or none is"));
        }
        let identity = self.etcd_cert_file.clone().zip(self.etcd_key_file.clone());
        if secure != 0
            && let Some(folder) = self.own_identity()
        {
            let [ca, certificate, key] = ["ca.crt", "tls.crt", "tls.key"].map(|name| folder.join(name));
            let identity = Some((certificate, key));
            return Ok(Some(Tls { ca: Some(ca), identity, server_name: self.etcd_server_name.clone() }));
        }
        if secure == 0 {
            return if self.etcd_ca_file.is_some() || identity.is_some() {
                Err(refused("certificates are of no use with http://: write https:// in --etcd-endpoints"))
            } else {
                Ok(None)
            };
        }
        Ok(Some(Tls { ca: self.etcd_ca_file.clone(), identity, server_name: self.etcd_server_name.clone() }))
    }

    /// etcd's user and password, without the end of the line that editors leave in the file.
    pub fn etcd_user(&self) -> Result<Option<(String, String)>, clap::Error> {
        let (Some(user), Some(file)) = (&self.etcd_user, &self.etcd_password_file) else { return Ok(None) };
        let password = fs::read_to_string(file).map_err(|error| {
            refused(format!("--etcd-password-file: cannot read {}: {error}", file.display()))
        })?;
        match password.trim_end_matches(['\r', '\n']) {
            "" => Err(refused(format!("--etcd-password-file: {} is empty", file.display()))),
            password => Ok(Some((user.clone(), password.to_owned()))),
        }
    }
}

fn refused(why: impl std::fmt::Display) -> clap::Error {
    Args::command().error(ErrorKind::ValueValidation, why)
}

fn endpoint(text: &str) -> Result<String, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    let plain = uri.path().len() <= 1 && uri.query().is_none();
    if matches!(uri.scheme_str(), Some("http" | "https")) && plain {
        Ok(text.to_owned())
    } else {
        Err("write it as in http://etcd-0:2379".into())
    }
}

fn readable(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    match fs::File::open(path) {
        Ok(_) => Ok(path.to_owned()),
        Err(error) => Err(format!("it cannot be read: {error}")),
    }
}

fn lease_duration(text: &str) -> Result<Duration, String> {
    let duration =
        Duration::from(text.parse::<concordat_crds::Duration>().map_err(|error| error.to_string())?);
    let whole = duration.subsec_nanos() == 0;
    if whole && (1..=300).contains(&duration.as_secs()) {
        Ok(duration)
    } else {
        Err("write whole seconds between 1s and 5m".into())
    }
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn host_name() -> String {
    std::env::var("HOSTNAME")
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "concordat-operator".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["concordat-operator"], args].concat())
    }

    #[test]
    fn the_definition_of_the_flags_holds_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.etcd_endpoints, ["http://127.0.0.1:2379"]);
        assert_eq!((args.namespace.as_deref(), args.lease_name.as_str()), (None, "concordat-operator"));
        assert_eq!((args.lease_duration, args.admin_listen.port()), (Duration::from_secs(15), 4701));
        assert_eq!((args.etcd_tls().unwrap(), args.etcd_user().unwrap()), (None, None));
    }

    #[test]
    fn every_flag_has_its_variable() {
        for arg in Args::command().get_arguments() {
            let Some(flag) = arg.get_long().filter(|flag| !["help", "version"].contains(flag)) else {
                continue;
            };
            let variable = format!("CONCORDAT_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(variable.as_str()));
        }
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_starts() {
        for (args, why) in [
            (&["--etcd-endpoints=etcd:2379"][..], "write it as in http://etcd-0:2379"),
            (&["--etcd-endpoints=http://a:1/x"], "write it as in http://etcd-0:2379"),
            (&["--etcd-endpoints="], "empty string"),
            (&["--lease-duration=0s"], "write whole seconds between 1s and 5m"),
            (&["--lease-duration=1500ms"], "write whole seconds between 1s and 5m"),
            (&["--lease-duration=15"], "is not a duration"),
            (&["--etcd-ca-file=/nowhere"], "it cannot be read"),
            (&["--etcd-user=a"], "--etcd-password-file <FILE>"),
            (&["--admin-listen=4701"], "invalid socket address"),
            (&["--log=a=b=c"], "invalid"),
            (&["--webhook-listen=8443"], "invalid socket address"),
            (&["--webhook-name=a", "--webhook-cert-dir=/a"], "cannot be used with"),
            (&["--etcd-service=a"], "--ca-secret <NAME>"),
            (&["--ca-given"], "--ca-secret <NAME>"),
            (&["--etcd-replicas=0"], "1..=9"),
            (&["--sidecar-pull-policy=always"], "IfNotPresent"),
            (&["--sidecar-resources={"], "EOF"),
            (&["--sidecar-log=a=b=c"], "invalid"),
            (&["--sidecar-etcd-endpoints=a:1"], "write it as in http://etcd-0:2379"),
            (&["--sidecar-otlp-endpoint=collector:4317"], "write it as in http://collector"),
            (&["--sidecar-otlp-endpoint=https://a:4317"], "through one in it"),
            (&["--sidecar-otlp-endpoint=http://a:4318/v1/traces"], "write it as in"),
            (&["--sidecar-otlp-endpoint=http://me@a:4317"], "write it as in"),
            (&["--sidecar-trace-ratio=1.1"], "a share between 0 and 1"),
            (&["--surprise"], "unexpected argument"),
        ] {
            let refusal = parse(args).unwrap_err().to_string();
            assert!(refusal.contains(why), "{args:?}: {refusal}");
        }
    }

    #[test]
    fn certificates_and_https_belong_together() {
        let file = format!("--etcd-ca-file={}", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        assert!(parse(&[&file]).unwrap().etcd_tls().is_err());
        assert!(parse(&["--etcd-endpoints=http://a,https://b"]).unwrap().etcd_tls().is_err());
        let tls =
            parse(&[&file, "--etcd-endpoints=https://a,https://b"]).unwrap().etcd_tls().unwrap().unwrap();
        assert!(tls.ca.is_some() && tls.identity.is_none());
    }

    #[test]
    fn what_somebody_else_makes_is_left_to_them() {
        let file = concat!("--etcd-cert-file=", env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let key = concat!("--etcd-key-file=", env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let all = [
            "--ca-secret=ca",
            "--etcd-service=etcd",
            "--etcd-endpoints=https://a",
            "--webhook-listen=[::]:1",
        ];
        for (more, given, etcd) in [
            (&[][..], false, true),
            (&["--ca-given"], true, false),
            (&["--webhook-cert-dir=/a"], true, false),
            (&[file, key], false, false),
        ] {
            let args = parse(&[&all, more].concat()).unwrap();
            let kept = args.kept("ns").unwrap();
            assert_eq!(kept.authority.as_ref().map(|source| source.given), Some(given), "{more:?}");
            assert_eq!((kept.etcd.is_some(), kept.webhook.is_some()), (etcd, true), "{more:?}");
            let identity = args.etcd_tls().unwrap().unwrap().identity.map(|(certificate, _)| certificate);
            assert_eq!(identity == Some("/run/concordat/tls.crt".into()), etcd, "{more:?}");
        }
        let refusal = parse(&["--webhook-listen=[::]:1"]).unwrap().kept("ns").unwrap_err().to_string();
        assert!(refusal.contains("set --ca-secret or --webhook-cert-dir"), "{refusal}");
    }
}
