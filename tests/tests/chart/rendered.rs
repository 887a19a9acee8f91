//! What the chart says.

use concordat_crds::manifest;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionSpec;
use serde_json::{Value, json};

use crate::world::{CASES, NAMESPACE, chart, find, objects, render, run};

#[test]
fn helm_has_nothing_to_complain_of() {
    for (name, values) in CASES {
        let output = run(&[&["lint", "--strict", "."], values].concat());
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("WARNING"), "{name}: {said}");
    }
}

/// The definitions, which are compared with their source elsewhere, and the dashboard are left out.
#[test]
fn what_it_says_is_seen_when_it_changes() {
    for (name, values) in CASES {
        let values =
            [values, &["--set=crds.enabled=false", "--set=monitoring.dashboard.enabled=false"]].concat();
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("snapshots");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(name, render(NAMESPACE, &values)));
    }
}

#[test]
fn its_definitions_are_those_of_the_types() {
    let all = objects(NAMESPACE, &[]);
    for (file, definition) in manifest::definitions() {
        let copy = std::fs::read_to_string(chart().join("files/crds").join(file)).unwrap();
        assert_eq!(copy, manifest::yaml(&definition).unwrap(), "{file}: run `make crds`");
        let name = definition.metadata.name.as_deref().unwrap();
        let rendered = find(&all, &format!("CustomResourceDefinition {name}"));
        let spec: CustomResourceDefinitionSpec = serde_json::from_value(rendered["spec"].clone()).unwrap();
        assert!(spec == definition.spec, "{name}");
        assert_eq!(rendered["metadata"]["annotations"], json!({ "helm.sh/resource-policy": "keep" }));
    }
    let kept = objects(NAMESPACE, &["--set=crds.keep=false"]);
    assert_eq!(
        find(&kept, "CustomResourceDefinition locks.concordat.dev")["metadata"]["annotations"],
        Value::Null
    );
    let none = objects(NAMESPACE, &["--set=crds.enabled=false"]);
    assert!(none.iter().all(|object| object["kind"] != "CustomResourceDefinition"));
}

/// Two releases in one cluster have nothing but the definitions in common.
#[test]
fn every_name_is_the_release_s_own() {
    for object in objects("elsewhere", &["--set=fullnameOverride=other"]) {
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().unwrap();
        let definition = object["kind"] == "CustomResourceDefinition";
        assert!(definition || name.starts_with("other-"), "{name}");
        let own = ["elsewhere", "default"].map(Value::from);
        assert!(metadata["namespace"].is_null() || own.contains(&metadata["namespace"]), "{name}");
    }
}

/// The webhook is asked about pods whose namespace or own label asks for a sidecar, once, and about no others.
#[test]
fn no_other_pod_depends_on_the_webhook() {
    let all = objects(NAMESPACE, &[]);
    let labels = [
        json!({}),
        json!({ "concordat.dev/inject": "enabled" }),
        json!({ "concordat.dev/inject": "disabled" }),
        json!({ "concordat.dev/inject": "true" }),
    ];
    let [no, yes, not, typo] = &labels;
    for (namespace, pod, asked) in [
        (no, no, 0),
        (no, yes, 1),
        (no, not, 0),
        (yes, no, 1),
        (yes, yes, 1),
        (yes, not, 0),
        (not, no, 0),
        (not, yes, 1),
        (not, not, 0),
        (no, typo, 1),
        (yes, typo, 1),
        (not, typo, 1),
    ] {
        assert_eq!(asked_of(&all, &of(namespace, "shop"), pod), asked, "{namespace} {pod}");
        for excluded in ["kube-system", NAMESPACE] {
            assert_eq!(asked_of(&all, &of(namespace, excluded), pod), 0, "{excluded} {namespace} {pod}");
        }
    }
    for webhook in webhooks(&all) {
        assert_eq!(webhook["failurePolicy"], "Fail");
        assert_eq!(webhook["clientConfig"]["caBundle"], Value::Null, "an upgrade would blank it");
    }
}

/// Also where it looks after the namespace that it is in, and that namespace asks for sidecars.
#[test]
fn none_of_its_own_pods_depends_on_the_webhook() {
    let all = objects(NAMESPACE, &[&format!("--set=operator.namespace={NAMESPACE}")]);
    let namespace = of(&json!({ "concordat.dev/inject": "enabled" }), NAMESPACE);
    assert_eq!(asked_of(&all, &namespace, &json!({})), 1);
    let pods: Vec<&Value> = all
        .iter()
        .filter_map(|object| match object["kind"].as_str().unwrap() {
            "Pod" => Some(&object["metadata"]["labels"]),
            "Deployment" | "StatefulSet" | "Job" => Some(&object["spec"]["template"]["metadata"]["labels"]),
            _ => None,
        })
        .collect();
    assert_eq!(pods.len(), 4, "operator, etcd, uninstall and test");
    for pod in pods {
        assert_eq!(asked_of(&all, &namespace, pod), 0, "{pod}");
    }
}

fn webhooks(objects: &[Value]) -> &[Value] {
    find(objects, "MutatingWebhookConfiguration concordat-injector")["webhooks"].as_array().unwrap()
}

/// How many times it is asked about a pod.
fn asked_of(objects: &[Value], namespace: &Value, pod: &Value) -> usize {
    let both = |webhook: &&Value| {
        selects(&webhook["namespaceSelector"], namespace) && selects(&webhook["objectSelector"], pod)
    };
    webhooks(objects).iter().filter(both).count()
}

/// A namespace's labels, with the one that the API server adds.
fn of(labels: &Value, name: &str) -> Value {
    let mut labels = labels.clone();
    labels["kubernetes.io/metadata.name"] = name.into();
    labels
}

/// As the API server matches labels.
fn selects(selector: &Value, labels: &Value) -> bool {
    selector["matchExpressions"].as_array().unwrap().iter().all(|expression| {
        let label = labels.get(expression["key"].as_str().unwrap());
        let among = label.is_some_and(|label| {
            expression["values"].as_array().is_some_and(|values| values.contains(label))
        });
        match expression["operator"].as_str().unwrap() {
            "Exists" => label.is_some(),
            "In" => among,
            "NotIn" => !among,
            other => panic!("{other}"),
        }
    })
}
