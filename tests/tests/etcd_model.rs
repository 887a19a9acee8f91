//! The model of etcd on which plans are checked is held to the real etcd: the same random requests to both, the same
//! answers, revisions, events and refusals.
//!
//! `ETCD_MODEL_REQUESTS` and `ETCD_MODEL_SEED` choose how many and which; a difference names its seed.

#[path = "etcd_model/real.rs"]
mod real;
#[path = "etcd_model/request.rs"]
mod request;

use std::{collections::BTreeMap, env, str::FromStr};

use anyhow::{Context, Result, anyhow, ensure};
use concordat_protocol::etcd::{Compare, Event, Op, Refused, Relation, Target, TxnAnswer};
use concordat_tests::etcd::{Etcd, Settings};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use self::{
    real::Real,
    request::{Keys, Request, Txn},
};

/// Bytes as etcd's keys and values are.
type Bytes = Vec<u8>;
type Model = concordat_protocol::etcd::Etcd<Bytes, Keys, Bytes>;

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// A transaction was run, and etcd's revision after it.
    Done(TxnAnswer<Bytes, Bytes>, i64),
    /// What was asked for besides was done.
    Agreed,
    /// It was refused.
    Refused(Refused),
    /// What was reported.
    Events(Vec<Event<Bytes, Bytes>>),
}

/// Something wrong with a model: what it is given instead of a transaction.
type Plant = fn(Txn, &Model) -> Txn;

fn ask(model: &mut Model, request: Request, plant: Plant) -> Answer {
    let outcome = match request {
        Request::Txn(txn) => {
            let txn = plant(txn, model);
            model.txn(&txn).map(|answer| Answer::Done(answer, model.revision()))
        }
        Request::Grant(lease) => model.grant(lease).map(|()| Answer::Agreed),
        Request::Revoke(lease) if !model.leased(lease) => Err(Refused::LeaseNotFound),
        Request::Revoke(lease) => {
            model.end_lease(lease);
            Ok(Answer::Agreed)
        }
        Request::NoSpace(on) => {
            model.set_no_space(on);
            Ok(Answer::Agreed)
        }
        Request::Watch { after, keys } => Ok(Answer::Events(model.since(after, &keys).cloned().collect())),
    };
    outcome.unwrap_or_else(Answer::Refused)
}

/// Sends `requests` random requests to both. The error is the first difference; else how often which answer came.
async fn compare(requests: usize, seed: u64, plant: Plant) -> Result<BTreeMap<&'static str, usize>> {
    // What survives a power cut is not asked here.
    let etcd = Etcd::with(Settings::default().flag("--unsafe-no-fsync")).await?;
    let mut real = Real::new(etcd.client().await?);
    let mut model = Model::with_history();
    let mut random = StdRng::seed_from_u64(seed);
    let mut seen = BTreeMap::new();
    for number in 0..requests {
        let request = request::random(&mut random, model.revision());
        let actual = real.ask(&request).await?;
        let modelled = ask(&mut model, request.clone(), plant);
        ensure!(
            actual == modelled,
            "request {number} of seed {seed}: {request:#?}\netcd: {actual:#?}\nmodel: {modelled:#?}"
        );
        *seen.entry(class(&actual)).or_default() += 1;
    }
    let everything = Request::Watch { after: 0, keys: Keys::all() };
    let actual = real.ask(&everything).await?;
    ensure!(actual == ask(&mut model, everything, plant), "seed {seed}: another history");
    Ok(seen)
}

fn class(answer: &Answer) -> &'static str {
    match answer {
        Answer::Done(TxnAnswer { held: true, .. }, _) => "held",
        Answer::Done(TxnAnswer { held: false, .. }, _) => "not held",
        Answer::Agreed => "agreed",
        Answer::Refused(Refused::DuplicateKey) => "duplicate key",
        Answer::Refused(Refused::LeaseNotFound) => "lease not found",
        Answer::Refused(Refused::NoSpace) => "no space",
        Answer::Events(events) if events.is_empty() => "no events",
        Answer::Events(_) => "events",
    }
}

fn setting<T: FromStr>(name: &str) -> Result<Option<T>> {
    match env::var(name) {
        Ok(text) => text.parse().map(Some).map_err(|_| anyhow!("{name} is {text}")),
        Err(_) => Ok(None),
    }
}

#[tokio::test]
async fn the_model_answers_as_etcd_does() -> Result<()> {
    let requests = setting("ETCD_MODEL_REQUESTS")?.unwrap_or(10_000);
    let seed = setting("ETCD_MODEL_SEED")?.unwrap_or_else(|| rand::rng().random());
    let seen = compare(requests, seed, |txn, _| txn).await?;
    for class in ["held", "not held", "agreed", "duplicate key", "lease not found", "no space", "events"] {
        let count = seen.get(class).copied().unwrap_or_default();
        ensure!(count >= requests / 200, "hardly any answer was \"{class}\": {seen:?}");
    }
    Ok(())
}

/// Each of these wrong models answers some request otherwise than etcd does, and is caught.
#[tokio::test]
async fn a_wrong_model_is_caught() -> Result<()> {
    let plants: [(&str, Plant); 5] = [
        ("a key may be put twice", |txn, _| request::map(txn, &mut put_once())),
        ("a dead lease is no lease", |txn, model| {
            request::map(txn, &mut |op| match op {
                Op::Put { key, value, lease } if !model.leased(lease) => Op::Put { key, value, lease: 0 },
                op => op,
            })
        }),
        ("compares inside are evaluated when they are reached", when_reached),
        ("greater is greater or equal", |mut txn, _| {
            for Compare { relation, value, .. } in &mut txn.compares {
                *value -= i64::from(*relation == Relation::Greater);
            }
            txn
        }),
        ("a range holds its end", |txn, _| {
            request::map(txn, &mut |op| match op {
                Op::Get(Keys::Span(start, end)) => Op::Get(Keys::Span(start, [end, vec![0]].concat())),
                op => op,
            })
        }),
    ];
    for (bug, plant) in plants {
        let found = compare(10_000, 1, plant).await.err().with_context(|| format!("not caught: {bug}"))?;
        ensure!(found.to_string().contains("of seed 1"), "{bug}: {found:#}");
    }
    Ok(())
}

/// Drops every put of a key but the first.
fn put_once() -> impl FnMut(Op<Bytes, Keys, Bytes>) -> Op<Bytes, Keys, Bytes> {
    let mut put = std::collections::BTreeSet::new();
    move |op| match op {
        Op::Put { key, .. } if !put.insert(key.clone()) => Op::Get(Keys::One(key)),
        op => op,
    }
}

/// Settles what the transactions inside compare by what is there after the operations before them.
fn when_reached(mut txn: Txn, model: &Model) -> Txn {
    let never = Compare { key: Vec::new(), target: Target::Version, relation: Relation::Less, value: 0 };
    for place in 0..txn.then.len() {
        let mut before = model.clone();
        let _ = before.txn(&Txn { then: txn.then[..place].to_vec(), ..Txn::default() });
        if let Op::Txn(inside) = &mut txn.then[place] {
            let held = inside.compares.iter().all(|compare| compare.holds(before.get(&compare.key)));
            inside.compares = if held { Vec::new() } else { vec![never.clone()] };
        }
    }
    txn
}
