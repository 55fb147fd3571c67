//! The command behind an own reward: started once, asked in batches, never waited for beyond a deadline, and never left behind:
//! a guard ends it with all that it has started when this process is gone, however that went.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde_json::{Value, json};

use super::{STOPPED, Silence, fault, number, receive, seconds, shortened};
use crate::{Result, RewardError};

const FLAG: &str = "--reward-command";

/// No answer is longer, in bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// Answers that may wait to be read; a program that writes more than it was asked for is held up, not listened to for ever.
const WAITING: usize = 1024;

/// How long a program may take to end after its input has ended.
const LEAVE: Duration = Duration::from_secs(1);

/// How long last words may take to arrive once the process has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long one line too many is waited for behind the first batch: a program that writes others than its rewards does so from
/// the start. One that comes later is found before the next batch.
const TOO_MANY: Duration = Duration::from_millis(5);

/// The field that tells a row's place in its batch.
const BATCH: &str = "_batch";

/// A shell command, and the process that runs it once a batch was asked for.
#[derive(Debug)]
pub(super) struct Command {
    shell: String,
    timeout: Duration,
    running: Option<Running>,
}

impl Command {
    pub(super) fn new(shell: &str, timeout: Duration) -> Result<Self> {
        if shell.trim().is_empty() || shell.contains('\0') {
            return Err(RewardError::option(FLAG, "is no command", "give what `sh -c` can run"));
        }
        Ok(Self { shell: shell.to_string(), timeout, running: None })
    }

    /// The rewards of a batch. After an error the process is gone.
    pub(super) fn score(&mut self, rows: &[Value], stop: &AtomicBool) -> Result<Vec<f64>> {
        let deadline = Instant::now() + self.timeout;
        let asked = lines(rows)?;
        let mut running = match self.running.take() {
            Some(running) => running,
            None => Running::start(&self.shell)
                .map_err(|e| self.fault(format!("cannot be started: {e}"), "check that there is a shell `sh`"))?,
        };
        let answers = running.answers(asked, rows.len(), deadline, stop);
        match answers {
            Ok(answers) => {
                self.running = Some(running);
                Ok(answers)
            }
            Err(trouble) => Err(self.explain(&trouble, rows.len(), &mut running)),
        }
    }

    fn fault(&self, what: impl std::fmt::Display, cure: &str) -> RewardError {
        fault(FLAG, &self.shell, what, cure)
    }

    fn explain(&self, trouble: &Trouble, wanted: usize, running: &mut Running) -> RewardError {
        match trouble {
            Trouble::Late(got) => {
                let after = seconds(self.timeout);
                let what = format!("gave {got} of {wanted} rewards in {after} and was stopped");
                self.fault(
                    what,
                    "make it faster or the batch smaller, and see that it writes its output at once (flush)",
                )
            }
            Trouble::Stopped => self.fault(STOPPED.0, STOPPED.1),
            Trouble::Ended(got) => {
                let how = running.how_it_ended();
                self.fault(format!("{how} after {got} of {wanted} rewards"), "run it by hand with one row on its input")
            }
            Trouble::TooMany => self.fault(
                format!("wrote more lines than the {wanted} rows it was given"),
                "write one line a row, and nothing else on standard output",
            ),
            Trouble::Unasked => self.fault(
                "wrote a line that nobody had asked for",
                "write one line a row, and nothing else on standard output",
            ),
            Trouble::Wrong(at, why) => self.fault(
                format!("line {} of its output {why}", at + 1),
                "write a number or {\"reward\": number} a row, and nothing else on standard output",
            ),
        }
    }
}

/// The lines of a batch.
fn lines(rows: &[Value]) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let mut row = match row {
            Value::Object(fields) => fields.clone(),
            _ => return Err(RewardError::row(format!("row {index}"), "is not an object", "give its columns")),
        };
        let place = json!({"index": index, "size": rows.len()});
        if row.insert(BATCH.to_string(), place).is_some() {
            return Err(RewardError::row(BATCH, "is a column of the data", "rename it: own rewards need the name"));
        }
        lines.extend(Value::Object(row).to_string().into_bytes());
        lines.push(b'\n');
    }
    Ok(lines)
}

