//! Renders chat templates in a worker process with limits on memory and processor time. A template is a program that a
//! model folder brings: a few of its steps can fill the memory or overflow the stack, which ends the process that
//! renders it. So the program renders every template that it does not know in a process of its own.
//!
//! The worker is the same program with the hidden argument [`TEMPLATE_WORKER_ARGUMENT`], which calls [`worker_main`].
//! Caller and worker exchange lines of JSON over the worker's standard input and output:
//! ```text
//! caller                                           worker
//! start the worker                            ---> limit its own memory and processor time
//! {"text": …, "tokens": …}                    ---> compile the template
//!                                             <--- {"Ok": ""} or {"Err": what}
//! {"messages": …, "tools": …, …}              ---> render
//!                                             <--- {"Ok": prompt} or {"Err": what}
//! …                                                (one worker renders many conversations)
//! close its standard input                    ---> exit
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::engine::{CompiledTemplate, RenderInput};
use super::limits;

/// The hidden command line argument that makes the program a template worker.
pub const TEMPLATE_WORKER_ARGUMENT: &str = "__template-worker";

/// The memory that a worker may use beside the program itself, in bytes; of this, 256 MiB are for its stack.
const MEMORY_BYTES: u64 = 448 << 20;

/// The processor time of a worker. Rendering a conversation takes about a millisecond.
const CPU_SECONDS: u64 = 1;

/// The number of conversations that one worker renders, so that many short renderings do not add up to the limit of
/// processor time.
const CONVERSATIONS_PER_WORKER: usize = 200;

/// The time to wait for a reply. The worker's own limit ends it long before, except on a machine that is overloaded.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest reply in bytes.
const MAX_REPLY_BYTES: u64 = 256 << 20;

/// The number of conversations in a row that exceed the limits before the template itself is refused.
const MAX_FAILURES: usize = 3;

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// From now on, templates that this program does not know are rendered in a worker process: `program`, started with
/// [`TEMPLATE_WORKER_ARGUMENT`], must call [`worker_main`]. Without this call, as in a test or in another program that
/// uses this library, they are rendered in this process.
pub fn render_in_worker_process(program: PathBuf) {
    // A second call could only name another copy of the same program.
    let _ = PROGRAM.set(program);
}

/// The program to start as a worker, if templates are to be rendered in one.
pub(super) fn worker_program() -> Option<PathBuf> {
    PROGRAM.get().cloned()
}

/// What the worker compiles.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Setup {
    /// The template.
    pub(super) text: String,
    /// The special tokens that it can use by name.
    pub(super) tokens: Map<String, Value>,
}

/// Renders a template in worker processes, one after the other.
#[derive(Debug)]
pub(super) struct IsolatedTemplate {
    program: PathBuf,
    setup: Setup,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    worker: Option<Worker>,
    failures: usize,
}

/// Why a worker gave no prompt.
enum Failure {
    /// The template engine refused the template or the messages.
    Refused(String),
    /// The worker ended or was ended.
    Ended(String),
}

impl IsolatedTemplate {
    /// Starts a worker, which compiles the template. The error says what is wrong.
    pub(super) fn compile(program: PathBuf, setup: Setup) -> Result<Self, String> {
        limits::check_template_text(&setup.text)?;
        let worker = Worker::start(&program, &setup).map_err(|failure| match failure {
            Failure::Refused(what) => what,
            Failure::Ended(how) => format!("cannot be compiled: {how}"),
        })?;
        Ok(Self { program, setup, state: Mutex::new(State { worker: Some(worker), failures: 0 }) })
    }

    /// Renders a prompt. The error says what is wrong.
    pub(super) fn render(&self, input: &RenderInput) -> Result<String, String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failures >= MAX_FAILURES {
            return Err(format!("cannot render messages: it exceeded the limits {MAX_FAILURES} times in a row"));
        }
        loop {
            let worker = match state.worker.take().filter(|worker| worker.rendered < CONVERSATIONS_PER_WORKER) {
                Some(worker) => Ok(worker),
                None => Worker::start(&self.program, &self.setup),
            };
            let asked = worker.map(|mut worker| {
                let is_new = worker.rendered == 0;
                let reply = worker.ask(input);
                (worker, is_new, reply)
            });
            match asked {
                Ok((worker, _, Ok(prompt))) => {
                    *state = State { worker: Some(worker), failures: 0 };
                    return Ok(prompt);
                }
                Ok((worker, _, Err(Failure::Refused(what)))) => {
                    *state = State { worker: Some(worker), failures: 0 };
                    return Err(what);
                }
                // A worker that has rendered other conversations may have had little processor time left.
                Ok((_, false, Err(Failure::Ended(_)))) => {}
                Ok((_, true, Err(Failure::Ended(how)))) | Err(Failure::Ended(how)) => {
                    state.failures += 1;
                    return Err(format!("cannot render these messages: {how}"));
                }
                Err(Failure::Refused(what)) => return Err(what),
            }
        }
    }
}

/// A running worker process. When dropped, it is killed.
#[derive(Debug)]
struct Worker {
    child: Child,
    input: ChildStdin,
    replies: mpsc::Receiver<String>,
    rendered: usize,
}

