//! Watches: nothing is left out in silence, no revision is torn.

use std::collections::BTreeMap;

use concordat_protocol::{Entry, Key, Plan, Range};
use concordat_store::{Store, Watch, WatchEvent};
use concordat_tests::{etcd::Etcd, proxy::Proxy};
use futures::future::join_all;

use crate::{change, connect, key, revision_of};

/// What a reader knows who believes all it is told.
#[derive(Default)]
struct Known {
    entries: BTreeMap<Key, Entry>,
    snapshots: usize,
    /// Revisions of changes, in the order in which they were told.
    told: Vec<i64>,
}

impl Known {
    async fn read(&mut self, watch: &mut Watch) {
        for event in watch.next().await {
            match event {
                WatchEvent::Snapshot { entries, .. } => {
                    self.snapshots += 1;
                    self.entries = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
                }
                WatchEvent::Put(entry) => {
                    self.told.push(entry.mod_revision);
                    self.entries.insert(entry.key.clone(), entry);
                }
                WatchEvent::Deleted { key, revision } => {
                    self.told.push(revision);
                    self.entries.remove(&key);
                }
                WatchEvent::Progress(_) => {}
            }
        }
    }

    /// Reads on until a key is known as of a revision.
    async fn until(&mut self, watch: &mut Watch, name: &str, revision: i64) {
        while self.entries.get(&key(name)).is_none_or(|entry| entry.mod_revision < revision) {
            self.read(watch).await;
        }
    }
}

/// Changes a key so many times; answers all its revisions.
async fn changes(store: &Store, name: &str, times: usize) -> Vec<i64> {
    let mut revisions = vec![revision_of(store, name).await];
    for _ in 0..times {
        let answer = store.commit(change(name, revisions[revisions.len() - 1])).await.unwrap();
        assert!(answer.held);
        revisions.push(answer.revision);
    }
    revisions.split_off(1)
}

#[tokio::test]
async fn every_change_is_told_once_and_in_order_over_lost_connections() {
    let etcd = Etcd::start().await.unwrap();
    let writer = connect(etcd.endpoint(0)).await;
    let proxy = Proxy::start(etcd.address(0)).await.unwrap();
    let reader = connect(proxy.endpoint()).await;
    let mut watch = reader.watch(Range::Locks);
    let mut known = Known::default();
    known.read(&mut watch).await;
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.extend(changes(&writer, "a", 10).await);
        proxy.cut();
        expected.extend(changes(&writer, "a", 10).await);
        known.until(&mut watch, "a", expected[expected.len() - 1]).await;
    }
    assert_eq!(known.told, expected);
    assert_eq!(known.snapshots, 1);
}

#[tokio::test]
async fn what_was_compacted_before_it_was_told_comes_as_a_snapshot() {
    let etcd = Etcd::start().await.unwrap();
    let writer = connect(etcd.endpoint(0)).await;
    let proxy = Proxy::start(etcd.address(0)).await.unwrap();
    let reader = connect(proxy.endpoint()).await;
    let mut watch = reader.watch(Range::Locks);
    let mut known = Known::default();
    let before = changes(&writer, "a", 3).await;
    known.until(&mut watch, "a", before[2]).await;
    let snapshots = known.snapshots;
    proxy.refuse();
    let gone = changes(&writer, "gone", 1).await;
    writer.commit(Plan::new().delete(key("gone"))).await.unwrap();
    let after = changes(&writer, "a", 3).await;
    etcd.compact().await.unwrap();
    proxy.heal();
    known.until(&mut watch, "a", after[2]).await;
    assert_eq!(known.snapshots, snapshots + 1);
    assert!(!known.told.contains(&gone[0]));
    let (keys, _) = writer.list_keys(Range::Locks).await.unwrap();
    assert_eq!(
        known.entries.keys().cloned().collect::<Vec<_>>(),
        keys.into_iter().map(|(key, ..)| key).collect::<Vec<_>>()
    );
    // And it goes on from there.
    let more = changes(&writer, "a", 2).await;
    known.until(&mut watch, "a", more[1]).await;
    assert!(known.told.ends_with(&more));
}

#[tokio::test]
async fn a_revision_is_never_torn() {
    large_revisions_are_told_whole(None).await;
}

