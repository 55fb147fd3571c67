//! The watching thread of a rank. It sends heartbeats, receives control messages, and ends the job when a rank fails,
//! even while all other threads of the process wait for something else.
//!
//! Rank 0's thread gets the messages of all ranks and decides (see [`FailureDetector`]). The threads of other ranks
//! report to it and carry out its decisions. The only failure that they detect themselves is the end of rank 0.

use std::net::TcpStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::diagnostic::Diagnostic;
use rustix::event::{PollFd, PollFlags};

use crate::ranks::call::{Call, RankActivity};
use crate::ranks::control::{ControlConnection, ControlMessage, wait_for};
use crate::ranks::error::{RankError, Result};
use crate::ranks::failure_detector::{FailureDetector, process_ended_error, silent_rank_error};
use crate::ranks::handshake::{ConnectionAcceptor, ConnectionPurpose, HelloMessage};
use crate::ranks::launch::Transport;
use crate::ranks::member::JobMember;
use crate::ranks::rendezvous::{JobConnections, duplicate_rank_error};
use crate::ranks::shared::{RankState, WatcherRequest};
use crate::ranks::timeouts::Timeouts;

/// A function that is called with the failure of the job.
pub type OnFailure = Box<dyn Fn(&RankError) + Send>;

/// The maximum time that a leaving rank waits for rank 0's confirmation.
const CONFIRM_TIME: Duration = Duration::from_secs(5);

/// The maximum time that rank 0 waits at its end until the other ranks have read its last messages.
const CLOSE_TIME: Duration = Duration::from_millis(500);

/// The maximum time between two checks of the clock.
const MAX_TICK: Duration = Duration::from_millis(250);

/// Starts the watching thread. The thread's result is `on_failure`, or `None` if the thread has called it.
///
/// # Errors
/// The thread cannot be created.
pub(crate) fn start_watching_thread(
    rank: usize,
    joined: JobConnections,
    shared: &Arc<RankState>,
    timeouts: &Timeouts,
    on_failure: OnFailure,
) -> Result<JoinHandle<Option<OnFailure>>> {
    let now = Instant::now();
    let JobConnections { members, acceptor, mut controls } = joined;
    // All processes finalize MPI together. Until then, each process must know whether the others are alive.
    let leaves_together = members[rank].transport == Transport::Mpi;
    // The time in which the ranks joined does not count as silence.
    controls.iter_mut().flatten().for_each(|control| control.last_received = now);
    let watcher = Watcher {
        rank,
        detector: (rank == 0).then(|| FailureDetector::new(members.clone(), *timeouts, leaves_together, now)),
        members,
        acceptor,
        controls,
        shared: Arc::clone(shared),
        timeouts: *timeouts,
        on_failure: Some(on_failure),
        next_heartbeat: now,
        failed_at: None,
        leaving_since: None,
        is_leave_confirmed: false,
        leaves_together,
        all_have_left: false,
    };
    let thread = std::thread::Builder::new().name("ranks".to_owned()).spawn(move || watcher.run());
    thread.map_err(|e| Diagnostic::cannot_start_thread("watching the other ranks", &e).into())
}

struct Watcher {
    rank: usize,
    members: Vec<JobMember>,
    acceptor: ConnectionAcceptor,
    /// The open control connections by rank; see [`JobConnections::controls`].
    controls: Vec<Option<ControlConnection>>,
    /// The failure detector of rank 0; `None` on other ranks.
    detector: Option<FailureDetector>,
    shared: Arc<RankState>,
    timeouts: Timeouts,
    /// `None` after the function was called.
    on_failure: Option<OnFailure>,
    next_heartbeat: Instant,
    failed_at: Option<Instant>,
    leaving_since: Option<Instant>,
    /// Whether rank 0 has confirmed that this rank may leave.
    is_leave_confirmed: bool,
    /// Whether this rank stays connected until all ranks have left.
    leaves_together: bool,
    /// Whether rank 0 has reported that all ranks have left.
    all_have_left: bool,
}

