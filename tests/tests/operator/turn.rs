//! An authority that follows another, as far as etcd is concerned: it is started anew before anybody relies on it.

use std::{sync::Arc, time::Duration};

use concordat_operator::{
    admin::Health,
    pki::keeper::{Etcd, Keeper, Kept, Source},
};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Secret};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::world::World;

const MINUTE: Duration = Duration::from_mins(1);

/// Replicas, a StatefulSet that nobody carries out, and what they make of it.
struct Stage {
    world: World,
    keeper: Keeper,
    _folder: tempfile::TempDir,
}

impl Stage {
    async fn start(test: &str) -> Self {
        let world = World::start(test).await;
        let folder = tempfile::tempdir().unwrap();
        let labels = json!({ "app": "etcd" });
        let set = json!({
            "metadata": { "name": "etcd" },
            "spec": {
                "replicas": 3, "serviceName": "etcd", "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels, "annotations": { "its": "own" } },
                    "spec": { "containers": [{ "name": "etcd", "image": "etcd" }] },
                },
            },
        });
        let set: StatefulSet = serde_json::from_value(set).unwrap();
        world.api::<StatefulSet>().create(&PostParams::default(), &set).await.unwrap();
        let kept = Kept {
            namespace: world.namespace.clone(),
            authority: Some(Source { secret: "ca".into(), given: false, pause: 10 * MINUTE }),
            etcd: Some(Etcd { service: "etcd".into(), replicas: 3, folder: folder.path().to_owned() }),
            members: Some("etcd".into()),
            webhook: None,
        };
        let keeper = Keeper::new(world.client.clone(), kept, Arc::new(Health::default()), Arc::default());
        Self { world, keeper, _folder: folder }
    }

    async fn pass(&mut self, now: Timestamp) {
        self.keeper.pass(now).await.unwrap();
    }

    /// How many authorities are trusted, and the first of them, who signs.
    async fn trusted(&self, secret: &str) -> (usize, String) {
        let data = self.world.api::<Secret>().get(secret).await.unwrap().data.unwrap();
        let text = String::from_utf8(data["ca.crt"].0.clone()).unwrap();
        let first = text.split_inclusive("-----END CERTIFICATE-----").next().unwrap().to_owned();
        (text.matches("BEGIN").count(), first)
    }

    /// The generation of the StatefulSet, and what its pods are to be annotated with: another starts them anew.
    async fn members(&self) -> (i64, Value) {
        let set = self.world.api::<StatefulSet>().get("etcd").await.unwrap();
        let pods = serde_json::to_value(set.spec.unwrap().template.metadata.unwrap().annotations).unwrap();
        assert_eq!(pods["its"], "own");
        (set.metadata.generation.unwrap(), pods["concordat.dev/trusts"].clone())
    }

    /// Members were started as the StatefulSet says, so many are ready.
    async fn started(&self, ready: i32) {
        let revision = self.members().await.0.to_string();
        let status = json!({ "status": {
            "observedGeneration": self.members().await.0, "replicas": 3, "readyReplicas": ready, "updatedReplicas": 3,
            "currentRevision": revision, "updateRevision": revision,
        }});
        let api = self.world.api::<StatefulSet>();
        api.patch_status("etcd", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
}

#[tokio::test]
async fn etcd_is_started_anew_before_another_authority_signs_and_before_the_former_one_is_gone() {
    let mut stage =
        Stage::start("etcd_is_started_anew_before_another_authority_signs_and_before_the_former_one_is_gone")
            .await;
    let now = Timestamp::now();
    stage.pass(now).await;
    let (_, old) = stage.trusted("ca").await;
    // Its pods begin with what there is.
    assert_eq!(stage.members().await, (1, Value::Null));
    stage.started(3).await;

    let since = (now + Duration::from_secs(1)).to_string();
    let distrust = json!({ "metadata": { "annotations": { "concordat.dev/distrust-before": since } } });
    let secrets = stage.world.api::<Secret>();
    secrets.patch("ca", &PatchParams::default(), &Patch::Merge(distrust)).await.unwrap();
    stage.pass(now + MINUTE).await;
    for secret in ["ca", "etcd-tls", "etcd-root"] {
        assert_eq!(stage.trusted(secret).await, (2, old.clone()), "{secret}");
    }
    let (generation, both) = stage.members().await;
    assert!(generation == 2 && both.is_string(), "{both}");
    // The pause is over, and not every member has started: nobody new signs, and nobody is started again.
    for ready in [None, Some(2)] {
        if let Some(ready) = ready {
            stage.started(ready).await;
        }
        for minute in [30, 31] {
            stage.pass(now + minute * MINUTE).await;
        }
        assert_eq!(stage.trusted("ca").await, (2, old.clone()));
        assert_eq!(stage.members().await, (2, both.clone()));
    }
    stage.started(3).await;
    for minute in [32, 33] {
        stage.pass(now + minute * MINUTE).await;
    }
    // Members trust the same two, in another order.
    let (count, new) = stage.trusted("etcd-tls").await;
    assert!(count == 2 && new != old);
    assert_eq!(stage.members().await, (2, both.clone()));
    stage.pass(now + 42 * MINUTE).await;
    assert_eq!(stage.trusted("etcd-tls").await, (2, new.clone()), "it signed 9 minutes ago");
    stage.pass(now + 43 * MINUTE).await;
    assert_eq!(stage.trusted("etcd-tls").await, (1, new.clone()));
    let (generation, one) = stage.members().await;
    assert!(generation == 3 && one != both, "{one}");
    // That is all, for ever.
    stage.started(3).await;
    for day in [1, 2] {
        stage.pass(now + day * 24 * 60 * MINUTE).await;
    }
    assert_eq!((stage.trusted("ca").await, stage.members().await), ((1, new), (3, one)));
}

#[tokio::test]
async fn what_is_no_time_is_said_and_changes_nothing() {
    let mut stage = Stage::start("what_is_no_time_is_said_and_changes_nothing").await;
    let now = Timestamp::now();
    stage.pass(now).await;
    let before = stage.trusted("ca").await;
    for (text, wrong) in [("tomorrow", true), ("2999-01-01T00:00:00Z", false)] {
        let distrust = json!({ "metadata": { "annotations": { "concordat.dev/distrust-before": text } } });
        let secrets = stage.world.api::<Secret>();
        secrets.patch("ca", &PatchParams::default(), &Patch::Merge(distrust)).await.unwrap();
        let passed = stage.keeper.pass(now).await;
        assert_eq!(passed.is_err(), wrong, "{passed:?}");
        assert!(passed.is_ok() || passed.unwrap_err().to_string().contains("RFC 3339"));
        assert_eq!(stage.trusted("ca").await, before);
    }
}
