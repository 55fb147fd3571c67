//! The loop of a prediction run: adds the prompts of rows to the running batch and writes a line for each finished row.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use reel_diagnostic::Diagnostic;
use reel_engine::{
    Completion, ContinuousBatch, Engine, EngineError, GenerationRequest, SamplingParams, StepOutput, StopCondition,
    TokenText, completion_text, new_tokens_within_positions,
};
use reel_input::ModelInput;
use reel_runs::reporting::progress::Progress;
use reel_samples::error_if_stopped;
use reel_samples::feed::{Prefetcher, SampleSource, decoding_threads, is_row_error};
use reel_samples::order::RowOrder;
use reel_train::live_server::{DeviceLender, LiveServer};
use reel_train::{Result, TrainError};
use serde::Serialize;

use crate::file::PredictionFile;
use crate::line::{RowResult, error_line, prediction_line};
use crate::prompts::RowPrompts;

/// How long the loop waits for the media of a row before it checks again whether the run was interrupted.
const PATIENCE: Duration = Duration::from_millis(100);

/// How the completions of each row are sampled.
#[derive(Clone, Debug)]
pub struct SamplingSettings {
    /// Sampling parameters. Their seed is ignored: each row has its own seed.
    pub params: SamplingParams,
    /// Maximum number of tokens of a completion. A completion also ends at the last position of the model.
    pub max_new_tokens: usize,
    /// Number of completions of each row.
    pub n: usize,
    /// Strings that end a completion.
    pub stop: Vec<String>,
}

/// A run that generates completions for the rows of a data file.
pub struct PredictionRun<'a> {
    /// The rows.
    pub prompts: Arc<RowPrompts>,
    /// The engine; its number of slots is the maximum number of sequences that decode together.
    pub engine: &'a Engine<'a>,
    /// How completions are sampled.
    pub sampling: SamplingSettings,
    /// Maximum size of the KV cache of all sequences that decode together, in bytes.
    pub max_kv_bytes: u64,
    /// Whether the first row that cannot be used ends the run with an error.
    pub strict: bool,
    /// Whether the run prints no progress.
    pub quiet: bool,
    /// Becomes true when the run is to stop (Ctrl-C).
    pub stop: &'a AtomicBool,
    /// If given, the server that answers requests with the same weights between the decode steps.
    pub server: Option<&'a dyn LiveServer>,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PredictionSummary {
    /// Number of rows that have a line, including rows of an earlier run that this run continued.
    pub rows: usize,
    /// Number of rows that an earlier run had written.
    pub resumed_after: usize,
    /// Number of rows that got a line with an error instead of an output.
    pub errors: usize,
    /// The error of the first row that got one.
    pub first_error: Option<String>,
    /// Number of tokens that this process generated.
    pub completion_tokens: u64,
    /// Seconds from the start of this process's loop to its last line.
    pub seconds: f64,
    /// Rows of this process per second.
    pub rows_per_second: f64,
    /// Tokens that this process generated per second.
    pub tokens_per_second: f64,
}

impl PredictionSummary {
    /// The summary of a process that found `resumed_after` lines in `file`, wrote the lines after them, and generated
    /// `tokens` tokens in `seconds`.
    fn new(file: &PredictionFile, resumed_after: usize, tokens: u64, seconds: f64) -> Self {
        let (rows, (errors, first_error)) = (file.lines(), file.errors());
        Self {
            rows,
            resumed_after,
            errors,
            first_error: first_error.map(String::from),
            completion_tokens: tokens,
            seconds,
            rows_per_second: (rows - resumed_after) as f64 / seconds.max(1e-9),
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
        }
    }

    /// Returns the summary if an earlier run has written all rows, so that nothing is left to do; else `None`.
    pub fn of_complete_file(file: &PredictionFile) -> Option<Self> {
        file.is_complete().then(|| Self::new(file, file.lines(), 0, 0.0))
    }
}

impl std::fmt::Debug for PredictionRun<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PredictionRun").field("sampling", &self.sampling).finish_non_exhaustive()
    }
}

