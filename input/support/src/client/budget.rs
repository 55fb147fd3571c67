//! A cap on the cost of requests.
//!
//! The cost of a request is known only when the request ends. So its largest possible cost is reserved before the
//! request is sent, and the unspent part is given back when it ends. The money spent never exceeds the cap, however
//! many requests are in flight.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Interval at which a wait checks the stop flag.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The cap on the total cost of all requests, and their cost so far, in US dollars. Several clients can share a
/// budget.
#[derive(Debug)]
pub struct Budget {
    cap: Option<f64>,
    amounts: Mutex<Amounts>,
    /// Notified when a reservation ends.
    changed: Condvar,
}

/// Amounts in US dollars.
#[derive(Clone, Copy, Debug, Default)]
struct Amounts {
    spent: f64,
    reserved: f64,
}

/// The reason why [`Budget::reserve`] reserved nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReservationError {
    /// The request may cost more than the unspent rest of the cap.
    CapReached,
    Stopped,
}

/// The largest possible cost of an attempt in flight, in dollars. Dropping the reservation without [`Self::charge`]
/// gives the whole amount back.
#[derive(Debug)]
pub(crate) struct Reservation<'b> {
    budget: &'b Budget,
    amount: f64,
}

impl Budget {
    /// Creates a budget with a cap of `cap` dollars; `None` sets no cap.
    pub fn new(cap: Option<f64>) -> Self {
        Self { cap, amounts: Mutex::default(), changed: Condvar::new() }
    }

    /// Creates a budget with a cap of `cap` dollars, of which an earlier process has spent `spent` dollars.
    pub fn with_spent(cap: Option<f64>, spent: f64) -> Self {
        Self { cap, amounts: Mutex::new(Amounts { spent, reserved: 0.0 }), changed: Condvar::new() }
    }

    /// The cap in dollars.
    pub fn cap(&self) -> Option<f64> {
        self.cap
    }

    /// The dollars that requests have cost so far.
    pub fn spent(&self) -> f64 {
        self.amounts().spent
    }

    /// Reserves `amount` dollars. If too little is left, waits as long as reservations of other requests may give
    /// money back.
    pub(crate) fn reserve(&self, amount: f64, stop: &AtomicBool) -> Result<Reservation<'_>, ReservationError> {
        let Some(cap) = self.cap else { return Ok(Reservation { budget: self, amount: 0.0 }) };
        let mut amounts = self.amounts();
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(ReservationError::Stopped);
            }
            if amounts.spent + amount > cap {
                return Err(ReservationError::CapReached);
            }
            if amounts.spent + amounts.reserved + amount <= cap {
                amounts.reserved += amount;
                return Ok(Reservation { budget: self, amount });
            }
            let waited = self.changed.wait_timeout(amounts, STOP_CHECK_INTERVAL);
            amounts = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn amounts(&self) -> MutexGuard<'_, Amounts> {
        self.amounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation<'_> {
    /// Ends the reservation and records that the attempt has cost `cost` dollars.
    pub fn charge(mut self, cost: f64) {
        let mut amounts = self.budget.amounts();
        amounts.spent += cost;
        amounts.reserved -= self.amount;
        self.amount = 0.0;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.budget.amounts().reserved -= self.amount;
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static GO: AtomicBool = AtomicBool::new(false);

    #[test]
    fn a_reservation_waits_for_money_in_flight_and_fails_if_it_can_never_fit() {
        let budget = Budget::new(Some(1.0));
        let first = budget.reserve(0.75, &GO).unwrap();
        assert_eq!(budget.reserve(1.5, &GO).map(drop), Err(ReservationError::CapReached));
        std::thread::scope(|scope| {
            let second = scope.spawn(|| budget.reserve(0.75, &GO).map(|second| second.charge(0.5)));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!second.is_finished());
            first.charge(0.25);
            assert_eq!(second.join().unwrap(), Ok(()));
        });
        assert_eq!(budget.spent(), 0.75);
        assert_eq!(budget.reserve(0.5, &GO).map(drop), Err(ReservationError::CapReached));
        assert_eq!(budget.reserve(0.25, &GO).map(drop), Ok(()));
        assert_eq!(budget.reserve(0.25, &AtomicBool::new(true)).map(drop), Err(ReservationError::Stopped));
    }

    proptest! {
        /// The total cost never exceeds the cap, for all request costs up to the reserved amounts.
        #[test]
        fn the_cap_is_never_passed(requests in proptest::collection::vec((0.0f64..1.0, 0.0f64..=1.0), 1..40)) {
            let budget = &Budget::new(Some(3.0));
            std::thread::scope(|scope| {
                for part in requests.chunks(10) {
                    scope.spawn(move || {
                        for (bound, share) in part {
                            if let Ok(reservation) = budget.reserve(*bound, &GO) {
                                let amounts = *budget.amounts();
                                assert!(amounts.spent + amounts.reserved <= 3.0 + 1e-9);
                                reservation.charge(bound * share);
                            }
                        }
                    });
                }
            });
            prop_assert!(budget.spent() <= 3.0);
            prop_assert!(budget.amounts().reserved.abs() < 1e-9);
        }
    }
}
