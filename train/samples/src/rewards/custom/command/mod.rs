//! A program of the user that replies to rows: a custom reward or a tool, by shell command or Python function. The
//! process is started once and gets rows in batches; each batch has a deadline.
//!
//! [`CommandPipes`] writes batches and reads lines. A thread reads standard error and keeps its last line. A guard
//! process kills the command's process group when this process ends, even if this process is killed itself.

mod pipes;
mod program;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde_json::{Value, json};

use super::reply::{
    RewardReply, custom_reward_error, format_seconds, parse_json_with_nan, parse_reply, shorten_for_message,
};
use super::wait::{NoMessageReason, STOPPED_HELP, STOPPED_PROBLEM};
use super::{FUNCTION_FLAG, ProgramLog, TRAINER_STATE, TrainerState};
use crate::error::{Error, Result};
use pipes::CommandPipes;
use program::{UserProgram, limit_environment};

/// Maximum length of a line of standard error in bytes.
const MAX_STDERR_LINE_BYTES: u64 = 1 << 20;

/// Time that the program has to exit after its input is closed.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// Interval at which a wait for a reward checks whether the process has exited. A closed output does not show this,
/// because a child of the process may hold the output open.
const EXIT_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Time to wait for the rest of standard error after the process has exited.
const STDERR_GRACE: Duration = Duration::from_millis(500);

/// Time to wait for an extra output line after the first batch. Programs that print other text usually do so from the
/// start. Extra lines that come later are detected before the next batch is sent.
const EXTRA_LINE_WAIT: Duration = Duration::from_millis(5);

/// The field that is added to each row: the row's index in the batch and the batch's number of rows.
const BATCH_FIELD: &str = "_batch";

/// What a program of the user is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Reward,
    Tool,
}

impl Purpose {
    pub(super) fn command_flag(self) -> &'static str {
        if self == Purpose::Reward { "--reward-command" } else { "--tool-command" }
    }

    pub(super) fn function_flag(self) -> &'static str {
        if self == Purpose::Reward { FUNCTION_FLAG } else { "--tools" }
    }
}

/// How the replies of a program are read, and the words of its errors.
pub(super) trait Reply: Sized {
    const PURPOSE: Purpose;
    /// The replies in error messages.
    const PLURAL: &'static str;
    const TIMEOUT_HELP: &'static str;
    const LINE_HELP: &'static str;

    /// Reads a line of output. The error text says what the line holds instead of a reply.
    fn parse(line: &str) -> Result<Self, String>;
}

impl Reply for RewardReply {
    const PURPOSE: Purpose = Purpose::Reward;
    const PLURAL: &'static str = "rewards";
    const TIMEOUT_HELP: &'static str =
        "raise --reward-timeout, make the command faster, and flush its output after each batch";
    const LINE_HELP: &'static str =
        "write a number, {\"reward\": number} or null per row and nothing else on standard output";

    fn parse(line: &str) -> Result<Self, String> {
        let value =
            parse_json_with_nan(line).map_err(|_| format!("is `{}`, not a JSON number", shorten_for_message(line)))?;
        parse_reply(&value)
    }
}

/// The reply of a tool: any JSON value.
impl Reply for Value {
    const PURPOSE: Purpose = Purpose::Tool;
    const PLURAL: &'static str = "replies";
    const TIMEOUT_HELP: &'static str = "raise --tool-timeout, make the tool faster, and flush its output";
    const LINE_HELP: &'static str = "write one line of JSON per call and nothing else on standard output";

    fn parse(line: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|_| format!("is `{}`, not JSON", shorten_for_message(line)))
    }
}

/// A shell command or function that replies to rows, and its process, which the first batch starts.
#[derive(Debug)]
pub(super) struct CommandProcess<R> {
    program: UserProgram,
    timeout: Duration,
    /// The environment variables that the command gets in addition to [`BASIC_ENVIRONMENT`]; `None` passes on the whole
    /// environment.
    environment: Option<Vec<String>>,
    /// The log for the lines that the command writes to standard error.
    log: Option<ProgramLog>,
    running: Option<RunningCommand>,
    /// The batch that is being computed.
    batch: Option<SentBatch<R>>,
}

/// A batch that was sent to the command.
#[derive(Debug)]
struct SentBatch<R> {
    rows: usize,
    deadline: Instant,
    /// The replies to the batch that were received so far.
    replies: Vec<R>,
}

