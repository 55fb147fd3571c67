//! The processes of a job find each other through a file in a folder that they share.
//!
//! Rank 0 listens at a free port and writes its addresses, the port and a random token to the file. The other ranks
//! wait for the file, connect, and send the token. When all ranks are connected, rank 0 removes the file.
//!
//! A file can be stale: an earlier job that crashed left it, possibly with the same job id. In this case the
//! connection is refused, or another program uses the port and does not answer like rank 0. The rank then reads the
//! file again until rank 0 has replaced it.
//!
//! A file of another user, or one that other users can change, is not used: its author could take rank 0's place, and
//! would get the data of the job. A folder in which every user can replace files is refused.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::diagnostic::{Diagnostic, TemporaryPaths, note, print_note_once};
use crate::files::{check_folder_of_own_files, digest::FingerprintBuilder, read_own_file, replace_synced};
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use crate::ranks::control::{ControlConnection, ControlMessage, wait_for, wait_until};
use crate::ranks::error::{RankError, Result, format_ranks};
use crate::ranks::handshake::{ConnectionAcceptor, ConnectionPurpose, HelloMessage, JobToken, connect_to};
use crate::ranks::launch::World;
use crate::ranks::member::JobMember;
use crate::ranks::timeouts::Timeouts;

/// The maximum size of the rendezvous file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The first and the longest pause before a rank reads the file again. The pause doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(320);

/// The interval at which rank 0 checks that no other process has replaced its file.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The maximum time for sending an error to the other ranks before their connections are closed.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// The connections of a rank that has joined its job.
#[derive(Debug)]
pub(crate) struct JobConnections {
    /// All processes of the job, by rank.
    pub members: Vec<JobMember>,
    /// Accepts connections for data.
    pub acceptor: ConnectionAcceptor,
    /// The control connections by rank. Rank 0 has one to each other rank, and each other rank has one to rank 0.
    pub controls: Vec<Option<ControlConnection>>,
}

/// The contents of the rendezvous file.
#[derive(Debug, Serialize, Deserialize)]
struct RendezvousInfo {
    job: String,
    size: usize,
    /// The token of the job in 32 hex digits.
    token: String,
    rank_0: JobMember,
}

impl RendezvousInfo {
    fn token(&self) -> Option<JobToken> {
        JobToken::from_hex(&self.token)
    }
}

/// Tells by its name whether a file is a rendezvous file. A killed job may leave such a file behind.
pub fn is_rendezvous_file(name: &str) -> bool {
    name.strip_prefix("ranks-").is_some_and(|rest| rest.ends_with(".json"))
}

/// Connects the ranks of a job.
///
/// # Errors
/// A rank is missing at the end of the time limit, or has ended; two processes have the same rank, or differ in the
/// number of ranks; no port is free; rank 0 cannot write to the folder, or every user can replace files in it.
pub(crate) fn join(world: &World, folder: &Path, timeouts: &Timeouts) -> Result<JobConnections> {
    let mut job = FingerprintBuilder::default();
    job.add(&world.job, 0);
    check_folder_of_own_files(folder)?;
    let path = folder.join(format!("ranks-{}.json", job.finish()));
    let failed = |e| cannot_listen(world.ports, e);
    let acceptor = ConnectionAcceptor::open(world.rank, world.is_on_one_machine(), world.ports, timeouts.handshake);
    let acceptor = acceptor.map_err(failed)?;
    let member = JobMember::of_this_process(world, acceptor.port().map_err(failed)?)?;
    if world.rank == 0 {
        Coordinator::new(world, path, acceptor, member, *timeouts)?.join()
    } else {
        Joiner { world, path, member, timeouts: *timeouts }.join(acceptor)
    }
}

fn cannot_listen(ports: Option<(u16, u16)>, error: io::Error) -> RankError {
    let port = match ports {
        None => "no port can".to_string(),
        Some((first, last)) if first == last => format!("port {first} cannot"),
        Some((first, last)) => format!("no port from {first} to {last} can"),
    };
    let what = format!("{port} be opened for the other ranks: {error}");
    let help = match error.kind() {
        io::ErrorKind::AddrInUse => "give ports that no other program of this machine uses, one for each rank on it",
        _ => "check the network of this machine and the limit of open files (ulimit -n)",
    };
    Diagnostic::new("", what, help).into()
}

/// The deadline of a wait, and the times at which notes are printed during the wait.
struct Deadline {
    end: Instant,
    next_note: Instant,
    interval: Duration,
}

