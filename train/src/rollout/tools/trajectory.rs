//! Samples completions whose model calls tools: the engine generates the model's turns, threads run the tools, and each
//! answer becomes the prompt of the next turn.
//!
//! ```text
//! a turn of the model is finished
//!     no call, no tokens left, or too many calls    the completion is finished
//!     else                                          threads answer the calls
//! the calls are answered
//!     the answer does not fit                       the completion is finished
//!     else                                          request: prompt + all turns + answer
//! ```
//! A completion depends on its prompt, its seed and the answers of its tools only: not on the order in which tools answer.
//! Rollouts give all prompts to the engine at once ([`generate_with_tools`]); evaluations add prompts and turns to a
//! running batch ([`TurnLoop`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use reel_engine::{Completion, Continuations, Engine, FinishReason, GenerationRequest, SamplingParams, StopCondition};
use reel_input::{ModelFolder, ModelInput, TokenId};

use super::call::{ToolCall, calls_in};
use super::content::{AnsweredCall, ToolTurn, encode_tool_turn};
use super::{CallContext, ToolSet};
use crate::error::{Error, Result};

/// Maximum number of threads that run tools.
const MAX_THREADS: usize = 8;

/// Interval at which a wait for tools checks whether the run is interrupted.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// A completion with the turns of tools in it.
#[derive(Clone, Debug)]
pub struct Trajectory {
    /// The index of the prompt, and of the completion among those of the prompt.
    pub place: (usize, usize),
    /// All tokens of the completion: those of the model and those of tools.
    pub ids: Vec<TokenId>,
    /// The log-probability of each token of the model; 0 for tokens of tools.
    pub log_probs: Vec<f32>,
    /// The turns of tools, in order.
    pub turns: Vec<ToolTurn>,
    /// Why the completion ended: [`FinishReason::Length`] also if the answer of a tool did not fit.
    pub finish_reason: FinishReason,
    /// The prompt and all tokens of the completion, with all images and videos; only the prompt without turns of tools.
    pub sequence: Arc<ModelInput>,
}

impl Trajectory {
    /// The calls that tools have answered, in order.
    pub fn calls(&self) -> impl Iterator<Item = &AnsweredCall> {
        self.turns.iter().flat_map(|turn| &turn.calls)
    }

    /// The tokens of the last turn of the model, which rules score.
    pub fn last_turn(&self) -> &[TokenId] {
        &self.ids[self.turns.last().map_or(0, |turn| turn.tokens.end)..]
    }
}

/// A prompt whose completions may call tools.
#[derive(Debug)]
pub struct ToolPrompt {
    /// The request of the completions. Its numbers of new tokens count those of tools, too; it has no stop strings.
    pub request: GenerationRequest,
    /// What tools know of the prompt.
    pub context: Arc<CallContext>,
}

/// The calls of a turn, for a thread.
struct Job {
    request: usize,
    calls: Vec<ToolCall>,
    context: Arc<CallContext>,
    max_frames: usize,
    ends_turn: bool,
    /// The text with which the template begins the model's turn.
    begun_thought: &'static str,
}

/// The answers to a job: the record of the calls, and the turn as model input.
type Answers = (usize, Result<(Vec<AnsweredCall>, ModelInput)>);

/// Generates the completions of `prompts` with tools. Returns them by prompt, in the order of the prompts.
///
/// # Errors
/// The errors of the engine; `stop` is true; videos cannot be decoded on this machine.
pub fn generate_with_tools(
    engine: &Engine<'_>,
    tools: &ToolSet,
    model: &ModelFolder,
    prompts: Vec<ToolPrompt>,
    stop: &AtomicBool,
) -> Result<Vec<Vec<Trajectory>>> {
    let mut by_prompt = vec![Vec::new(); prompts.len()];
    TurnLoop::run(tools, model, prompts.len(), stop, |mut turns| {
        let requests = prompts.into_iter().enumerate().map(|(index, prompt)| turns.add(index, prompt)).collect();
        engine.generate_with_continuations(requests, &mut turns, |_| {})?;
        let mut finished = turns.take_finished();
        finished.sort_by_key(|trajectory| trajectory.place);
        finished.into_iter().for_each(|trajectory| by_prompt[trajectory.place.0].push(trajectory));
        Ok(by_prompt)
    })
}

fn answer_job(
    tools: &ToolSet,
    model: &ModelFolder,
    job: &Job,
    stop: &AtomicBool,
) -> Result<(Vec<AnsweredCall>, ModelInput)> {
    let (mut records, mut loaded, mut left) = (Vec::new(), Vec::new(), job.max_frames);
    for call in &job.calls {
        let (record, answer) = tools.answer(call.clone(), &job.context, model, left, stop)?;
        left -= record.frames;
        records.push(record);
        loaded.push(answer);
    }
    Ok((records, encode_tool_turn(model, loaded, job.ends_turn, job.begun_thought)?))
}

