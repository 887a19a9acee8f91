//! Work that goes on while things happen to the cluster, and what must have become of it.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use anyhow::{Context, Result, ensure};
use concordat_tests::process::eventually;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::bank::Bank;

/// What one asked for, and has not asked after yet.
#[derive(Default)]
struct Asked {
    payments: Vec<String>,
    statements: Vec<String>,
}

/// Payments and requests for statements, one after the other, until it is stopped.
pub(crate) struct Traffic {
    bank: Rc<Bank>,
    over: Rc<Cell<bool>>,
    begun: Rc<Cell<usize>>,
    working: JoinHandle<Result<Asked>>,
}

impl Traffic {
    /// `name` tells its payments from those of others.
    pub(crate) fn start(bank: &Rc<Bank>, name: &'static str) -> Self {
        let (over, begun) = (Rc::<Cell<bool>>::default(), Rc::<Cell<usize>>::default());
        let working = tokio::task::spawn_local(work(bank.clone(), name, over.clone(), begun.clone()));
        Self { bank: bank.clone(), over, begun, working }
    }

    /// Waits until so many more were begun: what happened meanwhile was not the end of it.
    pub(crate) async fn goes_on(&self, more: usize) -> Result<()> {
        let before = self.begun.get();
        eventually("work goes on", async || {
            ensure!(self.begun.get() >= before + more, "it stands still");
            Ok(())
        })
        .await
    }

    /// Ends it. Nothing may be lost, nothing done twice; `made` are the payments before, and those of this too.
    pub(crate) async fn holds(self, made: &mut BTreeMap<String, i64>) -> Result<()> {
        self.over.set(true);
        let asked = self.working.await??;
        for id in asked.payments {
            if self.bank.outcome(&id).await? {
                made.insert(id, 1);
            }
        }
        ensure!(!made.is_empty(), "not one payment was made");
        self.bank.adds_up(made).await?;
        self.bank.wrote_statements(&asked.statements).await
    }
}

async fn work(
    bank: Rc<Bank>,
    name: &'static str,
    over: Rc<Cell<bool>>,
    begun: Rc<Cell<usize>>,
) -> Result<Asked> {
    let mut asked = Asked::default();
    while !over.get() {
        let id = format!("{name}-{}", begun.get());
        begun.set(begun.get() + 1);
        asked.payments.push(id.clone());
        // Committed, aborted, undecided, no answer: which it was is asked after at the end.
        if let Ok((409, refused)) = bank.pay(&id, 1).await {
            ensure!(refused["outcome"] == "aborted", "{refused}");
        }
        bank.ask_for_statements(std::slice::from_ref(&id)).await?;
        asked.statements.push(id);
    }
    Ok(asked)
}

/// A lock of the bank that is held.
pub(crate) struct Held {
    token: String,
    fence: i64,
}

impl Held {
    const PATH: &str = "locks/accounts/vault";

    /// The teller takes it.
    pub(crate) async fn take(bank: &Bank) -> Result<Self> {
        let body = json!({"owner": "the story", "ttl": "10m"});
        let (status, grant) = bank.sidecar("teller", "POST", Self::PATH, &[], Some(&body)).await?;
        ensure!(status == 200, "{status}: {grant}");
        Ok(Self {
            token: grant["token"].as_str().context("no token")?.to_owned(),
            fence: grant["fence"].as_i64().context("no fence")?,
        })
    }

    /// It was held all the time, and is let go.
    pub(crate) async fn let_go(self, bank: &Bank) -> Result<()> {
        let path = format!("{}/verify?fence={}", Self::PATH, self.fence);
        let (status, verified) = bank.sidecar("worker", "GET", &path, &[], None).await?;
        ensure!(status == 200, "it was lost meanwhile: {status} {verified}");
        let released =
            bank.sidecar("teller", "DELETE", Self::PATH, &[("Lock-Token", &self.token)], None).await?;
        ensure!(released.0 == 204, "{released:?}");
        Ok(())
    }
}
