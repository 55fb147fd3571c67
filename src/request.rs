//! Reads the chat messages of a command: a file, or stdin.

use std::io::Read;
use std::path::Path;

use anyhow::Result;
use reel_diagnostic::input::{self, MAX_MESSAGES_BYTES, UnsuitableFile};
use reel_input::request::ChatRequest;

use crate::output;

/// Reads a messages file; `-` is stdin.
pub fn read_chat_request(path: &Path) -> Result<ChatRequest> {
    let (location, bytes) = match path == Path::new("-") {
        true => ("stdin".to_string(), read_stdin()?),
        false => (path.display().to_string(), read_file(path)?),
    };
    Ok(ChatRequest::parse(&location, &bytes)?)
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    input::read_file(path, MAX_MESSAGES_BYTES).map_err(|e| output::cannot_read(path, e))
}

fn read_stdin() -> Result<Vec<u8>> {
    let failed = |e| output::cannot_read(Path::new("stdin"), e);
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MAX_MESSAGES_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    let (length, limit) = (bytes.len() as u64, MAX_MESSAGES_BYTES);
    if length > limit { Err(failed(UnsuitableFile::TooLong { bytes: length, limit }.into())) } else { Ok(bytes) }
}