/// What can be wrong with the answers to a batch.
#[derive(Debug)]
enum Trouble {
    /// The deadline passed after this many answers.
    Late(usize),
    /// The wait was given up.
    Stopped,
    /// The output ended after this many answers.
    Ended(usize),
    /// There were more.
    TooMany,
    /// There was one before the batch.
    Unasked,
    /// The answer of this number is none, and why.
    Wrong(usize, String),
}

/// What the guard runs: it waits for the end of its input, which only this process holds open, and kills the group `$0`.
const GUARD: &str = "read -r _; kill -s KILL -- -\"$0\"";

/// The process. Dropped, it gets the end of its input, then has [`LEAVE`] to go.
#[derive(Debug)]
struct Running {
    child: Child,
    /// What outlives this process to kill the group; `None` until it is started.
    guard: Option<Child>,
    /// To the thread that writes; `None` once the input has ended.
    input: Option<Sender<Vec<u8>>>,
    /// Whether a batch was answered with as many lines as it has rows.
    proven: bool,
    output: Receiver<Result<String, String>>,
    last_words: Arc<Mutex<String>>,
    /// Ends when standard error does.
    silence: Receiver<()>,
}

impl Running {
    fn start(shell: &str) -> std::io::Result<Self> {
        let mut child = std::process::Command::new("sh")
            .args(["-c", shell])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (input, batches) = mpsc::channel();
        let (lines, output) = mpsc::sync_channel(WAITING);
        let last_words = Arc::new(Mutex::new(String::new()));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let heard = Arc::clone(&last_words);
        let (speaking, silence) = mpsc::channel::<()>();
        // From here on a failure drops the process, which ends it.
        let mut running = Self { child, guard: None, input: Some(input), proven: false, output, last_words, silence };
        running.guard = Some(guard(running.child.id())?);
        let spawn = |work: Box<dyn FnOnce() + Send>| thread::Builder::new().name("own reward".into()).spawn(work);
        spawn(Box::new(move || stdin.into_iter().for_each(|pipe| write(pipe, &batches))))?;
        spawn(Box::new(move || stdout.into_iter().for_each(|pipe| read(pipe, &lines))))?;
        spawn(Box::new(move || {
            stderr.into_iter().for_each(|pipe| listen(pipe, &heard));
            drop(speaking);
        }))?;
        Ok(running)
    }

    fn answers(
        &mut self,
        asked: Vec<u8>,
        wanted: usize,
        deadline: Instant,
        stop: &AtomicBool,
    ) -> Result<Vec<f64>, Trouble> {
        match self.output.try_recv() {
            Ok(_) => return Err(Trouble::Unasked),
            Err(TryRecvError::Disconnected) => return Err(Trouble::Ended(0)),
            Err(TryRecvError::Empty) => {}
        }
        // A writer that is gone has met a closed pipe: the output, which ends too, says what happened.
        let _ = self.input.as_ref().map(|input| input.send(asked));
        let mut rewards = Vec::with_capacity(wanted);
        while rewards.len() < wanted {
            let at = rewards.len();
            let line = receive(&self.output, deadline, stop).map_err(|silence| match silence {
                Silence::Late => Trouble::Late(at),
                Silence::Ended => Trouble::Ended(at),
                Silence::Stopped => Trouble::Stopped,
            })?;
            rewards.push(line.and_then(|line| reward(&line)).map_err(|why| Trouble::Wrong(at, why))?);
        }
        let wait = if self.proven { Duration::ZERO } else { TOO_MANY };
        if self.output.recv_timeout(wait).is_ok() {
            return Err(Trouble::TooMany);
        }
        self.proven = true;
        Ok(rewards)
    }

