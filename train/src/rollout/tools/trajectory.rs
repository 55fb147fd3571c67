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
    /// Why the last turn of the model ended.
    pub finish_reason: FinishReason,
    /// The prompt and all tokens of the completion, with all images and videos; only the prompt without turns of tools.
    pub sequence: Arc<ModelInput>,
    seed: u64,
}

impl Trajectory {
    fn calls(&self) -> impl Iterator<Item = &AnsweredCall> {
        self.turns.iter().flat_map(|turn| &turn.calls)
    }
}

/// A prompt, the number of its completions, and what tools know of it.
#[derive(Debug)]
pub struct ToolPrompt {
    /// The prompt.
    pub input: Arc<ModelInput>,
    /// The number of completions.
    pub completions: usize,
    /// The seed of the first completion; each further one adds 1.
    pub seed: u64,
    /// What tools know of the prompt.
    pub context: CallContext,
}

/// How the tokens of completions are sampled.
#[derive(Clone, Debug)]
pub struct TurnSampling {
    /// The parameters of the sampler; the seed is that of the completion.
    pub params: SamplingParams,
    /// Maximum number of tokens of a completion, with those of tools.
    pub max_tokens: usize,
    /// Minimum number of tokens of a completion, with those of tools.
    pub min_tokens: usize,
    /// The tokens that end a turn.
    pub stop_token_ids: Vec<TokenId>,
}

/// The calls of a turn, for a thread.
struct Job {
    request: usize,
    calls: Vec<ToolCall>,
    prompt: usize,
    max_frames: usize,
    ends_turn: bool,
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
    prompts: &[ToolPrompt],
    sampling: &TurnSampling,
    stop: &AtomicBool,
) -> Result<Vec<Vec<Trajectory>>> {
    let (send_job, jobs) = mpsc::channel::<Job>();
    let (send_answers, answers) = mpsc::channel::<Answers>();
    let jobs = Mutex::new(jobs);
    let next_job = || jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
    let work = |send: Sender<Answers>| {
        while let Some(job) = next_job() {
            let answered = answer_job(tools, model, &job, &prompts[job.prompt], stop);
            // The receiver is gone if the generation has failed.
            let _ = send.send((job.request, answered));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    thread::scope(|scope| {
        for _ in 0..threads {
            let (work, send) = (&work, send_answers.clone());
            thread::Builder::new()
                .name("tools".into())
                .spawn_scoped(scope, move || work(send))
                .map_err(|e| Error::cannot_start_thread("tools", &e))?;
        }
        // Dropping the loop's sender of jobs ends the threads, also after an error.
        let mut turns = TurnLoop {
            tools,
            model,
            prompts,
            sampling,
            stop,
            jobs: send_job,
            answers,
            waiting: HashMap::new(),
            running: HashMap::new(),
            next: prompts.len(),
            finished: Vec::new(),
        };
        let first_turns =
            prompts.iter().map(|prompt| turns.request(prompt.input.clone(), prompt.seed, 0, prompt.completions));
        let requests = first_turns.collect();
        engine.generate_with_continuations(requests, &mut turns, |_| {})?;
        let mut finished = turns.finished;
        finished.sort_by_key(|trajectory| trajectory.place);
        let mut by_prompt = vec![Vec::new(); prompts.len()];
        finished.into_iter().for_each(|trajectory: Trajectory| by_prompt[trajectory.place.0].push(trajectory));
        Ok(by_prompt)
    })
}

fn answer_job(
    tools: &ToolSet,
    model: &ModelFolder,
    job: &Job,
    prompt: &ToolPrompt,
    stop: &AtomicBool,
) -> Result<(Vec<AnsweredCall>, ModelInput)> {
    let (mut records, mut loaded, mut left) = (Vec::new(), Vec::new(), job.max_frames);
    for call in &job.calls {
        let (record, answer) = tools.answer(call.clone(), &prompt.context, model, left, stop)?;
        left -= record.frames;
        records.push(record);
        loaded.push(answer);
    }
    let thought = model.begun_thought(&prompt.input.input_ids);
    Ok((records, encode_tool_turn(model, loaded, job.ends_turn, thought)?))
}

/// The completions between their turns.
struct TurnLoop<'a> {
    tools: &'a ToolSet,
    model: &'a ModelFolder,
    prompts: &'a [ToolPrompt],
    sampling: &'a TurnSampling,
    stop: &'a AtomicBool,
    jobs: Sender<Job>,
    answers: Receiver<Answers>,
    /// The completions whose calls are being answered, by the index of their next request.
    waiting: HashMap<usize, Trajectory>,
    /// The completions whose next turn is being generated, by the index of its request.
    running: HashMap<usize, Trajectory>,
    /// The index of the next request.
    next: usize,
    finished: Vec<Trajectory>,
}

impl TurnLoop<'_> {
    /// The request of the next turn of completions that have `tokens` tokens so far.
    fn request(&self, input: Arc<ModelInput>, seed: u64, tokens: usize, completions: usize) -> GenerationRequest {
        let (options, sampling) = (self.tools.options(), self.sampling);
        let stop_condition = |_| match options.interrupts_after_call() {
            true => StopCondition::with_strings(&[options.tags()[1].to_string()], &self.model.tokenizer),
            false => StopCondition::none(),
        };
        GenerationRequest {
            sampling: SamplingParams { seed, ..sampling.params },
            max_new_tokens: sampling.max_tokens - tokens,
            min_new_tokens: sampling.min_tokens.saturating_sub(tokens),
            eos_token_ids: sampling.stop_token_ids.clone(),
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
        if t.ids.len() + turn.len() >= self.sampling.max_tokens {
            return Ok(None);
        }
        let tokens = t.ids.len()..t.ids.len() + turn.len();
        t.ids.extend_from_slice(&turn.input_ids);
        t.log_probs.resize(t.ids.len(), 0.0);
        t.turns.push(ToolTurn { tokens, calls });
        Arc::make_mut(&mut t.sequence).append(turn, &self.model.config, "the answer of a tool")?;
        Ok(Some(self.request(t.sequence.clone(), t.seed, t.ids.len(), 1)))
    }

    fn next_answers(&self, wait: bool) -> Result<Option<Answers>> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::interrupted());
            }
            if self.waiting.is_empty() {
                return Ok(None);
            }
            let time = if wait { STOP_CHECK_INTERVAL } else { Duration::ZERO };
            match self.answers.recv_timeout(time) {
                Ok(answers) => return Ok(Some(answers)),
                Err(RecvTimeoutError::Timeout) if wait => {}
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::failed("tools", "a thread that runs tools has panicked", "report this error"));
                }
            }
        }
    }
}

