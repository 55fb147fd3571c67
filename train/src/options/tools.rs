//! The options of tools that the model calls inside its answers.

use clap::Args;
use reel_support::files::fingerprint::bytes_fingerprint;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{check, range};
use crate::error::Result;

/// The tags of a tool call in the text of Qwen's models.
const QWEN_TAGS: [&str; 2] = ["<tool_call>", "</tool_call>"];

/// The tools that the model may call inside its answers, and their limits.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Tool options")]
pub struct ToolOptions {
    /// Tools that the model may call inside its answer: crop_video, select_frames, zoom, and Python functions,
    /// FILE.py:NAME or MODULE:NAME (see `docs/examples/rewards.py`)
    #[arg(long, value_name = "TOOL,…", value_delimiter = ',')]
    pub tools: Vec<String>,
    /// A command that runs tools: it reads and writes JSON lines
    #[arg(long, value_name = "CMD")]
    pub tool_command: Option<String>,
    /// The tags around the JSON of a call, for models that write calls in another form; the answer is interrupted after
    /// the second one [default: <tool_call>,</tool_call>, and the answer is interrupted at its end]
    #[arg(long, value_name = "BEGIN,END")]
    pub tool_tags: Option<String>,
    /// Maximum number of tool calls in a completion; a completion ends with a further call
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub max_tool_calls: usize,
    /// Maximum number of frames and images that tools add to a completion
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_tool_frames: usize,
    /// Time limit in seconds for a tool call; a slower call answers with an error that the model reads
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    pub tool_timeout: f64,
}

impl Default for ToolOptions {
    fn default() -> Self {
        Self {
            tools: Vec::new(),
            tool_command: None,
            tool_tags: None,
            max_tool_calls: 5,
            max_tool_frames: 64,
            tool_timeout: 60.0,
        }
    }
}

impl ToolOptions {
    /// Whether the model may call tools.
    pub fn are_given(&self) -> bool {
        !self.tools.is_empty() || self.tool_command.is_some()
    }

    /// The tags before and after the JSON of a call.
    pub fn tags(&self) -> [&str; 2] {
        self.tool_tags.as_deref().and_then(|tags| tags.split_once(',')).map_or(QWEN_TAGS, |(begin, end)| [begin, end])
    }

    /// Whether the completion is interrupted right after a call, not at the end of the model's turn.
    pub fn interrupts_after_call(&self) -> bool {
        self.tool_tags.is_some()
    }

    /// The options that are given, by name; without tools none. A tool of a Python file has the file's fingerprint.
    pub fn named_values(&self) -> Map<String, Value> {
        let mut named = self.clone();
        for tool in &mut named.tools {
            let file = tool.rsplit_once(':').filter(|(file, _)| file.ends_with(".py"));
            let code = file.and_then(|(file, _)| std::fs::read(file).ok());
            *tool += &code.map_or(String::new(), |code| format!(" ({})", bytes_fingerprint(&code)));
        }
        let all = serde_json::to_value(named).ok().filter(|_| self.are_given());
        let all = all.and_then(|mut all| all.as_object_mut().map(std::mem::take)).unwrap_or_default();
        all.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }

    /// Checks the values of all options.
    ///
    /// # Errors
    /// The error names the option.
    pub fn validate(&self) -> Result<()> {
        let [begin, end] = self.tags();
        check(
            self.tool_tags.as_ref().is_none_or(|tags| tags.matches(',').count() == 1)
                && !begin.trim().is_empty()
                && !end.trim().is_empty()
                && begin != end,
            "--tool-tags",
            format!("is {:?}", self.tool_tags.as_deref().unwrap_or_default()),
            "give two different tags with a comma between them, such as <tool>,</tool>",
        )?;
        check(self.max_tool_calls > 0, "--max-tool-calls", "is 0".into(), "give 1 or more")?;
        let timeout = self.tool_timeout;
        range("--tool-timeout", timeout, timeout > 0.0 && timeout < 1e6, "give a number of seconds above 0")?;
        let is_default = Self { tools: Vec::new(), tool_command: None, ..self.clone() } == Self::default();
        check(
            self.are_given() || is_default,
            "--tools",
            "is not given, so --tool-tags, --max-tool-calls, --max-tool-frames and --tool-timeout have no effect"
                .into(),
            "give the tools that the model may call, or leave these options out",
        )
    }
}
