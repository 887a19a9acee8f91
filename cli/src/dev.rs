//! `concordat dev`: a real etcd, the manifests a cluster would get, and a sidecar process for each app.

mod etcd;
mod manifests;
mod objects;
mod sidecars;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use concordat_store::{Admin, AdminConfig};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    etcd::Etcd,
    manifests::Folder,
    objects::Objects,
    sidecars::{Sidecars, Spec},
};

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

/// Runs the sidecar in this process, to the end of whoever started it.
pub(crate) fn sidecar(arguments: Vec<OsString>) -> ExitCode {
    // `dev` may be killed without being able to stop what it started.
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
    {
        eprintln!("concordat sidecar: it will outlive `concordat dev` if that is killed: {error}");
    }
    let arguments = std::iter::once("concordat sidecar".into()).chain(arguments);
    concordat_sidecar::run::main(arguments, |name| std::env::var(name).ok())
}

/// One thread, as everything here waits for something.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn serve(options: Options) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut folder = Folder::watch(&options.manifests)?;
    sidecars::check(&options.sidecars)?;

    let mut own = match &options.etcd {
        Some(_) => None,
        None => Some(Etcd::start(options.data.clone()).await?),
    };
    let url = match (&options.etcd, &own) {
        (Some(url), _) => url.clone(),
        (None, Some(own)) => own.url().to_owned(),
        (None, None) => bail!("no etcd"),
    };
    let admin = Admin::connect(AdminConfig { endpoints: vec![url.clone()], ..AdminConfig::default() })
        .await
        .with_context(|| format!("etcd at {url}"))?;
    println!("etcd      {url}{}", own.as_ref().map_or(String::new(), Etcd::described));

    let mut objects = Objects::begin(admin, &options.namespace).await?;
    objects.apply(folder.read()?).await?;
    let mut sidecars = Sidecars::start(&options.sidecars, &options.namespace, &url).await?;
    println!("ready     look with: concordat get locks --etcd {url}; stop with Ctrl-C");

    let ended = loop {
        tokio::select! {
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            changed = folder.changed() => match changed.and_then(|()| folder.read()) {
                Ok(found) => objects.apply(found).await?,
                Err(error) => eprintln!("manifests {error:#}"),
            },
            () = objects.again() => objects.collect().await?,
            ended = sidecars.ended() => println!("sidecar   {ended}; it is not started again"),
            status = Etcd::ended(&mut own) => break status.and_then(|status| bail!("etcd ended with {status}")),
        }
    };
    println!("stopping");
    sidecars.stop().await;
    if let Some(own) = own {
        own.stop().await;
    }
    ended
}
