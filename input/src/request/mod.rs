//! Parses a messages file, which holds a JSON list of chat messages or the whole body of an OpenAI chat request with
//! its sampling fields.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::grammar::GrammarSpec;
use crate::grammar_fields::{GRAMMAR_FIELDS, parse_grammar};
use crate::messages::Conversation;
use crate::prompt_fields::PromptFields;
use crate::sampling::SamplingOptions;
use crate::tokenizer::TokenId;
use crate::tools::ToolRequest;

/// Maximum number of completions of one request.
pub const MAX_COMPLETIONS: usize = 4096;

/// The content of a messages file.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The file's path, or `stdin`, for error messages.
    pub location: String,
    /// The list of messages, not yet checked.
    pub messages: Value,
    /// The sampling fields of a request body; all absent if the file is a list.
    pub settings: RequestSettings,
    /// The tools that the model may call; none if the file is a list.
    pub tools: ToolRequest,
    /// The other fields that change the prompt; none if the file is a list.
    pub prompt: PromptFields,
}

/// The sampling fields of an OpenAI or vLLM chat request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestSettings {
    /// The sampling options. `max_new_tokens` is the field `max_completion_tokens` or, if it is absent, `max_tokens`.
    pub sampling: SamplingOptions,
    /// The number of completions to generate for the prompt.
    pub n: Option<usize>,
    /// Strings that end a completion.
    pub stop: Vec<String>,
    /// Additional token ids that end a completion.
    pub stop_token_ids: Vec<TokenId>,
    /// If true, end-of-sequence tokens do not end a completion.
    pub ignore_eos: bool,
    /// Minimum number of tokens of a completion, before which end tokens are not sampled: the field `min_tokens`.
    pub min_new_tokens: usize,
    /// Numbers that are added to the logits of tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The number of most likely tokens to return at each position of the completion, with their log-probabilities
    /// and that of the generated token: the fields `logprobs` and `top_logprobs`. `None`: no log-probabilities.
    pub top_log_probs: Option<usize>,
    /// The number of most likely tokens to return at each position of the prompt, with their log-probabilities and
    /// that of the prompt's token: the field `prompt_logprobs`. `None`: no log-probabilities.
    pub prompt_log_probs: Option<usize>,
    /// The grammar that a completion must follow: from `response_format`, `guided_json` and similar fields, or
    /// `structured_outputs`.
    pub grammar: Option<Arc<GrammarSpec>>,
    /// Requests with a lower number are computed first.
    pub priority: i32,
}

/// Maximum of the field `top_logprobs`, as in OpenAI's API.
pub const MAX_TOP_LOG_PROBS: usize = 20;

impl ChatRequest {
    /// Parses the bytes of a messages file. `location` names it in error messages.
    ///
    /// # Errors
    /// The bytes are not JSON, or the JSON is neither a list nor a request; a field of the request is unknown or has
    /// the wrong type.
    pub fn parse(location: &str, bytes: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|e| Error::input(location, format!("is not JSON ({e})"), "correct the JSON at that position"))?;
        let location = location.to_string();
        let Value::Object(mut body) = value else {
            let (settings, tools, prompt) = Default::default();
            return Ok(Self { location, messages: value, settings, tools, prompt });
        };
        let Some(messages) = body.remove("messages") else {
            let help = "give a JSON list of messages, or a request {\"messages\": [...]}";
            let what = "is neither a list of messages nor a request that has `messages`";
            return Err(Error::input(location, what, help));
        };
        let mut settings = RequestSettings::from_body(&location, &body, ends_with_assistant(&messages))?;
        let tools = ToolRequest::from_body(&location, &body)?;
        let form = settings.grammar.take().map(Arc::unwrap_or_clone);
        // A request has one grammar, and a `response_format` of the type `text` sets none.
        let is_response_format = is_given(&body, "response_format") && body["response_format"]["type"] != "text";
        settings.grammar = tools.grammar(&location, form, is_response_format)?.map(Arc::new);
        let prompt = PromptFields::from_body(&location, &body)?;
        Ok(Self { location, messages, settings, tools, prompt })
    }

    /// Reads the messages. Relative paths in them are resolved against `root`.
    ///
    /// # Errors
    /// The errors of [`Conversation::from_request`].
    pub fn conversation(&self, root: &Path) -> Result<Conversation> {
        let tools = self.tools.definitions.clone();
        Conversation::from_request(&self.location, &self.messages, root, tools, self.prompt.clone())
    }
}

