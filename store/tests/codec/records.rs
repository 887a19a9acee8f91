//! Any record, and a golden file of every record.

use concordat_protocol::{
    Definition, Record, Settings,
    definition::Backoff,
    lock,
    queue::{self, Claim, DeadLetter, Dedup, Fate, Message, Progress, Segment},
    record::{Epoch, Marker},
    session::{Session, Stat},
    timeline::{Lost, Timeline},
    transaction::{
        self, BranchRecord, Decision, Finished, FinishedBranch, Operation, Participant, Protocol, Reply,
        Stage, Transaction, Verdict, Work,
    },
};
use concordat_store::record::{Error, VERSION, decode, encode};
use proptest::{
    collection::vec,
    option,
    prelude::{Just, ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest},
    sample::{Index, select},
};

use crate::arbitrary::{id, segment, text};

fn lock_settings() -> impl Strategy<Value = lock::Settings> {
    use lock::{Mode, Sharing};
    const MODES: &[Mode] = &[Mode::CompareAndSwap, Mode::Lease, Mode::FairQueue];
    const SHARINGS: &[Sharing] = &[Sharing::Mutex, Sharing::ReadWrite, Sharing::Semaphore];
    let numbers = any::<(u32, u64, u64, u64, u64, u32)>();
    (select(MODES), select(SHARINGS), numbers, option::of(id())).prop_map(
        |(mode, sharing, (permits, ttl, lock_delay, max_hold, max_wait, max_waiters), dapr_store)| {
            lock::Settings {
                mode,
                sharing,
                permits,
                ttl,
                lock_delay,
                max_hold,
                max_wait,
                max_waiters,
                dapr_store,
            }
        },
    )
}

fn queue_settings() -> impl Strategy<Value = queue::Settings> {
    use queue::{Mode, OnFull, Ordering};
    const MODES: &[Mode] = &[Mode::WorkQueue, Mode::PubSub, Mode::Log];
    const ORDERINGS: &[Ordering] = &[Ordering::None, Ordering::Key];
    const ON_FULL: &[OnFull] = &[OnFull::Refuse, OnFull::DropOldest];
    (
        (select(MODES), select(ORDERINGS), select(ON_FULL), option::of(id()), any::<Vec<u64>>()),
        any::<(u32, u64, u32, u64, u64, u64, u64, u64)>(),
    )
        .prop_map(|((mode, ordering, on_full, dead_letter_queue, backoff), numbers)| queue::Settings {
            mode,
            partitions: numbers.0,
            ordering,
            visibility: numbers.1,
            max_deliveries: numbers.2,
            backoff,
            dead_letter_queue,
            dead_letter_retention: numbers.3,
            retention_age: numbers.4,
            retention_bytes: numbers.5,
            on_full,
            max_message_bytes: numbers.6,
            dedup_window: numbers.7,
        })
}

fn participant() -> impl Strategy<Value = Participant> {
    let retry = any::<(u64, u64, u32)>().prop_map(|(initial, max, factor_milli)| Backoff {
        initial,
        max,
        factor_milli,
    });
    (id(), id(), text(), any::<u64>(), retry, any::<u32>(), vec(id(), 0..3), option::of(text())).prop_map(
        |(name, app, path, timeout, retry, attempts, after, input)| Participant {
            name,
            app,
            path,
            timeout,
            retry,
            attempts,
            after,
            input,
        },
    )
}

fn transaction_settings() -> impl Strategy<Value = transaction::Settings> {
    const PROTOCOLS: &[Protocol] = &[
        Protocol::TwoPhaseCommit,
        Protocol::ThreePhaseCommit,
        Protocol::Saga,
        Protocol::Tcc,
        Protocol::Message,
    ];
    (select(PROTOCOLS), vec(participant(), 0..4), any::<(u64, bool, u64)>()).prop_map(
        |(protocol, participants, (timeout, once, retention))| transaction::Settings {
            protocol,
            participants,
            timeout,
            once,
            retention,
        },
    )
}

const OPERATIONS: &[Operation] = &[Operation::Prepare, Operation::Commit, Operation::Abort];
const DECISIONS: &[Decision] = &[Decision::Commit, Decision::Abort];
const STAGES: &[Stage] = &[Stage::Preparing, Stage::Applying, Stage::Applied, Stage::Stuck, Stage::Skipped];

