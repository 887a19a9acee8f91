//! What each invariant of a line must find.

#![allow(clippy::unwrap_used)]

use concordat_protocol::lock::{
    Fence, Share,
    invariant::{
        Grant,
        line::{self, History, Stood, Wait},
    },
};

fn stood(number: u64, revision: i64, share: Share, gone: Option<u64>) -> Stood {
    Stood { revision, who: ("s".into(), number), place: 0, share, gone }
}

fn grant(revision: i64, from: u64, to: u64) -> Grant {
    Grant {
        caller: ("a".into(), 0),
        fence: Fence::new(revision, 0, 0).unwrap().get(),
        from,
        to,
        session_alive: true,
        definition_in_force: true,
    }
}

/// Two readers together, a writer after them, and one who waited in vain for the writer.
fn good() -> History {
    History {
        stood: vec![
            stood(1, 1, Share::READER, Some(300)),
            stood(2, 2, Share::READER, Some(200)),
            stood(3, 3, Share::EXCLUSIVE, Some(900)),
            stood(4, 4, Share::READER, Some(800)),
        ],
        grants: vec![grant(2, 100, 200), grant(1, 110, 290), grant(3, 310, 880)],
        accepted: vec![1 << 10, 3 << 10],
        waits: vec![Wait { who: ("s".into(), 4), from: 250, to: 800 }],
        forged: Vec::new(),
    }
}

#[test]
fn each_invariant_finds_the_history_that_breaks_it() {
    assert_eq!(line::all(&good(), 0, 100), Ok(()));
    type Spoil = fn(&mut History);
    let spoils: [(&str, Spoil); 13] = [
        ("L1", |history| history.grants[1].to = 311),
        ("L1", |history| history.stood[0].share = Share::EXCLUSIVE),
        ("L2", |history| history.grants[1].fence = history.grants[0].fence),
        ("L2", |history| history.grants[2].fence += 9 << 10),
        ("L2", |history| history.stood[1].revision = 1),
        ("L3", |history| history.accepted.reverse()),
        ("L4", |history| history.grants[0].session_alive = false),
        ("L4", |history| history.grants[0].definition_in_force = false),
        ("L5", |history| history.stood[2].gone = Some(600)),
        ("L5", |history| history.waits[0].to = 5_000),
        ("L6", |history| history.grants[2] = grant(3, 10, 20)),
        ("L6", |history| history.grants[0].from = 900),
        ("L7", |history| history.forged.push("a renewal".into())),
    ];
    for (broken, spoil) in spoils {
        let mut history = good();
        spoil(&mut history);
        let found = line::all(&history, 0, 100).map_or_else(|found| found, |()| "nothing".into());
        assert!(found.starts_with(broken), "{broken} is to find it, not: {found}");
    }
}

#[test]
fn a_place_that_is_gone_while_its_holder_relies_on_it_is_found() {
    assert_eq!(line::l7_nothing_taken(&good(), 0), Ok(()));
    let taken: [fn(&mut History); 2] =
        [|history| history.grants[2].to = 901, |history| history.stood[1].gone = Some(199)];
    for spoil in taken {
        let mut history = good();
        spoil(&mut history);
        assert!(line::l7_nothing_taken(&history, 0).is_err());
    }
}
