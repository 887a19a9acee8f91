//! What a client traces goes on at the participants, whoever coordinates.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use concordat_tests::etcd::Etcd;

use super::world::World;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

#[tokio::test]
async fn callbacks_are_children_of_the_call_that_began_it() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "trace").await?;
    let (c, _p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    // Whoever finishes it was not there when it began.
    let first = world.start("c", "tx-before-decide=return(kill)").await?;

    let parent = format!("00-{TRACE}-{SPAN}-01");
    ensure!(world.begin_traced(&first, "t1", &parent).await.is_none(), "the coordinator dies");
    world.finished(&c, "t1").await?;
    let mut spans = BTreeSet::from([SPAN.to_owned()]);
    for app in [&world.p, &world.q] {
        let calls = app.calls();
        assert_eq!(calls.iter().map(|call| &*call.operation).collect::<Vec<_>>(), ["prepare", "commit"]);
        for call in calls {
            let fields: Vec<&str> = call.traceparent.split('-').collect();
            assert_eq!((fields[0], fields[1], fields[3]), ("00", TRACE, "01"), "{call:?}");
            ensure!(spans.insert(fields[2].to_owned()), "each call is a span of its own: {call:?}");
        }
    }

    // Of what nobody traces no trace is made up.
    world.begin(&c, "t2").await?;
    world.finished(&c, "t2").await?;
    let calls = world.p.calls();
    let traced: Vec<_> =
        calls.iter().filter(|call| call.transaction == "t2").map(|call| &call.traceparent).collect();
    assert_eq!(traced, ["", ""]);
    Ok(())
}
