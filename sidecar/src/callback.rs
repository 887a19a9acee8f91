//! Placeholder.

/// Calls the app.
#[derive(Clone)]
pub struct Callbacks;

impl Callbacks {
    /// For the app at this port of 127.0.0.1, if there is one.
    pub fn new(_app_port: Option<u16>) -> Self {
        Self
    }
}
