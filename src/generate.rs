//! `reel generate`: generates completions of a prompt.

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use reel_engine::{Completion, Detokenizer, Engine, EngineError, GenerationRequest, SamplingParams, StopCondition};
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
use crate::request::RequestSettings;
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
    /// Number of completions [default: 1]
    #[arg(long, value_name = "N")]
    n: Option<usize>,
}

/// Sampling options; defaults are those of a request body given as --messages, then of the model's
/// generation_config.json.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling options")]
pub struct SamplingFlags {
    /// Maximum number of tokens to generate [default: 1024]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy decoding [default: generation_config.json, else greedy]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Nucleus sampling: sample from the most likely tokens whose probabilities add up to P [default:
    /// generation_config.json, else 1]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Sample from the K most likely tokens; 0 is all [default: generation_config.json, else 0]
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Repetition penalty; a value above 1 lowers the probability of tokens that have already occurred [default:
    /// generation_config.json, else 1]
    #[arg(long, value_name = "R")]
    repetition_penalty: Option<f32>,
    /// Stop string: end a completion before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

/// How the completions of a prompt are generated: flags win over a request body, which wins over
/// generation_config.json.
struct GenerationSettings {
    params: SamplingParams,
    max_new_tokens: usize,
    /// Number of completions.
    n: usize,
    /// Strings that end a completion.
    stop: Vec<String>,
}

impl SamplingFlags {
    /// Checks the values of the flags, before a model is opened.
    fn validate(&self) -> Result<()> {
        let given = SamplingParams {
            temperature: self.temperature.unwrap_or(0.0),
            top_p: self.top_p.unwrap_or(1.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            ..SamplingParams::default()
        };
        given.validate().map_err(|e| match e {
            EngineError::Request(d) => bad_usage(&format!("--{}", d.location), d.what, d.help),
            other => other.into(),
        })
    }

    /// The sampling parameters. Greedy unless generation_config.json has `do_sample`, as in transformers.
    fn sampling_params(&self, body: &RequestSettings, config: &GenerationConfig, seed: Option<u64>) -> SamplingParams {
        let samples = config.do_sample == Some(true);
        let own = |value: Option<f64>| value.filter(|_| samples).map(|v| v as f32);
        let usual = if samples { 1.0 } else { 0.0 };
        let top_k = config.top_k.filter(|_| samples).map_or(0, |k| u32::try_from(k).unwrap_or(0));
        let penalty = config.repetition_penalty.map_or(1.0, |p| p as f32);
        SamplingParams {
            temperature: self.temperature.or(body.temperature).or(own(config.temperature)).unwrap_or(usual),
            top_p: self.top_p.or(body.top_p).or(own(config.top_p)).unwrap_or(1.0),
            top_k: self.top_k.or(body.top_k).unwrap_or(top_k),
            repetition_penalty: self.repetition_penalty.or(body.repetition_penalty).unwrap_or(penalty),
            seed: seed.or(body.seed).unwrap_or(0),
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

/// Refuses an `--n` outside `1..=MAX_COMPLETIONS`.
pub fn refuse_completion_count(n: usize) -> Result<()> {
    match n {
        1..=MAX_COMPLETIONS => Ok(()),
        _ => {
            let what = format!("is {n}, outside the possible numbers of completions");
            Err(bad_usage("--n", what, format!("give 1 to {MAX_COMPLETIONS}")))
        }
    }
}

impl GenerateArgs {
    /// Generates and prints the completions. If there is only one, prints its text while it is generated.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        self.n.map_or(Ok(()), refuse_completion_count)?;
        self.sampling.validate()?;
        let (base, adapter) = self.model.base_model_and_adapter_folder()?;
        let prompt = self.messages.encode_messages_or_question(&self.question, &base, adapter.as_deref(), common)?;
        let settings = self.settings(&prompt, common);
        refuse_completion_count(settings.n)?;
        let model = LoadedModel::open_with_adapter(&prompt.folder, adapter.as_deref(), &prompt.bundle.config, common)?;
        let mut printer = Printer::new(&prompt.bundle, &settings.stop, settings.n == 1 && !common.json);
        let (completions, timing) = complete(&prompt, &model, &settings, |id| printer.push(id))?;
        printer.finish()?;
        let texts: Vec<String> =
            completions.iter().map(|c| completion_text(&prompt.bundle, &c.ids, &settings.stop)).collect();
        if common.json {
            return print_completions_as_json(&prompt, &completions, &texts, timing);
        }
        if settings.n > 1 {
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

    fn settings(&self, prompt: &EncodedPrompt, common: &CommonOptions) -> GenerationSettings {
        let (flags, body) = (&self.sampling, &prompt.settings);
        GenerationSettings {
            params: flags.sampling_params(body, &prompt.bundle.generation, common.seed),
            max_new_tokens: flags.max_new_tokens.or(body.max_new_tokens).unwrap_or(1024),
            n: self.n.or(body.n).unwrap_or(1),
            stop: if flags.stop.is_empty() { body.stop.clone() } else { flags.stop.clone() },
        }
    }
}

/// Generates the completions; calls `on_token` with each token id as it is sampled.
fn complete(
    prompt: &EncodedPrompt,
    model: &LoadedModel,
    settings: &GenerationSettings,
    mut on_token: impl FnMut(u32),
) -> Result<(Vec<Completion>, Timing)> {
    let stop = || match &settings.stop[..] {
        [] => StopCondition::none(),
        strings => StopCondition::with_strings(strings, Box::new(TokenText::new(&prompt.bundle))),
    };
    let request = GenerationRequest {
        prompt: prompt.tokens.sequence(),
        rope_delta: prompt.tokens.rope_delta,
        sampling: settings.params,
        max_new_tokens: settings.max_new_tokens,
        eos_token_ids: prompt.bundle.stop_token_ids(),
        min_new_tokens: 0,
        stop_conditions: (0..settings.n).map(|_| stop()).collect(),
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
        decode_tokens_per_second: (generated - completions.len().min(generated)) as f64 / t.decode_seconds.max(1e-9),
    };
    Ok((completions, timing))
}

/// The text of a completion, cut before the first stop string.
fn completion_text(bundle: &ModelFolder, ids: &[u32], stop: &[String]) -> String {
    let mut text = bundle.tokenizer.decode(ids, true);
    if let Some(at) = StopCondition::first_match(&text, stop) {
        text.truncate(at);
    }
    text
}

/// Prints an object for a single completion, and a list of objects for several.
fn print_completions_as_json(
    prompt: &EncodedPrompt,
    completions: &[Completion],
    texts: &[String],
    timing: Timing,
) -> Result<()> {
    let result = |(c, text): (&Completion, &String)| {
        json!({
            "text": text, "token_ids": c.ids, "prompt_tokens": prompt.tokens.len(),
            "finish_reason": c.finish_reason.openai_name(), "timing": timing,
        })
    };
    let results: Vec<_> = completions.iter().zip(texts).map(result).collect();
    match &results[..] {
        [only] => output::print_json(only),
        all => output::print_json(&all),
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
