//! A cluster, as its kubeconfig reaches it, and what is installed there.

mod external;
mod forward;

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use concordat_store::Tls;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{self, Pod},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};

use self::{external::External, forward::Forward};
use crate::{etcd::Endpoint, secret::Secret};

/// Where it is installed, unless it is found elsewhere.
const NAMESPACE: &str = "concordat-system";
/// How all its names begin, unless it is found otherwise.
const NAME: &str = "concordat";
/// What the chart puts on all it makes.
const OF_CONCORDAT: &str = "app.kubernetes.io/name=concordat";
/// etcd's port for clients.
const CLIENT: u16 = 2379;

/// The flags of it, named as kubectl's.
#[derive(clap::Args)]
#[command(next_help_heading = "Kubernetes")]
pub(crate) struct Flags {
    /// The kubeconfig [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Namespace in which Concordat is installed [default: where it is found]
    #[arg(long, value_name = "NAME")]
    concordat_namespace: Option<String>,
}

impl Flags {
    /// Whether there is a kubeconfig, or one is asked for.
    pub(crate) fn is_there(&self) -> bool {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let usual = || set("HOME").is_some_and(|home| Path::new(&home).join(".kube/config").is_file());
        self.kubeconfig.is_some()
            || self.context.is_some()
            || self.concordat_namespace.is_some()
            || set("KUBECONFIG").is_some()
            || usual()
    }
}

/// A cluster.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// The API server's address.
    pub(crate) server: String,
    /// That of the kubeconfig's context.
    pub(crate) namespace: String,
    /// Where Concordat is said to be.
    told: Option<String>,
}

/// Where it is installed, and how its names begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Installation {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The etcd that did not come with it, if it uses one.
    pub(crate) external: Option<External>,
}

/// A way from here to etcd.
pub(crate) struct Opened {
    pub(crate) endpoint: Endpoint,
    /// What to look at when it does not answer.
    pub(crate) hint: String,
    pub(crate) kept: Kept,
}

/// What is needed as long as etcd is asked.
#[derive(Default)]
pub(crate) struct Kept {
    _forward: Option<Forward>,
    _files: Vec<Secret>,
}

