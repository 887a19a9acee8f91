//! Following a grant: what becomes of it, told as it happens; and the renewal of a grant that lasts as long as its app
//! listens.

use std::sync::Arc;

use concordat_protocol::{
    Millis,
    lock::{Input, Rejected, Token},
};
use tokio::sync::watch;

use super::{
    Held, Inner, LockEngine, Place,
    holdings::{Holding, Standing},
};

/// What belief is shorter by than a lease.
const MARGIN: Millis = 1_000;

/// What happened to a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is held, for so many milliseconds unless it is renewed.
    Granted(Millis),
    /// It ends in so many milliseconds: a quarter of what a renewal lasts, at most.
    Expiring(Millis),
    /// It ended otherwise than by its holder's will: the last that is told.
    Lost,
    /// Its holder let go: the last that is told.
    Released,
}

/// Follows a grant. While one follows, a bound grant is renewed; dropped by the last one, it is let go.
pub struct Following {
    engine: LockEngine,
    token: Token,
    /// The keys of the grant.
    pub keys: Vec<Held>,
    ttl: Millis,
    bound: bool,
    standing: watch::Receiver<Standing>,
    /// The end that was told last, monotonic.
    told: Option<Millis>,
    /// Whether it was told that this end comes near.
    warned: bool,
    renew_at: Millis,
    over: bool,
}

impl LockEngine {
    /// Follows the grant of `token`, which covers `place`; one that ended is told so.
    ///
    /// # Errors
    /// [`Rejected::Mismatch`] when nothing is known of it.
    pub fn follow(&self, place: &Place, token: Token) -> Result<Following, Rejected> {
        let mut holdings = self.0.holdings.lock();
        let holding = holdings.get_mut(token).filter(|holding| holding.covers(place));
        let holding = holding.ok_or(Rejected::Mismatch)?;
        holding.followers += 1;
        let standing = holding.changes();
        let Holding { keys, ttl, bound, .. } = holding.clone();
        Ok(Following {
            engine: self.clone(),
            token,
            keys,
            ttl,
            bound,
            standing,
            told: None,
            warned: false,
            renew_at: 0,
            over: false,
        })
    }
}

impl Following {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        while !self.over {
            let standing = *self.standing.borrow_and_update();
            match standing {
                Standing::Held => {}
                Standing::Released => return Some(self.last(Event::Released)),
                Standing::Lost => return Some(self.last(Event::Lost)),
            }
            let now = self.engine.0.now().monotonic;
            if self.bound && now >= self.renew_at {
                self.renew_at = now + self.ttl / 3;
                // Refused, it is lost, which is told in its turn.
                let _ = self.engine.renew(self.keys[0].place.clone(), self.token).await;
                continue;
            }
            let end = self.engine.0.ends(&self.keys);
            let left = end.saturating_sub(now);
            let lasts = self.ttl.min(self.engine.0.store.session().ttl()).saturating_sub(MARGIN);
            let warn_at = end.saturating_sub(lasts / 4);
            // Told anew when what was feared did not happen, not at each renewal.
            if self.told.is_none() || self.warned && now < warn_at {
                (self.told, self.warned) = (Some(end), false);
                return Some(Event::Granted(left));
            }
            if !self.warned && now >= warn_at {
                self.warned = true;
                return Some(Event::Expiring(left));
            }
            let next = if self.warned { now + (left / 2).max(50) } else { warn_at };
            let next = if self.bound { next.min(self.renew_at) } else { next };
            let wake = self.engine.0.store.clock().instant(next);
            let _ = tokio::time::timeout_at(wake, self.standing.changed()).await;
        }
        None
    }

    fn last(&mut self, event: Event) -> Event {
        self.over = true;
        event
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut holdings = self.engine.0.holdings.lock();
        let Some(holding) = holdings.get_mut(self.token) else { return };
        holding.followers -= 1;
        if holding.bound && holding.followers == 0 && holding.standing() == Standing::Held {
            drop(holdings);
            tracing::info!(lock = %self.keys[0].place.lock, key = %self.keys[0].place.key, "its app is gone");
            self.engine.0.let_go(self.token);
        }
    }
}

impl Inner {
    /// When a grant of these keys ends as far as is known now, monotonic milliseconds.
    fn ends(self: &Arc<Self>, keys: &[Held]) -> Millis {
        let end = |held: &Held| {
            // What the machine knows of its lease is as of its last step.
            self.tell_time(&held.place);
            self.keys.lock().ends(&held.place, held.fence).unwrap_or_default()
        };
        keys.iter().map(end).min().unwrap_or_default()
    }

    /// Lets go of all that a token holds, without waiting for etcd.
    pub(super) fn let_go(self: &Arc<Self>, token: Token) {
        let ended = self.holdings.lock().end(token, Standing::Released).cloned();
        if let Some(holding) = ended {
            self.observe_end(&holding);
            self.free(token, holding.keys.iter().map(|held| &held.place));
        }
    }

    /// Frees keys that a token holds; nobody awaits the answer.
    pub(super) fn free<'a>(self: &Arc<Self>, token: Token, places: impl Iterator<Item = &'a Place>) {
        for place in places {
            let (answer, _) = tokio::sync::oneshot::channel();
            let caller = self.keys.lock().admit(answer);
            if self.step(place, Input::Release { caller, token }).is_err() {
                self.keys.lock().dismiss(caller);
            }
        }
    }

    /// A grant was lost: whoever follows it is told, and what else its token holds is freed.
    pub(super) fn lost(self: &Arc<Self>, place: &Place, token: Token) {
        self.metrics.losses.inc();
        tracing::warn!(lock = %place.lock, key = %place.key, "a grant ended without its holder");
        let ended = self.holdings.lock().lose(token).cloned();
        if let Some(holding) = ended {
            self.observe_end(&holding);
            let others = holding.keys.iter().map(|held| &held.place).filter(|other| *other != place);
            self.free(token, others);
        }
    }

    pub(super) fn observe_end(&self, holding: &Holding) {
        self.metrics.holds.observe(self.now().monotonic.saturating_sub(holding.since) as f64 / 1e3);
    }
}
