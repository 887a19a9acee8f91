//! Any key and any range, from few names: so that what could be confused meets.

use concordat_protocol::{Key, Kind, Range, SessionId, queue::SegmentId};
use proptest::{prelude::*, sample::select};

/// Texts that a careless codec confuses, and any other text.
pub(crate) fn text() -> impl Strategy<Value = String> {
    const TRAPS: &[&str] = &[
        "1", "10", "1/0", "/", "//", "", "-", "--", "%", "%2D", "%2F", "%25", ".", "..", "a:b", ":1:2:3",
        "ü", "鍵/🔑", "\0", "\u{7f}", "0", "work", "answer", "holder", "seg", "epoch", "A", "a",
    ];
    prop_oneof![
        12 => select(TRAPS).prop_map(str::to_owned),
        1 => Just("x".repeat(128)),
        1 => Just("ü/".repeat(64)),
        2 => any::<String>(),
    ]
}

pub(crate) fn id<T: From<String> + std::fmt::Debug>() -> impl Strategy<Value = T> {
    text().prop_map(T::from)
}

pub(crate) fn kind() -> impl Strategy<Value = Kind> {
    select(&[Kind::Transaction, Kind::Lock, Kind::Queue][..])
}

/// Small ones, and ones at every width and bound.
fn number<T: TryFrom<u64> + std::fmt::Debug>() -> impl Strategy<Value = T> {
    prop_oneof![8 => 0..12_u64, 1 => Just(99_999), 1 => Just(100_000), 1 => Just(u64::from(u32::MAX)), 1 => Just(u64::MAX)]
        .prop_filter_map("too wide", |number| T::try_from(number).ok())
}

pub(crate) fn segment() -> impl Strategy<Value = SegmentId> {
    (id(), number(), number(), number()).prop_map(|(session, number, messages, bytes)| SegmentId {
        session,
        number,
        messages,
        bytes,
    })
}

fn place() -> impl Strategy<Value = (concordat_protocol::Name, u32, SegmentId)> {
    (id(), number(), segment())
}

/// Any key.
pub(crate) fn key() -> impl Strategy<Value = Key> {
    let session = || id::<SessionId>();
    prop_oneof![
        (kind(), id()).prop_map(|(kind, name)| Key::Definition { kind, name }),
        session().prop_map(Key::Session),
        (session(), id()).prop_map(|(session, name)| Key::Marker { session, name }),
        (id(), proptest::option::of(session()), id(), id()).prop_map(
            |(app, session, transaction, branch)| { Key::Work { app, session, transaction, branch } }
        ),
        (id(), session(), id(), id()).prop_map(|(app, session, transaction, branch)| Key::Answer {
            app,
            session,
            transaction,
            branch
        }),
        id().prop_map(Key::Transaction),
        id().prop_map(Key::Done),
        (id(), id()).prop_map(|(lock, key)| Key::Holder { lock, key }),
        (id(), id(), session(), number())
            .prop_map(|(lock, key, session, number)| { Key::Waiter { lock, key, session, number } }),
        (id(), id(), session(), number())
            .prop_map(|(lock, key, session, number)| { Key::Shadow { lock, key, session, number } }),
        (session(), id(), id(), session()).prop_map(|(holder, lock, key, session)| Key::Want {
            holder,
            lock,
            key,
            session
        }),
        place().prop_map(|(queue, partition, segment)| Key::Segment { queue, partition, segment }),
        place().prop_map(|(queue, partition, segment)| Key::Progress { queue, partition, segment }),
        (place(), session(), number()).prop_map(|((queue, partition, segment), session, number)| {
            Key::Claim { queue, partition, segment, session, number }
        }),
        (place(), number()).prop_map(|((queue, partition, segment), index)| Key::Dead {
            queue,
            partition,
            segment,
            index
        }),
        (id(), id()).prop_map(|(queue, producer)| Key::Dedup { queue, producer }),
        (kind(), id(), session()).prop_map(|(kind, name, session)| Key::Stat { kind, name, session }),
        Just(Key::Timeline),
        Just(Key::Epoch),
    ]
}

/// Any range.
pub(crate) fn range() -> impl Strategy<Value = Range> {
    prop_oneof![
        key().prop_map(Range::One),
        Just(Range::Definitions),
        Just(Range::Sessions),
        Just(Range::Markers),
        id().prop_map(Range::Inbox),
        (id(), proptest::option::of(id())).prop_map(|(app, session)| Range::InboxOf(app, session)),
        (id(), id(), id()).prop_map(|(app, session, id)| Range::Answers(app, session, id)),
        Just(Range::Transactions),
        Just(Range::Finished),
        id().prop_map(Range::Lock),
        Just(Range::Locks),
        (id(), id()).prop_map(|(lock, key)| Range::LockKey(lock, key)),
        id().prop_map(Range::Wants),
        (id(), id(), id()).prop_map(|(session, lock, key)| Range::WantsOf(session, lock, key)),
        id().prop_map(Range::Queue),
        id().prop_map(Range::Segments),
        id().prop_map(Range::Progresses),
        id().prop_map(Range::Claims),
        place().prop_map(|(queue, partition, segment)| Range::ClaimsOf(queue, partition, segment)),
        id().prop_map(Range::Live),
        id().prop_map(Range::DeadLetters),
        (kind(), id()).prop_map(|(kind, name)| Range::Stats(kind, name)),
        Just(Range::AllStats),
        Just(Range::All),
    ]
}

/// Every range of [`Range`] that holds the key.
pub(crate) fn ranges_of(key: &Key) -> Vec<Range> {
    let mut ranges = vec![Range::One(key.clone())];
    if *key != Key::Epoch {
        ranges.push(Range::All);
    }
    ranges.extend(match key.clone() {
        Key::Definition { .. } => vec![Range::Definitions],
        Key::Session(_) => vec![Range::Sessions],
        Key::Marker { .. } => vec![Range::Markers],
        Key::Timeline | Key::Epoch => vec![],
        Key::Work { app, session, .. } => vec![Range::Inbox(app.clone()), Range::InboxOf(app, session)],
        Key::Answer { app, session, transaction, .. } => vec![
            Range::Inbox(app.clone()),
            Range::InboxOf(app.clone(), Some(session.clone())),
            Range::Answers(app, session, transaction),
        ],
        Key::Transaction(_) => vec![Range::Transactions],
        Key::Done(_) => vec![Range::Finished],
        Key::Holder { lock, key } | Key::Waiter { lock, key, .. } | Key::Shadow { lock, key, .. } => {
            vec![Range::Lock(lock.clone()), Range::LockKey(lock, key), Range::Locks]
        }
        Key::Want { holder, lock, key, .. } => {
            vec![Range::Wants(holder.clone()), Range::WantsOf(holder, lock, key)]
        }
        Key::Segment { queue, .. } => {
            vec![Range::Queue(queue.clone()), Range::Live(queue.clone()), Range::Segments(queue)]
        }
        Key::Progress { queue, .. } => {
            vec![Range::Queue(queue.clone()), Range::Live(queue.clone()), Range::Progresses(queue)]
        }
        Key::Claim { queue, partition, segment, .. } => vec![
            Range::Queue(queue.clone()),
            Range::Live(queue.clone()),
            Range::Claims(queue.clone()),
            Range::ClaimsOf(queue, partition, segment),
        ],
        Key::Dead { queue, .. } => vec![Range::Queue(queue.clone()), Range::DeadLetters(queue)],
        Key::Dedup { queue, .. } => vec![Range::Queue(queue)],
        Key::Stat { kind, name, .. } => vec![Range::Stats(kind, name), Range::AllStats],
    });
    ranges
}
