//! Named points at which a test kills, stops or holds the process: only in builds with the feature `failpoints`, set by
//! the environment, as `FAILPOINTS='transaction-before-decide=1*off->return(kill)'`.

/// A named point. `return(kill)` ends the process as SIGKILL does, `return(stop)` as SIGSTOP does; the other actions are
/// those of the crate `fail`. Nothing at all without the feature.
#[macro_export]
macro_rules! failpoint {
    ($name:expr) => {
        $crate::failpoint::reach($name)
    };
}

/// What [`failpoint!`] expands to.
#[cfg(feature = "failpoints")]
pub fn reach(name: &str) {
    use rustix::process::{Signal, getpid, kill_process};

    let signal = match fail::eval(name, |argument| argument).flatten().as_deref() {
        Some("kill") => Signal::KILL,
        Some("stop") => Signal::STOP,
        _ => return,
    };
    eprintln!("fail point {name}: {signal:?}");
    // Both signals are certain to arrive: there is nothing to handle.
    let _ = kill_process(getpid(), signal);
}

/// What [`failpoint!`] expands to.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn reach(_name: &str) {}

/// Reads the environment once, for the life of the process.
pub fn setup() {
    #[cfg(feature = "failpoints")]
    std::mem::forget(fail::FailScenario::setup());
}
