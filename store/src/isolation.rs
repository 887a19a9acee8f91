//! The wall around a namespace, proven by whoever is to stay within it: everything that it might do beyond is tried, on
//! keys that nobody has.

use std::fmt;

use concordat_protocol::Range;
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Error, GetOptions, PutOptions, Txn, TxnOp, WatchOptions,
};
use futures::{FutureExt, future::try_join_all};

use crate::{
    ConnectError, Refusal, access,
    exchange::{Asked, Exchange},
    keys,
    observer::{Counts, Purpose},
    read::unanswered,
};

/// That a credential may do more than it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotIsolated {
    /// The namespace.
    pub namespace: String,
    /// The version of etcd.
    pub version: String,
    /// What was allowed.
    pub allowed: Vec<String>,
    /// Whether etcd refuses what is asked plainly: then it does not look everywhere.
    pub refuses_plain: bool,
}

impl std::error::Error for NotIsolated {}

impl fmt::Display for NotIsolated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, version, allowed, refuses_plain } = self;
        let user = access::user_of(namespace);
        let prefix = prefix(namespace);
        write!(f, "not isolated: beyond {prefix} etcd {version} lets this sidecar {}: ", allowed.join(", "))?;
        if *refuses_plain {
            write!(f, "it refuses a plain get and put and does not look everywhere: upgrade etcd")
        } else {
            write!(
                f,
                "turn etcd's authentication on (the operator does with --identities) and let the sidecar's certificate \
                 name a user whose one role is readwrite on {prefix} and nothing else: see `etcdctl user get {user} \
                 --detail`"
            )
        }
    }
}

/// Something that must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Get,
    Put,
    Compare,
    NestedGet,
    NestedPut,
    PrevKvPut,
    PrevKvDelete,
    Watch,
}

const PROBES: [Probe; 8] = [
    Probe::Get,
    Probe::Put,
    Probe::Compare,
    Probe::NestedGet,
    Probe::NestedPut,
    Probe::PrevKvPut,
    Probe::PrevKvDelete,
    Probe::Watch,
];

impl Probe {
    fn does(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Compare => "compare",
            Self::NestedGet => "get in a nested transaction",
            Self::NestedPut => "put in a nested transaction",
            Self::PrevKvPut => "put, and so read (PrevKv)",
            Self::PrevKvDelete => "delete, and so read (PrevKv)",
            Self::Watch => "watch",
        }
    }

    /// Asks; true when it was allowed. `own` is a key that it may ask about. What is allowed changes nothing: nobody has
    /// the keys, and a put is behind a compare that never holds.
    async fn run(self, mut client: Client, own: Vec<u8>, key: Vec<u8>, end: Vec<u8>) -> Result<bool, Error> {
        let never = || Txn::new().when([Compare::version(own.clone(), CompareOp::Less, 0)]);
        let get = GetOptions::new().with_range(end.clone()).with_limit(1).with_keys_only();
        let put = |prev: bool| {
            let options = if prev { PutOptions::new().with_prev_key() } else { PutOptions::new() };
            TxnOp::put(key.clone(), "", Some(options))
        };
        match self {
            Self::Get => client.get(key, Some(get)).await.map(drop)?,
            Self::Put => client.txn(never().and_then([put(false)])).await.map(drop)?,
            Self::Compare => {
                let compare = Compare::version(key, CompareOp::Equal, 0);
                client.txn(Txn::new().when([compare])).await.map(drop)?;
            }
            Self::NestedGet => {
                let inner = Txn::new().and_then([TxnOp::get(key, Some(get))]);
                client.txn(Txn::new().and_then([TxnOp::txn(inner)])).await.map(drop)?;
            }
            Self::NestedPut => {
                let inner = never().and_then([put(false)]);
                client.txn(never().and_then([TxnOp::txn(inner)])).await.map(drop)?;
            }
            Self::PrevKvPut => client.txn(never().and_then([put(true)])).await.map(drop)?,
            Self::PrevKvDelete => {
                client.delete(key, Some(DeleteOptions::new().with_prev_key())).await.map(drop)?;
            }
            Self::Watch => {
                let watch = WatchOptions::new().with_range(end).with_prev_key();
                let mut stream = client.watch_client().watch(key, Some(watch)).await?;
                return Ok(stream.message().await?.is_some_and(|answer| !answer.canceled()));
            }
        }
        Ok(true)
    }
}

/// Tries everything that must be refused.
///
/// # Errors
/// [`ConnectError::NotIsolated`] when some of it is allowed, [`ConnectError::Unreachable`] when it cannot be tried.
pub(crate) async fn prove(exchange: &Exchange, version: &str) -> Result<(), ConnectError> {
    let namespace = &*exchange.namespace;
    let (from, _) = keys::range(namespace, &Range::All);
    let own = [&*from, b"wall"].concat();
    let mut tried: Vec<(Probe, String, Vec<u8>, Vec<u8>)> = Vec::new();
    for beyond in beyond(namespace) {
        let tries = PROBES.map(|probe| (probe, beyond.clone(), beyond.clone().into_bytes(), Vec::new()));
        tried.extend(tries);
    }
    // From within the namespace on to the end of all keys.
    for probe in [Probe::Get, Probe::NestedGet, Probe::Watch] {
        tried.push((probe, format!("everything from {} on", prefix(namespace)), own.clone(), vec![0]));
    }
    let asked = tried.into_iter().map(async |(probe, what, key, end)| {
        let request = |client: Client| -> Asked<bool> {
            let (own, key, end) = (own.clone(), key.clone(), end.clone());
            async move { probe.run(client, own, key, end).await }.boxed()
        };
        match exchange.client(Purpose::Session, Counts::default(), request).await {
            Ok(true) => Ok((probe, Some(format!("{} {what}", probe.does())))),
            Ok(false) | Err(Refusal::Denied) => Ok((probe, None)),
            Err(refusal) => Err(ConnectError::Unreachable {
                endpoints: "the given addresses".into(),
                why: format!(
                    "whether it may {} {what} was not found out: {}",
                    probe.does(),
                    unanswered(refusal)
                ),
            }),
        }
    });
    let tried = try_join_all(asked).await?;
    let plain = |probe| matches!(probe, Probe::Get | Probe::Put);
    let refuses_plain = tried.iter().all(|(probe, allowed)| !plain(*probe) || allowed.is_none());
    let allowed: Vec<String> = tried.into_iter().filter_map(|(_, allowed)| allowed).collect();
    if allowed.is_empty() {
        return Ok(());
    }
    let (namespace, version) = (namespace.to_owned(), version.to_owned());
    Err(ConnectError::NotIsolated(NotIsolated { namespace, version, allowed, refuses_plain }))
}

/// Keys that nobody has: of no namespace; and of namespaces that come right before and right after this one, as a role
/// would let through whose range forgot the `/` at its end, or its end.
fn beyond(namespace: &str) -> [String; 3] {
    let prefix = prefix(namespace);
    let bare = prefix.trim_end_matches('/');
    ["/concordat/-/wall".into(), format!("{bare}-wall/wall"), format!("{bare}0wall/wall")]
}

fn prefix(namespace: &str) -> String {
    String::from_utf8_lossy(&keys::range(namespace, &Range::All).0).into_owned()
}
