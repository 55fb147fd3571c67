//! Work in phases: each phase has one part for each thread, and begins when all parts of the phase before are done.
//!
//! ```text
//! run_phases(phases, parts, task):             # thread i is at home in part i
//!     for each phase:
//!         claim and compute the part at home, unless another thread has
//!         wait for all parts; claim and compute one that its thread does not begin
//! ```
//!
//! A launch of the team hands over a task and counts it, which moves half a dozen cache lines from core to core. Between
//! phases a thread reads one line of each other part, so phases may be as short as a microsecond. A thread that the
//! system has suspended delays the others only until they lose patience, or until the end of the part that it has begun.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Alone, Team, pause};

/// Maximum number of checks of a part that no thread has begun. The checks take some hundred microseconds in all, much
/// longer than a thread that runs needs to begin its part. The thread that checks then computes the part itself.
const PATIENCE: usize = 2_000;

/// A part of each phase.
#[derive(Default)]
struct Part {
    /// Twice the number of finished phases, and 1 more while the next one is computed.
    progress: AtomicUsize,
    /// Whether the thread that is at home in the part has arrived.
    has_thread: AtomicBool,
}

impl Part {
    /// Whether phase `phase` of the part is done.
    fn is_done(&self, phase: usize) -> bool {
        self.progress.load(Ordering::Acquire) >= 2 * (phase + 1)
    }

    /// Runs `task`, unless a thread has begun phase `phase` of the part already. Returns whether `task` ran.
    fn compute(&self, phase: usize, task: impl FnOnce()) -> bool {
        let (begin, running) = (2 * phase, 2 * phase + 1);
        if self.progress.load(Ordering::Relaxed) != begin
            || self.progress.compare_exchange(begin, running, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return false;
        }
        task();
        self.progress.store(2 * (phase + 1), Ordering::Release);
        true
    }
}

/// Set when a thread leaves a phase by a panic: its part will never be done.
struct Abandoned<'a>(&'a AtomicBool);

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Release);
        }
    }
}

impl Team {
    /// Calls `task(phase, part)` for the `parts` parts of each phase, each once. A phase begins when all parts of the
    /// phase before are done. Part `i` mostly has the same thread in each phase.
    ///
    /// # Panics
    /// If a task panics.
    pub fn run_phases(&self, phases: usize, parts: usize, task: impl Fn(usize, usize) + Sync) {
        let all: Vec<Alone<Part>> = (0..parts).map(|_| Alone(Part::default())).collect();
        let abandoned = AtomicBool::new(false);
        self.run(parts, |home| {
            let _abandoned = Abandoned(&abandoned);
            all[home].0.has_thread.store(true, Ordering::Relaxed);
            for phase in 0..phases {
                all[home].0.compute(phase, || task(phase, home));
                // Another thread may have begun the part at home, too.
                for index in (home..parts).chain(0..home) {
                    let (part, mut looks) = (&all[index].0, 0);
                    while !part.is_done(phase) {
                        if abandoned.load(Ordering::Acquire) {
                            return;
                        }
                        if looks < PATIENCE && part.has_thread.load(Ordering::Relaxed) {
                            looks += 1;
                            pause(looks);
                        } else if !part.compute(phase, || task(phase, index)) {
                            looks = 1;
                            pause(looks);
                        }
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Mutex;

    #[test]
    fn a_phase_sees_all_parts_of_the_phase_before() {
        for (threads, parts) in [(1, 1), (1, 3), (2, 2), (3, 2), (2, 5), (4, 4)] {
            let team = Team::new(threads);
            let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
            team.run_phases(500, parts, |phase, part| {
                let seen: Vec<usize> = counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
                let expected = |i: usize| if i == part { phase..phase + 1 } else { phase..phase + 2 };
                assert!(seen.iter().enumerate().all(|(i, n)| expected(i).contains(n)), "{phase} {part} {seen:?}");
                counts[part].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 500), "{threads} threads, {parts} parts");
        }
    }

    #[test]
    fn one_thread_computes_all_parts_within_a_task() {
        let (team, order) = (Team::new(2), Mutex::new(Vec::new()));
        team.run(2, |_| team.run_phases(3, 2, |phase, part| order.lock().unwrap().push((phase, part))));
        let order = order.into_inner().unwrap();
        assert_eq!(order.len(), 12);
        assert!((0..3).all(|phase| (0..2).all(|part| order.iter().filter(|x| **x == (phase, part)).count() == 2)));
    }

    #[test]
    fn a_slow_part_delays_the_next_phase() {
        for slow in [0, 1] {
            let (team, order) = (Team::new(2), Mutex::new(Vec::new()));
            // The worker sleeps after a pause, so its part is computed by the other thread or begins late.
            std::thread::sleep(std::time::Duration::from_millis(10));
            team.run_phases(20, 2, |phase, part| {
                if (phase, part) == (slow, 1) {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                order.lock().unwrap().push((phase, part));
            });
            let order = order.into_inner().unwrap();
            assert_eq!(order.len(), 40);
            assert!(order.windows(2).all(|x| x[0].0 <= x[1].0), "phases are in order: {order:?}");
        }
    }

    #[test]
    fn a_panic_ends_all_parts() {
        for (threads, parts) in [(1, 2), (2, 2), (3, 3)] {
            let team = Team::new(threads);
            for bad in 0..parts {
                let run = || team.run_phases(10, parts, |phase, part| assert!((phase, part) != (4, bad), "bad"));
                assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "{threads} {parts} {bad}");
            }
            let sum = AtomicUsize::new(0);
            team.run_phases(3, parts, |_, _| {
                sum.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 3 * parts);
        }
    }
}
