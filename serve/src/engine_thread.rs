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
use std::time::Instant;

use reel_engine::{
    Completion, ContinuousBatch, Engine, EngineError, GenerationRequest, Grammar, StepOutput, TokenEvent,
    TokenLogProbs, TokenText,
};
use reel_model::TokenId;
use reel_model::input::ModelInput;
use reel_model::input::request::RequestSettings;
use reel_runtime::Cx;
use tokio::sync::mpsc::UnboundedSender;

use crate::metrics::EngineGauges;
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
        /// Its log-probabilities, if the request asked for them.
        log_probs: Option<TokenLogProbs>,
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
    /// How tokens are sampled, and how many; with a limit of tokens.
    pub(crate) settings: RequestSettings,
    /// What a completion must look like.
    pub(crate) grammar: Option<Grammar>,
    /// When the request fails if it is not finished.
    pub(crate) deadline: Option<Instant>,
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
    gauges: Arc<EngineGauges>,
) -> std::io::Result<(EngineQueue, JoinHandle<Result<(), EngineError>>)> {
    let (jobs, queue) = mpsc::channel();
    let alive = Arc::new(AtomicBool::new(true));
    let flag = AliveFlag(alive.clone());
    let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
        let _alive = flag;
        run(&model, &text, limits, &gauges, &queue)
    })?;
    Ok((EngineQueue { jobs, alive }, thread))
}

fn run(
    model: &ServedModel,
    text: &TokenText,
    limits: Limits,
    gauges: &EngineGauges,
    queue: &mpsc::Receiver<Job>,
) -> Result<(), EngineError> {
    let cx = Cx::inference(&model.device, model.dtype);
    let engine = Engine::new(&model.weights, &cx)?.max_slots(limits.batch);
    let batch = engine.continuous_batch(limits.kv_bytes)?;
    let mut requests = Requests { model, text, batch, running: BTreeMap::new(), next: 0 };
    while requests.take_new(queue) {
        requests.cancel_abandoned()?;
        requests.step()?;
        gauges.set(requests.batch.stats());
    }
    Ok(())
}

/// A request that the batch has: its channel, and the number of completions that are not finished.
struct Running {
    events: UnboundedSender<Event>,
    unfinished: usize,
}

struct Requests<'e> {
    model: &'e ServedModel,
    text: &'e TokenText,
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
        let Job { prompt, settings, grammar, deadline, events } = job;
        let (unfinished, number) = (settings.n.unwrap_or(1), self.next);
        self.next += 1;
        let (generation, eos) = (&self.model.folder.generation, self.model.folder.stop_token_ids());
        // The server has set the limit of new tokens.
        let request = GenerationRequest::from_settings(prompt, &settings, generation, eos, 0, self.text);
        match self.batch.add(number, GenerationRequest { grammar, deadline, ..request }) {
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

fn send_token(events: &UnboundedSender<Event>, token: TokenEvent) {
    let log_probs = token.log_probs.cloned();
    // A closed channel has no reader; the request is cancelled before the next step.
    let _ = events.send(Event::Token { index: token.index, id: token.id, log_probs });
}
