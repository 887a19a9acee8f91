//! The further leases of a session: one per time to live, and those that outlive it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use concordat_protocol::{
    Key, Lease, Millis, SessionId,
    etcd::{Compare, Op, Relation, Target, Txn},
    record::Marker,
};
use etcd_client::LeaseTimeToLiveOptions;
use futures::FutureExt;
use parking_lot::Mutex;

use super::lease::{self, Granted};
use crate::{
    CommitError, Refusal, batch::LeaseId, clock::Clock, exchange::Exchange, observer::Purpose, record,
};

/// Leases that are granted when they are first needed.
pub(crate) struct Leases {
    session: SessionId,
    exchange: Exchange,
    clock: Clock,
    known: Mutex<HashMap<Lease, Known>>,
    granting: tokio::sync::Mutex<u64>,
}

#[derive(Clone)]
struct Known {
    lease: Granted,
    guard: Key,
    /// Not given to new puts from then on, on the monotonic clock.
    until: Millis,
}

impl Known {
    /// Whether it was kept alive and is no more: what is shared for a retention is never believed.
    fn is_lost(&self) -> bool {
        self.until == Millis::MAX && self.lease.belief.until() == 0
    }
}

impl Leases {
    /// Of a session; `exchange` asks on the connection for keepalives.
    pub(crate) fn new(session: SessionId, exchange: Exchange, clock: Clock) -> Self {
        let known = Mutex::new(HashMap::new());
        Self { session, exchange, clock, known, granting: tokio::sync::Mutex::new(0) }
    }

    /// Which lease of etcd's a put is to name.
    pub(crate) fn find(&self, lease: &Lease) -> Option<LeaseId> {
        let known = self.known.lock();
        let known =
            known.get(lease).filter(|known| self.clock.monotonic() < known.until && !known.is_lost())?;
        Some(LeaseId { id: known.lease.id, guard: Some(known.guard.clone()) })
    }

    /// This time to live, or the next longer one whose lease was not lost.
    pub(crate) fn live_ttl(&self, mut ttl: Millis) -> Millis {
        let known = self.known.lock();
        while known.get(&Lease::Ttl(self.session.clone(), ttl)).is_some_and(Known::is_lost) {
            ttl += 1;
        }
        ttl
    }

    /// Until when the lease for this time to live is believed.
    pub(crate) fn believed_until(&self, ttl: Millis) -> Option<Millis> {
        let known = self.known.lock();
        known.get(&Lease::Ttl(self.session.clone(), ttl)).map(|known| known.lease.belief.until())
    }

    /// Grants the lease if there is none that new puts may name.
    pub(crate) async fn ensure(self: &Arc<Self>, lease: &Lease) -> Result<(), CommitError> {
        if self.find(lease).is_some() {
            return Ok(());
        }
        let mut count = self.granting.lock().await;
        if self.find(lease).is_some() {
            return Ok(());
        }
        *count += 1;
        let refused = |refusal: Refusal| match refusal {
            Refusal::NoSpace => CommitError::NotApplied("etcd has no space for a lease".into()),
            other => CommitError::NotApplied(format!("no lease was granted: {other:?}")),
        };
        match lease {
            // Its successor would be believed for what was put under it and is gone.
            Lease::Ttl(..) if self.known.lock().contains_key(lease) => return Err(CommitError::SessionEnded),
            Lease::Ttl(_, ttl) => {
                let guard = self.marker(format!("ttl-{ttl}"));
                let granted = self.grant(*ttl, &guard).await.map_err(refused)?;
                let known = Known { lease: granted.clone(), guard, until: Millis::MAX };
                self.known.lock().insert(lease.clone(), known);
                let (connection, clock) = (self.exchange.connection.clone(), self.clock);
                tokio::spawn(async move { lease::keep(&connection, clock, &granted).await });
            }
            Lease::Retention(_, ttl) => {
                let guard = self.marker(format!("retention-{ttl}-{count}"));
                // Counted from before the grant was sent, so that what is put last stays its full time.
                let until = self.clock.monotonic() + ttl / 4;
                let granted = self.grant(ttl * 5 / 4, &guard).await.map_err(refused)?;
                let known = Known { lease: granted, guard, until };
                let former = self.known.lock().insert(lease.clone(), known);
                if let Some(former) = former {
                    tokio::spawn(self.clone().release(former.lease.id));
                }
            }
            Lease::Forever | Lease::Session(_) | Lease::With(..) => {}
        }
        Ok(())
    }

    fn marker(&self, name: String) -> Key {
        Key::Marker { session: self.session.clone(), name: name.into() }
    }

    /// Grants a lease and puts its guard under it, if the session still lives.
    async fn grant(&self, ttl: Millis, guard: &Key) -> Result<Granted, Refusal> {
        let granted = lease::grant(&self.exchange.connection, self.clock, ttl).await?;
        let alive = Compare {
            key: Key::Session(self.session.clone()),
            target: Target::CreateRevision,
            relation: Relation::Greater,
            value: 0,
        };
        let value: Bytes = record::encode(&Marker.into()).into();
        let txn = Txn {
            compares: vec![alive],
            then: vec![Op::Put { key: guard.clone(), value, lease: granted.id }],
            or_else: Vec::new(),
        };
        let refusal = match self.exchange.txn(Purpose::Session, &txn).await {
            Ok((answer, _)) if answer.held => return Ok(granted),
            Ok(_) => Refusal::LeaseNotFound,
            Err(refusal) => refusal,
        };
        lease::revoke(&self.exchange.connection, granted.id).await;
        Err(refusal)
    }

    /// Revokes a lease to which no new puts come, if nothing but its guard was put under it.
    async fn release(self: Arc<Self>, id: i64) {
        // What names it may still be on its way.
        tokio::time::sleep(Duration::from_mins(1)).await;
        let (mut client, _) = self.exchange.connection.client();
        let options = LeaseTimeToLiveOptions::new().with_keys();
        if let Ok(left) = client.lease_time_to_live(id, Some(options)).boxed().await
            && left.keys().len() <= 1
        {
            lease::revoke(&self.exchange.connection, id).await;
        }
    }

    /// Ends every lease that goes with the session.
    pub(crate) async fn revoke(&self) {
        let mut with_session = Vec::new();
        self.known.lock().retain(|of, known| {
            let goes = matches!(of, Lease::Ttl(..));
            if goes {
                known.lease.belief.end();
                with_session.push(known.lease.id);
            }
            !goes
        });
        for id in with_session {
            lease::revoke(&self.exchange.connection, id).await;
        }
    }
}
