//! Compiles grammars in worker processes (see [`reel_support::worker`]) with limits on time, memory and depth, before
//! this process compiles them.
//!
//! ```text
//! this process                                      worker process
//! the vocabulary, once                         ---> sorts it
//! a grammar                                    ---> a fork compiles it on a stack of 16 MiB, copies it, and follows
//!                                              <--- it for some tokens on a stack of 256 KiB; valid, or an error
//! compiles it on a stack of 32 MiB,
//! copies and follows it on stacks of 2 MiB or more
//! ```
//! A grammar that is too deep, too large or too slow ends only its fork. All else needs at most as much of the stack as
//! it needed in the worker, because both processes run the same code. A fork takes a few milliseconds.

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reel_input::grammar::{AnswerWithoutCalls, GrammarSpec};
use reel_support::diagnostic::Diagnostic;
use reel_support::worker::{ForkExit, JobCanceller, Worker, WorkerFailure, WorkerKind, WorkerPool, WorkerProgram};

use crate::error::{Error, Kind, Result};
use crate::grammar::{LocalCompiler, Vocabulary, refused};

/// The kind of worker that compiles grammars.
pub const GRAMMAR_WORKER: WorkerKind = WorkerKind { name: "grammar", malloc_arenas: "1", main: worker_main };

/// The maximum number of bytes that the fork of a grammar may allocate, with its stacks.
const MEMORY_BYTES: u64 = 384 << 20;

/// The limit of processor time for a grammar, in seconds. Most take a few milliseconds.
const CPU_SECONDS: u64 = 2;

/// The maximum time to wait for a reply. On a machine that is not overloaded, a fork reaches its limit of processor time
/// long before this timeout.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// The stack on which the worker compiles a grammar, in bytes. An optimised build needs about 10 kB for each level of a
/// grammar.
const WORKER_STACK_BYTES: usize = 16 << 20;

/// The stack on which this process compiles a grammar that a worker has accepted, in bytes.
pub(crate) const STACK_BYTES: usize = 2 * WORKER_STACK_BYTES;

/// The stack on which the worker follows a grammar, in bytes.
const STEP_STACK_BYTES: usize = 256 << 10;

/// Cancels the compilation of a grammar from another thread.
#[derive(Debug, Default)]
pub struct CompileCancellation(Mutex<CancellationState>);

#[derive(Debug, Default)]
struct CancellationState {
    is_cancelled: bool,
    job: Option<JobCanceller>,
}

impl CompileCancellation {
    /// Makes a running compilation, and each later one, fail with [`Kind::Interrupted`].
    pub fn cancel(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_cancelled = true;
        state.job.take().iter().for_each(JobCanceller::cancel);
    }

    /// Sets the running job. If the compilation is cancelled, cancels the job and fails.
    fn set_job(&self, job: Option<JobCanceller>) -> Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_cancelled {
            job.iter().for_each(JobCanceller::cancel);
            return Err(Error::generation_interrupted());
        }
        state.job = job;
        Ok(())
    }
}

/// The reply to a grammar: valid, the error, or how its fork ended.
type Verdict = std::result::Result<std::result::Result<(), Diagnostic>, ForkExit>;

/// The worker processes that compile grammars for one vocabulary.
#[derive(Debug)]
pub(crate) struct GrammarWorkers {
    program: WorkerProgram,
    /// The vocabulary, for workers that are started later.
    vocabulary: Vocabulary,
    idle: WorkerPool,
}

impl GrammarWorkers {
    /// Starts a worker, and does not wait until it is ready.
    pub(crate) fn start(program: WorkerProgram, vocabulary: Vocabulary) -> Result<Self> {
        let workers = Self { program, vocabulary, idle: WorkerPool::new() };
        workers.idle.return_worker(workers.start_worker()?, 0);
        Ok(workers)
    }

    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    fn start_worker(&self) -> Result<Worker> {
        let mut worker = Worker::start(&self.program, &GRAMMAR_WORKER).map_err(|e| {
            let help = reel_support::diagnostic::resource_shortage_help(&e).unwrap_or("try again");
            refused(format!("the worker process that compiles it cannot be started: {e}"), help)
        })?;
        worker.send(&self.vocabulary, None, REPLY_TIMEOUT).map_err(|e| broken(&e))?;
        Ok(worker)
    }

    /// Checks that a worker can compile a grammar and follow it for some tokens.
    pub(crate) fn check(&self, spec: &GrammarSpec, cancellation: &CompileCancellation) -> Result<()> {
        let exceeded = match self.ask(spec, cancellation)? {
            Ok(verdict) => return verdict.map_err(|d| Kind::Request.error(d)),
            Err(exceeded) => exceeded,
        };
        let help = "use a smaller or simpler grammar";
        let GrammarSpec::ToolCalls(calls) = spec else { return Err(refused(exceeded, help)) };
        // The limit may be exceeded by the form of an answer without calls, which another field of the request sets.
        if let AnswerWithoutCalls::Form(form) = &calls.otherwise {
            self.check(form, cancellation)?;
        }
        Err(Error::request("tools", exceeded, help))
    }

