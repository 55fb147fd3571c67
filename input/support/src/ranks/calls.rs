//! The calls with which ranks exchange data.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::diagnostic::{Diagnostic, resource_shortage_help};
use crate::files::fingerprint::bytes_fingerprint;

use crate::ranks::agreement::{Fact, difference};
use crate::ranks::call::{Call, CallKind};
use crate::ranks::error::{RankError, Result};
use crate::ranks::exchange::{ExchangeError, Transfer};
use crate::ranks::launch::{Transport, World};
use crate::ranks::link::{CloseAction, DataLink};
use crate::ranks::member::JobMember;
use crate::ranks::mesh::SocketMesh;
use crate::ranks::rendezvous;
use crate::ranks::shared::{RankState, WatcherRequest};
use crate::ranks::timeouts::Timeouts;
use crate::ranks::traffic::{Traffic, TrafficCounters};
use crate::ranks::watch::{self, OnFailure};

/// The maximum time that [`Ranks::fail_job`] waits until the other ranks know of the failure.
const FAIL_TIME: Duration = Duration::from_secs(5);

/// The maximum time that all ranks need to close their transport after all have left.
const CLOSE_TIME: Duration = Duration::from_secs(30);

/// A handle to all ranks of a job. Each rank has its own.
///
/// All ranks make the same calls ([`barrier`](Ranks::barrier), [`broadcast`](Ranks::broadcast),
/// [`all_gather`](Ranks::all_gather), [`all_to_all_into`](Ranks::all_to_all_into)) in the same order and with the same
/// names. Errors show the name of a call, so it should be specific, such as `gradients 17 of step 5`. Only the first
/// 256 bytes of the name count.
///
/// If several threads of a rank make calls, the calls run one after the other.
///
/// # Errors
/// When the job has failed, the running call and all later ones return the same error, on all ranks. A job fails
/// - if a rank ends without leaving, or sends no heartbeats for [`Timeouts::silence`];
/// - if a call waits for a rank that has left, or longer than [`Timeouts::call`] for one that is alive;
/// - if ranks make different calls, or one gives data of an unexpected length;
/// - if a rank calls [`Ranks::fail_job`].
#[derive(Debug)]
pub struct Ranks {
    world: World,
    /// `None` if this rank is the only one.
    job: Option<Job>,
    counters: TrafficCounters,
    timeouts: Timeouts,
}

#[derive(Debug)]
struct Job {
    rank: usize,
    members: Vec<JobMember>,
    timeouts: Timeouts,
    shared: Arc<RankState>,
    /// `None` before the link is open, and after this rank has left.
    link: Mutex<Option<DataLink>>,
    /// `None` after this rank has left.
    watcher: Option<JoinHandle<Option<OnFailure>>>,
}

impl Ranks {
    /// Joins the job that `world` describes, through a file in `folder`, which all ranks share. Returns when all ranks
    /// have joined. A job of one rank needs no folder and no network.
    ///
    /// `on_failure` is called from the watching thread, at most once, if the job fails and no call returns the
    /// failure within [`Timeouts::notice`]. In this case the other threads may be waiting for something else, such as
    /// a GPU, that cannot complete without the failed rank. The function should end this wait or the process. It must
    /// not use these ranks.
    ///
    /// # Errors
    /// - A rank is missing when [`Timeouts::join`] is over, or ends before all have joined.
    /// - Two processes have the same rank, or differ in the number of ranks.
    /// - The folder cannot be written, no port is free, or no thread can be created.
    /// - The MPI library does not fit, or has been used by an earlier job of this process.
    ///
    /// All ranks that have connected to rank 0 get its error.
    pub fn join(world: World, folder: &Path, timeouts: Timeouts, on_failure: OnFailure) -> Result<Self> {
        let counters = TrafficCounters::default();
        if world.size == 1 {
            return Ok(Self { world, job: None, counters, timeouts });
        }
        let joined = rendezvous::join(&world, folder, &timeouts)?;
        let (rank, members, token) = (world.rank, joined.members.clone(), joined.acceptor.token());
        let shared = Arc::new(RankState::new(world.size).map_err(|e| no_event(&e))?);
        let watcher = Some(watch::start_watching_thread(rank, joined, &shared, &timeouts, on_failure)?);
        let mesh = SocketMesh::new(rank, members.clone(), token, timeouts);
        let job = Job { rank, members, timeouts, shared, link: Mutex::new(None), watcher };
        // The watching thread must already run here, because initializing MPI waits for the other ranks without
        // noticing failed ones.
        let link = DataLink::open(&world, mesh).inspect_err(|e| job.fail(&e.to_string()))?;
        *job.link() = Some(link);
        Ok(Self { world, job: Some(job), counters, timeouts })
    }