fn transaction() -> impl Strategy<Value = Transaction> {
    let branch = (participant(), option::of(id()), select(STAGES), text(), any::<u32>(), vec(text(), 0..3))
        .prop_map(|(participant, item, stage, result, attempts, notes)| BranchRecord {
            participant,
            item,
            stage,
            result,
            attempts,
            notes,
        });
    (
        (id(), any::<i64>(), text(), option::of((id(), id())), vec((id(), id()), 0..3)),
        any::<(u64, u64, u64, u64)>(),
        option::of(select(DECISIONS)),
        (text(), text()),
        vec(branch, 0..4),
    )
        .prop_map(
            |(
                (name, definition, input, coordinator, former),
                (deadline, timeout, retention, began),
                decision,
                (reason, traceparent),
                branches,
            )| Transaction {
                name,
                definition,
                input,
                coordinator,
                former,
                deadline,
                timeout,
                retention,
                began,
                decision,
                reason,
                branches,
                traceparent,
            },
        )
}

fn finished() -> impl Strategy<Value = Finished> {
    let branch = (id(), select(STAGES), text(), any::<u32>(), vec(text(), 0..3)).prop_map(
        |(name, stage, result, attempts, notes)| FinishedBranch { name, stage, result, attempts, notes },
    );
    (id(), select(DECISIONS), text(), any::<(u64, u64, u64)>(), vec(branch, 0..4)).prop_map(
        |(name, decision, reason, (input_digest, began, finished), branches)| Finished {
            name,
            input_digest,
            decision,
            reason,
            began,
            finished,
            branches,
        },
    )
}

fn work() -> impl Strategy<Value = Work> {
    let numbers = any::<(i64, u32)>();
    let texts = (text(), text());
    (select(OPERATIONS), participant(), option::of(text()), (id(), id()), numbers, texts).prop_map(
        |(operation, participant, input, coordinator, (transaction, attempts), (last_error, traceparent))| {
            Work {
                operation,
                participant,
                input,
                coordinator,
                transaction,
                attempts,
                last_error,
                traceparent,
            }
        },
    )
}

fn reply() -> impl Strategy<Value = Reply> {
    let verdict = prop_oneof![
        text().prop_map(Verdict::Yes),
        text().prop_map(Verdict::No),
        text().prop_map(Verdict::Skip),
        Just(Verdict::Retry),
        text().prop_map(Verdict::Rollback),
    ];
    (select(OPERATIONS), verdict, any::<u32>()).prop_map(|(operation, verdict, attempts)| Reply {
        operation,
        verdict,
        attempts,
    })
}

fn message() -> impl Strategy<Value = Message> {
    let numbers = prop_oneof![Just((0, 0)), any::<(u64, u64)>()];
    (any::<Vec<u8>>(), text(), text(), vec((text(), text()), 0..3), numbers).prop_map(
        |(body, content_type, key, headers, (expires, published))| Message {
            body,
            content_type,
            key,
            headers,
            expires,
            published,
        },
    )
}

fn progress() -> impl Strategy<Value = Progress> {
    use queue::Stage;
    const STAGES: &[Stage] = &[Stage::Waiting, Stage::Delivered, Stage::Acknowledged, Stage::GivenUp];
    let fate = (select(STAGES), any::<u32>(), prop_oneof![4 => Just(0), 1 => any::<u64>()])
        .prop_map(|(stage, deliveries, not_before)| Fate { stage, deliveries, not_before });
    vec(fate, 0..20).prop_map(|fates| Progress { fates })
}

fn holder() -> impl Strategy<Value = lock::Holder> {
    (id(), text(), text(), any::<(u64, u32, bool)>()).prop_map(
        |(session, pod, owner, (since, regrants, stays))| lock::Holder {
            session,
            pod,
            owner,
            since,
            regrants,
            stays,
        },
    )
}

fn share() -> impl Strategy<Value = lock::Share> {
    any::<(u32, u32)>().prop_map(|(permits, of)| lock::Share { permits, of })
}

