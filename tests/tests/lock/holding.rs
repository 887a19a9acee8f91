//! Those who hold: what becomes of a grant is told as it happens, and a grant bound to its app ends with it.

use anyhow::{Context, Result, ensure};
use concordat_protocol::Key;
use concordat_store::keys;
use concordat_tests::{process::eventually, proxy::Proxy};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{NAMESPACE, Options, Sidecar, World};

/// A stream of events of a grant.
pub(crate) struct Events {
    response: reqwest::Response,
    text: String,
}

impl Events {
    /// Follows the grant of a token at one of its keys.
    pub(crate) async fn of(sidecar: &Sidecar, path: &str, token: &str) -> Result<Self> {
        let request = sidecar.request(Method::GET, &format!("/v1/locks/{path}/events"));
        let response = request.header("Lock-Token", token).send().await?.error_for_status()?;
        ensure!(response.headers()["content-type"] == "text/event-stream");
        Ok(Self { response, text: String::new() })
    }

    /// The next event and what it tells; `None` when the stream has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<(String, Value)>> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                let field =
                    |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                // What is no event is a ping.
                let (Some(name), Some(data)) = (field("event:"), field("data:")) else { continue };
                return Ok(Some((name.to_owned(), serde_json::from_str(data)?)));
            }
            match self.response.chunk().await? {
                Some(chunk) => self.text.push_str(std::str::from_utf8(&chunk)?),
                None => return Ok(None),
            }
        }
    }

    pub(crate) async fn is(&mut self, name: &str) -> Result<Value> {
        let (event, told) = self.next().await?.with_context(|| format!("no {name} came"))?;
        ensure!(event == name, "{event} came, not {name}: {told}");
        Ok(told)
    }

    /// Reads to the end, past what comes and goes; answers the last event.
    pub(crate) async fn last(mut self) -> Result<String> {
        let mut last = String::new();
        while let Some((event, _)) = self.next().await? {
            ensure!(last != "lost" && last != "released", "{event} came after {last}");
            last = event;
        }
        Ok(last)
    }
}

#[tokio::test]
async fn a_grant_is_told_of_until_it_is_let_go() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    let grant = world.acquire(&sidecar, "orders/k", json!({"ttl": "1m"})).await?;
    let mut events = Events::of(&sidecar, "orders/k", &grant.token()).await?;
    let told = events.is("granted").await?;
    assert_eq!(told["locks"], json!([{"lock": "orders", "key": "k", "fence": grant.fence()}]));
    assert!(told["expiresInMs"].as_u64().is_some_and(|ms| ms > 0 && ms <= 60_000), "{told}");
    assert_eq!(world.release(&sidecar, "k", &grant).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(events.last().await?, "released");
    // Whoever asks later is told the same, and nobody else is told anything.
    assert_eq!(Events::of(&sidecar, "orders/k", &grant.token()).await?.last().await?, "released");
    for (path, token) in
        [("orders/other", grant.token()), ("orders/k", "0".repeat(32)), ("orders/k", "x".into())]
    {
        let answer =
            sidecar.ask(Method::GET, &format!("/v1/locks/{path}/events"), Some(&token), None).await?;
        assert_eq!(answer.code(), "lock-token-mismatch", "{path}");
    }
    world.judge("k").await?;
    Ok(())
}

/// Pitfall 11 (etcd#17470, redisson#1626): the sidecar lives, its app does not.
#[tokio::test]
async fn a_grant_bound_to_its_app_outlives_its_ttl_and_ends_with_the_app() -> Result<()> {
    let world = World::one().await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let grant = world.acquire(&a, "orders/k", json!({"ttl": "8s", "renew": true})).await?;
    assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
    let mut events = Events::of(&a, "orders/k", &grant.token()).await?;
    events.is("granted").await?;
    // Somebody waits for longer than the ttl in vain.
    let waited = world.acquire(&b, "orders/k?wait=12s", json!({})).await?;
    assert_eq!(waited.code(), "lock-wait-timeout", "{waited:?}");
    world.stop_believing(&grant);
    drop(events);
    let next = world.acquire(&b, "orders/k?wait=1m", json!({})).await?;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    assert_eq!(
        Events::of(&a, "orders/k", &grant.token()).await?.last().await?,
        "released",
        "it was let go: it did not run out"
    );
    Ok(())
}

#[tokio::test]
async fn a_grant_that_nobody_renews_is_announced_to_end_and_then_lost() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    for body in [json!({"ttl": "8s"}), json!({"ttl": "1m", "renew": true, "maxHold": "8s"})] {
        let grant = world.acquire(&sidecar, "orders/k?wait=1m", body).await?;
        assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
        let mut events = Events::of(&sidecar, "orders/k", &grant.token()).await?;
        events.is("granted").await?;
        let told = events.is("expiring").await?;
        assert!(told["expiresInMs"].as_u64().is_some_and(|ms| ms < 8_000), "{told}");
        assert_eq!(events.last().await?, "lost");
        assert_eq!(sidecar.renew("k", &grant.token()).await?.code(), "lock-lost");
    }
    world.judge("k").await?;
    Ok(())
}

