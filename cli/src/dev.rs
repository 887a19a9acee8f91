//! `concordat dev`: a real etcd, the manifests a cluster would get, and a sidecar process for each app.

mod etcd;
mod manifests;
mod objects;
mod schema;
mod sidecars;
mod witness;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use concordat_store::{Admin, AdminConfig};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::interval,
};

use self::{
    etcd::Etcd,
    manifests::Folder,
    objects::Objects,
    sidecars::{Sidecars, Spec},
    witness::Witness,
};
use crate::guard;

/// What `dev` is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Folder of manifests, *.yaml, *.yml or *.json; its changes are followed
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// A sidecar to run, the port of its API, and that of the app it serves; as often as there are apps
    #[arg(long = "sidecar", value_name = "APP:SIDECAR_PORT:APP_PORT")]
    sidecars: Vec<Spec>,
    /// Folder in which etcd keeps its data [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR", conflicts_with = "etcd")]
    data: Option<PathBuf>,
    /// An etcd that runs already, instead of one of our own
    #[arg(long, value_name = "URL")]
    etcd: Option<String>,
    /// Namespace of the objects
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    namespace: String,
}

/// Runs until Ctrl-C or SIGTERM, then stops all that it started.
pub(crate) fn run(options: Options) -> Result<()> {
    runtime()?.block_on(serve(options))
}

/// Runs the sidecar in this process, until `parent` ends at the latest.
pub(crate) fn sidecar(parent: i32, arguments: Vec<OsString>) -> ExitCode {
    // A guest lets go of what it holds. With a `dev` that was killed its etcd ends, and another's may come to listen in
    // its place: a sidecar that lived on would tell that one that it is older than it was.
    let guest = arguments.iter().any(|argument| argument == "--guest");
    let signal = if guest { guard::Signal::TERM } else { guard::Signal::KILL };
    if let Err(error) = guard::end_with(parent, signal) {
        eprintln!("concordat sidecar: {error:#}");
        return ExitCode::FAILURE;
    }
    let arguments = std::iter::once("concordat sidecar".into()).chain(arguments);
    concordat_sidecar::run::main(arguments, |name| std::env::var(name).ok())
}

/// Becomes the embedded etcd, until `parent` ends at the latest.
pub(crate) fn become_etcd(parent: i32, arguments: Vec<OsString>) -> Result<()> {
    guard::end_with(parent, guard::Signal::TERM)?;
    etcd::exec(arguments)
}

/// One thread, as everything here waits for something.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn serve(options: Options) -> Result<()> {
    let mut end = Ends::listen()?;
    let mut folder = Folder::watch(&options.manifests, &options.namespace)?;
    sidecars::check(&options.sidecars)?;

    let mut own = match &options.etcd {
        Some(_) => None,
        None => tokio::select! {
            () = end.signal() => return Ok(()),
            started = Etcd::start(options.data.clone()) => Some(started?),
        },
    };
    let url = match (&options.etcd, &own) {
        (Some(url), _) => url.clone(),
        (None, Some(own)) => own.url().to_owned(),
        (None, None) => bail!("no etcd"),
    };
    let mut sidecars = Sidecars::default();
    let ended = tokio::select! {
        () = end.signal() => Ok(()),
        ended = follow(&options, &url, &mut folder, &mut own, &mut sidecars) => ended,
    };
    println!("stopping");
    sidecars.stop().await;
    if let Some(own) = own {
        own.stop().await;
    }
    ended
}

/// Brings everything up, then follows the folder until something ends that should not.
async fn follow(
    options: &Options,
    url: &str,
    folder: &mut Folder,
    own: &mut Option<Etcd>,
    sidecars: &mut Sidecars,
) -> Result<()> {
    let admin = Admin::connect(AdminConfig { endpoints: vec![url.to_owned()], ..AdminConfig::default() })
        .await
        .with_context(|| format!("etcd at {url}"))?;
    let mut witness = Witness::open(options.data.as_deref())?;
    witness.look(&admin).await?;
    println!("etcd      {url}{}", own.as_ref().map_or(String::new(), Etcd::described));
    witness::raised(&admin, url, &options.namespace).await?;
    let mut objects = Objects::begin(admin.clone(), &options.namespace).await?;
    objects.follow(folder).await?;
    sidecars.start(&options.sidecars, &options.namespace, url).await?;
    println!("ready     look with: concordat get locks --etcd {url}; stop with Ctrl-C");
    let mut looks = interval(witness::EVERY);
    loop {
        tokio::select! {
            _ = looks.tick() => witness.look(&admin).await?,
            changed = folder.changed() => {
                changed?;
                objects.follow(folder).await?;
            }
            () = objects.again() => objects.follow(folder).await?,
            ended = sidecars.ended() => println!("sidecar   {ended}; it is not started again"),
            status = Etcd::ended(own) => bail!("etcd ended with {}", status?),
        }
    }
}

/// Ctrl-C, SIGTERM, and the end of the terminal.
struct Ends([Signal; 3]);

impl Ends {
    fn listen() -> Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn signal(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