    /// The number of this process, from 0 to [`Ranks::size`] - 1.
    pub fn rank(&self) -> usize {
        self.world.rank
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.world.size
    }

    /// The rank and job of this process.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The transport of the data. A job of one rank transports no data.
    pub fn transport(&self) -> Transport {
        self.world.transport()
    }

    /// The data that this rank has exchanged since it joined.
    pub fn traffic(&self) -> Traffic {
        self.counters.read()
    }

    /// Returns the failure if the job has failed. Does not wait.
    ///
    /// # Errors
    /// The job has failed.
    pub fn check(&self) -> Result<()> {
        self.job.as_ref().map_or(Ok(()), |job| job.shared.check())
    }

    /// Returns an error if the job has failed, or if a rank has sent no heartbeats for a quarter of
    /// [`Timeouts::silence`]. Rank 0 knows this of all ranks, the other ranks know it of rank 0. Does not wait.
    ///
    /// # Errors
    /// The job has failed; a rank is silent.
    pub fn check_heartbeats(&self) -> Result<()> {
        self.job.as_ref().map_or(Ok(()), |job| job.shared.check_heartbeats())
    }

    /// The time limits with which this rank has joined.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Waits until all ranks have called this function.
    ///
    /// # Errors
    /// The job fails; see [`Ranks`].
    pub fn barrier(&self, name: &str) -> Result<()> {
        let Some(job) = &self.job else { return Ok(()) };
        job.call(CallKind::Barrier, name, |link, call| {
            let notify = |peer| Transfer::new(peer).with_send(call, &[]);
            let wait = |peer| Transfer::new(peer).with_receive();
            // Rank 0 waits for all other ranks, and then notifies them.
            let (first, second): (Vec<_>, Vec<_>) = match job.rank {
                0 => (job.others().map(wait).collect(), job.others().map(notify).collect()),
                _ => (vec![notify(0)], vec![wait(0)]),
            };
            link.exchange(&job.shared, call, first)?;
            link.exchange(&job.shared, call, second).map(drop)
        })
    }

    /// Returns the bytes of rank `root` on all ranks. `root` passes `Some`, the other ranks pass `None`. The call may
    /// return on `root` before the other ranks have the bytes.
    ///
    /// # Errors
    /// The job fails, see [`Ranks`].
    ///
    /// # Panics
    /// The root passes `None`, another rank passes `Some`, or `root` is not below the number of ranks.
    pub fn broadcast(&self, name: &str, root: usize, bytes: Option<Vec<u8>>) -> Result<Vec<u8>> {
        assert!(root < self.size(), "broadcast '{name}': there is no rank {root}");
        assert_eq!(
            self.rank() == root,
            bytes.is_some(),
            "broadcast '{name}': the root, and only the root, passes bytes"
        );
        let Some(job) = &self.job else { return Ok(bytes.unwrap_or_default()) };
        let received = job.call(CallKind::Broadcast, name, |link, call| {
            let transfers = match &bytes {
                Some(bytes) => job.others().map(|peer| Transfer::new(peer).with_send(call, bytes)).collect(),
                None => vec![Transfer::new(root).with_receive()],
            };
            link.exchange(&job.shared, call, transfers)
        })?;
        let Some(bytes) = bytes else {
            let bytes = received.into_iter().next().unwrap_or_default();
            self.counters.add(CallKind::Broadcast, 0, bytes.len());
            return Ok(bytes);
        };
        self.counters.add(CallKind::Broadcast, bytes.len() * (self.size() - 1), 0);
        Ok(bytes)
    }

