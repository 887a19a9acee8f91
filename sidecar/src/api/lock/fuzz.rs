//! Fuzz targets: what bodies of locks come to under any settings.

use std::{collections::BTreeSet, sync::Arc};

use concordat_protocol::lock::{Mode, Settings, Sharing};

use super::{
    request::{AcquireBody, AcquireParams},
    several::SeveralBody,
};
use crate::{
    api::{
        duration::GoDuration,
        fuzz::{
            Choices, Field,
            Holds::{Objects, One},
            Through, bodies,
        },
    },
    definitions::Defined,
    engine::lock::Terms,
    problem::Problem,
};

const TTLS: &[&str] = &["\"2s\"", "\"15s\"", "\"2001ms\"", "\"1h\"", "\"1999ms\"", "\"24h\"", "\"876000h\""];
const MODES: &[&str] = &["\"exclusive\"", "\"shared\"", "\"Shared\""];
const PERMITS: &[&str] = &["1", "0", "3", "1024", "1025", "4294967295", "4294967296"];
const OWNERS: &[&str] = &["\"\"", "\"me\"", "\"é/\\u0000\""];
const RENEWS: &[&str] = &["true", "false"];
const HOLDS: &[&str] = &["\"1m\"", "\"0s\"", "\"1us\"", "\"876000h\""];
const WAITS: &[&str] = &["\"5s\"", "\"0\"", "\"250ms\"", "\"876000h\""];

const ACQUIRE: &[Field] = &[
    ("ttl", One(TTLS)),
    ("mode", One(MODES)),
    ("permits", One(PERMITS)),
    ("owner", One(OWNERS)),
    ("renew", One(RENEWS)),
    ("maxHold", One(HOLDS)),
];

const SEVERAL: &[Field] = &[
    (
        "locks",
        Objects(&[
            ("lock", One(&["\"orders\"", "\"é\"", "\"a/b\"", "\"\""])),
            ("key", One(&["\"k\"", "\"l\"", "\"-\"", "\"\"", "\"é/%2F\""])),
            ("mode", One(MODES)),
            ("permits", One(PERMITS)),
        ]),
    ),
    ("wait", One(WAITS)),
    ("ttl", One(TTLS)),
    ("owner", One(OWNERS)),
    ("renew", One(RENEWS)),
    ("maxHold", One(HOLDS)),
];

fn settings(choices: &mut Choices<'_>) -> Settings {
    let sharing = choices.of(&[Sharing::Mutex, Sharing::ReadWrite, Sharing::Semaphore]);
    Settings {
        mode: Mode::FairQueue,
        sharing,
        permits: if sharing == Sharing::Semaphore { choices.of(&[1, 3, 1_024]) } else { 1 },
        ttl: choices.of(&[2_000, 15_000, 15_001, 86_400_000]),
        lock_delay: 0,
        max_hold: choices.of(&[0, 1, 60_000, 604_800_000]),
        max_wait: choices.of(&[0, 100, 60_000, 3_600_000]),
        max_waiters: 1_024,
        dapr_store: None,
    }
}

/// What is asked for is what the lock can give.
fn fits(terms: &Terms, settings: &Settings) {
    let Terms { owner, share, wait, ttl, max_hold, renew: _ } = terms;
    assert!(owner.len() <= 256);
    assert!(*wait <= settings.max_wait);
    assert!((2_000..=86_400_000).contains(ttl) && ttl % 1_000 == 0, "{ttl}");
    assert!(settings.max_hold == 0 || (1..=settings.max_hold).contains(max_hold), "{max_hold}");
    let whole = settings.sharing == Sharing::Semaphore && share.of == settings.permits;
    assert!(share.fits(0) && share.permits > 0 && (whole || share.of == u32::MAX), "{share:?}");
}

#[test]
fn fuzz_acquire_body() {
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        bodies(input, ACQUIRE, |body: AcquireBody, choices| {
            let settings = settings(choices);
            let params = AcquireParams { wait: GoDuration(choices.of(&[0, 250, 5_000, u64::MAX])) };
            if let Ok(terms) = body.terms(&params, &settings) {
                fits(&terms, &settings);
                through.count();
            }
        });
    });
}

#[test]
fn fuzz_what_is_left_out_is_the_lock_s_own() {
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        let settings = settings(&mut Choices::new(input));
        let terms = AcquireBody::default().terms(&AcquireParams::default(), &settings);
        let terms = terms.unwrap_or_else(|problem| panic!("{settings:?}: {problem:?}"));
        fits(&terms, &settings);
        through.count();
    });
}

#[test]
fn fuzz_several_body() {
    let through = Through::default();
    bolero::check!().with_type::<Vec<u8>>().for_each(|input| {
        bodies(input, SEVERAL, |body: SeveralBody, choices| {
            let settings = Arc::new(settings(choices));
            let defined = |name: &str| match name {
                "orders" => Ok(Defined { settings: settings.clone(), create_revision: 1, mod_revision: 1 }),
                name => Err(Problem::invalid(name)),
            };
            if let Ok(asked) = body.asked(defined) {
                assert!((1..=32).contains(&asked.len()));
                for asked in &asked {
                    fits(&asked.terms, &settings);
                }
                let places: BTreeSet<_> = asked.iter().map(|asked| &asked.place).collect();
                assert_eq!(places.len(), asked.len());
                through.count();
            }
        });
    });
}