/// What comes in pieces is told again from its beginning when the connection is lost between them.
#[tokio::test]
async fn a_revision_is_never_torn_by_a_lost_connection() {
    // Frames have 16 KiB: the second piece has begun, and then the last.
    for frame in [110, 150, 210] {
        large_revisions_are_told_whole(Some(frame)).await;
    }
}

/// Five revisions of 800 KB come together, and their connection is lost at a frame, if at any.
async fn large_revisions_are_told_whole(lost: Option<u64>) {
    const KEYS: usize = 40;
    let etcd = Etcd::start().await.unwrap();
    let writer = connect(etcd.endpoint(0)).await;
    let proxy = Proxy::start(etcd.address(0)).await.unwrap();
    let reader = connect(proxy.endpoint()).await;
    let mut watch = reader.watch(Range::Locks);
    watch.next().await;
    proxy.refuse();
    // More than etcd sends in one piece, told all at once when the watch comes back.
    let session = writer.session().id;
    let large = |name: &str| {
        let holder =
            concordat_protocol::lock::Holder { owner: "x".repeat(20_000), ..crate::holder(&session) };
        Plan::new().put(key(name), holder, concordat_protocol::Lease::Forever)
    };
    let mut last = 0;
    for _ in 0..5 {
        let mut plan = Plan::new();
        for number in 0..KEYS {
            plan.writes.extend(large(&number.to_string()).writes);
        }
        last = writer.commit(plan).await.unwrap().revision;
    }
    if let Some(frame) = lost {
        proxy.drop_reply(frame);
    }
    proxy.heal();
    let mut told = BTreeMap::<i64, usize>::new();
    while !told.contains_key(&last) {
        let mut now = BTreeMap::<i64, usize>::new();
        for event in watch.next().await {
            if let WatchEvent::Put(entry) = event {
                *now.entry(entry.mod_revision).or_default() += 1;
            }
        }
        assert!(now.values().all(|keys| *keys == KEYS), "{now:?}");
        told.extend(now);
    }
    assert_eq!(told.len(), 5);
}

#[tokio::test]
async fn many_watches_share_one_stream_and_each_is_told_its_own() {
    let etcd = Etcd::start().await.unwrap();
    let store = connect(etcd.endpoint(0)).await;
    let mut watches: Vec<Watch> = (0..20).map(|n| store.watch(Range::One(key(&n.to_string())))).collect();
    for watch in &mut watches {
        assert!(
            matches!(watch.next().await[..], [WatchEvent::Snapshot { ref entries, .. }] if entries.is_empty())
        );
    }
    drop(watches.split_off(15));
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    join_all(names.iter().map(|name| store.commit(change(name, 0)))).await;
    for (name, watch) in names.iter().zip(&mut watches) {
        let mut known = Known::default();
        known.until(watch, name, 1).await;
        assert_eq!(known.told.len(), 1);
        assert_eq!(known.entries.len(), 1);
    }
    // etcd says how far it has told even when nothing happens.
    while !watches[0].next().await.iter().any(|event| matches!(event, WatchEvent::Progress(_))) {}
}

/// One reader reads on and so tells when etcd has told all of it; the other has read nothing meanwhile.
#[tokio::test]
async fn who_reads_nothing_for_long_is_told_all_anew_and_then_what_follows() {
    const KEYS: usize = 100;
    let etcd = Etcd::start().await.unwrap();
    let (writer, reader) = (connect(etcd.endpoint(0)).await, connect(etcd.endpoint(0)).await);
    let (mut watch, mut quick) = (reader.watch(Range::Locks), reader.watch(Range::Locks));
    let (mut known, mut all) = (Known::default(), Known::default());
    known.read(&mut watch).await;
    all.read(&mut quick).await;
    let write = async {
        let mut last = 0;
        for number in 0..800 {
            let mut plan = Plan::new();
            for key in 0..KEYS {
                plan.writes.extend(change(&key.to_string(), number).writes);
            }
            last = writer.commit(plan).await.unwrap().revision;
        }
        last
    };
    let read = async {
        while all.told.len() < 800 * KEYS {
            all.read(&mut quick).await;
        }
    };
    let (last, ()) = tokio::join!(write, read);
    assert_eq!(all.snapshots, 1);
    known.until(&mut watch, "0", last).await;
    assert_eq!(known.snapshots, 2);
    assert!(known.entries == all.entries);
    let more = changes(&writer, "0", 2).await;
    known.until(&mut watch, "0", more[1]).await;
    assert!(known.told.ends_with(&more));
}
