//! The outcome of an input: whether a parser accepted it, or what the parser did wrong.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};

/// `Ok(true)` if the parser accepted the input, `Ok(false)` if the parser refused the input (not a failure), or `Err`
/// with what the parser did wrong.
pub type Verdict = Result<bool, String>;

/// Maximum length of an error message in characters. A message that quotes a whole file hides what is wrong.
const MAX_MESSAGE_CHARS: usize = 7_000;

/// Whether the error messages of refused inputs are printed; true when a single input is run again (`--input`).
pub static PRINTS_MESSAGES: AtomicBool = AtomicBool::new(false);

/// Returns the value of a parser's result, or `None` for an error. Fails if the error's message is not safe to print,
/// see [`check_error_message`].
pub fn value_if_accepted<T, E: Display>(result: Result<T, E>) -> Result<Option<T>, String> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) => check_error_message(&e.to_string()).map(|()| None),
    }
}

/// Returns whether a parser's result has a value. Fails as [`value_if_accepted`] does.
pub fn verdict_of<T, E: Display>(result: Result<T, E>) -> Verdict {
    Ok(value_if_accepted(result)?.is_some())
}

/// Checks that an error's message is short, has no control characters except tabs, and does not quote a panic.
pub fn check_error_message(text: &str) -> Result<(), String> {
    let start: String = text.chars().take(200).collect();
    if PRINTS_MESSAGES.load(Ordering::Relaxed) {
        println!("  {text:?}");
    }
    if let Some(control) = text.chars().find(|c| c.is_control() && *c != '\t') {
        return Err(format!("the error message has the control character {control:?}: {start:?}"));
    }
    let count = text.chars().count();
    if count > MAX_MESSAGE_CHARS {
        return Err(format!("the error message has {count} characters: {start:?}"));
    }
    if text.contains("panicked") {
        return Err(format!("a panic became an error message: {start:?}"));
    }
    Ok(())
}

/// Returns `complaint()` as an error if the condition `holds` is false.
pub fn require(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(complaint()) }
}