impl<R: Reply> CommandProcess<R> {
    pub(super) fn new(command_line: &str, timeout: Duration) -> Result<Self> {
        Ok(Self::of(UserProgram::from_shell_command(command_line, R::PURPOSE)?, timeout))
    }

    /// Creates the process of a Python function, `FILE.py:NAME` or `MODULE:NAME`.
    pub(super) fn from_python_function(function: &str, timeout: Duration) -> Result<Self> {
        Ok(Self::of(UserProgram::from_python_function(function, R::PURPOSE)?, timeout))
    }

    /// Looks for a Python function without running the code of its module.
    pub(super) fn find_python_function(function: &str, environment: Option<&[String]>) -> Result<()> {
        UserProgram::find_python_function(function, environment)
    }

    fn of(program: UserProgram, timeout: Duration) -> Self {
        Self { program, timeout, environment: None, log: None, running: None, batch: None }
    }

    /// Passes the lines of standard error to `log`. The command must not have been started yet.
    pub(super) fn set_log(&mut self, log: ProgramLog) {
        self.log = Some(log);
    }

    /// Limits the environment of the command, which must not have been started yet.
    pub(super) fn set_environment(&mut self, names: Vec<String>) {
        self.environment = Some(names);
    }

    /// Sends a batch of rows to the command. Starts the command if it does not run.
    pub(super) fn send_batch(&mut self, rows: &[Value], state: Option<&TrainerState>) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let lines = batch_lines(rows, state)?;
        if self.batch.take().is_some() {
            // Replies to an earlier batch were not read, and the command may still be writing them. So the command is
            // ended.
            self.running = None;
        }
        let mut running = match self.running.take() {
            Some(running) => running,
            None => RunningCommand::start(&self.program, self.environment.as_deref(), self.log.clone())
                .map_err(|e| self.error(format!("cannot be started: {e}"), "check that the shell `sh` is installed"))?,
        };
        if let Err(failure) = running.send(&lines) {
            return Err(self.explain(&failure, rows.len(), &mut running));
        }
        self.running = Some(running);
        self.batch = Some(SentBatch { rows: rows.len(), deadline, replies: Vec::with_capacity(rows.len()) });
        Ok(())
    }

    /// Waits for the replies to the batch, at most until `until` if it is given. Returns `None` if some replies are
    /// still missing by then. After an error the process is killed.
    pub(super) fn wait_for_replies(&mut self, until: Option<Instant>, stop: &AtomicBool) -> Option<Result<Vec<R>>> {
        let (mut running, mut batch) = (self.running.take()?, self.batch.take()?);
        match running.receive(&mut batch, until, stop) {
            Ok(true) => {
                self.running = Some(running);
                Some(Ok(batch.replies))
            }
            Ok(false) => {
                (self.running, self.batch) = (Some(running), Some(batch));
                None
            }
            Err(failure) => Some(Err(self.explain(&failure, batch.rows, &mut running))),
        }
    }

    /// An error of the program.
    pub(super) fn error(&self, what: impl std::fmt::Display, help: &str) -> Error {
        custom_reward_error(self.program.flag(), self.program.command_or_function(), what, help)
    }

    fn explain(&self, failure: &BatchFailure, rows: usize, running: &mut RunningCommand) -> Error {
        match failure {
            BatchFailure::Timeout(got) => {
                let (time, replies) = (format_seconds(self.timeout), R::PLURAL);
                self.error(format!("timed out after {time} with {got} of {rows} {replies}"), R::TIMEOUT_HELP)
            }
            BatchFailure::Stopped => self.error(STOPPED_PROBLEM, STOPPED_HELP),
            BatchFailure::Ended(got) => {
                let how = running.describe_exit();
                self.error(format!("{how} after {got} of {rows} {}", R::PLURAL), self.program.help_after_exit())
            }
            BatchFailure::ExtraLine => self.error(
                format!("wrote more lines than the {rows} rows of its batch"),
                "write one line per row and nothing else on standard output",
            ),
            BatchFailure::UnexpectedLine => self.error(
                "wrote a line before it was given a batch",
                "write one line per row and nothing else on standard output",
            ),
            BatchFailure::BadLine(index, why) => {
                self.error(format!("line {} of its output {why}", index + 1), R::LINE_HELP)
            }
        }
    }
}

