//! The loop of a prediction run: adds the prompts of rows to the running batch and writes a line for each finished row.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reel_engine::{
    Completion, Continuations, ContinuousBatch, Engine, GenerationRequest, SamplingParams, StepOutput, StopCondition,
    completion_text, new_tokens_within_positions,
};
use reel_input::{ModelInput, TokenId};
use reel_samples::error_if_stopped;
use reel_samples::feed::{Prefetcher, SampleSource, decoding_threads, is_row_error};
use reel_samples::order::RowOrder;
use reel_support::diagnostic::Diagnostic;
use reel_train::rollout::tools::trajectory::{ToolPrompt, TurnLoop};
use reel_train::setup::RunRanks;

use crate::error::{Error, Kind, Result, RowFailureKind};
use crate::predict::line::{Answer, RowResult, error_line, prediction_line};
use crate::predict::output::{PredictionOutput, RowSubset};
use crate::predict::prompts::RowPrompts;
use crate::predict::sink::{DiscardedLines, FileWithProgress, LineSink, PredictionSummary, is_interruption};

/// Time between two checks for an interruption while the loop waits for the media of a row.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

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
    /// Set to true to stop the run (Ctrl-C).
    pub stop: &'a AtomicBool,
    /// The processes that compute the divided model together with this process, if there are several. All of them
    /// answer the same rows in the same steps, and rank 0 decides when a row begins.
    pub divided: Option<RunRanks<'a>>,
}

impl std::fmt::Debug for PredictionRun<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PredictionRun").field("sampling", &self.sampling).finish_non_exhaustive()
    }
}

impl PredictionRun<'_> {
    /// Generates the completions of all rows that have no line in the file yet, and writes their lines. If several
    /// processes share the rows, all of them call this function, and it returns when all rows have a line. The
    /// summary is `None` on ranks other than 0.
    ///
    /// # Errors
    /// [`Kind::Stopped`] if the run is interrupted, on any rank; with `strict`, the error of a row; the file
    /// cannot be written; a logit is NaN; another rank has failed.
    pub fn run(&self, output: PredictionOutput<'_>) -> Result<Option<PredictionSummary>> {
        let PredictionOutput { file, rows, ranks, .. } = output;
        let file = file.map(|file| FileWithProgress::begin(file, self.quiet)).transpose()?;
        let processes = self.divided.map_or(1, |divided| divided.ranks.size());
        match (ranks, file) {
            (Some(ranks), file) => self.run_with_ranks(ranks, file, rows),
            (None, None) => self.generate_rows(rows, processes, &mut DiscardedLines).map(|_| None),
            (None, Some(mut file)) => match self.generate_rows(rows, processes, &mut file) {
                Err(e) if is_interruption(&e) => Err(file.file.stopped_error()),
                generated => file.finish(generated?).map(Some),
            },
        }
    }

    /// Generates the lines of the rows `own` and puts them into `lines`. `processes` is the number of processes on
    /// this machine that generate at the same time. Returns the number of generated tokens.
    pub(super) fn generate_rows(&self, own: Vec<usize>, processes: usize, lines: &mut impl LineSink) -> Result<u64> {
        let Some(tools) = self.prompts.tools() else { return self.generate_in_turns(None, own, processes, lines) };
        if self.divided.is_some() {
            let what = "is given, but the processes of a divided model would get answers at different times";
            return Err(Error::usage("--tools", what, "leave it out, or give each process the whole model"));
        }
        TurnLoop::run(tools, self.prompts.model_folder(), self.prompts.row_count(), self.stop, |turns| {
            self.generate_in_turns(Some(turns), own, processes, lines)
        })
    }

    fn generate_in_turns(
        &self,
        turns: Option<TurnLoop<'_>>,
        own: Vec<usize>,
        processes: usize,
        lines: &mut impl LineSink,
    ) -> Result<u64> {
        let ahead = self.prefetcher(&own, processes);
        let mut rows = RowsInProgress {
            run: self,
            batch: self.engine.continuous_batch(self.max_kv_bytes)?,
            turns,
            ahead,
            own,
            next: 0,
            held: VecDeque::new(),
            alone: None,
            unfinished: BTreeMap::new(),
            tokens: 0,
        };
        while rows.next < rows.own.len() || !rows.unfinished.is_empty() || !rows.held.is_empty() {
            rows.advance(lines)?;
            lines.step_done(rows.tokens);
        }
        Ok(rows.tokens)
    }

    fn prefetcher(&self, own: &[usize], processes: usize) -> Prefetcher<RowSubset> {
        let (order, threads) = (RowOrder::file_order(own.len()), decoding_threads(processes));
        let positions = 0..own.len() as u64;
        let source = Arc::new(RowSubset::new(self.prompts.clone(), own.to_vec()));
        // The decoded frames of a row may take 50 MB, so only a few rows are prepared ahead.
        Prefetcher::new(source, order, &BTreeSet::new(), positions, threads, 2 * threads + 2)
    }

    /// The generation request of a row. Returns an error if the row's prompt leaves no position for an answer.
    fn request(&self, prompt: Arc<ModelInput>, row: usize) -> Result<GenerationRequest, Diagnostic> {
        let SamplingSettings { params, max_new_tokens, n, stop: strings } = &self.sampling;
        let (tokens, positions) = (prompt.len(), self.prompts.model_folder().config.text.max_position_embeddings);
        let max_new_tokens = new_tokens_within_positions(positions, tokens, None, *max_new_tokens).map_err(|_| {
            let what =
                format!("has {tokens} tokens, which leave no room for an answer in the model's {positions} positions");
            Diagnostic::new("prompt", what, "shorten the prompt, or take fewer frames or pixels")
        })?;
        let stop_condition = || StopCondition::with_strings(strings, &self.prompts.model_folder().tokenizer);
        Ok(GenerationRequest {
            sampling: SamplingParams { seed: self.prompts.rows().seed(row), ..*params },
            max_new_tokens,
            eos_token_ids: self.prompts.model_folder().stop_token_ids().to_vec(),
            stop_conditions: (0..*n).map(|_| stop_condition()).collect(),
            ..GenerationRequest::new(prompt)
        })
    }
}

