//! A user's own rewards: by a command that is kept running, or by HTTP.
//!
//! A row is an object with `prompt`, `completion`, `completion_ids` (its tokens) and every column of the data row, as TRL hands them to
//! reward functions.
//!
//! **Command.** `sh -c CMD` is started once and kept. For each batch it is sent a line of JSON a row on its standard input, and
//! must write a line a row, in order, on its standard output: a number, or `{"reward": number}`. Each row has a field `_batch`
//! beside its own, `{"index": i, "size": n}`, so that a program may read the whole batch before it answers. Nothing else may go to
//! standard output. At the end its standard input is closed; what is still there a second later is killed, with its process group. If this
//! process is killed itself, a guard does so.
//!
//! **HTTP.** `POST URL` with `{"rows": [...]}`; the answer is `{"rewards": [numbers]}`, one a row, in order, with status 200.
//!
//! A batch has a deadline. Whatever goes wrong is one error that says what, and nothing of the batch is used. A command is killed
//! then, and started again if it is asked again.

mod command;
mod http;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Result, RewardError};

/// An own reward, ready to be asked.
#[derive(Debug)]
pub struct CustomReward(Source);

#[derive(Debug)]
enum Source {
    Command(command::Command),
    Http(http::Http),
}

impl CustomReward {
    /// The reward of a shell command, which is started with the first batch.
    pub fn command(shell: &str, timeout: Duration) -> Result<Self> {
        Ok(Self(Source::Command(command::Command::new(shell, timeout)?)))
    }

    /// The reward of an `http:` or `https:` address, which is asked with the first batch.
    pub fn url(url: &str, timeout: Duration) -> Result<Self> {
        Ok(Self(Source::Http(http::Http::new(url, timeout)?)))
    }

    /// The name in weights and metrics: `command` or `url`.
    pub fn name(&self) -> &'static str {
        match &self.0 {
            Source::Command(_) => "command",
            Source::Http(_) => "url",
        }
    }

    /// The rewards of a batch of rows, all numbers up to 1e18 either way. Rows are objects; a batch of none asks nobody.
    pub fn score(&mut self, rows: &[Value]) -> Result<Vec<f64>> {
        self.score_or_stop(rows, &AtomicBool::new(false))
    }

    /// The same, but given up with an error where `stop` turns true.
    pub fn score_or_stop(&mut self, rows: &[Value], stop: &AtomicBool) -> Result<Vec<f64>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        match &mut self.0 {
            Source::Command(command) => command.score(rows, stop),
            Source::Http(http) => http.score(rows, stop),
        }
    }
}

/// Why there is no message.
enum Silence {
    /// The deadline passed.
    Late,
    /// The sender is gone.
    Ended,
    /// The wait was given up.
    Stopped,
}

/// How often a wait looks whether it is to be given up.
const LOOK: Duration = Duration::from_millis(50);

/// What a stopped wait says; who stopped it knows more.
const STOPPED: (&str, &str) = ("was not waited for, since the work was stopped", "start again");

/// The next message, if it comes before the deadline and before `stop`.
fn receive<T>(from: &Receiver<T>, deadline: Instant, stop: &AtomicBool) -> Result<T, Silence> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match from.recv_timeout(left.min(LOOK)) {
            Ok(message) => return Ok(message),
            Err(RecvTimeoutError::Disconnected) => return Err(Silence::Ended),
            Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(Silence::Late),
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => return Err(Silence::Stopped),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// The largest reward: squares of a group's are added up in f32.
const MOST: f64 = 1e18;

/// An answer as a reward; the error says what it is instead.
fn number(answer: &Value) -> Result<f64, String> {
    let Some(number) = answer.as_f64() else { return Err(format!("is {}, no number", shortened(&answer.to_string()))) };
    if number.abs() <= MOST { Ok(number) } else { Err(format!("is {number:e}, beyond what a reward can be")) }
}

/// A text on one line and not too long, for an error; control characters, which a terminal would obey, are left out.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    let short: String = line.chars().take(120).collect();
    if short.len() < line.len() { short + "…" } else { short }
}

/// Seconds, as errors have them.
fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

/// The fault of a source: its flag with what was given for it, what is wrong, the cure.
fn fault(flag: &str, given: &str, what: impl std::fmt::Display, cure: &str) -> RewardError {
    RewardError::custom(&format!("{flag} `{}`", shortened(given)), what.to_string(), cure)
}
