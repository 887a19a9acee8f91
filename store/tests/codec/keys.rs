//! The text of keys: one text a key, and each range of etcd's holds just what it should.

use concordat_protocol::{Key, Kind, Range, queue::SegmentId};
use concordat_store::keys::{decode, decode_any, encode, everything, range};
use proptest::{collection::vec, prelude::*};

use crate::arbitrary;

/// Whether etcd finds `key` in what [`range()`] answered.
fn within((start, end): &(Vec<u8>, Vec<u8>), key: &[u8]) -> bool {
    if end.is_empty() { key == start } else { key >= start.as_slice() && key < end.as_slice() }
}

/// Whether some bytes are within both.
fn intersect(a: &(Vec<u8>, Vec<u8>), b: &(Vec<u8>, Vec<u8>)) -> bool {
    match (a.1.is_empty(), b.1.is_empty()) {
        (true, _) => within(b, &a.0),
        (_, true) => within(a, &b.0),
        _ => a.0 < b.1 && b.0 < a.1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn decode_is_the_inverse_of_encode(namespace in arbitrary::text(), key in arbitrary::key()) {
        let bytes = encode(&namespace, &key);
        prop_assert_eq!(decode(&namespace, &bytes), Ok(key.clone()), "{}", String::from_utf8_lossy(&bytes));
        let (of, any) = decode_any(&bytes).unwrap();
        prop_assert_eq!(any, key.clone());
        prop_assert_eq!(of.as_deref(), (key != Key::Epoch).then_some(namespace.as_str()));
        prop_assert!(within(&everything(), &bytes));
        prop_assert!(bytes.is_ascii());
    }

    #[test]
    fn keys_of_another_namespace_are_refused(a in arbitrary::text(), b in arbitrary::text(), key in arbitrary::key()) {
        prop_assume!(a != b && key != Key::Epoch);
        prop_assert!(decode(&b, &encode(&a, &key)).is_err());
        prop_assert!(!within(&range(&b, &Range::All), &encode(&a, &key)));
    }

    /// A range's text holds a key's text exactly when the range holds the key: with names of which one begins another.
    #[test]
    fn a_range_of_text_holds_what_the_range_holds(
        keys in vec(arbitrary::key(), 1..6),
        ranges in vec(arbitrary::range(), 1..6),
        namespace in arbitrary::text(),
    ) {
        let ranges: Vec<Range> = ranges.into_iter().chain(keys.iter().flat_map(arbitrary::ranges_of)).collect();
        for range_ in &ranges {
            for key in &keys {
                prop_assert_eq!(
                    within(&range(&namespace, range_), &encode(&namespace, key)),
                    range_.contains(key),
                    "{:?} {:?}", range_, key
                );
            }
        }
        for a in &ranges {
            for b in &ranges {
                prop_assert_eq!(a.overlaps(b), b.overlaps(a), "{:?} {:?}", a, b);
                prop_assert_eq!(
                    intersect(&range(&namespace, a), &range(&namespace, b)),
                    a.overlaps(b),
                    "{:?} {:?}", a, b
                );
            }
        }
    }

    /// Bytes near a key's own are another key or none: nothing else is read as this one.
    #[test]
    fn a_key_has_one_text(key in arbitrary::key(), at in any::<prop::sample::Index>(), with in ".{0,3}") {
        let text = String::from_utf8(encode("ns", &key)).unwrap();
        let at = at.index(text.len());
        for changed in [
            format!("{}{with}{}", &text[..at], &text[at + 1..]),
            format!("{}{with}{}", &text[..at], &text[at..]),
            text.to_lowercase(),
            format!("{text}/"),
        ] {
            if changed != text && let Ok((namespace, other)) = decode_any(changed.as_bytes()) {
                prop_assert_eq!(encode(&namespace.unwrap_or_default(), &other), changed.into_bytes());
            }
        }
    }
}

/// Set `BOLERO_RANDOM_ITERATIONS` or `BOLERO_RANDOM_TEST_TIME_MS` for a longer run.
#[test]
fn fuzz_decode() {
    const BEGINNINGS: [&str; 13] = [
        "",
        "/concordat/",
        "/concordat/ns/",
        "/concordat/ns/def/lock/",
        "/concordat/ns/marker/s/",
        "/concordat/ns/inbox/app/s/",
        "/concordat/ns/inbox/app/-/work/",
        "/concordat/ns/lock/l/",
        "/concordat/ns/want/s1/l/k/",
        "/concordat/ns/queue/q/live/seg/",
        "/concordat/ns/queue/q/live/claim/00001/s:1:2:3/",
        "/concordat/ns/queue/q/dead/00001/s:1:2:3/",
        "/concordat/ns/stat/queue/q/",
    ];
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        // Mostly characters that mean something here: plain random bytes would not get past the first check.
        let meaningful = input.iter().map(|byte| b"0123459AFaf%/:-.+z"[usize::from(byte % 18)]);
        for tail in [input.clone(), meaningful.collect()] {
            for beginning in BEGINNINGS {
                let bytes = [beginning.as_bytes(), &tail].concat();
                if let Ok((namespace, key)) = decode_any(&bytes) {
                    assert_eq!(encode(&namespace.unwrap_or_default(), &key), bytes, "{key:?}");
                }
            }
        }
    });
}