/// A row with unfinished completions.
struct UnfinishedRow {
    prompt: Arc<ModelInput>,
    answers: Vec<Answer>,
}

/// The rows that are being processed and have no line yet. Either other threads decode their media, or they wait for
/// room in the batch, or some of their completions are not finished.
struct RowsInProgress<'r, 'a> {
    run: &'r PredictionRun<'a>,
    batch: ContinuousBatch<'r, 'a>,
    /// The completions between their turns, in a run with tools.
    turns: Option<TurnLoop<'r>>,
    ahead: Prefetcher<RowSubset>,
    /// The rows that this process answers.
    own: Vec<usize>,
    /// The index in `own` of the next row to add to the batch.
    next: usize,
    /// Rows that did not fit into memory together with other rows. Each of these rows is computed again alone.
    held: VecDeque<(usize, Arc<ModelInput>)>,
    /// The row that is computed alone now.
    alone: Option<usize>,
    unfinished: BTreeMap<usize, UnfinishedRow>,
    tokens: u64,
}

impl RowsInProgress<'_, '_> {
    /// Adds rows to the batch and does one step.
    fn advance(&mut self, lines: &mut impl LineSink) -> Result<()> {
        self.error_if_stopped()?;
        self.add_rows_while_there_is_room(lines)?;
        self.add_turns()?;
        let StepOutput { completions, failed } = self.batch.step(&mut |_| {})?;
        for (request, e) in failed {
            self.fail_request(request, e, lines)?;
        }
        for completion in completions {
            self.tokens += completion.ids.len() as u64;
            match &mut self.turns {
                Some(turns) => turns.finish(completion)?,
                None => self.finish_completion(completion, lines)?,
            }
        }
        for t in self.turns.as_mut().map(TurnLoop::take_finished).unwrap_or_default() {
            let calls = t.calls().cloned().collect();
            let answer = |text| Answer {
                index: t.place.1,
                text,
                finish_reason: t.finish_reason,
                tokens: t.ids.len(),
                tool_calls: Some(calls),
            };
            self.finish_answer(t.place.0, t.last_turn(), answer, lines)?;
        }
        Ok(())
    }

