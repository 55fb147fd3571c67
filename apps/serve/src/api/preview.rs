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
use reel_input::encode::MediaOptions;
use reel_input::window::GridThw;
use reel_media::frames::FrameBuf;
use reel_media::strip::thumbnail;
use serde_json::{Value, json};

use super::fields::{RequestFields, wrong_field};
use super::queue::refuse_if_stopping;
use super::shared::ServerState;
use super::{ApiError, encode};
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
    for medium in media_in_prompt_order(model, input) {
        let one = medium.describe(model, left)?;
        left -= one["thumbnails"].as_array().map_or(0, Vec::len);
        media.push(one);
    }
    Ok(Json(json!({
        "object": "preview", "model": model.name, "prompt_tokens": input.len(),
        "max_model_len": model.folder.config.text.max_position_embeddings, "media": media,
    })))
}

/// An image or a video of a prompt.
struct Medium<'a> {
    kind: &'static str,
    frames: &'a FrameBuf,
    grid: GridThw,
    /// The time of each frame in seconds; empty for an image.
    times: &'a [f64],
}

/// The images and videos in the order of their pad tokens in the prompt. [`ModelInput`] holds images and videos in
/// separate lists.
fn media_in_prompt_order<'a>(model: &ServedModel, input: &'a ModelInput) -> Vec<Medium<'a>> {
    let tokens = &model.folder.config.tokens;
    let frames = &input.frames;
    let times = frames.video_times.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
    let mut images = frames.images.iter().zip(&input.image_grid_thw);
    let mut videos = frames.videos.iter().zip(&input.video_grid_thw).zip(times);
    let mut media = Vec::new();
    let mut ids = input.input_ids.iter();
    while let Some(&id) = ids.next() {
        let next = if id == tokens.image {
            images.next().map(|(frames, &grid)| Medium { kind: "image", frames, grid, times: &[] })
        } else if id == tokens.video {
            videos.next().map(|((frames, &grid), times)| Medium { kind: "video", frames, grid, times })
        } else {
            None
        };
        if let Some(medium) = next {
            // Skips the other pad tokens of this image or video.
            ids.by_ref().take(vision_tokens(model, medium.grid) - 1).for_each(drop);
            media.push(medium);
        }
    }
    media
}

/// The number of tokens of an image or video with this grid; at least 1.
fn vision_tokens(model: &ServedModel, grid: GridThw) -> usize {
    (grid.iter().product::<usize>() / model.folder.config.vision.patches_per_vision_token()).max(1)
}

impl Medium<'_> {
    /// Describes the image or video as JSON: size, tokens, times and at most `left` thumbnails.
    fn describe(&self, model: &ServedModel, left: usize) -> Result<Value, ApiError> {
        let FrameBuf { frames, height, width, .. } = *self.frames;
        let view = self.frames.view().map_err(|e| ApiError::internal(e.to_string()))?;
        let shown = evenly_spaced(frames, MAX_THUMBNAILS.min(left));
        let mut thumbnails = Vec::with_capacity(shown.len());
        for frame in shown {
            let pixels = &view.data()[frame * height * width * 3..][..height * width * 3];
            let png =
                thumbnail(pixels, (height, width), MAX_SIDE).map_err(|e| ApiError::internal(e.to_string()))?.bytes;
            let url = format!("data:image/png;base64,{}", STANDARD.encode(png));
            thumbnails.push(json!({"frame": frame, "url": url}));
        }
        Ok(json!({
            "kind": self.kind, "grid_thw": self.grid, "vision_tokens": vision_tokens(model, self.grid),
            "frames": frames, "width": width, "height": height, "timestamps": self.times, "thumbnails": thumbnails,
        }))
    }
}

/// At most `most` of the indices `0..count`, evenly spaced, with the first and the last index.
fn evenly_spaced(count: usize, most: usize) -> Vec<usize> {
    let shown = count.min(most);
    (0..shown).map(|i| i * (count - 1) / (shown - 1).max(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_frames_are_evenly_spaced_from_the_first_to_the_last() {
        assert_eq!(evenly_spaced(3, 64), [0, 1, 2]);
        assert_eq!(evenly_spaced(9, 5), [0, 2, 4, 6, 8]);
        assert_eq!(evenly_spaced(1, 64), [0]);
        assert_eq!(evenly_spaced(5, 1), [0]);
        assert_eq!(evenly_spaced(5, 0), [0; 0]);
        let many = evenly_spaced(768, MAX_THUMBNAILS);
        assert_eq!((many.len(), many[0], many[63]), (64, 0, 767));
        assert!(many.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
