//! Encodes prompts as model inputs on blocking threads: renders chat templates, decodes media and tokenizes texts.

use std::path::Path;
use std::sync::Arc;

use reel_device::{RangeName, range};
use reel_input::chat::PromptEnd;
use reel_input::encode::{PromptOrigin, encode_prompt, load_media, refuse_pads_without_media};
use reel_input::media::worker::{DecodeControl, DecodeWorker};
use reel_input::media_loading::{LoadedMedia, MediaOptions};
use reel_input::messages::{ContentPart, Conversation, MediaSource, TEXT_PART_TYPES, VideoSource};
use reel_input::prompt_fields::PromptFields;
use reel_input::{ModelInput, TokenId};
use serde_json::Value;

use super::media_turns::EndsWithClient;
use super::shared::ServerState;
use super::{ApiError, REQUEST_LOCATION, encoding_error, messages_error, wrong_field};
use crate::error::Error;

/// Encodes chat messages, whose media are read with these options, with the tools that the model may call and the other fields that change the prompt. If
/// `prompt_end` is `None`, the prompt ends at the default place ([`PromptEnd::default_for_conversation`]).
pub(crate) fn encode_messages(
    shared: &ServerState,
    media: &MediaOptions,
    messages: &Value,
    tools: Vec<Value>,
    fields: PromptFields,
    prompt_end: Option<PromptEnd>,
) -> Result<ModelInput, ApiError> {
    let root = shared.media.root.clone().unwrap_or_default();
    let conversation =
        Conversation::from_request(REQUEST_LOCATION, messages, &root, tools, fields).map_err(messages_error)?;
    conversation.check_tool_results().map_err(messages_error)?;
    refuse_many_media(shared, &conversation)?;
    if shared.media.root.is_none() {
        refuse_files(&conversation)?;
    }
    let encoded = encode_conversation(shared, media, &conversation, prompt_end);
    // Hides the media folder in the error message, so that clients do not learn where it lies on this machine.
    encoded.map_err(|e| secret_folders(&root).iter().fold(e, |e, folder| e.replace_in_message(folder, "MEDIA_ROOT")))
}

/// Refuses a request with more images or videos than the server allows.
fn refuse_many_media(shared: &ServerState, conversation: &Conversation) -> Result<(), ApiError> {
    let is_video = |part: &&ContentPart| matches!(part, ContentPart::Video(_));
    let videos = conversation.media_parts().filter(is_video).count();
    let images = conversation.media_parts().count() - videos;
    for (count, max, kind) in [(images, shared.media.max_images, "images"), (videos, shared.media.max_videos, "videos")]
    {
        if let Some(max) = max.filter(|max| count > *max) {
            let what = format!("have {count} {kind}, and this server allows {max} (--limit-mm-per-prompt)");
            return Err(wrong_field("messages", &what, "send fewer"));
        }
    }
    Ok(())
}

/// The absolute paths of a folder, which error messages must not contain. A relative path such as `.` reveals
/// nothing, and replacing it would change other words.
fn secret_folders(folder: &Path) -> Vec<String> {
    let names = [Some(folder.to_path_buf()), folder.canonicalize().ok()].into_iter().flatten();
    names.filter(|name| name.is_absolute() && name.parent().is_some()).map(|name| name.display().to_string()).collect()
}

fn encode_conversation(
    shared: &ServerState,
    media: &MediaOptions,
    conversation: &Conversation,
    prompt_end: Option<PromptEnd>,
) -> Result<ModelInput, ApiError> {
    let _range = range(RangeName::Phase("request encoding"));
    let folder = &shared.model.folder;
    let end = prompt_end.unwrap_or_else(|| PromptEnd::default_for_conversation(conversation));
    let rendered = media.with_template_variables(conversation);
    let text = folder.template.render_to_end(&rendered, end).map_err(messages_error)?;
    refuse_long_text(shared, &text, "messages")?;
    let has_media = conversation.media_parts().next().is_some();
    let decoding = has_media.then(|| range(RangeName::Phase("media decoding")));
    let media = load_media(folder, conversation, media).map_err(messages_error)?;
    drop(decoding);
    let origin = PromptOrigin::Conversation(conversation);
    let input = encode_prompt(folder, &text, media, origin).map_err(messages_error)?;
    refuse_pads_without_media(folder, &input, origin).map_err(messages_error)?;
    Ok(input)
}

/// Encodes a text as it is, without a chat template.
pub(crate) fn encode_text(shared: &ServerState, text: &str) -> Result<ModelInput, ApiError> {
    refuse_long_text(shared, text, "prompt")?;
    let (folder, origin) = (&shared.model.folder, PromptOrigin::Text(REQUEST_LOCATION));
    let input = encode_prompt(folder, text, LoadedMedia::default(), origin).map_err(encoding_error)?;
    refuse_pads(shared, "prompt", input)
}

/// Refuses a text that is too long for the model's positions, however it is tokenized. This check avoids tokenizing
/// many MiB, which takes time and memory. `field` is the request field with the text.
fn refuse_long_text(shared: &ServerState, text: &str, field: &str) -> Result<(), ApiError> {
    let positions = shared.max_positions();
    match text.len() > positions.saturating_mul(shared.longest_token_bytes) {
        false => Ok(()),
        true => {
            let message = format!(". However, the prompt has {} bytes of text; shorten the prompt", text.len());
            Err(ApiError::prompt_too_long(positions, &message, field))
        }
    }
}