/// The completions of prompts between their turns. The caller gives the requests to the engine and each finished turn
/// back to [`Continuations::finish`].
pub struct TurnLoop<'a> {
    tools: &'a ToolSet,
    model: &'a ModelFolder,
    stop: &'a AtomicBool,
    jobs: Sender<Job>,
    answers: Receiver<Answers>,
    prompts: HashMap<usize, ToolPrompt>,
    /// The completions whose calls are being answered, by the index of their next request.
    waiting: HashMap<usize, Trajectory>,
    /// The completions whose next turn is being generated, by the index of its request.
    running: HashMap<usize, Trajectory>,
    /// The index of the next request.
    next: usize,
    finished: Vec<Trajectory>,
}

impl<'a> TurnLoop<'a> {
    /// Calls `work` with a loop whose tools run in threads, and ends the threads. The requests of the first turns have
    /// the indices of their prompts, below `prompts`; those of further turns have indices from `prompts` on.
    ///
    /// # Errors
    /// A thread cannot be started; the errors of `work`.
    pub fn run<T>(
        tools: &'a ToolSet,
        model: &'a ModelFolder,
        prompts: usize,
        stop: &'a AtomicBool,
        work: impl FnOnce(TurnLoop<'a>) -> Result<T>,
    ) -> Result<T> {
        let (send_job, jobs) = mpsc::channel::<Job>();
        let (send_answers, answers) = mpsc::channel::<Answers>();
        let jobs = Mutex::new(jobs);
        let next_job = || jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
        let answer_jobs = |send: Sender<Answers>| {
            while let Some(job) = next_job() {
                // The receiver is gone if the generation has failed.
                let _ = send.send((job.request, answer_job(tools, model, &job, stop)));
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        thread::scope(|scope| {
            for _ in 0..threads {
                let (answer_jobs, send) = (&answer_jobs, send_answers.clone());
                thread::Builder::new()
                    .name("tools".into())
                    .spawn_scoped(scope, move || answer_jobs(send))
                    .map_err(|e| Error::cannot_start_thread("tools", &e))?;
            }
            // `work` drops the loop's sender of jobs, which ends the threads, also after an error.
            let (waiting, running) = (HashMap::new(), HashMap::new());
            let (jobs, finished, next) = (send_job, Vec::new(), prompts);
            let prompts = HashMap::new();
            work(TurnLoop { tools, model, stop, jobs, answers, prompts, waiting, running, next, finished })
        })
    }

    /// Adds a prompt. Returns the request of the first turns of its completions, whose index is `index`.
    pub fn add(&mut self, index: usize, prompt: ToolPrompt) -> GenerationRequest {
        let GenerationRequest { prompt: input, sampling, stop_conditions, .. } = &prompt.request;
        let request = self.turn_request(&prompt.request, input.clone(), sampling.seed, 0, stop_conditions.len());
        self.prompts.insert(index, prompt);
        request
    }

    /// Removes a prompt and its completions. Returns the indices of its requests.
    pub fn remove(&mut self, prompt: usize) -> Vec<usize> {
        self.prompts.remove(&prompt);
        self.waiting.retain(|_, t| t.place.0 != prompt);
        let requests = self.running.extract_if(|_, t| t.place.0 == prompt).map(|(request, _)| request);
        requests.chain([prompt]).collect()
    }

    /// The prompt of a request.
    pub fn prompt_of(&self, request: usize) -> usize {
        self.running.get(&request).map_or(request, |t| t.place.0)
    }

    /// The number of completions whose calls are being answered.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// The completions that have finished since the last call.
    pub fn take_finished(&mut self) -> Vec<Trajectory> {
        std::mem::take(&mut self.finished)
    }

    /// Takes an answer of tools; waits for it at most for `time`. Returns the request of the next turn with its index;
    /// `None` if there is no answer, or if it ends its completion.
    ///
    /// # Errors
    /// The run is interrupted; videos cannot be decoded on this machine.
    pub fn next_turn(&mut self, time: Duration) -> Result<Option<(usize, GenerationRequest)>> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted());
        }
        if self.waiting.is_empty() {
            return Ok(None);
        }
        let (index, answered) = match self.answers.recv_timeout(time) {
            Ok(answers) => answers,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::failed("tools", "a thread that runs tools has panicked", "report this error"));
            }
        };
        // The prompt may have been removed meanwhile.
        let Some(mut t) = self.waiting.remove(&index) else { return Ok(None) };
        let (calls, turn) = answered?;
        let request = self.continue_with(&mut t, calls, &turn)?;
        match &request {
            Some(_) => drop(self.running.insert(index, t)),
            None => self.finished.push(t),
        }
        Ok(request.map(|request| (index, request)))
    }

    /// The request of the next turn of completions that have `tokens` tokens so far. `whole` is that of the prompt.
    fn turn_request(
        &self,
        whole: &GenerationRequest,
        input: Arc<ModelInput>,
        seed: u64,
        tokens: usize,
        completions: usize,
    ) -> GenerationRequest {
        let options = self.tools.options();
        let stop_condition = |_| match options.interrupts_after_call() {
            true => StopCondition::with_strings(&[options.tags()[1].to_string()], &self.model.tokenizer),
            false => StopCondition::none(),
        };
        GenerationRequest {
            sampling: SamplingParams { seed, ..whole.sampling },
            max_new_tokens: whole.max_new_tokens - tokens,
            min_new_tokens: whole.min_new_tokens.saturating_sub(tokens),
            eos_token_ids: whole.eos_token_ids.clone(),
            stop_conditions: (0..completions).map(stop_condition).collect(),
            ..GenerationRequest::new(input)
        }
    }

    /// Appends the answer of tools. Returns the request of the next turn, or `None` if the answer does not fit.
    fn continue_with(
        &self,
        t: &mut Trajectory,
        calls: Vec<AnsweredCall>,
        turn: &ModelInput,
    ) -> Result<Option<GenerationRequest>> {
        let whole = &self.prompts[&t.place.0].request;
        if t.ids.len() + turn.len() >= whole.max_new_tokens {
            t.finish_reason = FinishReason::Length;
            return Ok(None);
        }
        let tokens = t.ids.len()..t.ids.len() + turn.len();
        t.ids.extend_from_slice(&turn.input_ids);
        t.log_probs.resize(t.ids.len(), 0.0);
        t.turns.push(ToolTurn { tokens, calls });
        Arc::make_mut(&mut t.sequence).append(turn, &self.model.config, "the answer of a tool")?;
        let seed = whole.sampling.seed.wrapping_add(t.place.1 as u64);
        Ok(Some(self.turn_request(whole, t.sequence.clone(), seed, t.ids.len(), 1)))
    }
}

