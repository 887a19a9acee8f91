//! What callers ask: to take, to renew, to let go.

use concordat_protocol::{
    Millis,
    lock::{Input, Mode, Rejected, Reply, Request, Settings, Token, machine},
};
use futures::future::join_all;
use opentelemetry::trace::SpanKind;

use super::{
    Granted, Held, LockEngine, Place, Terms,
    holdings::{Holding, Standing},
};
use crate::{
    api::trace::{self, TraceParent},
    definitions::Defined,
    spans::{Said, Span},
};

impl LockEngine {
    /// Takes `key` of `lock`, waiting as long as the terms say. Dropped before it answers, it leaves nothing behind.
    ///
    /// # Errors
    /// [`Rejected`], what is known of who holds it included.
    pub async fn acquire(
        &self,
        place: Place,
        defined: &Defined<Settings>,
        terms: Terms,
    ) -> Result<Granted, Rejected> {
        let (token, ttl, bound) = (Token(rand::random()), terms.ttl, terms.renew);
        let granted = self.take(token, place.clone(), defined, terms).await?;
        let keys = vec![Held { place, fence: granted.fence }];
        if !self.hold(token, keys, ttl, bound) {
            return Err(Rejected::Lost);
        }
        Ok(granted)
    }

    /// Takes one key for a token.
    pub(super) async fn take(
        &self,
        token: Token,
        place: Place,
        defined: &Defined<Settings>,
        terms: Terms,
    ) -> Result<Granted, Rejected> {
        let (store, session) = (&self.0.store, self.0.store.session());
        if self.0.keys.lock().draining || !session.is_believed(store.clock().now()) {
            return Err(Rejected::Unavailable { unknown: false });
        }
        let (max_waiters, ttl) = (defined.settings.max_waiters as usize, store.live_ttl(terms.ttl));
        let mut traced = Span::within(SpanKind::Internal, || "acquire lock".into());
        traced.say(|| said(&place, defined.settings.mode));
        let asked = self.call(place, |caller| {
            Input::Acquire(Request {
                caller,
                token,
                session: session.id.clone(),
                pod: self.0.identity.pod.clone(),
                owner: terms.owner,
                definition: defined.create_revision,
                mode: defined.settings.mode,
                wait: terms.wait,
                max_waiters,
                share: terms.share,
                lock_delay: defined.settings.lock_delay,
                ttl,
                max_hold: terms.max_hold,
                renew: terms.renew && terms.max_hold > 0,
            })
        });
        let reply = trace::within(traced.traceparent().or_else(TraceParent::current), asked).await;
        traced.say(|| [("concordat.lock.granted", reply.is_ok().into())]);
        match reply? {
            Reply::Granted { token, fence, expires_in, waited } => {
                Ok(Granted { token, fence, expires_in, waited })
            }
            Reply::Renewed { .. } | Reply::Released => Err(Rejected::NothingUnderWay),
        }
    }

    /// The caller is about to be told that its token holds these keys; false when that is over already.
    pub(super) fn hold(&self, token: Token, keys: Vec<Held>, ttl: Millis, bound: bool) -> bool {
        let holding = Holding::new(keys, ttl, bound, self.0.now().monotonic);
        self.0.holdings.lock().begin(token, holding)
    }

    /// Holds all that a token holds for another ttl; answers for how long that is safe to rely on, milliseconds.
    /// `place` is one of its keys.
    ///
    /// # Errors
    /// [`Rejected::Lost`] and [`Rejected::Mismatch`].
    pub async fn renew(&self, place: Place, token: Token) -> Result<Millis, Rejected> {
        let places = match self.0.holdings.lock().get(token).filter(|holding| holding.covers(&place)) {
            Some(holding) if holding.standing() == Standing::Lost => return Err(Rejected::Lost),
            Some(holding) => holding.keys.iter().map(|held| held.place.clone()).collect(),
            None => vec![place],
        };
        let mut shortest = Millis::MAX;
        for place in places {
            shortest = shortest.min(self.renew_one(place, token).await?);
        }
        Ok(shortest)
    }

    pub(super) async fn renew_one(&self, place: Place, token: Token) -> Result<Millis, Rejected> {
        let believed = self.0.believed(&place);
        match self.call(place, |caller| Input::Renew { caller, token, believed }).await? {
            Reply::Renewed { expires_in } => Ok(expires_in),
            Reply::Granted { .. } | Reply::Released => Err(Rejected::NothingUnderWay),
        }
    }

    /// Lets go of all that a token holds, and answers when etcd has. `place` is one of its keys.
    ///
    /// # Errors
    /// [`Rejected::Lost`], [`Rejected::Mismatch`], and [`Rejected::Unavailable`] when etcd does not answer: then it is
    /// tried again until it does.
    pub async fn release(&self, place: Place, token: Token) -> Result<(), Rejected> {
        let covers = self.0.holdings.lock().get(token).is_some_and(|holding| holding.covers(&place));
        if covers { self.release_all(token).await } else { self.release_one(place, token).await }
    }

    /// Lets go of all that a token holds, and answers when etcd has.
    ///
    /// # Errors
    /// As of [`LockEngine::release`].
    pub async fn release_all(&self, token: Token) -> Result<(), Rejected> {
        let holding = {
            let mut holdings = self.0.holdings.lock();
            if let Some(ended) = holdings.end(token, Standing::Released) {
                self.0.observe_end(ended);
            }
            holdings.get(token).cloned().ok_or(Rejected::Mismatch)?
        };
        if holding.standing() == Standing::Lost {
            return Err(Rejected::Lost);
        }
        let releases = holding.keys.into_iter().map(|held| self.release_one(held.place, token));
        for released in join_all(releases).await {
            match released {
                // The key remembers fewer of those that held it.
                Ok(()) | Err(Rejected::Mismatch) => {}
                Err(rejected) => return Err(rejected),
            }
        }
        Ok(())
    }

    pub(super) async fn release_one(&self, place: Place, token: Token) -> Result<(), Rejected> {
        let patience = std::time::Duration::from_millis(machine::PATIENCE);
        let released = self.call(place, |caller| Input::Release { caller, token });
        match tokio::time::timeout(patience, released).await {
            Ok(reply) => reply.map(|_| ()),
            Err(_) => Err(Rejected::Unavailable { unknown: true }),
        }
    }
}

/// What is asked for, as its span says it: never which key, which may be anything of the app's.
fn said(place: &Place, mode: Mode) -> [Said; 2] {
    let mode = match mode {
        Mode::CompareAndSwap => "CompareAndSwap",
        Mode::Lease => "Lease",
        Mode::FairQueue => "FairQueue",
    };
    [("concordat.lock.name", place.lock.to_string().into()), ("concordat.lock.mode", mode.into())]
}
