//! Writes files under a temporary name and renames them once they are complete.

use std::io::Write;
use std::path::Path;

use reel_support::files::AtomicFile;
use serde::Serialize;

use crate::error::{Error, Result};

/// Writes a value as a JSON file. The file appears only when it is complete.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| cannot_write_curation(path, &e.into()))? + "\n";
    write_text(path, &text)
}

/// Writes a text file. The file appears only when it is complete.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    let mut draft = AtomicFile::create(path).map_err(with_help_to_resume)?;
    draft.write_all(text.as_bytes()).map_err(|e| cannot_write_curation(path, &e))?;
    draft.commit().map_err(with_help_to_resume)
}

pub(crate) fn cannot_write_curation(path: &Path, e: &std::io::Error) -> Error {
    with_help_to_resume(Error::cannot_write(path, e))
}

/// Adds to the error of a file that does not fit on its disk how the curation continues.
pub(crate) fn with_help_to_resume(e: Error) -> Error {
    match e.remedy_for_space() {
        Some(remedy) => e.with_help(format!("{remedy}, then run reel curate again with --resume")),
        None => e,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind};

    use super::*;

    #[test]
    fn full_disk_says_how_the_curation_continues() {
        let full = io::Error::from(ErrorKind::StorageFull);
        let path = Path::new("out/reason.parquet");
        let want = "out/reason.parquet: cannot be written: the disk is full; free space on that disk, then run reel \
                    curate again with --resume";
        assert_eq!(cannot_write_curation(path, &full).to_string(), want);
        let denied = cannot_write_curation(path, &ErrorKind::PermissionDenied.into()).to_string();
        assert!(!denied.contains("--resume"), "{denied}");
    }
}
