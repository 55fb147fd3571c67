//! Checks the limit on the number of tokens of a row.

use crate::error::{Error, Result};

/// Returns an error for a row with more than `max` tokens. `flag` is the flag that sets `max`; the message names it.
pub fn check_token_count(
    location: impl FnOnce() -> String,
    tokens: usize,
    flag: &str,
    max: Option<usize>,
) -> Result<()> {
    let Some(max) = max.filter(|&max| tokens > max) else { return Ok(()) };
    let what = format!("has {tokens} tokens, more than {flag} {max} allows");
    Err(Error::row_too_long(location(), what, format!("raise {flag}, or remove the row")))
}
