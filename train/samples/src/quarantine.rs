//! The files of `--check-data`, which reads every row with its media before a run. A journal records each checked
//! row, so an interrupted check can continue. At the end, the check writes a list of the unusable rows. Later runs
//! skip these rows (`--quarantine`).
//!
//! | file | lines |
//! |---|---|
//! | the list | `{"row", "line", "cause", "reason"}` in file order, as in `skipped.jsonl`; appears only when complete |
//! | the journal `LIST.journal` | first `{"scan"}`, a fingerprint of data and options; then for each checked row `{"row", "tokens"}` or a line of the list; removed when the list is written |

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reel_support::diagnostic::input;
use reel_support::files::FileLock;
use reel_support::files::log::{self, JsonlLog};
use reel_support::files::replace_synced;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::skipped_row::SkippedRow;

/// The result of checking a row: its token count, or why it cannot be used.
pub type RowCheckResult = Result<usize, SkippedRow>;

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum JournalLine {
    Scan { scan: String },
    Bad(SkippedRow),
    Good { row: usize, tokens: usize },
}

/// Time between two progress messages of a check.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// The journal of a running `--check-data`. It includes the results of an earlier check that was interrupted.
#[derive(Debug)]
pub struct ScanJournal {
    list: PathBuf,
    path: PathBuf,
    /// Results that an earlier, interrupted check recorded, by row number.
    known: BTreeMap<usize, RowCheckResult>,
    state: Mutex<ScanState>,
    quiet: bool,
    /// Keeps other processes from checking data for the same list.
    _lock: FileLock,
}

#[derive(Debug)]
struct ScanState {
    log: JsonlLog,
    done: usize,
    bad: usize,
    last_message: Instant,
}

/// The path of the journal of a check that writes its unusable rows to `list`.
pub fn journal_path(list: &Path) -> PathBuf {
    let name = list.file_name().unwrap_or_default().to_string_lossy();
    list.with_file_name(format!("{name}.journal"))
}

/// The path of the file that is locked while data is checked for `list`.
pub fn lock_path(list: &Path) -> PathBuf {
    let name = list.file_name().unwrap_or_default().to_string_lossy();
    list.with_file_name(format!(".{name}.lock"))
}

impl ScanJournal {
    /// Opens the journal of `list`. Continues an existing journal if its fingerprint of data and options equals
    /// `fingerprint`, otherwise starts a new journal.
    ///
    /// # Errors
    /// The folder cannot be written, or another process checks data for the same list.
    pub fn open(list: &Path, fingerprint: &str, quiet: bool) -> Result<Self> {
        let path = journal_path(list);
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|e| Error::cannot_write(folder, e))?;
        }
        let lock = FileLock::acquire(&lock_path(list)).map_err(|e| Error::cannot_lock(e, "--quarantine", list))?;
        let lines = log::read_matching_lines(&path, |_: &JournalLine| true)?;
        let head = serde_json::json!({"scan": fingerprint}).to_string();
        let same = lines.first() == Some(&head);
        if !same && !lines.is_empty() && !quiet {
            reel_support::diagnostic::note!(
                "{}: was written for other data or options; all rows are checked again",
                path.display()
            );
        }
        let lines = if same { lines } else { vec![head] };
        let mut known = BTreeMap::new();
        for line in lines.iter().filter_map(|line| serde_json::from_str::<JournalLine>(line).ok()) {
            match line {
                JournalLine::Scan { .. } => None,
                JournalLine::Good { row, tokens } => known.insert(row, Ok(tokens)),
                JournalLine::Bad(bad) => known.insert(bad.row, Err(bad)),
            };
        }
        if !known.is_empty() && !quiet {
            reel_support::diagnostic::note!("{} rows were checked before (see {})", known.len(), path.display());
        }
        let state = ScanState {
            log: JsonlLog::resume(&path, &lines)?,
            done: known.len(),
            bad: known.values().filter(|checked| checked.is_err()).count(),
            last_message: Instant::now(),
        };
        Ok(Self { list: list.to_path_buf(), path, known, state: Mutex::new(state), quiet, _lock: lock })
    }

    /// The results that an earlier, interrupted check recorded, by row.
    pub fn earlier_checks(&self) -> &BTreeMap<usize, RowCheckResult> {
        &self.known
    }

    /// Appends the result of checking row `row`. `rows` is the number of all rows, for progress messages.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub fn record(&self, row: usize, checked: &RowCheckResult, rows: usize) -> Result<()> {
        let line = match checked {
            Ok(tokens) => JournalLine::Good { row, tokens: *tokens },
            Err(bad) => JournalLine::Bad(bad.clone()),
        };
        let mut state = self.lock();
        state.log.append(&line)?;
        (state.done, state.bad) = (state.done + 1, state.bad + usize::from(checked.is_err()));
        if state.last_message.elapsed() >= PROGRESS_INTERVAL && !self.quiet {
            reel_support::diagnostic::note!("checked {} of {rows} rows, {} cannot be used", state.done, state.bad);
            state.last_message = Instant::now();
        }
        Ok(())
    }

    /// Ends the check: writes the list, removes the journal and returns the path of the list.
    ///
    /// # Errors
    /// The list cannot be written.
    pub fn finish(self, unusable: &[SkippedRow]) -> Result<PathBuf> {
        let failed = |e| Error::cannot_write(&self.list, e);
        let mut text = Vec::new();
        for row in unusable {
            serde_json::to_writer(&mut text, row).map_err(|e| failed(e.into()))?;
            text.push(b'\n');
        }
        replace_synced(&self.list, &text, false).map_err(failed)?;
        fs::remove_file(&self.path).map_err(|e| Error::cannot_write(&self.path, e))?;
        Ok(self.list)
    }

    fn lock(&self) -> MutexGuard<'_, ScanState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a list of unusable rows and checks that it belongs to the data: `line_of` returns the line number of a row
