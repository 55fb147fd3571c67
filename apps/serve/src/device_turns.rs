//! Turns on a device that two threads use: one trains, the other answers requests with the model in training.
//!
//! ```text
//! training:  work │ lend_device_for(time) │ work │ begin_host_work … end_host_work │ work
//! engine:          │ steps                 │      │ steps while there are requests  │
//! ```
//!
//! The training thread owns the device, and lends it to the engine's thread between its launches. The engine's thread
//! uses the device only while it is lent. Without requests, lending takes no time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Decides which of two threads may use a device: the training thread (owner) or the engine's thread (borrower).
#[derive(Debug, Default)]
pub(crate) struct DeviceTurns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    access: Access,
    /// The borrower (the engine's thread) waits for the device.
    is_wanted: bool,
    /// The borrower uses the device.
    is_used: bool,
    /// The borrower's thread has ended: it neither waits for the device nor uses it.
    is_gone: bool,
    /// Number of times that the owner has changed the weights.
    version: u64,
}

/// The borrower's access to the device.
#[derive(Clone, Copy, Debug, Default)]
enum Access {
    #[default]
    None,
    /// The borrower may begin a turn of this length. A turn has at least one step, even if the borrower's thread wakes
    /// up late.
    Turn(Duration),
    /// The borrower may continue until this time.
    Until(Instant),
    /// The borrower may use the device without a limit of time, because the owner does not use it.
    Free,
}

/// The borrower's handle. Dropping it, even by a panic, gives the device back for good.
#[derive(Debug)]
pub(crate) struct DeviceBorrower(pub(crate) std::sync::Arc<DeviceTurns>);

impl DeviceTurns {
    /// Lends the device for about `time` if the borrower waits for it. Returns the time until the borrower returned
    /// the device.
    pub(crate) fn lend_device_for(&self, time: Duration) -> Duration {
        let mut state = self.lock();
        if !state.is_wanted || state.is_gone {
            return Duration::ZERO;
        }
        let begun = Instant::now();
        state.access = Access::Turn(time);
        self.changed.notify_all();
        while !matches!(state.access, Access::None) && !state.is_gone {
            state = self.wait(state);
        }
        begun.elapsed()
    }

    /// Lets the server use the device while the training run works on the host, until
    /// [`DeviceTurns::end_host_work`].
    pub(crate) fn begin_host_work(&self) {
        self.lock().access = Access::Free;
        self.changed.notify_all();
    }

    /// Takes the device back, after waiting for the end of the borrower's present step.
    pub(crate) fn end_host_work(&self) {
        let mut state = self.lock();
        state.access = Access::None;
        while state.is_used && !state.is_gone {
            state = self.wait(state);
        }
    }

    /// Tells the borrower that the weights have changed since its last turn.
    pub(crate) fn weights_changed(&self) {
        self.lock().version += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceBorrower {
    /// Waits until the borrower may use the device for one more step. Returns the number of changes of the weights so
    /// far.
    pub(crate) fn wait_for_turn(&self) -> u64 {
        let turns = &*self.0;
        let mut state = turns.lock();
        state.is_used = false;
        state.is_wanted = true;
        loop {
            match state.access {
                Access::Turn(time) => {
                    state.access = Access::Until(Instant::now() + time);
                    break;
                }
                Access::Until(end) if Instant::now() < end => break,
                Access::Free => break,
                Access::Until(_) => state.access = Access::None,
                Access::None => {}
            }
            turns.changed.notify_all();
            state = turns.wait(state);
        }
        state.is_used = true;
        state.version
    }

    /// Gives the device back before the end of the turn, because the borrower has no more work.
    pub(crate) fn return_device(&self) {
        let mut state = self.0.lock();
        (state.is_used, state.is_wanted) = (false, false);
        if !matches!(state.access, Access::Free) {
            state.access = Access::None;
        }
        self.0.changed.notify_all();
    }
}

impl Drop for DeviceBorrower {
    fn drop(&mut self) {
        self.return_device();
        self.0.lock().is_gone = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_micros(200);

    /// Starts a borrower thread that calls `step` `steps` times, and gives the device back after each `burst` of calls.
    fn borrow(
        turns: &Arc<DeviceTurns>,
        steps: usize,
        burst: usize,
        step: impl Fn(u64) + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let borrower = DeviceBorrower(turns.clone());
        std::thread::spawn(move || {
            for i in 1..=steps {
                step(borrower.wait_for_turn());
                if i % burst == 0 {
                    borrower.return_device();
                }
            }
        })
    }

    #[test]
    fn only_one_thread_uses_the_device_and_both_get_on() {
        for (host_work, burst) in [(false, 1), (false, 7), (true, 1), (true, 7)] {
            let turns = Arc::new(DeviceTurns::default());
            let (in_use, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let use_device = |in_use: &AtomicBool| {
                assert!(!in_use.swap(true, Ordering::SeqCst), "two threads use the device");
                std::thread::sleep(SHORT / 10);
                in_use.store(false, Ordering::SeqCst);
            };
            let (used, counted) = (in_use.clone(), done.clone());
            let thread = borrow(&turns, 200, burst, move |_| {
                use_device(&used);
                counted.fetch_add(1, Ordering::SeqCst);
            });
            while done.load(Ordering::SeqCst) < 200 {
                use_device(&in_use);
                if host_work {
                    turns.begin_host_work();
                    std::thread::sleep(SHORT);
                    turns.end_host_work();
                } else {
                    turns.lend_device_for(SHORT);
                }
            }
            thread.join().unwrap();
        }
    }

    #[test]
    fn lending_takes_no_time_without_a_borrower_that_waits() {
        let turns = Arc::new(DeviceTurns::default());
        assert_eq!(turns.lend_device_for(LONG), Duration::ZERO, "no borrower waits yet");
        let (entered, begun) = std::sync::mpsc::channel();
        turns.begin_host_work();
        let thread = borrow(&turns, 1, 1, move |_| entered.send(()).unwrap());
        begun.recv_timeout(LONG).unwrap();
        thread.join().unwrap();
        turns.end_host_work();
        assert_eq!(turns.lend_device_for(LONG), Duration::ZERO, "the borrower is gone");
    }

    #[test]
    fn a_turn_has_a_step_even_if_its_time_is_zero_and_tells_of_new_weights() {
        let turns = Arc::new(DeviceTurns::default());
        let (entered, steps) = std::sync::mpsc::channel();
        let thread = borrow(&turns, 3, 9, move |version| entered.send(version).unwrap());
        for version in 0..3 {
            // The device is lent only to a waiting borrower, so the loop repeats until the borrower waits.
            while turns.lend_device_for(Duration::ZERO) == Duration::ZERO {
                std::thread::yield_now();
            }
            assert_eq!(steps.recv_timeout(LONG).unwrap(), version);
            turns.weights_changed();
        }
        thread.join().unwrap();
    }

    #[test]
    fn a_borrower_that_panics_gives_the_device_back() {
        let turns = Arc::new(DeviceTurns::default());
        let thread = borrow(&turns, 1, 9, |_| panic!("wanted by this test"));
        while turns.lend_device_for(LONG) == Duration::ZERO && !thread.is_finished() {
            std::thread::yield_now();
        }
        assert!(thread.join().is_err());
        turns.begin_host_work();
        turns.end_host_work();
        assert_eq!(turns.lend_device_for(LONG), Duration::ZERO);
    }
}
