//! Fences rise through any sequence of restores that is noticed by somebody; and what happens without each of the things
//! by which it is noticed, or from which a raise starts.
#![allow(clippy::unwrap_used, reason = "a test may")]

use concordat_protocol::{
    lock::Fence,
    timeline::{self, Lost, Observed, Remembered, STEP, Timeline, Verdict},
};
use proptest::{prelude::*, test_runner::TestRunner};

/// 2026-11-28, milliseconds since the Unix epoch.
const BEGAN: u64 = 1_795_824_000_000;

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// Nobody remembers anything outside etcd.
    Memory,
    /// The next epoch begins a step above the snapshot, whatever came after it.
    Floor,
}

/// How etcd comes back.
#[derive(Clone, Copy, Debug)]
enum How {
    /// Its data were put back: all is as it was then.
    Data,
    /// By `etcdutl snapshot restore`: the log begins anew, as another cluster or (with the same token and addresses) not.
    Snapshot { renamed: bool, bumped: bool },
}

#[derive(Clone, Debug)]
enum Step {
    /// So many writes come, then the sidecar looks at etcd and grants a lock.
    Write(u32),
    /// The sidecar is a new process, which remembers nothing.
    Replace,
    Snapshot,
    Restore(How),
}

#[derive(Clone, Debug)]
struct Etcd {
    cluster: u64,
    index: u64,
    revision: i64,
    timeline: Option<Timeline>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![
        Just(How::Data),
        any::<(bool, bool)>().prop_map(|(renamed, bumped)| How::Snapshot { renamed, bumped }),
    ];
    let step = prop_oneof![
        4 => (1_u32..2_000_000_000).prop_map(Step::Write),
        1 => (1_u32..3).prop_map(Step::Write),
        1 => Just(Step::Replace),
        2 => Just(Step::Snapshot),
        2 => how.prop_map(Step::Restore),
    ];
    proptest::collection::vec(step, 1..24)
}

/// Runs the steps; whether every fence was above the one before.
fn rises(steps: &[Step], bug: Bug) -> bool {
    let mut etcd = Etcd { cluster: 1, index: 4, revision: 1, timeline: None };
    let (mut snapshot, mut remembered, mut outside): (_, Option<Remembered>, Option<Remembered>) =
        (etcd.clone(), None, None);
    let (mut clusters, mut now, mut last) = (1, BEGAN, None);
    for step in steps {
        match step {
            Step::Write(count) => {
                let count = i64::from(*count);
                etcd.revision += count;
                etcd.index += count as u64;
                now += (count / 10) as u64 + 1;
            }
            Step::Replace => remembered = None,
            Step::Snapshot => snapshot = etcd.clone(),
            Step::Restore(how) => {
                etcd = snapshot.clone();
                if let How::Snapshot { renamed, bumped } = how {
                    etcd.index = 3;
                    etcd.revision += if *bumped { 1_000_000_000 } else { 0 };
                    clusters += u64::from(*renamed);
                    etcd.cluster = if *renamed { clusters } else { etcd.cluster };
                }
                // Nobody writes before he has looked; some time goes by.
                now += 1_000;
            }
        }
        let observed = Observed { cluster: etcd.cluster, index: Some(etcd.index), revision: etcd.revision };
        // Who looks after etcd tells first; then the sidecar looks.
        if bug == Bug::Memory {
            remembered = None;
        } else {
            let found = outside.filter(|memory| memory.contradicts(&observed).is_some());
            let offset = etcd.timeline.as_ref().map_or(0, |timeline| timeline.offset);
            let found = found.map(|memory| Remembered { offset, ..memory });
            if let Verdict::Restored(lost) =
                timeline::judge(etcd.timeline.as_ref(), &observed, found.as_ref())
                && found.is_some()
            {
                etcd.timeline = Some(Timeline { lost: Some(lost), ..known(&etcd) });
            }
        }
        match timeline::judge(etcd.timeline.as_ref(), &observed, remembered.as_ref()) {
            Verdict::Fine(newer) => etcd.timeline = newer.or(etcd.timeline),
            Verdict::Restored(lost) => {
                etcd.timeline = Some(Timeline { lost: Some(lost), ..known(&etcd) });
                let floor = if bug == Bug::Floor { 0 } else { timeline::floor(now) };
                let recorded = match bug {
                    Bug::Floor => Timeline { lost: None, ..known(&etcd) },
                    _ => known(&etcd),
                };
                etcd.timeline = Some(timeline::raise(Some(&recorded), &observed, floor).unwrap());
            }
        }
        etcd.revision += 1;
        etcd.index += 1;
        // An answer is heard before anybody is told of it.
        remembered = Some(memory(&etcd));
        outside = Some(Remembered { epoch: None, offset: 0, ..memory(&etcd) });
        let fence = Fence::new(etcd.revision, known(&etcd).offset, 0).unwrap();
        if last.is_some_and(|last| fence <= last) {
            return false;
        }
        last = Some(fence);
    }
    true
}

