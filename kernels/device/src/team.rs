//! The thread team of device `cpu`: a fixed set of threads that run numbered tasks until none is left.
//!
//! ```text
//! run(count, task):                        # the caller is one of the threads
//!     share i = tasks of thread i: the contiguous range [i * count / n, (i + 1) * count / n)
//!     each thread: take tasks of its own share one by one, then tasks of the other shares
//!     return when `done` has counted every task
//! ```
//!
//! A task owns its outputs and its order of summation, so its result does not depend on the thread that runs it.
//! Every launch gives a thread the same range, so most of what it reads is in the cache of its own core. Workers spin
//! for a short while between launches (a decode step has hundreds, microseconds apart), then sleep. A launch ends
//! when its tasks are done; a worker that the system has suspended does not delay it.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Number of times that a worker checks for new work before it sleeps. The checks take some hundred microseconds in
/// all.
const LOOKS: usize = 6_000;
/// A waiting thread gives up its core after every so many checks: if there are more threads than cores, the thread
/// that it waits for may need this core.
const YIELD: usize = 64;

thread_local! {
    /// True while this thread runs a task.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// A value that has cache lines of its own, so that writes to neighbouring values do not slow down accesses to it.
#[repr(align(128))]
struct Alone<T>(T);

/// The upper half is the number of the current job, which only grows. The lower half is the number of tasks left in a
/// thread's share. A thread owns a task once it has decremented the lower half by compare-and-swap. The swap also
/// proves that the task pointer and the count, which the thread read before the swap, belong to this job.
type Share = Alone<AtomicU64>;

struct Shared {
    /// Number of the current job.
    job: Alone<AtomicU64>,
    /// For each thread, the number of tasks left in the range that this thread starts with.
    shares: Vec<Share>,
    /// Number of finished and counted tasks of the current job.
    done: Alone<AtomicUsize>,
    /// The current job's `&Task`, a fat pointer, as two words; written only when all tasks of the previous job are
    /// done.
    task: [AtomicUsize; 2],
    /// Number of tasks of the current job; written together with `task`.
    count: AtomicUsize,
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    asleep: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
}

/// A team of threads. The caller of [`Team::run`] is one of them.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Locked while a job runs, so that a second caller waits.
    running: Mutex<()>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({})", self.threads())
    }
}

impl Team {
    /// A team of `threads` threads (at least 1), including the caller.
    pub fn new(threads: usize) -> Team {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            job: Alone(AtomicU64::new(0)),
            shares: (0..threads).map(|_| Alone(AtomicU64::new(0))).collect(),
            done: Alone(AtomicUsize::new(0)),
            task: [AtomicUsize::new(0), AtomicUsize::new(0)],
            count: AtomicUsize::new(0),
            panicked: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads)
            .filter_map(|i| {
                let shared = shared.clone();
                // If a thread cannot be created the team is smaller; results do not depend on its size.
                std::thread::Builder::new().name(format!("reel-{i}")).spawn(move || shared.work(i)).ok()
            })
            .collect();
        Team { shared, workers, running: Mutex::new(()) }
    }

    /// Threads of the team.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Returns the range of tasks with which thread `thread` begins if [`Team::run`] runs `count` tasks.
    pub fn share(&self, thread: usize, count: usize) -> Range<usize> {
        span(thread, self.threads(), count)
    }

    /// Calls `task(0) … task(count - 1)`, each once and on any thread of the team, and returns when all tasks are done.
    /// If a task itself calls `run`, all tasks of that call run on the task's thread.
    ///
    /// # Panics
    /// If a task panics (after all other tasks are done), or with 2^32 tasks or more.
    pub fn run(&self, count: usize, task: impl Fn(usize) + Sync) {
        if count <= 1 || self.workers.is_empty() || IN_TASK.get() {
            (0..count).for_each(task);
            return;
        }
        assert!(count < 1 << 32, "a call of Team::run has {count} tasks; at most 2^32 - 1 are supported");
        let _one_at_a_time = self.running.lock().unwrap_or_else(|e| e.into_inner());
        let s = &*self.shared;
        let task: &Task<'_> = &task;
        // SAFETY: a reference to a trait object is two words.
        let words = unsafe { std::mem::transmute::<&Task<'_>, [usize; 2]>(task) };
        s.task[0].store(words[0], Ordering::Relaxed);
        s.task[1].store(words[1], Ordering::Relaxed);
        s.count.store(count, Ordering::Relaxed);
        s.done.0.store(0, Ordering::Relaxed);
        let (job, n) = (s.job.0.load(Ordering::Relaxed) + 1, s.shares.len());
        for (i, share) in s.shares.iter().enumerate() {
            share.0.store(job << 32 | span(i, n, count).len() as u64, Ordering::Release);
        }
        s.job.0.store(job, Ordering::SeqCst);
        // A worker first counts itself as sleeping and then checks for a new job once more. So either this load sees
        // the sleeping worker, or the worker sees the new job.
        if s.sleepers.load(Ordering::SeqCst) != 0 {
            let _guard = s.asleep.lock().unwrap_or_else(|e| e.into_inner());
            s.wake.notify_all();
        }
        s.take_tasks(0);
        let mut looks = 0;
        while s.done.0.load(Ordering::Acquire) != count {
            looks += 1;
            pause(looks);
        }
        let panic = s.panicked.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(p) = panic {
            resume_unwind(p);
        }
    }
}

