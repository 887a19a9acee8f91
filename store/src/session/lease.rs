//! Leases: granted, kept alive on a connection of their own, revoked.

use std::{sync::Arc, time::Duration};

use concordat_protocol::Millis;
use etcd_client::{Error, LeaseKeepAliveStream, LeaseKeeper};
use futures::FutureExt;

use super::belief::Belief;
use crate::{
    clock::Clock,
    connection::{Connection, back_off},
    refusal::Refusal,
};

/// A lease of this process's.
#[derive(Clone, Debug)]
pub(crate) struct Granted {
    /// etcd's id of it.
    pub(crate) id: i64,
    /// Until when it is believed.
    pub(crate) belief: Arc<Belief>,
    /// Its time to live, milliseconds.
    ttl: Millis,
}

/// Grants a lease of at least `ttl` milliseconds.
pub(crate) async fn grant(connection: &Connection, clock: Clock, ttl: Millis) -> Result<Granted, Refusal> {
    // etcd counts in seconds, and a lease shorter than its election time-out would be lengthened anyway.
    let seconds = ttl.div_ceil(1_000).max(2);
    let (mut client, of) = connection.client();
    let sent = clock.monotonic();
    let request = client.lease_grant(seconds as i64, None).boxed();
    let granted = tokio::time::timeout(connection.timeout(), request).await;
    let refusal = match granted {
        Ok(Ok(lease)) => {
            let ttl = seconds * 1_000;
            return Ok(Granted { id: lease.id(), belief: Arc::new(Belief::new(sent, ttl)), ttl });
        }
        Ok(Err(error)) => Refusal::of(&error),
        Err(_) => Refusal::Unknown("no answer to a lease grant".into()),
    };
    if matches!(refusal, Refusal::Unknown(_) | Refusal::NotSent(_)) {
        connection.failed(of).await;
    }
    Err(refusal)
}

/// Keeps a lease alive; returns when it is over.
pub(crate) async fn keep(connection: &Connection, clock: Clock, lease: &Granted) {
    let over = async {
        while lease.belief.holds(clock.monotonic()) {
            tokio::time::sleep_until(clock.instant(lease.belief.until())).await;
        }
    };
    tokio::select! {
        () = over => {}
        () = renew(connection, clock, lease) => {}
    }
    lease.belief.end();
}

/// Renews a lease three times in its time to live, until etcd says that it is gone.
async fn renew(connection: &Connection, clock: Clock, lease: &Granted) {
    let mut stream: Option<(u64, _)> = None;
    let mut failures = 0;
    loop {
        let (_, of) = connection.client();
        // The connection may have moved while the lease needed no renewal.
        stream.take_if(|(opened, _)| *opened != of);
        let sent = clock.monotonic();
        let patience = Duration::from_millis(lease.ttl / 4);
        match tokio::time::timeout(patience, round(connection, &mut stream, lease.id)).await {
            Ok(Ok(true)) => {
                lease.belief.extend(sent, clock.monotonic());
                failures = 0;
                tokio::time::sleep(Duration::from_millis(lease.ttl / 3)).await;
            }
            Ok(Ok(false)) => return,
            Ok(Err(_)) | Err(_) => {
                // A later answer on this stream would be taken for that to a later question.
                stream = None;
                connection.failed(of).await;
                tokio::time::sleep(Duration::from_millis(back_off(failures))).await;
                failures += 1;
            }
        }
    }
}

/// One keepalive: whether the lease lives.
async fn round(
    connection: &Connection,
    stream: &mut Option<(u64, (LeaseKeeper, LeaseKeepAliveStream))>,
    lease: i64,
) -> Result<bool, Error> {
    let Some((_, (keeper, answers))) = stream else {
        let (mut client, of) = connection.client();
        return match client.lease_keep_alive(lease).boxed().await {
            Ok(opened) => {
                *stream = Some((of, opened));
                Ok(true)
            }
            // How the client says that etcd answered with a time to live of 0.
            Err(Error::LeaseKeepAliveError(_)) => Ok(false),
            Err(error) => Err(error),
        };
    };
    keeper.keep_alive().await?;
    match answers.message().await? {
        Some(answer) => Ok(answer.ttl() > 0),
        None => Err(Error::LeaseKeepAliveError("the stream ended".into())),
    }
}

/// Revokes a lease, and all that is under it; best effort.
pub(crate) async fn revoke(connection: &Connection, lease: i64) {
    let (mut client, of) = connection.client();
    match tokio::time::timeout(connection.timeout(), client.lease_revoke(lease).boxed()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a lease was not revoked"),
        Err(_) => connection.failed(of).await,
    }
}
