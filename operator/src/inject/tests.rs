use bolero::TypeGenerator;
use insta::assert_json_snapshot;
use serde_json::json;

use super::*;

fn settings() -> Settings {
    Settings {
        image: "ghcr.io/concordat-dev/sidecar:0.1.0".into(),
        pull_policy: Some("IfNotPresent".into()),
        log: "info".into(),
        resources: serde_json::from_value(json!({
            "requests": { "cpu": "10m", "memory": "32Mi" },
            "limits": { "memory": "128Mi" },
        }))
        .unwrap(),
        etcd_endpoints: vec!["https://concordat-etcd-0.concordat-etcd.concordat-system.svc:2379".into()],
        etcd_server_name: None,
        otlp_endpoint: None,
        trace_ratio: "1".into(),
    }
}

/// Labels of a namespace that asks.
fn asking() -> BTreeMap<String, String> {
    BTreeMap::from([(INJECT.into(), "enabled".into())])
}

/// A pod of one container, in an asking namespace.
fn plain() -> Value {
    json!({
        "metadata": { "name": "bank", "labels": { "app": "bank" } },
        "spec": { "containers": [{ "name": "bank", "image": "bank" }] },
    })
}

/// `plain`, with this at that place.
fn with(path: &str, value: Value) -> Value {
    let mut pod = plain();
    let (parent, name) = path.rsplit_once('/').unwrap();
    let mut at = &mut pod;
    for part in parent.split('/').skip(1) {
        at = match part.parse::<usize>() {
            Ok(place) => &mut at[place],
            Err(_) => &mut at[part],
        };
    }
    at[name.replace("~1", "/")] = value;
    pod
}

fn annotated(name: &str, value: &str) -> Value {
    with("/metadata/annotations", json!({ name: value }))
}

fn decided(pod: &Value) -> Verdict {
    decide(pod, &asking(), &settings())
}

fn patched(pod: &Value, patch: &Patch) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, patch).unwrap();
    pod
}

fn injected(pod: &Value, settings: &Settings) -> Value {
    match decide(pod, &asking(), settings) {
        Verdict::Inject(patch) => patched(pod, &patch),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_plain_pod_gets_all_by_default() {
    let Verdict::Inject(patch) = decided(&plain()) else { panic!("it is not injected") };
    assert_json_snapshot!(patch);
}

#[test]
fn a_pod_that_has_everything_keeps_it() {
    let pod = json!({
        "metadata": {
            "annotations": {
                "concordat.dev/app-id": "accounts",
                "concordat.dev/app-port": "8080",
                "concordat.dev/skipped": "host-network",
                "config.concordat.dev/api-port": "4800",
                "config.concordat.dev/admin-port": "4801",
                "config.concordat.dev/dapr": "true",
                "config.concordat.dev/dapr-http-port": "3501",
                "config.concordat.dev/log": "debug",
                "config.concordat.dev/log-format": "json",
                "config.concordat.dev/session-ttl": "30s",
                "config.concordat.dev/drain-grace": "5s",
                "config.concordat.dev/image": "registry:5000/sidecar@sha256:abc",
                "config.concordat.dev/cpu-request": "100m",
                "config.concordat.dev/memory-limit": "256Mi",
            },
        },
        "spec": {
            "initContainers": [
                { "name": "proxy", "restartPolicy": "Always", "env": [{ "name": "A", "value": "a" }] },
                { "name": "migrate" },
            ],
            "containers": [
                {
                    "name": "bank",
                    "env": [
                        { "name": "URL", "value": "http://127.0.0.1:$(CONCORDAT_PORT)" },
                        { "name": "CONCORDAT_TOKEN_FILE", "value": "/elsewhere" },
                    ],
                    "ports": [{ "containerPort": 4700 }, { "containerPort": 4801, "protocol": "UDP" }],
                    "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
                },
                { "name": "second", "volumeMounts": [{ "name": "concordat-token", "mountPath": "/token" }] },
            ],
            "volumes": [{ "name": "data", "emptyDir": {} }],
        },
    });
    let settings = Settings { etcd_server_name: Some("etcd.example".into()), ..settings() };
    assert_json_snapshot!(injected(&pod, &settings));
}

#[test]
fn without_tls_and_token_there_is_nothing_to_mount() {
    let settings =
        Settings { etcd_endpoints: vec!["http://etcd:2379".into()], pull_policy: None, ..settings() };
    let pod = annotated("config.concordat.dev/token", "disabled");
    assert_json_snapshot!(injected(&pod, &settings));
}

#[test]
fn sidecars_are_told_where_traces_go_and_pods_how_many() {
    let said = |pod: &Value, endpoint: &str| {
        let settings =
            Settings { otlp_endpoint: Some(endpoint.into()), trace_ratio: "0.05".into(), ..settings() };
        let pod = injected(pod, &settings);
        let env = pod["spec"]["initContainers"][0]["env"].as_array().unwrap().clone();
        let ours = |variable: &&Value| {
            let name = variable["name"].as_str().unwrap();
            name.contains("OTLP") || name.starts_with("OTEL") || name == "HOST_IP"
        };
        env.iter().filter(ours).cloned().collect::<Vec<_>>()
    };
    let sampler = |ratio: &str| {
        [
            json!({ "name": "OTEL_TRACES_SAMPLER", "value": "parentbased_traceidratio" }),
            json!({ "name": "OTEL_TRACES_SAMPLER_ARG", "value": ratio }),
        ]
    };
    let endpoint = |text: &str| json!({ "name": "CONCORDAT_OTLP_ENDPOINT", "value": text });
    let expected = [vec![endpoint("http://collector:4317")], sampler("0.05").to_vec()].concat();
    assert_eq!(said(&plain(), "http://collector:4317"), expected);
    let asks = annotated("config.concordat.dev/trace-ratio", "1");
    // Kubernetes puts in what is said before it alone.
    let node = json!({ "name": "HOST_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.hostIP" } } });
    let expected = [vec![node, endpoint("http://$(HOST_IP):4317")], sampler("1").to_vec()].concat();
    assert_eq!(said(&asks, "http://$(HOST_IP):4317"), expected);
    for wrong in ["2", "-1", "NaN", "most", ""] {
        let asks = annotated("config.concordat.dev/trace-ratio", wrong);
        assert!(matches!(decided(&asks), Verdict::Refuse(why) if why.contains("between 0 and 1")), "{wrong}");
    }
}