    /// Returns the bytes that each rank has passed, by rank. Their lengths may differ.
    ///
    /// # Errors
    /// The job fails, see [`Ranks`].
    pub fn all_gather(&self, name: &str, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut received = match &self.job {
            None => Vec::new(),
            Some(job) => job.call(CallKind::AllGather, name, |link, call| {
                let transfer = |peer| Transfer::new(peer).with_send(call, mine).with_receive();
                link.exchange(&job.shared, call, job.others().map(transfer).collect())
            })?,
        };
        let received_bytes = received.iter().map(Vec::len).sum();
        self.counters.add(CallKind::AllGather, mine.len() * (self.size() - 1), received_bytes);
        received.insert(self.rank(), mine.to_vec());
        Ok(received)
    }

    /// Sends `send[r]` to each rank r, and writes the bytes that rank r sends to this rank into `receive[r]`, which
    /// must have their length. Allocates no memory for them.
    ///
    /// # Errors
    /// The job fails, see [`Ranks`]. After an error, the contents of `receive` are unspecified.
    ///
    /// # Panics
    /// The length of `send` or `receive` is not the number of ranks, or this rank's own parts differ in length.
    pub fn all_to_all_into(&self, name: &str, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<()> {
        assert_eq!(send.len(), self.size(), "all_to_all '{name}': parts to send");
        assert_eq!(receive.len(), self.size(), "all_to_all '{name}': parts to receive");
        let here = self.rank();
        receive[here].copy_from_slice(send[here]);
        let Some(job) = &self.job else { return Ok(()) };
        let received_bytes = receive.iter().map(|part| part.len()).sum::<usize>() - send[here].len();
        job.call(CallKind::AllToAll, name, |link, call| {
            let mut transfers = Vec::with_capacity(send.len());
            for (peer, buffer) in receive.iter_mut().enumerate().filter(|(peer, _)| *peer != here) {
                transfers.push(Transfer::new(peer).with_send(call, send[peer]).with_receive_into(buffer));
            }
            link.exchange(&job.shared, call, transfers)
        })?;
        let sent_bytes = send.iter().map(|part| part.len()).sum::<usize>() - send[here].len();
        self.counters.add(CallKind::AllToAll, sent_bytes, received_bytes);
        Ok(())
    }

    /// Checks that all ranks pass the same facts about themselves, such as options and fingerprints of files. The ranks
    /// exchange one digest each, and the facts only if the digests differ. `name` is the name of the call.
    ///
    /// # Errors
    /// All ranks return the same error, which names the first fact that differs, its values and the ranks. The job
    /// fails, see [`Ranks`].
    pub fn check_same(&self, name: &str, facts: &[Fact]) -> Result<()> {
        let Some(job) = &self.job else { return Ok(()) };
        let json = serde_json::to_vec(facts).unwrap_or_default();
        let digests = self.all_gather(name, bytes_fingerprint(&json).as_bytes())?;
        if digests.iter().all(|digest| *digest == digests[0]) {
            return Ok(());
        }
        Err(difference(&job.members, &self.all_gather(name, &json)?))
    }

    /// Ends the job because of an error of this rank: the calls of all ranks return `rank 3: TEXT`. Returns when rank
    /// 0 has notified the other ranks. Does nothing if the job has already failed.
    pub fn fail_job(&self, text: &str) {
        if let Some(job) = &self.job {
            job.fail(text);
        }
    }

    /// Leaves the job, which is the normal end. Rank 0 watches over the other ranks until they have left, so on rank
    /// 0 this call waits for them, at most [`Timeouts::call`]. With MPI, each rank waits for all ranks. Dropping the
    /// value does the same, but hides the error. If a thread drops it during a panic, the job fails.
    ///
    /// If another rank later waits for this rank in a call, the job fails, and the error names this rank. A rank that
    /// leaves because of an error should first call [`Ranks::fail_job`], so that the other ranks print the reason.
    ///
    /// # Errors
    /// The job has failed, or fails before this rank has left.
    pub fn leave(mut self) -> Result<()> {
        self.job.as_mut().map_or(Ok(()), Job::leave)
    }
}

impl Job {
    fn others(&self) -> impl Iterator<Item = usize> {
        let rank = self.rank;
        (0..self.members.len()).filter(move |other| *other != rank)
    }

