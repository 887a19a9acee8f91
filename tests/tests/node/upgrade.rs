//! From the chart before this one.

use std::{collections::BTreeMap, rc::Rc};

use anyhow::Result;
use concordat_tests::node::Node;
use tokio::task::LocalSet;

use crate::{
    bank::Bank,
    installation::Installation,
    traffic::{Held, Traffic},
};

/// That of the release before, as `helm package` made it.
const BEFORE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/before.tgz");

/// `helm upgrade`, and `helm rollback` after it, while payments and messages go on and a lock is held.
#[tokio::test]
async fn an_upgrade_from_the_chart_before_loses_nothing() -> Result<()> {
    LocalSet::new().run_until(upgrade()).await
}

async fn upgrade() -> Result<()> {
    let node = Node::shared().await?;
    let installation = Installation::of(node, BEFORE, &[]).await?;
    let bank = Rc::new(Bank::open(node).await?);
    let mut made = BTreeMap::new();
    let held = Held::take(&bank).await?;
    let traffic = Traffic::start(&bank, "upgrade");
    traffic.goes_on(1).await?;

    installation.upgrade(&[]).await?;
    traffic.goes_on(2).await?;
    // A sidecar that the new operator gives, beside those of the one before.
    bank.roll("ledger").await?;
    traffic.goes_on(2).await?;
    installation.rolled_back().await?;
    bank.roll("worker").await?;
    traffic.goes_on(2).await?;
    installation.upgrade(&[]).await?;
    traffic.goes_on(1).await?;

    held.let_go(&bank).await?;
    traffic.holds(&mut made).await?;
    installation.uninstall().await?;
    installation.left_nothing().await
}