#[test]
fn who_asks_gets_a_sidecar_and_who_does_not_is_left_alone() {
    use Skipped::*;
    let label = |value: &str| with("/metadata/labels/concordat.dev~1inject", json!(value));
    let labels = |value: &str| BTreeMap::from([(INJECT.to_owned(), value.to_owned())]);
    let nobody = BTreeMap::new();
    let host = with("/spec/hostNetwork", json!(true));
    let mirror = annotated(MIRROR, "abc");
    for (pod, namespace, skipped, annotation) in [
        (plain(), nobody.clone(), Some(NotAsked), None),
        (plain(), labels("disabled"), Some(NotAsked), None),
        (plain(), labels("yes"), Some(NotAsked), None),
        (plain(), asking(), None, None),
        (label("enabled"), nobody.clone(), None, None),
        (label("enabled"), labels("disabled"), None, None),
        (label("disabled"), asking(), Some(Disabled), Some("disabled")),
        (host.clone(), asking(), Some(HostNetwork), Some("host-network")),
        (host, nobody, Some(NotAsked), None),
        (mirror, asking(), Some(Static), None),
        (injected(&plain(), &settings()), asking(), Some(Injected), None),
    ] {
        match decide(&pod, &namespace, &settings()) {
            Verdict::Inject(_) => assert_eq!(skipped, None, "{pod}"),
            Verdict::Skip(why, patch) => {
                assert_eq!(Some(why), skipped, "{pod}");
                let after = patched(&pod, &patch);
                assert_eq!(
                    after["metadata"]["annotations"].get(SKIPPED),
                    annotation.map(Value::from).as_ref()
                );
                assert_eq!(after["spec"], pod["spec"]);
                // Asked again, it has nothing to add.
                assert_eq!(decide(&after, &namespace, &settings()), Verdict::Skip(why, Patch::default()));
            }
            Verdict::Refuse(why) => panic!("{pod}: {why}"),
        }
    }
}