    /// Adds the turns that follow the answers of tools. Waits for an answer if there is nothing else to do.
    fn add_turns(&mut self) -> Result<()> {
        loop {
            let is_idle = self.batch.is_idle() && !self.may_add_rows();
            let Some(turns) = &mut self.turns else { return Ok(()) };
            let next = turns.next_turn(if is_idle { POLL_INTERVAL } else { Duration::ZERO })?;
            let Some((index, request)) = next else { return Ok(()) };
            self.batch.add(index, request)?;
        }
    }

    /// Returns an error if the run is to stop. With a divided model, rank 0 decides for all ranks.
    fn error_if_stopped(&self) -> Result<()> {
        let Some(divided) = self.run.divided else { return error_if_stopped(self.run.stop) };
        let stops = divided.is_rank_0().then(|| self.run.stop.load(Ordering::Relaxed));
        let stops = AtomicBool::new(divided.broadcast("end of the run", stops)?);
        error_if_stopped(&stops)
    }

    /// The prompt of the next row; `None` if the row's media are not decoded within `patience`. Rank 0 of a divided
    /// model decides: if its media are decoded, the other ranks wait until theirs are decoded, too.
    fn next_prompt(&mut self, patience: Duration) -> Result<Option<reel_samples::Result<ModelInput>>> {
        let index = self.next as u64;
        let Some(divided) = self.run.divided else { return Ok(self.ahead.get_sample_within(index, patience)) };
        let mut prompt = if divided.is_rank_0() { self.ahead.get_sample_within(index, patience) } else { None };
        let is_usable = divided.is_rank_0().then(|| prompt.as_ref().map(|prompt| prompt.is_ok()));
        let Some(is_usable) = divided.broadcast::<Option<bool>>("next row", is_usable)? else { return Ok(None) };
        while prompt.is_none() {
            prompt = self.ahead.get_sample_within(index, POLL_INTERVAL);
        }
        if prompt.as_ref().is_some_and(|prompt| prompt.is_ok() != is_usable) {
            let location = self.run.prompts.location(self.own[self.next]).0;
            let help = "check that no other program changes its files";
            return Err(Error::row(location, "can be read by only some of the processes", help));
        }
        Ok(prompt)
    }

    /// Whether a further row may be added. At most as many completions wait for tools as decode together, because the
    /// frames of each are in memory.
    fn may_add_rows(&self) -> bool {
        let has_next = self.alone.is_none() && self.held.is_empty() && self.next < self.own.len();
        let waiting = self.turns.as_ref().map_or(0, TurnLoop::waiting_count);
        has_next && self.batch.has_free_slot() && waiting < self.batch.slot_count()
    }

    /// Adds rows to the batch. Waits for the media of a row only if the batch is idle.
    fn add_rows_while_there_is_room(&mut self, lines: &mut impl LineSink) -> Result<()> {
        if self.unfinished.is_empty()
            && let Some((row, prompt)) = self.held.pop_front()
        {
            self.alone = Some(row);
            return self.add_row(row, prompt, lines);
        }
        while self.may_add_rows() {
            let patience = if self.batch.is_idle() { POLL_INTERVAL } else { Duration::ZERO };
            let Some(prompt) = self.next_prompt(patience)? else { return Ok(()) };
            let row = self.own[self.next];
            match prompt {
                Ok(prompt) => self.add_row(row, Arc::new(prompt), lines)?,
                Err(e) if is_row_error(&e) => self.fail_row(row, e, lines)?,
                Err(e) => return Err(e),
            }
            self.next += 1;
        }
        Ok(())
    }

