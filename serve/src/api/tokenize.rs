//! `POST /tokenize` and `POST /detokenize`, with vLLM's fields.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use reel_input::chat::PromptEnd;
use reel_input::media_loading::MediaOptions;
use reel_input::prompt_fields::PromptFields;
use reel_input::{ModelInput, TokenId};
use serde::Serialize;
use serde_json::{Value, json};

use super::fields::RequestFields;
use super::shared::ServerState;
use super::{ApiError, encode, wrong_field};

/// The answer of `/tokenize`.
#[derive(Debug, Serialize)]
pub(crate) struct TokenizeResponse {
    count: usize,
    max_model_len: usize,
    tokens: Vec<TokenId>,
    token_strs: Option<Vec<String>>,
}

/// `POST /tokenize`: the tokens of a text, or of chat messages. Messages with media have one token for each vision
/// token, as `usage.prompt_tokens` counts them.
pub(crate) async fn tokenize(
    State(shared): State<Arc<ServerState>>,
    body: Body,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let mut fields = RequestFields::read(&shared, body).await?;
    let memory = fields.take_memory_permit();
    let (prompt, messages) = (fields.take_field::<String>("prompt", "a text")?, fields.take_value("messages"));
    let (tools, prompt_fields) = (fields.take_tools()?, fields.take_prompt_fields()?);
    let with_texts = fields.take_field("return_token_strs", "true or false")?.unwrap_or(false);
    let prompt_end = fields.take_prompt_end()?;
    // The tokenizers of Qwen2.5-VL add no special tokens, so the value of this field makes no difference.
    fields.take_field::<bool>("add_special_tokens", "true or false")?;
    fields.refuse_remaining_fields()?;
    // Encoding may decode videos, so it needs a permit as any other request does.
    let permit = shared.request_permits(1)?;
    let messages = messages.unwrap_or_default();
    let encode = move |shared: &ServerState, media: &MediaOptions, messages: &Value| {
        let input: ModelInput = match (&prompt, Some(messages).filter(|messages| !messages.is_null())) {
            (Some(_), None) if !tools.is_empty() => return Err(wrong_field("tools", "need `messages`", "remove them")),
            (Some(_), None) if prompt_fields != PromptFields::default() => {
                let what = format!("(or {}) needs `messages`", PromptFields::FIELD_NAMES[1..].join(", "));
                return Err(wrong_field(PromptFields::FIELD_NAMES[0], &what, "remove it"));
            }
            (Some(_), None) if prompt_end == Some(PromptEnd::WithinLastMessage) => {
                return Err(wrong_field("continue_final_message", "needs `messages`", "remove it"));
            }
            (Some(text), None) => encode::encode_text(shared, text)?,
            (None, Some(messages)) => {
                let (tools, prompt_fields) = (tools.clone(), prompt_fields.clone());
                encode::encode_messages(shared, media, messages, tools, prompt_fields, prompt_end)?
            }
            _ => return Err(wrong_field("prompt", "or `messages` is needed", "give one of them")),
        };
        let tokens = input.input_ids;
        let decode = |id: &TokenId| shared.model.folder.tokenizer.decode(&[*id], false);
        let token_strs = with_texts.then(|| tokens.iter().map(decode).collect());
        Ok(TokenizeResponse { count: tokens.len(), max_model_len: shared.max_positions(), tokens, token_strs })
    };
    let held = (memory, permit);
    Ok(Json(encode::encode_messages_on_blocking_thread(&shared, messages, held, encode).await?))
}

/// `POST /detokenize`: the text of tokens, special tokens included.
pub(crate) async fn detokenize(State(shared): State<Arc<ServerState>>, body: Body) -> Result<Json<Value>, ApiError> {
    let mut fields = RequestFields::read(&shared, body).await?;
    let memory = fields.take_memory_permit();
    let Some(ids) = fields.take_field::<Vec<TokenId>>("tokens", "a list of token ids")? else {
        return Err(wrong_field("tokens", "is missing", "give a list of token ids"));
    };
    fields.refuse_remaining_fields()?;
    shared.check_token_ids("tokens", &ids)?;
    let text = encode::run_on_blocking_thread(&shared, move |shared| {
        let _memory = memory;
        Ok(shared.model.folder.tokenizer.decode(&ids, false))
    });
    Ok(Json(json!({"prompt": text.await?})))
}
