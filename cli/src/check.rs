//! `concordat check`: what of an installation is as it should be, and for each thing that is not, what to do.

mod certificates;
mod etcd;
mod installation;

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    output::Format,
    reach::{Way, Where},
    table::{self, Column},
};

const COLUMNS: &[Column] =
    &[("STATUS", "/status"), ("CHECK", "/check"), ("FOUND", "/found"), ("WHAT TO DO", "/advice")];

/// What `check` is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    format: Format,
}

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// It works, and will not for ever or not for all.
    Warning,
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    status: Status,
    check: String,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self { status: Status::Ok, check: check.into(), found: found.into(), advice: None }
    }

    fn warning(check: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Warning, advice: Some(advice.into()), ..Self::ok(check, found) }
    }

    fn failed(check: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Failed, advice: Some(advice.into()), ..Self::ok(check, found) }
    }
}

/// Looks at everything, prints it, and fails when something does.
pub(crate) fn run(options: Options) -> Result<()> {
    crate::dev::runtime()?.block_on(async {
        let findings = look(options.at.way().await?).await;
        let document = json!(findings);
        options.format.print(&document, |found| {
            table::of(COLUMNS, found.as_array().map(Vec::as_slice).unwrap_or_default())
        })?;
        let failed =
            document.as_array().into_iter().flatten().filter(|of| of["status"] == json!(Status::Failed));
        match failed.count() {
            0 => Ok(()),
            1 => bail!("one check failed"),
            failed => bail!("{failed} checks failed"),
        }
    })
}

async fn look(way: Way) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Way::Cluster(cluster) = &way {
        let reachable = installation::cluster(cluster).await;
        let there = reachable.status != Status::Failed;
        findings.push(reachable);
        if !there {
            return findings;
        }
        findings.extend(installation::definitions(cluster).await);
        findings.push(installation::operator(cluster).await);
        match cluster.installation().await {
            Ok(of) => {
                findings.extend(installation::webhook(cluster, &of).await);
                findings.extend(certificates::look(cluster, &of).await);
                findings.extend(installation::members(cluster, &of).await);
            }
            Err(error) => findings.push(Finding::failed(
                "installation",
                format!("{error:#}"),
                "give --concordat-namespace",
            )),
        }
    }
    findings.extend(etcd::look(way).await);
    findings
}

/// What the API server said, in short.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => {
            // The causes tell what is wrong, not the outermost.
            let mut told = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(of) = cause {
                let text = of.to_string();
                if !told.contains(&text) {
                    told = format!("{told}: {text}");
                }
                cause = of.source();
            }
            told
        }
    }
}

/// The text at a JSON pointer, or none.
fn text<'a>(of: &'a Value, pointer: &str) -> &'a str {
    of.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