    /// How the process ended, with its last words.
    fn how_it_ended(&mut self) -> String {
        let status = self.wait(Instant::now() + LEAVE);
        // What it said last may still be on its way; a child of its own that speaks on is not waited for.
        let _ = self.silence.recv_timeout(LAST_WORDS);
        let said = self.last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let how = match status {
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with exit code {code}"),
                (None, Some(signal)) => format!("was ended by signal {signal}"),
                (None, None) => "ended".to_string(),
            },
            None => "closed its output".to_string(),
        };
        if said.is_empty() { how } else { format!("{how} ({said})") }
    }

    /// The exit status, if the process ends in time. It stays to be waited for, so that its number, which is its group's, is not
    /// given to another.
    fn wait(&mut self, until: Instant) -> Option<ExitStatus> {
        let mut pause = Duration::from_micros(200);
        loop {
            let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if let Some(Ok(Some(status))) = self.pid().map(|pid| waitid(WaitId::Pid(pid), peek)) {
                // As wait(2) would have it.
                let raw = status.exit_status().map_or(status.terminating_signal().unwrap_or(0), |code| code << 8);
                return Some(ExitStatus::from_raw(raw));
            }
            if Instant::now() >= until {
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

impl Drop for Running {
    fn drop(&mut self) {
        self.input = None;
        self.wait(Instant::now() + LEAVE);
        // While the process is not waited for, no other can have its group's number, which the guard knows.
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill().and_then(|()| guard.wait());
        }
        if let Some(group) = self.pid() {
            // Failing means that nobody is left in it.
            let _ = kill_process_group(group, Signal::KILL);
        }
        // What was killed is gone, or, waiting for a dead disk, not worth waiting for.
        self.wait(Instant::now() + LEAVE);
        let _ = self.child.try_wait();
    }
}

/// A process that kills process group `group` when this process ends, if it is killed itself too. It has a group of its own, so that
/// nothing that is meant for the command or for a terminal's foreground ends it. (A parent's death signal, as Linux has it, would
/// reach the shell alone, not what it runs.)
fn guard(group: u32) -> std::io::Result<Child> {
    std::process::Command::new("sh")
        .args(["-c", GUARD, &group.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

/// Writes batches as they come. A closed pipe ends it; the reader finds out why.
fn write(mut pipe: ChildStdin, batches: &Receiver<Vec<u8>>) {
    for batch in batches {
        if pipe.write_all(&batch).and_then(|()| pipe.flush()).is_err() {
            return;
        }
    }
}

/// Passes lines on until there are none, one is too long, or nobody listens.
fn read(pipe: ChildStdout, lines: &mpsc::SyncSender<Result<String, String>>) {
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        match pipe.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let whole = line.last() == Some(&b'\n') || (line.len() as u64) < LONGEST_LINE;
        let line = if whole {
            String::from_utf8(line).map_err(|_| "is not UTF-8".to_string())
        } else {
            Err(format!("is longer than {LONGEST_LINE} bytes"))
        };
        if lines.send(line).is_err() || !whole {
            return;
        }
    }
}

/// Keeps the last line that says something.
fn listen(pipe: ChildStderr, last: &Mutex<String>) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    while pipe.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let said = shortened(&String::from_utf8_lossy(&line));
        if !said.is_empty() {
            *last.lock().unwrap_or_else(PoisonError::into_inner) = said;
        }
        line.clear();
    }
}

/// The reward in a line of output; the error says what the line is instead.
fn reward(line: &str) -> Result<f64, String> {
    let value: Value = serde_json::from_str(line).map_err(|_| format!("is `{}`, no JSON number", shortened(line)))?;
    match &value {
        Value::Object(fields) => match fields.get("reward") {
            Some(answer) => number(answer),
            None => Err(format!("is {}, which has no `reward`", shortened(line))),
        },
        answer => number(answer),
    }
}

#[cfg(test)]
mod tests;
