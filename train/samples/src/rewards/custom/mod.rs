//! Custom rewards of the user: Python functions (`--reward-funcs`), shell commands that keep running
//! (`--reward-command`), or an HTTP server (`--reward-url`).
//!
//! A row is a JSON object with `prompt`, `completion`, `completion_ids` (token ids) and every column of the data row,
//! as TRL passes them to reward functions.
//!
//! **Command.** `sh -c CMD` is started once. For each batch it gets one line of JSON per row on standard input and must
//! write one line per row, in order, on standard output: a number, `{"reward": number}`, or `null` if the reward does
//! not apply to the row (`NaN` too, which is counted). Nothing else may go to standard output. An object may also hold
//! `extra`, columns for the record of the completion, and `metrics`, numbers whose means are metrics of the step (TRL's
//! `log_extra` and `log_metric`). Each row has an extra field `_batch`, `{"index": i, "size": n}` and in a run
//! [`TrainerState`], so that a program can read the whole batch before it replies:
//! ```text
//! stdin:  {"prompt": "2 + 2?", "completion": "4", …, "_batch": {"index": 0, "size": 2}}
//! stdin:  {"prompt": "2 + 2?", "completion": "5", …, "_batch": {"index": 1, "size": 2}}
//! stdout: 1.0
//! stdout: 0.0
//! ```
//! The command inherits this process's environment, or only the variables that `--reward-env` names.
//!
//! At the end the command's standard input is closed; one second later the command's process group is killed. If this
//! process is killed itself, a guard process kills the group.
//!
//! **Function.** `python3` runs the script `rewards.py`, which is part of this program, with the name of the function.
//! It calls the function as TRL does and follows the protocol of commands.
//!
//! What a command or function writes to standard error can be logged ([`ProgramLog`]).
//!
//! **HTTP.** `POST URL` with `{"rows": [...], "trainer_state": {...}}`; the reply is status 200 with
//! `{"rewards": [numbers]}`, one per row, in order; `null` and objects as above.
//!
//! Each batch has a deadline. A failed batch gives one error, and none of its rewards are used. After an error the
//! command is killed; the next batch starts it again.

mod command;
mod http;
mod reply;
mod tool;
mod wait;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};

pub use reply::{CustomReports, RewardReply};
pub use tool::ToolProgram;

/// The option that names Python functions.
const FUNCTION_FLAG: &str = "--reward-funcs";

/// The environment variables that a command always gets if they are set. Few programs run without them.
pub const BASIC_ENVIRONMENT: [&str; 7] = ["PATH", "HOME", "USER", "SHELL", "LANG", "LC_ALL", "TMPDIR"];

/// The field in which a batch has its [`TrainerState`].
const TRAINER_STATE: &str = "trainer_state";

/// The progress of a run before the step whose completions are scored, with the names of TRL's `trainer_state`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TrainerState {
    /// Number of finished training steps.
    pub global_step: u64,
    /// Number of training steps of the run.
    pub max_steps: u64,
    /// Number of passes over the rows of the data so far.
    pub epoch: f64,
}

/// A log for the lines that reward programs write to standard error.
#[derive(Clone)]
pub struct ProgramLog(Arc<dyn Fn(&str) + Send + Sync>);

impl ProgramLog {
    /// Creates a log that passes each line to `write`.
    pub fn new(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    fn write(&self, line: &str) {
        (self.0)(line);
    }
}

impl std::fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProgramLog")
    }
}

/// Returns the function's name in `FILE.py:NAME` or `MODULE:NAME`.
///
/// # Errors
/// The text has another form.
pub fn function_name(function: &str) -> Result<&str> {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let name = function.rsplit_once(':').filter(|(source, name)| !source.is_empty() && is_name(name));
    let what = || format!("`{function}` is not the name of a Python function");
    let error = || Error::usage(FUNCTION_FLAG, what(), "give FILE.py:NAME or MODULE:NAME");
    name.filter(|_| !function.contains('\0')).map(|(_, name)| name).ok_or_else(error)
}

/// Looks for a Python function, `FILE.py:NAME` or `MODULE:NAME`, without running the code of its module, so that a wrong
/// name is found before a model is loaded. `environment` has the names of variables as in
/// [`CustomReward::with_environment`].
///
/// # Errors
/// `function` has another form; its file or module does not exist, has a syntax error, or does not define the function;
/// `python3` is not on the path.
pub fn find_python_function(function: &str, environment: Option<&[String]>) -> Result<()> {
    function_name(function)?;
    command::CommandProcess::<RewardReply>::find_python_function(function, environment)
}

/// A custom reward, by command or HTTP.
#[derive(Debug)]
pub struct CustomReward {
    name: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Command(command::CommandProcess<RewardReply>),
    Http(http::HttpReward),
}