/// Returns the range of tasks that thread `index` starts with, if `n` threads share `count` tasks.
fn span(index: usize, n: usize, count: usize) -> Range<usize> {
    index * count / n..(index + 1) * count / n
}

/// Waits briefly between two checks for work; `looks` is the number of checks so far.
fn pause(looks: usize) {
    if looks.is_multiple_of(YIELD) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        {
            let _guard = self.shared.asleep.lock().unwrap_or_else(|e| e.into_inner());
            self.shared.stop.store(true, Ordering::SeqCst);
            self.shared.wake.notify_all();
        }
        for w in self.workers.drain(..) {
            let _ = w.join();
        }
    }
}

impl Shared {
    /// Runs tasks of the current job until none is left: first those of share `first`, then those of the other shares.
    /// The finished tasks are counted together at the end, so the counter moves from core to core only once for each
    /// thread. All of these tasks belong to one job, because a job lasts until all of its tasks are counted.
    fn take_tasks(&self, first: usize) {
        let n = self.shares.len();
        let taken: usize = (first..first + n).map(|i| self.take_share(i % n)).sum();
        if taken > 0 {
            self.done.0.fetch_add(taken, Ordering::Release);
        }
    }

    /// Runs tasks of one share until all are taken, and returns their number.
    fn take_share(&self, index: usize) -> usize {
        let (share, mut taken) = (&self.shares[index].0, 0);
        loop {
            let state = share.load(Ordering::Acquire);
            let left = (state & 0xffff_ffff) as usize;
            if left == 0 {
                return taken;
            }
            let words = [self.task[0].load(Ordering::Relaxed), self.task[1].load(Ordering::Relaxed)];
            let count = self.count.load(Ordering::Relaxed);
            if share.compare_exchange(state, state - 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                std::hint::spin_loop();
                continue;
            }
            // SAFETY: the swap succeeded, so this task was not taken before and its job was not done. So the words
            // belong to this job, and what they point to lives until `done` has counted this task, which is later.
            let task = unsafe { std::mem::transmute::<[usize; 2], &Task<'_>>(words) };
            let next = span(index, self.shares.len(), count).end - left;
            IN_TASK.set(true);
            let done = catch_unwind(AssertUnwindSafe(|| task(next)));
            IN_TASK.set(false);
            if let Err(p) = done {
                self.panicked.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(p);
            }
            taken += 1;
        }
    }

    /// The main loop of worker `index`: runs jobs until the team is dropped.
    fn work(&self, index: usize) {
        let mut seen = 0;
        let idle = |seen: u64| self.job.0.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst);
        loop {
            let mut looks = 0;
            while idle(seen) {
                looks += 1;
                if looks < LOOKS {
                    pause(looks);
                    continue;
                }
                let mut guard = self.asleep.lock().unwrap_or_else(|e| e.into_inner());
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while idle(seen) {
                    guard = self.wake.wait(guard).unwrap_or_else(|e| e.into_inner());
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // If a job later than `seen` has begun and all its tasks are taken already, `take_tasks` finds no task.
            seen = self.job.0.load(Ordering::SeqCst);
            self.take_tasks(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in 1..5 {
            let team = Team::new(threads);
            for count in [0, 1, 2, 17, 1000] {
                let hits: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
                team.run(count, |i| {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    hits.iter().all(|h| h.load(Ordering::Relaxed) == 1),
                    "every task must run exactly once: {threads} threads, {count} tasks"
                );
            }
        }
    }

    #[test]
    fn tasks_of_a_task_stay_on_its_thread() {
        let team = Team::new(3);
        let sum = AtomicUsize::new(0);
        team.run(20, |i| {
            let me = std::thread::current().id();
            team.run(10, |j| {
                assert_eq!(std::thread::current().id(), me);
                sum.fetch_add(10 * i + j, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), (0..200).sum::<usize>());
        // After a task has panicked, the team must still run jobs.
        let barrier = std::sync::Barrier::new(3);
        team.run(3, |_| {
            barrier.wait();
        });
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

    #[test]
    fn jobs_follow_each_other_at_once() {
        let team = Team::new(4);
        let sum = AtomicUsize::new(0);
        for job in 0..20_000 {
            let local = [job; 3];
            team.run(2 + job % 5, |i| {
                sum.fetch_add(local[i % 3] + i, Ordering::Relaxed);
            });
        }
        let want: usize = (0..20_000).map(|job| (0..2 + job % 5).map(|i| job + i).sum::<usize>()).sum();
        assert_eq!(sum.into_inner(), want);
    }

    #[test]
    fn sleeping_workers_wake() {
        let team = Team::new(2);
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let barrier = std::sync::Barrier::new(2);
            // Both threads must take part: one thread alone would wait forever.
            team.run(2, |_| {
                barrier.wait();
            });
        }
    }
}
