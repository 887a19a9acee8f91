//! What every test here starts with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use concordat_tests::kube::helm;
use serde_json::Value;

/// The namespace of a release, unless a test wants another.
pub(crate) const NAMESPACE: &str = "concordat-system";

/// Values with which all of the chart is rendered, by the name of their snapshot.
pub(crate) const CASES: [(&str, &[&str]); 5] = [
    ("defaults", &[]),
    ("ha", &["--values=values-ha.yaml"]),
    (
        "external-etcd",
        &[
            "--set=etcd.mode=external",
            "--set=etcd.external.endpoints={https://etcd-a.example:2379,https://etcd-b.example:2379}",
            "--set=etcd.external.secretName=etcd-root",
            "--set=etcd.external.serverName=etcd.example",
        ],
    ),
    ("cert-manager", &["--set=pki.provider=cert-manager"]),
    ("everything", &["--values=values-ha.yaml", "--values=../../tests/tests/chart/everything.yaml"]),
];

/// Where the chart is.
pub(crate) fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/concordat")
}

/// A file of the chart.
pub(crate) fn file(name: &str) -> String {
    fs::read_to_string(chart().join(name)).unwrap()
}

/// Runs helm in the chart's folder.
pub(crate) fn run(arguments: &[&str]) -> Output {
    let nowhere = tempfile::tempdir().unwrap();
    let mut command = helm().unwrap();
    // Neither a cluster nor what people have set for themselves.
    command.current_dir(chart()).env("HOME", nowhere.path()).env("KUBECONFIG", nowhere.path().join("none"));
    command.args(arguments).output().unwrap()
}

/// The text of the rendered chart, with the release called `concordat`.
pub(crate) fn render(namespace: &str, values: &[&str]) -> String {
    let arguments = [&["template", "concordat", ".", "--namespace", namespace], values].concat();
    let output = run(&arguments);
    assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The objects of it.
pub(crate) fn objects(namespace: &str, values: &[&str]) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(&render(namespace, values)).unwrap();
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// What helm says when it refuses the values.
pub(crate) fn refusal(values: &[&str]) -> Option<String> {
    let output = run(&[&["template", "concordat", "."], values].concat());
    (!output.status.success()).then(|| String::from_utf8(output.stderr).unwrap())
}

/// Kind and name, for people.
pub(crate) fn title(object: &Value) -> String {
    format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
}

/// The object of this kind and name.
pub(crate) fn find<'a>(objects: &'a [Value], wanted: &str) -> &'a Value {
    objects.iter().find(|object| title(object) == wanted).unwrap_or_else(|| panic!("there is no {wanted}"))
}