fn record() -> impl Strategy<Value = Record> {
    let settings = prop_oneof![
        transaction_settings().prop_map(Settings::Transaction),
        lock_settings().prop_map(Settings::Lock),
        queue_settings().prop_map(Settings::Queue),
    ];
    prop_oneof![
        (text(), any::<i64>(), settings).prop_map(|(uid, generation, settings)| Definition {
            uid,
            generation,
            settings
        }
        .into()),
        (text(), id(), any::<bool>()).prop_map(|(pod, app, accepts)| Session { pod, app, accepts }.into()),
        Just(Record::Marker(Marker)),
        work().prop_map(Record::Work),
        reply().prop_map(Record::Answer),
        transaction().prop_map(Record::Transaction),
        any::<i64>().prop_map(|life| lock::Want { life }.into()),
        finished().prop_map(Record::Done),
        holder().prop_map(Record::Holder),
        (holder(), share(), any::<u32>()).prop_map(|(holder, share, place)| lock::Waiter {
            holder,
            share,
            place
        }
        .into()),
        (holder(), share(), any::<u64>()).prop_map(|(holder, share, delay)| lock::Shadow {
            holder,
            share,
            delay
        }
        .into()),
        vec(message(), 0..8).prop_map(|messages| Segment { messages }.into()),
        progress().prop_map(Record::Progress),
        any::<Vec<(u32, u32)>>().prop_map(|places| Claim { places }.into()),
        (message(), text(), any::<(i64, u32, u64)>()).prop_map(
            |(message, reason, (revision, deliveries, at))| {
                DeadLetter { message, revision, deliveries, reason, at }.into()
            }
        ),
        (segment(), any::<(u32, u32)>()).prop_map(|(segment, (partition, index))| Dedup {
            partition,
            segment,
            index
        }
        .into()),
        vec((text(), any::<u64>()), 0..4).prop_map(|counters| Stat { counters }.into()),
        text().prop_map(|holder| Epoch { holder }.into()),
        (any::<[u64; 3]>(), any::<i64>(), proptest::option::of((text(), any::<i64>()))).prop_map(
            |([epoch, cluster, index], offset, lost)| {
                let lost = lost.map(|(why, raised)| Lost { why, raised });
                Timeline { epoch, cluster, index, offset, lost }.into()
            }
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn decode_is_the_inverse_of_encode(record in record()) {
        prop_assert_eq!(decode(&encode(&record)), Ok(record));
    }

    /// Whatever a flipped, missing or doubled byte makes of a record, it is read as one or refused, and what was read
    /// is a record like any other.
    #[test]
    fn damage_never_panics(record in record(), at in any::<Index>(), byte in any::<u8>()) {
        let mut bytes = encode(&record);
        let at = at.index(bytes.len());
        survives(&bytes[..at]);
        bytes.insert(at, byte);
        survives(&bytes);
        bytes.remove(at);
        bytes[at] ^= byte;
        survives(&bytes);
    }
}

fn survives(bytes: &[u8]) {
    if let Ok(record) = decode(bytes) {
        assert_eq!(decode(&encode(&record)), Ok(record));
    }
}

/// Set `BOLERO_RANDOM_ITERATIONS` or `BOLERO_RANDOM_TEST_TIME_MS` for a longer run.
#[test]
fn fuzz_decode() {
    bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(kind, body)| {
        survives(body);
        // The same as the body of an envelope that is as it should be.
        let tag = u64::from(kind % 17 + 2);
        let mut bytes = vec![8, VERSION as u8];
        prost::encoding::encode_varint(tag << 3 | 2, &mut bytes);
        prost::encoding::encode_varint(body.len() as u64, &mut bytes);
        bytes.extend(body);
        survives(&bytes);
    });
}

#[test]
fn what_this_build_does_not_know_is_refused() {
    assert_eq!(decode(&[]), Err(Error::Version(0)));
    assert_eq!(decode(&[8, 2]), Err(Error::Version(2)));
    // Version 2, and a first field of another type than version 1 has.
    assert_eq!(decode(&[8, 2, 0x10, 1]), Err(Error::Version(2)));
    assert_eq!(decode(&[8, 1]), Err(Error::Kind));
    // Field 100, empty.
    assert_eq!(decode(&[8, 1, 0xa2, 0x06, 0]), Err(Error::Kind));
    // A definition without settings; a lock's without a mode, and with mode 9.
    assert_eq!(decode(&[8, 1, 0x12, 0]), Err(Error::Missing("settings")));
    assert_eq!(decode(&[8, 1, 0x12, 2, 0x22, 0]), Err(Error::Value { what: "lock::Mode", value: 0 }));
    let error = decode(&[8, 1, 0x12, 4, 0x22, 2, 8, 9]).unwrap_err();
    assert_eq!(error.to_string(), "lock::Mode has the value 9, which this build does not know");
    assert!(matches!(decode(b"\xff\xff"), Err(Error::Malformed(_))));
    // A claim of one place and no delivery.
    assert!(matches!(decode(&[8, 1, 0x62, 3, 0x0a, 1, 1]), Err(Error::Inconsistent(_))));
}

/// What a newer build added is skipped.
#[test]
fn unknown_fields_are_skipped() {
    let record = Record::Epoch(Epoch { holder: "operator-0".into() });
    let mut bytes = encode(&record);
    bytes.extend([0xa2, 0x06, 1, 7]);
    assert_eq!(decode(&bytes), Ok(record));
}
