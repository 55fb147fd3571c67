//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use reel_input::media_loading::MediaOptions;
use reel_input::tools::ToolChoice;
use serde_json::Value;

use super::answer::{ApiKind, ToolCallRules};
use super::fields::RequestFields;
use super::queue::{CheckedRequest, refuse_if_stopping};
use super::shared::ServerState;
use super::{ApiError, encode, wrong_field};
use crate::http::RequestLog;

/// `POST /v1/chat/completions`
pub(crate) async fn create_chat_completion(
    State(shared): State<Arc<ServerState>>,
    Extension(log): Extension<Arc<RequestLog>>,
    body: Body,
) -> Result<Response, ApiError> {
    refuse_if_stopping(&shared)?;
    let mut fields = RequestFields::read(&shared, body).await?;
    let Some(messages) = fields.take_value("messages") else {
        return Err(wrong_field("messages", "is missing", "give a list of messages"));
    };
    answer_messages(&shared, log, fields, messages, None).await
}

/// Answers chat messages. `fields` are the other fields of a chat request. With `response`, the answer has the form of
/// the Responses API, and `response` has the fields of the request that this answer repeats.
pub(crate) async fn answer_messages(
    shared: &Arc<ServerState>,
    log: Arc<RequestLog>,
    mut fields: RequestFields,
    messages: Value,
    response: Option<Value>,
) -> Result<Response, ApiError> {
    let (model, memory, stream) =
        (fields.take_model(), fields.take_memory_permit().map(Arc::new), fields.take_stream()?);
    let (prompt_end, names) = (fields.take_prompt_end()?, fields.given_names());
    let reasoning = fields.take_reasoning()?;
    let (settings, tools, prompt_fields) = fields.into_chat_settings()?;
    if settings.sampling.max_new_tokens == Some(0) {
        return Err(wrong_field(names.max_tokens, "is 0", "give 1 or more"));
    }
    let rules = ToolCallRules { one_call: tools.one_call, is_named: matches!(tools.choice, ToolChoice::Function(_)) };
    let calls = tools.allows_tool_calls().then_some(rules);
    let checked =
        CheckedRequest::new(shared, ApiKind::Chat, model, stream, (settings, names), 1)?.with_memory(memory.clone());
    let checked = checked.with_tool_calls(calls).with_reasoning(reasoning).with_response(response);
    let encode = move |shared: &ServerState, media: &MediaOptions, messages: &Value| {
        encode::encode_messages(shared, media, messages, tools.definitions.clone(), prompt_fields.clone(), prompt_end)
    };
    let prompt = encode::encode_messages_on_blocking_thread(shared, messages, memory, encode);
    let prompt = prompt.await?;
    checked.answer(shared, log, vec![prompt], shared.limits.new_tokens).await
}
