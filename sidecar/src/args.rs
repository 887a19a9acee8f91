//! Configuration: flags, and for each the variable `CONCORDAT_*` of the same name; all of it is checked, and refused with
//! what to change, before anything is opened.
//!
//! A variable nobody knows is not refused: for a Service named `concordat` Kubernetes puts `CONCORDAT_PORT` and the like
//! into every pod. That is also why no flag is named so.

mod otlp;
mod values;

use std::{ffi::OsString, fs, net::IpAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Args as _, Command, FromArgMatches, Parser, ValueEnum};
use concordat_protocol::App;
use concordat_store::Tls;

pub use self::otlp::Traces;
use self::values::{Endpoints, Filter, Label};
use crate::{
    api::{duration::GoDuration, guard::Token},
    token,
};

const ENV_PREFIX: &str = "CONCORDAT_";

/// What the sidecar is told. The fields are the flags of `concordat-sidecar --help`.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "concordat-sidecar",
    version,
    about = "Concordat's sidecar: the localhost API of an app's pod"
)]
struct Args {
    /// The pod's namespace
    #[arg(long, value_name = "NAME")]
    namespace: Label,
    /// The app whose part it takes in transactions
    #[arg(long, value_name = "ID")]
    app: Label,
    /// The app's port on 127.0.0.1, for callbacks; without it the app takes no part in transactions
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    app_port: Option<u16>,
    /// The pod's name, for people [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
    /// Serves the API and takes part in nothing: adopts nothing, and is given no work
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    guest: bool,

    /// Port of the API on 127.0.0.1; 0 for any that is free
    #[arg(long, value_name = "PORT", default_value_t = 4700)]
    api_port: u16,
    /// Port of /live, /ready and /metrics; 0 for any that is free
    #[arg(long, value_name = "PORT", default_value_t = 4701)]
    admin_port: u16,
    /// Address of /live, /ready and /metrics
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    admin_address: IpAddr,
    /// File whose contents every request must show as Concordat-Token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File to which such a token is written at the start, unless an earlier start of the same pod wrote one; in a folder
    /// that nobody but the app's containers shares
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    new_token_file: Option<PathBuf>,

    /// Whether apps written for Dapr's lock API are served, on Dapr's own ports
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    dapr: bool,
    /// Port of Dapr's HTTP API on 127.0.0.1; 0 for any that is free
    #[arg(long, value_name = "PORT", default_value_t = 3500)]
    dapr_http_port: u16,
    /// Port of Dapr's gRPC API on 127.0.0.1; 0 for any that is free
    #[arg(long, value_name = "PORT", default_value_t = 50001)]
    dapr_grpc_port: u16,

    /// Addresses of etcd, separated by commas
    #[arg(long, value_name = "URL,URL", default_value = "http://127.0.0.1:2379")]
    etcd_endpoints: Endpoints,
    /// Authority that signed etcd's certificate, PEM
    #[arg(long, value_name = "FILE")]
    etcd_ca_file: Option<PathBuf>,
    /// Client certificate, PEM
    #[arg(long, value_name = "FILE")]
    etcd_cert_file: Option<PathBuf>,
    /// Key of the client certificate, PEM
    #[arg(long, value_name = "FILE")]
    etcd_key_file: Option<PathBuf>,
    /// Name that etcd's certificate bears, if not its host's
    #[arg(long, value_name = "NAME")]
    etcd_server_name: Option<String>,
    /// etcd's user
    #[arg(long, value_name = "NAME")]
    etcd_user: Option<String>,
    /// File with the password of etcd's user
    #[arg(long, value_name = "FILE")]
    etcd_password_file: Option<PathBuf>,
    /// Whether it ends unless etcd keeps its user from everything outside its namespace, which it tries at the start
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    isolated: bool,

    /// How long etcd keeps the session without hearing from the sidecar, 3s to 10m
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    session_ttl: GoDuration,
    /// How long what is under way may take after SIGTERM, at most 10m
    #[arg(long, value_name = "DURATION", default_value = "20s")]
    drain_grace: GoDuration,
    /// How logs are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Which logs are written: a level, or directives as in `info,concordat_store=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: Filter,

    #[command(flatten)]
    otlp: otlp::Otlp,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON document a line.
    Json,
    /// For people.
    Text,
}

