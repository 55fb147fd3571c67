//! The thread that owns the engine: it takes commands from the queue, and sends each token to its request's channel.
//!
//! ```text
//! loop:
//!     sleep until a command comes if nothing is to do
//!     take the commands in the queue:
//!         a request: give it to the batch
//!         new weights: load them; if that succeeds, all requests go on with them
//!         a LoRA adapter: load or unload it
//!     cancel requests whose channel is closed
//!     one step of the batch; send tokens, finished completions and errors
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use reel_device::{DType, Device};
use reel_engine::{
    AdapterId, Completion, ContinuousBatch, Engine, GenerationRequest, Grammar, StepOutput, TokenEvent, TokenLogProbs,
};
use reel_input::request::RequestSettings;
use reel_input::{ModelInput, TokenId};
use reel_model::lora::{Adapter, AdapterSource};
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::error::{Error, Kind, Result};
use crate::metrics::EngineGauges;
use crate::settings::{ServeError, ServedModel, ServerLimits};
use crate::step_message::StepWriter;

/// What the engine tells the handler of a request.
#[derive(Debug)]
pub(crate) enum GenerationEvent {
    /// A token of the completion with this index.
    Token {
        /// The index of the completion.
        index: usize,
        /// The token.
        id: TokenId,
        /// The token's log-probabilities, if the request asked for them.
        log_probs: Option<TokenLogProbs>,
        /// The number of tokens of the prompt that were in the prefix cache.
        cached_tokens: usize,
    },
    /// All tokens of a completion were sent.
    Finished(Completion),
    /// The request failed. No further event follows.
    Failed(Error),
}

/// A request with everything that the engine needs.
#[derive(Debug)]
pub(crate) struct GenerationJob {
    /// The prompt.
    pub(crate) prompt: ModelInput,
    /// The sampling settings, which contain a limit of new tokens.
    pub(crate) settings: RequestSettings,
    /// The grammar that a completion must follow.
    pub(crate) grammar: Option<Grammar>,
    /// The LoRA adapter.
    pub(crate) adapter: Option<AdapterId>,
    /// The time at which the request fails if it is not finished.
    pub(crate) deadline: Option<Instant>,
}

/// Loads weights onto a device, for activations of a dtype. The closure runs on the engine's thread, so that no step
/// of the engine is captured or launched at the same time. The files have already been checked as far as possible.
pub(crate) type LoadWeights = Box<dyn FnOnce(&Device, DType) -> Result<QwenVl> + Send>;

/// Opens an adapter, on the engine's thread.
pub(crate) type OpenAdapter = Box<dyn FnOnce() -> Result<Adapter> + Send>;

/// A command to replace the weights.
pub(crate) struct ReplaceWeightsCommand {
    /// The folder of the weights.
    pub(crate) folder: PathBuf,
    /// Loads the new weights. If this fails, the old weights stay in service.
    pub(crate) load: LoadWeights,
    /// Receives the number of unfinished requests that continue with the new weights.
    pub(crate) done: oneshot::Sender<Result<usize>>,
}

/// A command to load a LoRA adapter.
pub(crate) struct LoadAdapterCommand {
    /// The folder of the adapter.
    pub(crate) folder: PathBuf,
    /// Opens the adapter and checks that it fits the model, if this was not done before.
    pub(crate) open: OpenAdapter,
    /// Gets the adapter's id.
    pub(crate) done: oneshot::Sender<Result<AdapterId>>,
}

/// A command to the engine's thread.
pub(crate) enum EngineCommand {
    /// A request, and the channel that receives its events.
    Generate(Box<GenerationJob>, UnboundedSender<GenerationEvent>),
    /// Replaces the weights.
    ReplaceWeights(ReplaceWeightsCommand),
    /// Loads an adapter.
    LoadAdapter(Box<LoadAdapterCommand>),
    /// Unloads an adapter.
    UnloadAdapter(AdapterId),
    /// Calls a function between two steps. Other processes that serve the model do not call it.
    Call(Box<dyn FnOnce() + Send>),
}

/// The queue to the engine's thread.
#[derive(Clone)]
pub(crate) struct EngineQueue {
    commands: mpsc::Sender<EngineCommand>,
    alive: Arc<AtomicBool>,
}

impl EngineQueue {
    /// A queue without an engine: the receiver gets the commands.
    pub(crate) fn without_engine() -> (Self, mpsc::Receiver<EngineCommand>) {
        let (commands, received) = mpsc::channel();
        (Self { commands, alive: Arc::new(AtomicBool::new(true)) }, received)
    }

