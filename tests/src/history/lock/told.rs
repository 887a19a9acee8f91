//! What was told of each key, and what etcd knows of it.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, ensure};
use concordat_protocol::{
    Millis, Name, SessionId,
    lock::{fence, invariant::Grant, plans},
};

use super::{Change, OFFSET, RELEASE, RENEWAL, SHARED};

#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) paths: BTreeMap<String, OfPath>,
    /// Where the grants of a token stand.
    pub(super) tokens: HashMap<String, Vec<(String, usize)>>,
    /// When a leader of etcd that had stood still went on.
    pub(super) thaws: Vec<Millis>,
}

/// What was told of one key.
#[derive(Debug, Default)]
pub(super) struct OfPath {
    pub(super) grants: Vec<Granted>,
    pub(super) waits: Vec<Waited>,
    pub(super) said: Vec<Said>,
    pub(super) accepted: Vec<u64>,
    /// The highest fence of what was forgotten.
    pub(super) forgotten: u64,
}

#[derive(Debug)]
pub(super) struct Granted {
    pub(super) token: String,
    pub(super) grant: Grant,
}

#[derive(Debug)]
pub(super) struct Waited {
    pub(super) owner: String,
    pub(super) from: Millis,
    pub(super) to: Millis,
}

/// A renewal or release that was said to have succeeded.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) what: &'static str,
    pub(super) token: String,
    pub(super) from: Millis,
}

impl Told {
    pub(super) fn of(&mut self, path: &str) -> &mut OfPath {
        self.paths.entry(path.to_owned()).or_default()
    }

    pub(super) fn of_token(&mut self, token: &str, change: impl Fn(&mut Grant)) {
        for (path, at) in self.tokens.get(token).into_iter().flatten() {
            if let Some(granted) = self.paths.get_mut(path).and_then(|of| of.grants.get_mut(*at)) {
                change(&mut granted.grant);
            }
        }
    }

    /// What the resource of a key took; of one that has none to itself, what that of all keys did.
    pub(super) fn accepted(&self, path: &str) -> Vec<u64> {
        let of = |path| self.paths.get(path).filter(|of: &&OfPath| !of.accepted.is_empty());
        of(path).or_else(|| of(SHARED)).map(|of| of.accepted.clone()).unwrap_or_default()
    }
}

impl OfPath {
    /// Whether fences rise above what was forgotten.
    pub(super) fn rise(&self) -> Result<()> {
        let lowest = self.grants.iter().map(|granted| granted.grant.fence).min();
        let forgotten = self.forgotten;
        ensure!(
            lowest.is_none_or(|lowest| lowest > forgotten),
            "L2: fence {lowest:?} came after {forgotten}"
        );
        Ok(())
    }

    /// What callers were granted, with what etcd knows of it: under whose session each grant was put and when its key was
    /// gone, `of` knows. What etcd took while a leader was `thawing` is relied on until then; told later, never.
    pub(super) fn granted<'a>(
        &self,
        facts: &Facts<'_>,
        thawing: impl Fn(Millis) -> bool,
        of: impl Fn(u64) -> Option<(&'a SessionId, Option<Millis>)>,
    ) -> Vec<Grant> {
        let judged = |Granted { grant, .. }: &Granted| {
            let (session, gone) = of(grant.fence).unzip();
            let ended = session.and_then(|session| facts.ends.get(session)).copied();
            let mut grant = grant.clone();
            let taken = [gone.flatten(), ended].into_iter().flatten().min();
            if let Some(taken) = taken.filter(|at| thawing(*at)) {
                grant.to = grant.to.min(taken);
            }
            grant.session_alive = ended.is_none_or(|ended| ended >= grant.from.min(grant.to));
            grant.definition_in_force = facts.in_force(put_at(grant.fence));
            grant
        };
        self.grants.iter().map(judged).collect()
    }

    /// Whether the caller of the grant made at a revision was told that it has let go.
    pub(super) fn released(&self, revision: i64) -> bool {
        let mut grants = self.grants.iter().filter(|granted| put_at(granted.grant.fence) == revision);
        grants.any(|granted| self.said.iter().any(|said| said.what == RELEASE && said.token == granted.token))
    }

    /// What was said to have succeeded of the key and cannot have, or was not to: by a token that nobody was granted, a
    /// renewal of what was let go or `gone` before it was asked for (unless a leader was `thawing`), a release of what is
    /// still relied on. (It may be repeated.)
    pub(super) fn forged(
        &self,
        thawing: impl Fn(Millis) -> bool,
        gone: impl Fn(u64) -> Option<Millis>,
    ) -> Vec<String> {
        let grants: HashMap<&str, &Grant> =
            self.grants.iter().map(|granted| (&*granted.token, &granted.grant)).collect();
        // When the first release was asked for that was said to have succeeded.
        let mut let_go: HashMap<&str, Millis> = HashMap::new();
        for Said { token, from, .. } in self.said.iter().filter(|said| said.what == RELEASE) {
            let first = let_go.entry(token).or_insert(*from);
            *first = (*first).min(*from);
        }
        let mut forged = Vec::new();
        for Said { what, token, from } in &self.said {
            let Some(Grant { fence, to, .. }) = grants.get(&**token) else {
                forged.push(format!("a {what} succeeded with a token that nobody was granted"));
                continue;
            };
            if *what == RELEASE && to > from {
                forged.push(format!("{fence} is relied on and was released"));
            } else if *what == RENEWAL && let_go.get(&**token).is_some_and(|at| at < from) {
                forged.push(format!("a {what} of {fence} succeeded when that was let go"));
            } else if *what == RENEWAL && gone(*fence).is_some_and(|gone| gone < *from) && !thawing(*from) {
                forged.push(format!("a {what} of {fence} succeeded when that was gone"));
            }
        }
        forged
    }
}

/// What etcd knows of a lock.
pub(super) struct Facts<'a> {
    pub(super) lock: Name,
    pub(super) key: Name,
    /// The last there were.
    pub(super) settings: concordat_protocol::lock::Settings,
    /// At which revisions there came to be a definition or none.
    pub(super) definitions: Vec<(i64, bool)>,
    /// When sessions ended.
    pub(super) ends: HashMap<&'a SessionId, Millis>,
    pub(super) changes: &'a [Change],
}

impl Facts<'_> {
    /// Revision of the shadow that stands at the end, in mode `Lease`.
    pub(super) fn shadow(&self) -> Option<i64> {
        let key = plans::shadow(&self.lock, &self.key);
        let last = self.changes.iter().rfind(|change| change.key == key)?;
        last.entry.as_ref().map(|entry| entry.mod_revision)
    }

    /// Whether there was a definition at a revision.
    pub(super) fn in_force(&self, revision: i64) -> bool {
        let before = self.definitions.partition_point(|(changed, _)| *changed <= revision);
        before.checked_sub(1).is_some_and(|last| self.definitions[last].1)
    }
}

/// The revision at which the key of a grant was put.
pub(super) fn put_at(fence: u64) -> i64 {
    (fence / fence::PLACES) as i64 - OFFSET
}
