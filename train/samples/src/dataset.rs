//! The dataset of a run: reads the rows of one or several data files.

use std::path::Path;

use reel_input::rows::{Table, WeightedPath, parse_data_paths};
use reel_support::diagnostic::Diagnostic;
use reel_support::files::fingerprint::bytes_fingerprint;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Kind, Result, RowFailureKind};
use crate::order::held_out::held_out_rows;
use crate::order::mixture::Mixture;
use crate::rows::DataRow;

/// The rows of the files that `--data` names.
#[derive(Debug)]
pub struct Dataset {
    table: Table,
    files: Vec<DataFile>,
    mixture: Option<Mixture>,
    /// The rows that are held back from training, ascending.
    held_out: Vec<usize>,
    /// The maximum number of rows that are used of each file or folder; `None`: all rows.
    max_rows: Option<usize>,
}

/// A file or folder of `--data`, as a run records it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataFile {
    /// The path as the user gave it, including the split if a folder's split is named.
    pub path: String,
    /// The fingerprint of the file's content.
    pub fingerprint: String,
    /// The weight in a mixture of several files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
}

impl Dataset {
    /// Opens the paths that `--data` names: a file, a folder, or several separated by commas. Files with weights are
    /// mixed ([`Mixture`]); files without weights are concatenated. Rows of a JSONL file are parsed and checked later,
    /// by [`Self::row`].
    ///
    /// # Errors
    /// A file cannot be opened; a weight is not a positive number, or is so small that an epoch has no row of its file.
    pub fn open(paths: &Path) -> Result<Self> {
        Self::open_first_rows(paths, None)
    }

    /// Opens the paths as [`Self::open`] does, with the first `max_rows` rows of each file or folder.
    ///
    /// # Errors
    /// The errors of [`Self::open`].
    pub fn open_first_rows(paths: &Path, max_rows: Option<usize>) -> Result<Self> {
        Self::open_for_option("--data", paths, max_rows)
    }

    /// Opens the paths that the option `flag` names, as [`Self::open_first_rows`] does.
    ///
    /// # Errors
    /// The errors of [`Self::open`].
    pub fn open_for_option(flag: &str, paths: &Path, max_rows: Option<usize>) -> Result<Self> {
        let in_option = |diagnostic: Diagnostic| Kind::Usage.error(diagnostic.at(flag));
        let paths = parse_data_paths(paths).map_err(in_option)?;
        let (mut tables, mut files, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for WeightedPath { path, weight } in paths {
            let mut table = Table::open(&path)?;
            if let Some(count) = max_rows {
                table = table.first_rows(count);
            }
            let path = path.display().to_string();
            sizes.push((path.clone(), table.len(), weight.unwrap_or(1.0)));
            files.push(DataFile { path, fingerprint: table.fingerprint(), weight });
            tables.push(table);
        }
        // A single file is not a mixture, even if it has a weight.
        let is_mixture = files.len() > 1 && files.iter().all(|file| file.weight.is_some());
        let mixture = is_mixture.then(|| Mixture::new(&sizes)).transpose().map_err(in_option)?;
        Ok(Self { table: Table::concatenate(tables), files, mixture, held_out: Vec::new(), max_rows })
    }

    /// Holds rows back from training: the share `size` of all rows if `size` is below 1, otherwise `size` rows. A
    /// mixture of files then consists of the remaining rows.
    ///
    /// # Errors
    /// No row is left for training, or an epoch has no row of a file of the mixture.
    pub fn hold_out_rows(&mut self, size: f64, seed: u64) -> Result<()> {
        self.held_out = held_out_rows(self.len(), size, seed).map_err(|d| Kind::Usage.error(d))?;
        if let Some(mixture) = &self.mixture {
            let held_out = self.held_out.iter().copied();
            let weights = self.files.iter().map(|file| (file.path.clone(), file.weight.unwrap_or(1.0)));
            let without = mixture.without_rows(weights, held_out);
            self.mixture = Some(without.map_err(|diagnostic| Kind::Usage.error(diagnostic.at("--data")))?);
        }
        Ok(())
    }

    /// The rows that are held back from training, ascending.
    pub fn held_out_rows(&self) -> &[usize] {
        &self.held_out
    }

    /// Returns an error if a file has a weight. Commands that use each row exactly once call it.
    pub fn refuse_weights(&self) -> Result<()> {
        self.refuse_weights_for_option("--data")
    }

    /// Like [`Self::refuse_weights`], for rows that the option `flag` names.
    pub fn refuse_weights_for_option(&self, flag: &str) -> Result<()> {
        match self.files.iter().find(|file| file.weight.is_some()) {
            Some(file) => {
                let what = format!("has a weight for {}, but each row is used once", file.path);
                Err(Error::usage(flag, what, "leave the weights out"))
            }
            None => Ok(()),
        }
    }

    /// The files, in the order in which they were given.
    pub fn files(&self) -> &[DataFile] {
        &self.files
    }

    /// The mixture of the files; `None` if they have no weights.
    pub fn mixture(&self) -> Option<&Mixture> {
        self.mixture.as_ref()
    }

    /// Finds the rows in the text of a JSON or JSONL file. `path` is for error messages.
    pub fn parse(path: &Path, text: String) -> Result<Self> {
        let table = Table::parse(path, text)?;
        Ok(Self { table, files: Vec::new(), mixture: None, held_out: Vec::new(), max_rows: None })
    }

    /// Adds the location of row `index` to an error of that row.
    pub fn add_location_to_error<T>(&self, index: usize, result: Result<T, Diagnostic>) -> Result<T> {
        result.map_err(|diagnostic| Kind::Row(RowFailureKind::Data).error(diagnostic.at(self.location(index))))
    }

    /// The number of rows; never 0.
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
        self.table.value(index)
    }

