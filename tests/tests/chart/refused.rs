//! Values that cannot be, refused before anything is made.

use serde_json::Value;

use crate::world::{chart, file, refusal};

/// Values that a wrong hand wrote, and what helm says of them.
const WRONG: [(&str, &str); 44] = [
    ("--set=surprise=1", "additional properties 'surprise' not allowed"),
    ("--set=operator.replica=1", "at '/operator': additional properties 'replica' not allowed"),
    ("--set=operator.replicas=0", "at '/operator/replicas': minimum: got 0, want 1"),
    ("--set=operator.replicas=two", "at '/operator/replicas'"),
    ("--set=operator.image.name=x", "at '/operator/image'"),
    ("--set=operator.image.tag=a b", "at '/operator/image/tag'"),
    ("--set=operator.image.digest=sha256:12", "at '/operator/image/digest'"),
    ("--set=operator.image.pullPolicy=Sometimes", "at '/operator/image/pullPolicy'"),
    ("--set=operator.terminationGracePeriodSeconds=5", "at '/operator/terminationGracePeriodSeconds'"),
    ("--set=operator.leaseDuration=15", "at '/operator/leaseDuration'"),
    ("--set=operator.logFormat=xml", "at '/operator/logFormat'"),
    ("--set=operator.resources.request.cpu=1", "at '/operator/resources'"),
    ("--set=operator.resources.requests.cpu=much", "at '/operator/resources/requests/cpu'"),
    ("--set=operator.affinity.podaffinity.a=b", "at '/operator/affinity'"),
    ("--set=operator.podLabels.a.b=c", "at '/operator/podLabels/a'"),
    ("--set=operator.serviceAccount.create=true", "at '/operator/serviceAccount'"),
    ("--set=crds.install=true", "at '/crds'"),
    ("--set=crds.enabled=maybe", "at '/crds/enabled'"),
    ("--set=webhook.timeoutSeconds=30", "at '/webhook/timeoutSeconds'"),
    ("--set=webhook.failurePolicy=Retry", "at '/webhook/failurePolicy'"),
    ("--set=webhook.excludedNamespaces={Kube System}", "at '/webhook/excludedNamespaces/0'"),
    ("--set=sidecar.replicas=2", "at '/sidecar'"),
    ("--set=tracing.endpoint=collector:4317", "at '/tracing/endpoint'"),
    ("--set=tracing.endpoint=https://a:4317", "at '/tracing/endpoint'"),
    ("--set=tracing.ratio=2", "at '/tracing/ratio'"),
    ("--set=tracing.sampler=always_on", "at '/tracing'"),
    ("--set=etcd.mode=embedded", "at '/etcd/mode'"),
    ("--set=etcd.replicas=2", "at '/etcd/replicas'"),
    ("--set=etcd.quotaBytes=1024", "at '/etcd/quotaBytes'"),
    ("--set=etcd.extraArgs={heartbeat}", "at '/etcd/extraArgs/0'"),
    ("--set=etcd.persistence.size=big", "at '/etcd/persistence/size'"),
    ("--set=etcd.persistence.accessMode=x", "at '/etcd/persistence'"),
    ("--set=etcd.external.endpoints={etcd:2379}", "at '/etcd/external/endpoints/0'"),
    ("--set=etcd.external.endpoint=x", "at '/etcd/external'"),
    ("--set=pki.provider=vault", "at '/pki/provider'"),
    ("--set=pki.operator.turnPause=10", "at '/pki/operator/turnPause'"),
    ("--set=pki.certManager.issuer=x", "at '/pki/certManager'"),
    ("--set=rbac.enabled=true", "at '/rbac'"),
    ("--set=networkPolicy.sidecar.egress={}", "at '/networkPolicy'"),
    ("--set=monitoring.serviceMonitors.enabled=true", "at '/monitoring'"),
    ("--set=tests.namespace=", "at '/tests/namespace'"),
    ("--set=etcd.replicas=3,etcd.persistence.enabled=false", "leave etcd.persistence.enabled"),
    ("--set=etcd.mode=external", "set etcd.external.endpoints"),
    ("--set=etcd.mode=external,etcd.external.endpoints={https://a:1}", "set etcd.external.secretName"),
];

#[test]
fn what_cannot_be_is_refused_with_where_it_is_wrong() {
    for (value, why) in WRONG {
        let said = refusal(&[value]).unwrap_or_else(|| panic!("{value} is taken"));
        assert!(said.contains(why), "{value}: {said}");
    }
    let mixed = "--set=etcd.mode=external,etcd.external.secretName=s,etcd.external.endpoints={https://a:1,http://b:1}";
    assert!(refusal(&[mixed]).unwrap().contains("either all are https:// or none is"));
    let plain = "--set=etcd.mode=external,etcd.external.secretName=s,etcd.external.endpoints={http://a:1}";
    assert!(refusal(&[plain]).unwrap().contains("is of no use with http://"));
}

/// Every object of the schema that names its keys refuses others, and it knows the keys of values.yaml and no more.
#[test]
fn the_schema_knows_the_values_and_no_others() {
    let schema: Value = serde_json::from_str(&file("values.schema.json")).unwrap();
    let values: Value = serde_saphyr::from_str(&file("values.yaml")).unwrap();
    let mut wrong = Vec::new();
    compare("", &schema, &schema, &values, &mut wrong);
    wrong.retain(|wrong| wrong != "global is in no values.yaml");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(chart().join("values-ha.yaml").is_file());
}

fn compare(path: &str, root: &Value, schema: &Value, value: &Value, wrong: &mut Vec<String>) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    let Some(properties) = schema["properties"].as_object() else { return };
    if schema["additionalProperties"] != false {
        wrong.push(format!("{path} takes anything"));
    }
    let known = value.as_object().cloned().unwrap_or_default();
    let inner = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    for key in known.keys().filter(|key| !properties.contains_key(*key)) {
        wrong.push(format!("{} is in no schema", inner(key)));
    }
    for (key, schema) in properties {
        match known.get(key) {
            Some(value) => compare(&inner(key), root, schema, value, wrong),
            // What Kubernetes defines may be left out.
            None if path.ends_with("affinity") => {}
            None => wrong.push(format!("{} is in no values.yaml", inner(key))),
        }
    }
}
