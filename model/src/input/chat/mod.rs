//! The chat template of a model folder: a Jinja template, rendered as Hugging Face does, that turns a conversation into
//! a prompt.
//!
//! The environment equals that of transformers' `apply_chat_template`: trimmed blocks, `raise_exception`,
//! `strftime_now`, `break` and `continue`, `tojson` as Python's `json.dumps`, and Python's methods on strings, lists
//! and dicts.

mod python;
#[cfg(test)]
mod tests;

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde_json::{Map, Value};

use super::messages::Conversation;
use crate::error::{ModelError, Result};

/// A compiled chat template, and the special tokens that it can use by name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    location: String,
    tokens: Map<String, Value>,
}

const NAME: &str = "chat";
const HELP: &str = "use the chat template that was published with these weights";

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
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let broken =
            |e: minijinja::Error| ModelError::template(location, format!("cannot be compiled: {}", describe(&e)), HELP);
        environment.set_syntax(syntax.map_err(broken)?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        python::install_python_functions(&mut environment);
        environment.add_template_owned(NAME, python::without_generation_marks(&text)).map_err(broken)?;
        Ok(Self { environment, location: location.to_string(), tokens })
    }

    /// Renders a conversation to a prompt, with one pad token for each image or video.
    pub fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String> {
        self.render_json(&conversation.to_template_value(), add_generation_prompt)
    }

    /// Renders messages given as JSON to a prompt.
    pub fn render_json(&self, messages: &Value, add_generation_prompt: bool) -> Result<String> {
        let mut context = self.tokens.clone();
        context.insert("messages".to_string(), messages.clone());
        context.insert("add_generation_prompt".to_string(), Value::Bool(add_generation_prompt));
        for absent in ["tools", "documents"] {
            context.insert(absent.to_string(), Value::Null);
        }
        let render = self.environment.get_template(NAME).and_then(|template| template.render(Serde(context)));
        render.map_err(|e| {
            let help = "change the messages or the template";
            ModelError::template(&self.location, format!("cannot render these messages: {}", describe(&e)), help)
        })
    }
}

fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
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
    match std::fs::read_to_string(path) {
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
