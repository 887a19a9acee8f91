//! Every name under which Concordat appears in a cluster.

/// The API group, and the prefix of labels, annotations and finalizers.
pub const GROUP: &str = "concordat.dev";
/// The version of the API group.
pub const VERSION: &str = "v1alpha1";

/// Held by an object until the operator has removed what it left in etcd.
pub const FINALIZER: &str = "concordat.dev/state";

/// Label of a namespace or pod that asks for the sidecar; see [`INJECT_ENABLED`].
pub const INJECT_LABEL: &str = "concordat.dev/inject";
/// The value of [`INJECT_LABEL`] that turns injection on.
pub const INJECT_ENABLED: &str = "enabled";

/// Annotation of a pod: the id under which participants name its app.
pub const APP_ID_ANNOTATION: &str = "concordat.dev/app-id";
/// Annotation of a pod: the port on which its app takes callbacks.
pub const APP_PORT_ANNOTATION: &str = "concordat.dev/app-port";
/// Prefix of the annotations that carry the sidecar's remaining settings.
pub const CONFIG_ANNOTATION_PREFIX: &str = "config.concordat.dev/";

/// Annotation of a Lock, `<key>=<fence>`: takes the key from the holder with this fence, and from no other. The operator
/// removes it when that is done, and tells of it in an Event.
pub const FORCE_RELEASE_ANNOTATION: &str = "concordat.dev/force-release";