/// Returns the lines that the command reads for a batch: one JSON object per row.
fn batch_lines(rows: &[Value], state: Option<&TrainerState>) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let mut row = match row {
            Value::Object(fields) => fields.clone(),
            _ => {
                return Err(Error::reward(
                    format!("row {index}"),
                    "is not an object",
                    "give a JSON object with the columns of the row",
                ));
            }
        };
        let mut batch = json!({"index": index, "size": rows.len()});
        if let Some(state) = state {
            batch[TRAINER_STATE] = json!(state);
        }
        if row.insert(BATCH_FIELD.to_string(), batch).is_some() {
            return Err(Error::reward(
                BATCH_FIELD,
                "is a column of the data",
                "rename the column; custom rewards get each row's position in the batch in a field of this name",
            ));
        }
        lines.extend(Value::Object(row).to_string().into_bytes());
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Why the scoring of a batch failed.
#[derive(Debug)]
enum BatchFailure {
    /// The deadline passed when this many rewards of the batch had been received.
    Timeout(usize),
    Stopped,
    /// The command closed its output when this many rewards of the batch had been received.
    Ended(usize),
    /// The command wrote an output line after the last row's reward.
    ExtraLine,
    /// The command wrote an output line before the batch was sent.
    UnexpectedLine,
    /// The output line with this index in the batch holds no reward; the text says why.
    BadLine(usize, String),
}

/// Shell script of the guard process. It waits for the end of its standard input, which only this process holds open,
/// and then kills the process group `$0`.
const GUARD_SCRIPT: &str = "trap '' USR1; read -r _; kill -s KILL -- -\"$0\"";

/// A running command. When this value is dropped, the command's input is closed, and the command has [`EXIT_GRACE`] to
/// exit before it is killed.
#[derive(Debug)]
struct RunningCommand {
    child: Child,
    /// The guard process, which kills the process group if this process ends first; `None` until the guard is started.
    guard: Option<Child>,
    pipes: CommandPipes,
    /// Whether the command has answered at least one batch with exactly one line per row.
    has_replied_correctly: bool,
    /// The last line of standard error that is not blank.
    last_stderr_line: Arc<Mutex<String>>,
    /// The sender of this channel is dropped when standard error is closed.
    stderr_end: Receiver<()>,
}

impl RunningCommand {
    fn start(program: &UserProgram, environment: Option<&[String]>, log: Option<ProgramLog>) -> std::io::Result<Self> {
        let mut command = program.command();
        limit_environment(&mut command, environment);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
        let last_stderr_line = Arc::new(Mutex::new(String::new()));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let last_line = Arc::clone(&last_stderr_line);
        let (stderr_open, stderr_end) = mpsc::channel::<()>();
        let pipes = CommandPipes::new(stdin, stdout).inspect_err(|_| drop(child.kill()))?;
        // From here on, an early return drops `running`, and its destructor ends the process.
        let mut running =
            Self { child, guard: None, pipes, has_replied_correctly: false, last_stderr_line, stderr_end };
        running.guard = Some(start_guard(running.child.id())?);
        thread::Builder::new().name("custom reward".into()).spawn(move || {
            stderr.into_iter().for_each(|pipe| read_stderr(pipe, &last_line, log.as_ref()));
            drop(stderr_open);
        })?;
        Ok(running)
    }

    /// Sends the lines of a batch to the command.
    fn send(&mut self, lines: &[u8]) -> Result<(), BatchFailure> {
        match self.pipes.next_line(Instant::now(), &AtomicBool::new(false)) {
            Ok(_) => return Err(BatchFailure::UnexpectedLine),
            Err(NoMessageReason::Disconnected) => return Err(BatchFailure::Ended(0)),
            Err(NoMessageReason::Timeout | NoMessageReason::Stopped) => {}
        }
        self.pipes.send(lines);
        Ok(())
    }

