//! Rows that a layout makes of the rows of a file: one for each entry of a list, one for each part, and columns whose
//! values are in another file.

use std::path::Path;

use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::source::{OWN_FILE, SourceRow, read_text};
use crate::task::{Layout, LookupColumn};

/// A rule for a column whose values are in another file, with the content of the file.
pub(crate) struct LookupFile<'l> {
    rule: &'l LookupColumn,
    values: Value,
}

impl<'l> LookupFile<'l> {
    pub(crate) fn open(rule: &'l LookupColumn, folder: &Path) -> Result<Self> {
        let path = folder.join(&rule.file);
        let wrong = |e| Error::failed(path.display().to_string(), format!("is not JSON: {e}"), OWN_FILE);
        Ok(Self { rule, values: serde_json::from_str(&read_text(&path)?).map_err(wrong)? })
    }
}

/// Adds the columns whose values are in other files. Returns the reason for which a row without a value is left out.
pub(crate) fn add_lookup_columns(
    lookups: &[LookupFile<'_>],
    columns: &mut Map<String, Value>,
) -> Result<Option<String>, Diagnostic> {
    for LookupFile { rule, values } in lookups {
        let mut value = Some(values);
        for key in &rule.keys {
            let key = key.fill(columns)?.unwrap_or_default();
            value = value.and_then(|value| value.get(&key));
        }
        match (value.cloned(), &rule.leave_out) {
            (Some(value), _) => drop(columns.insert(rule.column.clone(), value)),
            (None, Some(reason)) => return Ok(Some(reason.clone())),
            (None, None) => {}
        }
    }
    Ok(None)
}

/// Makes a row of each entry of the lists in the columns `each` of the layout, and of each of its `parts`.
pub(crate) fn expand(rows: Vec<SourceRow>, layout: &Layout) -> Vec<SourceRow> {
    let mut expanded = rows;
    if !layout.each.is_empty() {
        expanded = expanded.into_iter().flat_map(|row| rows_of_lists(row, &layout.each)).collect();
    }
    if layout.parts.is_empty() {
        return expanded;
    }
    let parts = |(location, row): SourceRow| {
        let with_part = move |part: &String| {
            let row = row.clone().map(|mut columns| {
                columns.insert("part".into(), json!(part));
                columns
            });
            (location.clone(), row)
        };
        layout.parts.iter().map(with_part).collect::<Vec<_>>()
    };
    expanded.into_iter().flat_map(parts).collect()
}

/// Returns a copy of the row for each index of the lists in the columns `each`, in which the entries of this index
/// replace the lists.
fn rows_of_lists((location, row): SourceRow, each: &[String]) -> Vec<SourceRow> {
    let lists = row.and_then(|columns| {
        let list = |name: &String| match columns.get(name) {
            Some(Value::Array(list)) => Ok(list.clone()),
            Some(_) => Err(Diagnostic::new(name, "is not a list", OWN_FILE)),
            None => Err(Diagnostic::new(name, "is missing", OWN_FILE)),
        };
        let lists = each.iter().map(list).collect::<Result<Vec<_>, _>>()?;
        let rows = lists[0].len();
        match lists.iter().position(|list| list.len() != rows) {
            Some(other) => {
                let what = format!("has {} entries, but {} has {rows}", lists[other].len(), each[0]);
                Err(Diagnostic::new(&each[other], what, OWN_FILE))
            }
            None => Ok((columns, lists)),
        }
    });
    match lists {
        Err(wrong) => vec![(location, Err(wrong))],
        Ok((mut columns, lists)) => {
            each.iter().for_each(|name| drop(columns.remove(name)));
            let entries = |index: usize| each.iter().cloned().zip(lists.iter().map(move |list| list[index].clone()));
            let row = |index| columns.clone().into_iter().chain(entries(index)).collect();
            (0..lists[0].len()).map(|index| (location.clone(), Ok(row(index)))).collect()
        }
    }
}