/// of the data, or `None` if there is no such row.
///
/// # Errors
/// The file cannot be read, or was written for other data.
pub fn read_quarantine_list(list: &Path, line_of: impl Fn(usize) -> Option<usize>) -> Result<Vec<SkippedRow>> {
    let text = input::read_text(list, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(list, e))?;
    let mut found: BTreeMap<usize, SkippedRow> = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what: String, help: &str| {
            Err(Error::usage("--quarantine", format!("{}:{number}: {what}", list.display()), help))
        };
        let row: SkippedRow = match serde_json::from_str(line) {
            Ok(row) => row,
            Err(e) => {
                let help = "give a list that --check-data wrote, or a run's skipped.jsonl";
                return wrong(format!("is not an entry of a list of unusable rows: {e}"), help);
            }
        };
        if line_of(row.row) != Some(row.line) {
            let what = format!("lists row {} at line {}, but the data file has no such row there", row.row, row.line);
            return wrong(what, "check the data again with --check-data");
        }
        found.entry(row.row).or_insert(row);
    }
    Ok(found.into_values().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::SkipCause;

    fn bad(row: usize) -> SkippedRow {
        SkippedRow { row, line: 2 * row + 1, cause: SkipCause::Other, reason: format!("row {row} is invalid; fix it") }
    }

    proptest! {
        /// A journal that is truncated anywhere keeps the rows before the cut, and the continued check writes the same
        /// list.
        #[test]
        fn interrupted_check_continues(rows in prop::collection::vec(any::<bool>(), 1..20), share in 0.0f64..1.0) {
            let dir = tempfile::tempdir().unwrap();
            let list = dir.path().join("q.jsonl");
            let checked = |row: usize| if rows[row] { Ok(row + 5) } else { Err(bad(row)) };
            let journal = ScanJournal::open(&list, "a", true).unwrap();
            (0..rows.len()).rev().for_each(|row| journal.record(row, &checked(row), rows.len()).unwrap());
            drop(journal);
            let path = journal_path(&list);
            let bytes = fs::read(&path).unwrap();
            let cut = (bytes.len() as f64 * share) as usize;
            fs::write(&path, &bytes[..cut]).unwrap();
            let journal = ScanJournal::open(&list, "a", true).unwrap();
            let known: Vec<usize> = (0..rows.len()).filter(|&row| journal.earlier_checks().contains_key(&row)).collect();
            // The first complete line is the fingerprint, not a row. A last line without its line break counts as a
            // row too.
            let whole = bytes[..cut].iter().filter(|b| **b == b'\n').count();
            prop_assert!(known.len() + 1 == whole.max(1) || known.len() == whole, "{} of {whole}", known.len());
            for row in 0..rows.len() {
                match journal.earlier_checks().get(&row) {
                    Some(known) => prop_assert_eq!(known, &checked(row)),
                    None => journal.record(row, &checked(row), rows.len()).unwrap(),
                }
            }
            let all: Vec<SkippedRow> = (0..rows.len()).filter_map(|row| checked(row).err()).collect();
            let written = journal.finish(&all).unwrap();
            prop_assert_eq!(read_quarantine_list(&written, |row| Some(2 * row + 1)).unwrap(), all);
            prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn journal_of_other_data_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("sub/q.jsonl");
        ScanJournal::open(&list, "a", true).unwrap().record(3, &Ok(1), 9).unwrap();
        assert!(ScanJournal::open(&list, "a", true).unwrap().earlier_checks().contains_key(&3));
        assert!(!ScanJournal::open(&list, "b", true).unwrap().earlier_checks().contains_key(&3));
        assert!(!ScanJournal::open(&list, "a", true).unwrap().earlier_checks().contains_key(&3));
    }

    #[test]
    fn list_of_other_data_is_refused_with_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("q.jsonl");
        let message = |text: &str| {
            fs::write(&list, text).unwrap();
            read_quarantine_list(&list, |row| (row < 4).then_some(2 * row + 1)).map_err(|e| e.to_string())
        };
        let line = |row| serde_json::to_string(&bad(row)).unwrap();
        assert_eq!(message(&format!("{}\n\n{}\n{0}\n", line(2), line(0))).unwrap(), [bad(0), bad(2)]);
        for (text, want) in [
            (format!("{}\n{}", line(1), line(7)), "q.jsonl:2: lists row 7 at line 15"),
            (r#"{"row": 1, "line": 9, "cause": "other", "reason": ""}"#.into(), "q.jsonl:1: lists row 1 at line 9"),
            ("{\"row\": 1".into(), "q.jsonl:1: is not an entry of a list of unusable rows"),
        ] {
            let e = message(&text).unwrap_err();
            assert!(e.starts_with("--quarantine: ") && e.contains(want) && e.contains("; "), "{e}");
        }
        assert!(
            read_quarantine_list(&dir.path().join("none"), |_| None)
                .unwrap_err()
                .to_string()
                .contains("there is no such file")
        );
    }
}