/// The model input for these token ids. `field` is the request field with the ids.
pub(crate) fn encode_ids(shared: &ServerState, field: &str, ids: Vec<TokenId>) -> Result<ModelInput, ApiError> {
    shared.check_token_ids(field, &ids)?;
    refuse_pads(shared, field, ModelInput::from_text_tokens(ids))
}

/// Refuses image and video pad tokens in the prompt of a request that has no media. `field` is the request field with
/// the prompt.
fn refuse_pads(shared: &ServerState, field: &str, input: ModelInput) -> Result<ModelInput, ApiError> {
    let refused = refuse_pads_without_media(&shared.model.folder, &input, PromptOrigin::Text(field));
    let as_field = |e: Error| wrong_field(field, &e.diagnostic.what, &e.diagnostic.help);
    refused.map(|()| input).map_err(as_field)
}

/// Encodes messages on a blocking thread, as [`run_on_blocking_thread`] does. If they have images or videos, waits for
/// the request's turn ([`media_turns`](super::media_turns)) and passes options to `encode` that end the decoding when the
/// client leaves. `held` is dropped when the encoding has ended.
pub(crate) async fn encode_messages_on_blocking_thread<T: Send + 'static>(
    shared: &Arc<ServerState>,
    messages: Value,
    held: impl Send + Sync + 'static,
    encode: impl Fn(&ServerState, &MediaOptions, &Value) -> Result<T, ApiError> + Send + Sync + 'static,
) -> Result<T, ApiError> {
    let has_media = may_have_media(&messages);
    let work = Arc::new((messages, encode, held));
    if !has_media {
        return run_on_blocking_thread(shared, move |shared| work.1(shared, &shared.media.options, &work.0)).await;
    }
    let mut turn = shared.media_turns.first_turn(&work.0).await;
    loop {
        let client = EndsWithClient(Arc::new(turn));
        let (work, control) = (work.clone(), client.0.clone());
        let encoded = run_on_blocking_thread(shared, move |shared| {
            // The client may have left before this thread began.
            control.check(0).map_err(messages_error)?;
            let decoder = DecodeWorker { control: Some(control), ..shared.media.options.decoder.clone() };
            work.1(shared, &MediaOptions { decoder, ..shared.media.options.clone() }, &work.0)
        });
        let encoded = encoded.await;
        if encoded.is_ok() || !client.0.needs_slow_turn() {
            return encoded;
        }
        drop(client);
        turn = shared.media_turns.slow_turn().await;
    }
}

/// Whether a part of a message is something other than text.
fn may_have_media(messages: &Value) -> bool {
    let parts = messages.as_array().into_iter().flatten().filter_map(|message| message["content"].as_array());
    parts.flatten().any(|part| part["type"].as_str().is_none_or(|kind| !TEXT_PART_TYPES.contains(&kind)))
}

/// Runs `encode` on a blocking thread.
pub(crate) async fn run_on_blocking_thread<T: Send + 'static>(
    shared: &Arc<ServerState>,
    encode: impl FnOnce(&ServerState) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let shared = shared.clone();
    let encoding = tokio::task::spawn_blocking(move || encode(&shared));
    encoding
        .await
        .map_err(|_| ApiError::internal("encoding the request has panicked; the server's log has the panic message"))?
}

/// Refuses a conversation that names files.
fn refuse_files(conversation: &Conversation) -> Result<(), ApiError> {
    let is_file = |source: &MediaSource| matches!(source, MediaSource::Path(_));
    let names_file = |part: &ContentPart| match part {
        ContentPart::Text(_) => false,
        ContentPart::Image(image) => is_file(&image.source),
        ContentPart::Video(video) => match &video.source {
            VideoSource::File(source) => is_file(source),
            VideoSource::Frames(frames) => frames.iter().any(is_file),
        },
    };
    match conversation.media_parts().any(names_file) {
        false => Ok(()),
        true => Err(ApiError::bad_request(
            "messages: name a file, and this server reads none; send the media as a data: URI, or start the server with \
             --media-root DIR",
            Some("messages".into()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_text_wait_for_no_decoder() {
        let of = |content: Value| may_have_media(&serde_json::json!([{"role": "user", "content": content}]));
        assert!(
            !of("text".into())
                && !of(serde_json::json!([{"type": "text", "text": "x"}, {"type": "input_text", "text": "x"}]))
                && !may_have_media(&Value::Null)
        );
        for part in ["image", "image_url", "video", "video_url", "unknown"] {
            assert!(of(serde_json::json!([{"type": "text", "text": "x"}, {"type": part}])), "{part}");
        }
        assert!(of(serde_json::json!([{"image": "x"}])));
    }

    #[test]
    fn relative_folders_and_the_root_are_not_hidden() {
        assert_eq!(secret_folders(Path::new("/")), [""; 0]);
        assert_eq!(secret_folders(Path::new("/none/here")), ["/none/here"]);
        let here = secret_folders(Path::new("."));
        assert!(here.len() == 1 && Path::new(&here[0]).is_absolute(), "{here:?}");
    }
}