impl PredictionRun<'_> {
    /// Generates the completions of all rows that have no line in `file` yet, and writes their lines.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] if the run is interrupted; with `strict`, the error of a row; the file cannot be
    /// written; a logit is NaN.
    pub fn run(&self, mut file: PredictionFile) -> Result<PredictionSummary> {
        let (begun, resumed_after) = (Instant::now(), file.lines());
        file.begin()?;
        let tokens = match self.generate_rows(&mut file, begun) {
            Err(TrainError::Engine(EngineError::Interrupted) | TrainError::Stopped(_)) => return Err(file.stopped()),
            generated => generated?,
        };
        file.finish()?;
        Ok(PredictionSummary::new(&file, resumed_after, tokens, begun.elapsed().as_secs_f64()))
    }

    /// Generates and writes all rows that have no line in `file` yet. Returns the number of generated tokens.
    fn generate_rows(&self, file: &mut PredictionFile, begun: Instant) -> Result<u64> {
        let mut rows = RowsInProgress {
            run: self,
            batch: self.engine.continuous_batch(self.max_kv_bytes)?,
            ahead: self.prefetcher(file.lines()),
            next: file.lines(),
            held: VecDeque::new(),
            alone: None,
            unfinished: BTreeMap::new(),
            stop_strings: (!self.sampling.stop.is_empty()).then(|| TokenText::new(self.prompts.bundle())),
            tokens: 0,
        };
        let all = self.prompts.row_count();
        let progress = Progress::rows(self.quiet, all as u64, file.lines() as u64);
        let mut result = Ok(());
        while result.is_ok() && (rows.next < all || !rows.unfinished.is_empty() || !rows.held.is_empty()) {
            result = rows.advance(file);
            let rate = rows.tokens as f64 / begun.elapsed().as_secs_f64().max(1e-9);
            progress.show_rows(file.lines() as u64, rate, file.errors().0);
        }
        progress.finish();
        result.map(|()| rows.tokens)
    }

    fn prefetcher(&self, first: usize) -> Prefetcher<RowPrompts> {
        let rows = self.prompts.row_count();
        let (order, threads) = (RowOrder::file_order(rows), decoding_threads(1));
        let positions = first as u64..rows as u64;
        // The decoded frames of a row may take 50 MB, so only a few rows are prepared ahead.
        Prefetcher::new(self.prompts.clone(), order, &BTreeSet::new(), positions, threads, 2 * threads + 2)
    }

    /// The generation request of a row. Returns an error if the row's prompt leaves no position for an answer.
    fn request(
        &self,
        prompt: Arc<ModelInput>,
        row: usize,
        stop: Option<&TokenText>,
    ) -> Result<GenerationRequest<'static>, Diagnostic> {
        let SamplingSettings { params, max_new_tokens, n, stop: strings } = &self.sampling;
        let (tokens, positions) = (prompt.len(), self.prompts.bundle().config.text.max_position_embeddings);
        let max_new_tokens = new_tokens_within_positions(positions, tokens, None, *max_new_tokens).map_err(|_| {
            let what =
                format!("has {tokens} tokens, which leave no room for an answer in the model's {positions} positions");
            Diagnostic::new("prompt", what, "shorten the prompt, or take fewer frames or pixels")
        })?;
        let stop_condition = || match stop {
            None => StopCondition::none(),
            Some(text) => StopCondition::with_strings(strings, Box::new(text.clone())),
        };
        Ok(GenerationRequest {
            sampling: SamplingParams { seed: self.prompts.rows().seed(row), ..*params },
            max_new_tokens,
            eos_token_ids: self.prompts.bundle().stop_token_ids().to_vec(),
            stop_conditions: (0..*n).map(|_| stop_condition()).collect(),
            ..GenerationRequest::new(prompt)
        })
    }
}

/// A row whose completions are not all finished.
struct UnfinishedRow {
    prompt: Arc<ModelInput>,
    completions: Vec<Completion>,
}

/// The rows that are being processed and have no line yet. Either other threads decode their media, or they wait for
/// room in the batch, or some of their completions are not finished.
struct RowsInProgress<'r, 'a> {
    run: &'r PredictionRun<'a>,
    batch: ContinuousBatch<'r, 'a, 'static>,
    ahead: Prefetcher<RowPrompts>,
    /// The next row to add to the batch.
    next: usize,
    /// Rows that did not fit into memory together with other rows. Each is computed again alone.
    held: VecDeque<(usize, Arc<ModelInput>)>,
    /// The row that is computed alone now.
    alone: Option<usize>,
    unfinished: BTreeMap<usize, UnfinishedRow>,
    /// Decodes tokens to find stop strings; `None` without stop strings.
    stop_strings: Option<TokenText>,
    tokens: u64,
}