impl Worker {
    /// Starts a worker and lets it compile the template.
    fn start(program: &PathBuf, setup: &Setup) -> Result<Self, Failure> {
        let child = Command::new(program)
            .arg(TEMPLATE_WORKER_ARGUMENT)
            // Each additional malloc arena reserves address space, which counts against the memory limit.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal reaches only the caller, which then ends and closes the worker's input.
            .process_group(0)
            .spawn();
        let mut child = child.map_err(|e| Failure::Ended(format!("no process to render it can be started: {e}")))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::Ended("the process to render it has no pipes".to_string()));
        };
        let (send, replies) = mpsc::channel();
        // If the thread cannot be created, the sender is dropped, and the receiver gets an error instead of a reply.
        let _ = std::thread::Builder::new().name("template worker".to_string()).spawn(move || {
            let mut output = BufReader::new(output);
            loop {
                let mut line = String::new();
                let read = output.by_ref().take(MAX_REPLY_BYTES).read_line(&mut line);
                if !matches!(read, Ok(1..)) || !line.ends_with('\n') || send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut worker = Self { child, input, replies, rendered: 0 };
        worker.exchange(setup)?;
        Ok(worker)
    }

    fn ask(&mut self, input: &RenderInput) -> Result<String, Failure> {
        let reply = self.exchange(input);
        self.rendered += 1;
        reply
    }

    fn exchange(&mut self, message: &impl Serialize) -> Result<String, Failure> {
        let text = serde_json::to_string(message).map_err(|e| Failure::Refused(e.to_string()))?;
        // If the worker has ended, so have its replies; the reason is found below.
        let _ = self.input.write_all(text.as_bytes()).and_then(|()| self.input.write_all(b"\n"));
        let _ = self.input.flush();
        match self.replies.recv_timeout(REPLY_TIMEOUT) {
            Ok(line) => match serde_json::from_str::<Result<String, String>>(&line) {
                Ok(reply) => reply.map_err(Failure::Refused),
                Err(e) => Err(Failure::Ended(format!("the process that renders it sent an invalid reply ({e})"))),
            },
            Err(RecvTimeoutError::Timeout) => {
                Err(Failure::Ended(format!("it takes more than {} s", REPLY_TIMEOUT.as_secs())))
            }
            Err(RecvTimeoutError::Disconnected) => Err(Failure::Ended(self.how_it_ended())),
        }
    }

    /// Says which limit the worker exceeded.
    fn how_it_ended(&mut self) -> String {
        // The kernel sends SIGXCPU at the soft limit of processor time, and SIGKILL at the hard one.
        const SIGKILL: i32 = 9;
        const SIGXCPU: i32 = 24;
        let status = self.child.wait();
        match status.as_ref().ok().and_then(ExitStatusExt::signal) {
            Some(SIGXCPU | SIGKILL) => format!("it takes more than {CPU_SECONDS} s of processor time"),
            // A stack overflow and a failed allocation both end in abort (6) or a segmentation fault (11).
            Some(_) => format!("it needs more than {} MiB of memory", MEMORY_BYTES >> 20),
            None => "the process that renders it ended unexpectedly".to_string(),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The `main` function of a template worker: compiles one template, then renders conversations until its standard input
/// ends.
pub fn worker_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> std::io::Result<()> {
    apply_limits()?;
    let mut input = std::io::stdin().lock();
    let mut output = std::io::stdout().lock();
    let mut reply = |reply: &Result<&str, &str>| {
        let text = serde_json::to_string(reply)?;
        writeln!(output, "{text}").and_then(|()| output.flush())
    };
    let Some(setup) = read_message::<Setup>(&mut input)? else { return Ok(()) };
    let template = match CompiledTemplate::compile(&setup.text, setup.tokens, false) {
        Ok(template) => template,
        Err(what) => return reply(&Err(&what)),
    };
    reply(&Ok(""))?;
    while let Some(asked) = read_message::<RenderInput>(&mut input)? {
        let text = template.render(&asked);
        reply(&text.as_deref().map_err(String::as_str))?;
    }
    Ok(())
}

fn read_message<T: for<'de> Deserialize<'de>>(input: &mut impl BufRead) -> std::io::Result<Option<T>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

/// Limits the address space and the processor time of this process.
fn apply_limits() -> std::io::Result<()> {
    let set_limit = |resource, limit: u64| {
        let Rlimit { current, maximum } = rustix::process::getrlimit(resource);
        let limit = [current, maximum].into_iter().flatten().fold(limit, u64::min);
        rustix::process::setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
    };
    set_limit(Resource::Core, 0)?;
    set_limit(Resource::Cpu, CPU_SECONDS)?;
    set_limit(Resource::As, address_space_bytes()?.saturating_add(MEMORY_BYTES))?;
    Ok(())
}

/// Bytes of address space that this process uses (the first field of /proc/self/statm, in pages).
fn address_space_bytes() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| std::io::Error::other("/proc/self/statm cannot be parsed"))?;
    Ok(pages * rustix::param::page_size() as u64)
}
