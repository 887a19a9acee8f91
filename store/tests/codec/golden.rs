//! A golden file of every record, its bytes and its fields. One that changes is a change of the format: it needs a
//! decision record, and for what older builds wrote a way to be read.

use std::fmt::Write as _;

use concordat_protocol::{
    Definition, Record, Settings,
    definition::Backoff,
    lock,
    queue::{self, Claim, DeadLetter, Dedup, Fate, Message, Progress, Segment, SegmentId},
    record::{Epoch, Marker},
    session::{Session, Stat},
    timeline::{Lost, Timeline},
    transaction::{
        self, BranchRecord, Decision, Finished, FinishedBranch, Operation, Participant, Protocol, Reply,
        Stage, Transaction, Verdict, Work,
    },
};
use concordat_store::record::{decode, encode};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn participant() -> Participant {
    Participant {
        name: "debit".into(),
        app: "accounts".into(),
        path: "/transfer/debit".into(),
        timeout: 3_000,
        retry: Backoff { initial: 100, max: 30_000, factor_milli: 2_000 },
        attempts: 7,
        after: vec!["credit".into()],
        input: Some("{}".into()),
    }
}

fn message() -> Message {
    Message {
        body: b"{\"amount\":5}".to_vec(),
        content_type: "application/json".into(),
        key: "alice".into(),
        headers: vec![("ce-type".into(), "paid".into()), ("ce-subject".into(), String::new())],
        expires: 1_800_000_000_000,
        published: 1_700_000_000_000,
    }
}

fn segment() -> SegmentId {
    SegmentId { session: "5f3a".into(), number: 17, messages: 2, bytes: 24 }
}

fn holder() -> lock::Holder {
    lock::Holder {
        session: "5f3a".into(),
        pod: "worker-0".into(),
        owner: "nightly".into(),
        since: 1_700_000_000_000,
        regrants: 0,
        stays: false,
    }
}

