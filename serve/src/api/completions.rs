//! `POST /v1/completions`: generates continuations of texts, without a chat template.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use reel_engine::MAX_TOP_LOG_PROBS;
use reel_input::request::RequestSettings;
use reel_input::{ModelInput, TokenId};
use serde::Deserialize;

use super::answer::ApiKind;
use super::fields::RequestFields;
use super::queue::{CheckedRequest, refuse_if_stopping};
use super::shared::ServerState;
use super::{ApiError, encode, wrong_field};
use crate::http::RequestLog;

/// Maximum number of new tokens of a request without `max_tokens`, as in OpenAI's API.
const DEFAULT_NEW_TOKENS: usize = 16;

/// The field `prompt`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Ids(Vec<TokenId>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<TokenId>>),
}

/// One prompt.
#[derive(Debug)]
enum Prompt {
    Text(String),
    Ids(Vec<TokenId>),
}

impl Prompts {
    fn into_list(self) -> Vec<Prompt> {
        match self {
            Prompts::Text(text) => vec![Prompt::Text(text)],
            Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Prompts::Ids(ids) => vec![Prompt::Ids(ids)],
            Prompts::IdLists(lists) => lists.into_iter().map(Prompt::Ids).collect(),
        }
    }
}

impl Prompt {
    /// The model input of a prompt. Prompts of this API have no images or videos.
    fn encode(self, shared: &ServerState) -> Result<ModelInput, ApiError> {
        let input = match self {
            Prompt::Text(text) => encode::encode_text(shared, &text)?,
            Prompt::Ids(ids) => encode::encode_ids(shared, "prompt", ids)?,
        };
        match input.is_empty() {
            true => Err(wrong_field("prompt", "has no tokens", "give it some text")),
            false => Ok(input),
        }
    }
}

/// `POST /v1/completions`
pub(crate) async fn create_completion(
    State(shared): State<Arc<ServerState>>,
    Extension(log): Extension<Arc<RequestLog>>,
    body: Body,
) -> Result<Response, ApiError> {
    refuse_if_stopping(&shared)?;
    let mut fields = RequestFields::read(&shared, body).await?;
    let wanted = "a text, a list of texts, a list of token ids, or a list of such lists";
    let Some(prompts) = fields.take_field::<Prompts>("prompt", wanted)? else {
        return Err(wrong_field("prompt", "is missing", &format!("give {wanted}")));
    };
    let prompts = prompts.into_list();
    if prompts.is_empty() {
        return Err(wrong_field("prompt", "is an empty list", &format!("give {wanted}")));
    }
    let (model, memory, stream) =
        (fields.take_model(), fields.take_memory_permit().map(Arc::new), fields.take_stream()?);
    take_without_effect(&mut fields)?;
    let top_log_probs = match fields.take_field::<usize>("logprobs", "a number from 0 to 20")? {
        Some(asked) if asked > MAX_TOP_LOG_PROBS => {
            return Err(wrong_field("logprobs", &format!("is {asked}"), &format!("give 0 to {MAX_TOP_LOG_PROBS}")));
        }
        asked => asked,
    };
    let names = fields.given_names();
    let settings = RequestSettings { top_log_probs, ..fields.into_settings()? };
    let checked = CheckedRequest::new(&shared, ApiKind::Text, model, stream, (settings, names), prompts.len())?;
    let checked = checked.with_memory(memory.clone());
    let prompts = encode::run_on_blocking_thread(&shared, move |shared| {
        let _memory = memory;
        prompts.into_iter().map(|prompt| prompt.encode(shared)).collect::<Result<Vec<_>, ApiError>>()
    });
    let prompts = prompts.await?;
    checked.answer(&shared, log, prompts, DEFAULT_NEW_TOKENS).await
}

/// Takes out `suffix`, `best_of` and `echo`, which only the completions API has. They are accepted only with values that
/// have no effect.
fn take_without_effect(fields: &mut RequestFields) -> Result<(), ApiError> {
    if fields.take_field::<String>("suffix", "a text")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(wrong_field("suffix", "is not supported", "remove it"));
    }
    if fields.take_field::<u64>("best_of", "a whole number")?.is_some_and(|best_of| best_of != 1) {
        return Err(wrong_field("best_of", "is not supported", "remove it; n gives several completions"));
    }
    if fields.take_field::<bool>("echo", "true or false")? == Some(true) {
        let help = "remove it; prompt_logprobs gives the log-probabilities of the prompt";
        return Err(wrong_field("echo", "is not supported", help));
    }
    Ok(())
}
