//! Who is connected. There is room for so many; when it is taken, whoever was not heard for longest has to go, so that
//! nobody keeps the API server out by holding connections and saying nothing.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// All who are connected.
pub(super) struct Guests {
    room: Arc<Semaphore>,
    seats: Arc<Mutex<Seats>>,
}

#[derive(Default)]
struct Seats {
    /// Counts what is heard.
    heard: u64,
    taken: BTreeMap<u64, Seat>,
}

struct Seat {
    /// The count when it came, or last asked something.
    heard: u64,
    /// Questions that are being answered.
    asks: usize,
    leave: CancellationToken,
}

/// One of them, until it is dropped.
pub(super) struct Guest {
    seat: u64,
    leave: CancellationToken,
    seats: Arc<Mutex<Seats>>,
    _room: OwnedSemaphorePermit,
}

/// A question of a guest's, until it is answered.
pub(super) struct Question(Arc<Guest>);

impl Guests {
    /// Nobody yet, and room for so many.
    pub(super) fn new(most: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(most)), seats: Arc::default() }
    }

    /// Takes one more in, for whom another one may have to go; never, once it is closed.
    pub(super) async fn enter(&self) -> Guest {
        let room = match self.room.clone().try_acquire_owned() {
            Ok(room) => room,
            Err(_) => {
                self.seats.lock().make_room();
                match self.room.clone().acquire_owned().await {
                    Ok(room) => room,
                    Err(_) => std::future::pending().await,
                }
            }
        };
        let mut seats = self.seats.lock();
        seats.heard += 1;
        let (seat, leave) = (seats.heard, CancellationToken::new());
        seats.taken.insert(seat, Seat { heard: seat, asks: 0, leave: leave.clone() });
        Guest { seat, leave, seats: self.seats.clone(), _room: room }
    }
}

impl Seats {
    /// Asks the one to go that was not heard for longest, if possible none that waits for an answer: it would get that
    /// first.
    fn make_room(&self) {
        let stay = self.taken.values().filter(|seat| !seat.leave.is_cancelled());
        if let Some(seat) = stay.min_by_key(|seat| (seat.asks > 0, seat.heard)) {
            seat.leave.cancel();
        }
    }
}

impl Guest {
    /// Cancelled once it has to go.
    pub(super) fn leave(&self) -> &CancellationToken {
        &self.leave
    }

    /// It asks something.
    pub(super) fn asks(self: &Arc<Self>) -> Question {
        let mut seats = self.seats.lock();
        seats.heard += 1;
        let heard = seats.heard;
        if let Some(seat) = seats.taken.get_mut(&self.seat) {
            (seat.heard, seat.asks) = (heard, seat.asks + 1);
        }
        Question(self.clone())
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if let Some(seat) = self.0.seats.lock().taken.get_mut(&self.0.seat) {
            seat.asks -= 1;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.seats.lock().taken.remove(&self.seat);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn whoever_was_not_heard_for_longest_goes_first_and_whoever_waits_for_an_answer_last() {
        let guests = Guests::new(3);
        let [mut a, mut b, mut c] = [const { None::<Arc<Guest>> }; 3];
        for guest in [&mut a, &mut b, &mut c] {
            *guest = Some(Arc::new(guests.enter().await));
        }
        let goes = |guest: &Option<Arc<Guest>>| guest.as_ref().is_none_or(|one| one.leave().is_cancelled());
        let question = a.as_ref().unwrap().asks();
        drop(b.as_ref().unwrap().asks());
        assert!(![&a, &b, &c].into_iter().any(goes));
        let mut fourth = std::pin::pin!(guests.enter());
        assert!((&mut fourth).now_or_never().is_none());
        assert!(goes(&c) && !goes(&b) && !goes(&a), "c is the one that has said nothing");
        drop(c.take());
        let fourth = fourth.await;
        // b was heard before the fourth came.
        let mut fifth = std::pin::pin!(guests.enter());
        assert!((&mut fifth).now_or_never().is_none());
        assert!(goes(&b) && !goes(&a) && !fourth.leave().is_cancelled());
        drop(b.take());
        let fifth = Arc::new(fifth.await);
        let questions = (fifth.asks(), question);
        drop(fourth);
        let sixth = Arc::new(guests.enter().await);
        let _asks = sixth.asks();
        let mut last = std::pin::pin!(guests.enter());
        assert!((&mut last).now_or_never().is_none());
        assert!(goes(&a), "all wait for an answer, and a for longest");
        drop((a.take(), questions));
        last.await;
    }
}