impl Watcher {
    fn run(mut self) -> Option<OnFailure> {
        while !self.is_finished() {
            self.wait();
            self.handle_requests();
            self.accept_connections();
            self.handle_messages();
            self.begin_to_leave();
            self.send_heartbeats();
            self.detect_failure();
            self.call_on_failure();
        }
        if self.rank == 0 {
            if self.leaves_together && !self.shared.has_failed() {
                self.controls.iter_mut().flatten().for_each(|control| control.send(&ControlMessage::AllHaveLeft));
            }
            let deadline = Instant::now() + CLOSE_TIME;
            self.controls.drain(..).flatten().for_each(|control| control.close(deadline));
        }
        self.on_failure
    }

    fn wait(&self) {
        let mut events = vec![PollFd::from_borrowed_fd(self.shared.wake_event(), PollFlags::IN)];
        self.acceptor.add_poll_events(&mut events);
        events.extend(self.controls.iter().flatten().map(ControlConnection::poll_event));
        wait_for(&mut events, (self.timeouts.heartbeat / 4).min(MAX_TICK));
        self.shared.clear_wake_event();
    }

    fn handle_requests(&mut self) {
        for request in self.shared.take_requests() {
            match request {
                WatcherRequest::Report(error) if self.rank == 0 => self.fail(error),
                WatcherRequest::Report(error) => self.send_to_rank_0(&ControlMessage::Report(error)),
                WatcherRequest::Suspicion { about, call } => self.suspect(about, call),
            }
        }
    }

    fn suspect(&mut self, about: usize, call: Call) {
        match &mut self.detector {
            Some(detector) => detector.record_suspicion(0, about, call, Instant::now()),
            None => self.send_to_rank_0(&ControlMessage::Suspicion { about, call }),
        }
    }

    fn send_to_rank_0(&mut self, message: &ControlMessage) {
        if let Some(control) = &mut self.controls[0] {
            control.send(message);
        }
    }

    /// Ends the job. Rank 0 first notifies the other ranks, because its process may exit as soon as a call returns.
    fn fail(&mut self, error: RankError) {
        if self.shared.has_failed() {
            return;
        }
        if self.rank == 0 {
            let message = ControlMessage::Failed(error.clone());
            self.controls.iter_mut().flatten().for_each(|control| control.send(&message));
        }
        self.shared.set_failure(error);
    }

    fn accept_connections(&mut self) {
        for (hello, stream) in self.acceptor.accept_ready() {
            self.accept(hello, stream);
        }
    }

    fn accept(&self, hello: HelloMessage, stream: TcpStream) {
        match hello.purpose {
            ConnectionPurpose::Data if hello.from > self.rank && hello.from < self.members.len() => {
                self.shared.put_connection(hello.from, stream);
            }
            ConnectionPurpose::Data => {}
            // The process comes too late, because all ranks have joined.
            ConnectionPurpose::Join(member) => {
                let first = self.members.get(member.rank).unwrap_or(&self.members[self.rank]);
                if let Ok(mut control) = ControlConnection::new(stream) {
                    control.send(&ControlMessage::Failed(duplicate_rank_error(first, &member)));
                }
            }
        }
    }

    fn handle_messages(&mut self) {
        for rank in 0..self.controls.len() {
            let Some(control) = &mut self.controls[rank] else { continue };
            control.flush();
            let (messages, is_closed) = control.receive();
            if let Some(detector) = &mut self.detector {
                detector.record_receive_time(rank, control.last_received);
            }
            for message in messages {
                self.handle_message(rank, message);
            }
            if is_closed {
                self.controls[rank] = None;
                self.handle_closed_connection(rank);
            }
        }
    }

