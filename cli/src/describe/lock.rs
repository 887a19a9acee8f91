//! A lock: its holders as the operator sees them, and those who wait.

use std::collections::BTreeMap;

use anyhow::Result;
use concordat_operator::lock::{Locks, State};
use concordat_protocol::{
    Entry, Key, Kind, Name, Range, Record,
    lock::{Holder, fair::line::Line},
    session::counter,
};
use serde_json::{Value, json};

use super::{definition, instant, sidecar, with};
use crate::{
    get::shown,
    output::Format,
    reach::Reached,
    table::{Column, facts, section},
};

const FACTS: &[Column] = &[
    ("Name", "/name"),
    ("Namespace", "/namespace"),
    ("Key", "/key"),
    ("Ready", "/ready"),
    ("Mode", "/mode"),
];
const HOLDERS: &[Column] = &[
    ("KEY", "/key"),
    ("POD", "/pod"),
    ("OWNER", "/owner"),
    ("FENCE", "/fence"),
    ("SINCE", "/since"),
    ("STATE", "/state"),
];
const WAITERS: &[Column] =
    &[("KEY", "/key"), ("POD", "/pod"), ("OWNER", "/owner"), ("CALLERS", "/callers"), ("SINCE", "/since")];
const OF_ONE: &[Column] = &[("POD", "/pod"), ("OWNER", "/owner"), ("FENCE", "/fence"), ("SINCE", "/since")];

/// Everything of a Lock.
pub(super) async fn all(reached: &Reached, name: &str, format: &Format) -> Result<()> {
    let (admin, namespace) = (&reached.admin, reached.namespace.as_str());
    let definition = definition::<Locks>(reached, name).await?;
    let mode = match &definition.settings {
        concordat_protocol::Settings::Lock(settings) => {
            format!("{:?}, {:?}", settings.mode, settings.sharing)
        }
        _ => String::new(),
    };
    let lock = shown::<Locks>(admin, namespace, name, definition).await?;
    let lock = json!({"namespace": lock["namespace"], "name": lock["name"], "ready": lock["ready"]});
    let mut ranges = State::ranges(&Name::from(name));
    ranges.push(Range::Sessions);
    let mut answer = admin.read(namespace, ranges).await?;
    let sessions = answer.reads.pop().unwrap_or_default();
    let state = State::of(&answer);
    let holders: Vec<Value> = state
        .holders
        .iter()
        .map(|held| {
            // Of what may only stay with a sidecar, etcd does not tell whether it is held.
            let state = if held.holder.stays { "stays" } else { "held" };
            person(&held.key, &held.holder, json!({"fence": held.fence, "state": state}))
        })
        .collect();
    let entries: Vec<Entry> = answer.reads.into_iter().flatten().collect();
    let mut waiters = in_line(answer.revision, &entries, state.offset);
    if waiters.is_empty() {
        waiters = counted(&entries, &sessions);
    }
    let lock = with(lock, json!({"mode": mode, "holders": holders, "waiters": waiters}))?;
    format.print(&lock, |lock| {
        let mut text = facts(FACTS, lock);
        text += &section("Holders", HOLDERS, lock.get("holders"));
        text += &section("Waiters", WAITERS, lock.get("waiters"));
        if state.holders.iter().any(|held| held.holder.stays) {
            text += "What stays with a sidecar may be free: describe lock NAME KEY asks that sidecar\n";
        }
        text
    })
}

/// One key, as a sidecar tells of it.
pub(super) async fn one(reached: &Reached, name: &str, key: &str, format: &Format) -> Result<()> {
    definition::<Locks>(reached, name).await?;
    let guest = reached.guest().await?;
    let told = guest.get(&["locks", name, key], &[]).await;
    guest.stop().await?;
    let lock = with(json!({"namespace": reached.namespace, "name": name, "key": key}), told?)?;
    format.print(&lock, |lock| {
        let waiters = format!("Waiters: {}\n", lock["waiters"]);
        facts(FACTS, lock) + &section("Holders", OF_ONE, lock.get("holders")) + &waiters
    })
}

fn person(key: &str, holder: &Holder, members: Value) -> Value {
    let mut of =
        json!({"key": key, "pod": holder.pod, "owner": holder.owner, "since": instant(holder.since)});
    if let (Some(of), Value::Object(members)) = (of.as_object_mut(), members) {
        of.extend(members);
    }
    of
}

/// Those who stand in the lines of a lock of mode FairQueue, each by name.
fn in_line(revision: i64, entries: &[Entry], offset: i64) -> Vec<Value> {
    let mut lines: BTreeMap<&Name, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        if let Key::Waiter { key, .. } | Key::Shadow { key, .. } = &entry.key {
            lines.entry(key).or_default().push(entry.clone());
        }
    }
    let mut waiters = Vec::new();
    for (key, entries) in lines {
        let line = Line::of(revision, &entries);
        // What is lost waits for nothing.
        let living = line.waiters().filter(|(spot, standing)| standing.fence(spot, offset).is_some());
        waiters.extend(living.map(|(_, of)| person(key.as_str(), &of.holder, json!({"callers": 1}))));
    }
    waiters
}

/// Those who wait for a lock of another mode: only their sidecars know them, and tell how many they are.
fn counted(entries: &[Entry], sessions: &[Entry]) -> Vec<Value> {
    let of_a_sidecar = |entry: &Entry| {
        let (Key::Stat { kind: Kind::Lock, session, .. }, Record::Stat(stat)) = (&entry.key, &entry.record)
        else {
            return None;
        };
        let callers = stat.get(counter::WAITERS);
        let since = instant(stat.get(counter::WAITING_SINCE));
        (callers > 0).then(|| {
            json!({"key": null, "pod": sidecar(sessions, session)["pod"], "owner": null, "callers": callers, "since": since})
        })
    };
    entries.iter().filter_map(of_a_sidecar).collect()
}