    /// Whether the engine's thread runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::SeqCst)
    }

    /// Adds a request to the queue. If the engine's thread has ended, the request's channel closes without an event.
    pub(crate) fn send_request(&self, job: GenerationJob, events: UnboundedSender<GenerationEvent>) {
        // If sending fails, the returned error holds the command. Dropping the error closes the request's channel.
        let _ = self.commands.send(EngineCommand::Generate(Box::new(job), events));
    }

    /// Loads an adapter. If the engine's thread has ended, `done` closes without a result.
    pub(crate) fn load_adapter(&self, adapter: LoadAdapterCommand) {
        let _ = self.commands.send(EngineCommand::LoadAdapter(Box::new(adapter)));
    }

    /// Calls `f` on the engine's thread, between two steps. If the thread has ended, drops `f`.
    pub(crate) fn run_on_engine_thread(&self, f: Box<dyn FnOnce() + Send>) {
        let _ = self.commands.send(EngineCommand::Call(f));
    }

    /// Unloads an adapter. Requests for this adapter that are queued or running are still answered.
    pub(crate) fn unload_adapter(&self, id: AdapterId) {
        let _ = self.commands.send(EngineCommand::UnloadAdapter(id));
    }

    /// Replaces the weights once the engine's thread has taken the commands before this one. If the thread has ended,
    /// `done` closes without a result.
    pub(crate) fn replace_weights(&self, weights: ReplaceWeightsCommand) {
        let _ = self.commands.send(EngineCommand::ReplaceWeights(weights));
    }
}

/// A flag that is cleared when this value is dropped, even by a panic.
struct AliveFlag(Arc<AtomicBool>);

impl Drop for AliveFlag {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// The stack size of the engine's thread in bytes: as much as the main thread has, on which other commands generate. A
/// worker process has followed each grammar for some tokens on a stack of 256 KiB.
const STACK_BYTES: usize = 8 << 20;

/// Starts the engine's thread and waits until the thread has allocated its KV cache. The thread ends once all clones of
/// the queue are dropped.
///
/// # Errors
/// The thread cannot be created; the device is out of memory; the thread has panicked.
pub(crate) fn start(
    model: Arc<ServedModel>,
    weights: QwenVl,
    limits: ServerLimits,
    gauges: Arc<EngineGauges>,
) -> Result<(EngineQueue, JoinHandle<Result<()>>), ServeError> {
    let (commands, received) = mpsc::channel();
    let (ready, is_ready) = mpsc::channel();
    let channels = Channels { commands: received, ready };
    let alive = Arc::new(AtomicBool::new(true));
    let flag = AliveFlag(alive.clone());
    let thread = std::thread::Builder::new().name("engine".into()).stack_size(STACK_BYTES).spawn(move || {
        let _alive = flag;
        run(&model, weights, limits, &gauges, channels)
    })?;
    match is_ready.recv() {
        Ok(()) => Ok((EngineQueue { commands, alive }, thread)),
        // The sender was dropped, so the thread has ended, by an error or a panic.
        Err(mpsc::RecvError) => match thread.join() {
            Ok(Err(e)) => Err(e.into()),
            Ok(Ok(())) | Err(_) => Err(ServeError::EnginePanicked),
        },
    }
}

/// The ends of the channels that belong to the engine's thread.
struct Channels {
    commands: mpsc::Receiver<EngineCommand>,
    /// Receives one message when the KV cache is allocated.
    ready: mpsc::Sender<()>,
}

fn run(
    model: &ServedModel,
    weights: QwenVl,
    limits: ServerLimits,
    gauges: &EngineGauges,
    channels: Channels,
) -> Result<()> {
    let cx = Cx::inference(&model.device, model.dtype);
    let engine = Engine::new(&weights, &cx)?.max_slots(limits.batch);
    // Drops this reference to the weights. Then only the engine holds them, and replacing the weights frees their
    // memory.
    drop(weights);
    let batch = engine.continuous_batch(limits.kv_bytes)?;
    // The function `start` waits for this message.
    let _ = channels.ready.send(());
    batch.prefault_kv_blocks();
    let mut requests = ServedRequests::new(model, batch);
    loop {
        let mut first = None;
        if requests.running.is_empty() {
            match channels.commands.recv() {
                Ok(command) => first = Some(command),
                Err(mpsc::RecvError) => break,
            }
        }
        let commands = call_functions(first.into_iter().chain(channels.commands.try_iter()));
        let dropped = requests.abandoned_or_late();
        if let Some(divided) = &model.divided {
            divided.send_step(step_message(&commands, &dropped)?)?;
        }
        commands.into_iter().try_for_each(|command| requests.execute(command))?;
        requests.drop_requests(&dropped)?;
        requests.step()?;
        gauges.set(requests.batch.stats());
    }
    if let Some(divided) = &model.divided {
        divided.send_step(Vec::new())?;
    }
    Ok(())
}

/// Calls the functions among `commands`, and returns the other commands.
fn call_functions(commands: impl Iterator<Item = EngineCommand>) -> Vec<EngineCommand> {
    let call = |command| match command {
        EngineCommand::Call(f) => {
            f();
            None
        }
        other => Some(other),
    };
    commands.filter_map(call).collect()
}

/// The message about a step for the other processes that serve the model.
fn step_message(commands: &[EngineCommand], dropped: &[u64]) -> Result<Vec<u8>> {
    let mut message = StepWriter::new(commands.len(), dropped);
    for command in commands {
        match command {
            EngineCommand::Generate(job, _) => {
                let written = message.add_request(&job.prompt, &job.settings, job.adapter);
                written.map_err(|e| Error::request("request", e.to_string(), ""))?;
            }
            EngineCommand::ReplaceWeights(weights) => message.add_weight_replacement(&weights.folder),
            EngineCommand::LoadAdapter(adapter) => message.add_adapter_load(&adapter.folder),
            EngineCommand::UnloadAdapter(id) => message.add_adapter_unload(*id),
            EngineCommand::Call(_) => {}
        }
    }
    Ok(message.into_bytes())
}

/// A request in the batch: its channel, and the number of its unfinished completions.
struct Running {
    events: UnboundedSender<GenerationEvent>,
    unfinished: usize,
    /// The deadline, if the engine's thread instead of the batch checks it.
    deadline: Option<Instant>,
}

/// The requests of the batch, and the channels that receive their results.
pub(crate) struct ServedRequests<'e> {
    model: &'e ServedModel,
    batch: ContinuousBatch<'e, 'e>,
    /// The requests, by their number in the batch.
    running: BTreeMap<usize, Running>,
    next: usize,
}

