//! From arguments to a running sidecar, and to its end.

use std::{ffi::OsString, io::IsTerminal, net::Ipv4Addr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use concordat_protocol::{Millis, session};
use concordat_store::{
    Config, ConnectError, Store,
    observer::{Counts, Observer, Purpose},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    admin::{self, Health},
    api,
    args::{self, LogFormat, Refused, Settings},
    callback::Callbacks,
    context::{Context, Identity, Parts},
    dapr::{self, Dapr},
    definitions::Definitions,
    engine::{lock::LockEngine, queue::QueueEngine, transaction::TransactionEngine},
    failpoint,
    metrics::Metrics,
    serve::serve,
    shutdown::{self, Signals},
};

/// EX_USAGE: the configuration must be changed; starting again will not help.
const BAD_CONFIGURATION: u8 = 64;
/// The wait between attempts to reach etcd at the start.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);

/// Runs the sidecar to its end. `env` reads a variable.
pub fn main(args: impl IntoIterator<Item = OsString>, env: impl Fn(&str) -> Option<String>) -> ExitCode {
    // Only fails when one is installed already: then there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = match args::parse(args, env) {
        Ok(settings) => settings,
        Err(Refused::Usage(said)) if !said.use_stderr() => {
            let _ = said.print();
            return ExitCode::SUCCESS;
        }
        Err(refused) => {
            eprintln!("{refused}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    failpoint::setup();
    log(&settings);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(run(settings))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log(settings: &Settings) {
    let filter = EnvFilter::try_new(&settings.log).unwrap_or_default();
    // A log that nobody reads any more must not end what is under way.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.log_internal_errors(false);
    match settings.log_format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
    }
}

async fn run(settings: Settings) -> Result<()> {
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let api = bind((Ipv4Addr::LOCALHOST, settings.api_port)).await?;
    let admin = bind(settings.admin).await?;
    let dapr = match settings.dapr {
        Some(ports) => Some((
            bind((Ipv4Addr::LOCALHOST, ports.http)).await?,
            bind((Ipv4Addr::LOCALHOST, ports.grpc)).await?,
        )),
        None => None,
    };
    let metrics = Arc::new(Metrics::default());
    count_panics(metrics.clone());

    let (stop, ending) = (CancellationToken::new(), CancellationToken::new());
    let health = Health::new(metrics.clone(), ending.clone());
    let admin = tokio::spawn(serve(admin, admin::router(health.clone()), stop.clone()));

    let store = tokio::select! {
        store = connect(&settings, &metrics) => store?,
        () = signals.recv() => return Ok(()),
    };
    let context = start(store, &settings, metrics);
    health.running(context.store.clone(), context.definitions.clone());
    tracing::info!(
        api = %api.local_addr()?,
        namespace = settings.namespace,
        app = %settings.app,
        session = %context.store.session().id,
        "serving"
    );
    let front = api::front(context.clone(), settings.token.clone()).into_service();
    let mut served = vec![tokio::spawn(serve(api, front, ending.clone()))];
    if let Some((http, grpc)) = dapr {
        tracing::info!(http = %http.local_addr()?, grpc = %grpc.local_addr()?, "serving Dapr's lock API");
        let dapr = Dapr::new(&context, settings.token);
        served.push(tokio::spawn(serve(http, dapr::http::router(dapr.clone()), ending.clone())));
        served.push(tokio::spawn(serve(grpc, dapr::grpc::router(dapr), ending.clone())));
    }

    signals.recv().await;
    tracing::info!(grace = ?settings.drain_grace, "ending");
    ending.cancel();
    let drained = async {
        shutdown::drain(&context).await;
        let _ = futures::future::join_all(served).await;
    };
    if tokio::time::timeout(settings.drain_grace, drained).await.is_err() {
        tracing::warn!("the grace is over: what is still under way is left to others");
    }
    shutdown::close(&context).await;
    stop.cancel();
    let _ = tokio::time::timeout(Duration::from_millis(100), admin).await;
    tracing::info!("ended");
    Ok(())
}

/// Connects to etcd, however long it takes until one answers; what waiting does not mend is an error.
async fn connect(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Store, ConnectError> {
    let mut told = String::new();
    loop {
        let why = match Store::connect(store_config(settings, metrics.clone())).await {
            Err(error @ ConnectError::Unreachable { .. }) => error.to_string(),
            other => return other,
        };
        if why != told {
            tracing::warn!("{why}; trying again until one does");
            told = why;
        }
        tokio::time::sleep(CONNECT_AGAIN).await;
    }
}

fn start(store: Store, settings: &Settings, metrics: Arc<Metrics>) -> Context {
    let identity = Arc::new(Identity {
        namespace: settings.namespace.clone(),
        pod: settings.pod.clone(),
        app: settings.app.clone(),
        app_port: settings.app_port,
    });
    let definitions = Definitions::start(&store);
    let callbacks = Callbacks::new(settings.app_port);
    Parts {
        locks: LockEngine::start(&store, &definitions, &metrics, &identity),
        queues: QueueEngine::start(&store, &definitions, &metrics, &identity),
        transactions: TransactionEngine::start(&store, &definitions, &metrics, &identity, callbacks.clone()),
        store,
        definitions,
        metrics,
        identity,
        callbacks,
    }
    .into()
}

async fn bind<A: tokio::net::ToSocketAddrs + Copy + std::fmt::Debug>(address: A) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address:?}"))
}

fn store_config(settings: &Settings, metrics: Arc<Metrics>) -> Config {
    let session = session::Session { pod: settings.pod.clone(), app: settings.app.clone(), accepts: true };
    Config {
        tls: settings.etcd_tls.clone(),
        user: settings.etcd_user.clone(),
        session_ttl: settings.session_ttl.as_millis() as Millis,
        observer: Arc::new(Observed(metrics)),
        ..Config::new(settings.etcd_endpoints.clone(), settings.namespace.clone(), session)
    }
}

/// Requests to etcd, counted.
struct Observed(Arc<Metrics>);

impl Observer for Observed {
    fn request(&self, purpose: Purpose, counts: Counts, took: Duration, known: bool) {
        if purpose == Purpose::Commit {
            self.0.batch.observe(counts.plans as f64);
            if known {
                self.0.round_trip.observe(took.as_secs_f64());
            }
        }
    }
}

/// A task that panics is dropped in silence: the hook at least says so and counts it.
fn count_panics(metrics: Arc<Metrics>) {
    std::panic::set_hook(Box::new(move |panic| {
        metrics.panics.inc();
        tracing::error!("panic: {panic}");
    }));
}
