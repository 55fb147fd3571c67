//! The threads of the cpu device: a fixed team that takes numbered tasks until none is left.
//!
//! Which thread does a task never changes its result: a task owns its outputs and sums in an order of its own. Workers
//! spin for a short while between launches (a decode step is hundreds of them, microseconds apart), then sleep.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// How often a thread looks for work before it sleeps; some tens of microseconds.
const SPINS: usize = 20_000;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// Number of the current job; odd and even alike, it only grows.
    epoch: AtomicUsize,
    /// The job of this epoch; written only while no worker is inside.
    job: UnsafeCell<Option<(*const Task<'static>, usize)>>,
    next: AtomicUsize,
    /// Workers that have not finished the current job.
    busy: AtomicUsize,
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
    asleep: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
}

// SAFETY: `job` is written by the owner of the team while `busy` is 0, and read by workers after they saw the new epoch
// (release / acquire) and before they lower `busy`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is only used during `Team::run`, which outlives the job.
unsafe impl Send for Shared {}

/// A team of threads; the caller of [`Team::run`] is one of them.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a job: a second caller waits.
    running: Mutex<()>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({})", self.threads())
    }
}

impl Team {
    /// A team of `threads` (at least 1), the caller included.
    pub fn new(threads: usize) -> Team {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panicked: Mutex::new(None),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads.max(1))
            .filter_map(|i| {
                let shared = shared.clone();
                // A thread that can't be had makes the team smaller; results do not depend on its size.
                std::thread::Builder::new().name(format!("reel-{i}")).spawn(move || work(&shared)).ok()
            })
            .collect();
        Team { shared, workers, running: Mutex::new(()) }
    }

    /// Threads of the team.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0) … task(count - 1)`, each once, on any thread, and returns when all are done. A task must not call
    /// `run` on the same team.
    ///
    /// # Panics
    /// With the panic of a task.
    pub fn run(&self, count: usize, task: impl Fn(usize) + Sync) {
        if count <= 1 || self.workers.is_empty() {
            (0..count).for_each(task);
            return;
        }
        let _one_at_a_time = self.running.lock().unwrap_or_else(|e| e.into_inner());
        let s = &*self.shared;
        let task: &Task<'_> = &task;
        s.next.store(0, Ordering::Relaxed);
        s.busy.store(self.workers.len(), Ordering::Relaxed);
        // SAFETY: no worker is inside a job (`busy` was 0 when the last `run` returned). The lifetime is hidden from the
        // workers, but this function does not return before they are done with it.
        unsafe { *s.job.get() = Some((std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task), count)) };
        {
            let _guard = s.asleep.lock().unwrap_or_else(|e| e.into_inner());
            s.epoch.fetch_add(1, Ordering::Release);
            s.wake.notify_all();
        }
        take_tasks(s, task, count);
        let mut spins = 0;
        while s.busy.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins > SPINS {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let panic = s.panicked.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(p) = panic {
            resume_unwind(p);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        {
            let _guard = self.shared.asleep.lock().unwrap_or_else(|e| e.into_inner());
            self.shared.stop.store(true, Ordering::Release);
            self.shared.wake.notify_all();
        }
        for w in self.workers.drain(..) {
            let _ = w.join();
        }
    }
}

fn take_tasks(s: &Shared, task: &Task<'_>, count: usize) {
    let result = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let i = s.next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                break;
            }
            task(i);
        }
    }));
    if let Err(p) = result {
        s.next.store(count, Ordering::Relaxed);
        s.panicked.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(p);
    }
}

fn work(s: &Shared) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while s.epoch.load(Ordering::Acquire) == seen && !s.stop.load(Ordering::Acquire) {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            let mut guard = s.asleep.lock().unwrap_or_else(|e| e.into_inner());
            while s.epoch.load(Ordering::Acquire) == seen && !s.stop.load(Ordering::Acquire) {
                guard = s.wake.wait(guard).unwrap_or_else(|e| e.into_inner());
            }
        }
        if s.stop.load(Ordering::Acquire) {
            return;
        }
        seen += 1;
        // SAFETY: the epoch was seen with acquire, and `busy` still counts this worker: the job is whole and alive.
        if let Some((task, count)) = unsafe { *s.job.get() } {
            // SAFETY: as above.
            take_tasks(s, unsafe { &*task }, count);
        }
        s.busy.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_once() {
        for threads in 1..5 {
            let team = Team::new(threads);
            for count in [0, 1, 2, 17, 1000] {
                let hits: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
                team.run(count, |i| {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "{threads} threads, {count} tasks");
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(3);
        let caught = catch_unwind(AssertUnwindSafe(|| team.run(100, |i| assert!(i != 57, "task 57"))));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        team.run(10, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