impl RowsInProgress<'_, '_> {
    /// Adds rows to the batch and does one step.
    fn advance(&mut self, file: &mut PredictionFile) -> Result<()> {
        error_if_stopped(self.run.stop)?;
        self.add_rows_while_there_is_room(file)?;
        let StepOutput { completions, failed } = self.batch.step(&mut |_| {})?;
        DeviceLender(self.run.server).lend();
        for (row, e) in failed {
            self.fail_running_row(row, e, file)?;
        }
        completions.into_iter().try_for_each(|completion| self.finish_completion(completion, file))
    }

    /// Adds rows to the batch. Waits for the media of a row only if the batch is idle.
    fn add_rows_while_there_is_room(&mut self, file: &mut PredictionFile) -> Result<()> {
        if self.alone.is_some() {
            return Ok(());
        }
        if self.batch.is_idle()
            && let Some((row, prompt)) = self.held.pop_front()
        {
            self.alone = Some(row);
            return self.add_row(row, prompt, file);
        }
        while self.held.is_empty() && self.next < self.run.prompts.row_count() && self.batch.has_free_slot() {
            let patience = if self.batch.is_idle() { PATIENCE } else { Duration::ZERO };
            let Some(prompt) = self.ahead.get_within(self.next as u64, patience) else { return Ok(()) };
            let row = self.next;
            match prompt {
                Ok(prompt) => self.add_row(row, Arc::new(prompt), file)?,
                Err(e) if is_row_error(&e) => self.fail_row(row, e.into(), file)?,
                Err(e) => return Err(e.into()),
            }
            self.next += 1;
        }
        Ok(())
    }

    /// Adds a row to the batch, or writes a line with its error.
    fn add_row(&mut self, row: usize, prompt: Arc<ModelInput>, file: &mut PredictionFile) -> Result<()> {
        let request = self.run.request(prompt.clone(), row, self.stop_strings.as_ref());
        match request.map_err(EngineError::Request).and_then(|request| self.batch.add(row, request)) {
            Ok(()) => {
                self.unfinished.insert(row, UnfinishedRow { prompt, completions: Vec::new() });
                Ok(())
            }
            Err(EngineError::Request(fault)) => {
                self.fail_row(row, TrainError::Row(fault.at(self.run.prompts.location(row).0)), file)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Accepts the error of a row that the batch has dropped. A row that does not fit into memory together with other
    /// rows is computed again alone.
    fn fail_running_row(&mut self, row: usize, e: EngineError, file: &mut PredictionFile) -> Result<()> {
        let Some(unfinished) = self.unfinished.remove(&row) else { return Ok(()) };
        if !e.is_out_of_memory() {
            return Err(e.into());
        }
        if self.alone != Some(row) {
            self.held.push_back((row, unfinished.prompt));
            return Ok(());
        }
        self.alone = None;
        let what = format!("does not fit into memory ({e})");
        let help = "give fewer frames or pixels, or lower --n or --max-new-tokens";
        self.fail_row(row, TrainError::row(self.run.prompts.location(row).0, what, help), file)
    }

    /// Writes a line with `error` for a row that cannot be used. With `strict`, returns the error instead.
    fn fail_row(&self, row: usize, error: TrainError, file: &mut PredictionFile) -> Result<()> {
        if self.run.strict {
            return Err(error);
        }
        let text = error.to_string();
        let line = error_line(self.run.prompts.rows().columns(row), &text);
        file.put(row, line, Some(text)).map(drop)
    }

    /// Accepts a finished completion. Writes the line of its row if all completions of the row are then finished.
    fn finish_completion(&mut self, completion: Completion, file: &mut PredictionFile) -> Result<()> {
        let row = completion.request;
        let Some(unfinished) = self.unfinished.get_mut(&row) else { return Ok(()) };
        self.tokens += completion.ids.len() as u64;
        unfinished.completions.push(completion);
        let SamplingSettings { n, stop, .. } = &self.run.sampling;
        if unfinished.completions.len() < *n {
            return Ok(());
        }
        let Some(UnfinishedRow { prompt, mut completions }) = self.unfinished.remove(&row) else { return Ok(()) };
        self.alone = self.alone.filter(|&alone| alone != row);
        completions.sort_by_key(|completion| completion.index);
        let prompts = &self.run.prompts;
        let text = |c: &Completion| completion_text(&prompts.bundle().tokenizer, &c.ids, stop);
        let texts = completions.iter().map(text).collect();
        let result =
            RowResult { completions: &completions, texts, prompt_tokens: prompt.len(), seed: prompts.rows().seed(row) };
        file.put(row, prediction_line(prompts.rows().columns(row), &result), None).map(drop)
    }
}