#[test]
fn what_cannot_be_is_refused_with_what_to_change() {
    let port = |port: u16| with("/spec/containers/0/ports", json!([{ "containerPort": port }]));
    let config = |name: &str, value: &str| annotated(&format!("{CONFIG}{name}"), value);
    for (pod, why) in [
        (json!({}), "this is no pod: it lacks metadata or spec"),
        (with("/spec/containers", json!(7)), "this is no pod: invalid type: integer `7`"),
        (
            with("/metadata/labels", json!({})),
            "the app has no name: set annotation concordat.dev/app-id, or label",
        ),
        (with("/metadata/labels/app", json!("a.b")), "set annotation concordat.dev/app-id to 1 to 63 of a-z"),
        (with("/metadata/labels/concordat.dev~1inject", json!("yes")), "write enabled or disabled"),
        (annotated("concordat.dev/app-id", "Bank"), "concordat.dev/app-id: \"Bank\": write 1 to 63 of a-z"),
        (annotated("concordat.dev/app-port", "http"), "write a port between 1 and 65535"),
        (annotated("concordat.dev/app-port", "4700"), "set annotation config.concordat.dev/api-port"),
        (config("app-port", "80"), "annotation config.concordat.dev/app-port: \"80\": nobody knows it"),
        (config("api-port", "0"), "write a port between 1 and 65535"),
        (config("api-port", "65536"), "write a port between 1 and 65535"),
        (
            config("admin-port", "4700"),
            "config.concordat.dev/admin-port and config.concordat.dev/api-port are both 4700",
        ),
        (config("dapr", "yes"), "write true or false"),
        (config("log", "a=b=c"), "write a level, or directives"),
        (config("log-format", "xml"), "write json or text"),
        (config("session-ttl", "2s"), "write a duration between 3s and 10m"),
        (config("session-ttl", "30"), "write a duration between 3s and 10m"),
        (config("drain-grace", "11m"), "write a duration between 0s and 10m"),
        (config("image", "a b"), "write an image as in"),
        (config("token", "off"), "write enabled or disabled"),
        (config("cpu-request", "lots"), "write a quantity as in 100m or 64Mi"),
        (config("memory-request", "1Gi"), "the sidecar's memory request 1Gi is above its limit 128Mi"),
        (with("/spec/containers/0/name", json!("concordat")), "a container is called concordat"),
        (
            port(4700),
            "container bank listens on 4700, as the sidecar would: set annotation config.concordat.dev/api-port",
        ),
        (port(4701), "set annotation config.concordat.dev/admin-port"),
        (with("/spec/volumes", json!([{ "name": "concordat-etcd" }])), "a volume is called concordat-etcd"),
        (
            with("/spec/containers/0/volumeMounts", json!([{ "name": "a", "mountPath": "/run/concordat/" }])),
            "container bank mounts a volume at /run/concordat",
        ),
    ] {
        match decided(&pod) {
            Verdict::Refuse(said) => assert!(said.contains(why), "{said}"),
            other => panic!("{pod}: {other:?}, not {why}"),
        }
    }
    // All at once.
    let pod = with(
        "/metadata/annotations",
        json!({ "config.concordat.dev/a": "", "config.concordat.dev/dapr": "" }),
    );
    assert!(matches!(decided(&pod), Verdict::Refuse(why) if why.contains("dev/a: ") && why.contains("; ")));
}

#[test]
fn containers_that_came_since_get_what_they_need_and_the_rest_is_left() {
    let mut pod = injected(&plain(), &settings());
    let late = json!({ "name": "late", "env": [], "volumeMounts": [{ "name": "x", "mountPath": "/x" }] });
    pod["spec"]["containers"].as_array_mut().unwrap().insert(0, late);
    let inits = pod["spec"]["initContainers"].as_array_mut().unwrap();
    inits.insert(0, json!({ "name": "before" }));
    inits.push(json!({ "name": "after" }));
    let Verdict::Skip(Skipped::Injected, patch) = decided(&pod) else { panic!("it is injected again") };
    let after = patched(&pod, &patch);
    let told = |path: &str| after.pointer(path).is_some_and(|of| of.to_string().contains("CONCORDAT_PORT"));
    assert!(told("/spec/containers/0") && told("/spec/containers/1") && told("/spec/initContainers/2"));
    assert_eq!(after["spec"]["initContainers"][0], pod["spec"]["initContainers"][0]);
    assert_eq!(after["spec"]["initContainers"][1], pod["spec"]["initContainers"][1]);
    assert_eq!(after["spec"]["containers"][1], pod["spec"]["containers"][1]);
    assert_eq!(decided(&after), Verdict::Skip(Skipped::Injected, Patch::default()));
}

/// Any pod, of words that matter.
#[derive(Clone, Debug, TypeGenerator)]
struct Any {
    annotations: Vec<(u8, u8)>,
    labels: Vec<(u8, u8)>,
    inits: Option<Vec<AnyContainer>>,
    containers: Vec<AnyContainer>,
    volumes: Option<Vec<u8>>,
    host: Option<bool>,
    settings: u8,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnyContainer {
    name: u8,
    env: Option<Vec<u8>>,
    mounts: Option<Vec<(u8, u8)>>,
    ports: Option<Vec<u16>>,
}

fn word(of: u8) -> &'static str {
    const WORDS: [&str; 20] = [
        "enabled",
        "disabled",
        "bank",
        "4700",
        "8080",
        "true",
        "10s",
        "1Mi",
        "concordat",
        "concordat-token",
        "concordat-etcd",
        "/run/concordat",
        "CONCORDAT_PORT",
        "CONCORDAT_TOKEN_FILE",
        "0.1.0",
        "~1/\"\\",
        "",
        "a",
        "b",
        "c",
    ];
    WORDS[usize::from(of) % WORDS.len()]
}

