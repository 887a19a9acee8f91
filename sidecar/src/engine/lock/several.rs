//! Takes several keys by one token, all or none: [`Several`] says in which order.

use std::time::Duration;

use concordat_protocol::{
    Millis,
    lock::{Rejected, Settings, Several, Token},
};
use futures::future::join_all;

use super::{Held, LockEngine, Place, Terms};
use crate::definitions::Defined;

/// One key that is asked for.
#[derive(Clone)]
pub struct Asked {
    /// Which.
    pub place: Place,
    /// Its lock.
    pub defined: Defined<Settings>,
    /// How it is wanted.
    pub terms: Terms,
}

/// A grant of several keys as its caller is told.
pub struct GrantedSeveral {
    /// Proof.
    pub token: Token,
    /// The keys, in the order in which they were asked for.
    pub keys: Vec<Held>,
    /// How long it is safe to rely on all of them, milliseconds.
    pub expires_in: Millis,
    /// How long the caller waited, milliseconds.
    pub waited: Millis,
}

/// Keys taken so far; dropped before they are a grant, they are freed.
struct Taken<'a> {
    engine: &'a LockEngine,
    token: Token,
    keys: Vec<Held>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.engine.0.free(self.token, self.keys.iter().map(|held| &held.place));
    }
}

impl LockEngine {
    /// Takes all of these keys, each asked for once, waiting for as long as the shortest of their terms says.
    ///
    /// # Errors
    /// Which key was not to be had, and why; none of the others is held then.
    pub async fn acquire_several(&self, asked: &[Asked]) -> Result<GrantedSeveral, (Place, Rejected)> {
        let (token, begun) = (Token(rand::random()), self.0.now().monotonic);
        let bounds = |of: fn(&Terms) -> Millis| asked.iter().map(|asked| of(&asked.terms)).min().unwrap_or(0);
        let (wait, ttl) = (bounds(|terms| terms.wait), bounds(|terms| terms.ttl));
        let bound = asked.iter().any(|asked| asked.terms.renew);
        let mut taken = Taken { engine: self, token, keys: Vec::new() };
        let mut several = Several::new(asked.iter().map(|asked| &asked.place).collect())
            .map_err(|twice| (twice.clone(), Rejected::NothingUnderWay))?;
        while let Some(place) = several.next().copied()
            && let Some(Asked { defined, terms, .. }) = asked.iter().find(|asked| asked.place == *place)
        {
            let left = (begun + wait).saturating_sub(self.0.now().monotonic);
            let terms = Terms { wait: if wait == 0 { 0 } else { left.max(1) }, ..terms.clone() };
            match self.take_another(&taken, place, defined, terms, ttl).await {
                Ok(held) => taken.keys.push(held),
                Err(refused) => {
                    let freed = std::mem::take(&mut taken.keys);
                    join_all(freed.into_iter().map(|held| self.release_one(held.place, token))).await;
                    return Err(refused);
                }
            }
            several.took();
        }
        let mut expires_in = Millis::MAX;
        for held in &taken.keys {
            let left = self.renew_one(held.place.clone(), token).await;
            expires_in = expires_in.min(left.map_err(|_| (held.place.clone(), Rejected::Lost))?);
        }
        let in_order = |asked: &Asked| taken.keys.iter().find(|held| held.place == asked.place).cloned();
        let keys: Vec<Held> = asked.iter().filter_map(in_order).collect();
        if !self.hold(token, keys.clone(), ttl, bound) {
            return Err((keys[0].place.clone(), Rejected::Lost));
        }
        taken.keys.clear();
        let waited = self.0.now().monotonic.saturating_sub(begun);
        Ok(GrantedSeveral { token, keys, expires_in, waited })
    }

    /// Takes one key more, and keeps those alive meanwhile that are taken.
    async fn take_another(
        &self,
        taken: &Taken<'_>,
        place: &Place,
        defined: &Defined<Settings>,
        terms: Terms,
        ttl: Millis,
    ) -> Result<Held, (Place, Rejected)> {
        let mut asked = Box::pin(self.take(taken.token, place.clone(), defined, terms));
        loop {
            match tokio::time::timeout(Duration::from_millis(ttl / 3), &mut asked).await {
                Ok(Ok(granted)) => return Ok(Held { place: place.clone(), fence: granted.fence }),
                Ok(Err(rejected)) => return Err((place.clone(), rejected)),
                Err(_) => {}
            }
            for held in &taken.keys {
                let renewed = self.renew_one(held.place.clone(), taken.token).await;
                renewed.map_err(|_| (held.place.clone(), Rejected::Lost))?;
            }
        }
    }
}
