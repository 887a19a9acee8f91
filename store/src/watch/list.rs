//! Ranges read page by page, all at one revision.

use concordat_protocol::{Entry, Key, Range, Record, queue::Segment};
use etcd_client::{GetOptions, proto::PbKeyValue};

use super::hub::Scope;
use crate::{Refusal, exchange::Exchange, observer::Purpose, wire};

/// Entries of a page.
const PAGE: i64 = 256;
/// Keys of a page.
const PAGE_OF_KEYS: i64 = 4_096;

/// All entries of a range at one revision; of a queue's segments the keys alone, with an empty record: together they may be
/// larger than memory.
pub(crate) async fn list(exchange: &Exchange, scope: &Scope) -> Result<(Vec<Entry>, i64), Refusal> {
    let Range::Live(queue) = &scope.range else { return list_values(exchange, scope, 0).await };
    let part = |range| Scope { namespace: scope.namespace.clone(), range };
    let (mut entries, revision) = list_values(exchange, &part(Range::Claims(queue.clone())), 0).await?;
    let progresses = part(Range::Progresses(queue.clone()));
    entries.append(&mut list_values(exchange, &progresses, revision).await?.0);
    let (segments, _) = list_keys(exchange, &part(Range::Segments(queue.clone())), revision).await?;
    entries.extend(segments.into_iter().map(|(key, create_revision, mod_revision)| {
        // With keys alone etcd 3.7 tells no leases.
        let (record, lease) = (Record::Segment(Segment::default()), 0);
        Entry { key, record, create_revision, mod_revision, lease }
    }));
    Ok((entries, revision))
}

/// All entries of a range, with their records, at a revision (0: the one etcd has).
async fn list_values(
    exchange: &Exchange,
    scope: &Scope,
    revision: i64,
) -> Result<(Vec<Entry>, i64), Refusal> {
    let (kvs, revision) = pages(exchange, scope, GetOptions::new().with_limit(PAGE), revision).await?;
    let entries =
        kvs.into_iter().filter_map(|kv| wire::item(&scope.namespace, kv)).map(wire::entry).collect();
    Ok((entries, revision))
}

/// All keys of a range at a revision (0: the one etcd has), with their create and mod revisions.
pub(crate) async fn list_keys(
    exchange: &Exchange,
    scope: &Scope,
    revision: i64,
) -> Result<(Vec<(Key, i64, i64)>, i64), Refusal> {
    let options = GetOptions::new().with_limit(PAGE_OF_KEYS).with_keys_only();
    let (kvs, revision) = pages(exchange, scope, options, revision).await?;
    let keys = kvs.into_iter().filter_map(|kv| {
        let key = wire::key(&scope.namespace, &kv.key)?;
        Some((key, kv.create_revision, kv.mod_revision))
    });
    Ok((keys.collect(), revision))
}

async fn pages(
    exchange: &Exchange,
    scope: &Scope,
    options: GetOptions,
    mut revision: i64,
) -> Result<(Vec<PbKeyValue>, i64), Refusal> {
    let (mut from, to) = scope.range();
    let mut kvs = Vec::new();
    loop {
        // The first page settles the revision of the others.
        let mut options =
            if revision == 0 { options.clone() } else { options.clone().with_revision(revision) };
        if !to.is_empty() {
            options = options.with_range(to.clone());
        }
        let page = exchange.get(Purpose::Read, from, options).await?.0;
        if revision == 0 {
            revision = page.header.as_ref().map_or(0, |header| header.revision);
        }
        let more = page.more;
        kvs.extend(page.kvs);
        match kvs.last() {
            Some(last) if more => {
                from = last.key.clone();
                from.push(0);
            }
            _ => return Ok((kvs, revision)),
        }
    }
}
