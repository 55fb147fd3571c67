//! Writes files under a temporary name and renames them once they are complete.

use std::io::Write;
use std::path::Path;

use reel_support::files::AtomicFile;
use serde::Serialize;

use crate::curate::{CurateError, Result};

/// Writes a value as a JSON file. The file appears only when it is complete.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CurateError::cannot_write(path, &e.into()))? + "\n";
    write_text(path, &text)
}

/// Writes a text file. The file appears only when it is complete.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    let mut draft = AtomicFile::create(path).map_err(CurateError::cannot_save)?;
    draft.write_all(text.as_bytes()).map_err(|e| CurateError::cannot_write(path, &e))?;
    draft.commit().map_err(CurateError::cannot_save)
}
