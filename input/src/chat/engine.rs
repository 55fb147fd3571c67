//! Compiles and renders a chat template with minijinja inside this process, with limits on steps, output and recursion.
//!
//! The environment equals that of transformers' `apply_chat_template`: trimmed blocks, `raise_exception`,
//! `strftime_now`, `break` and `continue`, `tojson` as Python's `json.dumps`, and Python's methods on strings, lists
//! and dicts.
//!
//! These limits stop loops without end, but a few steps can still build a value of any size (`x ~ x` doubles a text),
//! so a template of unknown origin must run in a worker process: see [`super::isolation`].

use std::error::Error as _;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{json, limits, methods, python};

const NAME: &str = "chat";

/// The maximum number of steps (instructions of minijinja) of a rendering: `STEPS`, plus `STEPS_PER_MESSAGE` for each
/// message and tool. Qwen2.5-VL's template takes about 100 steps per message.
const STEPS: u64 = 1_000_000;
const STEPS_PER_MESSAGE: u64 = 2_000;

/// The maximum size of a rendered prompt is four times the size of its messages and tools, plus this number of bytes.
/// Published templates add at most some thousand bytes to the messages. Tokenizing and computing a longer prompt
/// would take seconds.
const MAX_OUTPUT_BYTES: usize = 64 << 10;

/// The recursion limit of a rendering, in levels of blocks; a macro call counts as several.
const MAX_RECURSION: usize = 200;

/// The maximum length of an error text, in characters.
const MAX_ERROR_CHARS: usize = 300;

/// The stack size of a thread that compiles or renders an untrusted template, in bytes. Within the limit of steps, a
/// template can nest a value so deeply that dropping the value needs about 200 MB of stack.
const STACK_BYTES: usize = 256 << 20;

/// The variables from which a chat template renders a prompt.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RenderInput {
    pub(super) messages: Value,
    /// The tools of the conversation; null if it has none.
    pub(super) tools: Value,
    pub(super) add_generation_prompt: bool,
    /// Additional template variables. They take precedence over special tokens of the same name, but not over the
    /// other fields of this struct.
    pub(super) variables: Map<String, Value>,
}

/// A compiled chat template, and the special tokens that it can use by name.
#[derive(Debug)]
pub(super) struct CompiledTemplate {
    environment: Environment<'static>,
    tokens: Map<String, Value>,
    is_trusted: bool,
}

impl CompiledTemplate {
    /// Compiles a template. The error says what is wrong with the template. An untrusted template is compiled and
    /// rendered on a thread with a large stack.
    pub(super) fn compile(text: &str, tokens: Map<String, Value>, is_trusted: bool) -> Result<Self, String> {
        let text = &python::normalize_newlines(text);
        limits::check_template_text(text)?;
        let compile = || {
            let mut environment = Environment::new();
            let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
            environment.set_syntax(syntax.map_err(|e| describe(&e))?);
            environment.set_undefined_behavior(UndefinedBehavior::Lenient);
            environment.set_auto_escape_callback(|_| AutoEscape::None);
            environment.set_recursion_limit(MAX_RECURSION);
            python::install_python_functions(&mut environment);
            environment.add_filter("tojson", json::tojson_filter);
            environment.set_unknown_method_callback(methods::call_method);
            environment.add_template_owned(NAME, python::without_generation_marks(text)).map_err(|e| describe(&e))?;
            Ok(environment)
        };
        let environment = if is_trusted { compile() } else { with_large_stack(compile) };
        Ok(Self { environment: environment.map_err(|what| format!("cannot be compiled: {what}"))?, tokens, is_trusted })
    }

    /// Renders a prompt. The error says why the messages cannot be rendered.
    pub(super) fn render(&self, input: &RenderInput) -> Result<String, String> {
        let RenderInput { messages, tools, add_generation_prompt, variables } = input;
        let mut context = self.tokens.clone();
        context.extend(variables.clone());
        context.insert("messages".to_string(), messages.clone());
        context.insert("tools".to_string(), tools.clone());
        context.insert("add_generation_prompt".to_string(), Value::Bool(*add_generation_prompt));
        context.insert("documents".to_string(), Value::Null);
        let count = |value: &Value| value.as_array().map_or(0, Vec::len) as u64;
        let steps = STEPS + STEPS_PER_MESSAGE * (count(messages) + count(tools));
        let limit = MAX_OUTPUT_BYTES + 4 * (bytes_of(messages) + bytes_of(tools));
        let render = || self.render_context(context, steps, limit);
        let text = if self.is_trusted { render() } else { with_large_stack(render) };
        text.map_err(|what| format!("cannot render these messages: {what}"))
    }

    /// Renders the template in at most `steps` steps to at most `limit` bytes.
    fn render_context(&self, context: Map<String, Value>, steps: u64, limit: usize) -> Result<String, String> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps));
        let mut output = LimitedOutput { text: Vec::new(), limit };
        let template = environment.get_template(NAME).map_err(|e| describe(&e))?;
        template.render_captured_to(Serde(context), &mut output).map_err(|e| describe(&e))?;
        String::from_utf8(output.text).map_err(|e| e.to_string())
    }
}

/// An estimate of a value's size when a template prints it, in bytes: its strings and names, and a few bytes for each
/// other value.
fn bytes_of(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(|value| 2 + bytes_of(value)).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| 6 + name.len() + bytes_of(value)).sum(),
        _ => 8,
    }
}

/// Runs `work` on a thread with a stack of [`STACK_BYTES`], of which the operating system provides only the used pages.
fn with_large_stack<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("chat template".to_string()).stack_size(STACK_BYTES);
        let thread = builder.spawn_scoped(scope, work).map_err(|e| format!("no thread can be started: {e}"))?;
        // The panic hook has printed the panic; the caller adds the name of the template to this error.
        thread.join().unwrap_or_else(|_| Err("the template engine panicked".to_string()))
    })
}

fn describe(error: &minijinja::Error) -> String {
    let what = match error.kind() {
        minijinja::ErrorKind::OutOfFuel => "it takes too many steps".to_string(),
        minijinja::ErrorKind::WriteFailure => error.source().map_or_else(|| error.to_string(), |e| e.to_string()),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_string),
    };
    // A template can raise an error with any text, so the text is cut.
    let what = match what.char_indices().nth(MAX_ERROR_CHARS) {
        Some((end, _)) => format!("{}…", &what[..end]),
        None => what,
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// A writer that collects output up to a limit of bytes.
struct LimitedOutput {
    text: Vec<u8>,
    limit: usize,
}

impl Write for LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.limit {
            return Err(io::Error::other(format!("the prompt would be longer than {} bytes", self.limit)));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
