//! The chat template of a model folder: a Jinja template, rendered as Hugging Face does, that turns a conversation into
//! a prompt.
//!
//! A template is a program by the author of the model folder, who may be unknown. `limits` checks the template's text.
//! `engine` compiles and renders the template with limits. `isolation` runs `engine` in a worker process, except for
//! published templates, which are known to be harmless.

mod engine;
mod isolation;
mod json;
mod limits;
mod methods;
mod prompt_end;
mod python;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::OnceLock;

use reel_support::diagnostic::input;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use self::engine::{CompiledTemplate, RenderInput};
use self::isolation::{IsolatedTemplate, WorkerTemplate};
use crate::error::{Error, Result};
use crate::messages::{Conversation, insert_text_arguments, mark_text_arguments};

pub use self::isolation::TEMPLATE_WORKER;
pub use self::prompt_end::PromptEnd;

/// The chat template that `reel init` writes into a model folder of Qwen2.5-VL.
pub const CHAT_TEMPLATE: &str = include_str!("chat_template.jinja");

/// The chat template that `reel init` writes into a model folder of Qwen3-VL. It renders as the template that was
/// published with the Instruct models.
pub const QWEN3_CHAT_TEMPLATE: &str = include_str!("qwen3_chat_template.jinja");

/// A chat template, and the special tokens that it can use by name.
#[derive(Debug)]
pub struct ChatTemplate {
    main: Template,
    tools: ToolsTemplate,
}

/// The template that renders conversations with tools.
#[derive(Debug)]
enum ToolsTemplate {
    /// The main template, which renders all other conversations too.
    Main,
    /// Another template of the model folder.
    Other(Box<LazyTemplate>),
    /// No template of the model folder supports tools.
    Missing,
}

/// A template that is compiled at its first use.
#[derive(Debug)]
struct LazyTemplate {
    source: Source,
    compiled: OnceLock<Template>,
}

/// The text of a template, its location for error messages, and the special tokens.
#[derive(Clone, Debug)]
struct Source {
    location: String,
    text: String,
    tokens: Map<String, Value>,
}

/// A compiled template.
#[derive(Debug)]
struct Template {
    renderer: Renderer,
    location: String,
    text: String,
}

/// The place where a template is rendered: this process or a worker process.
#[derive(Debug)]
enum Renderer {
    InThisProcess(CompiledTemplate),
    InWorker(IsolatedTemplate),
}

const HELP: &str = "use the chat template that was published with these weights";
const NO_TOOLS: &str = "has no chat template that mentions `tools`, and the conversation has tools";
const NO_TOOLS_HELP: &str = "add the tokenizer_config.json that was published with these weights, or remove the tools";

/// The SHA-256 digests of the templates that were published with Qwen2.5-VL (chat_template.json and
/// tokenizer_config.json). They are rendered in this process, because a worker process takes some milliseconds to
/// start.
const PUBLISHED: [&str; 2] = [
    "a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb",
    "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",
];

/// The text that stands for an image or a video in the content of a message if a template supports only text content.
/// It equals the text that Qwen2.5-VL's template writes for an image or video part.
const IMAGE_TEXT: &str = "<|vision_start|><|image_pad|><|vision_end|>";
const VIDEO_TEXT: &str = "<|vision_start|><|video_pad|><|vision_end|>";

impl ChatTemplate {
    /// Reads the template of a model folder from `chat_template.jinja`, `chat_template.json` or
    /// `tokenizer_config.json`: the first of these files that has a template.
    ///
    /// This template also renders conversations with tools if its text mentions `tools`. Otherwise, the first
    /// template in the other files that mentions `tools` renders them. Qwen2.5-VL's chat_template.json supports media
    /// but no tools; its tokenizer_config.json has a template for tools, which supports only text content. If a file
    /// has a template with the name `tool_use`, this template is preferred for tools.
    pub fn open(folder: &Path) -> Result<Self> {
        let templates = FolderTemplates::read(folder)?;
        let Some(main) = templates.default.first() else {
            let what = "has no chat template (chat_template.jinja, chat_template.json, or chat_template in \
                tokenizer_config.json)";
            return Err(Error::input(folder.display().to_string(), what, HELP));
        };
        let other = |source: &Source| {
            let lazy = LazyTemplate { source: source.clone(), compiled: OnceLock::new() };
            ToolsTemplate::Other(Box::new(lazy))
        };
        let own = templates.tool_use.iter().find(|source| source.location == main.location);
        let tools = match own {
            Some(source) => other(source),
            None if mentions(&main.text, "tools") => ToolsTemplate::Main,
            None => {
                let mut others = templates.tool_use.iter().chain(&templates.default);
                others.find(|source| mentions(&source.text, "tools")).map_or(ToolsTemplate::Missing, other)
            }
        };
        Ok(Self { main: main.clone().compile()?, tools })
    }

