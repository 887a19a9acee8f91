//! What is known of namespaces, and which of them is to be seen to when. Pure: it is told what happens, and the time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{ResourceExt, core::PartialObjectMeta, runtime::watcher::Event};
use tokio::time::Instant;

use crate::{inject::INJECT, pki::Life};

/// How soon what did not succeed is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// What is known of namespaces.
#[derive(Default)]
pub(super) struct Known {
    there: BTreeMap<String, There>,
    /// Those that were told so far, while all are told anew.
    coming: Option<BTreeMap<String, There>>,
    /// They were told once.
    told: bool,
    /// Those that a pod asks in.
    pods: BTreeSet<String>,
    /// Those of which etcd knows a user or a role.
    admitted: BTreeSet<String>,
    /// Those that were seen to, and how that went.
    seen_to: BTreeMap<String, SeenTo>,
}

/// A namespace that there is.
struct There {
    uid: Option<String>,
    asks: bool,
    /// It is not on its way out.
    stays: bool,
}

/// How a namespace stands that was seen to.
struct SeenTo {
    at: Instant,
    /// Of the certificate that it was found to have last.
    life: Option<Life>,
    failures: u32,
    /// It is to be looked at again.
    again: bool,
}

impl SeenTo {
    /// When it is to be seen to next, if at all.
    fn due(&self) -> Option<Instant> {
        let (first, most) = RETRY;
        let back_off = || first.saturating_mul(1 << (self.failures - 1).min(6)).min(most);
        match self.failures {
            0 => self.again.then_some(self.at),
            _ => Some(self.at + back_off()),
        }
    }
}

impl Known {
    /// A namespace came, changed or went.
    pub(super) fn namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) {
        match event {
            Event::Apply(namespace) => {
                let (name, there) = there(&namespace);
                self.forget_former(&name, &there);
                self.there.insert(name, there);
            }
            Event::InitApply(namespace) => {
                self.coming.get_or_insert_default().extend([there(&namespace)]);
            }
            Event::Delete(namespace) => {
                let name = namespace.name_any();
                self.there.remove(&name);
                self.forget(&name);
            }
            Event::Init => self.coming = Some(BTreeMap::new()),
            Event::InitDone => {
                let all = self.coming.take().unwrap_or_default();
                for (name, there) in &all {
                    self.forget_former(name, there);
                }
                for name in std::mem::take(&mut self.there).into_keys() {
                    if !all.contains_key(&name) {
                        self.forget(&name);
                    }
                }
                (self.there, self.told) = (all, true);
            }
        }
    }

    /// A pod that asks came, changed or went.
    pub(super) fn pod(&mut self, event: Event<PartialObjectMeta<Pod>>) {
        if let Event::Apply(pod) | Event::InitApply(pod) = event
            && let Some(namespace) = pod.namespace()
        {
            self.pods.insert(namespace);
        }
    }

    /// What was seen to in an earlier namespace of this name went with it.
    fn forget_former(&mut self, name: &str, now: &There) {
        if self.there.get(name).is_some_and(|before| before.uid != now.uid) {
            self.forget(name);
        }
    }

    fn forget(&mut self, name: &str) {
        self.pods.remove(name);
        self.seen_to.remove(name);
    }

    /// Whether it is known which namespaces there are.
    pub(super) fn is_told(&self) -> bool {
        self.told
    }

    /// These are known to etcd by user or role, and whether by both. Those that lack one are seen to again, and of all
    /// others so many, those first that were not looked at for longest.
    pub(super) fn are_admitted(&mut self, admitted: &BTreeMap<String, bool>, so_many: usize) {
        self.admitted = admitted.keys().cloned().collect();
        let whole = |name: &String| admitted.get(name) == Some(&true);
        let mut others: Vec<(Instant, String)> = Vec::new();
        for (name, seen_to) in &mut self.seen_to {
            if whole(name) {
                others.push((seen_to.at, name.clone()));
            } else {
                seen_to.again = true;
            }
        }
        others.sort();
        for (_, name) in others.into_iter().take(so_many) {
            self.again(&name);
        }
    }

    fn again(&mut self, name: &str) {
        if let Some(seen_to) = self.seen_to.get_mut(name) {
            seen_to.again = true;
        }
    }

    /// All are to be looked at again.
    pub(super) fn all_again(&mut self) {
        self.seen_to.values_mut().for_each(|seen_to| seen_to.again = true);
    }

    /// Those that use Concordat: they ask, a pod in them does, or they have objects; or they once did, for their pods may
    /// live on.
    fn using<'a>(&'a self, with_objects: &'a BTreeSet<String>) -> impl Iterator<Item = &'a String> {
        let uses = move |(name, there): &(&String, &There)| {
            let any = [&self.pods, &self.admitted, with_objects];
            there.stays && (there.asks || any.iter().any(|all| all.contains(*name)))
        };
        self.there.iter().filter(uses).map(|(name, _)| name)
    }

    /// Those that are to be seen to now.
    pub(super) fn waiting(&self, with_objects: &BTreeSet<String>, now: Instant) -> Vec<String> {
        let due = |name: &&String| {
            self.seen_to.get(*name).is_none_or(|seen_to| seen_to.due().is_some_and(|due| due <= now))
        };
        self.using(with_objects).filter(due).cloned().collect()
    }

    /// When one is to be seen to again that could not be.
    pub(super) fn next(&self, with_objects: &BTreeSet<String>) -> Option<Instant> {
        let failed = |name| self.seen_to.get(name).filter(|seen_to| seen_to.failures > 0);
        self.using(with_objects).filter_map(failed).filter_map(SeenTo::due).min()
    }

    /// A namespace's identity is as it should be.
    pub(super) fn is_served(&mut self, name: String, life: Life, now: Instant) {
        self.admitted.insert(name.clone());
        let served = SeenTo { at: now, life: Some(life), failures: 0, again: false };
        self.seen_to.insert(name, served);
    }

    /// A namespace's identity could not be seen to.
    pub(super) fn has_failed(&mut self, name: String, now: Instant) {
        let new = SeenTo { at: now, life: None, failures: 0, again: false };
        let seen_to = self.seen_to.entry(name).or_insert(new);
        (seen_to.at, seen_to.failures) = (now, seen_to.failures.saturating_add(1));
    }

    /// Those that etcd knows and that are gone.
    pub(super) fn gone(&self) -> Vec<String> {
        if !self.told || self.coming.is_some() {
            return Vec::new();
        }
        self.admitted.iter().filter(|name| !self.there.contains_key(*name)).cloned().collect()
    }

    /// etcd knows it no longer.
    pub(super) fn is_dismissed(&mut self, name: &str) {
        self.admitted.remove(name);
    }

    /// The life of the certificate that ends first.
    pub(super) fn first_to_end(&self) -> Option<Life> {
        self.seen_to.values().filter_map(|seen_to| seen_to.life).min_by_key(|life| life.not_after)
    }
}