/// Where apps written for Dapr look for it on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DaprPorts {
    /// Of the HTTP API.
    pub http: u16,
    /// Of the gRPC API.
    pub grpc: u16,
}

/// A checked configuration.
#[derive(Clone)]
pub struct Settings {
    /// The pod's namespace.
    pub namespace: String,
    /// The app whose part it takes.
    pub app: App,
    /// The app's port on 127.0.0.1, if it takes part in transactions.
    pub app_port: Option<u16>,
    /// The pod's name.
    pub pod: String,
    /// Whether it takes part in nothing: it is there for a person who looks, and gone at once.
    pub guest: bool,
    /// Port of the API on 127.0.0.1.
    pub api_port: u16,
    /// Where `/live`, `/ready` and `/metrics` are served.
    pub admin: (IpAddr, u16),
    /// What every request must show.
    pub token: Option<Token>,
    /// Where Dapr's lock API is served on 127.0.0.1, if it is.
    pub dapr: Option<DaprPorts>,
    /// etcd's addresses.
    pub etcd_endpoints: Vec<String>,
    /// Certificates for etcd.
    pub etcd_tls: Option<Tls>,
    /// etcd's user and password.
    pub etcd_user: Option<(String, String)>,
    /// Whether it is proven that etcd keeps it in its namespace.
    pub isolated: bool,
    /// Time to live of the session.
    pub session_ttl: Duration,
    /// Time to drain after SIGTERM.
    pub drain_grace: Duration,
    /// How logs are written.
    pub log_format: LogFormat,
    /// Which logs are written.
    pub log: String,
    /// Where traces go, if anywhere.
    pub traces: Option<Traces>,
}

/// Why the sidecar does not start, or has only printed what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A flag or variable is wrong, `--help` or `--version` was given.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    /// A value that is well-formed cannot be used.
    #[error("{flag} ({variable}): {why}", variable = variable(flag))]
    Value {
        /// The flag, without its dashes.
        flag: &'static str,
        /// What to change.
        why: String,
    },
    /// One of OpenTelemetry's variables cannot be used.
    #[error("{name}: {why}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// What to change.
        why: String,
    },
}

/// Reads flags, then for each that is not given its variable; then the files that they name.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Settings, Refused> {
    let mut command = command();
    let mut args = args.into_iter();
    let mut line: Vec<OsString> = vec![args.next().unwrap_or_else(|| "concordat-sidecar".into())];
    // Variables come first, as if they were flags: a flag of the command line then overrides them.
    for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
        if let Some(value) = env(&variable(flag)).filter(|value| !value.is_empty()) {
            line.push(format!("--{flag}={value}").into());
        }
    }
    line.extend(args);
    let matches = command.try_get_matches_from_mut(line)?;
    let args = Args::from_arg_matches(&matches)?;
    check(args, env)
}

fn command() -> Command {
    Args::augment_args(Command::new("concordat-sidecar"))
        .version(env!("CARGO_PKG_VERSION"))
        .args_override_self(true)
        .mut_args(|arg| {
            let Some(variable) = arg.get_long().map(variable) else { return arg };
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.help(format!("{help} [env: {variable}]"))
        })
}

fn variable(flag: &str) -> String {
    format!("{ENV_PREFIX}{}", flag.to_uppercase().replace('-', "_"))
}

fn check(args: Args, env: impl Fn(&str) -> Option<String>) -> Result<Settings, Refused> {
    bounded("session-ttl", args.session_ttl, 3_000)?;
    bounded("drain-grace", args.drain_grace, 0)?;
    ports_differ(&args)?;
    let Some(pod) = args.pod.clone().or_else(|| env("HOSTNAME")).filter(|pod| !pod.is_empty()) else {
        return refuse("pod", "must be given where HOSTNAME is not set");
    };
    let (etcd_tls, etcd_user) = (tls(&args)?, user(&args)?);
    if args.isolated && etcd_user.is_none() && etcd_tls.as_ref().is_none_or(|tls| tls.identity.is_none()) {
        return refuse(
            "isolated",
            "etcd must know who it is: give --etcd-cert-file and --etcd-key-file, or --etcd-user",
        );
    }
    let traces = otlp::traces(&args.otlp, &env)?;
    // Last of all: nothing is written where anything is wrong.
    let token = match (&args.token_file, &args.new_token_file) {
        (Some(file), _) => Some(secret("token-file", file)?),
        (None, Some(file)) => match token::keep_or_make(file) {
            Ok(token) => Some(token),
            Err(error) => {
                return refuse("new-token-file", format!("cannot write {}: {error}", file.display()));
            }
        },
        (None, None) => None,
    };
    Ok(Settings {
        etcd_tls,
        etcd_user,
        isolated: args.isolated,
        namespace: args.namespace.0,
        app: args.app.0.into(),
        app_port: args.app_port,
        pod,
        guest: args.guest,
        api_port: args.api_port,
        admin: (args.admin_address, args.admin_port),
        token: token.as_deref().map(Token::new),
        dapr: args.dapr.then_some(DaprPorts { http: args.dapr_http_port, grpc: args.dapr_grpc_port }),
        etcd_endpoints: args.etcd_endpoints.0,
        session_ttl: args.session_ttl.into(),
        drain_grace: args.drain_grace.into(),
        log_format: args.log_format,
        log: args.log.0,
        traces,
    })
}

