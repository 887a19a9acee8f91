//! What clients do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use concordat_protocol::{
    Key, Kind, Name,
    lock::{
        Holder,
        plans::{self, Frees},
    },
};

use super::{
    super::{
        http::Connections,
        load::{Figure, Meter, all},
        pairs, servers,
    },
    contended,
    stage::{COMMITTED, FAIR, STAYS, Stage},
};

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// etcd's own lock service, called directly, as a sidecar is: by a connection a client, or one for all.
    V3Lock(Connections),
    /// ZooKeeper's recipe, called directly, by a session a client, or by the few that serve it best.
    ZooKeeper(Connections),
    /// Redis, called directly, likewise.
    Redis(Connections),
    /// The plans of a sidecar, committed by a store in this process.
    Store,
    /// Through a sidecar; both steps are committed, as of mode `Lease` they always are.
    Sidecar(Connections),
    /// Through a sidecar, of mode `CompareAndSwap`, whose lock stays where it was let go until another wants it.
    Stays(Connections),
    /// etcd's own recipe of a mutex.
    Recipe,
    /// First come, first served, by one sidecar.
    FairOne,
    /// By four.
    FairFour,
    /// In no order, by one sidecar.
    SwapOne,
    /// By four.
    SwapFour,
}

impl Work {
    /// One key a client.
    pub(super) const PAIRS: [Self; 11] = [
        Self::V3Lock(Connections::Own),
        Self::V3Lock(Connections::Shared),
        Self::ZooKeeper(Connections::Own),
        Self::ZooKeeper(Connections::Shared),
        Self::Redis(Connections::Own),
        Self::Redis(Connections::Shared),
        Self::Store,
        Self::Sidecar(Connections::Own),
        Self::Sidecar(Connections::Shared),
        Self::Stays(Connections::Own),
        Self::Stays(Connections::Shared),
    ];
    /// One key for all.
    pub(super) const CONTENDED: [Self; 5] =
        [Self::Recipe, Self::FairOne, Self::FairFour, Self::SwapOne, Self::SwapFour];

    pub(super) fn name(self) -> String {
        let (what, how) = match self {
            Self::V3Lock(connections) => ("etcd's v3lock, called directly", connections.counted()),
            Self::ZooKeeper(Connections::Own) => ("ZooKeeper, called directly", "a session a client"),
            Self::ZooKeeper(Connections::Shared) => ("ZooKeeper, called directly", "16 sessions"),
            Self::Redis(connections) => ("Redis, AOF always, called directly", connections.counted()),
            Self::Sidecar(connections) => {
                ("through the sidecar, both steps committed (Lease)", connections.spoken())
            }
            Self::Stays(connections) => {
                ("through the sidecar, a lock that stayed (CompareAndSwap)", connections.spoken())
            }
            Self::Store => return "the store in process".into(),
            Self::Recipe => return "etcd's own mutex recipe".into(),
            Self::FairOne => return "FairQueue, one sidecar".into(),
            Self::FairFour => return "FairQueue, four sidecars".into(),
            Self::SwapOne => return "CompareAndSwap, one sidecar".into(),
            Self::SwapFour => return "CompareAndSwap, four sidecars".into(),
        };
        format!("{what}; {how}")
    }

    pub(super) async fn run(self, stage: &Stage, clients: usize, time: Duration) -> Result<Figure> {
        let before = stage.spent()?;
        let figure = self.load(stage, clients, time).await?;
        Ok(figure.spending(before, stage.spent()?))
    }

    async fn load(self, stage: &Stage, clients: usize, time: Duration) -> Result<Figure> {
        let sidecar = *stage.ports(1)?.first().context("no sidecar")?;
        match self {
            Self::V3Lock(connections) => {
                pairs::v3lock(servers::clients(&stage.etcd, connections, clients).await?, time).await
            }
            Self::ZooKeeper(connections) => stage.zookeeper.pairs(connections, clients, time).await,
            Self::Redis(connections) => stage.redis.pairs(connections, clients, time).await,
            Self::Store => store(stage, clients, time).await,
            Self::Sidecar(connections) => {
                pairs::sidecar(connections, sidecar, COMMITTED, clients, time).await
            }
            Self::Stays(connections) => pairs::sidecar(connections, sidecar, STAYS, clients, time).await,
            Self::Recipe => contended::recipe(&stage.client, clients, time).await,
            Self::FairOne => contended::sidecars(&stage.ports(1)?, FAIR, clients, time).await,
            Self::FairFour => contended::sidecars(&stage.ports(4)?, FAIR, clients, time).await,
            Self::SwapOne => contended::sidecars(&stage.ports(1)?, STAYS, clients, time).await,
            Self::SwapFour => contended::sidecars(&stage.ports(4)?, STAYS, clients, time).await,
        }
    }
}

/// What a sidecar commits for a pair, all guards included, without HTTP and without a machine.
async fn store(stage: &Stage, clients: usize, time: Duration) -> Result<Figure> {
    let (store, lock) = (&stage.store, Name::from(STAYS));
    let definition = Key::Definition { kind: Kind::Lock, name: lock.clone() };
    let found = store.read(vec![definition.into()]).await?;
    let created = found.reads.into_iter().flatten().next().context("no definition")?.create_revision;
    let meter = Meter::start(time)?;
    all((0..clients).map(|number| {
        let (meter, lock) = (meter.clone(), lock.clone());
        async move {
            let key = Name::from(&*format!("store-{number}"));
            while meter.goes_on() {
                let since = Instant::now();
                let holder = Holder {
                    session: store.session().id,
                    pod: "generator".into(),
                    owner: String::new(),
                    since: store.clock().now().unix,
                    regrants: 0,
                    stays: false,
                };
                let taken = store.commit(plans::acquire(&lock, &key, created, 15_000, holder, None)).await?;
                ensure!(taken.held, "{key} is held");
                let left = store.commit(plans::release(&lock, &key, taken.revision, Frees::Holder)).await?;
                ensure!(left.held, "{key} was not held");
                meter.done(1, since);
            }
            Ok(())
        }
    }))
    .await?;
    Ok(meter.figure())
}