impl Continuations for TurnLoop<'_> {
    fn finish(&mut self, completion: Completion) -> Result<()> {
        let Completion { request, index, ids, log_probs, finish_reason, .. } = completion;
        let mut t = self.running.remove(&request).unwrap_or_else(|| Trajectory {
            place: (request, index),
            ids: Vec::new(),
            log_probs: Vec::new(),
            turns: Vec::new(),
            finish_reason,
            sequence: self.prompts[request].input.clone(),
            seed: self.prompts[request].seed.wrapping_add(index as u64),
        });
        t.finish_reason = finish_reason;
        t.log_probs.extend(log_probs);
        let options = self.tools.options();
        let calls = calls_in(&self.model.tokenizer.decode(&ids, true), options.tags());
        let ends_turn = ids.last().is_some_and(|id| self.sampling.stop_token_ids.contains(id));
        let is_last = calls.is_empty()
            || finish_reason == FinishReason::Length
            || t.calls().count() + calls.len() > options.max_tool_calls;
        t.ids.extend_from_slice(&ids);
        // A completion without tools needs no copy of the prompt's frames.
        if !is_last || !t.turns.is_empty() {
            let own = ModelInput { input_ids: ids, ..ModelInput::default() };
            Arc::make_mut(&mut t.sequence).append(&own, &self.model.config, "a completion")?;
        }
        if is_last {
            self.finished.push(t);
            return Ok(());
        }
        let shown: usize = t.calls().map(|call| call.frames).sum();
        let max_frames = options.max_tool_frames.saturating_sub(shown);
        let job = Job { request: self.next, calls, prompt: t.place.0, max_frames, ends_turn };
        self.waiting.insert(self.next, t);
        self.next += 1;
        let gone = |_| Error::failed("tools", "the threads that run tools have ended", "report this error");
        self.jobs.send(job).map_err(gone)
    }

    fn next_request(&mut self, wait: bool) -> Result<Option<(usize, GenerationRequest)>> {
        while let Some((index, answered)) = self.next_answers(wait)? {
            let (calls, turn) = answered?;
            let Some(mut t) = self.waiting.remove(&index) else { continue };
            match self.continue_with(&mut t, calls, &turn)? {
                Some(request) => {
                    self.running.insert(index, t);
                    return Ok(Some((index, request)));
                }
                None => self.finished.push(t),
            }
        }
        Ok(None)
    }
}
