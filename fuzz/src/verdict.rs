//! What a target says about an input.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the parser accepted an input, or what is wrong with how it treated the input.
pub type Verdict = Result<bool, String>;

/// The longest error message in characters. A message that quotes a whole file hides what is wrong.
const MAX_MESSAGE_CHARS: usize = 7_000;

/// Whether the error messages of refused inputs are printed, for one input that is run again.
pub static PRINTS_MESSAGES: AtomicBool = AtomicBool::new(false);

/// The value of a result; `None` for an error, whose message must be one line that is safe to print.
pub fn value_of<T, E: Display>(result: Result<T, E>) -> Result<Option<T>, String> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) => check_message(&e.to_string()).map(|()| None),
    }
}

/// Whether a result has a value; see [`value_of`].
pub fn accepted<T, E: Display>(result: Result<T, E>) -> Verdict {
    Ok(value_of(result)?.is_some())
}

/// Checks the message of an error.
pub fn check_message(text: &str) -> Result<(), String> {
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

/// Returns the complaint if a condition does not hold.
pub fn require(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(complaint()) }
}