impl RequestSettings {
    /// Reads the fields of a request body, except `messages` and the fields about tools. A field that is null counts as
    /// absent. `ends_with_answer`: the last message is from the assistant, so the prompt ends after this message.
    ///
    /// # Errors
    /// A field is not supported, its value has the wrong type or is out of range, or two fields contradict each other.
    fn from_body(location: &str, body: &Map<String, Value>, ends_with_answer: bool) -> Result<Self> {
        let mut settings = Self::default();
        for (name, value) in body.iter().filter(|(_, value)| !value.is_null()) {
            settings.read(&Field { location, name, value }, body, ends_with_answer)?;
        }
        let max_name = ["max_completion_tokens", "max_tokens"].into_iter().find(|name| is_given(body, name));
        if let (Some(max_name), Some(max)) = (max_name, settings.sampling.max_new_tokens) {
            settings.check_min_tokens(location, max, max_name)?;
        }
        Ok(settings)
    }

    /// Refuses a minimum number of tokens above `max`, the maximum that `max_name` sets. `location` names the request.
    ///
    /// # Errors
    /// `min_tokens` is larger than `max`.
    pub fn check_min_tokens(&self, location: &str, max: usize, max_name: &str) -> Result<()> {
        match self.min_new_tokens > max {
            false => Ok(()),
            true => {
                let what = format!("is {}, but an answer has at most {max} tokens ({max_name})", self.min_new_tokens);
                let help = format!("lower min_tokens, or raise {max_name}");
                Err(Error::input(format!("{location}: min_tokens"), what, help))
            }
        }
    }

    /// Refuses token ids that a model with `vocab_size` tokens does not have. `location` names the request.
    ///
    /// # Errors
    /// `logit_bias` or `stop_token_ids` has such an id.
    pub fn check_token_ids(&self, location: &str, vocab_size: usize) -> Result<()> {
        let biased = self.logit_bias.iter().map(|(id, _)| ("logit_bias", *id));
        let ids = biased.chain(self.stop_token_ids.iter().map(|id| ("stop_token_ids", *id)));
        match ids.into_iter().find(|(_, id)| *id as usize >= vocab_size) {
            None => Ok(()),
            Some((name, id)) => {
                let what = format!("has the token id {id}, but the model has {vocab_size} tokens");
                let help = format!("give ids below {vocab_size}");
                Err(Error::input(format!("{location}: {name}"), what, help))
            }
        }
    }

    /// Reads one field of the request `body`.
    fn read(&mut self, field: &Field, body: &Map<String, Value>, ends_with_answer: bool) -> Result<()> {
        let (value, own) = (field.value, &mut self.sampling);
        match field.name {
            "temperature" => own.temperature = Some(field.real("a number that is 0 or more", |x| x >= 0.0)?),
            "top_p" => own.top_p = Some(field.real("a number above 0, up to 1", |x| x > 0.0 && x <= 1.0)?),
            // In vLLM, -1 means all tokens, as 0 does.
            "top_k" if value.as_i64() == Some(-1) => own.top_k = Some(0),
            "top_k" => own.top_k = Some(field.whole_of()?),
            "min_p" => own.min_p = Some(field.real("a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?),
            "presence_penalty" => own.presence_penalty = Some(field.real(PENALTY, is_penalty)?),
            "frequency_penalty" => own.frequency_penalty = Some(field.real(PENALTY, is_penalty)?),
            "repetition_penalty" => {
                let is_possible = |x: f32| (1e-3..=1e3).contains(&x);
                own.repetition_penalty = Some(field.real("a number from 0.001 to 1000", is_possible)?);
            }
            // max_completion_tokens replaces the older name max_tokens.
            "max_completion_tokens" => own.max_new_tokens = Some(field.whole_of()?),
            "max_tokens" if is_given(body, "max_completion_tokens") => {}
            "max_tokens" => own.max_new_tokens = Some(field.whole_of()?),
            "n" => {
                let n = field.whole_of()?;
                let is_possible = (1..=MAX_COMPLETIONS).contains(&n);
                self.n = Some(is_possible.then_some(n).ok_or_else(|| field.wrong(&format!("1 to {MAX_COMPLETIONS}")))?);
            }
            // In vLLM, -1 means no seed. Other negative seeds are allowed, as in OpenAI's API.
            "seed" if value.as_i64() == Some(-1) => {}
            "seed" => {
                let seed = |value: &Value| value.as_u64().or(value.as_i64().map(i64::cast_unsigned));
                own.seed = Some(field.parsed("a whole number of 64 bits", seed)?);
            }
            "stop" => self.stop = field.parsed("a text or a list of texts, none of them empty", stop_strings)?,
            "stop_token_ids" => self.stop_token_ids = field.parsed("a list of token ids", token_ids)?,
            "ignore_eos" => self.ignore_eos = field.truth()?,
            "min_tokens" => self.min_new_tokens = field.whole_of()?,
            "logit_bias" => {
                let wanted = "an object that maps token ids to numbers from -100 to 100";
                self.logit_bias = field.parsed(wanted, logit_bias)?;
            }
            "logprobs" if field.truth()? => self.top_log_probs = Some(top_log_probs(field.location, body)?),
            "logprobs" => {}
            "top_logprobs" if value.as_u64() == Some(0) || body.get("logprobs") == Some(&Value::Bool(true)) => {}
            "top_logprobs" => return Err(field.refused("needs logprobs", "set logprobs to true, or remove it")),
            "prompt_logprobs" => self.prompt_log_probs = Some(field.top_count()?),
            name if GRAMMAR_FIELDS.contains(&name) => {
                let grammar = parse_grammar(name, value).map_err(|e| field.refused(&e.what, &e.help))?;
                if grammar.is_some() && self.grammar.is_some() {
                    return Err(field.refused("is a second grammar for the answer; only one is allowed", "give one"));
                }
                self.grammar = self.grammar.take().or(grammar.map(Arc::new));
            }
            "priority" => {
                let number = |value: &Value| value.as_i64().and_then(|n| i32::try_from(n).ok());
                self.priority = field.parsed("a whole number", number)?;
            }
            // The field `model` is ignored: --model names the model.
            name if WITHOUT_EFFECT.contains(&name) => {}
            "prediction" | "verbosity" => note_field(field.name, "has no effect"),
            "reasoning_effort" if value == "none" => note_field(field.name, "has no effect"),
            // This field only selects whether a server's answer has its reasoning in a separate field.
            "include_reasoning" => drop(field.truth()?),
            name if ToolRequest::FIELD_NAMES.contains(&name) || PromptFields::FIELD_NAMES.contains(&name) => {}
            name if has_no_effect(name, value, ends_with_answer) => {}
            name if UNSUPPORTED.contains(&name) => {
                return Err(field.refused("is a field of the request that reel does not support", "remove it"));
            }
            // An unknown field is ignored, as in vLLM.
            name => note_field(name, "is unknown and ignored"),
        }
        Ok(())
    }
}

/// A field of a request. Its methods return its value, or an error that names the field.
struct Field<'a> {
    /// The name of the request, for errors.
    location: &'a str,
    name: &'a str,
    value: &'a Value,
}

impl Field<'_> {
    fn refused(&self, what: &str, help: &str) -> Error {
        Error::input(format!("{}: {}", self.location, self.name), what, help)
    }

