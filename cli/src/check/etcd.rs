//! etcd, and what is remembered in it.

use super::Finding;
use crate::reach::{Reached, Way};

/// Whether it answers, may be used, has room, and was not restored unnoticed.
pub(super) async fn look(way: Way) -> Vec<Finding> {
    let reached = match Reached::by(way).await {
        Ok(reached) => reached,
        Err(error) => {
            let advice = "see that etcd's pods run and are ready, and their logs; an etcd outside the cluster is named by --etcd";
            return vec![Finding::failed("etcd", format!("{error:#}"), advice)];
        }
    };
    let mut findings = Vec::new();
    match reached.admin.health().await {
        Ok(health) => {
            findings.push(if health.errors.is_empty() {
                Finding::ok("etcd", format!("version {}", health.version))
            } else {
                Finding::failed(
                    "etcd",
                    format!("version {}: {}", health.version, health.errors.join("; ")),
                    "see the member's log; an alarm is cleared by etcdctl alarm disarm once its cause is gone",
                )
            });
            let (size, quota) = (health.space.size, health.space.quota);
            let used = format!("{} of {} MiB used", size >> 20, quota >> 20);
            findings.push(if health.space.intake_open() {
                Finding::ok("etcd space", used)
            } else {
                Finding::failed(
                    "etcd space",
                    format!("{used}: from 80 % on nothing new is taken in"),
                    "raise --quota-backend-bytes, or drain queues, then compact and defragment etcd",
                )
            });
        }
        Err(error) => findings.push(Finding::failed(
            "etcd",
            format!("it does not tell how it is: {error}"),
            "see that a majority of its members runs",
        )),
    }
    match reached.admin.namespaces().await {
        Ok(namespaces) => {
            for namespace in namespaces {
                findings.extend(timeline(&reached, &namespace).await);
            }
        }
        Err(error) => findings.push(Finding::failed(
            "etcd reads",
            error.to_string(),
            "see that a majority of its members runs",
        )),
    }
    findings
}

/// Only what is wrong is told: there may be many namespaces.
async fn timeline(reached: &Reached, namespace: &str) -> Option<Finding> {
    let check = format!("epoch of {namespace}");
    match reached.admin.timeline(namespace).await {
        Ok(standing) => standing.lost.map(|lost| {
            Finding::failed(
                check,
                format!("etcd was restored from a snapshot ({}): nothing is served", lost.why),
                format!("concordat epoch raise --namespace {namespace}"),
            )
        }),
        Err(error) => {
            Some(Finding::failed(check, error.to_string(), "see that a majority of etcd's members runs"))
        }
    }
}
