//! Renders chat templates in a worker process (see [`reel_support::worker`]) with limits on memory and processor time.
//! A template is a program that comes with a model folder. A few steps of a template can fill the memory or overflow
//! the stack, and so end the process that renders it. Therefore every template except the published ones is rendered in
//! a separate process.
//!
//! The first job of a worker is to compile one template. Then the worker renders many conversations. The header of
//! its reply is `{"Ok": null}` or `{"Err": what}`, and the body is the prompt.

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reel_support::worker::{Worker, WorkerFailure, WorkerKind, WorkerProgram};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::engine::{CompiledTemplate, RenderInput};
use super::limits;

/// The kind of worker that renders templates.
pub const TEMPLATE_WORKER: WorkerKind = WorkerKind { name: "template", malloc_arenas: "1", main: worker_main };

/// The maximum number of bytes that a worker may allocate. It includes the stack of 256 MiB, but not the program and
/// its libraries.
const MEMORY_BYTES: u64 = 448 << 20;

/// The limit of a worker's processor time, in seconds. Rendering a conversation takes about a millisecond.
const CPU_SECONDS: u64 = 1;

/// The number of conversations that one worker renders, so that many short renderings do not add up to the limit of
/// processor time.
const CONVERSATIONS_PER_WORKER: usize = 200;

/// The maximum time to wait for a reply. On a machine that is not overloaded, the worker reaches its limit of
/// processor time long before this timeout.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// The maximum length of a worker's reply, in bytes.
const MAX_REPLY_BYTES: u64 = 256 << 20;

/// The number of conversations in a row that exceed the limits before the template itself is refused.
const MAX_FAILURES: usize = 3;

/// The template that the worker compiles.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct WorkerTemplate {
    /// The text of the template.
    pub(super) text: String,
    /// The special tokens that the template can use by name.
    pub(super) tokens: Map<String, Value>,
}

/// Renders a template in worker processes, one after the other.
#[derive(Debug)]
pub(super) struct IsolatedTemplate {
    program: WorkerProgram,
    setup: WorkerTemplate,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    worker: Option<Worker>,
    failures: usize,
}

/// A message to the worker. The caller sends references to a [`WorkerTemplate`] or a [`RenderInput`]; the worker
/// receives owned values.
#[derive(Debug, Serialize, Deserialize)]
enum Job<S, R> {
    Compile(S),
    Render(R),
}

impl IsolatedTemplate {
    /// Starts a worker, which compiles the template. The error says what is wrong with the template.
    pub(super) fn compile(program: WorkerProgram, setup: WorkerTemplate) -> Result<Self, String> {
        limits::check_template_text(&setup.text)?;
        let worker = start(&program, &setup).map_err(|how| format!("cannot be compiled: {how}"))??;
        Ok(Self { program, setup, state: Mutex::new(State { worker: Some(worker), failures: 0 }) })
    }

    /// Renders a prompt. The error says why the messages cannot be rendered.
    pub(super) fn render(&self, input: &RenderInput) -> Result<String, String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failures >= MAX_FAILURES {
            return Err(format!("cannot render messages: it exceeded the limits {MAX_FAILURES} times in a row"));
        }
        loop {
            let started = match state.worker.take().filter(|worker| worker.jobs <= CONVERSATIONS_PER_WORKER) {
                Some(worker) => Ok(worker),
                None => match start(&self.program, &self.setup) {
                    Ok(compiled) => Ok(compiled?),
                    Err(how) => Err(how),
                },
            };
            let is_new = started.as_ref().map_or(true, |worker| worker.jobs == 1);
            let rendered = started.and_then(|mut worker| {
                let reply = ask(&mut worker, &Job::<&WorkerTemplate, _>::Render(input))?;
                Ok((worker, reply))
            });
            match rendered {
                Ok((worker, reply)) => {
                    *state = State { worker: Some(worker), failures: 0 };
                    return reply;
                }
                Err(how) if is_new => {
                    state.failures += 1;
                    return Err(format!("cannot render these messages: {how}"));
                }
                // The worker may have spent its processor time on earlier conversations, so a new worker tries again.
                Err(_) => {}
            }
        }
    }
}

/// Starts a worker and lets it compile the template. The inner error is about the template; the outer error says how
/// the worker ended.
fn start(program: &WorkerProgram, setup: &WorkerTemplate) -> Result<Result<Worker, String>, String> {
    let started = Worker::start(program, &TEMPLATE_WORKER);
    let mut worker =
        started.map_err(|e| format!("the worker process that renders the template cannot be started: {e}"))?;
    let compiled = ask(&mut worker, &Job::<_, &RenderInput>::Compile(setup))?;
    Ok(compiled.map(|_| worker))
}

/// Sends a job to a worker and waits for the reply. The inner error is about the template; the outer error says how the
/// worker ended.
fn ask(worker: &mut Worker, job: &impl Serialize) -> Result<Result<String, String>, String> {
    // The kernel sends SIGXCPU at the soft limit of processor time, and SIGKILL at the hard limit.
    const SIGKILL: i32 = 9;
    const SIGXCPU: i32 = 24;
    let mut prompt = Vec::new();
    let sent = worker.send(job, None, REPLY_TIMEOUT);
    match sent.and_then(|()| worker.receive::<Result<(), String>>(MAX_REPLY_BYTES, &mut prompt)) {
        Ok(reply) => Ok(reply.map(|()| String::from_utf8_lossy(&prompt).into_owned())),
        Err(WorkerFailure::Invalid) => {
            Err("the worker process that renders the template sent an invalid reply".to_string())
        }
        Err(WorkerFailure::Timeout) => Err(format!("it takes more than {} s", REPLY_TIMEOUT.as_secs())),
        Err(WorkerFailure::Ended(end)) => Err(match end.signal {
            Some(SIGXCPU | SIGKILL) => format!("it takes more than {CPU_SECONDS} s of processor time"),
            // A stack overflow and a failed allocation both end in abort (6) or a segmentation fault (11).
            Some(_) => format!("it needs more than {} MiB of memory", MEMORY_BYTES >> 20),
            None => "the worker process that renders the template ended unexpectedly".to_string(),
        }),
    }
}

/// The `main` function of a template worker.
fn worker_main() -> ExitCode {
    let mut template = Err("is not compiled yet".to_string());
    reel_support::worker::serve(|job: Job<WorkerTemplate, RenderInput>, _, replies| {
        let prompt = match job {
            Job::Compile(WorkerTemplate { text, tokens }) => {
                reel_support::worker::limit_memory(MEMORY_BYTES)?;
                reel_support::worker::limit_processor_time(CPU_SECONDS)?;
                template = CompiledTemplate::compile(&text, tokens, false);
                template.as_ref().map(|_| String::new()).map_err(String::clone)
            }
            Job::Render(input) => template.as_ref().map_err(String::clone).and_then(|template| template.render(&input)),
        };
        replies.send(&prompt.as_ref().map(|_| ()), prompt.as_deref().unwrap_or_default().as_bytes())
    })
}