    /// Compiles a template. `location` names its source in error messages; `tokens` are the special tokens that the
    /// template can use by name (`eos_token`, …).
    pub fn parse(location: &str, text: String, tokens: Map<String, Value>) -> Result<Self> {
        let tools = if mentions(&text, "tools") { ToolsTemplate::Main } else { ToolsTemplate::Missing };
        Ok(Self { main: Source { location: location.to_string(), text, tokens }.compile()?, tools })
    }

    /// Renders a conversation to a prompt, with one pad token for each image or video.
    ///
    /// If a conversation has no tools, the main template also renders its messages with tool calls and tool results, as
    /// transformers does. If the main template does not mention `tool_calls`, the calls are first written into the
    /// content of their message as text.
    ///
    /// # Errors
    /// The conversation has tools, and no template supports tools; the conversation has a variable that the template
    /// does not use; the template refuses the messages.
    pub fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String> {
        let main = &self.main;
        let (template, tools, mut messages) = match (&conversation.tools[..], &self.tools) {
            ([], _) if conversation.has_tool_calls() && !mentions(&main.text, "tool_calls") => {
                (main, Value::Null, conversation.with_calls_as_text().to_template_value())
            }
            ([], _) => (main, Value::Null, conversation.to_template_value()),
            (tools, ToolsTemplate::Main) => (main, Value::from(tools), conversation.to_template_value()),
            (tools, ToolsTemplate::Other(lazy)) => {
                let messages = conversation.to_text_template_value(IMAGE_TEXT, VIDEO_TEXT);
                (lazy.compiled()?, Value::from(tools), messages)
            }
            (_, ToolsTemplate::Missing) => {
                return Err(Error::input(&main.location, NO_TOOLS, NO_TOOLS_HELP));
            }
        };
        let variables = template.used_variables(conversation)?;
        let texts = mark_text_arguments(&mut messages);
        let prompt = template.render(&RenderInput { messages, tools, add_generation_prompt, variables })?;
        Ok(insert_text_arguments(prompt, &texts))
    }

    /// Renders a conversation as [`Self::render`] does, to a prompt that ends at `end`.
    ///
    /// # Errors
    /// The errors of [`Self::render`]; the last message cannot be continued, because it is not the assistant's, has
    /// tool calls, does not end with a text, or because the template does not write its text.
    pub fn render_to_end(&self, conversation: &Conversation, end: PromptEnd) -> Result<String> {
        if end != PromptEnd::WithinLastMessage {
            return self.render(conversation, end == PromptEnd::NewMessage);
        }
        let prompt = self.render(&prompt_end::mark_end_of_text(conversation)?, false)?;
        prompt_end::text_before_mark(&prompt).ok_or_else(|| {
            let what = "does not write the text of the last message, so the model cannot continue it";
            Error::input(&self.main.location, what, "remove continue_final_message")
        })
    }

    /// The text of the template that renders conversations without tools.
    pub fn template_text(&self) -> &str {
        &self.main.text
    }

    /// Renders messages given as JSON to a prompt.
    pub fn render_json(&self, messages: &Value, add_generation_prompt: bool) -> Result<String> {
        let (tools, variables) = (Value::Null, Map::new());
        self.main.render(&RenderInput { messages: messages.clone(), tools, add_generation_prompt, variables })
    }
}

/// The templates in the files of a model folder, in the order of the files.
#[derive(Default)]
struct FolderTemplates {
    /// For each file, its only template or its template with the name `default`.
    default: Vec<Source>,
    /// Templates with the name `tool_use`.
    tool_use: Vec<Source>,
}