impl Deadline {
    fn new(timeouts: &Timeouts) -> Self {
        let now = Instant::now();
        Self { end: now + timeouts.join, next_note: now + timeouts.note, interval: timeouts.note }
    }

    /// Prints a note if it is time for one.
    fn note(&mut self, text: impl FnOnce() -> String) {
        let now = Instant::now();
        if now >= self.next_note {
            self.next_note = now + self.interval;
            note!("{}", text());
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }
}

/// The rendezvous file of this process, which is rank 0. Dropping this value removes the file.
struct RendezvousFile {
    path: PathBuf,
    token: JobToken,
    _unfinished: TemporaryPaths,
}

impl RendezvousFile {
    fn write(path: PathBuf, info: &RendezvousInfo, token: JobToken) -> Result<Self> {
        let text = serde_json::to_vec(info).unwrap_or_default();
        let unfinished = TemporaryPaths::new([path.clone()]);
        // The file is private (mode 0600), because only this user may read the token.
        replace_synced(&path, &text, true).map_err(|e| Diagnostic::cannot_write(&path, &e))?;
        Ok(Self { path, token, _unfinished: unfinished })
    }
}

impl Drop for RendezvousFile {
    fn drop(&mut self) {
        // If another process has replaced the file, the file stays.
        if read_info(&self.path).is_ok_and(|info| info.and_then(|info| info.token()) == Some(self.token)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The state of rank 0 while the other ranks join.
struct Coordinator<'a> {
    world: &'a World,
    timeouts: Timeouts,
    member: JobMember,
    acceptor: ConnectionAcceptor,
    file: RendezvousFile,
    next_check: Instant,
    /// The processes that have joined, by rank.
    joined: Vec<Option<(JobMember, ControlConnection)>>,
}

impl<'a> Coordinator<'a> {
    fn new(
        world: &'a World,
        path: PathBuf,
        acceptor: ConnectionAcceptor,
        member: JobMember,
        timeouts: Timeouts,
    ) -> Result<Self> {
        let token = acceptor.token();
        let (job, size) = (world.job.clone(), world.size);
        let contents = RendezvousInfo { job, size, token: token.to_hex(), rank_0: member.clone() };
        let file = RendezvousFile::write(path, &contents, token)?;
        let joined = (0..world.size).map(|_| None).collect();
        Ok(Self { world, timeouts, member, acceptor, file, next_check: Instant::now() + FILE_CHECK_INTERVAL, joined })
    }

    fn join(mut self) -> Result<JobConnections> {
        match self.wait_for_all() {
            Ok(()) => Ok(self.welcome()),
            Err(error) => {
                let deadline = Instant::now() + CLOSE_TIME;
                for (_, mut control) in self.joined.drain(..).flatten() {
                    control.send(&ControlMessage::Failed(error.clone()));
                    control.close(deadline);
                }
                Err(error)
            }
        }
    }

    fn missing(&self) -> Vec<usize> {
        (1..self.world.size).filter(|rank| self.joined[*rank].is_none()).collect()
    }

    fn wait_for_all(&mut self) -> Result<()> {
        let mut deadline = Deadline::new(&self.timeouts);
        while !self.missing().is_empty() {
            self.wait();
            for (hello, stream) in self.acceptor.accept_ready() {
                self.add(hello, ControlConnection::new(stream).map_err(|e| cannot_listen(None, e))?)?;
            }
            self.check_joined()?;
            self.check_file()?;
            deadline.note(|| format!("waiting for {} of {}", format_ranks(&self.missing()), self.world.size));
            if deadline.is_over() {
                return Err(self.missing_ranks());
            }
        }
        Ok(())
    }

    fn wait(&self) {
        let mut events = Vec::new();
        self.acceptor.add_poll_events(&mut events);
        events.extend(self.joined.iter().flatten().map(|(_, control)| control.poll_event()));
        wait_for(&mut events, MAX_PAUSE);
    }

    /// Adds a process that has connected to this rank.
    fn add(&mut self, hello: HelloMessage, mut control: ControlConnection) -> Result<()> {
        let ConnectionPurpose::Join(mut member) = hello.purpose else { return Ok(()) };
        let error = if hello.size != self.world.size || member.rank >= hello.size {
            Some(different_sizes(&self.member, self.world, &member, hello.size))
        } else if member.transport != self.member.transport {
            Some(different_transports(&self.member, &member))
        } else {
            self.member_of_rank(member.rank).map(|first| duplicate_rank_error(first, &member))
        };
        if let Some(error) = error {
            control.send(&ControlMessage::Failed(error.clone()));
            control.close(Instant::now() + CLOSE_TIME);
            return Err(error);
        }
        if let Ok(address) = control.stream().peer_addr() {
            member.put_address_first(address.ip());
        }
        let rank = member.rank;
        self.joined[rank] = Some((member, control));
        Ok(())
    }

    /// Returns the process that has joined as this rank.
    fn member_of_rank(&self, rank: usize) -> Option<&JobMember> {
        if rank == 0 { Some(&self.member) } else { self.joined[rank].as_ref().map(|(member, _)| member) }
    }

    fn check_joined(&mut self) -> Result<()> {
        for (member, control) in self.joined.iter_mut().flatten() {
            if control.receive().1 {
                return Err(ended_early(member));
            }
        }
        Ok(())
    }

    /// Returns an error if another process has replaced the file, because that process is rank 0 too. This call
    /// connects to that process, so that it fails too, together with the ranks that have connected to it.
    fn check_file(&mut self) -> Result<()> {
        if Instant::now() < self.next_check {
            return Ok(());
        }
        self.next_check = Instant::now() + FILE_CHECK_INTERVAL;
        // A file of another user is no process of this job. The other ranks report it.
        let Ok(Some(info)) = read_info(&self.file.path) else { return Ok(()) };
        let Some(token) = info.token().filter(|token| *token != self.file.token) else { return Ok(()) };
        let purpose = ConnectionPurpose::Join(self.member.clone());
        let hello = HelloMessage { from: 0, to: 0, size: self.world.size, purpose };
        for socket in info.rank_0.socket_addresses(None) {
            if connect_to(socket, token, &hello, self.timeouts.handshake, || true).is_ok() {
                return Err(duplicate_rank_error(&info.rank_0, &self.member));
            }
        }
        Ok(())
    }

    fn missing_ranks(&self) -> RankError {
        let missing = self.missing();
        let what = format!(
            "{} of {} {} not joined within {} seconds",
            format_ranks(&missing),
            self.world.size,
            if missing.len() == 1 { "has" } else { "have" },
            self.timeouts.join.as_secs_f64()
        );
        let help = format!(
            "look at the output of the missing ranks, and check that all use the folder {} and reach {} at port {}",
            self.folder().display(),
            self.member.host,
            self.member.port
        );
        RankError { diagnostic: Diagnostic::new("", what, help), rank: missing.first().copied() }
    }

    fn folder(&self) -> &Path {
        self.file.path.parent().unwrap_or(Path::new("."))
    }

    fn welcome(self) -> JobConnections {
        let mut members = vec![self.member];
        let mut controls = vec![None];
        for (member, control) in self.joined.into_iter().flatten() {
            members.push(member);
            controls.push(Some(control));
        }
        for control in controls.iter_mut().flatten() {
            control.send(&ControlMessage::Welcome(members.clone()));
        }
        JobConnections { members, acceptor: self.acceptor, controls }
    }
}

fn different_sizes(rank_0: &JobMember, world: &World, joiner: &JobMember, size: usize) -> RankError {
    let what = format!("counts {size} ranks, but {rank_0} counts {}", world.size);
    let help = "start all processes of the job with the same number of ranks";
    Diagnostic::new(joiner.to_string(), what, help).into()
}

fn different_transports(rank_0: &JobMember, joiner: &JobMember) -> RankError {
    let what = format!("exchanges data by {}, but {rank_0} by {}", joiner.transport, rank_0.transport);
    Diagnostic::new(joiner.to_string(), what, "start the same program on all machines, by one launcher").into()
}

/// Returns the error about two processes that have the same rank.
pub(crate) fn duplicate_rank_error(first: &JobMember, second: &JobMember) -> RankError {
    let place = |member: &JobMember| format!("process {} on {}", member.pid, member.host);
    let what = format!("{} has this rank, and {} has it, too", place(first), place(second));
    let help = "start each rank once, and one job at a time in an output folder";
    Diagnostic::new(format!("rank {}", second.rank), what, help).into()
}

fn ended_early(member: &JobMember) -> RankError {
    let diagnostic = Diagnostic::new(member.to_string(), "ended before all ranks had joined", "look at its output");
    RankError { diagnostic, rank: Some(member.rank) }
}

/// Reads the rendezvous file. Returns `None` if it does not exist or is malformed. Lists the folder first, because
/// NFS caches the absence of a file: opening the file could fail for a while after rank 0 has written it.
///
/// # Errors
/// Another user can have written the file.
fn read_info(path: &Path) -> std::result::Result<Option<RendezvousInfo>, Diagnostic> {
    let mut entries = path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    if !entries.any(|entry| Some(entry.file_name().as_os_str()) == path.file_name()) {
        return Ok(None);
    }
    Ok(read_own_file(path, MAX_FILE_BYTES)?.and_then(|text| serde_json::from_slice(&text).ok()))
}

/// The state of a rank other than 0 while it joins.
struct Joiner<'a> {
    world: &'a World,
    path: PathBuf,
    member: JobMember,
    timeouts: Timeouts,
}

impl Joiner<'_> {
    fn join(&self, mut acceptor: ConnectionAcceptor) -> Result<JobConnections> {
        let mut deadline = Deadline::new(&self.timeouts);
        let mut pause = FIRST_PAUSE;
        loop {
            let obstacle = match read_info(&self.path) {
                // Rank 0 replaces the file, if it can.
                Err(refusal) => {
                    print_note_once(refusal.to_string());
                    refusal.to_string()
                }
                Ok(None) => format!("there is no file {}", self.path.display()),
                Ok(Some(info)) => match self.connect(&info) {
                    Ok((token, control)) => {
                        acceptor.set_token(token);
                        return self.wait_for_welcome(acceptor, control, info.rank_0);
                    }
                    Err(obstacle) => obstacle,
                },
            };
            deadline.note(|| format!("rank {} is waiting for rank 0: {obstacle}", self.world.rank));
            if deadline.is_over() {
                return Err(self.rank_0_not_found(&obstacle));
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(MAX_PAUSE);
        }
    }

    /// Connects to rank 0. The error is a text about what failed.
    fn connect(&self, info: &RendezvousInfo) -> std::result::Result<(JobToken, ControlConnection), String> {
        let token = info.token().ok_or_else(|| format!("{} has no token", self.path.display()))?;
        let purpose = ConnectionPurpose::Join(self.member.clone());
        let hello = HelloMessage { from: self.world.rank, to: 0, size: self.world.size, purpose };
        let mut obstacles = Vec::new();
        for socket in info.rank_0.socket_addresses(self.world.address.as_deref()) {
            match connect_to(socket, token, &hello, self.timeouts.handshake, || true).and_then(ControlConnection::new) {
                Ok(control) => return Ok((token, control)),
                Err(e) => obstacles.push(format!("{socket} ({e})")),
            }
        }
        Err(format!("{} cannot be reached at {}", info.rank_0, obstacles.join(", ")))
    }

    fn wait_for_welcome(
        &self,
        acceptor: ConnectionAcceptor,
        mut control: ControlConnection,
        mut rank_0: JobMember,
    ) -> Result<JobConnections> {
        // Rank 0 reaches its own time limit earlier, and its error names the missing ranks.
        let deadline = Instant::now() + self.timeouts.join + CLOSE_TIME;
        if let Ok(address) = control.stream().peer_addr() {
            rank_0.put_address_first(address.ip());
        }
        loop {
            match control.receive_one() {
                (Some(ControlMessage::Welcome(mut members)), _) if members.len() == self.world.size => {
                    members[0] = rank_0;
                    let mut controls: Vec<_> = (0..members.len()).map(|_| None).collect();
                    controls[0] = Some(control);
                    return Ok(JobConnections { members, acceptor, controls });
                }
                (Some(ControlMessage::Failed(error)), _) => return Err(error),
                (Some(_), _) => {}
                (None, true) => return Err(ended_early(&rank_0)),
                (None, false) if Instant::now() >= deadline => return Err(self.no_answer(&rank_0)),
                (None, false) => {
                    wait_until(&mut [PollFd::new(control.stream(), PollFlags::IN)], deadline);
                }
            }
        }
    }

    fn rank_0_not_found(&self, obstacle: &str) -> RankError {
        let (size, seconds) = (self.world.size, self.timeouts.join.as_secs_f64());
        let what = format!("has not found rank 0 of {size} within {seconds} seconds: {obstacle}");
        let help = "look at the output of rank 0, and check that all ranks use one output folder and reach its machine";
        RankError { diagnostic: Diagnostic::new(format!("rank {}", self.world.rank), what, help), rank: Some(0) }
    }

    fn no_answer(&self, rank_0: &JobMember) -> RankError {
        let what = format!("has not answered within {} seconds", self.timeouts.join.as_secs_f64());
        RankError { diagnostic: Diagnostic::new(rank_0.to_string(), what, "look at its output"), rank: Some(0) }
    }
}
