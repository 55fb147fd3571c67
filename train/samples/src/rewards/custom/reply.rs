//! Reads the replies to rows: rewards, and what reward functions report besides; formats errors about them.

use std::time::Duration;

use reel_support::diagnostic::redact_urls;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Largest absolute value of a reward: the squares of a group's rewards must not overflow f32.
const MAX_REWARD: f64 = 1e18;

/// What Python's `json` writes for a number that is not a number. JSON has no such number.
const NAN: &str = "NaN";

/// The reply to one row: a number, null, or `{"reward": number, "extra": {…}, "metrics": {name: number or
/// list of numbers}}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RewardReply {
    /// The reward, with an absolute value of at most 1e18; NaN if the reward does not apply to the row.
    pub reward: f64,
    /// Whether the program replied NaN instead of null.
    pub is_nan: bool,
    /// Columns that a reward function logs for the completion (TRL's `log_extra`).
    pub extra: Map<String, Value>,
    /// Metrics that a reward function logs (TRL's `log_metric`).
    pub metrics: Vec<(String, f64)>,
}

/// What the custom rewards report for a group besides rewards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CustomReports {
    /// Number of rewards that were NaN instead of a number or null.
    pub nan_count: u64,
    /// The logged columns of each completion; empty if no function logs a column.
    pub extra: Vec<Map<String, Value>>,
    /// The logged metrics in the order of the calls.
    pub metrics: Vec<(String, f64)>,
}

impl CustomReports {
    /// Adds the replies of one custom reward to the completions of the group.
    pub fn add(&mut self, replies: &[RewardReply]) {
        self.nan_count += replies.iter().filter(|reply| reply.is_nan).count() as u64;
        self.metrics.extend(replies.iter().flat_map(|reply| reply.metrics.iter().cloned()));
        if replies.iter().any(|reply| !reply.extra.is_empty()) {
            self.extra.resize(replies.len(), Map::new());
            self.extra.iter_mut().zip(replies).for_each(|(all, reply)| all.extend(reply.extra.clone()));
        }
    }
}

/// Parses a text of JSON in which NaN may stand for a number, as in the output of Python's `json`.
pub(super) fn parse_json_with_nan(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text).or_else(|e| match text.trim().trim_start_matches('-').eq_ignore_ascii_case(NAN) {
        true => Ok(NAN.into()),
        false => serde_json::from_str(&text.replace(NAN, &format!("\"{NAN}\""))).map_err(|_| e),
    })
}

/// Parses the reply to a row. The error text says what the value is instead of a number.
pub(super) fn parse_reply(value: &Value) -> Result<RewardReply, String> {
    let Value::Object(fields) = value else { return parse_reward(value) };
    let shown = || shorten_for_message(&value.to_string());
    let reward = fields.get("reward").ok_or_else(|| format!("is {}, which has no field `reward`", shown()))?;
    let object = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(object)) => Ok(object.clone()),
        Some(_) => Err(format!("is {}, whose field `{name}` is not an object", shown())),
    };
    let mut metrics = Vec::new();
    for (name, values) in object("metrics")? {
        let values = if let Value::Array(list) = values { list } else { vec![values] };
        for value in values {
            let number =
                value.as_f64().ok_or_else(|| format!("is {}, whose metric `{name}` is not a number", shown()))?;
            metrics.push((name.clone(), number));
        }
    }
    Ok(RewardReply { extra: object("extra")?, metrics, ..parse_reward(reward)? })
}

/// Parses a reward. Null and NaN give NaN, which means that the reward does not apply.
fn parse_reward(value: &Value) -> Result<RewardReply, String> {
    let is_nan = value == NAN;
    if value.is_null() || is_nan {
        return Ok(RewardReply { reward: f64::NAN, is_nan, ..RewardReply::default() });
    }
    let reward =
        value.as_f64().ok_or_else(|| format!("is {}, not a number", shorten_for_message(&value.to_string())))?;
    match reward.abs() <= MAX_REWARD {
        true => Ok(RewardReply { reward, ..RewardReply::default() }),
        false => Err(format!("is {reward:e}, but the largest reward is 1e18")),
    }
}

/// Shortens a text to one line of at most 120 characters for an error message. Removes control characters, which
/// could change the terminal. Passwords and queries of URLs are removed first, because they might not be recognised
/// in a shortened URL.
pub(super) fn shorten_for_message(text: &str) -> String {
    let line = redact_urls(text);
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    let short: String = line.chars().take(120).collect();
    if short.len() < line.len() { short + "…" } else { short }
}

/// Formats a duration in seconds for an error message.
pub(super) fn format_seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

/// Makes the error of a custom reward from its option, the option's value, what is wrong and what to do.
pub(super) fn custom_reward_error(flag: &str, value: &str, what: impl std::fmt::Display, help: &str) -> Error {
    Error::reward(format!("{flag} `{}`", shorten_for_message(value)), what.to_string(), help)
}
