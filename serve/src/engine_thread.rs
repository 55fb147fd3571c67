//! The thread that owns the engine: it takes requests from the queue, and sends each token to the request's channel.
//!
//! ```text
//! loop:
//!     take new requests from the queue and give them to the batch; if nothing is to do, sleep until one comes
//!     cancel requests whose channel is closed
//!     one step of the batch; send tokens, finished completions and errors
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use reel_engine::{
    Completion, ContinuousBatch, Engine, EngineError, GenerationRequest, SamplingParams, StepOutput, StopCondition,
    TokenEvent, TokenText,
};
use reel_model::TokenId;
use reel_model::input::ModelInput;
use reel_runtime::Cx;
use tokio::sync::mpsc::UnboundedSender;

use crate::{Limits, ServedModel};

/// What the engine tells the handler of a request.
#[derive(Debug)]
pub(crate) enum Event {
    /// A token of the completion with this index.
    Token {
        /// The index of the completion.
        index: usize,
        /// The token.
        id: TokenId,
    },
    /// All tokens of a completion were sent.
    Finished(Completion),
    /// The request failed; nothing follows.
    Failed(EngineError),
}

/// A request with everything that the engine needs.
#[derive(Debug)]
pub(crate) struct Job {
    /// The prompt.
    pub(crate) prompt: ModelInput,
    /// How tokens are sampled.
    pub(crate) sampling: SamplingParams,
    /// Maximum number of tokens of a completion.
    pub(crate) max_new_tokens: usize,
    /// Number of completions.
    pub(crate) n: usize,
    /// Strings that end a completion.
    pub(crate) stop: Vec<String>,
    /// Where the events go.
    pub(crate) events: UnboundedSender<Event>,
}

/// The queue to the engine's thread.
#[derive(Clone, Debug)]
pub(crate) struct EngineQueue {
    jobs: mpsc::Sender<Job>,
    alive: Arc<AtomicBool>,
}

impl EngineQueue {
    /// Whether the engine's thread runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::SeqCst)
    }

    /// Adds a request to the queue. If the engine's thread has ended, the request's channel closes without an event.
    pub(crate) fn send(&self, job: Job) {
        // The error returns the job; dropping it closes its channel.
        let _ = self.jobs.send(job);
    }
}

/// Clears a flag when it is dropped, also by a panic.
struct AliveFlag(Arc<AtomicBool>);

impl Drop for AliveFlag {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Starts the engine's thread. It ends once all clones of the queue are dropped.
///
/// # Errors
/// The thread cannot be created.
pub(crate) fn start(
    model: Arc<ServedModel>,
    text: TokenText,
    limits: Limits,
) -> std::io::Result<(EngineQueue, JoinHandle<Result<(), EngineError>>)> {
    let (jobs, queue) = mpsc::channel();
    let alive = Arc::new(AtomicBool::new(true));
    let flag = AliveFlag(alive.clone());
    let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
        let _alive = flag;
        run(&model, &text, limits, &queue)
    })?;
    Ok((EngineQueue { jobs, alive }, thread))
}

fn run(model: &ServedModel, text: &TokenText, limits: Limits, queue: &mpsc::Receiver<Job>) -> Result<(), EngineError> {
    let cx = Cx::inference(&model.device, model.dtype);
    let engine = Engine::new(&model.weights, &cx)?.max_slots(limits.batch);
    let batch = engine.continuous_batch(limits.kv_bytes)?;
    let eos_token_ids = model.folder.stop_token_ids();
    let mut requests = Requests { text, eos_token_ids, batch, running: BTreeMap::new(), next: 0 };
    while requests.take_new(queue) {
        requests.cancel_abandoned()?;
        requests.step()?;
    }
    Ok(())
}

/// A request that the batch has: its channel, and the number of completions that are not finished.
struct Running {
    events: UnboundedSender<Event>,
    unfinished: usize,
}

struct Requests<'e> {
    text: &'e TokenText,
    eos_token_ids: &'e [TokenId],
    batch: ContinuousBatch<'e, 'e, 'static>,
    /// The requests by the number that the batch knows them by.
    running: BTreeMap<usize, Running>,
    next: usize,
}

impl Requests<'_> {
    /// Gives all jobs that are in the queue to the batch. Waits for one if there is nothing else to do. Returns false
    /// once the queue is closed and no request is left.
    fn take_new(&mut self, queue: &mpsc::Receiver<Job>) -> bool {
        if self.running.is_empty() {
            match queue.recv() {
                Ok(job) => self.add(job),
                Err(mpsc::RecvError) => return false,
            }
        }
        queue.try_iter().for_each(|job| self.add(job));
        true
    }

    fn add(&mut self, job: Job) {
        let (events, unfinished, number) = (job.events.clone(), job.n, self.next);
        self.next += 1;
        match self.batch.add(number, request(job, self.text, self.eos_token_ids)) {
            Ok(()) => drop(self.running.insert(number, Running { events, unfinished })),
            // A closed channel has no reader.
            Err(e) => drop(events.send(Event::Failed(e))),
        }
    }

    /// Drops the requests whose channel is closed.
    fn cancel_abandoned(&mut self) -> Result<(), EngineError> {
        let abandoned = |(&request, running): (&usize, &Running)| running.events.is_closed().then_some(request);
        let abandoned: Vec<usize> = self.running.iter().filter_map(abandoned).collect();
        abandoned.into_iter().try_for_each(|request| {
            self.running.remove(&request);
            self.batch.cancel(request)
        })
    }

    /// Does one step for all requests. An error is one of the device: the server ends.
    fn step(&mut self) -> Result<(), EngineError> {
        let running = &self.running;
        let mut on_token = |token: TokenEvent| {
            if let Some(running) = running.get(&token.request) {
                send_token(&running.events, token);
            }
        };
        let StepOutput { completions, failed } = self.batch.step(&mut on_token)?;
        completions.into_iter().for_each(|completion| self.finish(completion));
        for (request, e) in failed {
            if let Some(running) = self.running.remove(&request) {
                let _ = running.events.send(Event::Failed(e));
            }
        }
        Ok(())
    }

    fn finish(&mut self, completion: Completion) {
        let number = completion.request;
        let Some(running) = self.running.get_mut(&number) else { return };
        // A closed channel has no reader; the request is removed below or by `cancel_abandoned`.
        let _ = running.events.send(Event::Finished(completion));
        running.unfinished -= 1;
        if running.unfinished == 0 {
            self.running.remove(&number);
        }
    }
}

/// The engine's form of a request. `text` decodes tokens to find stop strings.
fn request(job: Job, text: &TokenText, eos_token_ids: &[TokenId]) -> GenerationRequest<'static> {
    let stop = || match &job.stop[..] {
        [] => StopCondition::none(),
        strings => StopCondition::with_strings(strings, Box::new(text.clone())),
    };
    GenerationRequest {
        sampling: job.sampling,
        max_new_tokens: job.max_new_tokens,
        eos_token_ids: eos_token_ids.to_vec(),
        stop_conditions: (0..job.n).map(|_| stop()).collect(),
        ..GenerationRequest::new(job.prompt)
    }
}

fn send_token(events: &UnboundedSender<Event>, token: TokenEvent) {
    // A closed channel has no reader; the request is cancelled before the next step.
    let _ = events.send(Event::Token { index: token.index, id: token.id });
}