    /// Sends a grammar to a worker and waits for the verdict. The inner error says which limit the grammar exceeds.
    fn ask(
        &self,
        spec: &GrammarSpec,
        cancellation: &CompileCancellation,
    ) -> Result<std::result::Result<std::result::Result<(), Diagnostic>, String>> {
        loop {
            cancellation.set_job(None)?;
            let idle = self.idle.take_idle_worker(&self.program, 0);
            let is_new = idle.is_none();
            let mut worker = idle.map_or_else(|| self.start_worker(), Ok)?;
            let asked = self.ask_worker(&mut worker, spec, cancellation);
            let is_wanted = cancellation.set_job(None);
            match asked {
                Ok(verdict) => {
                    let limit = verdict.map_err(|exit| exceeded_limit(&exit, &worker.read_stderr()));
                    self.idle.return_worker(worker, 0);
                    return is_wanted.map(|()| limit);
                }
                Err(WorkerFailure::Timeout) => {
                    return Ok(Err(format!("takes more than {} s to compile", REPLY_TIMEOUT.as_secs())));
                }
                Err(e) if is_new => return Err(broken(&e)),
                // Something else has ended the idle worker, so a new worker tries again.
                Err(_) => {}
            }
        }
    }

    fn ask_worker(
        &self,
        worker: &mut Worker,
        spec: &GrammarSpec,
        cancellation: &CompileCancellation,
    ) -> std::result::Result<Verdict, WorkerFailure> {
        let mut body = Vec::new();
        // The worker was sent the vocabulary only.
        if worker.jobs == 1 {
            worker.receive::<std::result::Result<(), ForkExit>>(0, &mut body)?.map_err(|_| WorkerFailure::Invalid)?;
        }
        worker.send(spec, None, REPLY_TIMEOUT)?;
        // Without a canceller, the job ends at its own limits. `ask` returns the error of a cancelled job.
        let _ = cancellation.set_job(worker.job_canceller().ok());
        worker.receive(0, &mut body)
    }
}

/// The limit that ended the fork of a grammar, as the end of a sentence that begins with the name of a field.
fn exceeded_limit(exit: &ForkExit, stderr: &str) -> String {
    // The kernel sends SIGXCPU at the soft limit of processor time, and SIGKILL at the hard limit.
    const SIGKILL: i32 = 9;
    const SIGXCPU: i32 = 24;
    match exit.signal {
        Some(SIGXCPU | SIGKILL) => format!("takes more than {CPU_SECONDS} s of processor time to compile"),
        Some(_) if stderr.contains("overflowed its stack") => {
            format!("is nested too deeply: compiling it needs more than {} MiB of stack", WORKER_STACK_BYTES >> 20)
        }
        // A failed allocation ends a process by a signal, or a thread cannot be started.
        _ => format!("needs more than {} MiB of memory to compile", MEMORY_BYTES >> 20),
    }
}

/// The error of a worker that failed while it did not run a grammar.
fn broken(failure: &WorkerFailure) -> Error {
    let how = match failure {
        WorkerFailure::Timeout => "does not answer".to_string(),
        WorkerFailure::Invalid => "sent an invalid reply".to_string(),
        WorkerFailure::Ended(exit) => format!("ended unexpectedly{}", exit.stderr_detail()),
    };
    refused(format!("the worker process that compiles it {how}"), "try again")
}

/// Runs `work` on a thread with a stack of this size, of which the operating system provides only the used pages.
pub(crate) fn run_on_stack<T: Send>(bytes: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("grammar".to_string()).stack_size(bytes);
        let thread = builder.spawn_scoped(scope, work).map_err(|e| {
            let help = reel_support::diagnostic::resource_shortage_help(&e).unwrap_or("try again");
            refused(format!("no thread can be started: {e}"), help)
        })?;
        thread.join().unwrap_or_else(|_| Err(refused("its compiler cannot process it".into(), "use a simpler grammar")))
    })
}

/// The `main` function of a grammar worker.
fn worker_main() -> ExitCode {
    let prepare = |vocabulary: Vocabulary| {
        let compiler = LocalCompiler::new(&vocabulary).map_err(std::io::Error::other)?;
        // Initialises what is made at the first use, so that the forks inherit it.
        let any = GrammarSpec::JsonSchema(serde_json::json!({"type": "object"}));
        let compiled = compiler.compile(&any);
        compiled.map_err(std::io::Error::other)?;
        // The hook of `llguidance` would look up the names of all functions on the stack for each panic.
        std::panic::set_hook(Box::new(|_| {}));
        Ok(compiler)
    };
    reel_support::worker::serve_in_prepared_forks(prepare, |compiler: &LocalCompiler, spec: GrammarSpec| {
        reel_support::worker::limit_memory(MEMORY_BYTES)?;
        reel_support::worker::limit_processor_time(CPU_SECONDS)?;
        let compiled = run_on_stack(WORKER_STACK_BYTES, || compiler.compile(&spec));
        let followed = compiled.and_then(|grammar| {
            run_on_stack(STEP_STACK_BYTES, move || {
                grammar.clone().rehearse();
                Ok(())
            })
        });
        Ok(followed.map_err(|e| match e.kind {
            Kind::Request => e.diagnostic,
            _ => Diagnostic::new("grammar", e.to_string(), ""),
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named() {
        let of = |signal, stderr| exceeded_limit(&ForkExit { signal, code: None }, stderr);
        assert!(of(Some(24), "").contains("2 s of processor time"));
        assert!(of(Some(6), "thread 'grammar' has overflowed its stack").contains("16 MiB of stack"));
        assert!(of(Some(6), "memory allocation of 9 bytes failed").contains("384 MiB of memory"));
    }
}