fn name(of: u8) -> &'static str {
    const NAMES: [&str; 12] = [
        INJECT,
        INJECTED,
        SKIPPED,
        "app",
        "concordat.dev/app-id",
        "concordat.dev/app-port",
        "config.concordat.dev/dapr",
        "config.concordat.dev/token",
        "config.concordat.dev/api-port",
        "config.concordat.dev/memory-request",
        "config.concordat.dev/session-ttl",
        "~1/\"\\",
    ];
    NAMES[usize::from(of) % NAMES.len()]
}

impl Any {
    fn pod(&self) -> Value {
        let map = |pairs: &[(u8, u8)]| -> Value {
            pairs.iter().map(|(key, value)| (name(*key).to_owned(), json!(word(*value)))).collect()
        };
        let container = |of: &AnyContainer| {
            let mut container = json!({ "name": word(of.name), "image": "x", "new": { "field": 1 } });
            if let Some(env) = &of.env {
                container["env"] = env.iter().map(|of| json!({ "name": word(*of), "value": "v" })).collect();
            }
            if let Some(mounts) = &of.mounts {
                let mount = |(of, at): &(u8, u8)| json!({ "name": word(*of), "mountPath": word(*at) });
                container["volumeMounts"] = mounts.iter().map(mount).collect();
            }
            if let Some(ports) = &of.ports {
                container["ports"] = ports.iter().map(|port| json!({ "containerPort": port })).collect();
            }
            container
        };
        let mut pod = json!({
            "metadata": { "annotations": map(&self.annotations), "labels": map(&self.labels) },
            "spec": { "containers": self.containers.iter().map(container).collect::<Vec<_>>() },
        });
        if self.settings & 2 == 0 {
            pod["metadata"]["labels"]["app"] = json!("bank");
        }
        if let Some(inits) = &self.inits {
            pod["spec"]["initContainers"] = inits.iter().map(container).collect();
        }
        if let Some(volumes) = &self.volumes {
            pod["spec"]["volumes"] = volumes.iter().map(|of| json!({ "name": word(*of) })).collect();
        }
        if self.host.is_some() {
            pod["spec"]["hostNetwork"] = json!(self.host);
        }
        pod
    }

    fn settings(&self) -> Settings {
        let endpoints = if self.settings & 1 == 0 { "https://a" } else { "http://a" };
        Settings { etcd_endpoints: vec![endpoints.into()], ..settings() }
    }
}

/// Whether `after` says all that `before` said: objects may have more, lists too, in the same order.
fn says_all_of(after: &Value, before: &Value) -> bool {
    match (after, before) {
        (Value::Object(after), Value::Object(before)) => before.iter().all(|(key, value)| {
            key.starts_with("concordat.dev/") || after.get(key).is_some_and(|of| says_all_of(of, value))
        }),
        (Value::Array(after), Value::Array(before)) => {
            let mut after = after.iter();
            before.iter().all(|value| after.any(|of| says_all_of(of, value)))
        }
        (after, before) => after == before,
    }
}

#[test]
fn no_pod_panics_and_none_loses_anything_and_a_second_look_changes_nothing() {
    bolero::check!().with_type::<Any>().cloned().for_each(|any: Any| {
        let (pod, settings) = (any.pod(), any.settings());
        let patch = match decide(&pod, &asking(), &settings) {
            Verdict::Inject(patch) | Verdict::Skip(_, patch) => patch,
            Verdict::Refuse(why) => return assert!(!why.is_empty()),
        };
        let after = patched(&pod, &patch);
        assert!(says_all_of(&after, &pod), "{pod}\n{after}");
        match decide(&after, &asking(), &settings) {
            Verdict::Skip(_, patch) => assert_eq!(patch, Patch::default(), "{after}"),
            other => panic!("{after}: {other:?}"),
        }
    });
}

#[test]
fn no_json_panics() {
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
            let _ = decide(&value, &asking(), &settings());
            let _ = decide(&json!({ "metadata": value, "spec": value }), &asking(), &settings());
            let _ =
                decide(&json!({ "metadata": {}, "spec": { "containers": value } }), &asking(), &settings());
        }
    });
}

#[test]
fn a_patch_that_loses_something_is_found() {
    let before = json!({ "a": [1, 2, { "b": "c" }] });
    for (after, says_all) in [
        (json!({ "a": [0, 1, 2, { "b": "c", "d": 1 }], "e": 1 }), true),
        (json!({ "a": [2, 1, { "b": "c" }] }), false),
        (json!({ "a": [1, 2] }), false),
        (json!({ "a": [1, 2, { "b": "d" }] }), false),
    ] {
        assert_eq!(says_all_of(&after, &before), says_all, "{after}");
    }
}
