//! etcd as those see it who look after it: every namespace, no session, one request at a time.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use concordat_protocol::{
    Answer, App, Key, Lease, Millis, Plan, Range, Write,
    etcd::{Op, OpAnswer, Txn},
    session::Session,
};
use tokio::sync::mpsc;

use crate::{
    CommitError, Config, ConnectError, Refusal, Tls,
    connection::{Connection, Dialer},
    exchange::Exchange,
    observer::{Purpose, Silent},
    read, record,
    store::check_version,
    watch::{self, Command, Scope, Watch},
    wire,
};

/// How etcd is reached, and as whom.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// `http://` or `https://` addresses of etcd's members; one of them is used at a time, the next one when it fails.
    pub endpoints: Vec<String>,
    /// Certificates, for `https://`.
    pub tls: Option<Tls>,
    /// etcd's user and password, if it asks for them.
    pub user: Option<(String, String)>,
    /// How long one request to etcd may take, milliseconds.
    pub request_timeout: Millis,
}

impl Default for AdminConfig {
    /// Requests of 5 s, no certificates, no user, and no endpoint yet.
    fn default() -> Self {
        Self { endpoints: Vec::new(), tls: None, user: None, request_timeout: 5_000 }
    }
}

/// All of Concordat's etcd, for the operator and for people. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    connection: Arc<Connection>,
    hub: mpsc::UnboundedSender<Command>,
    watches: Arc<AtomicU64>,
}

impl Admin {
    /// Connects to etcd.
    ///
    /// # Errors
    /// When no endpoint answers, etcd is too old, or the configuration cannot be used.
    pub async fn connect(config: AdminConfig) -> Result<Self, ConnectError> {
        let nobody = Session { pod: String::new(), app: App::from(""), accepts: false };
        let AdminConfig { endpoints, tls, user, request_timeout } = config;
        let config = Config { tls, user, request_timeout, ..Config::new(endpoints, "", nobody) };
        let connection = Arc::new(Connection::open(Dialer::new(&config)?, 0).await?);
        let (hub, inbox) = mpsc::unbounded_channel();
        let admin = Self { connection, hub: hub.clone(), watches: Arc::default() };
        check_version(&admin.exchange(""), &config).await?;
        // The hub holds a sender of its own, so it ends with its runtime.
        tokio::spawn(watch::run(admin.exchange(""), hub, inbox));
        let connection = admin.connection.clone();
        tokio::spawn(async move { connection.renew().await });
        Ok(admin)
    }

    /// Runs a plan by itself. The caller makes it harmless to run it again, by its compares: an outcome that is not
    /// known is not looked into.
    ///
    /// # Errors
    /// [`CommitError`]; a put under a lease is refused, as there is no session.
    pub async fn write(&self, namespace: &str, plan: Plan) -> Result<Answer, CommitError> {
        let txn = lower(plan)?;
        let (answer, revision) = match self.exchange(namespace).txn(Purpose::Commit, &txn).await {
            Ok(answered) => answered,
            Err(Refusal::Unknown(why)) => return Err(CommitError::Unknown(why)),
            // What takes the last of it is applied.
            Err(Refusal::NoSpace) => return Err(CommitError::Unknown("etcd has no space".into())),
            Err(refusal) => return Err(read::unanswered(refusal)),
        };
        let reads = answer.answers.into_iter().filter_map(|answer| match answer {
            OpAnswer::Got(items) => Some(items.into_iter().map(wire::entry).collect()),
            _ => None,
        });
        Ok(Answer { held: answer.held, revision, reads: reads.collect() })
    }

    /// Reads several ranges of a namespace at one revision, linearizably: [`Answer::reads`] in this order.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when etcd does not answer.
    pub async fn read(&self, namespace: &str, ranges: Vec<Range>) -> Result<Answer, CommitError> {
        read::read(&self.exchange(namespace), ranges).await
    }

    /// The keys of a range with their create and mod revisions, in the order of etcd's keys, and the revision at which
    /// that is so.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when etcd does not answer.
    pub async fn list_keys(
        &self,
        namespace: &str,
        range: Range,
    ) -> Result<(Vec<(Key, i64, i64)>, i64), CommitError> {
        read::list_keys(&self.exchange(namespace), range, 0).await
    }

    /// Every namespace of which anything is remembered.
    ///
    /// # Errors
    /// [`CommitError::NotApplied`] when etcd does not answer.
    pub async fn namespaces(&self) -> Result<Vec<String>, CommitError> {
        read::namespaces(&self.exchange("")).await
    }

    /// Tells what there is in a range of a namespace, then what happens there.
    pub fn watch(&self, namespace: &str, range: Range) -> Watch {
        let id = self.watches.fetch_add(1, Ordering::Relaxed);
        Watch::start(id, Scope { namespace: namespace.into(), range }, self.hub.clone())
    }

    pub(crate) fn exchange(&self, namespace: &str) -> Exchange {
        Exchange {
            namespace: namespace.into(),
            connection: self.connection.clone(),
            observer: Arc::new(Silent),
            memory: None,
        }
    }
}

/// A plan as etcd is asked it by itself.
pub(crate) fn lower(plan: Plan) -> Result<wire::Txn, CommitError> {
    let mut then = Vec::new();
    for write in plan.writes {
        then.push(match write {
            Write::Put(key, value, Lease::Forever) => {
                Op::Put { key, value: record::encode(&value).into(), lease: 0 }
            }
            Write::Put(..) => return Err(CommitError::NotApplied("a lease needs a session".into())),
            Write::Delete(range) => Op::Delete(range),
        });
    }
    then.extend(plan.reads.into_iter().map(Op::Get));
    Ok(Txn { compares: plan.compares, then, or_else: plan.otherwise.into_iter().map(Op::Get).collect() })
}
