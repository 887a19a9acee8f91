//! Transactions with two participants, in two other processes.

use anyhow::Result;
use concordat_crds::DistributedTransaction;
use concordat_operator::transaction;
use concordat_protocol::{Kind, Settings};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    app::{BREAKS, HESITATES, REFUSES},
    world::{World, ask, refused},
};

/// A transaction whose second participant is called at `path`.
fn definition(path: &str) -> Result<(&str, Kind, Settings)> {
    let participants = json!([
        {"name": "left", "app": "left", "timeout": "1m"},
        {"name": "right", "app": "right", "timeout": "1m", "path": path},
    ]);
    let spec = json!({"protocol": "TwoPhaseCommit", "participants": participants, "timeout": "10m"});
    let object = DistributedTransaction::new("budget", serde_json::from_value(spec)?);
    let name = path.trim_start_matches('/');
    Ok((name, Kind::Transaction, Settings::Transaction(transaction::compile(&object)?)))
}

pub(crate) async fn rows() -> Result<String> {
    let definitions =
        ["/agrees", REFUSES, BREAKS, HESITATES].into_iter().map(definition).collect::<Result<Vec<_>>>()?;
    let world =
        World::start(definitions, &["left", "right", "teller"], "transactions/agrees?limit=1").await?;
    let [_, right, teller] = &*world.sidecars else { unreachable!("three were started") };
    let post = |path: &str| world.client.post(teller.url(&format!("transactions/{path}"))).json(&json!({}));
    let begin = |name: &str| post(&format!("{name}?wait=1m"));
    let id = |answer: &Value| answer["id"].as_str().unwrap_or_default().to_owned();

    ask(begin("agrees")).await?;
    let done = world.count("transaction: commit with 2 participants", ask(begin("agrees"))).await?;
    let path = teller.url(&format!("transactions/agrees/{}", id(&done)));
    world.count("transaction: read a finished one", ask(world.client.get(path))).await?;
    // Where the no comes first, the yes is not put any more.
    let abort = async {
        let earlier = world.answers();
        let (answer, ()) = tokio::try_join!(refused(begin("refuses"), StatusCode::CONFLICT), async {
            world.answered(earlier).await?;
            right.app.hesitates().await;
            right.app.votes();
            Ok(())
        })?;
        Ok(answer)
    };
    world.count("transaction: abort, 1 of 2 participants votes no", abort).await?;

    let undecided = id(&ask(post("hesitates")).await?);
    right.app.hesitates().await;
    let path = teller.url(&format!("transactions/hesitates/{undecided}/rollback"));
    let rollback = ask(world.client.post(path));
    world.count("transaction: roll back, 1 of 2 participants voted, the other is asked", rollback).await?;
    let late = async {
        right.app.votes();
        Ok(())
    };
    world.count("transaction: the vote that comes after the rollback", late).await?;

    let stuck = id(&ask(begin("breaks")).await?);
    let retry = world.client.post(teller.url(&format!("transactions/breaks/{stuck}/retry")));
    world.count("transaction: retry a stuck branch, in vain", ask(retry)).await?;
    let skip = post(&format!("breaks/{stuck}/branches/right/skip")).json(&json!({"reason": "by hand"}));
    world.count("transaction: skip a stuck branch, the last one", ask(skip)).await?;
    Ok(world.rows())
}
