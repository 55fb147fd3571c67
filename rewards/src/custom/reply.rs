//! Reads rewards from replies, and formats errors about them.

use std::time::Duration;

use reel_diagnostic::redact_urls;
use serde_json::Value;

use crate::RewardError;

/// Largest absolute value of a reward: the squares of a group's rewards must not overflow f32.
const MAX_REWARD: f64 = 1e18;

/// Parses a reward. A null gives NaN, which means that the reward does not apply. The error text says what the value
/// is instead of a number.
pub(super) fn parse_reward(value: &Value) -> Result<f64, String> {
    if value.is_null() {
        return Ok(f64::NAN);
    }
    let number =
        value.as_f64().ok_or_else(|| format!("is {}, not a number", shorten_for_message(&value.to_string())))?;
    if number.abs() <= MAX_REWARD { Ok(number) } else { Err(format!("is {number:e}, but the largest reward is 1e18")) }
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
pub(super) fn custom_reward_error(flag: &str, value: &str, what: impl std::fmt::Display, help: &str) -> RewardError {
    RewardError::custom_reward_failed(format!("{flag} `{}`", shorten_for_message(value)), what.to_string(), help)
}
