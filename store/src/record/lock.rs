//! Records of locks.

use concordat_protocol::lock;

use super::{Enumerated, Error, enumerated};

enumerated!(lock::Mode { CompareAndSwap = 1, Lease = 2, FairQueue = 3 });
enumerated!(lock::Sharing { Mutex = 1, ReadWrite = 2, Semaphore = 3 });

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Settings {
    #[prost(int32, tag = "1")]
    mode: i32,
    #[prost(int32, tag = "2")]
    sharing: i32,
    #[prost(uint32, tag = "3")]
    permits: u32,
    #[prost(uint64, tag = "4")]
    ttl: u64,
    #[prost(uint64, tag = "5")]
    lock_delay: u64,
    #[prost(uint64, tag = "6")]
    max_hold: u64,
    #[prost(uint64, tag = "7")]
    max_wait: u64,
    #[prost(uint32, tag = "8")]
    max_waiters: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Holder {
    #[prost(string, tag = "1")]
    session: String,
    #[prost(string, tag = "2")]
    pod: String,
    #[prost(string, tag = "3")]
    owner: String,
    #[prost(uint64, tag = "4")]
    since: u64,
}

impl From<&lock::Settings> for Settings {
    fn from(settings: &lock::Settings) -> Self {
        let &lock::Settings { mode, sharing, permits, ttl, lock_delay, max_hold, max_wait, max_waiters } =
            settings;
        Self {
            mode: mode.number(),
            sharing: sharing.number(),
            permits,
            ttl,
            lock_delay,
            max_hold,
            max_wait,
            max_waiters,
        }
    }
}

impl TryFrom<Settings> for lock::Settings {
    type Error = Error;

    fn try_from(settings: Settings) -> Result<Self, Error> {
        let Settings { mode, sharing, permits, ttl, lock_delay, max_hold, max_wait, max_waiters } = settings;
        Ok(Self {
            mode: lock::Mode::of_number(mode)?,
            sharing: lock::Sharing::of_number(sharing)?,
            permits,
            ttl,
            lock_delay,
            max_hold,
            max_wait,
            max_waiters,
        })
    }
}

impl From<&lock::Holder> for Holder {
    fn from(lock::Holder { session, pod, owner, since }: &lock::Holder) -> Self {
        Self { session: session.to_string(), pod: pod.clone(), owner: owner.clone(), since: *since }
    }
}

impl From<Holder> for lock::Holder {
    fn from(Holder { session, pod, owner, since }: Holder) -> Self {
        Self { session: session.into(), pod, owner, since }
    }
}
