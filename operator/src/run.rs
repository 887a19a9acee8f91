//! The operator from its start to its end.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use concordat_protocol::Key;
use concordat_store::{Admin, AdminConfig, ConnectError, Tls};
use futures::channel::mpsc;
use kube::{
    Client, Config,
    client::ClientBuilder,
    runtime::events::{Recorder, Reporter},
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::util::MapResponseLayer;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    admin::{self, Health},
    args::{Args, LogFormat},
    controller::{self, Shared},
    etcd::Term,
    identity,
    leader::{Candidate, Elector, Memory},
    lock::Locks,
    metrics::Metrics,
    pki::{Authority, keeper::Keeper},
    queue::Queues,
    shallow, sweep,
    transaction::Transactions,
    wake::{self, Namespaces, Senders},
    webhook::{self, Webhook},
};

/// How long answers under way may take at the end. Passes over objects are not waited for: each may be cut anywhere.
const GRACE: Duration = Duration::from_secs(2);
/// How often etcd is asked whether it answers.
const PING: Duration = Duration::from_secs(5);
/// How soon an etcd that does not answer at the start is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A checked configuration.
pub struct Settings {
    args: Args,
    tls: Option<Tls>,
    user: Option<(String, String)>,
}

impl Settings {
    /// Checks what flags alone do not show.
    pub fn check(args: Args) -> Result<Self, clap::Error> {
        args.kept("")?;
        Ok(Self { tls: args.etcd_tls()?, user: args.etcd_user()?, args })
    }
}

