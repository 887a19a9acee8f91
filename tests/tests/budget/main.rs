//! What each operation costs etcd, held to docs/budget.md: a change is a red test. `CONCORDAT_BLESS=1` writes it anew.

mod app;
mod locks;
mod queues;
mod transactions;
mod world;

use anyhow::Result;
use concordat_tests::process::binary;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/budget.md");
const INTRODUCTION: &str = "\
# What an operation costs etcd
Counted by `cargo test -p concordat-tests --test budget` on a real etcd, one operation at a time on sidecars that do
nothing else, with all that it leaves to be done later; the test fails when a count changes, and
`CONCORDAT_BLESS=1` before it writes this page anew. A *round trip* is a request to etcd; a *commit* is a revision, that
is a Raft round and an fsync; under load plans of many operations share one. Every batch that puts also puts its
flusher's marker. What keeps sessions alive and counts for `.status` is left out.

| operation | round trips | commits | puts | deletes |
|---|---|---|---|---|
";

#[tokio::test]
async fn every_operation_costs_what_the_page_says() -> Result<()> {
    // Built before anything is under way: a build keeps this thread for longer than etcd may take to answer.
    binary("concordat-sidecar")?;
    // Each on an etcd of its own.
    let (locks, queues, transactions) =
        tokio::try_join!(locks::rows(), queues::rows(), transactions::rows())?;
    let page = format!("{INTRODUCTION}{locks}{queues}{transactions}");
    if std::env::var_os("CONCORDAT_BLESS").is_some() {
        std::fs::write(FILE, &page)?;
    }
    let written = std::fs::read_to_string(FILE)?;
    let lines = |of: &str, but: &str| -> Vec<String> {
        of.lines().filter(|line| !but.lines().any(|other| other == *line)).map(str::to_owned).collect()
    };
    let (gone, new) = (lines(&written, &page), lines(&page, &written));
    assert!(written == page, "CONCORDAT_BLESS=1 writes docs/budget.md anew\n{gone:#?} is now\n{new:#?}");
    Ok(())
}
