//! Several keys by one token, all or none.
//!
//! Whoever asks, keys are taken one after another in ascending order, and what is taken is kept while the next is
//! waited for. So whoever waits for a key holds smaller ones only: no circle of callers can wait for each other,
//! whatever the modes and kinds of the locks are.

/// Keys on their way to one holder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Several<P> {
    /// Ascending, each once.
    places: Vec<P>,
    taken: usize,
}

impl<P: Ord + Clone> Several<P> {
    /// Asks for these keys.
    ///
    /// # Errors
    /// One that is asked for twice.
    pub fn new(mut places: Vec<P>) -> Result<Self, P> {
        places.sort();
        match places.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(twice) => Err(twice[0].clone()),
            None => Ok(Self { places, taken: 0 }),
        }
    }

    /// The key to take next; `None` when all are taken.
    pub fn next(&self) -> Option<&P> {
        self.places.get(self.taken)
    }

    /// The next one is taken.
    pub fn took(&mut self) {
        self.taken = self.places.len().min(self.taken + 1);
    }

    /// What is taken: to be kept alive while the next is waited for, and freed when that is in vain.
    pub fn taken(&self) -> &[P] {
        &self.places[..self.taken]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_in_one_order_whatever_order_they_were_asked_in() {
        for asked in [["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"]] {
            let mut several = Several::new(asked.to_vec()).unwrap();
            for (next, taken) in [("a", &[][..]), ("b", &["a"]), ("c", &["a", "b"])] {
                assert_eq!((several.next(), several.taken()), (Some(&next), taken));
                several.took();
            }
            assert_eq!((several.next(), several.taken()), (None, &["a", "b", "c"][..]));
        }
    }

    #[test]
    fn a_key_asked_for_twice_is_refused() {
        assert_eq!(Several::new(vec!["b", "a", "b"]), Err("b"));
    }
}
