//! The harness's own Kubernetes: users have the rights they were given and no others, and a crash loses nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::time::Duration;

use concordat_crds::{Lock, LockSpec};
use concordat_tests::kube::Cluster;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;

fn lock(name: &str) -> Lock {
    let spec: LockSpec = serde_json::from_value(json!({ "mode": "CompareAndSwap" })).unwrap();
    Lock::new(name, spec)
}

#[tokio::test]
async fn a_user_may_do_what_its_group_was_given() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("rights").await.unwrap();
    let admin = cluster.client().await.unwrap();
    let role: Role = serde_json::from_value(json!({
        "metadata": { "name": "readers" },
        "rules": [{ "apiGroups": ["concordat.dev"], "resources": ["locks"], "verbs": ["list"] }],
    }))
    .unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": { "name": "readers" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "readers" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "readers" }],
    }))
    .unwrap();
    Api::namespaced(admin.clone(), namespace.name()).create(&PostParams::default(), &role).await.unwrap();
    Api::namespaced(admin, namespace.name()).create(&PostParams::default(), &binding).await.unwrap();

    let locks = async |group| {
        let client = cluster.client_as("somebody", group).await.unwrap();
        Api::<Lock>::namespaced(client, namespace.name())
    };
    let reader = locks(Some("readers")).await;
    // The authorizer learns of a binding through a watch.
    let bound = async {
        while let Err(error) = reader.list(&ListParams::default()).await {
            assert!(matches!(&error, kube::Error::Api(status) if status.is_forbidden()), "{error}");
        }
    };
    tokio::time::timeout(Duration::from_mins(1), bound).await.expect("the binding takes effect");
    for (stranger, attempt) in [
        (locks(None).await.list(&ListParams::default()).await.map(drop), "a list without the group"),
        (locks(Some("others")).await.list(&ListParams::default()).await.map(drop), "a list in another group"),
        (
            reader.create(&PostParams::default(), &lock("mine")).await.map(drop),
            "a create with the right to list",
        ),
    ] {
        match stranger {
            Err(kube::Error::Api(status)) => assert!(status.is_forbidden(), "{attempt}: {}", status.message),
            answer => panic!("{attempt}: {answer:?}"),
        }
    }
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_crash() {
    let mut cluster = Cluster::start().await.unwrap();
    let name = cluster.namespace("crash").await.unwrap().name().to_owned();
    let locks: Api<Lock> = Api::namespaced(cluster.client().await.unwrap(), &name);
    let created = locks.create(&PostParams::default(), &lock("kept")).await.unwrap();
    cluster.stop_api_server();
    assert!(locks.get("kept").await.is_err(), "a stopped API server answers nobody");
    cluster.start_api_server().await.unwrap();
    let found = locks.get("kept").await.unwrap();
    assert_eq!(found.metadata.uid, created.metadata.uid);
    assert_eq!(found.spec, created.spec);
}