impl FolderTemplates {
    fn read(folder: &Path) -> Result<Self> {
        let [jinja, json, config] =
            ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"].map(|name| folder.join(name));
        let settings = read_json(&config)?.unwrap_or_default();
        let tokens = named_tokens(&settings);
        let source = |path: &Path, text: &str| {
            let location = path.display().to_string();
            Source { location, text: text.to_string(), tokens: tokens.clone() }
        };
        let mut found = Self::default();
        found.default.extend(read(&jinja)?.map(|text| source(&jinja, &text)));
        let json_object = match read_json(&json) {
            // Here chat_template.json is searched only for a template that supports tools, so an invalid file is
            // ignored.
            Err(_) if !found.default.is_empty() => None,
            object => object?,
        };
        for (path, object) in [(&json, json_object.unwrap_or_default()), (&config, settings)] {
            let Some(value) = object.get("chat_template").filter(|value| !value.is_null()) else { continue };
            let default = template_named(value, "default");
            if default.is_none() && found.default.is_empty() {
                let what = "has a chat_template that is neither a string nor a list of named strings";
                return Err(Error::input(path.display().to_string(), what, HELP));
            }
            found.default.extend(default.map(|text| source(path, text)));
            let tool_use = if value.is_string() { None } else { template_named(value, "tool_use") };
            found.tool_use.extend(tool_use.map(|text| source(path, text)));
        }
        Ok(found)
    }
}

impl LazyTemplate {
    fn compiled(&self) -> Result<&Template> {
        match self.compiled.get() {
            Some(template) => Ok(template),
            // Two threads may compile the template at the same time; one of the two results is kept.
            None => {
                let made = self.source.clone().compile()?;
                Ok(self.compiled.get_or_init(|| made))
            }
        }
    }
}

impl Source {
    fn compile(self) -> Result<Template> {
        let Source { location, text, tokens } = self;
        let refused = |what: String| Error::input(&location, what, HELP);
        let (is_trusted, own_text) = (is_known(&text), text.clone());
        let renderer = match reel_support::worker::worker_program() {
            Some(program) if !is_trusted => Renderer::InWorker(
                IsolatedTemplate::compile(program, WorkerTemplate { text, tokens }).map_err(refused)?,
            ),
            _ => Renderer::InThisProcess(CompiledTemplate::compile(&text, tokens, is_trusted).map_err(refused)?),
        };
        Ok(Template { renderer, location, text: own_text })
    }
}

impl Template {
    /// The variables of a conversation that the template uses.
    ///
    /// # Errors
    /// A variable has a value other than `false`, but the template does not use the variable. (An undefined variable
    /// counts as false in a template.)
    fn used_variables(&self, conversation: &Conversation) -> Result<Map<String, Value>> {
        let mut variables = conversation.template_variables.clone();
        variables.retain(|name, value| *value != Value::Bool(false) || mentions(&self.text, name));
        match variables.keys().find(|name| !mentions(&self.text, name)) {
            None => Ok(variables),
            Some(name) => {
                let location = format!("{}: chat_template_kwargs.{name}", conversation.location);
                let what = "is not a variable of the model's chat template";
                Err(Error::input(location, what, "remove it"))
            }
        }
    }

    fn render(&self, input: &RenderInput) -> Result<String> {
        let prompt = match &self.renderer {
            Renderer::InThisProcess(template) => template.render(input),
            Renderer::InWorker(template) => template.render(input),
        };
        prompt.map_err(|what| Error::input(&self.location, what, "change the messages or the template"))
    }
}

/// Whether a template uses the variable `name`.
fn mentions(text: &str, name: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, word)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(is_name) && !after.starts_with(is_name)
    })
}

/// Whether a template is known to be harmless: a template of `reel init`, or a template in [`PUBLISHED`].
fn is_known(text: &str) -> bool {
    let digest = || Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    [CHAT_TEMPLATE, QWEN3_CHAT_TEMPLATE].contains(&text) || PUBLISHED.contains(&digest().as_str())
}

/// Returns `value` if it is a string, or the template called `name` if `value` is a list or an object of named
/// templates.
fn template_named<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(named) => named.get(name)?.as_str(),
        Value::Array(named) => {
            let called = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some(name);
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
        Err(e) => Err(Error::cannot_read(path, e)),
    }
}

fn read_json(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read(path)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(object) => Ok(Some(object)),
        Err(e) => Err(Error::input(path.display().to_string(), format!("is not a JSON object ({e})"), HELP)),
    }
}
