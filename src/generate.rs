//! `reel generate`: generates completions of a prompt.

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use reel_engine::{Completion, Detokenizer, Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_measure::trace;
use reel_model::config::GenerationConfig;
use reel_model::input::encode::ModelFolder;
use reel_model::input::tokenizer::StreamingDecoder;
use serde::Serialize;
use serde_json::json;

use crate::common::CommonOptions;
use crate::fail::bad_usage;
use crate::model::LoadedModel;
use crate::prompt::{EncodedPrompt, MessageFlags, ModelFlags, QuestionFlags};
use crate::{interrupt, output};

/// Generate an answer to a prompt about a video, an image, or text alone. On a terminal the text appears as it is
/// generated.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  reel generate --model tiny --max-new-tokens 16 --prompt \"Hello\"")]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    question: QuestionFlags,
    #[command(flatten)]
    messages: MessageFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Number of completions
    #[arg(long, value_name = "N", default_value_t = 1)]
    n: usize,
}

/// Sampling options; defaults are those of the model's generation_config.json.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling options")]
pub struct SamplingFlags {
    /// Maximum number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_new_tokens: usize,
    /// Sampling temperature; 0 is greedy decoding [default: generation_config.json, else greedy]
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    temperature: Option<f32>,
    /// Nucleus sampling: sample from the most likely tokens whose probabilities add up to P [default:
    /// generation_config.json, else 1]
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    top_p: Option<f32>,
    /// Sample from the K most likely tokens; 0 is all [default: generation_config.json, else 0]
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Repetition penalty; a value above 1 lowers the probability of tokens that have already occurred [default:
    /// generation_config.json, else 1]
    #[arg(long, value_name = "R", allow_hyphen_values = true)]
    repetition_penalty: Option<f32>,
    /// Stop string: end a completion before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl SamplingFlags {
    /// The sampling parameters: flags win over generation_config.json. Greedy unless that file has `do_sample`, as in
    /// transformers.
    pub fn sampling_params(&self, config: &GenerationConfig, seed: u64) -> SamplingParams {
        let own = |value: Option<f64>| if config.do_sample == Some(true) { value.map(|v| v as f32) } else { None };
        let usual = if config.do_sample == Some(true) { 1.0 } else { 0.0 };
        let top_k =
            config.top_k.filter(|_| config.do_sample == Some(true)).map_or(0, |k| u32::try_from(k).unwrap_or(0));
        let penalty = config.repetition_penalty.map_or(1.0, |p| p as f32);
        SamplingParams {
            temperature: self.temperature.or(own(config.temperature)).unwrap_or(usual),
            top_p: self.top_p.or(own(config.top_p)).unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(top_k),
            repetition_penalty: self.repetition_penalty.unwrap_or(penalty),
            seed,
        }
    }
}

/// Seconds of each stage of a generation, and its throughput.
#[derive(Clone, Copy, Debug, Serialize)]
struct Timing {
    preprocess: f64,
    load: f64,
    prefill: f64,
    decode: f64,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
}

/// Maximum number of completions in one batch.
pub const MAX_COMPLETIONS: usize = 4096;

/// The error for an `--n` outside `1..=MAX_COMPLETIONS`.
pub fn bad_completion_count(n: usize) -> anyhow::Error {
    bad_usage(
        "--n",
        format!("is {n}, outside the possible numbers of completions"),
        format!("give 1 to {MAX_COMPLETIONS}"),
    )
}

impl GenerateArgs {
    /// Generates and prints the completions. If there is only one, prints its text while it is generated.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        if !(1..=MAX_COMPLETIONS).contains(&self.n) {
            return Err(bad_completion_count(self.n));
        }
        let (base, adapter) = self.model.base_model_and_adapter_folder()?;
        let prompt = self.messages.encode_messages_or_question(&self.question, &base, adapter.as_deref(), common)?;
        let model = LoadedModel::open_with_adapter(&prompt.folder, adapter.as_deref(), &prompt.bundle.config, common)?;
        let mut printer = Printer::new(&prompt.bundle, &self.sampling.stop, self.n == 1 && !common.json);
        let (completions, timing) = self.complete(&prompt, &model, common, |id| printer.push(id))?;
        printer.finish()?;
        let texts: Vec<String> = completions.iter().map(|c| self.text(&prompt.bundle, &c.ids)).collect();
        if common.json {
            return self.print_json(&prompt, &completions, &texts, timing);
        }
        if self.n > 1 {
            for (i, text) in texts.iter().enumerate() {
                output::print_line(format!("[{}] {text}", i + 1))?;
            }
        }
        if common.verbose {
            eprintln!(
                "prefill {} tokens in {:.2} s, decode {} tokens in {:.2} s ({:.1} tokens/s); preprocessing {:.2} s, loading {:.2} s",
                prompt.tokens.len(),
                timing.prefill,
                completions.iter().map(|c| c.ids.len()).sum::<usize>(),
                timing.decode,
                timing.decode_tokens_per_second,
                timing.preprocess,
                timing.load,
            );
        }
        Ok(())
    }

    fn complete(
        &self,
        prompt: &EncodedPrompt,
        model: &LoadedModel,
        common: &CommonOptions,
        mut on_token: impl FnMut(u32),
    ) -> Result<(Vec<Completion>, Timing)> {
        let stop = || match &self.sampling.stop[..] {
            [] => StopCondition::none(),
            strings => StopCondition::with_strings(strings, Box::new(TokenText::new(&prompt.bundle))),
        };
        let request = GenerationRequest {
            prompt: prompt.tokens.sequence(),
            rope_delta: prompt.tokens.rope_delta,
            sampling: self.sampling.sampling_params(&prompt.bundle.generation, common.seed()),
            max_new_tokens: self.sampling.max_new_tokens,
            eos_token_ids: prompt.bundle.stop_token_ids(),
            min_new_tokens: 0,
            stop_conditions: (0..self.n).map(|_| stop()).collect(),
        };
        let flag = interrupt::stop_flag();
        let engine = Engine::new(&model.weights, &model.cx)?.interrupt_flag(&flag);
        let begun = Instant::now();
        let generated = engine.generate(vec![request], |t| on_token(t.id));
        let (completions, t) = generated.map_err(|e| model.generation_error(e))?;
        trace::record_span("prefill", begun, t.prefill_seconds, json!({"tokens": prompt.tokens.len()}));
        trace::record_span(
            "decode",
            begun + std::time::Duration::from_secs_f64(t.prefill_seconds),
            t.decode_seconds,
            json!({}),
        );
        let generated: usize = completions.iter().map(|c| c.ids.len()).sum();
        let timing = Timing {
            preprocess: prompt.seconds,
            load: model.load_seconds,
            prefill: t.prefill_seconds,
            decode: t.decode_seconds,
            prefill_tokens_per_second: prompt.tokens.len() as f64 / t.prefill_seconds.max(1e-9),
            // Decoding starts with the second token: the first one is sampled from the logits of the prefill.
            decode_tokens_per_second: (generated - completions.len().min(generated)) as f64
                / t.decode_seconds.max(1e-9),
        };
        Ok((completions, timing))
    }

    /// The text of a completion, cut before the first stop string.
    fn text(&self, bundle: &ModelFolder, ids: &[u32]) -> String {
        let mut text = bundle.tokenizer.decode(ids, true);
        if let Some(at) = StopCondition::first_match(&text, &self.sampling.stop) {
            text.truncate(at);
        }
        text
    }

    fn print_json(
        &self,
        prompt: &EncodedPrompt,
        completions: &[Completion],
        texts: &[String],
        timing: Timing,
    ) -> Result<()> {
        let mut results: Vec<_> = completions
            .iter()
            .zip(texts)
            .map(|(c, text)| {
                json!({
                    "text": text, "token_ids": c.ids, "prompt_tokens": prompt.tokens.len(),
                    "finish_reason": c.finish_reason.openai_name(), "timing": timing,
                })
            })
            .collect();
        match results.pop() {
            Some(only) if self.n == 1 => output::print_json(&only),
            last => {
                results.extend(last);
                output::print_json(&results)
            }
        }
    }
}