    /// Reads one reply per row, at most until `until` if it is given. Returns true if all replies to the batch have
    /// been read.
    fn receive<R: Reply>(
        &mut self,
        batch: &mut SentBatch<R>,
        until: Option<Instant>,
        stop: &AtomicBool,
    ) -> Result<bool, BatchFailure> {
        let end = until.unwrap_or(batch.deadline).min(batch.deadline);
        // The time at which the process was first seen to have exited. Its output may still be in the pipe.
        let mut exited_at = None;
        while batch.replies.len() < batch.rows {
            let index = batch.replies.len();
            let next_check = end.min(Instant::now() + EXIT_CHECK_INTERVAL);
            let line = match self.pipes.next_line(next_check, stop) {
                Ok(line) => line,
                Err(NoMessageReason::Timeout) if next_check < end => {
                    if self.wait(Instant::now()).is_some()
                        && exited_at.get_or_insert_with(Instant::now).elapsed() >= EXIT_GRACE
                    {
                        return Err(BatchFailure::Ended(index));
                    }
                    continue;
                }
                Err(NoMessageReason::Timeout) if end < batch.deadline => return Ok(false),
                Err(NoMessageReason::Timeout) => return Err(BatchFailure::Timeout(index)),
                Err(NoMessageReason::Disconnected) => return Err(BatchFailure::Ended(index)),
                Err(NoMessageReason::Stopped) => return Err(BatchFailure::Stopped),
            };
            exited_at = None;
            let reply = line.and_then(|line| R::parse(&line));
            batch.replies.push(reply.map_err(|why| BatchFailure::BadLine(index, why))?);
        }
        let wait = if self.has_replied_correctly { Duration::ZERO } else { EXTRA_LINE_WAIT };
        if self.pipes.next_line(Instant::now() + wait, &AtomicBool::new(false)).is_ok() {
            return Err(BatchFailure::ExtraLine);
        }
        self.has_replied_correctly = true;
        Ok(true)
    }

    /// Describes how the process ended, with its last line of standard error.
    fn describe_exit(&mut self) -> String {
        let status = self.wait(Instant::now() + EXIT_GRACE);
        // The rest of standard error may still be in the pipe. The wait is short, because a child process may keep
        // the pipe open.
        let _ = self.stderr_end.recv_timeout(STDERR_GRACE);
        let message = self.last_stderr_line.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let how = match status {
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exited with code {code}"),
                (None, Some(signal)) => format!("was killed by signal {signal}"),
                (None, None) => "ended".to_string(),
            },
            None => "closed its standard output".to_string(),
        };
        if message.is_empty() { how } else { format!("{how} ({message})") }
    }

    /// Waits for the process and returns its exit status; `None` if it does not exit before `deadline`. The process
    /// is not reaped (`WNOWAIT`), so the kernel does not reuse its id, which is also the id of its process group.
    fn wait(&mut self, deadline: Instant) -> Option<ExitStatus> {
        let mut pause = Duration::from_micros(200);
        loop {
            let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if let Some(Ok(Some(status))) = self.pid().map(|pid| waitid(WaitId::Pid(pid), peek)) {
                // Encodes the status in the format of wait(2).
                let raw = status.exit_status().map_or(status.terminating_signal().unwrap_or(0), |code| code << 8);
                return Some(ExitStatus::from_raw(raw));
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        self.pipes.close_input();
        self.wait(Instant::now() + EXIT_GRACE);
        // The guard is ended before the process is reaped. Until the process is reaped, no other process group can
        // get the id that the guard would kill.
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill().and_then(|()| guard.wait());
        }
        if let Some(group) = self.pid() {
            // An error means that the process group is empty.
            let _ = kill_process_group(group, Signal::KILL);
        }
        // A killed process that does not exit within `EXIT_GRACE` hangs in the kernel, for example on a broken disk.
        // The init process reaps it later.
        self.wait(Instant::now() + EXIT_GRACE);
        let _ = self.child.try_wait();
        // The wait gives the log also the last lines of standard error.
        let _ = self.stderr_end.recv_timeout(STDERR_GRACE);
    }
}

/// Starts the guard, a process that kills process group `group` when this process ends in any way. The guard has its
/// own process group, so signals to the command or to the terminal's foreground group do not reach the guard. (Linux'
/// parent death signal would reach only the shell, not its children.)
fn start_guard(group: u32) -> std::io::Result<Child> {
    std::process::Command::new("sh")
        .args(["-c", GUARD_SCRIPT, &group.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

/// Reads standard error to its end. Passes each line to `log` and keeps the last line that is not blank in `last`.
fn read_stderr(pipe: ChildStderr, last: &Mutex<String>, log: Option<&ProgramLog>) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    while pipe.by_ref().take(MAX_STDERR_LINE_BYTES).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let whole = String::from_utf8_lossy(&line);
        if let Some(log) = log {
            log.write(whole.trim_end_matches(['\n', '\r']));
        }
        let text = shorten_for_message(&whole);
        if !text.is_empty() {
            *last.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests;
