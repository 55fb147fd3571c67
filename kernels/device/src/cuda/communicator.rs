//! Exchanges of GPU memory between ranks. They run on a separate stream, concurrently with the GPU's compute stream.
//!
//! ```text
//! start:   event `ready` on the compute stream; the exchange's stream waits for it
//!          one group of sends and receives, and a copy of the part for this rank
//!          event `done` on the exchange's stream
//! wait:    the compute stream waits for `done`
//! ```
//!
//! So an exchange runs concurrently with the launches between `start` and `wait`. These launches must neither write
//! the sent ranges nor use the received ranges, and the memory must not be reused before `wait`. Work that is
//! enqueued after `wait` runs after the exchange.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::nccl::{CommHandle, Nccl, NcclResult, UniqueId};
use crate::cuda::driver::{Driver, EventHandle, StreamHandle};
use crate::cuda::error::CudaError;
use crate::cuda::gpu::Gpu;
use crate::exchanges::{AddressRange, ExchangeStatus};

/// The largest number of exchanges in flight. Before the host enqueues another one, it waits for the oldest.
const MAX_IN_FLIGHT: usize = 256;
/// The longest time that a rank waits for the other ranks when it leaves the communicator.
const LEAVE_TIME: Duration = Duration::from_secs(10);
/// The time for which a wait polls without pauses. After that, it pauses between polls.
const POLL_TIME: Duration = Duration::from_millis(1);
/// The pause between two polls of a long wait.
const POLL_PAUSE: Duration = Duration::from_micros(200);

/// One rank of a group of ranks that exchange GPU memory. Any thread may call it.
pub(crate) struct Communicator {
    rank: usize,
    size: usize,
    /// The longest time that may pass without a completed exchange while one is in flight.
    time_limit: Duration,
    driver: Arc<dyn Driver>,
    /// The stream of the GPU's launches.
    compute: StreamHandle,
    /// Set to false by [`Communicator::wait`]. See `Gpu::make_next_launch_wait`.
    next_may_start_early: Arc<AtomicBool>,
    nccl: Box<dyn Nccl>,
    /// The stream on which exchanges run.
    stream: StreamHandle,
    /// The event that is recorded on the compute stream when an exchange starts. A stream that waits for an earlier
    /// recording of the event still waits for that recording.
    ready: EventHandle,
    /// Held during each call to NCCL, which allows one thread at a time. `None` before the start and after the end.
    comm: Mutex<Option<CommHandle>>,
    /// Held while an exchange is enqueued: no other exchange may begin before NCCL has enqueued this one.
    starting: Mutex<()>,
    progress: Mutex<Progress>,
}

/// The progress of this rank's exchanges.
struct Progress {
    started: u64,
    finished: u64,
    /// The exchanges that may not have completed, oldest first.
    in_flight: VecDeque<InFlight>,
    /// Events that no exchange uses now.
    free_events: Vec<EventHandle>,
    /// The time of the last progress: when an exchange was last found to be complete, or when an exchange was started
    /// while no other was in flight.
    last_progress: Instant,
    /// The first error. All later calls return it.
    failure: Option<CudaError>,
}

struct InFlight {
    sequence: u64,
    name: String,
    done: EventHandle,
    /// Whether `done` is recorded, that is, the exchange is enqueued.
    is_enqueued: bool,
}