impl Cluster {
    /// Reads the kubeconfig. Nothing is asked yet.
    pub(crate) async fn open(flags: Flags) -> Result<Self> {
        let kubeconfig = match &flags.kubeconfig {
            Some(file) => {
                Kubeconfig::read_from(file).with_context(|| format!("--kubeconfig {}", file.display()))?
            }
            None => Kubeconfig::read().context("the kubeconfig")?,
        };
        let options = KubeConfigOptions { context: flags.context, ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .context("the kubeconfig: --context names one of its contexts")?;
        Ok(Self {
            server: config.cluster_url.to_string(),
            namespace: config.default_namespace.clone(),
            client: Client::try_from(config).context("the kubeconfig")?,
            told: flags.concordat_namespace,
        })
    }

    /// Where it is installed: as a flag says, else as the operator's Deployment shows.
    pub(crate) async fn installation(&self) -> Result<Installation> {
        let operators = self.operators().await;
        if let Some(namespace) = self.told.clone() {
            let found = operators.ok().and_then(|found| found.iter().find_map(installed));
            return Ok(found.unwrap_or_else(|| Installation {
                namespace,
                name: NAME.into(),
                external: None,
            }));
        }
        // Who may not list those of all namespaces has it where it usually is.
        let mut found: Vec<Installation> = operators.iter().flatten().filter_map(installed).collect();
        found.dedup();
        ensure!(
            found.len() < 2,
            "Concordat is installed in several namespaces: say which is meant by --concordat-namespace (there: {})",
            found.iter().map(|of| of.namespace.as_str()).collect::<Vec<_>>().join(", ")
        );
        let usual = || Installation { namespace: NAMESPACE.into(), name: NAME.into(), external: None };
        Ok(found.pop().unwrap_or_else(usual))
    }

    /// The operator's Deployments: in the namespace that was told, else in all.
    pub(crate) async fn operators(&self) -> Result<Vec<Deployment>, kube::Error> {
        let api: Api<Deployment> = match &self.told {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let selector = format!("{OF_CONCORDAT},app.kubernetes.io/component=operator");
        Ok(api.list(&ListParams::default().labels(&selector)).await?.items)
    }

    /// A way from here to its etcd, as the operator's own user.
    pub(crate) async fn etcd(&self, of: &Installation) -> Result<Opened> {
        match &of.external {
            Some(external) => self.external(of, external).await,
            None => self.bundled(of).await,
        }
    }

    /// The addresses that the operator has. Whether they lead there from here, who connects will see.
    async fn external(&self, of: &Installation, external: &External) -> Result<Opened> {
        let External { endpoints, secret, server_name } = external.clone();
        let (tls, files) = match secret {
            Some(secret) => {
                let (tls, files) = self.certificate(of, &secret, server_name).await?;
                (Some(tls), files)
            }
            None => (None, Vec::new()),
        };
        let hint = "the operator has it there; where that address does not lead to it from here, name one that does by \
                    --etcd, with --etcd-ca-file, --etcd-cert-file and --etcd-key-file";
        let kept = Kept { _forward: None, _files: files };
        Ok(Opened { endpoint: Endpoint::of(endpoints, tls, None)?, hint: hint.into(), kept })
    }

    /// A port of one of its pods.
    async fn bundled(&self, of: &Installation) -> Result<Opened> {
        let Installation { namespace, name, .. } = of;
        let (tls, files) = self.certificate(of, &format!("{name}-etcd-root"), None).await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let selector = format!("{OF_CONCORDAT},app.kubernetes.io/component=etcd");
        let found =
            pods.list(&ListParams::default().labels(&selector)).await.context("the pods of etcd")?.items;
        let Some(pod) = found.iter().find(|pod| is_ready(pod)).map(ResourceExt::name_any) else {
            let names: Vec<String> = found.iter().map(ResourceExt::name_any).collect();
            bail!(
                "no pod of etcd is ready in namespace {namespace} (there: {}): look at them, or name an etcd \
                 outside the cluster by --etcd",
                if names.is_empty() { "none".into() } else { names.join(", ") }
            );
        };
        let tls = Tls { server_name: Some(format!("{pod}.{name}-etcd.{namespace}.svc")), ..tls };
        let hint = format!("it was reached through pod {pod} in namespace {namespace}: see its log");
        let forward = Forward::open(pods, pod, CLIENT).await?;
        let url = format!("https://127.0.0.1:{}", forward.port);
        let kept = Kept { _forward: Some(forward), _files: files };
        Ok(Opened { endpoint: Endpoint::of(vec![url], Some(tls), None)?, hint, kept })
    }

    /// What etcd knows the operator by, from this Secret, in files that are kept.
    async fn certificate(
        &self,
        of: &Installation,
        secret: &str,
        server_name: Option<String>,
    ) -> Result<(Tls, Vec<Secret>)> {
        let namespace = &of.namespace;
        let secrets: Api<v1::Secret> = Api::namespaced(self.client.clone(), namespace);
        let found = secrets.get(secret).await.with_context(|| {
            format!(
                "the Secret {secret} in namespace {namespace}: is Concordat installed there? \
                 --concordat-namespace names another, --etcd an etcd outside the cluster, such as that of \
                 `concordat dev`; concordat check tells more"
            )
        })?;
        let mut files = Vec::new();
        let mut file = |key: &str| -> Result<PathBuf> {
            let data = found.data.as_ref().and_then(|data| data.get(key));
            let data = data.with_context(|| format!("the Secret {secret} holds no {key}"))?;
            let file = Secret::new(&data.0)?;
            let path = file.path();
            files.push(file);
            Ok(path)
        };
        let tls = Tls {
            ca: Some(file("ca.crt")?),
            identity: Some((file("tls.crt")?, file("tls.key")?)),
            server_name,
        };
        Ok((tls, files))
    }
}

fn installed(operator: &Deployment) -> Option<Installation> {
    let name = operator.name_any().strip_suffix("-operator")?.to_owned();
    Some(Installation { namespace: operator.namespace()?, name, external: External::of(operator) })
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