impl CustomReward {
    /// Creates a reward that a shell command computes. The command is started with the first batch. `timeout` is the
    /// deadline of each batch.
    ///
    /// # Errors
    /// The command is empty or contains a zero byte.
    pub fn from_command(command_line: &str, timeout: Duration) -> Result<Self> {
        let command = command::CommandProcess::new(command_line, timeout)?;
        Ok(Self { name: "command".into(), source: Source::Command(command) })
    }

    /// Creates a reward that a Python function computes, given as `FILE.py:NAME` or `MODULE:NAME`. The function has
    /// the signature of TRL's reward functions. The reward has the name of the function. `timeout` is the deadline of
    /// each batch.
    ///
    /// # Errors
    /// `function` has another form; the file does not exist; `python3` is not on the path.
    pub fn from_function(function: &str, timeout: Duration) -> Result<Self> {
        let name = function_name(function)?.to_string();
        let command = command::CommandProcess::from_python_function(function, timeout)?;
        Ok(Self { name, source: Source::Command(command) })
    }

    /// Passes each line that a command or function writes to standard error to `log`.
    #[must_use]
    pub fn with_log(mut self, log: ProgramLog) -> Self {
        if let Source::Command(command) = &mut self.source {
            command.set_log(log);
        }
        self
    }

    /// Limits the command's environment to these variables and [`BASIC_ENVIRONMENT`]. Without this call the command
    /// gets the whole environment. A reward by URL ignores the call, because this process does not start the server.
    #[must_use]
    pub fn with_environment(mut self, names: Vec<String>) -> Self {
        if let Source::Command(command) = &mut self.source {
            command.set_environment(names);
        }
        self
    }

    /// Creates a reward that the HTTP server at `url` computes. `timeout` is the deadline of each batch.
    ///
    /// # Errors
    /// `url` is not a valid `http:` or `https:` URL.
    pub fn from_url(url: &str, timeout: Duration) -> Result<Self> {
        Ok(Self { name: "url".into(), source: Source::Http(http::HttpReward::new(url, timeout)?) })
    }

    /// Gives this reward another name, so that several commands can be told apart.
    #[must_use]
    pub fn with_name(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    /// The name of this reward in `--reward-weights` and metrics: `command` or `url` unless it was given another one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Scores a batch of rows (JSON objects) and returns the rewards of its replies. For an empty batch nothing is
    /// sent.
    ///
    /// # Errors
    /// The command or server fails, misses the deadline, or gives anything but one reply per row.
    pub fn score(&mut self, rows: &[Value]) -> Result<Vec<f64>> {
        self.score_or_stop(rows, &AtomicBool::new(false))
    }

    /// Scores like [`CustomReward::score`], but returns an error as soon as `stop` is true.
    ///
    /// # Errors
    /// `stop` is true, or scoring fails as in [`CustomReward::score`].
    pub fn score_or_stop(&mut self, rows: &[Value], stop: &AtomicBool) -> Result<Vec<f64>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        self.send_batch(rows, None)?;
        Ok(self.finish(stop)?.into_iter().map(|reply| reply.reward).collect())
    }

    /// Sends a batch of at least one row, and the state of the run. [`CustomReward::finish`] returns its rewards.
    ///
    /// # Errors
    /// The command or the request cannot be started; the command has ended or wrote an unexpected line; a row is not an
    /// object or has a column `_batch`.
    pub fn send_batch(&mut self, rows: &[Value], state: Option<&TrainerState>) -> Result<()> {
        match &mut self.source {
            Source::Command(command) => command.send_batch(rows, state),
            Source::Http(http) => http.send_batch(rows, state),
        }
    }

    /// Waits for the rewards of the batch that was sent last, at most until `until`. Returns `None` if the rewards
    /// have not arrived by then. The batch's own deadline also ends the wait, with an error.
    ///
    /// # Errors
    /// Scoring fails as in [`CustomReward::finish`].
    pub fn finish_by(&mut self, until: Instant, stop: &AtomicBool) -> Option<Result<Vec<RewardReply>>> {
        self.wait_for_rewards(Some(until), stop)
    }

    /// Waits for the rewards of the batch that was sent last.
    ///
    /// # Errors
    /// Scoring fails as in [`CustomReward::score_or_stop`], or no batch was sent since the last rewards.
    pub fn finish(&mut self, stop: &AtomicBool) -> Result<Vec<RewardReply>> {
        let none = || Err(Error::reward("batch", "was not sent", "send it before waiting for its rewards"));
        self.wait_for_rewards(None, stop).unwrap_or_else(none)
    }

    fn wait_for_rewards(&mut self, until: Option<Instant>, stop: &AtomicBool) -> Option<Result<Vec<RewardReply>>> {
        match &mut self.source {
            Source::Command(command) => command.wait_for_replies(until, stop),
            Source::Http(http) => http.wait_for_rewards(until, stop),
        }
    }
}
