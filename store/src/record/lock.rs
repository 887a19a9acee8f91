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
    #[prost(string, optional, tag = "9")]
    dapr_store: Option<String>,
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
    #[prost(uint32, tag = "5")]
    regrants: u32,
    #[prost(bool, tag = "6")]
    stays: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Want {
    #[prost(int64, tag = "1")]
    life: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Waiter {
    #[prost(message, tag = "1")]
    holder: Option<Holder>,
    #[prost(uint32, tag = "2")]
    permits: u32,
    #[prost(uint32, tag = "3")]
    of: u32,
    #[prost(uint32, tag = "4")]
    place: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Shadow {
    #[prost(message, tag = "1")]
    holder: Option<Holder>,
    #[prost(uint32, tag = "2")]
    permits: u32,
    #[prost(uint32, tag = "3")]
    of: u32,
    #[prost(uint64, tag = "4")]
    delay: u64,
}

impl From<&lock::Settings> for Settings {
    fn from(settings: &lock::Settings) -> Self {
        let &lock::Settings {
            mode,
            sharing,
            permits,
            ttl,
            lock_delay,
            max_hold,
            max_wait,
            max_waiters,
            ref dapr_store,
        } = settings;
        Self {
            mode: mode.number(),
            sharing: sharing.number(),
            permits,
            ttl,
            lock_delay,
            max_hold,
            max_wait,
            max_waiters,
            dapr_store: dapr_store.as_ref().map(ToString::to_string),
        }
    }
}

impl TryFrom<Settings> for lock::Settings {
    type Error = Error;

    fn try_from(settings: Settings) -> Result<Self, Error> {
        let Settings { mode, sharing, permits, ttl, lock_delay, max_hold, max_wait, max_waiters, dapr_store } =
            settings;
        Ok(Self {
            mode: lock::Mode::of_number(mode)?,
            sharing: lock::Sharing::of_number(sharing)?,
            permits,
            ttl,
            lock_delay,
            max_hold,
            max_wait,
            max_waiters,
            dapr_store: dapr_store.map(Into::into),
        })
    }
}

impl From<&lock::Holder> for Holder {
    fn from(lock::Holder { session, pod, owner, since, regrants, stays }: &lock::Holder) -> Self {
        Self {
            session: session.to_string(),
            pod: pod.clone(),
            owner: owner.clone(),
            since: *since,
            regrants: *regrants,
            stays: *stays,
        }
    }
}

impl From<Holder> for lock::Holder {
    fn from(Holder { session, pod, owner, since, regrants, stays }: Holder) -> Self {
        Self { session: session.into(), pod, owner, since, regrants, stays }
    }
}

impl From<&lock::Want> for Want {
    fn from(lock::Want { life }: &lock::Want) -> Self {
        Self { life: *life }
    }
}

impl From<Want> for lock::Want {
    fn from(Want { life }: Want) -> Self {
        Self { life }
    }
}

impl From<&lock::Waiter> for Waiter {
    fn from(lock::Waiter { holder, share, place }: &lock::Waiter) -> Self {
        Self { holder: Some(holder.into()), permits: share.permits, of: share.of, place: *place }
    }
}

impl TryFrom<Waiter> for lock::Waiter {
    type Error = Error;

    fn try_from(Waiter { holder, permits, of, place }: Waiter) -> Result<Self, Error> {
        let holder = holder.ok_or(Error::Missing("holder"))?.into();
        Ok(Self { holder, share: lock::Share { permits, of }, place })
    }
}

impl From<&lock::Shadow> for Shadow {
    fn from(lock::Shadow { holder, share, delay }: &lock::Shadow) -> Self {
        Self { holder: Some(holder.into()), permits: share.permits, of: share.of, delay: *delay }
    }
}

impl TryFrom<Shadow> for lock::Shadow {
    type Error = Error;

    fn try_from(Shadow { holder, permits, of, delay }: Shadow) -> Result<Self, Error> {
        let holder = holder.ok_or(Error::Missing("holder"))?.into();
        Ok(Self { holder, share: lock::Share { permits, of }, delay })
    }
}