/// What people see in etcdctl; a change of any of these is a format change and needs a decision record.
#[test]
fn the_text_is_as_designed() {
    let segment = || SegmentId { session: "s1".into(), number: 7, messages: 3, bytes: 120 };
    for (key, text) in [
        (
            Key::Definition { kind: Kind::Transaction, name: "transfer".into() },
            "/concordat/ns/def/transaction/transfer",
        ),
        (Key::Session("s1".into()), "/concordat/ns/session/s1"),
        (Key::Marker { session: "s1".into(), name: "0".into() }, "/concordat/ns/marker/s1/0"),
        (
            Key::Work {
                app: "bank".into(),
                session: None,
                transaction: "a/b".into(),
                branch: "debit".into(),
            },
            "/concordat/ns/inbox/bank/-/work/a%2Fb/debit",
        ),
        (
            Key::Answer {
                app: "bank".into(),
                session: "-".into(),
                transaction: "é".into(),
                branch: "".into(),
            },
            "/concordat/ns/inbox/bank/%2D/answer/%C3%A9/%",
        ),
        (Key::Transaction("%2F".into()), "/concordat/ns/tx/%252F"),
        (Key::Done("a b".into()), "/concordat/ns/done/a%20b"),
        (Key::Holder { lock: "orders".into(), key: "-".into() }, "/concordat/ns/lock/orders/%2D/holder"),
        (
            Key::Waiter { lock: "orders".into(), key: "a/b".into(), session: "s1".into(), number: 42 },
            "/concordat/ns/lock/orders/a%2Fb/waiter/s1/00000000000000000042",
        ),
        (
            Key::Shadow { lock: "orders".into(), key: "k".into(), session: "s1".into(), number: u64::MAX },
            "/concordat/ns/lock/orders/k/shadow/s1/18446744073709551615",
        ),
        (
            Key::Want { holder: "s1".into(), lock: "orders".into(), key: "a/b".into(), session: "s2".into() },
            "/concordat/ns/want/s1/orders/a%2Fb/s2",
        ),
        (
            Key::Segment { queue: "q".into(), partition: 3, segment: segment() },
            "/concordat/ns/queue/q/live/seg/00003/s1:7:3:120",
        ),
        (
            Key::Progress { queue: "q".into(), partition: 100_000, segment: segment() },
            "/concordat/ns/queue/q/live/ack/100000/s1:7:3:120",
        ),
        (
            Key::Claim {
                queue: "q".into(),
                partition: 0,
                segment: segment(),
                session: "s2".into(),
                number: 9,
            },
            "/concordat/ns/queue/q/live/claim/00000/s1:7:3:120/s2/9",
        ),
        (
            Key::Dead { queue: "q".into(), partition: 0, segment: segment(), index: 2 },
            "/concordat/ns/queue/q/dead/00000/s1:7:3:120/2",
        ),
        (Key::Dedup { queue: "q".into(), producer: "p/1".into() }, "/concordat/ns/queue/q/dedup/p%2F1"),
        (
            Key::Stat { kind: Kind::Queue, name: "q".into(), session: "s1".into() },
            "/concordat/ns/stat/queue/q/s1",
        ),
        (Key::Timeline, "/concordat/ns/timeline"),
        (Key::Epoch, "/concordat/-/epoch"),
    ] {
        assert_eq!(String::from_utf8(encode("ns", &key)).unwrap(), text);
        assert_eq!(decode("ns", text.as_bytes()), Ok(key));
    }
    assert_eq!(
        range("ns", &Range::Transactions),
        (b"/concordat/ns/tx/".to_vec(), b"/concordat/ns/tx0".to_vec())
    );
    assert_eq!(range("ns", &Range::One(Key::Epoch)), (b"/concordat/-/epoch".to_vec(), Vec::new()));
}

#[test]
fn refusals_say_what_is_wrong() {
    for (text, why) in [
        ("/registry/pods", "does not begin"),
        ("/concordat/ns/tx", "too few"),
        ("/concordat/ns/tx/1/2", "too many"),
        ("/concordat/ns/tx/", "empty component"),
        ("/concordat/ns/tx/-", "nobody"),
        ("/concordat/ns/tx/%2f", "not encoded"),
        ("/concordat/ns/tx/%41", "not encoded"),
        ("/concordat/ns/tx/a b", "not encoded"),
        ("/concordat/ns/tx/%FF", "not UTF-8"),
        ("/concordat/ns/inbox/a/-/answer/1/b", "answer for nobody"),
        ("/concordat/ns/def/pod/x", "no such kind"),
        ("/concordat/ns/queue/q/live/seg/3/s:1:1:1", "five digits"),
        ("/concordat/ns/queue/q/live/seg/000003/s:1:1:1", "plain decimal"),
        ("/concordat/ns/queue/q/live/seg/00003/s:01:1:1", "plain decimal"),
        ("/concordat/ns/queue/q/live/seg/00003/s:1:1:4294967296", "too large"),
        ("/concordat/ns/queue/q/live/seg/00003/s:1:1", "session:number:messages:bytes"),
        ("/concordat/ns/lock/l/k/waiter/s/42", "twenty digits"),
        ("/concordat/ns/lock/l/k/waiter/s/99999999999999999999", "too large"),
        ("/concordat/other/tx/1", "another namespace"),
    ] {
        let error = decode("ns", text.as_bytes()).unwrap_err();
        assert!(error.why.contains(why), "{error}");
    }
}