/// Prints a completion while it is generated. Holds back text at the end that may be the start of a stop string.
struct Printer<'a> {
    stream: Option<StreamingDecoder<'a>>,
    stops: &'a [String],
    held: String,
    done: bool,
    result: Result<()>,
}

impl<'a> Printer<'a> {
    fn new(bundle: &'a ModelFolder, stops: &'a [String], on: bool) -> Self {
        let stream = if on { Some(bundle.tokenizer.streaming_decoder(true)) } else { None };
        Self { stream, stops, held: String::new(), done: false, result: Ok(()) }
    }

    fn push(&mut self, id: u32) {
        let Some(stream) = &mut self.stream else { return };
        let piece = stream.push(id);
        self.take(&piece);
    }

    fn take(&mut self, piece: &str) {
        if self.done || self.result.is_err() {
            return;
        }
        self.held.push_str(piece);
        let mut printable = self.held.len() - self.stop_prefix_len();
        if let Some(at) = StopCondition::first_match(&self.held, self.stops) {
            (printable, self.done) = (at, true);
        }
        if printable > 0 {
            self.result = output::print_text(&self.held[..printable]);
            self.held.drain(..printable);
        }
    }

    /// Returns the length in bytes of the longest suffix of the held-back text that may be the start of a stop
    /// string.
    fn stop_prefix_len(&self) -> usize {
        let begins = |n: usize| {
            let from = self.held.len() - n;
            self.held.is_char_boundary(from)
                && self.stops.iter().any(|s| s.len() > n && s.starts_with(&self.held[from..]))
        };
        (1..=self.held.len()).rev().find(|&n| begins(n)).unwrap_or(0)
    }

    fn finish(mut self) -> Result<()> {
        let Some(stream) = self.stream.take() else { return Ok(()) };
        let rest = stream.finish();
        self.take(&rest);
        self.result?;
        let rest = if self.done { "" } else { &self.held };
        output::print_line(rest)
    }
}

/// Decodes token ids to text one at a time, so that stop strings can be found. Holds back the bytes of an incomplete
/// UTF-8 character.
struct TokenText {
    pieces: Vec<Option<Vec<u8>>>,
    pending: Vec<u8>,
}

impl TokenText {
    fn new(bundle: &ModelFolder) -> Self {
        let t = &bundle.tokenizer;
        let piece = |id: u32| if t.is_special(id) { None } else { Some(t.token_bytes(id)) };
        Self { pieces: (0..bundle.config.text.vocab_size as u32).map(piece).collect(), pending: Vec::new() }
    }
}

impl Detokenizer for TokenText {
    fn push(&mut self, id: u32) -> String {
        if let Some(Some(bytes)) = self.pieces.get(id as usize) {
            self.pending.extend(bytes);
        }
        let whole = match std::str::from_utf8(&self.pending) {
            Ok(text) => text.len(),
            // An incomplete character at the end is held back; invalid bytes are passed on.
            Err(e) => e.valid_up_to() + e.error_len().unwrap_or(0),
        };
        let out = String::from_utf8_lossy(&self.pending[..whole]).into_owned();
        self.pending.drain(..whole);
        out
    }
}
