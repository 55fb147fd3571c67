//! The chat template of a model folder: a Jinja template, rendered as Hugging Face does, that turns a conversation into
//! a prompt.
//!
//! A template is a program by the author of the model folder, who may be unknown. `limits` checks its text, `engine`
//! compiles and renders it with limits, and `isolation` does so in a worker process, unless the template is one of
//! those that this program knows.

mod engine;
mod isolation;
mod limits;
mod python;
#[cfg(test)]
mod tests;

use std::path::Path;

use reel_diagnostic::input;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use self::engine::CompiledTemplate;
use self::isolation::{IsolatedTemplate, Setup};
use super::messages::Conversation;
use crate::error::{ModelError, Result};

pub use self::isolation::{TEMPLATE_WORKER_ARGUMENT, render_in_worker_process, worker_main};

/// A chat template, and the special tokens that it can use by name.
#[derive(Debug)]
pub struct ChatTemplate {
    renderer: Renderer,
    location: String,
}

/// Where a template is rendered.
#[derive(Debug)]
enum Renderer {
    InThisProcess(CompiledTemplate),
    InWorker(IsolatedTemplate),
}

const HELP: &str = "use the chat template that was published with these weights";

/// The SHA-256 digests of the templates that were published with Qwen2.5-VL (chat_template.json and
/// tokenizer_config.json). They are rendered without a worker process, which takes some milliseconds to start.
const PUBLISHED: [&str; 2] = [
    "a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb",
    "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",
];

impl ChatTemplate {
    /// Reads the template of a model folder. It is in `chat_template.jinja`, `chat_template.json` or
    /// `tokenizer_config.json`; the first file that has a template is used.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = folder.join("tokenizer_config.json");
        let settings = read_json(&config)?.unwrap_or_default();
        let tokens = named_tokens(&settings);
        let jinja = folder.join("chat_template.jinja");
        if let Some(text) = read(&jinja)? {
            return Self::parse(&jinja.display().to_string(), text, tokens);
        }
        let json = folder.join("chat_template.json");
        for (path, object) in [(&json, read_json(&json)?.unwrap_or_default()), (&config, settings)] {
            if let Some(value) = object.get("chat_template").filter(|value| !value.is_null()) {
                let location = path.display().to_string();
                let Some(text) = default_template(value) else {
                    return Err(ModelError::template(
                        location,
                        "has a chat_template that is neither a string nor a list of named strings",
                        HELP,
                    ));
                };
                return Self::parse(&location, text.to_string(), tokens);
            }
        }
        let what =
            "has no chat template (chat_template.jinja, chat_template.json, or chat_template in tokenizer_config.json)";
        Err(ModelError::template(folder.display().to_string(), what, HELP))
    }

    /// Compiles a template. `location` names its source in error messages; `tokens` are the special tokens that the
    /// template can use by name (`eos_token`, …).
    pub fn parse(location: &str, text: String, tokens: Map<String, Value>) -> Result<Self> {
        let refused = |what: String| ModelError::template(location, what, HELP);
        let is_trusted = is_known(&text);
        let renderer = match isolation::worker_program() {
            Some(program) if !is_trusted => {
                Renderer::InWorker(IsolatedTemplate::compile(program, Setup { text, tokens }).map_err(refused)?)
            }
            _ => Renderer::InThisProcess(CompiledTemplate::compile(&text, tokens, is_trusted).map_err(refused)?),
        };
        Ok(Self { renderer, location: location.to_string() })
    }

    /// Renders a conversation to a prompt, with one pad token for each image or video.
    pub fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String> {
        self.render_json(&conversation.to_template_value(), add_generation_prompt)
    }

    /// Renders messages given as JSON to a prompt.
    pub fn render_json(&self, messages: &Value, add_generation_prompt: bool) -> Result<String> {
        let prompt = match &self.renderer {
            Renderer::InThisProcess(template) => template.render(messages, add_generation_prompt),
            Renderer::InWorker(template) => template.render(messages, add_generation_prompt),
        };
        prompt.map_err(|what| ModelError::template(&self.location, what, "change the messages or the template"))
    }
}

/// Whether a template is known to be harmless: that of `reel init`, or one of [`PUBLISHED`].
fn is_known(text: &str) -> bool {
    let digest = || Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    text == crate::init::CHAT_TEMPLATE || PUBLISHED.contains(&digest().as_str())
}

/// The template itself if `value` is a string; the one called `default` if `value` is a list of named templates.
fn default_template(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(named) => named.get("default")?.as_str(),
        Value::Array(named) => {
            let called = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
            named.iter().find(called)?.get("template")?.as_str()
        }
        _ => None,
    }
}

/// The special tokens (`bos_token`, …) in tokenizer_config.json, each a string or `{"content": …}`. Tokens that are
/// null are left out.
fn named_tokens(settings: &Map<String, Value>) -> Map<String, Value> {
    let content =
        |value: &Value| value.get("content").unwrap_or(value).as_str().map(|text| Value::String(text.to_string()));
    settings
        .iter()
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, value)| Some((key.clone(), content(value)?)))
        .collect()
}

fn read(path: &Path) -> Result<Option<String>> {
    match input::read_text(path, input::MAX_CONFIG_BYTES) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ModelError::cannot_read(path, e)),
    }
}

fn read_json(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read(path)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(object) => Ok(Some(object)),
        Err(e) => Err(ModelError::template(path.display().to_string(), format!("is not a JSON object ({e})"), HELP)),
    }
}
