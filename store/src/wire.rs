//! Transactions as etcd-client has them, and back.

use bytes::Bytes;
use concordat_protocol::{
    Entry, Key, Range, Record,
    etcd::{self, Item, Op, OpAnswer, Relation, Target},
};
use etcd_client::{
    CompareOp, DeleteOptions, GetOptions, PutOptions, TxnOp,
    proto::{PbKeyValue, PbTxnOpResponse, PbTxnResponse},
};

use crate::{keys, observer::Counts, record};

/// A transaction with its records encoded.
pub(crate) type Txn = etcd::Txn<Key, Range, Bytes>;
/// Its answer, with records decoded.
pub(crate) type TxnAnswer = etcd::TxnAnswer<Key, Record>;

/// A transaction for etcd.
pub(crate) fn txn(namespace: &str, txn: &Txn) -> etcd_client::Txn {
    let ops =
        |ops: &[Op<Key, Range, Bytes>]| ops.iter().map(|op| operation(namespace, op)).collect::<Vec<_>>();
    etcd_client::Txn::new()
        .when(txn.compares.iter().map(|one| compare(namespace, one)).collect::<Vec<_>>())
        .and_then(ops(&txn.then))
        .or_else(ops(&txn.or_else))
}

fn compare(namespace: &str, compare: &etcd::Compare<Key>) -> etcd_client::Compare {
    let key = keys::encode(namespace, &compare.key);
    let relation = match compare.relation {
        Relation::Equal => CompareOp::Equal,
        Relation::NotEqual => CompareOp::NotEqual,
        Relation::Greater => CompareOp::Greater,
        Relation::Less => CompareOp::Less,
    };
    match compare.target {
        Target::CreateRevision => etcd_client::Compare::create_revision(key, relation, compare.value),
        Target::ModRevision => etcd_client::Compare::mod_revision(key, relation, compare.value),
        Target::Version => etcd_client::Compare::version(key, relation, compare.value),
    }
}

fn operation(namespace: &str, op: &Op<Key, Range, Bytes>) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => TxnOp::put(
            keys::encode(namespace, key),
            value.clone(),
            (*lease != 0).then(|| PutOptions::new().with_lease(*lease)),
        ),
        Op::Delete(range) => {
            let (from, to) = keys::range(namespace, range);
            TxnOp::delete(from, (!to.is_empty()).then(|| DeleteOptions::new().with_range(to)))
        }
        Op::Get(range) => {
            let (from, options) = get(namespace, range);
            TxnOp::get(from, Some(options))
        }
        Op::Txn(inside) => TxnOp::txn(txn(namespace, inside)),
    }
}

/// Where a range begins, and the options with which it is read.
pub(crate) fn get(namespace: &str, range: &Range) -> (Vec<u8>, GetOptions) {
    let (from, to) = keys::range(namespace, range);
    let options = GetOptions::new();
    (from, if to.is_empty() { options } else { options.with_range(to) })
}

/// etcd's answer to a transaction.
pub(crate) fn answer(namespace: &str, response: PbTxnResponse) -> TxnAnswer {
    let answers = response
        .responses
        .into_iter()
        .filter_map(|one| one.response)
        .map(|one| match one {
            PbTxnOpResponse::ResponsePut(_) => OpAnswer::Put,
            PbTxnOpResponse::ResponseDeleteRange(delete) => OpAnswer::Deleted(delete.deleted),
            PbTxnOpResponse::ResponseRange(range) => {
                OpAnswer::Got(range.kvs.into_iter().filter_map(|kv| item(namespace, kv)).collect())
            }
            PbTxnOpResponse::ResponseTxn(inside) => OpAnswer::Txn(answer(namespace, inside)),
        })
        .collect();
    etcd::TxnAnswer { held: response.succeeded, answers }
}

/// A key. One that is not ours is left out, and said.
pub(crate) fn key(namespace: &str, bytes: &[u8]) -> Option<Key> {
    keys::decode(namespace, bytes).map_err(|error| tracing::error!(%error, "a key was left out")).ok()
}

/// A key and its item. What is not ours to read is left out, and said: only an older Concordat beside a newer one
/// can meet it.
pub(crate) fn item(namespace: &str, kv: PbKeyValue) -> Option<(Key, Item<Record>)> {
    let key = key(namespace, &kv.key)?;
    let value = record::decode(&kv.value)
        .map_err(|error| tracing::error!(%error, ?key, "a record was left out"))
        .ok()?;
    let (create_revision, mod_revision, version, lease) =
        (kv.create_revision, kv.mod_revision, kv.version, kv.lease);
    Some((key, Item { value, create_revision, mod_revision, version, lease }))
}

/// A key's item as the caller of a plan sees it.
pub(crate) fn entry((key, item): (Key, Item<Record>)) -> Entry {
    let Item { value: record, create_revision, mod_revision, lease, .. } = item;
    Entry { key, record, create_revision, mod_revision, lease }
}

/// What a transaction asks of etcd, counted, but for the plans it is made of.
pub(crate) fn count(txn: &Txn) -> Counts {
    let mut counts = Counts::default();
    add(txn, &mut counts);
    counts
}

fn add(txn: &Txn, counts: &mut Counts) {
    counts.compares += txn.compares.len();
    for op in txn.then.iter().chain(&txn.or_else) {
        match op {
            Op::Put { value, .. } => {
                counts.puts += 1;
                counts.bytes += value.len();
            }
            Op::Delete(_) => counts.deletes += 1,
            Op::Get(_) => counts.gets += 1,
            Op::Txn(inside) => add(inside, counts),
        }
    }
}
