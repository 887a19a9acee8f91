//! How a command reaches etcd: as flags say, through the cluster of a kubeconfig, or where `concordat dev` has it.

use anyhow::{Context, Result, bail};
use concordat_store::Admin;

use crate::{
    cluster::{Cluster, Flags, Kept, Opened},
    etcd::{Endpoint, Etcd},
    guest::Guest,
};

/// The flags of it.
#[derive(clap::Args)]
pub(crate) struct Where {
    #[command(flatten)]
    etcd: Etcd,
    #[command(flatten)]
    cluster: Flags,
}

/// The flags of it, and the namespace.
#[derive(clap::Args)]
pub(crate) struct Scope {
    #[command(flatten)]
    at: Where,
    /// Namespace of the objects [default: that of the kubeconfig's context, else default]
    #[arg(long, short, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}

/// What a command was sent to.
pub(crate) enum Way {
    /// An etcd, by its address.
    Etcd(Endpoint),
    /// A cluster in which it is looked for.
    Cluster(Cluster),
}

/// An etcd that answers.
pub(crate) struct Reached {
    pub(crate) admin: Admin,
    pub(crate) endpoint: Endpoint,
    /// The namespace that is meant when none is named.
    pub(crate) namespace: String,
    _kept: Kept,
}

impl Where {
    /// Which way the flags, and what there is on this machine, say to go.
    pub(crate) async fn way(self) -> Result<Way> {
        if !self.etcd.is_given() && self.cluster.is_there() {
            return Ok(Way::Cluster(Cluster::open(self.cluster).await?));
        }
        Ok(Way::Etcd(self.etcd.endpoint()?))
    }

    /// Connects to etcd.
    pub(crate) async fn reach(self) -> Result<Reached> {
        Reached::by(self.way().await?).await
    }
}

impl Scope {
    /// Connects to etcd; the namespace is one of those.
    pub(crate) async fn reach(self) -> Result<Reached> {
        let reached = self.at.reach().await?;
        let namespace = self.namespace.unwrap_or(reached.namespace);
        Ok(Reached { namespace, ..reached })
    }

    /// Which way to go, and the namespace.
    pub(crate) async fn way(self) -> Result<(Way, String)> {
        let way = self.at.way().await?;
        let namespace = self.namespace.unwrap_or_else(|| way.namespace());
        Ok((way, namespace))
    }
}

impl Way {
    /// The namespace that is meant when none is named.
    pub(crate) fn namespace(&self) -> String {
        match self {
            Self::Etcd(_) => "default".into(),
            Self::Cluster(cluster) => cluster.namespace.clone(),
        }
    }
}

impl Reached {
    /// Goes that way.
    pub(crate) async fn by(way: Way) -> Result<Self> {
        let namespace = way.namespace();
        let Opened { endpoint, hint, kept } = match way {
            Way::Etcd(endpoint) => {
                let hint = "does `concordat dev` run? --etcd names another address".to_owned();
                Opened { endpoint, hint, kept: Kept::default() }
            }
            Way::Cluster(cluster) => cluster.etcd(&cluster.installation().await?).await?,
        };
        let told = endpoint.config.endpoints.join(",");
        let admin = Admin::connect(endpoint.config.clone())
            .await
            .with_context(|| format!("etcd at {told}: {hint}"))?;
        Ok(Self { admin, endpoint, namespace, _kept: kept })
    }

    /// Starts a sidecar that is asked what only a sidecar can be. A namespace that has none is left as it is.
    pub(crate) async fn guest(&self) -> Result<Guest> {
        let standing = self.admin.timeline(&self.namespace).await?;
        if let Some(lost) = standing.lost {
            bail!(
                "etcd was restored from a snapshot ({}): nothing is served until this was run, with the same flags \
                 that say where etcd is: concordat epoch raise --namespace {}",
                lost.why,
                self.namespace
            );
        }
        if standing.timeline.is_none() {
            bail!("{}", self.no_sidecar().await?);
        }
        Guest::start(&self.endpoint, &self.namespace).await
    }

    async fn no_sidecar(&self) -> Result<String> {
        let others = self.admin.namespaces().await?;
        let others: Vec<String> = others.into_iter().filter(|other| *other != self.namespace).collect();
        let told = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
        Ok(format!(
            "no sidecar was ever in namespace {:?}, so nothing is there; --namespace names another (of which etcd knows: {told})",
            self.namespace
        ))
    }
}
