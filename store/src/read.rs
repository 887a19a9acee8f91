//! Reads: linearizable, each at one revision.

use concordat_protocol::{
    Answer, Key, Range,
    etcd::{Op, OpAnswer, Txn},
};
use etcd_client::GetOptions;

use crate::{
    CommitError, Refusal,
    exchange::Exchange,
    keys,
    observer::Purpose,
    watch::{self, Scope},
    wire,
};

/// Several ranges at one revision.
pub(crate) async fn read(exchange: &Exchange, ranges: Vec<Range>) -> Result<Answer, CommitError> {
    let txn = Txn { then: ranges.into_iter().map(Op::Get).collect(), ..Txn::default() };
    let (answer, revision) = exchange.txn(Purpose::Read, &txn).await.map_err(unanswered)?;
    let reads = answer.answers.into_iter().filter_map(|answer| match answer {
        OpAnswer::Got(items) => Some(items.into_iter().map(wire::entry).collect()),
        _ => None,
    });
    Ok(Answer { held: true, revision, reads: reads.collect() })
}

/// How many keys there are in a range, and at which revision.
pub(crate) async fn count(exchange: &Exchange, range: &Range) -> Result<(u64, i64), CommitError> {
    let (from, options) = wire::get(&exchange.namespace, range);
    let response = exchange.get(Purpose::Read, from, options.with_count_only()).await.map_err(unanswered)?;
    let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
    Ok((response.count().unsigned_abs(), revision))
}

/// Every namespace of which anything is remembered, at a request each.
pub(crate) async fn namespaces(exchange: &Exchange) -> Result<Vec<String>, CommitError> {
    let (mut from, to) = keys::everything();
    let mut found = Vec::new();
    loop {
        let options = GetOptions::new().with_range(to.clone()).with_limit(1).with_keys_only();
        let response = exchange.get(Purpose::Read, from, options).await.map_err(unanswered)?;
        let Some((namespace, next)) = response.kvs().first().and_then(|kv| keys::namespace(kv.key())) else {
            return Ok(found);
        };
        found.extend(namespace);
        from = next;
    }
}

/// The keys of a range with their create and mod revisions at a revision (0: now), and at which.
pub(crate) async fn list_keys(
    exchange: &Exchange,
    range: Range,
    revision: i64,
) -> Result<(Vec<(Key, i64, i64)>, i64), CommitError> {
    let scope = Scope { namespace: exchange.namespace.clone(), range };
    watch::list_keys(exchange, &scope, revision).await.map_err(unanswered)
}

/// A request that was not answered and would have changed nothing.
pub(crate) fn unanswered(refusal: Refusal) -> CommitError {
    CommitError::NotApplied(match refusal {
        Refusal::Unknown(why) | Refusal::NotSent(why) => why,
        Refusal::Denied => "etcd's user may not do this".into(),
        Refusal::Stale => "permissions in etcd change all the time".into(),
        Refusal::Compacted => "the revision is compacted".into(),
        other => format!("{other:?}"),
    })
}
