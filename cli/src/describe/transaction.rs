//! Transactions, as a sidecar tells of them.

use anyhow::Result;
use serde_json::{Value, json};

use super::with;
use crate::{
    output::Format,
    reach::Reached,
    table::{Column, facts, section},
};

const FACTS: &[Column] = &[
    ("Id", "/id"),
    ("Transaction", "/transaction"),
    ("Namespace", "/namespace"),
    ("Outcome", "/outcome"),
    ("State", "/state"),
    ("Reason", "/reason"),
    ("Began", "/began"),
    ("Finished", "/finished"),
];
const BRANCHES: &[Column] = &[
    ("NAME", "/name"),
    ("STATE", "/state"),
    ("ATTEMPTS", "/attempts"),
    ("LAST ERROR", "/lastError"),
    ("NOTES", "/told"),
];
const ROWS: &[Column] = &[
    ("ID", "/id"),
    ("OUTCOME", "/outcome"),
    ("STATE", "/state"),
    ("BEGAN", "/began"),
    ("REASON", "/reason"),
    ("STUCK BRANCHES", "/stuck"),
];

/// The newest ones of a DistributedTransaction.
pub(super) async fn all(
    reached: &Reached,
    name: &str,
    state: Option<&str>,
    max: u32,
    format: &Format,
) -> Result<()> {
    let limit = max.to_string();
    let mut query = vec![("limit", limit.as_str())];
    query.extend(state.map(|state| ("state", state)));
    let guest = reached.guest().await?;
    let told = guest.get(&["transactions", name], &query).await;
    guest.stop().await?;
    let listed = with(json!({"namespace": reached.namespace, "name": name}), told?)?;
    format.print(&listed, |listed| {
        let rows: Vec<Value> = listed["transactions"].as_array().into_iter().flatten().map(row).collect();
        facts(&[("Name", "/name"), ("Namespace", "/namespace")], listed)
            + &section("Transactions", ROWS, Some(&rows.into()))
    })
}

fn row(of: &Value) -> Value {
    let stuck = of["branches"].as_array().into_iter().flatten().filter(|branch| branch["state"] == "stuck");
    let names: Vec<&str> = stuck.filter_map(|branch| branch["name"].as_str()).collect();
    let mut row = of.clone();
    if !names.is_empty() {
        row["stuck"] = names.join(", ").into();
    }
    row
}

/// One of them.
pub(super) async fn one(reached: &Reached, name: &str, id: &str, format: &Format) -> Result<()> {
    let guest = reached.guest().await?;
    let told = guest.get(&["transactions", name, id], &[]).await;
    guest.stop().await?;
    shown(&reached.namespace, told?, format)
}

/// Prints a transaction as a sidecar answered it.
pub(crate) fn shown(namespace: &str, view: Value, format: &Format) -> Result<()> {
    format.print(&with(json!({"namespace": namespace}), view)?, |view| {
        let branches: Vec<Value> = view["branches"].as_array().into_iter().flatten().map(branch).collect();
        facts(FACTS, view) + &section("Branches", BRANCHES, Some(&branches.into()))
    })
}

fn branch(of: &Value) -> Value {
    let notes: Vec<&str> = of["notes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut branch = of.clone();
    if !notes.is_empty() {
        branch["told"] = notes.join("; ").into();
    }
    branch
}