/// A grant whose lease was revoked under it is lost, whoever has got a lease of the same ttl since.
#[tokio::test]
async fn a_grant_does_not_outlive_its_own_lease() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    let terms = json!({"ttl": "6s", "renew": true});
    let grant = world.acquire(&sidecar, "orders/k", terms.clone()).await?;
    let mut events = Events::of(&sidecar, "orders/k", &grant.token()).await?;
    events.is("granted").await?;
    let holder = Key::Holder { lock: "orders".into(), key: "k".into() };
    let mut client = world.etcd.client().await?;
    let found = client.get(keys::encode(NAMESPACE, &holder), None).await?;
    client.lease_revoke(found.kvs()[0].lease()).await?;
    // The sidecar learns of it from what it is refused, and goes on under another lease.
    let other = eventually("another key is granted", async || {
        let answer = world.acquire(&sidecar, "orders/other", terms.clone()).await?;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        Ok(answer)
    })
    .await?;
    let mut others = Events::of(&sidecar, "orders/other", &other.token()).await?;
    others.is("granted").await?;
    assert_eq!(events.last().await?, "lost");
    assert_eq!(sidecar.renew("other", &other.token()).await?.status, StatusCode::OK);
    Ok(())
}

/// Pitfall 10 (redisson#2665), etcd#6127: whoever holds it learns of the end while nobody else can hold it.
#[tokio::test]
async fn a_session_that_is_lost_is_told_before_another_holds_the_lock() -> Result<()> {
    let world = World::one().await?;
    let proxy = Proxy::start(world.etcd.address(0)).await?;
    let options = Options { etcd: Some(proxy.endpoint()), victim: true, ..Options::default() };
    let (cut_off, other) = (world.sidecar_with("cut-off", options).await?, world.sidecar("other").await?);
    let grant = world.acquire(&cut_off, "orders/k", json!({"ttl": "12s", "renew": true})).await?;
    let mut events = Events::of(&cut_off, "orders/k", &grant.token()).await?;
    events.is("granted").await?;
    let waiter = tokio::spawn(other.request(Method::POST, "/v1/locks/orders/k?wait=1m").send());
    other.waiters("k", 1).await?;
    proxy.swallow();
    loop {
        let (event, _) = events.next().await?.context("the stream ended before the loss was told")?;
        if event == "expiring" {
            // etcd is asked, not the clock: the lease that the grant stands under is still there.
            ensure!(world.holder("k").await?.is_some_and(|holder| holder.pod == "cut-off"), "told too late");
        }
        if event == "lost" {
            break;
        }
    }
    ensure!(events.next().await?.is_none(), "nothing is told after the loss");
    let next = Sidecar::read(waiter.await??).await?;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    proxy.heal();
    assert_eq!(cut_off.renew("k", &grant.token()).await?.code(), "lock-lost");
    cut_off.counts("concordat_sidecar_session_losses_total 1").await?;
    other.counts("concordat_sidecar_session_losses_total 0").await?;
    Ok(())
}

#[tokio::test]
async fn a_sidecar_that_ends_tells_that_it_let_go() -> Result<()> {
    let world = World::one().await?;
    let mut sidecar = world.sidecar("a").await?;
    let grant = world.acquire(&sidecar, "orders/k", json!({"ttl": "1m", "renew": true})).await?;
    let mut events = Events::of(&sidecar, "orders/k", &grant.token()).await?;
    events.is("granted").await?;
    sidecar.process.ask_to_end()?;
    assert_eq!(events.last().await?, "released");
    assert!(sidecar.process.wait().await?.success());
    world.is_free("k").await?;
    Ok(())
}

#[tokio::test]
async fn what_is_held_waited_for_and_lost_is_counted() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    let grant = world.acquire(&sidecar, "orders/k", json!({"ttl": "1m"})).await?;
    let waiter = tokio::spawn(
        sidecar.request(Method::POST, "/v1/locks/orders/k?wait=1m").json(&json!({"ttl": "2s"})).send(),
    );
    sidecar.waiters("k", 1).await?;
    sidecar.counts("concordat_sidecar_lock_waiters 1").await?;
    world.release(&sidecar, "k", &grant).await?;
    let next = Sidecar::read(waiter.await??).await?;
    assert_eq!(next.status, StatusCode::OK);
    assert_eq!(Events::of(&sidecar, "orders/k", &next.token()).await?.last().await?, "lost");
    for line in [
        "concordat_sidecar_lock_waiters 0",
        "concordat_sidecar_lock_grants_total 2",
        "concordat_sidecar_lock_losses_total 1",
        "concordat_sidecar_lock_wait_seconds_count 2",
        "concordat_sidecar_lock_hold_seconds_count 2",
    ] {
        sidecar.counts(line).await?;
    }
    Ok(())
}
