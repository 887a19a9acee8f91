//! The real etcd, asked and understood in the model's terms.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use concordat_protocol::etcd::{self, Event, Item, Op, OpAnswer, Refused, Relation, Target, TxnAnswer};
use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions,
    KeyValue, LeaseGrantOptions, PutOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse, TxnResponse,
    WatchOptions,
};
use tokio::time::timeout;

use crate::{
    Answer, Bytes,
    request::{Keys, Request, Txn as Asked},
};

/// A client of the real etcd.
pub(crate) struct Real {
    client: Client,
}

/// Refusals as etcd words them.
const REFUSALS: [(&str, Refused); 3] = [
    ("etcdserver: duplicate key given in txn request", Refused::DuplicateKey),
    ("etcdserver: requested lease not found", Refused::LeaseNotFound),
    ("etcdserver: mvcc: database space exceeded", Refused::NoSpace),
];

impl Real {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Answer> {
        let answer = match request {
            Request::Txn(txn) => match (&*txn.compares, &*txn.then, &*txn.or_else) {
                ([], [op @ (Op::Put { .. } | Op::Delete(_) | Op::Get(_))], []) => self.call(op).await,
                _ => self.client.txn(lower(txn)).await.map(done),
            },
            Request::Grant(lease) => {
                let options = LeaseGrantOptions::new().with_id(*lease);
                match self.client.lease_grant(3_600, Some(options)).await {
                    // It lives already: to the model that is the same.
                    Err(error) if error.to_string().contains("lease already exists") => Ok(Answer::Agreed),
                    granted => granted.map(|_| Answer::Agreed),
                }
            }
            Request::Revoke(lease) => self.client.lease_revoke(*lease).await.map(|_| Answer::Agreed),
            Request::NoSpace(on) => {
                let action = if *on { AlarmAction::Activate } else { AlarmAction::Deactivate };
                self.client.alarm(action, AlarmType::Nospace, None).await.map(|_| Answer::Agreed)
            }
            Request::Watch { after, keys } => return self.watch(*after, keys).await,
        };
        answer.or_else(refused)
    }

    /// A single operation by its own call.
    async fn call(&mut self, op: &Op<Bytes, Keys, Bytes>) -> Result<Answer, Error> {
        let (answer, header) = match op {
            Op::Put { key, value, lease } => {
                let options = PutOptions::new().with_lease(*lease);
                let mut response = self.client.put(key.clone(), value.clone(), Some(options)).await?;
                (OpAnswer::Put, response.take_header())
            }
            Op::Delete(keys) => {
                let (key, options) = delete(keys);
                let mut response = self.client.delete(key, Some(options)).await?;
                (OpAnswer::Deleted(response.deleted()), response.take_header())
            }
            Op::Get(keys) => {
                let (key, options) = get(keys);
                let mut response = self.client.get(key, Some(options)).await?;
                (OpAnswer::Got(response.kvs().iter().map(item).collect()), response.take_header())
            }
            Op::Txn(txn) => return self.client.txn(lower(txn)).await.map(done),
        };
        Ok(Answer::Done(TxnAnswer { held: true, answers: vec![answer] }, revision(header.as_ref())))
    }

    /// Every event up to now.
    async fn watch(&mut self, after: i64, keys: &Keys) -> Result<Answer> {
        let answer = self.client.get("revision", None).await?;
        let now = revision(answer.header());
        let mut events = Vec::new();
        if after >= now {
            return Ok(Answer::Events(events));
        }
        let (key, end) = bounds(keys);
        let options = WatchOptions::new().with_range(end).with_start_revision(after + 1);
        let mut stream = self.client.watch(key, Some(options)).await?;
        loop {
            // etcd does not answer this while the watch still catches up: ask again.
            stream.request_progress().await?;
            let Ok(message) = timeout(Duration::from_millis(20), stream.message()).await else { continue };
            let message = message?.context("the watch ended")?;
            if message.canceled() {
                bail!("the watch was cancelled: {}", message.cancel_reason());
            }
            events.extend(message.events().iter().filter_map(event));
            // Without events and not the first: how far the watch is.
            if !message.created() && message.events().is_empty() && revision(message.header()) >= now {
                return Ok(Answer::Events(events));
            }
        }
    }
}