impl Continuations for TurnLoop<'_> {
    fn finish(&mut self, completion: Completion) -> Result<()> {
        let Completion { request, index, ids, log_probs, finish_reason, .. } = completion;
        let continued = self.running.remove(&request);
        let prompt = continued.as_ref().map_or(request, |t| t.place.0);
        // The prompt has been removed.
        let Some(ToolPrompt { request: whole, context }) = self.prompts.get(&prompt) else { return Ok(()) };
        let mut t = continued.unwrap_or_else(|| Trajectory {
            place: (prompt, index),
            ids: Vec::new(),
            log_probs: Vec::new(),
            turns: Vec::new(),
            finish_reason,
            sequence: whole.prompt.clone(),
        });
        t.finish_reason = finish_reason;
        t.log_probs.extend(log_probs);
        let options = self.tools.options();
        let calls = calls_in(&self.model.tokenizer.decode(&ids, true), options.tags());
        let ends_turn = ids.last().is_some_and(|id| whole.eos_token_ids.contains(id));
        let is_last = calls.is_empty()
            || finish_reason == FinishReason::Length
            || t.calls().count() + calls.len() > options.max_tool_calls;
        t.ids.extend_from_slice(&ids);
        // A completion without tools needs no copy of the prompt's tokens and positions.
        if !is_last || !t.turns.is_empty() {
            let own = ModelInput { input_ids: ids, ..ModelInput::default() };
            Arc::make_mut(&mut t.sequence).append(&own, &self.model.config, "a completion")?;
        }
        if is_last {
            self.finished.push(t);
            return Ok(());
        }
        let shown: usize = t.calls().map(|call| call.frames).sum();
        let job = Job {
            request: self.next,
            calls,
            context: context.clone(),
            max_frames: options.max_tool_frames.saturating_sub(shown),
            ends_turn,
            begun_thought: self.model.begun_thought(&whole.prompt.input_ids),
        };
        self.waiting.insert(self.next, t);
        self.next += 1;
        let gone = |_| Error::failed("tools", "the threads that run tools have ended", "report this error");
        self.jobs.send(job).map_err(gone)
    }

    fn next_request(&mut self, wait: bool) -> Result<Option<(usize, GenerationRequest)>> {
        loop {
            let turn = self.next_turn(if wait { STOP_CHECK_INTERVAL } else { Duration::ZERO })?;
            if turn.is_some() || !wait || self.waiting.is_empty() {
                return Ok(turn);
            }
        }
    }
}
