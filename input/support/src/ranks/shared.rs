//! The state shared by the threads of a rank: the threads that call [`Ranks`](crate::ranks::Ranks), and the watching
//! thread.

use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::ranks::call::{Call, RankActivity};
use crate::ranks::error::{RankError, Result};

/// The state of a rank in its job, shared by its threads.
#[derive(Debug)]
pub(crate) struct RankState {
    state: Mutex<State>,
    /// Notified when the job fails or another rank has connected.
    changed: Condvar,
    has_failed: AtomicBool,
    /// An eventfd that becomes readable when the job fails.
    failed: File,
    /// An eventfd that wakes the watching thread.
    wake: File,
    /// The time at which a call last sent or received data, or began, in milliseconds after `start`.
    progress_ms: AtomicU64,
    start: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// The first failure of the job.
    failure: Option<RankError>,
    /// Whether a call has returned the failure.
    is_returned: bool,
    /// The error of a rank that has sent no heartbeats for a while, although the job has not failed yet.
    silent_rank: Option<RankError>,
    requests: Vec<WatcherRequest>,
    /// The last call of this rank.
    call: Option<Call>,
    is_in_call: bool,
    /// The number of collectives that this rank has begun.
    collectives: u64,
    /// By rank: data connections that no call has used yet.
    accepted: Vec<Option<TcpStream>>,
    is_leaving: bool,
}

/// A message to the watching thread.
#[derive(Debug)]
pub(crate) enum WatcherRequest {
    /// The connection to rank `about` has closed or cannot be made, and `call` needs it.
    Suspicion { about: usize, call: Call },
    /// This rank has failed, or has found an error of another rank.
    Report(RankError),
}

impl RankState {
    /// Creates the state of a rank that has just joined.
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

    /// An event that becomes readable when the job fails.
    pub fn failure_event(&self) -> BorrowedFd<'_> {
        self.failed.as_fd()
    }

    /// An event that is readable while the watching thread has work to do, until [`RankState::clear_wake_event`] is
    /// called.
    pub fn wake_event(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Clears the wake event. The watching thread calls this before it takes requests.
    pub fn clear_wake_event(&self) {
        // The read fails if the event is already clear.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    fn wake_watching_thread(&self) {
        // The write fails only if the event's counter is at its maximum. Then the event is readable anyway.
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

    /// Returns the failure of the job if no call has returned it yet.
    pub fn unreturned_failure(&self) -> Option<RankError> {
        let state = self.state();
        state.failure.clone().filter(|_| !state.is_returned)
    }

    /// Returns an error if the job has failed, and records that a call has returned the failure.
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

    /// Records the rank that sends no heartbeats at present, if any.
    pub fn set_silent_rank(&self, error: Option<RankError>) {
        self.state().silent_rank = error;
    }

    /// Returns the error of a rank that sends no heartbeats at present, or the failure of the job.
    pub fn check_heartbeats(&self) -> Result<()> {
        let state = self.state();
        state.failure.clone().or(state.silent_rank.clone()).map_or(Ok(()), Err)
    }

    /// Records that this rank begins a call.
    pub fn begin_call(&self, call: &Call) {
        let mut state = self.state();
        state.call = Some(call.clone());
        state.is_in_call = true;
        state.collectives += u64::from(call.is_collective());
        self.record_progress();
    }

    /// Records that this rank ends a call.
    pub fn end_call(&self) {
        self.state().is_in_call = false;
    }

    /// Records that a call has sent or received data.
    pub fn record_progress(&self) {
        self.progress_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// The current activity of this rank.
    pub fn activity(&self) -> RankActivity {
        let state = self.state();
        let waiting = self.now_ms().saturating_sub(self.progress_ms.load(Ordering::Relaxed));
        let waiting_ms = state.is_in_call.then_some(waiting);
        RankActivity { call: state.call.clone(), waiting_ms, collectives: state.collectives }
    }

    /// Sends a request to the watching thread and waits until it fails the job. If the job has not failed after
    /// `limit`, it fails with `otherwise`.
    pub fn request_failure(&self, request: WatcherRequest, limit: Duration, otherwise: RankError) -> RankError {
        let mut state = self.state();
        state.requests.push(request);
        self.wake_watching_thread();
        drop(self.changed.wait_timeout_while(state, limit, |state| state.failure.is_none()));
        self.set_failure(otherwise.clone());
        self.check().err().unwrap_or(otherwise)
    }

    /// Takes all requests to the watching thread.
    pub fn take_requests(&self) -> Vec<WatcherRequest> {
        std::mem::take(&mut self.state().requests)
    }

    /// Stores a connection that another rank has made.
    pub fn put_connection(&self, rank: usize, stream: TcpStream) {
        self.state().accepted[rank] = Some(stream);
        self.changed.notify_all();
    }

    /// Waits until another rank has connected, and takes the connection. Returns `None` if the job fails before that.
    pub fn take_connection(&self, rank: usize) -> Option<TcpStream> {
        let must_wait = |state: &mut State| state.failure.is_none() && state.accepted[rank].is_none();
        let state = self.changed.wait_while(self.state(), must_wait);
        state.unwrap_or_else(PoisonError::into_inner).accepted[rank].take()
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
