//! Names as types of their own, so that one cannot stand where another belongs.

use std::{borrow::Borrow, fmt, sync::Arc};

macro_rules! text {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    )+};
}

text! {
    /// The name of a custom resource (a DNS-1123 subdomain), or a key that a user chose (any UTF-8, 1 to 512 bytes).
    Name,
    /// An app: the pods that share one annotation `concordat.dev/app-id` (a DNS-1123 label).
    App,
    /// One life of one sidecar: a nonce, never used twice.
    SessionId,
    /// One transaction (1 to 128 bytes of any UTF-8).
    TransactionId,
    /// One participant's part of a transaction (a DNS-1123 label).
    Branch,
}

impl Branch {
    /// What stands for the whole transaction where a branch is named: no DNS label, so no branch.
    pub fn everything() -> Self {
        "-".into()
    }
}
