//! The files of a benchmark as rows: JSON, JSON Lines, Parquet and Arrow, JSON with nested objects, CSV, and text files
//! whose lines are rows.

use std::cell::OnceCell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use reel_input::rows::Table;
use reel_support::diagnostic::{Diagnostic, input};
use serde_json::{Map, Value, json};

use crate::error::{Error, Kind, Result};

/// The location of a row in its file, and the row's columns.
pub(crate) type SourceRow = (String, Result<Map<String, Value>, Diagnostic>);

/// An open data file. The file is read only once, both to recognise its layout and to load its rows.
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    pub(crate) table: Table,
    /// The file's text as one JSON value. It is parsed when a layout with nested objects first needs it.
    nested: OnceCell<Result<Value, Diagnostic>>,
}

impl SourceFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let table = match path.extension().and_then(std::ffi::OsStr::to_str) {
            Some("csv") => Table::parse(path, csv_as_json_lines(path)?)?,
            Some("txt") => Table::parse(path, lines_as_json_lines(&read_text(path)?))?,
            _ => Table::open(path)?,
        };
        Ok(Self { path: path.to_path_buf(), table, nested: OnceCell::new() })
    }

    /// Returns all rows. `nested` gives the names of the columns that hold the keys of the objects around a row.
    pub(crate) fn rows(&self, nested: &[String]) -> Result<Vec<SourceRow>> {
        if nested.is_empty() {
            return Ok((0..self.table.len()).map(|index| self.row(index)).collect());
        }
        let mut rows = Vec::new();
        let mut take = |row| {
            rows.push(row);
            ControlFlow::Continue(())
        };
        let file = self.path.display().to_string();
        let _ = visit_nested(&file, &Map::new(), self.nested_value()?, nested, &mut take)?;
        if rows.is_empty() {
            return Err(Error::failed(file, "has no rows", OWN_FILE));
        }
        Ok(rows)
    }

    /// Returns the first row of [`Self::rows`].
    pub(crate) fn first_row(&self, nested: &[String]) -> Result<Option<SourceRow>> {
        if nested.is_empty() {
            return Ok((!self.table.is_empty()).then(|| self.row(0)));
        }
        let mut first = None;
        let mut take = |row| {
            first = Some(row);
            ControlFlow::Break(())
        };
        let file = self.path.display().to_string();
        let _ = visit_nested(&file, &Map::new(), self.nested_value()?, nested, &mut take)?;
        Ok(first)
    }

    fn row(&self, index: usize) -> SourceRow {
        // Removes the location from the value's error, because the caller adds the location of the row.
        let row = self.table.value(index).map_err(|e| Diagnostic { location: String::new(), ..e.diagnostic });
        (self.table.location(index), row.and_then(object))
    }

    /// The whole file as one JSON value.
    fn nested_value(&self) -> Result<&Value> {
        let parse = || {
            let file = self.path.display().to_string();
            let text = self.table.text().map_err(|e| e.diagnostic)?;
            let text = text.ok_or_else(|| Diagnostic::new(&file, "is not a JSON file", OWN_FILE))?;
            serde_json::from_str(text.trim_start_matches('\u{feff}'))
                .map_err(|e| Diagnostic::new(format!("{file}:{}", e.line()), format!("is not JSON: {e}"), OWN_FILE))
        };
        self.nested.get_or_init(parse).as_ref().map_err(|e| Kind::Failed.error(e.clone()))
    }
}

/// What to do about a data file that is not as published.
pub(crate) const OWN_FILE: &str = "give the benchmark's own file";

fn object(value: Value) -> Result<Map<String, Value>, Diagnostic> {
    match value {
        Value::Object(columns) => Ok(columns),
        _ => Err(Diagnostic::new("", "is not an object", "give one JSON object for each row")),
    }
}

/// Passes each row in nested objects to `take` until `take` returns `Break`. The keys of the objects become the columns
/// that `nested` names; `columns` holds the columns from the outer objects.
fn visit_nested(
    location: &str,
    columns: &Map<String, Value>,
    value: &Value,
    nested: &[String],
    take: &mut dyn FnMut(SourceRow) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    if let [name, inner @ ..] = nested {
        let Value::Object(entries) = value else {
            let what = format!("is not an object whose keys are the {name}");
            return Err(Error::failed(location, what, OWN_FILE));
        };
        for (key, value) in entries {
            let mut columns = columns.clone();
            columns.insert(name.clone(), json!(key));
            if visit_nested(&format!("{location}: {key}"), &columns, value, inner, take)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        return Ok(ControlFlow::Continue(()));
    }
    let values = match value {
        Value::Array(list) => &list[..],
        other => std::slice::from_ref(other),
    };
    for (index, value) in values.iter().enumerate() {
        let row = object(value.clone()).map(|own| columns.clone().into_iter().chain(own).collect());
        if take((format!("{location}[{index}]"), row)).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

pub(crate) fn read_text(path: &Path) -> Result<String> {
    input::read_text(path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(path, &e))
}

/// Converts a text file to JSON Lines: each line becomes the column `line`. Blank lines stay blank, so that line numbers
/// are those of the file.
fn lines_as_json_lines(text: &str) -> String {
    let row = |line: &str| if line.trim().is_empty() { "\n".into() } else { format!("{}\n", json!({"line": line})) };
    text.lines().map(row).collect()
}

/// Converts a table in CSV, whose first line has the names of the columns, to JSON Lines. The header becomes a blank
/// line.
fn csv_as_json_lines(path: &Path) -> Result<String> {
    let text = read_text(path)?;
    let mut reader = csv::Reader::from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let wrong =
        |e: csv::Error| Error::failed(path.display().to_string(), format!("is not a table in CSV: {e}"), OWN_FILE);
    let names = reader.headers().map_err(wrong)?.clone();
    let mut lines = String::from("\n");
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        let row: Map<String, Value> =
            names.iter().map(String::from).zip(record.iter().map(|text| json!(text))).collect();
        lines.push_str(&format!("{}\n", Value::Object(row)));
    }
    Ok(lines)
}

/// Adds the columns `file.stem` and `file.folder`: the file's name without ending, and the name of its folder.
pub(crate) fn add_file_columns(columns: &mut Map<String, Value>, path: &Path) {
    let name = |part: Option<&std::ffi::OsStr>| json!(part.unwrap_or_default().to_string_lossy());
    columns.insert("file.stem".into(), name(path.file_stem()));
    columns.insert("file.folder".into(), name(path.parent().and_then(Path::file_name)));
}