impl<'e> ServedRequests<'e> {
    pub(crate) fn new(model: &'e ServedModel, batch: ContinuousBatch<'e, 'e>) -> Self {
        ServedRequests { model, batch, running: BTreeMap::new(), next: 0 }
    }

    /// Executes a command.
    ///
    /// # Errors
    /// A device error; another process that serves the model has failed.
    pub(crate) fn execute(&mut self, command: EngineCommand) -> Result<()> {
        match command {
            EngineCommand::Generate(job, events) => self.add(*job, events),
            EngineCommand::ReplaceWeights(weights) => self.replace_weights(weights)?,
            EngineCommand::LoadAdapter(adapter) => self.load_adapter(*adapter)?,
            EngineCommand::UnloadAdapter(id) => {
                let running = &self.running;
                self.batch.unload_adapter(id, &mut |token| send_event(running, token))?;
            }
            EngineCommand::Call(f) => f(),
        }
        Ok(())
    }

    /// Loads an adapter. An error about the adapter itself is sent to the request; an error of the device is returned
    /// and ends the server.
    fn load_adapter(&mut self, adapter: LoadAdapterCommand) -> Result<()> {
        let LoadAdapterCommand { open, done, .. } = adapter;
        let ServedModel { device, dtype, .. } = self.model;
        let with_adapter =
            |adapter| self.batch.model().with_adapter(device, *dtype, AdapterSource::Files(&adapter), false);
        let adapted = match self.agree_on_load("an adapter", open().and_then(with_adapter))? {
            Ok(adapted) => adapted,
            Err(e) => {
                let _ = done.send(Err(e));
                return Ok(());
            }
        };
        let running = &self.running;
        let loaded = match self.batch.load_adapter(adapted, &mut |token| send_event(running, token)) {
            Err(e) if e.kind == Kind::Request || self.may_fail_alone(&e) => Err(e),
            other => Ok(other?),
        };
        // Sending fails only if the request that waits for the result is gone.
        let _ = done.send(loaded);
        Ok(())
    }

    /// Loads new weights and continues with them. If loading fails, the old weights stay. A returned error is an
    /// error of the device.
    fn replace_weights(&mut self, weights: ReplaceWeightsCommand) -> Result<()> {
        let ReplaceWeightsCommand { load, done, .. } = weights;
        let loaded = load(&self.model.device, self.model.dtype);
        let loaded = match self.agree_on_load("new weights", loaded)? {
            Ok(loaded) => loaded,
            Err(e) => {
                let _ = done.send(Err(e));
                return Ok(());
            }
        };
        let running = &self.running;
        let replaced = self.batch.replace_weights(loaded, &mut |token| send_event(running, token));
        let replaced = match replaced {
            // These errors leave the old weights unchanged.
            Err(e) if e.kind == Kind::Request || self.may_fail_alone(&e) => Err(e),
            other => Ok(other?),
        };
        // Sending fails only if the request that waits for the result is gone.
        let _ = done.send(replaced);
        Ok(())
    }

