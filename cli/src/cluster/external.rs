//! An etcd that did not come with the chart: where it is, as the operator is told.

use k8s_openapi::api::apps::v1::Deployment;

/// Where it is, and what it knows the operator by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct External {
    pub(crate) endpoints: Vec<String>,
    /// The Secret of the operator's certificate, where it asks for one.
    pub(crate) secret: Option<String>,
    pub(crate) server_name: Option<String>,
}

impl External {
    /// As an operator's Deployment says; none where etcd came with the chart.
    pub(super) fn of(operator: &Deployment) -> Option<Self> {
        let pod = operator.spec.as_ref()?.template.spec.as_ref()?;
        let arguments = || pod.containers.iter().flat_map(|container| container.args.iter().flatten());
        let flag = |name: &str| arguments().find_map(|argument| argument.strip_prefix(name));
        if flag("--etcd-service=").is_some() {
            return None;
        }
        let mut volumes = pod.volumes.iter().flatten();
        let secret = volumes.find(|volume| volume.name == "etcd").and_then(|volume| volume.secret.clone());
        Some(Self {
            endpoints: flag("--etcd-endpoints=")?.split(',').map(str::to_owned).collect(),
            secret: secret.and_then(|secret| secret.secret_name),
            server_name: flag("--etcd-server-name=").map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(arguments: &[&str], secret: Option<&str>) -> Option<External> {
        let volumes: Vec<_> =
            secret.iter().map(|name| json!({"name": "etcd", "secret": {"secretName": name}})).collect();
        let pod = json!({"containers": [{"name": "operator", "args": arguments}], "volumes": volumes});
        let operator = json!({"spec": {"selector": {}, "template": {"spec": pod}}});
        External::of(&serde_json::from_value(operator).unwrap())
    }

    #[test]
    fn it_is_where_the_operator_is_told_that_it_is() {
        let bundled = ["--etcd-endpoints=https://a:2379", "--etcd-service=concordat-etcd"];
        assert_eq!(of(&bundled, Some("concordat-etcd-root")), None);
        assert_eq!(of(&[], None), None);
        let told = ["--etcd-endpoints=https://a:2379,https://b:2379", "--etcd-server-name=etcd.example"];
        let found = of(&told, Some("etcd-root")).unwrap();
        assert_eq!(found.endpoints, ["https://a:2379", "https://b:2379"]);
        assert_eq!(
            (found.secret.as_deref(), found.server_name.as_deref()),
            (Some("etcd-root"), Some("etcd.example"))
        );
        let plain = of(&["--etcd-endpoints=http://a:2379"], None).unwrap();
        assert_eq!((plain.secret, plain.server_name), (None, None));
    }
}