fn refuse<T>(flag: &'static str, why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Value { flag, why: why.into() })
}

/// Refuses a port that an earlier one has.
fn ports_differ(args: &Args) -> Result<(), Refused> {
    let mut ports = vec![("api-port", args.api_port), ("admin-port", args.admin_port)];
    if args.dapr {
        ports.extend([("dapr-http-port", args.dapr_http_port), ("dapr-grpc-port", args.dapr_grpc_port)]);
    }
    for (at, (flag, port)) in ports.iter().enumerate() {
        if let Some((other, _)) = ports.iter().take(at).find(|(_, other)| *port != 0 && other == port) {
            return refuse(flag, format!("must differ from --{other}"));
        }
    }
    Ok(())
}

fn bounded(flag: &'static str, span: GoDuration, least: u64) -> Result<(), Refused> {
    const MOST: u64 = 600_000;
    if (least..=MOST).contains(&span.0) {
        return Ok(());
    }
    refuse(flag, format!("must be between {} and {}, not {span}", GoDuration(least), GoDuration(MOST)))
}

fn tls(args: &Args) -> Result<Option<Tls>, Refused> {
    let secure = args.etcd_endpoints.0.iter().all(|endpoint| endpoint.starts_with("https://"));
    let files = [
        ("etcd-ca-file", &args.etcd_ca_file),
        ("etcd-cert-file", &args.etcd_cert_file),
        ("etcd-key-file", &args.etcd_key_file),
    ];
    for (flag, file) in files.iter().filter_map(|(flag, file)| Some((*flag, file.as_ref()?))) {
        if !secure {
            return refuse(flag, "is of no use with http:// endpoints: write https:// in --etcd-endpoints");
        }
        match fs::read_to_string(file) {
            Ok(text) if text.contains("-----BEGIN ") => {}
            Ok(_) => return refuse(flag, format!("{} holds no PEM block", file.display())),
            Err(error) => return refuse(flag, format!("cannot read {}: {error}", file.display())),
        }
    }
    if !secure {
        return Ok(None);
    }
    let identity = match (&args.etcd_cert_file, &args.etcd_key_file) {
        (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
        (None, None) => None,
        (Some(_), None) => return refuse("etcd-key-file", "must be given with --etcd-cert-file"),
        (None, Some(_)) => return refuse("etcd-cert-file", "must be given with --etcd-key-file"),
    };
    Ok(Some(Tls { ca: args.etcd_ca_file.clone(), identity, server_name: args.etcd_server_name.clone() }))
}

fn user(args: &Args) -> Result<Option<(String, String)>, Refused> {
    match (&args.etcd_user, &args.etcd_password_file) {
        (Some(user), Some(file)) => Ok(Some((user.clone(), secret("etcd-password-file", file)?))),
        (None, None) => Ok(None),
        (Some(_), None) => refuse("etcd-password-file", "must be given with --etcd-user"),
        (None, Some(_)) => refuse("etcd-user", "must be given with --etcd-password-file"),
    }
}

/// A file's text without the line's end that editors and `echo` leave.
fn secret(flag: &'static str, file: &PathBuf) -> Result<String, Refused> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return refuse(flag, format!("cannot read {}: {error}", file.display())),
    };
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return refuse(flag, format!("{} is empty", file.display()));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests;
