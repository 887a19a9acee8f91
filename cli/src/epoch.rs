//! `concordat epoch`: after etcd was restored from a snapshot, what says so, and what goes on from there.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use concordat_protocol::{TransactionId, timeline};
use concordat_store::epoch::{RaiseError, Raised, Standing};

use crate::reach::{Reached, Where};

/// What `epoch` is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Prints each namespace's epoch, and whether etcd was restored since it began
    Show(Which),
    /// Goes on with an etcd that was restored from a snapshot: raises every later fence above every earlier one, and makes
    /// stuck what was undecided in the snapshot
    Raise {
        #[command(flatten)]
        which: Which,
        /// Also where etcd shows no sign of having been restored
        #[arg(long)]
        force: bool,
        /// A fence that must be below every later one, as a resource has kept it
        #[arg(long, value_name = "FENCE", default_value_t = 0)]
        #[arg(value_parser = clap::value_parser!(u64).range(..concordat_protocol::lock::fence::LIMIT))]
        above: u64,
    },
}

#[derive(clap::Args)]
struct Which {
    #[command(flatten)]
    at: Where,
    /// The namespace [default: every one that etcd knows]
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
}

/// Does what is asked.
pub(crate) fn run(options: Options) -> Result<()> {
    crate::dev::runtime()?.block_on(async {
        match options.what {
            What::Show(which) => show(which).await,
            What::Raise { which, force, above } => raise(which, force, above).await,
        }
    })
}

impl Which {
    async fn open(self) -> Result<(Reached, Vec<String>)> {
        let reached = self.at.reach().await?;
        let namespaces = match self.namespace {
            Some(namespace) => vec![namespace],
            None => reached.admin.namespaces().await?,
        };
        if namespaces.is_empty() {
            bail!(
                "etcd knows of no namespace: name one with --namespace if there was one before it was restored"
            );
        }
        Ok((reached, namespaces))
    }
}

async fn show(which: Which) -> Result<()> {
    let (reached, namespaces) = which.open().await?;
    for namespace in namespaces {
        println!("{}", shown(&namespace, &reached.admin.timeline(&namespace).await?));
    }
    Ok(())
}

fn shown(namespace: &str, standing: &Standing) -> String {
    let (epoch, offset) =
        standing.timeline.as_ref().map_or((0, 0), |timeline| (timeline.epoch, timeline.offset));
    let state = match &standing.lost {
        Some(lost) => format!("restored ({}): run concordat epoch raise --namespace {namespace}", lost.why),
        None => "ok".to_owned(),
    };
    format!(
        "{namespace}: epoch {epoch}, revision {} raised by {offset}, etcd cluster {:x}: {state}",
        standing.revision, standing.cluster
    )
}

async fn raise(which: Which, force: bool, above: u64) -> Result<()> {
    let (reached, namespaces) = which.open().await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let floor = timeline::floor(now).max(if above == 0 { 0 } else { timeline::above(above) });
    let mut refused = 0;
    for namespace in &namespaces {
        match reached.admin.raise(namespace, floor, force).await {
            Ok(raised) => println!("{}", told(namespace, &raised)),
            // Of several some may have been raised before.
            Err(error @ RaiseError::NotRestored(_)) => {
                refused += 1;
                println!("{namespace}: nothing was done, as {error}");
            }
            Err(error) => return Err(error).with_context(|| format!("{namespace}: run it again")),
        }
    }
    if refused == namespaces.len() {
        bail!("no epoch was raised; if etcd was restored all the same, run it again with --force");
    }
    Ok(())
}

fn told(namespace: &str, Raised { timeline, revision, stopped, sessions }: &Raised) -> String {
    let begun = format!(
        "{namespace}: epoch {} has begun at revision {revision}, raised by {}; {sessions} sessions were ended",
        timeline.epoch, timeline.offset
    );
    if stopped.is_empty() {
        return begun;
    }
    let ids: Vec<&str> = stopped.iter().map(TransactionId::as_str).collect();
    format!(
        "{begun}\n{namespace}: {} transactions were undecided in the snapshot and are stuck: look at their \
         participants, then have each tried again (POST …/retry) or rolled back (POST …/rollback): {}",
        stopped.len(),
        ids.join(", ")
    )
}