fn refused(error: Error) -> Result<Answer> {
    let Error::GRpcStatus(status) = &error else { return Err(error.into()) };
    match REFUSALS.iter().find(|(message, _)| *message == status.message()) {
        Some((_, refused)) => Ok(Answer::Refused(*refused)),
        None => Err(error.into()),
    }
}

fn done(response: TxnResponse) -> Answer {
    Answer::Done(txn_answer(&response), revision(response.header()))
}

fn txn_answer(response: &TxnResponse) -> TxnAnswer<Bytes, Bytes> {
    let answer = |response| match response {
        TxnOpResponse::Put(_) => OpAnswer::Put,
        TxnOpResponse::Delete(response) => OpAnswer::Deleted(response.deleted()),
        TxnOpResponse::Get(response) => OpAnswer::Got(response.kvs().iter().map(item).collect()),
        TxnOpResponse::Txn(response) => OpAnswer::Txn(txn_answer(&response)),
    };
    TxnAnswer {
        held: response.succeeded(),
        answers: response.op_responses().into_iter().map(answer).collect(),
    }
}

fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, ResponseHeader::revision)
}

fn item(kv: &KeyValue) -> (Bytes, Item<Bytes>) {
    let item = Item {
        value: kv.value().to_vec(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
        version: kv.version(),
        lease: kv.lease(),
    };
    (kv.key().to_vec(), item)
}

fn event(event: &etcd_client::Event) -> Option<Event<Bytes, Bytes>> {
    let kv = event.kv()?;
    let (key, item) = item(kv);
    let item = (event.event_type() == EventType::Put).then_some(item);
    Some(Event { revision: kv.mod_revision(), key, item })
}

fn lower(txn: &Asked) -> Txn {
    let ops = |ops: &[Op<Bytes, Keys, Bytes>]| ops.iter().map(lower_op).collect::<Vec<_>>();
    Txn::new()
        .when(txn.compares.iter().map(lower_compare).collect::<Vec<_>>())
        .and_then(ops(&txn.then))
        .or_else(ops(&txn.or_else))
}

fn lower_op(op: &Op<Bytes, Keys, Bytes>) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            TxnOp::put(key.clone(), value.clone(), Some(PutOptions::new().with_lease(*lease)))
        }
        Op::Delete(keys) => {
            let (key, options) = delete(keys);
            TxnOp::delete(key, Some(options))
        }
        Op::Get(keys) => {
            let (key, options) = get(keys);
            TxnOp::get(key, Some(options))
        }
        Op::Txn(txn) => TxnOp::txn(lower(txn)),
    }
}

fn lower_compare(compare: &etcd::Compare<Bytes>) -> Compare {
    let op = match compare.relation {
        Relation::Equal => CompareOp::Equal,
        Relation::NotEqual => CompareOp::NotEqual,
        Relation::Greater => CompareOp::Greater,
        Relation::Less => CompareOp::Less,
    };
    let make = match compare.target {
        Target::CreateRevision => Compare::create_revision,
        Target::ModRevision => Compare::mod_revision,
        Target::Version => Compare::version,
    };
    make(compare.key.clone(), op, compare.value)
}

/// First key and end as etcd takes them: without an end it is one key.
fn bounds(keys: &Keys) -> (Bytes, Bytes) {
    match keys {
        Keys::One(key) => (key.clone(), Vec::new()),
        Keys::Span(start, end) => (start.clone(), end.clone()),
    }
}

fn delete(keys: &Keys) -> (Bytes, DeleteOptions) {
    let (key, end) = bounds(keys);
    (key, DeleteOptions::new().with_range(end))
}

fn get(keys: &Keys) -> (Bytes, GetOptions) {
    let (key, end) = bounds(keys);
    (key, GetOptions::new().with_range(end))
}