    /// The error for a value that does not have the form `wanted` (a description in words).
    fn wrong(&self, wanted: &str) -> Error {
        self.refused(&format!("is {}", self.value), &format!("give {wanted}"))
    }

    /// The value, converted by `parse`. If `parse` returns `None`, the error asks for `wanted`, a description of valid
    /// values.
    fn parsed<T>(&self, wanted: &str, parse: impl FnOnce(&Value) -> Option<T>) -> Result<T> {
        parse(self.value).ok_or_else(|| self.wrong(wanted))
    }

    fn real(&self, range: &str, is_in_range: fn(f32) -> bool) -> Result<f32> {
        self.parsed(range, |value| value.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && is_in_range(*x)))
    }

    fn truth(&self) -> Result<bool> {
        self.parsed("true or false", Value::as_bool)
    }

    /// The value as a whole number of type T.
    fn whole_of<T: TryFrom<u64>>(&self) -> Result<T> {
        let number = self.parsed("a whole number that is not negative", Value::as_u64)?;
        T::try_from(number).map_err(|_| self.wrong("a smaller number"))
    }

    /// The value as a number of most likely tokens, from 0 to [`MAX_TOP_LOG_PROBS`].
    fn top_count(&self) -> Result<usize> {
        let number = |value: &Value| value.as_u64().map(|n| n as usize).filter(|&n| n <= MAX_TOP_LOG_PROBS);
        self.parsed(&format!("0 to {MAX_TOP_LOG_PROBS}"), number)
    }
}

fn stop_strings(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(String::from);
    match value {
        Value::Array(list) => list.iter().map(text).collect(),
        value => Some(vec![text(value)?]),
    }
}

/// The valid values of OpenAI's two penalties, for errors.
const PENALTY: &str = "a number from -2 to 2";

fn is_penalty(x: f32) -> bool {
    (-2.0..=2.0).contains(&x)
}

fn token_ids(value: &Value) -> Option<Vec<TokenId>> {
    let id = |value: &Value| value.as_u64().and_then(|id| TokenId::try_from(id).ok());
    value.as_array()?.iter().map(id).collect()
}

/// Parses OpenAI's form of biases: an object that maps token ids, written as texts, to numbers.
fn logit_bias(value: &Value) -> Option<Vec<(TokenId, f32)>> {
    let bias = |(id, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
        Some((id.parse().ok()?, bias as f32))
    };
    value.as_object()?.iter().map(bias).collect()
}

