//! The state that the threads of a rank share: those that call [`Ranks`](crate::Ranks), and the watching thread.

use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::call::{Activity, Call};
use crate::error::{RankError, Result};

/// The state of a rank in its job.
#[derive(Debug)]
pub(crate) struct RankState {
    state: Mutex<State>,
    /// Notified when the job fails or a rank has connected.
    changed: Condvar,
    has_failed: AtomicBool,
    /// An eventfd that is readable from the failure of the job on.
    failed: File,
    /// An eventfd that wakes the watching thread.
    wake: File,
    /// When a call last sent or received data, or began: milliseconds after `start`.
    progress_ms: AtomicU64,
    start: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// The first failure of the job.
    failure: Option<RankError>,
    /// Whether a call has returned the failure.
    is_returned: bool,
    requests: Vec<WatcherRequest>,
    /// The last call.
    call: Option<Call>,
    is_in_call: bool,
    /// The number of collectives that have begun.
    collectives: u64,
    /// By rank: connections for data that no call has taken yet.
    accepted: Vec<Option<TcpStream>>,
    is_leaving: bool,
}

/// A message to the watching thread.
#[derive(Debug)]
pub(crate) enum WatcherRequest {
    /// The connection to rank `about`, which `call` needs, has closed or cannot be made.
    Suspicion { about: usize, call: Call },
    /// This rank has failed, or has found an error of another one.
    Report(RankError),
}

impl RankState {
    /// The state of a rank that has just joined.
    ///
    /// # Errors
    /// The process has no free file descriptor.
    pub fn new(size: usize) -> std::io::Result<Self> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(File::from);
        let accepted = (0..size).map(|_| None).collect();
        Ok(Self {
            state: Mutex::new(State { accepted, ..State::default() }),
            changed: Condvar::new(),
            has_failed: AtomicBool::new(false),
            failed: event()?,
            wake: event()?,
            progress_ms: AtomicU64::new(0),
            start: Instant::now(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Readable from the failure of the job on.
    pub fn failed_event(&self) -> BorrowedFd<'_> {
        self.failed.as_fd()
    }

    /// Readable when the watching thread has something to do, until it calls [`RankState::clear_wake_event`].
    pub fn wake_event(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// To be called before the watching thread looks for requests.
    pub fn clear_wake_event(&self) {
        // Fails if the event is clear already.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    fn wake_watching_thread(&self) {
        // Fails only if the event's counter is at its maximum; then it is readable.
        let _ = (&self.wake).write(&1u64.to_ne_bytes());
    }

    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// Ends all calls of this rank with this error. Later failures are ignored.
    pub fn set_failure(&self, error: RankError) {
        let mut state = self.state();
        if state.failure.is_none() {
            state.failure = Some(error);
            self.has_failed.store(true, Ordering::Release);
            let _ = (&self.failed).write(&1u64.to_ne_bytes());
            self.changed.notify_all();
        }
    }

    /// The failure of the job that no call has returned yet.
    pub fn unreturned_failure(&self) -> Option<RankError> {
        let state = self.state();
        state.failure.clone().filter(|_| !state.is_returned)
    }

    /// Returns the failure of the job to a caller.
    ///
    /// # Errors
    /// The job has failed.
    pub fn check(&self) -> Result<()> {
        if !self.has_failed() {
            return Ok(());
        }
        let mut state = self.state();
        state.is_returned = true;
        state.failure.clone().map_or(Ok(()), Err)
    }

    /// Records that a call begins.
    pub fn begin_call(&self, call: &Call) {
        let mut state = self.state();
        state.call = Some(call.clone());
        state.is_in_call = true;
        state.collectives += u64::from(call.is_collective());
        self.record_progress();
    }

    /// Records that the call ends.
    pub fn end_call(&self) {
        self.state().is_in_call = false;
    }

    /// Records that the call has sent or received data.
    pub fn record_progress(&self) {
        self.progress_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// What this rank does.
    pub fn activity(&self) -> Activity {
        let state = self.state();
        let waiting = self.now_ms().saturating_sub(self.progress_ms.load(Ordering::Relaxed));
        let waiting_ms = state.is_in_call.then_some(waiting);
        Activity { call: state.call.clone(), waiting_ms, collectives: state.collectives }
    }

    /// Sends a request to the watching thread and waits for the failure of the job that results. If there is none
    /// within `limit`, the job fails with `otherwise`.
    pub fn request_failure(&self, request: WatcherRequest, limit: Duration, otherwise: RankError) -> RankError {
        let mut state = self.state();
        state.requests.push(request);
        self.wake_watching_thread();
        drop(self.changed.wait_timeout_while(state, limit, |state| state.failure.is_none()));
        self.set_failure(otherwise.clone());
        self.check().err().unwrap_or(otherwise)
    }

    /// Takes all requests.
    pub fn take_requests(&self) -> Vec<WatcherRequest> {
        std::mem::take(&mut self.state().requests)
    }

    /// Stores the connection that a rank has made.
    pub fn put_connection(&self, rank: usize, stream: TcpStream) {
        self.state().accepted[rank] = Some(stream);
        self.changed.notify_all();
    }

    /// Waits until a rank has connected. Returns `None` if the job fails before.
    pub fn take_connection(&self, rank: usize) -> Option<TcpStream> {
        let must_wait = |state: &mut State| state.failure.is_none() && state.accepted[rank].is_none();
        let state = self.changed.wait_while(self.state(), must_wait);
        state.unwrap_or_else(PoisonError::into_inner).accepted[rank].take()
    }

    /// Takes the connection of a rank if it has connected.
    pub fn try_take_connection(&self, rank: usize) -> Option<TcpStream> {
        self.state().accepted[rank].take()
    }

    /// Asks the watching thread to leave the job and end.
    pub fn leave(&self) {
        self.state().is_leaving = true;
        self.wake_watching_thread();
    }

    pub fn is_leaving(&self) -> bool {
        self.state().is_leaving
    }
}
