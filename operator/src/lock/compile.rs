//! A `Lock` becomes settings.

use concordat_crds::{
    Duration, Lock, LockSpec,
    lock::{LockKind, LockMode},
};
use concordat_protocol::lock::{Mode, Settings, Sharing};

use crate::invalid::{self, Invalid, duration, hours, object_name, seconds, within};

const NONE: Duration = invalid::seconds(0);

/// The settings that sidecars get, or what to change.
pub fn compile(object: &Lock) -> Result<Settings, Invalid> {
    let LockSpec { mode, kind, permits, ttl, lock_delay, max_hold, max_wait, max_waiters, dapr_store } =
        &object.spec;
    let mode = match mode {
        LockMode::CompareAndSwap => Mode::CompareAndSwap,
        LockMode::Lease => Mode::Lease,
        LockMode::FairQueue => Mode::FairQueue,
    };
    let sharing = match kind {
        LockKind::Mutex => Sharing::Mutex,
        LockKind::ReadWrite => Sharing::ReadWrite,
        LockKind::Semaphore => Sharing::Semaphore,
    };
    if sharing != Sharing::Mutex && mode != Mode::FairQueue {
        return Err(Invalid::new(
            "spec.kind",
            format!("must be Mutex, or spec.mode FairQueue: {kind:?} needs it"),
        ));
    }
    if sharing != Sharing::Semaphore && permits.is_some() {
        return Err(Invalid::new("spec.permits", "must be absent: permits are for kind Semaphore only"));
    }
    if mode == Mode::CompareAndSwap && *lock_delay != NONE {
        return Err(Invalid::new("spec.lockDelay", "must be 0s: it is for modes Lease and FairQueue only"));
    }
    if let Some(store) = dapr_store {
        if sharing != Sharing::Mutex {
            return Err(Invalid::new("spec.daprStore", "must be absent: it is for kind Mutex only"));
        }
        object_name("spec.daprStore", store)?;
    }
    Ok(Settings {
        mode,
        sharing,
        permits: within("spec.permits", object.spec.permits(), 1..=1024)?,
        ttl: duration("spec.ttl", *ttl, seconds(2)..=hours(24))?,
        lock_delay: duration("spec.lockDelay", *lock_delay, NONE..=seconds(60))?,
        max_hold: duration("spec.maxHold", *max_hold, NONE..=hours(168))?,
        max_wait: duration("spec.maxWait", *max_wait, NONE..=hours(1))?,
        max_waiters: within("spec.maxWaiters", *max_waiters, 0..=65_536)?,
        dapr_store: dapr_store.as_deref().map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn lock(spec: Value) -> Lock {
        Lock::new("l", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn every_field_reaches_the_settings() {
        let object = lock(json!({
            "mode": "FairQueue", "kind": "Semaphore", "permits": 7, "ttl": "3s", "lockDelay": "4s",
            "maxHold": "5m", "maxWait": "6s", "maxWaiters": 8,
        }));
        assert_eq!(
            compile(&object),
            Ok(Settings {
                mode: Mode::FairQueue,
                sharing: Sharing::Semaphore,
                permits: 7,
                ttl: 3_000,
                lock_delay: 4_000,
                max_hold: 300_000,
                max_wait: 6_000,
                max_waiters: 8,
                dapr_store: None,
            })
        );
    }

    #[test]
    fn what_is_left_out_has_the_documented_default() {
        assert_eq!(
            compile(&lock(json!({ "mode": "CompareAndSwap" }))),
            Ok(Settings {
                mode: Mode::CompareAndSwap,
                sharing: Sharing::Mutex,
                permits: 1,
                ttl: 15_000,
                lock_delay: 0,
                max_hold: 0,
                max_wait: 60_000,
                max_waiters: 1024,
                dapr_store: None,
            })
        );
    }

    #[test]
    fn a_store_of_dapr_s_is_taken_as_it_is_written() {
        let object = lock(json!({ "mode": "CompareAndSwap", "daprStore": "lock-store.v2" }));
        assert_eq!(compile(&object).unwrap().dapr_store, Some("lock-store.v2".into()));
    }

    #[test]
    fn a_part_of_a_millisecond_is_a_whole_one() {
        let object = lock(json!({ "mode": "CompareAndSwap", "maxHold": "1ns", "ttl": "2000.5ms" }));
        let settings = compile(&object).unwrap();
        assert_eq!((settings.max_hold, settings.ttl), (1, 2_001));
    }

    #[test]
    fn only_what_works_counts_as_supported() {
        for (mode, kind, supported) in [
            ("CompareAndSwap", "Mutex", true),
            ("Lease", "Mutex", true),
            ("FairQueue", "Mutex", true),
            ("FairQueue", "ReadWrite", true),
            ("FairQueue", "Semaphore", true),
        ] {
            let settings = compile(&lock(json!({ "mode": mode, "kind": kind }))).unwrap();
            assert_eq!(settings.supported(), supported, "{mode} {kind}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_change() {
        for (spec, refusal) in [
            (
                json!({ "mode": "Lease", "kind": "ReadWrite" }),
                "spec.kind must be Mutex, or spec.mode FairQueue: ReadWrite needs it",
            ),
            (
                json!({ "mode": "CompareAndSwap", "kind": "Semaphore" }),
                "spec.kind must be Mutex, or spec.mode FairQueue: Semaphore needs it",
            ),
            (
                json!({ "mode": "Lease", "permits": 2 }),
                "spec.permits must be absent: permits are for kind Semaphore only",
            ),
            (
                json!({ "mode": "CompareAndSwap", "lockDelay": "1s" }),
                "spec.lockDelay must be 0s: it is for modes Lease and FairQueue only",
            ),
            (
                json!({ "mode": "FairQueue", "kind": "Semaphore", "permits": 0 }),
                "spec.permits must be between 1 and 1024, not 0",
            ),
            (
                json!({ "mode": "FairQueue", "kind": "ReadWrite", "daprStore": "a" }),
                "spec.daprStore must be absent: it is for kind Mutex only",
            ),
            (
                json!({ "mode": "CompareAndSwap", "daprStore": "A" }),
                "spec.daprStore must be an object's name: lower-case letters, digits, '-' and '.', each part between dots \
                 beginning and ending with a letter or digit; not \"A\"",
            ),
            (
                json!({ "mode": "CompareAndSwap", "ttl": "1999ms" }),
                "spec.ttl must be between 2s and 24h, not 1s999ms",
            ),
        ] {
            assert_eq!(compile(&lock(spec)).unwrap_err().to_string(), refusal);
        }
    }
}