/// The field `top_logprobs`; 0 if the request has none.
fn top_log_probs(location: &str, body: &Map<String, Value>) -> Result<usize> {
    match body.get("top_logprobs") {
        None | Some(Value::Null) => Ok(0),
        Some(value) => Field { location, name: "top_logprobs", value }.top_count(),
    }
}

/// Whether a request has a field that is not null.
fn is_given(body: &Map<String, Value>, name: &str) -> bool {
    body.get(name).is_some_and(|value| !value.is_null())
}

/// Whether the last message is from the assistant.
fn ends_with_assistant(messages: &Value) -> bool {
    messages.as_array().and_then(|list| list.last()).is_some_and(|last| last["role"] == "assistant")
}

/// Fields of OpenAI's and vLLM's requests that reel does not support, up to openai 2 and vLLM 0.33. A field is still
/// accepted if its value has no effect ([`has_no_effect`]).
const UNSUPPORTED: [&str; 49] = [
    "add_generation_prompt",
    "add_special_tokens",
    "allowed_token_ids",
    "audio",
    "bad_words",
    "best_of",
    "cache_salt",
    "chat_template",
    "continue_final_message",
    "documents",
    "early_stopping",
    "ec_transfer_params",
    "echo",
    "function_call",
    "functions",
    "guided_decoding_backend",
    "guided_whitespace_pattern",
    "include_stop_str_in_output",
    "kv_transfer_params",
    "length_penalty",
    "logits_processors",
    "logprob_token_ids",
    "messages",
    "mm_payload",
    "modalities",
    "moderation",
    "prompt",
    "prompt_embeds",
    "reasoning_effort",
    "repetition_detection",
    "request_id",
    "return_mm_kwargs",
    "return_prompt_text",
    "return_token_ids",
    "return_token_offsets",
    "return_tokens_as_token_ids",
    "return_weight_versions",
    "routed_experts_prompt_start",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stream_interval",
    "suffix",
    "thinking_token_budget",
    "truncate_prompt_tokens",
    "truncation_side",
    "use_beam_search",
    "vllm_xargs",
    "watermarking",
    "web_search_options",
];

/// Fields that never change an answer here: names for the provider's own records, and hints that make answers faster.
const WITHOUT_EFFECT: [&str; 12] = [
    "metadata",
    "model",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "session_id",
    "store",
    "stream",
    "stream_options",
    "user",
];

/// Prints one note about a field that changes nothing. Only the first few names are printed, because clients choose the
/// names.
fn note_field(name: &str, what: &str) {
    const MAX_NAMES: usize = 16;
    static NAMES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let short: String = name.chars().take(64).collect();
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if names.len() < MAX_NAMES && names.insert(short.clone()) {
        reel_support::diagnostic::note!(
            "note: the field {} of a request {what}",
            reel_support::diagnostic::escape_controls(&short)
        );
    }
}

/// Whether an unsupported field can be ignored, because its value asks for what reel does anyway. `ends_with_answer`:
/// the last message is from the assistant, so the prompt ends after it and begins no new message.
fn has_no_effect(name: &str, value: &Value, ends_with_answer: bool) -> bool {
    match name {
        "early_stopping"
        | "echo"
        | "include_stop_str_in_output"
        | "return_prompt_text"
        | "return_token_ids"
        | "return_token_offsets"
        | "return_tokens_as_token_ids"
        | "return_weight_versions"
        | "use_beam_search"
        | "watermarking" => *value == Value::Bool(false),
        "skip_special_tokens" => *value == Value::Bool(true),
        "add_generation_prompt" => *value == Value::Bool(!ends_with_answer),
        "continue_final_message" => *value == Value::Bool(false) && !ends_with_answer,
        // The tokenizers of Qwen2.5-VL add no special tokens, so both values have the same result.
        "add_special_tokens" => value.is_boolean(),
        "best_of" => value.as_u64() == Some(1),
        "length_penalty" => value.as_f64() == Some(1.0),
        "functions" | "bad_words" => value.as_array().is_some_and(Vec::is_empty),
        // This field only affects special tokens in the text, and the text has none.
        "spaces_between_special_tokens" => value.is_boolean(),
        "stream_interval" => value.as_u64() == Some(1),
        "routed_experts_prompt_start" => value.as_u64() == Some(0),
        // In vLLM, -1 means no limit.
        "thinking_token_budget" => value.as_i64() == Some(-1),
        "mm_payload" => value == "tensors",
        "return_mm_kwargs" => *value == Value::Bool(true),
        "modalities" => *value == json!(["text"]),
        "function_call" => value.as_str() == Some("none"),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
