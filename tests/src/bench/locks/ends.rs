//! What a release costs those who wait, and how long a lost holder keeps them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hyper::Method;

use super::{
    super::{http::Http, servers::Sidecar},
    contended,
    stage::{FAIR, LOST, Stage, TTL},
};

/// How many calls a sidecar wakes for each grant to one of so many that wait.
pub(super) async fn wakeups(stage: &Stage, waiters: usize, time: Duration) -> Result<f64> {
    let sidecar = stage.sidecars.first().context("no sidecar")?;
    let before = woken(sidecar).await?;
    let figure = contended::sidecars(&stage.ports(1)?, FAIR, waiters, time).await?;
    Ok((woken(sidecar).await? - before) / figure.operations.max(1) as f64)
}

async fn woken(sidecar: &Sidecar) -> Result<f64> {
    let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", sidecar.admin)).await?.text().await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("concordat_sidecar_lock_wakeups_total "));
    Ok(line.context("wake-ups are not counted")?.parse()?)
}

/// Seconds from the kill of a holder's sidecar to the grant to one that waits at another. A sidecar of its own a round.
pub(super) async fn after_kill(stage: &Stage, program: &Path, round: usize) -> Result<f64> {
    let ttl = format!("{TTL}ms");
    let flags = ["--session-ttl", &ttl];
    let mut holder = Sidecar::start(program, &stage.etcd, &format!("victim-{round}"), &flags).await?;
    let path = format!("/v1/locks/{LOST}/{round}");
    holder.knows(&path).await?;
    Http::connect(holder.api).await?.send(Method::POST, &path, &[], "", &[200]).await?;
    let mut waiter = Http::connect(*stage.ports(2)?.last().context("no sidecar")?).await?;
    let waiting = format!("{path}?wait=60s");
    let killed = async {
        // Killed while the other waits: it does once the sidecar says so.
        let waits = format!("http://127.0.0.1:{}{path}", stage.sidecars[1].api);
        crate::process::eventually("the other waits", async || {
            let shown: serde_json::Value = reqwest::get(&waits).await?.json().await?;
            anyhow::ensure!(shown["waiters"] == 1, "{shown}");
            Ok(())
        })
        .await?;
        let now = Instant::now();
        holder.process.kill()?;
        anyhow::Ok(now)
    };
    let (granted, killed) = tokio::try_join!(
        async {
            waiter.send(Method::POST, &waiting, &[], "", &[200]).await?;
            Ok(Instant::now())
        },
        killed
    )?;
    Ok(granted.duration_since(killed).as_secs_f64())
}