    /// Returns `loaded` if loading has succeeded on all processes that serve the model, otherwise an error.
    fn agree_on_load<T>(&self, name: &str, loaded: Result<T>) -> Result<Result<T, Error>> {
        match &self.model.divided {
            Some(divided) => divided.agree_on_load(name, loaded),
            None => Ok(loaded),
        }
    }

    /// Whether the server can continue after a change of weights or adapters has failed with this error. It cannot if
    /// several processes serve the model, because the other processes have made the change. A device that has failed
    /// ends the server at its next step.
    fn may_fail_alone(&self, e: &Error) -> bool {
        use Kind::{Device, Failed, Input, Io, OutOfMemory, Usage};
        self.model.divided.is_none() && matches!(e.kind, Device | Failed | Input | Io | OutOfMemory | Usage)
    }

    fn add(&mut self, job: GenerationJob, events: UnboundedSender<GenerationEvent>) {
        let GenerationJob { prompt, settings, grammar, adapter, deadline } = job;
        let (unfinished, number) = (settings.n.unwrap_or(1), self.next);
        self.next += 1;
        // The settings already contain a limit of new tokens, so the default of 0 is not used.
        let request = GenerationRequest::from_settings(prompt, &settings, &self.model.folder, 0);
        // The clocks of several processes differ, so rank 0 alone decides which requests are late.
        let (of_batch, deadline) = if self.model.divided.is_some() { (None, deadline) } else { (deadline, None) };
        match self.batch.add(number, GenerationRequest { grammar, adapter, deadline: of_batch, ..request }) {
            Ok(()) => drop(self.running.insert(number, Running { events, unfinished, deadline })),
            // Sending fails only if the request's handler is gone.
            Err(e) => drop(events.send(GenerationEvent::Failed(e))),
        }
    }

    /// The requests whose channel is closed, and the requests whose deadline is over. A request past its deadline
    /// fails.
    fn abandoned_or_late(&self) -> Vec<u64> {
        let now = Instant::now();
        let is_late = |running: &Running| running.deadline.is_some_and(|deadline| deadline <= now);
        let dropped = self.running.iter().filter(|(_, running)| running.events.is_closed() || is_late(running));
        // Sending to a closed channel has no effect.
        dropped
            .inspect(|(_, running)| drop(running.events.send(GenerationEvent::Failed(Error::deadline_exceeded()))))
            .map(|(&request, _)| request as u64)
            .collect()
    }

    /// Drops requests.
    ///
    /// # Errors
    /// A device error.
    pub(crate) fn drop_requests(&mut self, dropped: &[u64]) -> Result<()> {
        dropped.iter().map(|&request| request as usize).try_for_each(|request| {
            self.running.remove(&request);
            self.batch.cancel(request)
        })
    }

    /// Does one step for all requests. A returned error is an error of the device, which ends the server.
    pub(crate) fn step(&mut self) -> Result<()> {
        let running = &self.running;
        let StepOutput { completions, failed } = self.batch.step(&mut |token| send_event(running, token))?;
        completions.into_iter().for_each(|completion| self.finish(completion));
        for (request, e) in failed {
            if let Some(running) = self.running.remove(&request) {
                let _ = running.events.send(GenerationEvent::Failed(e));
            }
        }
        Ok(())
    }

    fn finish(&mut self, completion: Completion) {
        let number = completion.request;
        let Some(running) = self.running.get_mut(&number) else { return };
        // Sending fails only if the request's handler is gone. Then the request is removed here or dropped before the
        // next step.
        let _ = running.events.send(GenerationEvent::Finished(completion));
        running.unfinished -= 1;
        if running.unfinished == 0 {
            self.running.remove(&number);
        }
    }
}

fn send_event(requests: &BTreeMap<usize, Running>, token: TokenEvent) {
    let Some(running) = requests.get(&token.request) else { return };
    let (log_probs, cached_tokens) = (token.log_probs.cloned(), token.cached_tokens);
    // Sending fails only if the request's handler is gone. Then the request is dropped before the next step.
    let _ = running.events.send(GenerationEvent::Token { index: token.index, id: token.id, log_probs, cached_tokens });
}