    /// Adds a row to the batch, or writes a line with its error.
    fn add_row(&mut self, row: usize, prompt: Arc<ModelInput>, lines: &mut impl LineSink) -> Result<()> {
        let request = self.run.request(prompt.clone(), row).map_err(|d| Kind::Request.error(d));
        let added = request.and_then(|request| match &mut self.turns {
            Some(turns) => {
                let context = Arc::new(self.run.prompts.call_context(row)?);
                self.batch.add(row, turns.add(row, ToolPrompt { request, context }))
            }
            None => self.batch.add(row, request),
        });
        match added {
            Ok(()) => {
                self.unfinished.insert(row, UnfinishedRow { prompt, answers: Vec::new() });
                Ok(())
            }
            Err(Error { kind: Kind::Request | Kind::TooLong { .. }, diagnostic }) => {
                self.remove_turns(row)?;
                let diagnostic = diagnostic.at(self.run.prompts.location(row).0);
                self.fail_row(row, Kind::Row(RowFailureKind::Row).error(diagnostic), lines)
            }
            Err(e) => Err(e),
        }
    }

    /// Drops the turns of a row, finished or not.
    fn remove_turns(&mut self, row: usize) -> Result<()> {
        let requests = self.turns.as_mut().map(|turns| turns.remove(row)).unwrap_or_default();
        requests.into_iter().try_for_each(|request| self.batch.cancel(request))
    }

    /// Accepts the error of a request that the batch has dropped. A row that does not fit into memory together with
    /// other rows is computed again alone, from its first turn.
    fn fail_request(&mut self, request: usize, e: Error, lines: &mut impl LineSink) -> Result<()> {
        let row = self.turns.as_ref().map_or(request, |turns| turns.prompt_of(request));
        let Some(unfinished) = self.unfinished.remove(&row) else { return Ok(()) };
        if e.kind != Kind::OutOfMemory {
            return Err(e);
        }
        self.remove_turns(row)?;
        if self.alone != Some(row) {
            self.held.push_back((row, unfinished.prompt));
            return Ok(());
        }
        self.alone = None;
        let what = format!("does not fit into memory ({e})");
        let help = "give fewer frames or pixels, or lower --n or --max-new-tokens";
        self.fail_row(row, Error::row(self.run.prompts.location(row).0, what, help), lines)
    }

    /// Writes a line with `error` for a row that cannot be used. With `strict`, returns the error instead.
    fn fail_row(&self, row: usize, error: Error, lines: &mut impl LineSink) -> Result<()> {
        if self.run.strict {
            return Err(error);
        }
        let text = error.to_string();
        let line = error_line(self.run.prompts.rows().columns(row), &text);
        lines.write_line(row, line, Some(text))
    }

    fn finish_completion(&mut self, c: Completion, lines: &mut impl LineSink) -> Result<()> {
        let (index, tokens) = (c.index, c.ids.len());
        let answer = |text| Answer { index, text, finish_reason: c.finish_reason, tokens, tool_calls: None };
        self.finish_answer(c.request, &c.ids, answer, lines)
    }

    /// Accepts a finished completion of a row, made from the text of `ids`. Writes the line of the row if all of its
    /// completions are then finished.
    fn finish_answer(
        &mut self,
        row: usize,
        ids: &[TokenId],
        answer: impl FnOnce(String) -> Answer,
        lines: &mut impl LineSink,
    ) -> Result<()> {
        let Some(UnfinishedRow { prompt, answers }) = self.unfinished.get_mut(&row) else { return Ok(()) };
        let (prompts, SamplingSettings { n, stop, .. }) = (&self.run.prompts, &self.run.sampling);
        let folder = prompts.model_folder();
        let begun = folder.begun_thought(&prompt.input_ids).to_string();
        answers.push(answer(begun + &completion_text(&folder.tokenizer, ids, stop)));
        if answers.len() < *n {
            return Ok(());
        }
        let Some(UnfinishedRow { prompt, mut answers }) = self.unfinished.remove(&row) else { return Ok(()) };
        self.remove_turns(row)?;
        self.alone = self.alone.filter(|&alone| alone != row);
        answers.sort_by_key(|answer| answer.index);
        let result = RowResult { answers: &answers, prompt_tokens: prompt.len(), seed: prompts.rows().seed(row) };
        lines.write_line(row, prediction_line(prompts.rows().columns(row), &result), None)
    }
}
