//! `POST /v1/preview`: shows what the model sees of a chat request, without generating an answer.
//!
//! Takes the body of a chat request and encodes it as `POST /v1/chat/completions` does. The answer has the number of
//! prompt tokens and, for each image and video in the order of the prompt, its size, its tokens and small images of its
//! frames:
//!
//! ```text
//! {"object": "preview", "model": NAME, "prompt_tokens": 310, "max_model_len": 128000, "media": [
//!   {"kind": "video", "grid_thw": [4, 16, 16], "vision_tokens": 256, "frames": 8, "width": 224, "height": 224,
//!    "timestamps": [0.0, 0.25, …], "thumbnails": [{"frame": 0, "url": "data:image/png;base64,…"}, …]}]}
//! ```

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reel_input::ModelInput;
use reel_input::media::frames::FrameBuf;
use reel_input::media::strip::{evenly_spaced, frame_thumbnail};
use reel_input::media_loading::MediaOptions;
use reel_input::prompt_media::{PromptMedium, media_in_prompt_order};
use serde_json::{Value, json};

use super::fields::RequestFields;
use super::queue::refuse_if_stopping;
use super::shared::ServerState;
use super::{ApiError, encode, wrong_field};
use crate::settings::ServedModel;

/// Maximum width and height of a thumbnail in pixels.
const MAX_SIDE: usize = 160;
/// Maximum number of thumbnails of an image or video. From a longer video, evenly spaced frames are shown.
const MAX_THUMBNAILS: usize = 64;
/// Maximum number of thumbnails of an answer. Images and videos beyond this number get no thumbnails.
const MAX_ALL_THUMBNAILS: usize = 512;

/// `POST /v1/preview`
pub(crate) async fn preview(State(shared): State<Arc<ServerState>>, body: Body) -> Result<Json<Value>, ApiError> {
    refuse_if_stopping(&shared)?;
    let mut fields = RequestFields::read(&shared, body).await?;
    let Some(messages) = fields.take_value("messages") else {
        return Err(wrong_field("messages", "is missing", "give a list of messages"));
    };
    let memory = fields.take_memory_permit();
    // Most of these fields do not change what the model sees, but they are checked as in a chat request. The tools do
    // change the prompt.
    fields.take_stream()?;
    let prompt_end = fields.take_prompt_end()?;
    let (_, tools, prompt_fields) = fields.into_chat_settings()?;
    // A preview counts as a request while it is encoded.
    let permit = shared.request_permits(1)?;
    let encode = move |shared: &ServerState, media: &MediaOptions, messages: &Value| {
        let (tools, prompt_fields) = (tools.definitions.clone(), prompt_fields.clone());
        let input = encode::encode_messages(shared, media, messages, tools, prompt_fields, prompt_end)?;
        describe(&shared.model, &input)
    };
    encode::encode_messages_on_blocking_thread(&shared, messages, (memory, permit), encode).await
}

/// The answer: counts, and the images and videos in the order of the prompt.
fn describe(model: &ServedModel, input: &ModelInput) -> Result<Json<Value>, ApiError> {
    let mut left = MAX_ALL_THUMBNAILS;
    let mut media = Vec::new();
    for medium in media_in_prompt_order(input, &model.folder.config) {
        let one = describe_medium(&medium, left)?;
        left -= one["thumbnails"].as_array().map_or(0, Vec::len);
        media.push(one);
    }
    Ok(Json(json!({
        "object": "preview", "model": model.name, "prompt_tokens": input.len(),
        "max_model_len": model.folder.config.text.max_position_embeddings, "media": media,
    })))
}

/// Describes an image or video as JSON: size, tokens, times and at most `left` thumbnails.
fn describe_medium(medium: &PromptMedium, left: usize) -> Result<Value, ApiError> {
    let FrameBuf { frames, height, width, .. } = *medium.frames;
    let mut thumbnails = Vec::new();
    for frame in evenly_spaced(frames, MAX_THUMBNAILS.min(left)) {
        let png = frame_thumbnail(medium.frames, frame, MAX_SIDE).map_err(|e| ApiError::internal(e.to_string()))?;
        let url = format!("data:image/png;base64,{}", STANDARD.encode(png.bytes));
        thumbnails.push(json!({"frame": frame, "url": url}));
    }
    Ok(json!({
        "kind": medium.kind, "grid_thw": medium.grid, "vision_tokens": medium.vision_tokens, "frames": frames,
        "width": width, "height": height, "timestamps": medium.times, "thumbnails": thumbnails,
    }))
}