/// Every record, with a value in every field.
fn records() -> Vec<(&'static str, Record)> {
    let definition = |settings| Definition { uid: "9d1c".into(), generation: 3, settings }.into();
    vec![
        (
            "definition-transaction",
            definition(Settings::Transaction(transaction::Settings {
                protocol: Protocol::TwoPhaseCommit,
                participants: vec![participant()],
                timeout: 30_000,
                once: true,
                retention: 600_000,
            })),
        ),
        (
            "definition-lock",
            definition(Settings::Lock(lock::Settings {
                mode: lock::Mode::CompareAndSwap,
                sharing: lock::Sharing::Mutex,
                permits: 1,
                ttl: 15_000,
                lock_delay: 2_000,
                max_hold: 600_000,
                max_wait: 60_000,
                max_waiters: 1_024,
                dapr_store: None,
            })),
        ),
        (
            "definition-lock-dapr",
            definition(Settings::Lock(lock::Settings {
                mode: lock::Mode::Lease,
                sharing: lock::Sharing::Mutex,
                permits: 1,
                ttl: 15_000,
                lock_delay: 0,
                max_hold: 0,
                max_wait: 60_000,
                max_waiters: 1_024,
                dapr_store: Some("lockstore".into()),
            })),
        ),
        (
            "definition-queue",
            definition(Settings::Queue(queue::Settings {
                mode: queue::Mode::WorkQueue,
                partitions: 4,
                ordering: queue::Ordering::None,
                visibility: 30_000,
                max_deliveries: 5,
                backoff: vec![1_000, 5_000, 30_000],
                dead_letter_queue: Some("graveyard".into()),
                dead_letter_retention: 604_800_000,
                retention_age: 86_400_000,
                retention_bytes: 268_435_456,
                on_full: queue::OnFull::Refuse,
                max_message_bytes: 262_144,
                dedup_window: 300_000,
            })),
        ),
        ("session", Session { pod: "accounts-0".into(), app: "accounts".into(), accepts: true }.into()),
        ("marker", Marker.into()),
        (
            "work",
            Work {
                operation: Operation::Prepare,
                participant: participant(),
                input: Some("{\"amount\":5}".into()),
                coordinator: ("ledger".into(), "77aa".into()),
                transaction: 4_711,
                attempts: 2,
                last_error: "503".into(),
                traceparent: TRACEPARENT.into(),
            }
            .into(),
        ),
        (
            "answer",
            Reply {
                operation: Operation::Commit,
                verdict: Verdict::Yes("{\"ok\":true}".into()),
                attempts: 3,
            }
            .into(),
        ),
        ("answer-retry", Reply { operation: Operation::Abort, verdict: Verdict::Retry, attempts: 0 }.into()),
        (
            "transaction",
            Transaction {
                name: "transfer".into(),
                definition: 12,
                input: "{\"from\":\"alice\"}".into(),
                coordinator: Some(("ledger".into(), "77aa".into())),
                former: vec![("ledger".into(), "66ff".into())],
                deadline: 1_700_000_030_000,
                timeout: 30_000,
                retention: 600_000,
                began: 1_700_000_000_000,
                decision: Some(Decision::Abort),
                reason: "no funds".into(),
                branches: vec![BranchRecord {
                    participant: participant(),
                    item: Some("5f3a".into()),
                    stage: Stage::Stuck,
                    result: "410".into(),
                    attempts: 4,
                    notes: vec!["tried again by eve".into()],
                }],
                traceparent: TRACEPARENT.into(),
            }
            .into(),
        ),
        (
            "done",
            Finished {
                name: "transfer".into(),
                input_digest: 0x0123_4567_89ab_cdef,
                decision: Decision::Commit,
                reason: "of no use".into(),
                began: 1_700_000_000_000,
                finished: 1_700_000_000_250,
                branches: vec![FinishedBranch {
                    name: "debit".into(),
                    stage: Stage::Applied,
                    result: "{\"balance\":5}".into(),
                    attempts: 1,
                    notes: vec!["skipped by eve".into()],
                }],
            }
            .into(),
        ),
        ("holder", lock::Holder { regrants: 3, stays: true, ..holder() }.into()),
        ("waiter", lock::Waiter { holder: holder(), share: lock::Share::permits(2, 5), place: 3 }.into()),
        ("want", lock::Want { life: 42 }.into()),
        ("shadow", lock::Shadow { holder: holder(), share: lock::Share::EXCLUSIVE, delay: 15_000 }.into()),
        (
            "segment",
            Segment { messages: vec![message(), Message { body: vec![0, 255], ..Message::default() }] }
                .into(),
        ),
        (
            "progress",
            Progress {
                fates: vec![
                    Fate { stage: queue::Stage::Acknowledged, deliveries: 1, not_before: 0 },
                    Fate { stage: queue::Stage::Waiting, deliveries: 2, not_before: 1_700_000_005_000 },
                    Fate { stage: queue::Stage::Delivered, deliveries: 300, not_before: 0 },
                    Fate { stage: queue::Stage::GivenUp, deliveries: 5, not_before: 0 },
                ],
            }
            .into(),
        ),
        ("claim", Claim { places: vec![(0, 1), (300, 2)] }.into()),
        (
            "dead",
            DeadLetter {
                message: message(),
                revision: 4_711,
                deliveries: 5,
                reason: "maxDeliveries".into(),
                at: 1_700_000_100_000,
            }
            .into(),
        ),
        ("dedup", Dedup { partition: 3, segment: segment(), index: 1 }.into()),
        ("stat", Stat { counters: vec![("granted".into(), 7), ("waiters".into(), 0)] }.into()),
        ("epoch", Epoch { holder: "operator-0".into() }.into()),
        (
            "timeline",
            Timeline {
                epoch: 2,
                cluster: 0xcdf8_181a_8c3c_7fb1,
                index: 4_711,
                offset: 1 << 35,
                lost: Some(Lost { why: "etcd had revision 7 and is at 5".into(), raised: (1 << 34) + 7 }),
            }
            .into(),
        ),
    ]
}

#[test]
fn every_record_is_written_as_its_golden_file_says() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../golden");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for (name, record) in records() {
            let bytes = encode(&record);
            let mut hex = String::new();
            for (at, byte) in bytes.iter().enumerate() {
                let separator = if at > 0 && at % 32 == 0 { "\n" } else { "" };
                write!(hex, "{separator}{byte:02x}").unwrap();
            }
            insta::assert_snapshot!(name, format!("{hex}\n\n{record:#?}"));
            assert_eq!(decode(&bytes), Ok(record));
        }
    });
}