impl Communicator {
    /// Joins the communicator with this id, and returns when all ranks have joined. `time_limit` limits the time of
    /// joining and of exchanges; see [`Communicator::check`]. The communicator must be dropped before the GPU.
    ///
    /// # Errors
    /// NCCL is missing or fails, or a rank is missing after the time limit.
    pub fn join(
        gpu: &Gpu,
        (rank, size): (usize, usize),
        id: &UniqueId,
        time_limit: Duration,
    ) -> Result<Communicator, CudaError> {
        let (driver, nccl) = (gpu.driver.clone(), gpu.driver.nccl()?);
        let stream = driver.stream()?;
        // SAFETY: the stream was just created.
        let ready = driver.event().inspect_err(|_| unsafe { driver.destroy_stream(stream) })?;
        let progress = Progress {
            started: 0,
            finished: 0,
            in_flight: VecDeque::new(),
            free_events: Vec::new(),
            last_progress: Instant::now(),
            failure: None,
        };
        let communicator = Communicator {
            rank,
            size,
            time_limit,
            driver,
            compute: gpu.stream,
            next_may_start_early: gpu.next_may_start_early.clone(),
            nccl,
            stream,
            ready,
            comm: Mutex::default(),
            starting: Mutex::default(),
            progress: Mutex::new(progress),
        };
        match communicator.nccl.init_rank(size, id, rank) {
            Ok(comm) => *lock(&communicator.comm) = Some(comm),
            Err(error) => return Err(communicator.fail(format!("cannot join: {}", communicator.error_text(error)))),
        }
        match communicator.wait_for_nccl(time_limit) {
            Ok(NcclResult::SUCCESS) => Ok(communicator),
            Ok(NcclResult::IN_PROGRESS) => {
                let what = format!("not all ranks have joined within {time_limit:?}; start all ranks");
                Err(communicator.fail(what))
            }
            Ok(error) => Err(communicator.fail(format!("cannot join: {}", communicator.error_text(error)))),
            Err(e) => Err(e),
        }
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Starts an exchange with all ranks: sends the ranges `send[to]` to rank `to`, and writes the data from rank
    /// `from` to the ranges `receive[from]`. Returns the exchange's ticket for [`Communicator::wait`]. The exchange
    /// runs after the work that is enqueued on the compute stream now.
    ///
    /// # Safety
    /// The ranges are memory of this GPU that stays allocated until [`Communicator::wait`]. Until then, other work
    /// neither writes the sent ranges nor uses the received ranges.
    ///
    /// # Errors
    /// The ranges overlap, or NCCL or an earlier exchange has failed.
    pub unsafe fn start_exchange(
        &self,
        name: &str,
        send: &[Vec<AddressRange>],
        receive: &[Vec<AddressRange>],
    ) -> Result<u64, CudaError> {
        let _one_at_a_time = lock(&self.starting);
        self.check_at(|| format!("before exchange '{name}'"))?;
        if let Some(what) = self.invalid_ranges(send, receive) {
            let what = format!("exchange '{name}': {what}");
            return Err(CudaError::Exchange { rank: self.rank, size: self.size, what });
        }
        while lock(&self.progress).in_flight.len() >= MAX_IN_FLIGHT {
            self.check()?;
            std::thread::sleep(POLL_PAUSE);
        }
        let (ticket, done) = self.begin(name)?;
        // SAFETY: the caller guarantees the ranges.
        let enqueued = unsafe { self.enqueue(send, receive) };
        // SAFETY: this value owns event and stream.
        let enqueued =
            enqueued.and_then(|()| unsafe { self.driver.record(done, self.stream) }.map_err(|e| e.to_string()));
        match enqueued {
            Ok(()) => {
                let mut progress = lock(&self.progress);
                progress.in_flight.iter_mut().filter(|e| e.sequence == ticket).for_each(|e| e.is_enqueued = true);
                Ok(ticket)
            }
            Err(what) => Err(self.fail(format!("exchange {ticket} '{name}': {what}"))),
        }
    }

    /// Makes the work that is enqueued on the compute stream after this call run after the exchange.
    ///
    /// # Errors
    /// An exchange has failed.
    pub fn wait(&self, ticket: u64) -> Result<(), CudaError> {
        let progress = lock(&self.progress);
        // An exchange that is not in flight has completed.
        if let Some(exchange) = progress.in_flight.iter().find(|e| e.sequence == ticket) {
            // Launches that start early read weights before they wait, and the exchange may write weights.
            self.next_may_start_early.store(false, Ordering::Relaxed);
            // The stream waits after a failure too, because an aborted exchange uses its memory until the abort is
            // done. SAFETY: this value owns the event, and the compute stream is live.
            unsafe { self.driver.stream_wait(self.compute, exchange.done)? }
        }
        progress.failure.clone().map_or(Ok(()), Err)
    }

    /// Checks the exchanges without waiting. If the check finds an error, the communicator is aborted, and all later
    /// calls return the error.
    ///
    /// # Errors
    /// An exchange has failed, another rank has ended, or no exchange has completed for the time limit although one
    /// is in flight. The message names the oldest exchange in flight.
    pub fn check(&self) -> Result<(), CudaError> {
        self.check_at(|| "between exchanges".into())
    }

    /// Does the same as [`Communicator::check`]. If no exchange is in flight, the message contains `place`, a place
    /// in the program.
    fn check_at(&self, place: impl Fn() -> String) -> Result<(), CudaError> {
        let state = self.poll_nccl()?;
        let (oldest, waited) = {
            let mut progress = lock(&self.progress);
            progress.release_completed(&*self.driver)?;
            let oldest = progress.in_flight.front().map(|e| format!("exchange {} '{}'", e.sequence, e.name));
            (oldest, progress.last_progress.elapsed())
        };
        let named = || oldest.clone().unwrap_or_else(&place);
        if !state.is_accepted() {
            return Err(self.fail(format!("{}: {}", named(), self.error_text(state))));
        }
        if oldest.is_some() && waited > self.time_limit {
            let what = format!(
                "{}: not done after {:?}; a rank has ended, has not started this exchange, or computes for longer: \
                 look at the output of all ranks",
                named(),
                self.time_limit
            );
            return Err(self.fail(what));
        }
        Ok(())
    }

    /// Waits until all exchanges so far have completed.
    ///
    /// # Errors
    /// The errors of [`Communicator::check`].
    pub fn wait_for_all(&self) -> Result<(), CudaError> {
        let start = Instant::now();
        loop {
            self.check()?;
            if lock(&self.progress).in_flight.is_empty() {
                return Ok(());
            }
            pause(start);
        }
    }

    /// Returns the number of exchanges that this rank has started and finished.
    pub fn status(&self) -> ExchangeStatus {
        let progress = lock(&self.progress);
        let unfinished = progress.in_flight.front().map(|e| e.name.clone());
        ExchangeStatus { started: progress.started, finished: progress.finished, unfinished }
    }

    /// Adds an exchange to those in flight. Returns its ticket and the event that is recorded at its end.
    fn begin(&self, name: &str) -> Result<(u64, EventHandle), CudaError> {
        let mut progress = lock(&self.progress);
        let done = match progress.free_events.pop() {
            Some(event) => event,
            None => self.driver.event()?,
        };
        if progress.in_flight.is_empty() {
            progress.last_progress = Instant::now();
        }
        progress.started += 1;
        let sequence = progress.started;
        progress.in_flight.push_back(InFlight { sequence, name: name.to_string(), done, is_enqueued: false });
        Ok((sequence, done))
    }

    /// Enqueues an exchange on its stream.
    ///
    /// # Safety
    /// The conditions of [`Communicator::start_exchange`] hold.
    unsafe fn enqueue(&self, send: &[Vec<AddressRange>], receive: &[Vec<AddressRange>]) -> Result<(), String> {
        // SAFETY: this value owns stream and event; the caller guarantees the ranges.
        let copied = unsafe {
            self.driver.record(self.ready, self.compute).and_then(|()| {
                self.driver.stream_wait(self.stream, self.ready)?;
                let mut pairs = send[self.rank].iter().zip(&receive[self.rank]).filter(|(from, to)| is_copy(from, to));
                pairs.try_for_each(|(from, to)| self.driver.copy(to.addr, from.addr, from.bytes, self.stream))
            })
        };
        copied.map_err(|e| e.to_string())?;
        let transfers = |of_ranks: &[Vec<AddressRange>]| {
            let of_peers = of_ranks.iter().enumerate().filter(|(peer, _)| *peer != self.rank);
            let ranges = of_peers.flat_map(|(peer, ranges)| ranges.iter().map(move |range| (peer, *range)));
            ranges.filter(|(_, range)| range.bytes > 0).collect::<Vec<_>>()
        };
        let (sends, receives) = (transfers(send), transfers(receive));
        if sends.is_empty() && receives.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller guarantees the ranges.
        let result = unsafe { self.enqueue_group(&sends, &receives) }?;
        if !result.is_accepted() {
            return Err(self.error_text(result));
        }
        match self.wait_for_nccl(self.time_limit) {
            Ok(NcclResult::SUCCESS) => Ok(()),
            Ok(NcclResult::IN_PROGRESS) => {
                Err(format!("NCCL has not enqueued the exchange within {:?}", self.time_limit))
            }
            Ok(error) => Err(self.error_text(error)),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Makes the NCCL calls of one group of sends and receives.
    ///
    /// # Safety
    /// The conditions of [`Communicator::start_exchange`] hold.
    unsafe fn enqueue_group(
        &self,
        sends: &[(usize, AddressRange)],
        receives: &[(usize, AddressRange)],
    ) -> Result<NcclResult, String> {
        let comm = lock(&self.comm);
        let handle = comm.ok_or("the communicator was aborted")?;
        let started = self.nccl.group_start();
        if started != NcclResult::SUCCESS {
            return Ok(started);
        }
        let mut first_error = None;
        // SAFETY: the communicator and its stream are live; the caller guarantees the ranges.
        unsafe {
            for &(peer, AddressRange { addr, bytes }) in sends {
                let result = self.nccl.send(addr, bytes, peer, handle, self.stream);
                first_error = first_error.or(Some(result).filter(|r| !r.is_accepted()));
            }
            for &(peer, AddressRange { addr, bytes }) in receives {
                let result = self.nccl.receive(addr, bytes, peer, handle, self.stream);
                first_error = first_error.or(Some(result).filter(|r| !r.is_accepted()));
            }
        }
        // The group must end after an error too, because groups belong to the thread.
        let ended = self.nccl.group_end();
        Ok(first_error.unwrap_or(ended))
    }

    /// Returns why these ranges cannot be exchanged; `None` if they can.
    fn invalid_ranges(&self, send: &[Vec<AddressRange>], receive: &[Vec<AddressRange>]) -> Option<String> {
        for (what, of_ranks) in [("sends", send), ("receives", receive)] {
            if of_ranks.len() != self.size {
                return Some(format!("{what} are given for {} ranks, but there are {}", of_ranks.len(), self.size));
            }
        }
        let sizes = |ranges: &[AddressRange]| ranges.iter().map(|range| range.bytes).collect::<Vec<_>>();
        let [sent, received] = [&send[self.rank], &receive[self.rank]].map(|ranges| sizes(ranges));
        if sent != received {
            return Some(format!(
                "this rank sends ranges of {sent:?} bytes to itself, but receives {received:?} bytes from itself"
            ));
        }
        let mut ranges: Vec<(AddressRange, bool)> = Vec::new();
        for (rank, (sent, received)) in send.iter().zip(receive).enumerate() {
            ranges.extend(sent.iter().map(|range| (*range, false)));
            let is_written = |i: usize| rank != self.rank || is_copy(&sent[i], &received[i]);
            ranges.extend(received.iter().enumerate().filter(|(i, _)| is_written(*i)).map(|(_, range)| (*range, true)));
        }
        ranges.retain(|(range, _)| range.bytes > 0);
        ranges.sort_by_key(|(range, _)| range.addr);
        // `end` is the end of all address ranges so far, and `written_end` is the end of the written ranges among them.
        let (mut end, mut written_end) = (0, 0);
        for (AddressRange { addr, bytes }, is_written) in ranges {
            if addr < written_end || is_written && addr < end {
                return Some(format!("a range that is received overlaps another one at {addr:#x}"));
            }
            end = end.max(addr + bytes as u64);
            if is_written {
                written_end = written_end.max(addr + bytes as u64);
            }
        }
        None
    }

    /// Waits until NCCL has finished or enqueued the last call, which NCCL does in the background. Returns NCCL's
    /// state; [`NcclResult::IN_PROGRESS`] means that `time` has passed.
    fn wait_for_nccl(&self, time: Duration) -> Result<NcclResult, CudaError> {
        let start = Instant::now();
        loop {
            let state = self.poll_nccl()?;
            if state != NcclResult::IN_PROGRESS || start.elapsed() > time {
                return Ok(state);
            }
            pause(start);
        }
    }

    /// Returns NCCL's state, or the failure if there is one.
    fn poll_nccl(&self) -> Result<NcclResult, CudaError> {
        if let Some(failure) = &lock(&self.progress).failure {
            return Err(failure.clone());
        }
        let comm = lock(&self.comm);
        // SAFETY: the communicator is live, and the lock keeps other threads away.
        Ok(comm.map_or(NcclResult::SUCCESS, |comm| unsafe { self.nccl.async_error(comm) }))
    }

    fn error_text(&self, result: NcclResult) -> String {
        format!("{} ({})", result.name(), self.nccl.describe(result))
    }

    /// Aborts the communicator, so that nothing waits for its exchanges any more. Returns the first failure.
    fn fail(&self, what: String) -> CudaError {
        let error = CudaError::Exchange { rank: self.rank, size: self.size, what };
        let failure = lock(&self.progress).failure.get_or_insert(error).clone();
        self.abort();
        failure
    }

    fn abort(&self) {
        if let Some(comm) = lock(&self.comm).take() {
            // SAFETY: the communicator is live, and no other call uses it later.
            unsafe { self.nccl.abort(comm) };
        }
    }

    /// Ends the communicator together with the other ranks. Returns false if the other ranks do not end it in time.
    fn leave(&self) -> bool {
        let deadline = Instant::now() + LEAVE_TIME;
        while !lock(&self.progress).in_flight.is_empty() {
            if self.check().is_err() || Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(POLL_PAUSE);
        }
        let Some(comm) = *lock(&self.comm) else { return false };
        // SAFETY: the communicator is live, and no exchange is in flight.
        let ended = unsafe { self.nccl.finalize(comm) };
        if !ended.is_accepted() || !matches!(self.wait_for_nccl(LEAVE_TIME), Ok(NcclResult::SUCCESS)) {
            return false;
        }
        *lock(&self.comm) = None;
        // SAFETY: the communicator has ended, and no other call uses it later.
        unsafe { self.nccl.destroy(comm) };
        true
    }
}

impl Progress {
    /// Removes the completed exchanges from those in flight.
    fn release_completed(&mut self, driver: &dyn Driver) -> Result<(), CudaError> {
        while let Some(oldest) = self.in_flight.front().filter(|e| e.is_enqueued) {
            // SAFETY: the event is live.
            if !unsafe { driver.is_complete(oldest.done) }? {
                break;
            }
            self.free_events.push(oldest.done);
            self.in_flight.pop_front();
            self.finished += 1;
            self.last_progress = Instant::now();
        }
        Ok(())
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if std::thread::panicking() || !self.leave() {
            self.abort();
        }
        let mut progress = lock(&self.progress);
        // SAFETY: after `synchronize` nothing uses the stream and the events. The call returns, because the
        // communicator has ended or was aborted. After a failed kernel the call fails, and nothing runs any more.
        unsafe {
            let _ = self.driver.synchronize(self.stream);
            let in_flight: Vec<_> = progress.in_flight.drain(..).map(|e| e.done).collect();
            for event in progress.free_events.drain(..).chain(in_flight).chain([self.ready]) {
                self.driver.destroy_event(event);
            }
            self.driver.destroy_stream(self.stream);
        }
    }
}

/// Tells whether a range that a rank sends to itself must be copied. If it is received in place, no copy is needed.
fn is_copy(from: &AddressRange, to: &AddressRange) -> bool {
    from.bytes > 0 && from != to
}

/// Pauses between two polls of a wait that began at `start`.
fn pause(start: Instant) {
    if start.elapsed() < POLL_TIME { std::thread::yield_now() } else { std::thread::sleep(POLL_PAUSE) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