/// Why the operator ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No port, no signals.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Flags that do not go together.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// No kubeconfig, and not in a cluster.
    #[error("no way to the Kubernetes API: {0}")]
    Kubeconfig(#[from] kube::config::InferConfigError),
    /// The client for Kubernetes cannot be made.
    #[error("Kubernetes: {0}")]
    Kubernetes(#[from] kube::Error),
    /// etcd cannot be used.
    #[error("etcd: {0}")]
    Etcd(#[from] ConnectError),
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let Settings { args, tls, user } = settings;
    log(&args);
    // Two TLS providers may be compiled in; rustls then wants to be told.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut end = Ends::new()?;
    let health = Arc::new(Health::default());
    let metrics = Arc::new(Metrics::default());
    let listener = TcpListener::bind(args.admin_listen).await?;
    tracing::info!(address = %listener.local_addr()?, "serving /live, /ready and /metrics");
    let stop = CancellationToken::new();
    let serving =
        tokio::spawn(admin::serve(listener, health.clone(), metrics.clone(), stop.clone().cancelled_owned()));

    let config = Config::infer().await?;
    let lease_namespace = args.lease_namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = ClientBuilder::try_from(config)?.with_layer(&MapResponseLayer::new(shallow::cut)).build();
    let kept = args.kept(&lease_namespace)?;
    let looks_after_pods = kept.webhook.is_some();
    let keeper = Keeper::new(client.clone(), kept, health.clone(), metrics.clone());
    let authority = args.pki.identities.then(|| keeper.authority());
    let webhook = serve_webhook(&args, &keeper, &client, &metrics, &stop).await?;
    let candidate = Candidate {
        namespace: lease_namespace,
        name: args.lease_name.clone(),
        // Two replicas on one host differ, too.
        identity: format!("{}_{}", args.pod, std::process::id()),
        duration: args.lease_duration,
    };
    let mut elector = Elector::new(client.clone(), candidate.clone(), health.clone());
    let reporter = Reporter { controller: "concordat-operator".into(), instance: Some(args.pod.clone()) };
    let replica = Replica {
        client: client.clone(),
        recorder: Recorder::new(client, reporter),
        identity: candidate.identity,
        etcd: args.etcd_endpoints.clone(),
        namespace: args.namespace.clone(),
        health: health.clone(),
        metrics,
        looks_after_pods,
        authority,
    };
    let etcd = AdminConfig { endpoints: args.etcd_endpoints.clone(), tls, user, ..AdminConfig::default() };
    // etcd may be waiting for its own certificates, which are made first, and for which nobody need lead.
    let (made, is_made) = oneshot::channel();
    let stand = async {
        let _ = is_made.await;
        replica.stand(etcd, &mut elector, &stop).await
    };
    let result = tokio::select! {
        () = end.signal() => Ok(()),
        result = stand => result,
        () = keeper.run(made) => Ok(()),
    };
    health.ending.store(true, Ordering::Relaxed);
    stop.cancel();
    elector.release().await;
    let _ = timeout(GRACE, async { tokio::join!(serving, webhook) }).await;
    result
}

/// Serves the webhook, if there is to be one, until `stop`.
async fn serve_webhook(
    args: &Args,
    keeper: &Keeper,
    client: &Client,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> io::Result<JoinHandle<()>> {
    let Some(address) = args.injection.webhook_listen else { return Ok(tokio::spawn(async {})) };
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving /inject");
    let webhook = Webhook { client: client.clone(), settings: args.sidecars(), metrics: metrics.clone() };
    Ok(tokio::spawn(webhook::serve(listener, keeper.certificates(), Arc::new(webhook), stop.clone())))
}

/// What a replica is, leading or not.
struct Replica {
    client: Client,
    recorder: Recorder,
    identity: String,
    etcd: Vec<String>,
    namespace: Option<String>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    /// It serves the webhook: an etcd that is away later on must not keep pods from being made.
    looks_after_pods: bool,
    /// Who signs certificates of namespaces, if that is the operator's concern.
    authority: Option<watch::Receiver<Option<Authority>>>,
}

impl Replica {
    /// Stands for election and leads, time and again.
    async fn stand(
        &self,
        config: AdminConfig,
        elector: &mut Elector,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let admin = self.connect(config).await?;
        tokio::select! {
            () = self.ping(&admin) => {}
            () = self.elections(&admin, elector, stop) => {}
        }
        Ok(())
    }

    async fn elections(&self, admin: &Admin, elector: &mut Elector, stop: &CancellationToken) {
        loop {
            let since = elector.acquire().await;
            let memory = elector.memory();
            tracing::info!(identity = self.identity, "leading");
            let term = async {
                // First of all: nothing is written to an etcd that was restored and is not known to be.
                self.look_after(admin, &memory).await;
                match Term::begin(admin.clone(), &self.identity, self.metrics.clone()).await {
                    Ok(term) => self.lead(Arc::new(term), stop.child_token()).await,
                    Err(error) => tracing::warn!(%error, "etcd's epoch cannot be taken"),
                }
            };
            tokio::select! {
                () = term => {}
                () = self.keep_looking(admin, &memory) => {}
                () = elector.keep(since) => tracing::warn!("the lease is lost"),
            }
            self.metrics.leads(false);
            tracing::info!(identity = self.identity, "no longer leading");
            sleep(RETRY).await;
        }
    }

    /// Holds etcd against what is remembered of it, however long it takes to answer.
    async fn look_after(&self, admin: &Admin, memory: &Memory) {
        loop {
            let remembered = *memory.lock();
            match admin.look_after(remembered.as_ref()).await {
                Ok(looked) => {
                    if let Some(why) = looked.restored {
                        tracing::error!(
                            why,
                            "etcd was restored from a snapshot: nothing is served until `concordat epoch raise` was run"
                        );
                    }
                    *memory.lock() = Some(looked.remember);
                    return;
                }
                Err(error) => tracing::warn!(%error, "etcd was not looked after"),
            }
            sleep(RETRY).await;
        }
    }

    async fn keep_looking(&self, admin: &Admin, memory: &Memory) {
        loop {
            sleep(PING).await;
            self.look_after(admin, memory).await;
        }
    }

    /// Runs every kind's pipeline until another operator's term begins.
    async fn lead(&self, term: Arc<Term>, end: CancellationToken) {
        let (known, namespaces) = Namespaces::new();
        let shared = Shared {
            namespaces: Arc::new(known),
            client: self.client.clone(),
            term: term.clone(),
            recorder: self.recorder.clone(),
            metrics: self.metrics.clone(),
            etcd: self.etcd.clone(),
            namespace: self.namespace.clone(),
        };
        let (sweeping, identifying) = (shared.clone(), shared.clone());
        self.metrics.leads(true);
        let _stop = end.clone().drop_guard();
        let (locks, locks_changed) = mpsc::unbounded();
        let (queues, queues_changed) = mpsc::unbounded();
        let (transactions, transactions_changed) = mpsc::unbounded();
        let senders = Senders { locks, queues, transactions };
        tokio::select! {
            () = term.over().cancelled() => tracing::warn!("another operator leads"),
            () = wake::run(term.admin(), namespaces, &senders) => {}
            () = sweep::run(&sweeping) => {}
            () = identity::run(&identifying, self.authority.clone()) => {}
            _ = futures::future::join3(
                controller::run::<Locks>(shared.clone(), locks_changed, end.clone()),
                controller::run::<Queues>(shared.clone(), queues_changed, end.clone()),
                controller::run::<Transactions>(shared, transactions_changed, end.clone()),
            ) => {}
        }
    }

    /// Keeps [`Health::etcd`] true to what etcd does.
    async fn ping(&self, admin: &Admin) {
        loop {
            sleep(PING).await;
            let answer = admin.read("", vec![Key::Epoch.into()]).await;
            self.health.etcd.store(answer.is_ok() || self.looks_after_pods, Ordering::Relaxed);
        }
    }

    /// Connects to etcd, however long it takes to answer; one that must not be used is refused at once.
    async fn connect(&self, config: AdminConfig) -> Result<Admin, Error> {
        loop {
            match Admin::connect(config.clone()).await {
                Ok(admin) => {
                    self.health.etcd.store(true, Ordering::Relaxed);
                    return Ok(admin);
                }
                Err(error @ ConnectError::Unreachable { .. }) => {
                    tracing::warn!(%error, "waiting for etcd");
                    sleep(RETRY).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// SIGTERM and SIGINT.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn signal(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn log(args: &Args) {
    let filter = EnvFilter::new(&args.log);
    let layers = tracing_subscriber::registry().with(filter);
    let format = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let _ = match args.log_format {
        LogFormat::Json => layers.with(format.json()).try_init(),
        LogFormat::Text => layers.with(format).try_init(),
    };
}