fn there(namespace: &PartialObjectMeta<Namespace>) -> (String, There) {
    let there = There {
        uid: namespace.uid(),
        asks: namespace.labels().get(INJECT).is_some_and(|asks| asks == "enabled"),
        stays: namespace.metadata.deletion_timestamp.is_none(),
    };
    (namespace.name_any(), there)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    const LIFE: Life = Life { not_before: Timestamp::UNIX_EPOCH, not_after: Timestamp::MAX };

    fn namespace(name: &str, uid: &str, asks: bool) -> PartialObjectMeta<Namespace> {
        let labels = if asks { json!({ INJECT: "enabled" }) } else { json!({}) };
        let metadata = json!({ "name": name, "uid": uid, "labels": labels });
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    fn pod(namespace: &str) -> PartialObjectMeta<Pod> {
        let metadata = json!({ "name": "a", "namespace": namespace });
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    fn leaving(name: &str) -> PartialObjectMeta<Namespace> {
        let mut leaving = namespace(name, name, true);
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        leaving
    }

    fn all(known: &mut Known, namespaces: &[(&str, bool)]) {
        known.namespace(Event::Init);
        for (name, asks) in namespaces {
            known.namespace(Event::InitApply(namespace(name, name, *asks)));
        }
        known.namespace(Event::InitDone);
    }

    fn told(namespaces: &[(&str, bool)]) -> (Known, Instant) {
        let mut known = Known::default();
        all(&mut known, namespaces);
        (known, Instant::now())
    }

    fn none() -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn both(names: &[&str]) -> BTreeMap<String, bool> {
        names.iter().map(|name| ((*name).to_owned(), true)).collect()
    }

    #[test]
    fn whoever_asks_by_whatever_is_served_once() {
        let (mut known, now) = told(&[("label", true), ("pod", false), ("object", false), ("idle", false)]);
        known.pod(Event::Apply(pod("pod")));
        let objects = BTreeSet::from(["object".to_owned()]);
        assert_eq!(known.waiting(&objects, now), ["label", "object", "pod"]);
        for name in known.waiting(&objects, now) {
            known.is_served(name, LIFE, now);
        }
        assert!(known.waiting(&objects, now + RETRY.1).is_empty() && known.next(&objects).is_none());
        known.namespace(Event::Apply(namespace("idle", "idle", true)));
        assert_eq!(known.waiting(&objects, now), ["idle"]);
    }

    #[test]
    fn one_that_leaves_is_not_served_and_one_that_left_is_dismissed() {
        let (mut known, now) = told(&[("a", true), ("b", true)]);
        known.are_admitted(&both(&["a", "b", "gone"]), 9);
        assert_eq!(known.gone(), ["gone"]);
        known.namespace(Event::Apply(leaving("a")));
        assert_eq!((known.waiting(&none(), now), known.gone()), (vec!["b".into()], vec!["gone".into()]));
        known.namespace(Event::Delete(leaving("a")));
        assert_eq!(known.gone(), ["a", "gone"]);
        known.is_dismissed("gone");
        assert_eq!(known.gone(), ["a"]);
    }

    #[test]
    fn nobody_is_dismissed_before_it_is_known_who_there_is() {
        let mut known = Known::default();
        known.are_admitted(&both(&["a", "b"]), 9);
        known.namespace(Event::Init);
        known.namespace(Event::InitApply(namespace("a", "a", false)));
        assert!(!known.is_told() && known.gone().is_empty());
        known.namespace(Event::InitDone);
        assert_eq!((known.is_told(), known.gone()), (true, vec!["b".into()]));
        // The watch begins anew.
        known.namespace(Event::Init);
        assert!(known.is_told() && known.gone().is_empty());
        known.namespace(Event::InitDone);
        assert_eq!(known.gone(), ["a", "b"]);
    }

    #[test]
    fn one_that_was_made_anew_unseen_is_served_anew() {
        let (mut known, now) = told(&[("a", true), ("b", true)]);
        for name in ["a", "b"] {
            known.is_served(name.into(), LIFE, now);
        }
        known.namespace(Event::Apply(namespace("a", "another", true)));
        assert_eq!(known.waiting(&none(), now), ["a"]);
        known.namespace(Event::Init);
        known.namespace(Event::InitApply(namespace("a", "another", true)));
        known.namespace(Event::InitApply(namespace("b", "another", true)));
        known.namespace(Event::InitDone);
        assert_eq!(known.waiting(&none(), now), ["a", "b"]);
    }

    #[test]
    fn one_that_asks_no_more_is_kept_as_it_is() {
        let (mut known, now) = told(&[("a", true)]);
        known.is_served("a".into(), LIFE, now);
        known.namespace(Event::Apply(namespace("a", "a", false)));
        known.are_admitted(&both(&["a"]), 9);
        assert_eq!(known.waiting(&none(), now), ["a"], "its certificate is renewed");
        // Somebody took it away, and nobody asks.
        known.is_served("a".into(), LIFE, now);
        known.are_admitted(&both(&[]), 9);
        assert!(known.waiting(&none(), now).is_empty());
    }

    #[test]
    fn a_failure_is_its_own_namespace_s_alone_and_repeated_ever_more_seldom() {
        let (mut known, now) = told(&[("good", true), ("bad", true)]);
        known.is_served("good".into(), LIFE, now);
        let mut waits = Vec::new();
        let mut at = now;
        for _ in 0..9 {
            known.has_failed("bad".into(), at);
            let next = known.next(&none()).unwrap();
            assert!(known.waiting(&none(), next - Duration::from_millis(1)).is_empty());
            assert_eq!(known.waiting(&none(), next), ["bad"]);
            waits.push((next - at).as_secs());
            at = next;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        // A pass over all does not hurry it.
        known.are_admitted(&both(&["good", "bad"]), 9);
        assert_eq!(known.waiting(&none(), at - Duration::from_secs(1)), ["good"]);
        known.is_served("bad".into(), LIFE, at);
        assert_eq!(known.next(&none()), None);
    }

    #[test]
    fn a_pass_looks_at_those_who_lack_something_and_at_the_longest_unlooked_of_the_others() {
        let (mut known, now) = told(&[("a", true), ("b", true), ("c", true), ("d", true)]);
        for (later, name) in ["c", "a", "d", "b"].into_iter().enumerate() {
            known.is_served(name.into(), LIFE, now + Duration::from_secs(later as u64));
        }
        let late = now + RETRY.1;
        let mut admitted = both(&["a", "b", "c", "d"]);
        known.are_admitted(&admitted, 2);
        assert_eq!(known.waiting(&none(), late), ["a", "c"]);
        for name in ["a", "c"] {
            known.is_served(name.into(), LIFE, late);
        }
        admitted.insert("c".into(), false);
        admitted.remove("a");
        known.are_admitted(&admitted, 1);
        assert_eq!(known.waiting(&none(), late), ["a", "c", "d"]);
        known.all_again();
        assert_eq!(known.waiting(&none(), late), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_certificate_that_is_not_renewed_is_still_told_of() {
        let (mut known, now) = told(&[("a", true), ("b", true)]);
        let soon = Life { not_after: Timestamp::UNIX_EPOCH, ..LIFE };
        known.is_served("a".into(), soon, now);
        known.is_served("b".into(), LIFE, now);
        known.has_failed("a".into(), now);
        assert_eq!(known.first_to_end().map(|life| life.not_after), Some(soon.not_after));
        known.namespace(Event::Delete(namespace("a", "a", true)));
        assert_eq!(known.first_to_end().map(|life| life.not_after), Some(LIFE.not_after));
    }
}