    /// Where row `index` is, for messages: `FILE:LINE`.
    pub fn location(&self, index: usize) -> String {
        self.table.location(index)
    }

    /// The line of row `index`, counted from 1.
    pub fn line_number(&self, index: usize) -> usize {
        self.table.line_number(index)
    }

    /// The fingerprint of the data and of the files' weights. A resumed run compares it with the fingerprint that the
    /// earlier run recorded.
    pub fn fingerprint(&self) -> String {
        let content = match self.max_rows {
            None => self.table.fingerprint(),
            Some(count) => bytes_fingerprint(format!("{} first {count}", self.table.fingerprint()).as_bytes()),
        };
        if self.mixture.is_none() {
            return content;
        }
        let weights: Vec<f64> = self.files.iter().filter_map(|file| file.weight).collect();
        bytes_fingerprint(format!("{content} {}", Value::from(weights)).as_bytes())
    }
}

/// Names the first difference between the current data files (`now`) and the `recorded` data files, as a text such as
/// `(b.jsonl differs)`. The text is empty if there is no difference or `recorded` is empty.
pub fn differences_from(now: &[DataFile], recorded: &[DataFile]) -> String {
    if recorded.is_empty() {
        return String::new();
    }
    if now.len() != recorded.len() {
        return format!(" ({} files, but then {})", now.len(), recorded.len());
    }
    let found = now.iter().zip(recorded).find_map(|(now, then)| match now.weight == then.weight {
        _ if now.fingerprint != then.fingerprint => Some(format!(" ({} differs)", now.path)),
        false => {
            let weight = |file: &DataFile| file.weight.map_or("none".to_string(), |weight| weight.to_string());
            Some(format!(" (the weight of {} is {}, but was {})", now.path, weight(now), weight(then)))
        }
        true => None,
    });
    found.unwrap_or_default()
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
            assert!(e.kind == Kind::Row(RowFailureKind::Data), "{e:?}");
            let e = e.to_string();
            assert!(e.starts_with(start) && !e.contains('\n') && e.contains("; "), "{text:?}: {e}");
        }
        let e = Dataset::open(Path::new("/none.jsonl")).unwrap_err();
        assert!(e.kind == Kind::Io, "{e:?}");
    }

    #[test]
    fn the_first_rows_of_each_file_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let [a, b] = ["a.jsonl", "b.jsonl"].map(path);
        std::fs::write(&a, format!("{ROW}\n{ROW}\n{ROW}\n")).unwrap();
        std::fs::write(&b, format!("{ROW}\n")).unwrap();
        let first = |data: &str, count| Dataset::open_first_rows(Path::new(data), Some(count)).unwrap();
        let both = first(&format!("{a},{b}"), 2);
        assert_eq!((both.len(), both.location(1), both.location(2)), (3, format!("{a}:2"), format!("{b}:1")));
        assert!(both.row(2).is_ok());
        assert_eq!(first(&a, 9).len(), 3);
        assert_ne!(first(&a, 2).fingerprint(), first(&a, 3).fingerprint());
    }

    #[test]
    fn files_follow_each_other_or_are_mixed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let [a, b] = ["a.jsonl", "b.json"].map(path);
        std::fs::write(&a, format!("{ROW}\n{ROW}\n")).unwrap();
        std::fs::write(&b, format!("[{ROW}]")).unwrap();
        let open = |data: String| Dataset::open(Path::new(&data));
        let both = open(format!("{a},{b}")).unwrap();
        assert_eq!((both.len(), both.location(2), both.mixture().is_none()), (3, format!("{b}:1"), true));
        both.refuse_weights().unwrap();
        let mixed = open(format!("{a}:0.5,{b}:0.5")).unwrap();
        assert_eq!((mixed.len(), mixed.mixture().unwrap().epoch_rows()), (3, 2));
        assert!(mixed.refuse_weights().unwrap_err().is_usage_error());
        let other = open(format!("{a}:2,{b}:1")).unwrap();
        assert!(mixed.fingerprint() != both.fingerprint() && mixed.fingerprint() != other.fingerprint());
        let mut less = open(format!("{a}:0.5,{b}:0.5")).unwrap();
        let e = less.hold_out_rows(2.0, 0).unwrap_err().to_string();
        assert!(e.contains("contains no row of this file"), "one of the files has no row left: {e}");
        let differs = |now: &Dataset, then: &Dataset| differences_from(now.files(), then.files());
        assert_eq!(differs(&other, &mixed), format!(" (the weight of {a} is 2, but was 0.5)"));
        assert_eq!(differs(&mixed, &open(a.clone()).unwrap()), " (2 files, but then 1)");
        assert_eq!(differs(&open(a.clone()).unwrap(), &open(b.clone()).unwrap()), format!(" ({a} differs)"));
        assert_eq!(differs(&both, &both), "");
        // A single data file has the fingerprint of its text, as in runs of earlier versions of this program.
        let alone = Dataset::parse(Path::new("x"), std::fs::read_to_string(&a).unwrap()).unwrap();
        assert_eq!(open(format!("{a}:3")).unwrap().fingerprint(), alone.fingerprint());
        for (data, wanted) in [
            (format!("{a}:0,{b}:1"), "is not a positive number"),
            (format!("{a}:1,{b}:1e-9"), "contains no row of this file"),
        ] {
            let e = open(data).unwrap_err();
            assert!(e.is_usage_error() && e.to_string().starts_with("--data") && e.to_string().contains(wanted), "{e}");
        }
    }
}
