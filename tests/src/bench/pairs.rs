//! A lock acquired and released, over and over, one key a client.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etcd_client::{Client, LockOptions};
use hyper::Method;

use super::{
    http::{Connections, Http, text},
    load::{Figure, Meter, all},
};

/// By etcd's own lock service, straight to it.
pub(super) async fn v3lock(clients: Vec<Client>, time: Duration) -> Result<Figure> {
    let mut first = clients.first().context("nobody asks")?.clone();
    let lease = first.lease_grant(60, None).await?.id();
    let meter = Meter::start(time)?;
    all(clients.into_iter().enumerate().map(|(number, mut client)| {
        let meter = meter.clone();
        async move {
            let name = format!("/v3lock/{number}");
            while meter.goes_on() {
                let since = Instant::now();
                let held = client.lock(name.as_str(), Some(LockOptions::new().with_lease(lease))).await?;
                client.unlock(held.key()).await?;
                meter.done(1, since);
            }
            Ok(())
        }
    }))
    .await?;
    first.lease_revoke(lease).await?;
    Ok(meter.figure())
}

/// By a sidecar, over HTTP, of this lock.
pub(super) async fn sidecar(
    connections: Connections,
    port: u16,
    lock: &str,
    clients: usize,
    time: Duration,
) -> Result<Figure> {
    let mut callers = Http::several(connections, port, clients).await?;
    let meter = Meter::start(time)?;
    all(callers.iter_mut().enumerate().map(|(number, http)| {
        let meter = meter.clone();
        async move {
            let path = format!("/v1/locks/{lock}/{number}");
            while meter.goes_on() {
                let since = Instant::now();
                let grant = http.send(Method::POST, &path, &[], "", &[200]).await?;
                let token = text(grant, "token")?.to_owned();
                let token = [("lock-token", &*token)];
                http.send(Method::DELETE, &path, &token, "", &[204]).await?;
                meter.done(1, since);
            }
            Ok(())
        }
    }))
    .await?;
    Ok(meter.figure())
}
