//! How long certificates are good for yet.

use concordat_operator::pki::{
    Certificate, Life,
    secret::{DISTRUST, MANAGED_BY},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt, api::ListParams};

use super::{Finding, said};
use crate::cluster::{Cluster, Installation};

/// The Secret that gives a namespace's sidecars their certificate.
const OF_A_NAMESPACE: &str = "concordat-etcd-client";
/// Where a certificate is in a Secret of type kubernetes.io/tls.
const CERTIFICATE: &str = "tls.crt";
/// The annotation by which cert-manager tells of which of its Certificates a Secret is.
const BY_CERT_MANAGER: &str = "cert-manager.io/certificate-name";
const DAY: i64 = 24 * 60 * 60;

/// Those of the installation, then those of namespaces.
pub(super) async fn look(cluster: &Cluster, of: &Installation) -> Vec<Finding> {
    const CHECK: &str = "certificates";
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), &of.namespace);
    let secrets = match api.list(&ListParams::default()).await {
        Ok(secrets) => secrets.items,
        Err(error) => {
            let advice = format!("it takes the right to list Secrets in namespace {}", of.namespace);
            return vec![Finding::failed(CHECK, said(&error), advice)];
        }
    };
    let now = Timestamp::now();
    let prefix = format!("{}-", of.name);
    let external = of.external.as_ref().and_then(|external| external.secret.clone());
    let ours = secrets.iter().filter(|secret| {
        let name = secret.name_any();
        name.starts_with(&prefix) || Some(name) == external
    });
    let mut findings: Vec<Finding> = ours.filter_map(|secret| judge(secret, now)).collect();
    if findings.is_empty() {
        let advice = "the operator makes them (cert-manager with pki.provider=cert-manager): see its log";
        findings.push(Finding::failed(
            CHECK,
            format!("there are none in namespace {}", of.namespace),
            advice,
        ));
    }
    let api: Api<Secret> = Api::all(cluster.client.clone());
    let of_namespaces = ListParams::default().fields(&format!("metadata.name={OF_A_NAMESPACE}"));
    match api.list(&of_namespaces).await {
        Ok(secrets) => findings.extend(
            secrets
                .iter()
                .filter(|secret| secret.namespace().is_some_and(|namespace| namespace != of.namespace))
                .filter_map(|secret| judge(secret, now)),
        ),
        Err(error) => findings.push(Finding::warning(
            CHECK,
            format!("those of namespaces were not seen: {}", said(&error)),
            "it takes the right to list Secrets in all namespaces",
        )),
    }
    findings
}

/// How a Secret's certificate stands; nothing if it holds none.
fn judge(secret: &Secret, now: Timestamp) -> Option<Finding> {
    let pem = &secret.data.as_ref()?.get(CERTIFICATE)?.0;
    let check = format!("certificate {}/{}", secret.namespace().unwrap_or_default(), secret.name_any());
    let renew = to_renew(secret, now);
    let Ok(certificate) = Certificate::read(&String::from_utf8_lossy(pem)) else {
        return Some(Finding::failed(check, format!("its {CERTIFICATE} is no certificate"), renew));
    };
    // Of an authority's life more is over before the next one signs.
    let share = if secret.name_any().ends_with("-ca") { 8 } else { 4 };
    Some(of_life(check, certificate.life, share, renew, now))
}

/// What to do about a Secret whose certificate was not renewed.
fn to_renew(secret: &Secret, now: Timestamp) -> String {
    let (namespace, name) = (secret.namespace().unwrap_or_default(), secret.name_any());
    let kubectl = format!("kubectl --namespace {namespace}");
    if let Some(certificate) = secret.annotations().get(BY_CERT_MANAGER) {
        return format!(
            "see why cert-manager has not renewed it: {kubectl} describe certificate {certificate}"
        );
    }
    if secret.labels().get(MANAGED_BY.0).is_none_or(|by| by != MANAGED_BY.1) {
        return "the operator did not make it: whoever did renews it".to_owned();
    }
    // One that is deleted is made again as it was.
    let anew = if name.ends_with("-ca") {
        let second = Timestamp::from_second(now.as_second()).unwrap_or(now);
        format!("{kubectl} annotate --overwrite secret {name} {DISTRUST}={second}")
    } else {
        format!("{kubectl} delete secret {name}")
    };
    format!("see why the operator has not renewed it in its log; to have it made anew: {anew}")
}

/// How a certificate stands that should be renewed before only this share of its life is left.
fn of_life(check: String, life: Life, share: i64, renew: String, now: Timestamp) -> Finding {
    let left = life.not_after.as_second() - now.as_second();
    let found = format!("until {}, {} days", life.not_after, left / DAY);
    if now < life.not_before {
        let advice = "set the clocks of the nodes, or of this machine";
        return Finding::failed(check, format!("it is good only from {} on", life.not_before), advice);
    }
    if left <= 0 {
        return Finding::failed(check, format!("it ended at {}", life.not_after), renew);
    }
    let whole = life.not_after.as_second() - life.not_before.as_second();
    if left < whole / share {
        return Finding::warning(check, format!("{found}: less than 1/{share} of its life"), renew);
    }
    Finding::ok(check, found)
}

#[cfg(test)]
mod tests {
    use super::{super::Status, *};

    #[test]
    fn what_ends_soon_is_told_before_it_does() {
        let at = |day: i64| Timestamp::from_second(day * DAY).unwrap();
        let life = Life { not_before: at(100), not_after: at(200) };
        for (day, status) in [
            (99, Status::Failed),
            (100, Status::Ok),
            (174, Status::Ok),
            (176, Status::Warning),
            (200, Status::Failed),
        ] {
            assert_eq!(of_life(String::new(), life, 4, String::new(), at(day)).status, status, "day {day}");
        }
    }
}
