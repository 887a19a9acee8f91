//! `concordat version`: what talks to what.

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    output::Format,
    reach::{Reached, Way, Where},
    table::{Column, facts},
};

/// Of this program.
pub(crate) const CLIENT: &str = env!("CARGO_PKG_VERSION");

const FACTS: &[Column] = &[
    ("Client", "/client"),
    ("Operator", "/operator"),
    ("Kubernetes", "/kubernetes"),
    ("etcd", "/etcd"),
    ("Not reached", "/notReached"),
];

/// What `version` is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// That of this program alone
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    format: Format,
}

/// Prints the versions. What is not reached is no failure.
pub(crate) fn run(options: Options) -> Result<()> {
    let mut versions = json!({"client": CLIENT});
    if !options.client {
        crate::dev::runtime()?.block_on(async {
            if let Err(error) = ask(options.at, &mut versions).await {
                versions["notReached"] = format!("{error:#}").into();
            }
        });
    }
    options.format.print(&versions, |versions| facts(FACTS, versions))
}

async fn ask(at: Where, versions: &mut Value) -> Result<()> {
    let way = at.way().await?;
    if let Way::Cluster(cluster) = &way {
        versions["kubernetes"] = cluster.client.apiserver_version().await?.git_version.into();
        let operators = cluster.operators().await?;
        if let Some(version) = operators.first().and_then(of_operator) {
            versions["operator"] = version.into();
        }
    }
    let health = Reached::by(way).await?.admin.health().await?;
    versions["etcd"] = health.version.into();
    Ok(())
}

/// Which version an operator's Deployment is of: that of its image, else what its label says.
pub(crate) fn of_operator(operator: &k8s_openapi::api::apps::v1::Deployment) -> Option<String> {
    let pod = operator.spec.as_ref()?.template.spec.as_ref()?;
    let image = pod.containers.iter().find_map(|container| container.image.as_deref());
    let name = image.and_then(|image| image.split('@').next()).and_then(|image| image.rsplit('/').next());
    let tag = name.and_then(|name| name.split_once(':')).map(|(_, tag)| tag.to_owned());
    let label = operator.metadata.labels.as_ref().and_then(|labels| labels.get("app.kubernetes.io/version"));
    tag.or_else(|| label.cloned())
}
