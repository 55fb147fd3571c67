//! `--gpus N` and `--tensor-parallel-size N`: starts N processes of this command on this machine, as `torchrun
//! --nproc-per-node N` does. With `--nodes`, they are a part of the processes of several machines.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use reel_support::diagnostic::TemporaryPaths;
use reel_support::files::temporary_folder_in;
use reel_tools::measure::trace;
use rustix::process::{Pid, Signal, kill_process};

use crate::fail::{self, ErrorReportedByOtherProcess, failed};
use crate::{interrupt, output};

/// The environment variable that names the folder for temporary files of the ranks. This process removes the folder
/// at the end, because a rank that is killed cannot remove its files.
pub const TEMPORARY_FOLDER_VARIABLE: &str = "REEL_TEMPORARY_FOLDER";

/// Time that the other processes get to end by themselves after one has failed; they then get SIGTERM. After the same
/// time again, the remaining processes are killed.
const PATIENCE: Duration = Duration::from_secs(15);
/// Time between two checks of whether processes have ended.
const INTERVAL: Duration = Duration::from_millis(50);

/// The processes that this command starts on this machine.
pub struct LocalProcesses {
    pub count: usize,
    /// The rank of the first of them.
    pub first: usize,
    /// The number of processes of the job, on all machines.
    pub size: usize,
    /// The id of the job, which is the same on all machines; `None` for a job of this machine.
    pub job: Option<String>,
}

impl LocalProcesses {
    /// `count` processes, which are the whole job.
    pub fn of_one_machine(count: usize) -> Self {
        Self { count, first: 0, size: count, job: None }
    }
}

struct Process {
    rank: usize,
    child: Child,
    status: Option<ExitStatus>,
    /// The threads that forward the output of the process. The thread for stderr returns the process's last line if
    /// that line is an error message.
    printers: Vec<JoinHandle<Option<Vec<u8>>>>,
}

/// Runs the processes `local` of this command with its arguments until all have ended. Each process finds its rank in
/// the variables that torchrun sets. Signals are passed on to all processes, and if one process fails, all are ended.
/// `option` is the command-line option that asks for the processes.
///
/// # Errors
/// A process cannot be started, or has failed. If the cause was wrong options or a signal, this process ends with the
/// same exit code and prints nothing more.
pub fn launch_processes(option: &str, local: &LocalProcesses) -> Result<()> {
    // This process writes no trace: rank 0 writes the file of `--trace`.
    trace::discard_trace();
    // From here on, the first Ctrl-C sets the flag and does not end this process.
    let (stop, save) = (interrupt::stop_flag(), interrupt::save_flag());
    let program = std::env::current_exe().map_err(|e| failed(option, e, "start the processes with torchrun"))?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let own_job = || format!("{:016x}", RandomState::new().hash_one(std::process::id()));
    let job = local.job.clone().unwrap_or_else(own_job);
    // The folder has a temporary (hidden) name, so that it is removed with its contents if a signal ends this
    // process.
    let folder = std::env::temp_dir();
    let temporary = temporary_folder_in(&folder, ".reel-ranks-", ".part");
    let temporary = temporary.map_err(|e| output::cannot_write(&folder, e))?;
    let _unfinished = TemporaryPaths::new([temporary.path().to_path_buf()]);
    let mut processes = Vec::new();
    for local_rank in 0..local.count {
        let rank = local.first + local_rank;
        let mut command = Command::new(&program);
        command.args(&arguments).envs([("REEL_LAUNCH", "1"), ("REEL_JOB", &job)]);
        command.env(TEMPORARY_FOLDER_VARIABLE, temporary.path());
        let of_machine = [("LOCAL_RANK", local_rank), ("LOCAL_WORLD_SIZE", local.count)];
        for (name, value) in [("RANK", rank), ("WORLD_SIZE", local.size)].into_iter().chain(of_machine) {
            command.env(name, value.to_string());
        }
        // Each process gets a process group of its own, so that Ctrl-C reaches only this process, which passes it on.
        let started =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn();
        match started {
            Ok(child) => processes.push(Process::new(rank, child)),
            Err(e) => {
                send_all(&processes, Signal::KILL);
                return Err(failed(option, format!("process {rank} cannot be started: {e}"), "give fewer"));
            }
        }
    }
    let mut passed_on = false;
    let mut failure: Option<(usize, ExitStatus)> = None;
    let mut ending: Option<(Instant, Signal)> = None;
    let mut stopped: Option<usize> = None;
    let mut usage_errors = BTreeSet::new();
    while processes.iter().any(|process| process.status.is_none()) {
        thread::sleep(INTERVAL);
        let ended = processes.iter_mut().filter_map(|process| Some((process.rank, process.look()?)));
        let failed = ended.filter(|(_, status)| !status.success()).collect::<Vec<_>>();
        processes.iter_mut().for_each(|process| process.print_last_lines(&mut usage_errors, false));
        // If several processes have failed since the last check, the one that a signal has killed is the cause.
        failure = failure.or(failed.into_iter().min_by_key(|(_, status)| status.signal().is_none()));
        if stop.load(Ordering::SeqCst) && !std::mem::replace(&mut passed_on, true) {
            // Passes on the signal that was received. SIGINT in its place would not work everywhere: processes that a
            // shell script starts in the background ignore it.
            let number = interrupt::signal_exit_code().map_or(0, |code| i32::from(code & 127));
            send_all(&processes, Signal::from_named_raw(number).unwrap_or(Signal::INT));
        }
        if save.swap(false, Ordering::SeqCst) {
            send_all(&processes, Signal::USR1);
        }
        if failure.is_some() {
            // A stopped process (SIGSTOP) ends by no other signal. The others have ended because it was silent.
            for process in processes.iter().filter(|process| process.is_stopped()) {
                stopped = stopped.or(Some(process.rank));
                process.send(Signal::KILL);
            }
            let (since, signal) = *ending.get_or_insert((Instant::now(), Signal::TERM));
            if since.elapsed() > PATIENCE {
                send_all(&processes, signal);
                ending = Some((Instant::now(), Signal::KILL));
            }
        }
    }
    processes.iter_mut().for_each(|process| process.print_last_lines(&mut usage_errors, true));
    let Some((rank, status)) = failure else { return Ok(()) };
    if let Some(rank) = stopped.filter(|_| status.signal().is_none()) {
        let help = "find out what has stopped the process, such as a debugger or kill -STOP";
        return Err(failed(format!("rank {rank}"), "was stopped (SIGSTOP), so the other ranks have ended", help));
    }
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) if code == fail::USAGE_ERROR_EXIT_CODE || code > fail::SIGNAL_EXIT_CODE_BASE => {
            Err(ErrorReportedByOtherProcess { code }.into())
        }
        _ => Err(failed(format!("rank {rank}"), format!("ended with {status}"), "see its message")),
    }
}

