//! The data file of a run: the rows of a [`Table`] as rows of training data.

use std::path::Path;

use reel_data::Table;
use reel_diagnostic::Diagnostic;
use serde_json::Value;

use crate::data::rows::DataRow;
use crate::{Result, TrainError};

/// The rows of a data file.
#[derive(Debug)]
pub struct Dataset {
    table: Table,
}

impl Dataset {
    /// Opens a data file. Rows of a JSONL file are parsed and checked later, by [`Self::row`].
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { table: Table::open(path)? })
    }

    /// Finds the rows in the text of a JSON or JSONL file. `path` is for error messages.
    pub fn parse(path: &Path, text: String) -> Result<Self> {
        Ok(Self { table: Table::parse(path, text)? })
    }

    /// Adds the location of row `index` to an error of that row.
    pub fn add_location_to_error<T>(&self, index: usize, result: Result<T, Diagnostic>) -> Result<T> {
        result.map_err(|diagnostic| TrainError::Data(diagnostic.at(self.location(index))))
    }

    /// Number of rows; never 0.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Always false: [`Self::open`] refuses files without rows.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Parses row `index`, counted from 0, and checks its fields.
    pub fn row(&self, index: usize) -> Result<DataRow> {
        self.add_location_to_error(index, DataRow::parse(self.value(index)?))
    }

    /// The JSON value of row `index`, counted from 0, unchecked.
    pub fn value(&self, index: usize) -> Result<Value> {
        Ok(self.table.value(index)?)
    }

    /// Where row `index` is, for messages: `FILE:LINE`.
    pub fn location(&self, index: usize) -> String {
        self.table.location(index)
    }

    /// The line of row `index`, counted from 1.
    pub fn line_number(&self, index: usize) -> usize {
        self.table.line_number(index)
    }

    /// Fingerprint of the data, by which a resumed run recognises it.
    pub fn fingerprint(&self) -> String {
        self.table.fingerprint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;

    #[test]
    fn unusable_rows_are_refused_with_the_line() {
        for (text, start) in [
            (format!("{ROW}\n{{\"messages\": "), "d.jsonl:2: is not JSON"),
            (format!("{ROW}\n7"), "d.jsonl:2: is not an object"),
            (format!("{ROW}\n{{}}"), "d.jsonl:2: has no `messages`"),
            (format!("[{ROW},\n\n{{\"problem\": 3}}]"), "d.jsonl:3: problem: "),
        ] {
            let d = Dataset::parse(Path::new("d.jsonl"), text.clone()).unwrap();
            d.row(0).unwrap();
            let e = d.row(1).unwrap_err();
            assert!(matches!(e, TrainError::Data(_)), "{e:?}");
            let e = e.to_string();
            assert!(e.starts_with(start) && !e.contains('\n') && e.contains("; "), "{text:?}: {e}");
        }
        let e = Dataset::open(Path::new("/none.jsonl")).unwrap_err();
        assert!(matches!(e, TrainError::Io(_)), "{e:?}");
    }
}
