//! The CEL rules that more than one field has.
//!
//! The API server puts the field's path and value before each message.

use kube::core::Rule;

/// The field keeps the value it was created with.
pub(crate) fn immutable() -> Rule {
    Rule::new("self == oldSelf").message("is immutable")
}

/// A number in `min..=max`.
pub(crate) fn number(min: u32, max: u32) -> Rule {
    Rule::new(format!("self >= {min} && self <= {max}"))
        .message(format!("must be between {min} and {max}").as_str())
}

/// A [`crate::Duration`] in `min..=max`.
pub(crate) fn duration(min: &str, max: &str) -> Rule {
    Rule::new(format!("duration(self) >= duration('{min}') && duration(self) <= duration('{max}')"))
        .message(format!("must be between {min} and {max}").as_str())
}

/// A list of [`crate::Duration`]s, each in `min..=max`.
pub(crate) fn durations(min: &str, max: &str) -> Rule {
    Rule::new(format!("self.all(d, duration(d) >= duration('{min}') && duration(d) <= duration('{max}'))"))
        .message(format!("each must be between {min} and {max}").as_str())
}

/// A [`crate::Bytes`] in `min..=max`.
pub(crate) fn bytes(min: &str, max: &str) -> Rule {
    Rule::new(format!(
        "quantity(self).compareTo(quantity('{min}')) >= 0 && quantity(self).compareTo(quantity('{max}')) <= 0"
    ))
    .message(format!("must be between {min} and {max}").as_str())
}

/// A DNS label. The length is the schema's `maxLength` of 63.
pub(crate) fn dns_label() -> Rule {
    Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("must be a DNS label: lower-case letters, digits and '-', beginning and ending with a letter or digit")
}
