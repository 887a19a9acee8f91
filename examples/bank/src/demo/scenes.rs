//! What the demonstration shows, each scene with its check.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::bank::{Bank, eventually};

/// A transfer that commits.
pub(super) async fn commits(bank: &Bank) -> Result<()> {
    println!("\n1. Ada pays Bob 30.");
    let (status, answer) = transfer(bank, 30).await?;
    ensure!(status == 200 && answer["outcome"] == "committed", "answered {status}: {answer}");
    // The answer comes with the decision; each participant is told at once after it.
    settled(bank, (70, 80)).await?;
    println!("   committed; ada has 70, bob has 80, and the ledger has the entry.");
    Ok(())
}

/// A transfer that aborts for want of funds.
pub(super) async fn aborts(bank: &Bank) -> Result<()> {
    println!("\n2. Ada pays Bob 1000, which she has not got.");
    let (status, answer) = transfer(bank, 1000).await?;
    ensure!(status == 409 && answer["outcome"] == "aborted", "answered {status}: {answer}");
    settled(bank, (70, 80)).await?;
    println!(
        "   aborted ({}); the balances are untouched.",
        answer["reason"].as_str().unwrap_or("no reason given")
    );
    Ok(())
}

/// A transfer whose coordinator is killed after the votes and before the decision.
pub(super) async fn survives_its_coordinator(bank: &mut Bank) -> Result<()> {
    println!(
        "\n3. Bob's teller begins a transfer of 20 from Ada, and its sidecar is killed before it can decide."
    );
    let input = json!({"from": "ada", "to": "bob", "amount": 20, "ledgerDelayMs": 1500});
    let (status, answer) = bank.post(bank.sidecar("teller", "/v1/transactions/transfer"), &input).await?;
    ensure!(status == 202 && answer["outcome"] == "undecided", "answered {status}: {answer}");
    let id = answer["id"].as_str().context("no id")?.to_owned();
    // Frozen while the ledger still thinks, the coordinator cannot see the last vote.
    bank.signal("teller", Signal::STOP)?;
    for service in ["accounts", "ledger"] {
        let url = bank.app(service, &format!("/transfers/{id}"));
        eventually(&format!("{service} to be prepared"), || async {
            let state = bank.get(url.clone()).await?;
            ensure!(state["state"] == "prepared", "{state}");
            Ok(())
        })
        .await?;
    }
    let outcome = bank.get(bank.sidecar("ledger", &format!("/v1/transactions/transfer/{id}"))).await?;
    ensure!(outcome["outcome"] == "undecided", "decided without its coordinator: {outcome}");
    bank.signal("teller", Signal::KILL)?;
    println!(
        "   both services are prepared, the outcome is undecided, and the coordinator is dead (SIGKILL)."
    );

    let url = bank.sidecar("ledger", &format!("/v1/transactions/transfer/{id}?wait=5s"));
    eventually("another sidecar to finish the transfer", || async {
        let found = bank.get(url.clone()).await?;
        ensure!(found["outcome"] == "committed", "{found}");
        Ok(())
    })
    .await?;
    settled(bank, (50, 100)).await?;
    println!("   another sidecar finished it: committed; ada has 50, bob has 100.");
    Ok(())
}

/// Twenty clients of two sidecars that want one lock.
pub(super) async fn one_holder_at_a_time(bank: &Bank) -> Result<()> {
    println!("\n4. Twenty clients want one lock, ten through each of two sidecars.");
    let holders = std::sync::atomic::AtomicU32::new(0);
    let fences = parking_lot::Mutex::new(Vec::new());
    let clients = (0..20).map(|client| {
        let (holders, fences) = (&holders, &fences);
        async move {
            let url =
                bank.sidecar(if client % 2 == 0 { "worker" } else { "ledger" }, "/v1/locks/accounts/vault");
            let (status, grant) =
                bank.post(format!("{url}?wait=30s"), &json!({"owner": format!("client {client}")})).await?;
            ensure!(status == 200, "client {client} was answered {status}: {grant}");
            let alone = holders.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            fences.lock().push(grant["fence"].as_i64().context("no fence")?);
            tokio::task::yield_now().await;
            holders.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            ensure!(alone, "client {client} held the lock together with another");
            let released = bank.release(url, grant["token"].as_str().context("no token")?).await?;
            ensure!(released == 204, "the release was answered {released}");
            Ok(())
        }
    });
    for done in futures::future::join_all(clients).await {
        done?;
    }
    let fences = fences.into_inner();
    ensure!(fences.len() == 20, "{} of 20 held it", fences.len());
    ensure!(fences.is_sorted_by(|one, next| one < next), "the fences do not rise strictly: {fences:?}");
    println!("   all had it, one at a time; the fences rose strictly from {} to {}.", fences[0], fences[19]);
    Ok(())
}

/// A queue with good messages and one that always fails.
pub(super) async fn poison_is_set_aside(bank: &Bank) -> Result<()> {
    println!("\n5. Two requests for statements, and one that no worker can read.");
    for request in [json!({"account": "ada"}), json!({"accuont": "typo"}), json!({"account": "bob"})] {
        let (status, answer) =
            bank.post(bank.sidecar("accounts", "/v1/queues/statements/messages"), &request).await?;
        ensure!(status == 201, "the publish was answered {status}: {answer}");
    }
    eventually("both statements to be written", || async {
        let statements = bank.get(bank.app("worker", "/statements")).await?;
        let written: Vec<_> =
            statements.as_array().into_iter().flatten().map(|s| s["account"].clone()).collect();
        ensure!(written == ["ada", "bob"], "written: {statements}");
        Ok(())
    })
    .await?;
    let url = bank.sidecar("ledger", "/v1/queues/statements/dead");
    eventually("the poison message to be set aside", || async {
        let dead = bank.get(url.clone()).await?;
        let messages = dead["messages"].as_array().context("no messages")?;
        ensure!(messages.len() == 1, "{dead}");
        Ok(())
    })
    .await?;
    let dead = bank.get(url).await?;
    let letter = &dead["messages"][0];
    ensure!(letter["body"] == json!({"accuont": "typo"}), "another message is dead: {letter}");
    ensure!(letter["deliveries"] == 3, "it was delivered {} times, not 3", letter["deliveries"]);
    let counts = bank.get(bank.sidecar("ledger", "/v1/queues/statements")).await?;
    ensure!(counts["ready"] == 0 && counts["inFlight"] == 0, "the queue still holds {counts}");
    println!(
        "   both statements were written; the third message is among the dead letters after 3 deliveries:"
    );
    println!("   {}", letter["reason"].as_str().unwrap_or("no reason given"));
    Ok(())
}

async fn transfer(bank: &Bank, amount: i64) -> Result<(u16, Value)> {
    let input = json!({"from": "ada", "to": "bob", "amount": amount});
    bank.post(bank.app("accounts", "/transfers"), &input).await
}

async fn settled(bank: &Bank, expected: (i64, i64)) -> Result<()> {
    eventually("the decision to be applied everywhere", || async {
        let found = bank.balances().await?;
        ensure!(found == expected, "ada and bob have {found:?}, not {expected:?}");
        Ok(())
    })
    .await
}