impl Process {
    fn new(rank: usize, mut child: Child) -> Self {
        let printer = |from: Option<Box<dyn Read + Send>>, is_error: bool| {
            from.map(|from| thread::spawn(move || print_lines(from, rank, is_error)))
        };
        let out = printer(child.stdout.take().map(|pipe| Box::new(pipe) as _), false);
        let error = printer(child.stderr.take().map(|pipe| Box::new(pipe) as _), true);
        Self { rank, child, status: None, printers: out.into_iter().chain(error).collect() }
    }

    /// Whether a signal has stopped the process, which has not ended.
    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The state follows the program's name, which may contain any character.
        self.status.is_none() && stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
    }

    /// Sends a signal to the process if it is still running.
    fn send(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().filter(|_| self.status.is_none()).and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Checks whether the process has ended. Returns its exit status once, at the first check after its end.
    fn look(&mut self) -> Option<ExitStatus> {
        if self.status.is_some() {
            return None;
        }
        self.status = self.child.try_wait().ok().flatten();
        self.status
    }

    /// Prints the last error message of the process, once it has ended and its output has been read to the end; with
    /// `wait`, waits for the end of its output. All ranks report the same wrong options, so such a message is printed
    /// only once: `usage_errors` has the messages that were printed.
    fn print_last_lines(&mut self, usage_errors: &mut BTreeSet<Vec<u8>>, wait: bool) {
        let Some(status) = self.status.filter(|_| wait || self.printers.iter().all(JoinHandle::is_finished)) else {
            return;
        };
        let is_usage = status.code() == Some(i32::from(fail::USAGE_ERROR_EXIT_CODE));
        for line in self.printers.drain(..).filter_map(|printer| printer.join().ok().flatten()) {
            if !is_usage || usage_errors.insert(line.clone()) {
                print_line(&line, self.rank, true);
            }
        }
    }
}

/// Sends a signal to each process that is still running.
fn send_all(processes: &[Process], signal: Signal) {
    processes.iter().for_each(|process| process.send(signal));
}

/// Prints the lines of a process, except for an error message at the end of its stderr, which is returned.
fn print_lines(from: Box<dyn Read + Send>, rank: usize, is_error: bool) -> Option<Vec<u8>> {
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    let mut held: Option<Vec<u8>> = None;
    while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        held.take().iter().for_each(|line| print_line(line, rank, is_error));
        match is_error && line.starts_with(b"error: ") {
            true => held = Some(std::mem::take(&mut line)),
            false => print_line(&line, rank, is_error),
        }
        line.clear();
    }
    held
}

/// Prints a line of a process: results of rank 0 unchanged, all other lines with the rank's number in front.
fn print_line(line: &[u8], rank: usize, is_error: bool) {
    let prefix = if rank == 0 && !is_error { String::new() } else { format!("[rank {rank}] ") };
    let text = [prefix.as_bytes(), line].concat();
    // Write errors are ignored, because a closed stream must not end the processes.
    let _ = if is_error { std::io::stderr().write_all(&text) } else { std::io::stdout().write_all(&text) };
}
