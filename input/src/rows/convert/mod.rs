//! Writes the rows of a table to a file of another format. `shape.rs` finds the column types for a Parquet file, and
//! `arrays.rs` makes Arrow arrays of the values.

mod arrays;
mod parquet;
mod shape;

use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::rows::Table;

pub use parquet::write_parquet;

/// A data file format that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFormat {
    /// A JSON list of rows.
    Json,
    /// One row per line.
    JsonLines,
    /// A Parquet file.
    Parquet,
}

impl DataFormat {
    /// Returns the format that a file name's extension stands for: `.json`, `.jsonl`, `.ndjson` or `.parquet`.
    ///
    /// # Errors
    /// The name has another extension.
    pub fn from_path(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match &extension[..] {
            "json" => Ok(Self::Json),
            "jsonl" | "ndjson" => Ok(Self::JsonLines),
            "parquet" => Ok(Self::Parquet),
            _ => {
                let what = "has an extension that names no format of data files";
                Err(Error::data(path.display().to_string(), what, "use the extension .json, .jsonl or .parquet"))
            }
        }
    }
}

/// Writes all rows of `table` to the file `out`, in the format of its extension. The file gets its name only when it
/// is complete. Every row of JSON or JSONL keeps its values: a column that fits no Parquet type unchanged is written
/// as text of the logical type JSON.
///
/// # Errors
/// The extension stands for no format; `out` exists and `overwrite` is false; a row cannot be read, or is not a JSON
/// object although `out` is a Parquet file; writing fails.
pub fn convert(table: &Table, out: &Path, overwrite: bool) -> Result<()> {
    check_output(out, overwrite)?;
    let format = DataFormat::from_path(out)?;
    let cannot_write = |e: &std::io::Error| Error::cannot_write(out, e);
    let folder =
        out.parent().filter(|folder| !folder.as_os_str().is_empty()).map_or(PathBuf::from("."), Path::to_path_buf);
    let builder = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o666)).tempfile_in(folder);
    let mut file: NamedTempFile = builder.map_err(|e| cannot_write(&e))?;
    let failed = |e: WriteError| match e {
        WriteError::Row(e) => e,
        WriteError::Io(e) => cannot_write(&e),
    };
    let mut writer = BufWriter::new(file.as_file_mut());
    match format {
        DataFormat::Json => write_json(table, &mut writer).map_err(failed)?,
        DataFormat::JsonLines => write_lines(table, &mut writer).map_err(failed)?,
        DataFormat::Parquet => write_parquet(table, &mut writer).map_err(failed)?,
    }
    writer.flush().map_err(|e| cannot_write(&e))?;
    drop(writer);
    file.as_file().sync_all().map_err(|e| cannot_write(&e))?;
    let saved = if overwrite { file.persist(out) } else { file.persist_noclobber(out) };
    saved.map(drop).map_err(|e| match e.error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(out),
        _ => cannot_write(&e.error),
    })
}

/// Checks that [`convert()`] can write the file `out`. Commands call this before they read the input.
///
/// # Errors
/// The extension stands for no format; `out` exists and `overwrite` is false.
pub fn check_output(out: &Path, overwrite: bool) -> Result<()> {
    DataFormat::from_path(out)?;
    match !overwrite && out.symlink_metadata().is_ok() {
        true => Err(exists(out)),
        false => Ok(()),
    }
}

fn exists(out: &Path) -> Error {
    Error::data(out.display().to_string(), "exists", "choose another name, or give --overwrite")
}

/// The reason why rows were not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A row cannot be read or cannot be written in this format.
    #[error(transparent)]
    Row(#[from] Error),
    /// The output cannot be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

fn write_json(table: &Table, out: &mut impl Write) -> Result<(), WriteError> {
    for row in 0..table.len() {
        out.write_all(if row == 0 { b"[\n" } else { b",\n" })?;
        write_value(&table.value(row)?, out)?;
    }
    Ok(out.write_all(b"\n]\n")?)
}

fn write_lines(table: &Table, out: &mut impl Write) -> Result<(), WriteError> {
    for row in 0..table.len() {
        write_value(&table.value(row)?, out)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn write_value(value: &Value, out: &mut impl Write) -> Result<(), WriteError> {
    serde_json::to_writer(out, value).map_err(|e| WriteError::Io(e.into()))
}

#[cfg(test)]
mod tests;
