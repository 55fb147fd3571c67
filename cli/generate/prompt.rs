//! `reel generate` without `--data`: generates and prints the completions of one prompt.

use std::time::Instant;

use anyhow::Result;
use reel_engine::{
    Completion, CompletionStream, Engine, GenerationRequest, GrammarCompiler, PromptTokenLogProbs, TokenLogProbs,
    TooLongReason, completion_text, new_tokens_within_positions,
};
use reel_input::encode::ModelFolder;
use reel_input::request::RequestSettings;
use reel_support::ranges::record_span;
use serde::Serialize;
use serde_json::json;

use super::{GenerateArgs, check_completion_count};
use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};
use crate::model::{self, LoadedModel, WeightLocation};
use crate::prompt::EncodedPrompt;
use crate::tensor_parallel::TensorParallelProcess;
use crate::{interrupt, output};

/// Default of the maximum number of tokens of a completion.
const MAX_NEW_TOKENS: usize = 1024;

/// The location in errors about fields of the request body in the --messages file.
const REQUEST: &str = "the request";

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

impl GenerateArgs {
    /// Generates and prints the completions. A single completion is printed while it is generated. `process` is this
    /// process if several compute the model together.
    pub(super) fn run_prompt(&self, process: Option<&TensorParallelProcess>, common: &CommonOptions) -> Result<()> {
        let (base, adapter) = self.model.base_model_and_adapter_folder()?;
        let prompt = self.messages.encode_messages_or_question(&self.question, &base, adapter.as_deref(), common)?;
        let mut settings = self.sampling.settings(&prompt.settings, common.seed);
        let n = self.n.or(settings.n).unwrap_or(1);
        check_completion_count(n)?;
        let limit = self.new_tokens(&prompt, settings.sampling.max_new_tokens)?;
        settings.check_min_tokens(REQUEST, limit, "max_tokens or --max-new-tokens")?;
        settings.check_token_ids(REQUEST, prompt.bundle.config.text.vocab_size)?;
        (settings.n, settings.sampling.max_new_tokens) = (Some(n), Some(limit));
        let (config, quantization) = (&prompt.bundle.config, self.quantize.quantization());
        let device = model::open_device(common)?;
        let parallel = process.map(|process| process.divide_model(config, &device)).transpose()?;
        let model = LoadedModel::open_on_device(
            &device,
            &prompt.folder,
            adapter.as_deref(),
            config,
            quantization,
            Some(WeightLocation::Mapped),
            parallel.as_ref(),
            common,
        )?;
        let prints = process.is_none_or(TensorParallelProcess::is_rank_0);
        let mut printer = Printer::new(&prompt.bundle, &settings.stop, prints && n == 1 && !common.json);
        let (completions, timing) = complete(&prompt, &model, &settings, prints, |id| printer.push(id))?;
        printer.finish()?;
        if !prints {
            return Ok(());
        }
        let texts: Vec<String> =
            completions.iter().map(|c| completion_text(&prompt.bundle.tokenizer, &c.ids, &settings.stop)).collect();
        if common.json {
            return print_completions_as_json(&prompt, &completions, &texts, timing);
        }
        if n > 1 {
            for (i, text) in texts.iter().enumerate() {
                output::print_text(&format!("[{}] {text}\n", i + 1))?;
            }
        }
        if common.verbose {
            reel_support::diagnostic::note!(
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
}

impl GenerateArgs {
    /// Returns the maximum number of new tokens: `asked`, else the default; never more than the model has positions
    /// after the prompt.
    fn new_tokens(&self, prompt: &EncodedPrompt, asked: Option<usize>) -> Result<usize> {
        let (tokens, positions) = (prompt.tokens.len(), prompt.bundle.config.text.max_position_embeddings);
        new_tokens_within_positions(positions, tokens, asked, MAX_NEW_TOKENS).map_err(|e| match e {
            TooLongReason::Prompt => failed(
                "the prompt",
                format!("has {tokens} tokens, which leave no room for an answer in the model's {positions} positions"),
                "shorten the prompt, or take fewer frames or pixels (--nframes, --max-pixels)",
            ),
            TooLongReason::NewTokens { left } => {
                let number = asked.unwrap_or_default();
                let what = format!("is {number}, but the prompt takes {tokens} of the model's {positions} positions");
                let help = format!("give at most {left}, or shorten the prompt");
                match self.sampling.options.max_new_tokens {
                    Some(_) => usage_error("--max-new-tokens", what, help),
                    None => failed("max_tokens", what, help),
                }
            }
        })
    }
}

/// Generates the completions; calls `on_token` with each token id as it is sampled. With `is_interruptible`, Ctrl-C
/// stops the generation.
fn complete(
    prompt: &EncodedPrompt,
    model: &LoadedModel,
    settings: &RequestSettings,
    is_interruptible: bool,
    mut on_token: impl FnMut(u32),
) -> Result<(Vec<Completion>, Timing)> {
    let bundle = &prompt.bundle;
    let request = GenerationRequest::from_settings(prompt.tokens.clone(), settings, bundle, MAX_NEW_TOKENS);
    let grammar = match &settings.grammar {
        Some(spec) => Some(GrammarCompiler::new(bundle)?.compile(spec)?),
        None => None,
    };
    let request = GenerationRequest { grammar, ..request };
    let flag = interrupt::stop_flag();
    let mut engine = Engine::new(&model.weights, &model.cx)?;
    if is_interruptible {
        engine = engine.interrupt_flag(&flag);
    }
    let begun = Instant::now();
    let generated = engine.generate(vec![request], |t| on_token(t.id));
    let (completions, t) = generated.map_err(|e| model.generation_error(e))?;
    record_span("prefill", begun, t.prefill_seconds, json!({"tokens": prompt.tokens.len()}));
    record_span("decode", begun + std::time::Duration::from_secs_f64(t.prefill_seconds), t.decode_seconds, json!({}));
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

/// Prints an object for a single completion, and a list of objects for several.
fn print_completions_as_json(
    prompt: &EncodedPrompt,
    completions: &[Completion],
    texts: &[String],
    timing: Timing,
) -> Result<()> {
    let result = |(c, text): (&Completion, &String)| {
        let mut result = json!({
            "text": text, "token_ids": c.ids, "prompt_tokens": prompt.tokens.len(),
            "finish_reason": c.finish_reason.openai_name(), "timing": timing,
        });
        if prompt.settings.top_log_probs.is_some() {
            let of_token = |t: &TokenLogProbs| json!({"logprob": t.log_prob, "top_logprobs": t.top});
            result["logprobs"] = c.token_log_probs.iter().map(of_token).collect();
        }
        if prompt.settings.prompt_log_probs.is_some() {
            let of_token = |t: &PromptTokenLogProbs| json!({"token_id": t.id, "logprob": t.log_prob, "rank": t.rank, "top_logprobs": t.top});
            result["prompt_logprobs"] = c.prompt_log_probs.iter().map(of_token).collect();
        }
        result
    };
    let results: Vec<_> = completions.iter().zip(texts).map(result).collect();
    match &results[..] {
        [only] => output::print_json(only),
        all => output::print_json(&all),
    }
}

/// Prints a completion while it is generated.
struct Printer {
    stream: Option<CompletionStream>,
    result: Result<()>,
}

impl Printer {
    fn new(bundle: &ModelFolder, stops: &[String], on: bool) -> Self {
        let stream = || CompletionStream::new(&bundle.tokenizer, stops);
        Self { stream: on.then(stream), result: Ok(()) }
    }

    fn push(&mut self, id: u32) {
        let Some(stream) = &mut self.stream else { return };
        let text = stream.push(id);
        if self.result.is_ok() && !text.is_empty() {
            self.result = output::print_text(&text);
        }
    }

    fn finish(self) -> Result<()> {
        self.result?;
        self.stream.map_or(Ok(()), |stream| output::print_text(&format!("{}\n", stream.finish())))
    }
}
