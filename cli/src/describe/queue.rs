//! A queue: its counts and dead letters as a sidecar tells them, and who consumes.

use anyhow::Result;
use concordat_operator::queue::Queues;
use concordat_protocol::{Key, Kind, Name, Range, Record, session::counter};
use serde_json::{Value, json};

use super::{definition, sidecar, with};
use crate::{
    guest::Guest,
    output::Format,
    reach::Reached,
    table::{Column, facts, section},
};

const FACTS: &[Column] = &[
    ("Name", "/name"),
    ("Namespace", "/namespace"),
    ("Mode", "/mode"),
    ("Ready messages", "/ready"),
    ("In flight", "/inFlight"),
    ("Delayed", "/delayed"),
    ("Dead letters", "/dead"),
    ("Bytes", "/bytes"),
    ("Oldest", "/oldestAge"),
];
const CONSUMERS: &[Column] = &[("APP", "/app"), ("POD", "/pod"), ("DELIVERED", "/delivered")];
const DEAD: &[Column] = &[
    ("ID", "/id"),
    ("KEY", "/key"),
    ("DELIVERIES", "/deliveries"),
    ("REASON", "/reason"),
    ("PUBLISHED", "/published"),
    ("DEAD SINCE", "/deadSince"),
];

/// Everything of a Queue.
pub(super) async fn describe(reached: &Reached, name: &str, max: u32, format: &Format) -> Result<()> {
    definition::<Queues>(reached, name).await?;
    let guest = reached.guest().await?;
    let told = ask(&guest, name, max).await;
    guest.stop().await?;
    let (counts, dead) = told?;
    let queue = json!({"namespace": reached.namespace, "name": name});
    let queue = with(queue, counts)?;
    let members = json!({"consumers": consumers(reached, name).await?, "deadLetters": dead["messages"]});
    let mut queue = with(queue, members)?;
    // It is the name, too.
    queue.as_object_mut().map(|queue| queue.remove("queue"));
    format.print(&queue, |queue| {
        let mut text = facts(FACTS, queue);
        text += &section("Consumers", CONSUMERS, queue.get("consumers"));
        text += &section("Dead letters", DEAD, queue.get("deadLetters"));
        text
    })
}

async fn ask(guest: &Guest, name: &str, max: u32) -> Result<(Value, Value)> {
    let counts = guest.get(&["queues", name], &[]).await?;
    let dead = guest.get(&["queues", name, "dead"], &[("max", &max.to_string())]).await?;
    Ok((counts, dead))
}

/// The sidecars through which somebody consumes, as they tell every 2 s.
async fn consumers(reached: &Reached, name: &str) -> Result<Vec<Value>> {
    let ranges = vec![Range::Stats(Kind::Queue, Name::from(name)), Range::Sessions];
    let mut reads = reached.admin.read(&reached.namespace, ranges).await?.reads.into_iter();
    let (stats, sessions) = (reads.next().unwrap_or_default(), reads.next().unwrap_or_default());
    let mut consumers = Vec::new();
    for entry in &stats {
        if let (Key::Stat { session, .. }, Record::Stat(stat)) = (&entry.key, &entry.record)
            && stat.get(counter::CONSUMERS) > 0
        {
            let delivered = json!({"delivered": stat.get(counter::DELIVERED)});
            consumers.push(with(sidecar(&sessions, session), delivered)?);
        }
    }
    Ok(consumers)
}
