//! What this sidecar's callers hold, by token: a grant of one key or of several, and what became of it.

use std::collections::{BTreeSet, HashMap, VecDeque, hash_map::Entry};

use concordat_protocol::{
    Millis, Name,
    lock::{Fence, Token},
};
use tokio::sync::watch;

use super::Place;

/// How many grants that ended are remembered, so that whoever asks late still learns how.
const MOST_REMEMBERED: usize = 4_096;

/// One key of a grant.
#[derive(Clone, Debug)]
pub struct Held {
    /// Which.
    pub place: Place,
    /// Its fence.
    pub fence: Fence,
}

/// How a grant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Held,
    /// Its holder let go.
    Released,
    /// It ended otherwise than by its holder's will.
    Lost,
}

/// A grant.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    pub(super) keys: Vec<Held>,
    /// The shortest of its keys, milliseconds.
    pub(super) ttl: Millis,
    /// Whether it lasts as long as somebody follows it.
    pub(super) bound: bool,
    /// How many do.
    pub(super) followers: usize,
    /// Since when it is held, on the monotonic clock.
    pub(super) since: Millis,
    standing: Standing,
    /// Tells whoever follows it; there from the first one on.
    told: Option<watch::Sender<Standing>>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Holdings {
    by_token: HashMap<Token, Holding>,
    ended: VecDeque<Token>,
}

impl Holding {
    pub(super) fn new(keys: Vec<Held>, ttl: Millis, bound: bool, since: Millis) -> Self {
        Self { keys, ttl, bound, followers: 0, since, standing: Standing::Held, told: None }
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing
    }

    pub(super) fn changes(&mut self) -> watch::Receiver<Standing> {
        self.told.get_or_insert_with(|| watch::Sender::new(self.standing)).subscribe()
    }

    fn end(&mut self, standing: Standing) {
        self.standing = standing;
        if let Some(told) = &self.told {
            told.send_replace(standing);
        }
    }

    pub(super) fn covers(&self, place: &Place) -> bool {
        self.keys.iter().any(|held| held.place == *place)
    }
}

impl Holdings {
    /// A caller is about to be told that it holds these keys; false when that is over already.
    pub(super) fn begin(&mut self, token: Token, holding: Holding) -> bool {
        let Entry::Vacant(vacant) = self.by_token.entry(token) else { return false };
        vacant.insert(holding);
        true
    }

    pub(super) fn get(&self, token: Token) -> Option<&Holding> {
        self.by_token.get(&token)
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut Holding> {
        self.by_token.get_mut(&token)
    }

    /// The grant ends, if it has not, and whoever follows it is told so; answers what it was.
    pub(super) fn end(&mut self, token: Token, standing: Standing) -> Option<&Holding> {
        let holding = self.by_token.get_mut(&token)?;
        if holding.standing() != Standing::Held {
            return None;
        }
        holding.end(standing);
        self.remember(token);
        self.by_token.get(&token)
    }

    /// The grant is lost, perhaps before its caller was told that it holds it; answers what it was.
    pub(super) fn lose(&mut self, token: Token) -> Option<&Holding> {
        if let Entry::Vacant(vacant) = self.by_token.entry(token) {
            let unknown = vacant.insert(Holding::new(Vec::new(), 0, false, 0));
            unknown.end(Standing::Lost);
            self.remember(token);
            return None;
        }
        self.end(token, Standing::Lost)
    }

    fn remember(&mut self, ended: Token) {
        self.ended.push_back(ended);
        if self.ended.len() > MOST_REMEMBERED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.by_token.remove(&oldest);
        }
    }

    /// All that are held.
    pub(super) fn tokens(&self) -> Vec<Token> {
        let held = self.by_token.iter().filter(|(_, holding)| holding.standing() == Standing::Held);
        held.map(|(token, _)| *token).collect()
    }

    /// The locks of which a key is held.
    pub(super) fn locks(&self) -> BTreeSet<Name> {
        self.held().map(|held| held.place.lock.clone()).collect()
    }

    /// The keys of a lock that are held.
    pub(super) fn places_of(&self, lock: &Name) -> Vec<Place> {
        self.held().filter(|held| held.place.lock == *lock).map(|held| held.place.clone()).collect()
    }

    fn held(&self) -> impl Iterator<Item = &Held> {
        let held = self.by_token.values().filter(|holding| holding.standing() == Standing::Held);
        held.flat_map(|holding| &holding.keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding() -> Holding {
        let place = Place { lock: "l".into(), key: "k".into() };
        Holding::new(vec![Held { place, fence: Fence::new(7, 0, 0).unwrap() }], 2_000, false, 1)
    }

    #[test]
    fn a_grant_ends_once_and_stays_ended() {
        let mut holdings = Holdings::default();
        assert!(holdings.begin(Token(1), holding()));
        let told = holdings.get_mut(Token(1)).unwrap().changes();
        assert!(holdings.end(Token(1), Standing::Lost).is_some());
        assert_eq!(*told.borrow(), Standing::Lost);
        assert!(holdings.end(Token(1), Standing::Released).is_none());
        assert_eq!(holdings.get(Token(1)).unwrap().standing(), Standing::Lost);
        assert!(holdings.tokens().is_empty() && holdings.places_of(&"l".into()).is_empty());
    }

    #[test]
    fn what_is_lost_before_it_was_told_is_never_told_to_be_held() {
        let mut holdings = Holdings::default();
        assert!(holdings.lose(Token(1)).is_none());
        assert!(!holdings.begin(Token(1), holding()));
        assert_eq!(holdings.get(Token(1)).unwrap().standing(), Standing::Lost);
    }

    #[test]
    fn what_is_held_is_never_forgotten_and_what_ended_is_in_time() {
        let mut holdings = Holdings::default();
        for token in 0..=MOST_REMEMBERED as u128 + 1 {
            holdings.begin(Token(token), holding());
            if token > 0 {
                holdings.end(Token(token), Standing::Released);
            }
        }
        assert!(holdings.get(Token(0)).is_some() && holdings.get(Token(1)).is_none());
        assert!(holdings.get(Token(2)).is_some());
    }
}