    /// Runs a call. The function `work` exchanges the call's data.
    fn call<T>(
        &self,
        kind: CallKind,
        name: &str,
        work: impl FnOnce(&mut DataLink, &Call) -> Result<T, ExchangeError>,
    ) -> Result<T> {
        let mut link = self.link();
        self.shared.check()?;
        let Some(link) = link.as_mut() else { return Err(self.error_of(self.rank, "has left")) };
        let call = link.next_call(kind, name);
        self.shared.begin_call(&call);
        let result = work(link, &call).map_err(|error| self.fail_call(error, &call));
        self.shared.end_call();
        result
    }

    fn link(&self) -> MutexGuard<'_, Option<DataLink>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails the job because of an error in this call. Returns the failure that rank 0 decides on, which can be
    /// another one.
    fn fail_call(&self, error: ExchangeError, call: &Call) -> RankError {
        // Rank 0 answers within seconds. If rank 0 has ended, the watching thread notices it within the time of
        // silence.
        let limit = self.timeouts.silence + FAIL_TIME;
        match error {
            ExchangeError::Invalid(error) => {
                self.shared.request_failure(WatcherRequest::Report(error.clone()), limit, error)
            }
            ExchangeError::Unreachable(about) => {
                let otherwise = self.error_of(about, &format!("has closed its connection to rank {}", self.rank));
                let request = WatcherRequest::Suspicion { about, call: call.clone() };
                self.shared.request_failure(request, limit, otherwise)
            }
            ExchangeError::JobFailed => match self.shared.check() {
                Err(error) => error,
                Ok(()) => self.error_of(self.rank, "is in a job that has failed"),
            },
        }
    }

    fn error_of(&self, rank: usize, what: &str) -> RankError {
        let diagnostic = Diagnostic::new(self.members[rank].to_string(), what, "look at the output of all ranks");
        RankError { diagnostic, rank: Some(rank) }
    }

    fn fail(&self, text: &str) {
        let error =
            RankError { diagnostic: Diagnostic::new(format!("rank {}", self.rank), text, ""), rank: Some(self.rank) };
        if self.shared.check().is_ok() {
            self.shared.request_failure(WatcherRequest::Report(error.clone()), FAIL_TIME, error);
        }
    }

    fn leave(&mut self) -> Result<()> {
        let Some(watcher) = self.watcher.take() else { return Ok(()) };
        let link = self.link().take();
        // This closes the connections, so ranks that wait for this rank notice that it has left.
        let closing = link.and_then(DataLink::close);
        if self.rank == 0 {
            self.shared.begin_call(&Call::new(CallKind::Leave, "", 0));
        }
        self.shared.leave();
        // If the watching thread has panicked, its panic was already printed.
        let on_failure = watcher.join().ok().flatten();
        self.shared.check()?;
        if let Some(closing) = closing {
            self.close(closing, on_failure);
        }
        Ok(())
    }
}

impl Job {
    /// Runs the last action, `MPI_Finalize`, which waits for all ranks. If a rank is killed during these
    /// milliseconds, `on_failure` ends the wait, because the watching thread has already ended.
    fn close(&self, closing: CloseAction, on_failure: Option<OnFailure>) {
        let error =
            self.error_of(self.rank, &format!("has waited {} s for the end of all ranks", CLOSE_TIME.as_secs()));
        let (done, end) = mpsc::channel::<()>();
        // If this thread cannot be created, only the launcher can end the wait.
        let _ = std::thread::Builder::new().name("ranks-end".to_owned()).spawn(move || {
            if end.recv_timeout(CLOSE_TIME) == Err(RecvTimeoutError::Timeout)
                && let Some(on_failure) = on_failure
            {
                on_failure(&error);
            }
        });
        closing();
        drop(done);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.watcher.is_some() && std::thread::panicking() {
            self.fail("it panicked");
        }
        let _ = self.leave();
    }
}

fn no_event(error: &std::io::Error) -> RankError {
    let help = resource_shortage_help(error).unwrap_or("check the limits of this process (ulimit -a)");
    Diagnostic::new("", format!("an event for the ranks of the job cannot be created: {error}"), help).into()
}
