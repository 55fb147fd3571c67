//! Fuzz target for the values that chat templates render.

use std::path::Path;

use anyhow::Result;
use reel_input::chat::ChatTemplate;
use reel_input::messages::{ContentPart, Conversation};
use serde_json::{Map, Value, json};

use super::model::tiny_model_file;
use super::{FuzzTarget, repository_file};
use crate::mutate::{PartFormat, Seed};
use crate::verdict::{require, value_if_accepted};

/// Messages in which any JSON replaces a value. The chat template that reel writes and a published template render
/// these messages. Messages that [`Conversation`] accepts must render to a prompt with one pad token for each image
/// and video.
pub const TEMPLATE_VALUES: FuzzTarget = FuzzTarget {
    name: "template-values",
    words: &[
        "role",
        "content",
        "type",
        "text",
        "image",
        "video",
        "image_url",
        "video_url",
        "url",
        "user",
        "assistant",
        "system",
        "tool",
        "tools",
        "tool_calls",
        "function",
        "arguments",
        "name",
        "{{ messages }}",
        "{% raw %}",
        "<|im_start|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "\u{0}",
        "\u{202e}",
        "",
    ],
    seeds: || {
        let messages = json!([
            {"role": "system", "content": "s"},
            {"role": "user", "content": [
                {"type": "image", "image": "a.png"}, {"type": "video", "video": "b.mp4", "fps": 1},
                {"type": "text", "text": "What?"},
            ]},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "And?"},
        ]);
        let calls = json!([
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}], "name": "x"},
        ]);
        Ok([messages, calls].into_iter().map(|messages| Seed::new(PartFormat::Json, messages.to_string())).collect())
    },
    open: || {
        let template = |bytes: Vec<u8>| -> Result<ChatTemplate> {
            let file: Value = serde_json::from_slice(&bytes)?;
            let text = file["chat_template"].as_str().unwrap_or_default().to_string();
            Ok(ChatTemplate::parse("chat_template.json", text, Map::new())?)
        };
        let published = repository_file("tests/golden/model/text_multiturn/model/chat_template.json")?;
        let templates = [template(tiny_model_file("chat_template.json")?)?, template(published)?];
        Ok(Box::new(move |input| {
            let Ok(messages) = serde_json::from_slice::<Value>(input) else { return Ok(false) };
            let mut is_accepted = false;
            for template in &templates {
                for add_generation_prompt in [false, true] {
                    let prompt = value_if_accepted(template.render_json(&messages, add_generation_prompt))?;
                    let bytes = prompt.as_ref().map_or(0, String::len);
                    require(bytes <= 32 << 20, || format!("the prompt has {bytes} bytes"))?;
                }
                let read = value_if_accepted(Conversation::from_json("m.json", &messages, Path::new("/root")))?;
                let Some(conversation) = read else { continue };
                let Some(prompt) = value_if_accepted(template.render(&conversation, true))? else { continue };
                let images = |part: &&ContentPart| matches!(part, ContentPart::Image(_));
                let media = conversation.media_parts().count();
                let images = conversation.media_parts().filter(images).count();
                let pads = [prompt.matches("<|image_pad|>").count(), prompt.matches("<|video_pad|>").count()];
                require(pads[0] >= images && pads[1] >= media - images, || format!("{pads:?} pads: {prompt:?}"))?;
                is_accepted = true;
            }
            Ok(is_accepted)
        }))
    },
};
