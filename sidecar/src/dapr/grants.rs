//! The tokens of what this sidecar granted by Dapr's API.

use std::collections::HashMap;

use concordat_protocol::{Millis, lock::Token};
use parking_lot::Mutex;

use crate::engine::lock::Place;

/// So many are kept before those that are over are looked for.
const FEW: usize = 1_024;

/// One a key: the last.
#[derive(Default)]
pub(super) struct Grants(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    grants: HashMap<Place, Grant>,
    /// How many there were when those that are over were last let go.
    swept: usize,
}

struct Grant {
    owner: String,
    token: Token,
    /// It is over then, on the monotonic clock.
    until: Millis,
}

impl Grants {
    /// Keeps a new grant in place of the key's former one, which is over.
    pub(super) fn keep(&self, place: Place, owner: &str, token: Token, now: Millis, until: Millis) {
        let mut kept = self.0.lock();
        if kept.grants.len() >= FEW.max(2 * kept.swept) {
            kept.grants.retain(|_, grant| grant.until > now);
            kept.swept = kept.grants.len();
        }
        kept.grants.insert(place, Grant { owner: owner.to_owned(), token, until });
    }

    /// The token of the key's last grant, if it was this owner's.
    pub(super) fn token(&self, place: &Place, owner: &str) -> Option<Token> {
        let kept = self.0.lock();
        kept.grants.get(place).filter(|grant| grant.owner == owner).map(|grant| grant.token)
    }

    /// The grant is over.
    pub(super) fn forget(&self, place: &Place, token: Token) {
        let mut kept = self.0.lock();
        if kept.grants.get(place).is_some_and(|grant| grant.token == token) {
            kept.grants.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(key: usize) -> Place {
        Place { lock: "l".into(), key: key.to_string().as_str().into() }
    }

    #[test]
    fn a_grant_is_let_go_by_its_owner_alone_and_a_late_one_leaves_the_next_alone() {
        let grants = Grants::default();
        grants.keep(place(1), "a", Token(1), 0, 10);
        assert_eq!((grants.token(&place(1), "a"), grants.token(&place(1), "b")), (Some(Token(1)), None));
        assert_eq!(grants.token(&place(2), "a"), None);
        grants.keep(place(1), "a", Token(2), 10, 20);
        grants.forget(&place(1), Token(1));
        assert_eq!(grants.token(&place(1), "a"), Some(Token(2)));
        grants.forget(&place(1), Token(2));
        assert_eq!(grants.token(&place(1), "a"), None);
    }

    #[test]
    fn what_is_over_is_not_kept_for_ever() {
        let grants = Grants::default();
        for key in 0..10 * FEW {
            grants.keep(place(key), "a", Token(1), key as Millis, key as Millis + 10);
        }
        assert!(grants.0.lock().grants.len() <= FEW);
    }
}
