//! `--gpus N` and `--tensor-parallel-size N`: starts N processes of this command on this machine, as `torchrun
//! --nproc-per-node N` does.

use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use reel_measure::trace;
use rustix::process::{Pid, Signal, kill_process};

use crate::fail::failed;
use crate::interrupt;

/// How long the other processes may take to end by themselves after one has failed; after the same time again, those
/// that are still there are killed.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often the processes are looked at.
const INTERVAL: Duration = Duration::from_millis(50);

struct Process {
    rank: usize,
    child: Child,
    status: Option<ExitStatus>,
    /// The threads that print what the process prints.
    printers: Vec<JoinHandle<()>>,
}

/// Runs `count` processes of this command, with its arguments, until all have ended. Each finds its rank in the
/// variables that torchrun sets. Signals go to all of them, and when one fails, all end. `option` is the option that
/// asks for the processes.
///
/// # Errors
/// A process cannot be started, or has failed.
pub fn run(option: &str, count: usize) -> Result<()> {
    // Rank 0 writes the file of `--trace`.
    trace::leave_trace_to_another_process();
    // From here on the first Ctrl-C sets the flag and does not end this process.
    let (stop, save) = (interrupt::stop_flag(), interrupt::save_flag());
    let program = std::env::current_exe().map_err(|e| failed(option, e, "start the processes by torchrun"))?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let job = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
    let mut processes = Vec::new();
    for rank in 0..count {
        let mut command = Command::new(&program);
        command.args(&arguments).envs([("REEL_LAUNCH", "1"), ("REEL_JOB", &job)]);
        for (name, value) in [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", count), ("LOCAL_WORLD_SIZE", count)]
        {
            command.env(name, value.to_string());
        }
        // A process group of its own, so that Ctrl-C reaches this process alone, which passes it on.
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
    while processes.iter().any(|process| process.status.is_none()) {
        thread::sleep(INTERVAL);
        let ended = processes.iter_mut().filter_map(|process| Some((process.rank, process.look()?)));
        let failed = ended.filter(|(_, status)| !status.success()).collect::<Vec<_>>();
        // If several processes have failed since the last look, the cause is one that a signal has killed.
        failure = failure.or(failed.into_iter().min_by_key(|(_, status)| status.signal().is_none()));
        if stop.load(Ordering::SeqCst) && !std::mem::replace(&mut passed_on, true) {
            // The signal that has come, because a process may ignore another one: those that a shell script starts in
            // the background ignore SIGINT.
            let number = interrupt::exit_code().map_or(0, |code| i32::from(code & 127));
            send_all(&processes, Signal::from_named_raw(number).unwrap_or(Signal::INT));
        }
        if save.swap(false, Ordering::SeqCst) {
            send_all(&processes, Signal::USR1);
        }
        if failure.is_some() {
            let (since, signal) = *ending.get_or_insert((Instant::now(), Signal::TERM));
            if since.elapsed() > PATIENCE {
                send_all(&processes, signal);
                ending = Some((Instant::now(), Signal::KILL));
            }
        }
    }
    processes.into_iter().flat_map(|process| process.printers).for_each(|printer| drop(printer.join()));
    match failure {
        None => Ok(()),
        Some((rank, status)) => Err(failed(format!("rank {rank}"), format!("ended with {status}"), "see its message")),
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

    /// Returns how the process has ended, the first time after its end.
    fn look(&mut self) -> Option<ExitStatus> {
        if self.status.is_some() {
            return None;
        }
        self.status = self.child.try_wait().ok().flatten();
        self.status
    }
}

/// Sends a signal to each process that runs.
fn send_all(processes: &[Process], signal: Signal) {
    for process in processes.iter().filter(|process| process.status.is_none()) {
        if let Some(pid) = i32::try_from(process.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
}

/// Prints the lines of a process: rank 0's results as they are, all else after the number of its rank.
fn print_lines(from: Box<dyn Read + Send>, rank: usize, is_error: bool) {
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        let prefix = if rank == 0 && !is_error { String::new() } else { format!("[rank {rank}] ") };
        let text = [prefix.as_bytes(), &line].concat();
        // A closed stream must not end the processes.
        let _ = if is_error { std::io::stderr().write_all(&text) } else { std::io::stdout().write_all(&text) };
        line.clear();
    }
}