    fn handle_message(&mut self, from: usize, message: ControlMessage) {
        match (message, &mut self.detector) {
            (ControlMessage::Heartbeat(activity), Some(detector)) => detector.record_activity(from, activity),
            (ControlMessage::Suspicion { about, call }, Some(detector)) => {
                detector.record_suspicion(from, about, call, Instant::now());
            }
            (ControlMessage::Leave(activity), Some(detector)) => {
                detector.record_activity(from, activity);
                detector.record_leave(from);
                if let Some(control) = &mut self.controls[from] {
                    control.send(&ControlMessage::LeaveConfirmed);
                }
            }
            (ControlMessage::Report(error), Some(_)) | (ControlMessage::Failed(error), None) => self.fail(error),
            (ControlMessage::LeaveConfirmed, None) => self.is_leave_confirmed = true,
            (ControlMessage::AllHaveLeft, None) => self.all_have_left = true,
            // These are heartbeats of rank 0. A rank sends no other messages that the receiver does not expect.
            _ => {}
        }
    }

    fn handle_closed_connection(&mut self, rank: usize) {
        let error = match &self.detector {
            Some(detector) => detector.failure_of_closed_connection(rank),
            None if self.leaves_together => (!self.all_have_left).then(|| process_ended_error(&self.members[0])),
            // Rank 0 leaves last. If this rank is leaving too, its work is done, so the closed connection is no
            // failure.
            None => self.leaving_since.is_none().then(|| process_ended_error(&self.members[0])),
        };
        if let Some(error) = error {
            self.fail(error);
        }
    }

    fn begin_to_leave(&mut self) {
        if self.leaving_since.is_some() || !self.shared.is_leaving() {
            return;
        }
        self.leaving_since = Some(Instant::now());
        match &mut self.detector {
            Some(detector) => detector.record_leave(0),
            None => self.send_to_rank_0(&ControlMessage::Leave(self.shared.activity())),
        }
    }

    fn send_heartbeats(&mut self) {
        let now = Instant::now();
        let is_silent = self.leaving_since.is_some() && self.rank != 0 && !self.leaves_together;
        if now < self.next_heartbeat || is_silent {
            return;
        }
        self.next_heartbeat = now + self.timeouts.heartbeat;
        let activity = if self.rank == 0 { RankActivity::default() } else { self.shared.activity() };
        let message = ControlMessage::Heartbeat(activity);
        self.controls.iter_mut().flatten().for_each(|control| control.send(&message));
    }

    fn detect_failure(&mut self) {
        let now = Instant::now();
        let failure = match &mut self.detector {
            Some(detector) => {
                detector.record_activity(0, self.shared.activity());
                detector.failure(now)
            }
            None => self.silent_rank(now, self.timeouts.silence),
        };
        self.shared.set_silent_rank(self.silent_rank(now, self.timeouts.warning()));
        if let Some(error) = failure {
            self.fail(error);
        }
    }

    /// Returns the error of a rank from which this rank expects heartbeats and has had none for longer than `limit`.
    fn silent_rank(&self, now: Instant, limit: Duration) -> Option<RankError> {
        match &self.detector {
            Some(detector) => detector.silent_rank(now, limit),
            None => {
                let control = self.controls[0].as_ref();
                let is_silent = control.is_some_and(|control| now.duration_since(control.last_received) > limit);
                is_silent.then(|| silent_rank_error(&self.members[0], limit))
            }
        }
    }

    /// Calls `on_failure` if no call has returned the failure within the time limit.
    fn call_on_failure(&mut self) {
        if !self.shared.has_failed() || self.leaving_since.is_some() {
            return;
        }
        let failed_at = *self.failed_at.get_or_insert_with(Instant::now);
        if failed_at.elapsed() >= self.timeouts.notice
            && let Some(error) = self.shared.unreturned_failure()
            && let Some(on_failure) = self.on_failure.take()
        {
            on_failure(&error);
        }
    }

    /// Whether this rank has left the job.
    fn is_finished(&self) -> bool {
        let Some(since) = self.leaving_since else { return false };
        self.shared.has_failed()
            || match &self.detector {
                Some(detector) => detector.all_others_have_left(),
                None if self.leaves_together => self.all_have_left,
                None => self.is_leave_confirmed || self.controls[0].is_none() || since.elapsed() > CONFIRM_TIME,
            }
    }
}
