//! From arguments to a running sidecar, and to its end.

use std::{ffi::OsString, io::IsTerminal, net::Ipv4Addr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use concordat_protocol::{Millis, session, timeline::Remembered};
use concordat_store::{
    Config, ConnectError, Restored, Store,
    observer::{Counts, Observer, Purpose},
};
use tokio::{net::TcpListener, task::JoinHandle};
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
    spans,
};

/// EX_USAGE: the configuration must be changed; starting again will not help.
const BAD_CONFIGURATION: u8 = 64;
/// The wait between attempts to reach etcd at the start.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);

/// How long answers under way may take when etcd was restored.
const LAST_WORDS: Duration = Duration::from_secs(2);

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
    let traces = match spans::start(&settings) {
        Ok(traces) => traces,
        Err(refused) => {
            eprintln!("{refused}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let ended = live(&settings);
    traces.end();
    match ended {
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

/// Lives as often as etcd is restored, and once. All that was made of what etcd was goes with its runtime: a machine that
/// is dropped cannot act on what was never so.
fn live(settings: &Settings) -> Result<()> {
    let mut kept = None;
    loop {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the runtime")?;
        kept = runtime.block_on(async {
            let kept = match kept {
                Some(kept) => kept,
                None => Kept::bind(settings).await?,
            };
            run(settings, kept).await
        })?;
        if kept.is_none() {
            return Ok(());
        }
        runtime.shutdown_background();
    }
}

/// What goes from one life to the next.
struct Kept {
    signals: Signals,
    ports: Ports,
    remembered: Option<Remembered>,
}

/// Where it listens. Who connects while nobody serves there waits.
struct Ports {
    api: Listening,
    admin: Listening,
    dapr: Option<(Listening, Listening)>,
}

struct Listening(std::net::TcpListener);

impl Kept {
    async fn bind(settings: &Settings) -> Result<Self> {
        let signals = Signals::listen().context("cannot listen for signals")?;
        let api = bind((Ipv4Addr::LOCALHOST, settings.api_port)).await?;
        let admin = bind(settings.admin).await?;
        let dapr = match settings.dapr {
            Some(ports) => Some((
                bind((Ipv4Addr::LOCALHOST, ports.http)).await?,
                bind((Ipv4Addr::LOCALHOST, ports.grpc)).await?,
            )),
            None => None,
        };
        Ok(Self { signals, ports: Ports { api, admin, dapr }, remembered: None })
    }
}

impl Listening {
    /// For a server of this life.
    fn listener(&self) -> Result<TcpListener> {
        Ok(TcpListener::from_std(self.0.try_clone()?)?)
    }
}

/// Lives until a signal, or until etcd is not what it was: then with what the next life is given.
async fn run(settings: &Settings, kept: Kept) -> Result<Option<Kept>> {
    let Kept { mut signals, ports, remembered } = kept;
    let metrics = Arc::new(Metrics::default());
    count_panics(metrics.clone());

    let (stop, ending) = (CancellationToken::new(), CancellationToken::new());
    let health = Health::new(metrics.clone(), ending.clone());
    let admin = tokio::spawn(serve(ports.admin.listener()?, admin::router(health.clone()), stop.clone()));

    let store = tokio::select! {
        store = connect(settings, &metrics, remembered, &ports, &health) => store?,
        () = signals.recv() => return Ok(None),
    };
    let context = start(store, settings, metrics);
    let api = ports.api.listener()?;
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
    if let Some((http, grpc)) = &ports.dapr {
        let (http, grpc) = (http.listener()?, grpc.listener()?);
        tracing::info!(http = %http.local_addr()?, grpc = %grpc.local_addr()?, "serving Dapr's lock API");
        let dapr = Dapr::new(&context, settings.token.clone());
        served.push(tokio::spawn(serve(http, dapr::http::router(dapr.clone()), ending.clone())));
        served.push(tokio::spawn(serve(grpc, dapr::grpc::router(dapr), ending.clone())));
    }

    let over = tokio::select! {
        () = signals.recv() => None,
        why = context.store.over() => Some(why),
    };
    if let Some(why) = over {
        tracing::warn!(why, "what is held is lost, and all begins anew");
        ending.cancel();
        // Whoever waits is told; whoever comes now waits for the next life.
        let _ = tokio::time::timeout(LAST_WORDS, futures::future::join_all(served)).await;
        stop.cancel();
        let _ = tokio::time::timeout(Duration::from_millis(100), admin).await;
        return Ok(Some(Kept { signals, ports, remembered: Some(context.store.remembered()) }));
    }
    drop(ports);
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
    Ok(None)
}

/// Connects to etcd, however long it takes until one answers that is what it was; what waiting does not mend is an error.
async fn connect(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    remembered: Option<Remembered>,
    ports: &Ports,
    health: &Health,
) -> Result<Store> {
    let mut told = String::new();
    let mut refusing = None;
    loop {
        let config = Config { remembered, ..store_config(settings, metrics.clone()) };
        let why = match Store::connect(config).await {
            Err(ConnectError::Restored(restored)) => {
                if refusing.is_none() {
                    refusing = Some(Refusing::start(&restored, settings, ports)?);
                }
                restored.to_string()
            }
            Err(error @ ConnectError::Unreachable { .. }) => format!("{error}; trying again until one does"),
            Ok(store) => {
                if let Some(refusing) = refusing {
                    refusing.end().await;
                }
                return Ok(store);
            }
            Err(error) => return Err(error.into()),
        };
        if why != told {
            tracing::warn!("{why}");
            health.waits(why.clone());
            told = why;
        }
        tokio::time::sleep(CONNECT_AGAIN).await;
    }
}

/// Answers every request that etcd's epoch must be raised first.
struct Refusing {
    end: CancellationToken,
    served: Vec<JoinHandle<()>>,
}

impl Refusing {
    fn start(restored: &Restored, settings: &Settings, ports: &Ports) -> Result<Self> {
        let end = CancellationToken::new();
        let dapr = ports.dapr.iter().flat_map(|(http, grpc)| [http, grpc]);
        let served = std::iter::once(&ports.api).chain(dapr).map(|port| {
            let service = api::restored(restored, settings.token.clone());
            Ok(tokio::spawn(serve(port.listener()?, service, end.clone())))
        });
        Ok(Self { served: served.collect::<Result<_>>()?, end })
    }

    async fn end(self) {
        self.end.cancel();
        let _ = tokio::time::timeout(LAST_WORDS, futures::future::join_all(self.served)).await;
    }
}

fn start(store: Store, settings: &Settings, metrics: Arc<Metrics>) -> Context {
    let identity = Arc::new(Identity {
        namespace: settings.namespace.clone(),
        pod: settings.pod.clone(),
        app: settings.app.clone(),
        app_port: settings.app_port,
        guest: settings.guest,
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

async fn bind<A: tokio::net::ToSocketAddrs + Copy + std::fmt::Debug>(address: A) -> Result<Listening> {
    let bound = TcpListener::bind(address).await.and_then(TcpListener::into_std);
    bound.map(Listening).with_context(|| format!("cannot listen on {address:?}"))
}

fn store_config(settings: &Settings, metrics: Arc<Metrics>) -> Config {
    let accepts = !settings.guest;
    let session = session::Session { pod: settings.pod.clone(), app: settings.app.clone(), accepts };
    Config {
        tls: settings.etcd_tls.clone(),
        user: settings.etcd_user.clone(),
        isolated: settings.isolated,
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
