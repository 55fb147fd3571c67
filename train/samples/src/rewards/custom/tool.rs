//! Tools of the user that a model calls in a rollout: Python functions or a command, by the protocol of custom rewards
//! with one row per batch.
//!
//! ```text
//! stdin:  {"list_tools": true, …}                                  stdout: [{"name": …, "description": …, "parameters": …}]
//! stdin:  {"tool": "count", "arguments": {"n": 3}, "row": {…}, …}  stdout: "a text", [content parts] or {"error": "…"}
//! ```
//! `row` has the columns of the data row, and `videos`, the files of its prompt.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::{Value, json};

use super::ProgramLog;
use super::command::CommandProcess;
use crate::error::{Error, Result};

/// A program of the user that runs tools. The first call starts it; after an error it is started again.
#[derive(Debug)]
pub struct ToolProgram(CommandProcess<Value>);

impl ToolProgram {
    /// Creates the program of a shell command. `timeout` is the deadline of each call.
    ///
    /// # Errors
    /// The command is empty or contains a zero byte.
    pub fn from_command(command_line: &str, timeout: Duration) -> Result<Self> {
        CommandProcess::new(command_line, timeout).map(Self)
    }

    /// Creates the program of a Python function, `FILE.py:NAME` or `MODULE:NAME`, whose signature and docstring describe
    /// the tool.
    ///
    /// # Errors
    /// `function` has another form; its file does not exist; `python3` is not on the path.
    pub fn from_function(function: &str, timeout: Duration) -> Result<Self> {
        CommandProcess::from_python_function(function, timeout).map(Self)
    }

    /// Passes each line that the program writes to standard error to `log`.
    #[must_use]
    pub fn with_log(mut self, log: ProgramLog) -> Self {
        self.0.set_log(log);
        self
    }

    /// The tools of the program, each an object with `name`, `description` and `parameters`, a JSON schema.
    ///
    /// # Errors
    /// The program fails, misses the deadline, or replies with anything but a list of tools.
    pub fn list(&mut self, stop: &AtomicBool) -> Result<Vec<Value>> {
        match self.call(&json!({"list_tools": true}), stop)? {
            Value::Array(tools) if !tools.is_empty() => Ok(tools),
            other => Err(self.0.error(format!("replies to list_tools with {other}"), "reply with a list of tools")),
        }
    }

    /// Sends a call and waits for its reply.
    ///
    /// # Errors
    /// The program fails, misses the deadline, or writes anything but one line of JSON; `stop` is true.
    pub fn call(&mut self, request: &Value, stop: &AtomicBool) -> Result<Value> {
        self.0.send_batch(std::slice::from_ref(request), None)?;
        let none = || Err(Error::reward("call", "was not sent", "send it before waiting for its reply"));
        let replies = self.0.wait_for_replies(None, stop).unwrap_or_else(none)?;
        Ok(replies.into_iter().next().unwrap_or_default())
    }
}