fn known(etcd: &Etcd) -> Timeline {
    let Etcd { cluster, index, .. } = *etcd;
    etcd.timeline.clone().unwrap_or(Timeline { epoch: 0, cluster, index, offset: 0, lost: None })
}

fn memory(etcd: &Etcd) -> Remembered {
    let Timeline { epoch, offset, .. } = known(etcd);
    Remembered { epoch: Some(epoch), cluster: etcd.cluster, revision: etcd.revision, offset }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn fences_rise_through_every_restore(steps in steps()) {
        prop_assert!(rises(&steps, Bug::None));
    }
}

/// Each of them alone is needed: without it some sequence breaks.
#[test]
fn without_any_one_of_what_tells_of_a_restore_fences_fall() {
    for bug in [Bug::Memory, Bug::Floor] {
        let mut runner = TestRunner::new(ProptestConfig {
            cases: 2_000,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let found = runner.run(&steps(), |steps| {
            prop_assert!(rises(&steps, bug));
            Ok(())
        });
        assert!(found.is_err(), "{bug:?} was not caught");
    }
}

/// With nobody outside who remembers, a restored snapshot still tells: by its cluster's id, or by its log.
#[test]
fn a_snapshot_tells_without_a_memory() {
    let lost = |recorded: &Timeline, observed: Observed| {
        matches!(timeline::judge(Some(recorded), &observed, None), Verdict::Restored(_))
    };
    let recorded = Timeline { epoch: 0, cluster: 1, index: 900, offset: 0, lost: None };
    let observed = Observed { cluster: 1, index: Some(1_000), revision: 900 };
    assert!(!lost(&recorded, observed));
    assert!(lost(&recorded, Observed { cluster: 2, ..observed }));
    assert!(lost(&recorded, Observed { index: Some(3), ..observed }));
    assert!(!lost(&recorded, Observed { index: None, ..observed }), "not known is no sign");
    let told = Timeline { lost: Some(Lost { why: "told".into(), raised: 5 }), ..recorded };
    assert!(lost(&told, observed));
}

#[test]
fn what_is_remembered_of_an_earlier_epoch_is_no_measure() {
    let recorded = Timeline { epoch: 2, cluster: 1, index: 5, offset: 2 * STEP, lost: None };
    let observed = Observed { cluster: 1, index: Some(9), revision: 100 };
    let of = |epoch| Remembered { epoch, cluster: 7, revision: 500, offset: STEP };
    let judged = |epoch| timeline::judge(Some(&recorded), &observed, Some(&of(epoch)));
    assert_eq!(judged(Some(1)), Verdict::Fine(None));
    for epoch in [Some(2), Some(3), None] {
        let Verdict::Restored(lost) = judged(epoch) else { panic!("{epoch:?}") };
        assert_eq!(lost.raised, 500 + STEP);
    }
}

#[test]
fn a_raise_is_above_all_that_is_known_and_refused_where_no_room_is_left() {
    let observed = Observed { cluster: 3, index: Some(9), revision: 100 };
    let raised = timeline::raise(None, &observed, 0).unwrap();
    assert_eq!((raised.epoch, raised.cluster, raised.offset), (1, 3, STEP));
    let lost = Timeline { lost: Some(Lost { why: String::new(), raised: 3 * STEP }), ..raised.clone() };
    assert_eq!(timeline::raise(Some(&lost), &observed, 0).unwrap().offset, 3 * STEP - 100);
    let above = timeline::above(1 << 50);
    let fence = Fence::new(101, timeline::raise(Some(&lost), &observed, above).unwrap().offset, 0).unwrap();
    assert!(fence.get() > 1 << 50);
    let last = Timeline { offset: (1 << 43) - 2 * STEP, ..raised };
    assert_eq!(timeline::raise(Some(&last), &observed, 0), Err(timeline::NoRoom));
    // A clock that is decades off is not followed.
    assert_eq!(timeline::floor(0), 0);
    assert_eq!(timeline::floor(u64::MAX), 0);
    assert!(timeline::floor(BEGAN) > 0);
}
