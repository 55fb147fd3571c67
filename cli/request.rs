//! Reads the chat messages of a command: a file, or stdin.

use std::io::Read;
use std::path::Path;

use anyhow::Result;
use reel_input::request::ChatRequest;
use reel_support::diagnostic::input::{self, MAX_MESSAGES_BYTES, UnsuitableFile};

use crate::fail::failed;
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
    input::read_file(path, MAX_MESSAGES_BYTES).map_err(|e| {
        match e.get_ref().and_then(|cause| cause.downcast_ref::<UnsuitableFile>()) {
            // The path is a pipe, such as `<(…)` in a shell.
            Some(special @ UnsuitableFile::Special) => {
                failed(path.display(), special, format!("{}, or give it on stdin with -", special.help()))
            }
            _ => output::cannot_read(path, e),
        }
    })
}

fn read_stdin() -> Result<Vec<u8>> {
    let failed = |e| output::cannot_read(Path::new("stdin"), e);
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MAX_MESSAGES_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    let (length, limit) = (bytes.len() as u64, MAX_MESSAGES_BYTES);
    if length > limit { Err(failed(UnsuitableFile::TooLong { bytes: length, limit }.into())) } else { Ok(bytes) }
}
