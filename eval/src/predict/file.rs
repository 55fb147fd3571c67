//! Writes a predictions file. Its lines have the order of the rows of the data. The name of the file ends in `.partial`
//! until the file is complete, and a later run can continue an incomplete file.
//!
//! | file | contents |
//! |---|---|
//! | `OUT.partial` | the lines written so far; renamed to `OUT` when each row has a line |
//! | `OUT.partial.run.json`, then `OUT.run.json` | the settings, see [`PredictionSettings`] |
//! | `OUT.partial.early` | lines of rows before which a row has no line yet, each as `{"row": …, "line": …}` |
//!
//! A run that continues `OUT` keeps the early lines, too: it answers only rows that have no line in either file.
//!
//! A process may be killed at any moment, so a run takes these steps in a fixed order: create `OUT.partial`, write its
//! settings, write the lines, rename `OUT.partial` to `OUT`, rename the settings. From the files that exist, a later
//! run knows which of the steps were taken.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use reel_samples::conversations::remove_prediction_columns;
use reel_samples::quarantine::lock_path;
use reel_support::diagnostic::input;
use reel_support::files::{AtomicFile, FileLock, open_without_link};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::predict::line::json_line;
use crate::predict::settings::PredictionSettings;

/// What a run does if `OUT` or `OUT.partial` exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExistingOutput {
    /// Return an error.
    Refuse,
    /// Continue the predictions file after its last complete line.
    Resume,
    /// Start again with the first row. `OUT` is replaced when the new file is complete.
    Overwrite,
}

/// The position at which a run starts, depending on the files that an earlier run has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// At the first row.
    Fresh,
    /// After the first `bytes` bytes of `OUT.partial`, which are complete lines.
    After { bytes: u64 },
    /// The run has nothing to do: `OUT` has a line for each row.
    Complete,
}

/// The predictions file of a run. A lock keeps other processes from writing it.
#[derive(Debug)]
pub struct PredictionFile {
    paths: Paths,
    settings: PredictionSettings,
    earlier: Option<PredictionSettings>,
    start: Start,
    /// `None` until [`Self::create_or_continue`].
    file: Option<File>,
    /// Number of lines in the file, which is also the index of the row whose line is written next.
    lines: usize,
    /// Lines, by row, that are not in the file yet because the line of an earlier row is missing.
    waiting: BTreeMap<usize, Vec<u8>>,
    /// The open file `OUT.partial.early`; `None` before [`Self::create_or_continue`].
    early: Option<File>,
    /// Number of bytes of complete lines that an earlier run has left in `OUT.partial.early`.
    early_bytes: u64,
    errors: usize,
    first_error: Option<String>,
    _lock: FileLock,
}

#[derive(Clone, Debug)]
struct Paths {
    out: PathBuf,
    settings: PathBuf,
    partial: PathBuf,
    partial_settings: PathBuf,
    early: PathBuf,
}

/// The files that a run with the output file `out` writes or replaces besides `out`.
pub fn companion_paths(out: &Path) -> [PathBuf; 4] {
    let Paths { settings, partial, partial_settings, early, .. } = Paths::of(out);
    [settings, partial, partial_settings, early]
}

impl Paths {
    fn of(out: &Path) -> Self {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let beside = |suffix: &str| out.with_file_name(format!("{name}{suffix}"));
        Self {
            out: out.to_path_buf(),
            settings: beside(".run.json"),
            partial: beside(".partial"),
            partial_settings: beside(".partial.run.json"),
            early: beside(".partial.early"),
        }
    }
}

impl PredictionFile {
    /// Locks the output file and decides where the run starts. Does not change the file. If an earlier run was killed
    /// before its last rename, renames the settings of the complete file. `columns` returns the columns of a row of the
    /// data. With [`ExistingOutput::Resume`], each line of an earlier run must begin with the columns of its row.
    ///
    /// # Errors
    /// `out` or its `.partial` file exists and `existing` is [`ExistingOutput::Refuse`]; another process has locked
    /// `out`; with [`ExistingOutput::Resume`], the earlier run had different settings, or its file was changed since.
    pub fn open(
        out: &Path,
        existing: ExistingOutput,
        settings: PredictionSettings,
        columns: impl Fn(usize) -> Map<String, Value>,
    ) -> Result<Self> {
        let paths = Paths::of(out);
        refuse_other_kinds(out)?;
        let lock = FileLock::acquire(&lock_path(out)).map_err(|e| Error::cannot_lock(e, "--out", out))?;
        if paths.out.exists() && !paths.partial.exists() && paths.partial_settings.exists() {
            rename(&paths.partial_settings, &paths.settings)?;
        }
        if paths.out.exists() && !paths.partial.exists() {
            remove_if_there(&paths.early)?;
        }
        let mut found = Self {
            paths,
            settings,
            earlier: None,
            start: Start::Fresh,
            file: None,
            lines: 0,
            waiting: BTreeMap::new(),
            early: None,
            early_bytes: 0,
            errors: 0,
            first_error: None,
            _lock: lock,
        };
        match existing {
            ExistingOutput::Refuse => found.refuse_existing()?,
            ExistingOutput::Resume => found.find_resume_point(columns)?,
            ExistingOutput::Overwrite => {}
        }
        Ok(found)
    }

    /// Number of rows that have a line. It is also the index (from 0) of the row that the run continues with.
    pub fn line_count(&self) -> usize {
        self.lines
    }

    /// Whether the line of a row exists: it is in the predictions file, or it waits until the lines of all earlier
    /// rows are written.
    pub fn has_line(&self, row: usize) -> bool {
        row < self.lines || self.waiting.contains_key(&row)
    }

    /// The rows that have no line in the predictions file or among the early lines, in the order of the data. Empty
    /// if an earlier run has completed the file.
    pub fn rows_without_line(&self) -> Vec<usize> {
        (self.lines..self.settings.row_count()).filter(|&row| !self.has_line(row)).collect()
    }

    /// The settings of this run.
    pub(super) fn settings(&self) -> &PredictionSettings {
        &self.settings
    }

    /// Whether an earlier run has written all rows and given the file its final name.
    pub fn is_complete(&self) -> bool {
        self.start == Start::Complete
    }

    /// Number of rows that got a line with an error instead of an output, and the error of the first such row.
    pub fn error_count_and_first_error(&self) -> (usize, Option<&str>) {
        (self.errors, self.first_error.as_deref())
    }

    /// Returns a warning if the results of this run may differ bit by bit from those of the earlier run that it
    /// continues.
    pub fn bit_difference_warning(&self, device: &reel_device::Device) -> Option<String> {
        self.settings.bit_difference_warning(self.earlier.as_ref()?, device)
    }

    /// Creates `OUT.partial`. If the run continues an earlier one, opens `OUT.partial` and removes an incomplete last
    /// line.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn create_or_continue(&mut self) -> Result<()> {
        let Paths { partial, partial_settings, early, .. } = &self.paths;
        let failed = |e| Error::cannot_write(partial, e);
        let file = match self.start {
            Start::Complete => return Ok(()),
            Start::After { bytes } => {
                let file = open_without_link(partial, File::options().append(true)).map_err(failed)?;
                file.set_len(bytes).map_err(failed)?;
                file
            }
            Start::Fresh => {
                remove_if_there(partial_settings)?;
                remove_if_there(partial)?;
                let file = File::create_new(partial).map_err(failed)?;
                let mut settings = AtomicFile::create(partial_settings)?;
                settings.write_all(&self.settings.to_text()).map_err(|e| Error::cannot_write(partial_settings, e))?;
                settings.commit()?;
                file
            }
        };
        self.file = Some(file);
        let failed = |e| Error::cannot_write(early, e);
        let early_lines = open_without_link(early, File::options().create(true).append(true)).map_err(failed)?;
        early_lines.set_len(self.early_bytes).map_err(failed)?;
        self.early = Some(early_lines);
        // If the earlier process was killed between two lines, the next line may already be among the early lines.
        self.write_waiting_lines().map(drop)
    }

    /// Accepts the line of a row, in any order of rows. Writes the accepted lines of all rows before the first row
    /// without a line. Returns the number of lines in the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn write_line(&mut self, row: usize, line: Vec<u8>, error: Option<String>) -> Result<usize> {
        if let Some(error) = error {
            self.errors += 1;
            self.first_error.get_or_insert(error);
        }
        if row != self.lines
            && let Some(file) = &mut self.early
        {
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = [format!("{{\"row\":{row},\"line\":").as_bytes(), line, b"}\n"].concat();
            file.write_all(&text).map_err(|e| write_error(&self.paths.early, e))?;
        }
        self.waiting.insert(row, line);
        self.write_waiting_lines()
    }

    /// Writes the waiting lines of all rows before the first row without a line. Returns the number of lines in the
    /// file.
    fn write_waiting_lines(&mut self) -> Result<usize> {
        while let Some(file) = &mut self.file
            && let Some(line) = self.waiting.remove(&self.lines)
        {
            file.write_all(&line).map_err(|e| write_error(&self.paths.partial, e))?;
            self.lines += 1;
        }
        Ok(self.lines)
    }

    /// Gives the complete file its final name.
    ///
    /// # Errors
    /// The files cannot be written or renamed.
    pub(super) fn finish(&mut self) -> Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        file.sync_all().map_err(|e| Error::cannot_write(&self.paths.partial, e))?;
        rename(&self.paths.partial, &self.paths.out)?;
        rename(&self.paths.partial_settings, &self.paths.settings)?;
        remove_if_there(&self.paths.early)
    }

    /// The error of a run that was stopped before all rows had a line.
    pub(super) fn stopped_error(&self) -> Error {
        let (lines, rows) = (self.lines, self.settings.row_count());
        let location = self.paths.partial.display().to_string();
        let what = format!("stopped after {lines} of {rows} rows");
        Error::stopped(location, what, "continue with --resume")
    }

    /// The error of a run that ends while `count` of its requested rows have no answer.
    pub(super) fn unanswered_rows_error(&self, count: usize, failure: &str) -> Error {
        let lines = self.lines + self.waiting.len();
        let rows = self.settings.row_count();
        let what = format!("has answers for {lines} of {rows} rows; {count} request(s) got no answer: {failure}");
        Error::failed(self.paths.partial.display().to_string(), what, "remove the cause, then continue with --resume")
    }

    fn refuse_existing(&self) -> Result<()> {
        let Paths { out, partial, partial_settings, .. } = &self.paths;
        let refuse = |path: &Path, what: &str, help: &str| Err(Error::failed(path.display().to_string(), what, help));
        // An empty file without settings may be replaced: a process that was killed right after its start leaves such
        // a file.
        if partial.exists() && (partial_settings.exists() || !is_empty(partial)) {
            let help = "continue it with --resume, or start again with --overwrite";
            return refuse(partial, "is the unfinished output of an earlier run", help);
        }
        match out.exists() {
            true => refuse(
                out,
                "exists",
                "choose another file, or give --overwrite, or --resume if an earlier part of this run wrote it",
            ),
            false => Ok(()),
        }
    }

    fn find_resume_point(&mut self, columns: impl Fn(usize) -> Map<String, Value>) -> Result<()> {
        let Paths { out, settings, partial, partial_settings, .. } = &self.paths;
        let (file, settings) = match (partial.exists(), out.exists()) {
            // A process that was killed right after its start has written no settings and no line.
            (true, _) if !partial_settings.exists() && is_empty(partial) => return Ok(()),
            (true, _) => (partial, partial_settings),
            (false, true) => (out, settings),
            (false, false) => return Ok(()),
        };
        let earlier = PredictionSettings::read(settings, file)?;
        self.settings.check_equal(&earlier, file)?;
        let found = read_lines(file, self.settings.row_count(), &columns)?;
        self.start = if file == out { Start::Complete } else { Start::After { bytes: found.bytes } };
        if file == out && found.lines < self.settings.row_count() {
            let what = format!("has {} of {} rows", found.lines, self.settings.row_count());
            return Err(changed(file.display().to_string(), what));
        }
        (self.lines, self.errors, self.first_error) = (found.lines, found.errors, found.first_error);
        self.earlier = Some(earlier);
        if matches!(self.start, Start::After { .. }) {
            self.early_bytes = read_early_lines(
                &self.paths.early,
                self.lines,
                self.settings.row_count(),
                &columns,
                &mut self.waiting,
            )?;
            let errors: Vec<String> = self.waiting.values().filter_map(|line| error_of(line)).collect();
            self.errors += errors.len();
            self.first_error = self.first_error.take().or_else(|| errors.into_iter().next());
        }
        Ok(())
    }
}

/// Counts of the complete lines in the predictions file of an earlier run.
#[derive(Default)]
struct EarlierLines {
    lines: usize,
    bytes: u64,
    errors: usize,
    first_error: Option<String>,
}

/// Reads the complete lines of a predictions file and checks that each line has the columns of its row.
fn read_lines(file: &Path, rows: usize, columns: &impl Fn(usize) -> Map<String, Value>) -> Result<EarlierLines> {
    let failed = |e| Error::cannot_read(file, e);
    let mut reader = BufReader::new(input::open_regular_file(file).map_err(failed)?);
    let (mut found, mut line) = (EarlierLines::default(), Vec::new());
    loop {
        line.clear();
        let bytes = reader.read_until(b'\n', &mut line).map_err(failed)?;
        // A last line without a line break is incomplete: the process was killed while it wrote the line.
        if !line.ends_with(b"\n") {
            return Ok(found);
        }
        let location = || format!("{}:{}", file.display(), found.lines + 1);
        if found.lines == rows {
            return Err(changed(location(), "is one line too many: the data has fewer rows".into()));
        }
        let Ok(mut row) = serde_json::from_slice::<Map<String, Value>>(&line) else {
            return Err(changed(location(), "is not JSON".into()));
        };
        let error = row.get("error").and_then(Value::as_str).map(String::from);
        let is_prediction = row.contains_key("output");
        remove_prediction_columns(&mut row);
        if !is_prediction || row != columns(found.lines) {
            return Err(changed(location(), format!("is not the prediction of row {} of the data", found.lines + 1)));
        }
        found.errors += usize::from(error.is_some());
        found.first_error = found.first_error.or(error);
        found.lines += 1;
        found.bytes += bytes as u64;
    }
}

/// Reads the complete lines of `OUT.partial.early` into `lines`, for rows from `first_row` on. Returns the number of
/// bytes of these lines.
fn read_early_lines(
    file: &Path,
    first_row: usize,
    rows: usize,
    columns: &impl Fn(usize) -> Map<String, Value>,
    lines: &mut BTreeMap<usize, Vec<u8>>,
) -> Result<u64> {
    let failed = |e| Error::cannot_read(file, e);
    let mut reader = match input::open_regular_file(file) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        opened => BufReader::new(opened.map_err(failed)?),
    };
    let (mut bytes, mut number, mut text) = (0, 0, Vec::new());
    loop {
        text.clear();
        let read = reader.read_until(b'\n', &mut text).map_err(failed)?;
        // A last line without a line break is incomplete: the process was killed while it wrote the line.
        if !text.ends_with(b"\n") {
            return Ok(bytes);
        }
        (bytes, number) = (bytes + read as u64, number + 1);
        let early: Option<EarlyLine> = serde_json::from_slice(&text).ok().filter(|early: &EarlyLine| early.row < rows);
        let is_prediction = |early: &EarlyLine| {
            let mut row = early.line.clone();
            let has_output = row.contains_key("output");
            remove_prediction_columns(&mut row);
            has_output && row == columns(early.row)
        };
        let Some(early) = early.filter(is_prediction) else {
            return Err(changed(
                format!("{}:{number}", file.display()),
                "is not the prediction of a row of the data".into(),
            ));
        };
        if early.row >= first_row {
            lines.insert(early.row, json_line(early.line));
        }
    }
}

/// A line of `OUT.partial.early`.
#[derive(Deserialize)]
struct EarlyLine {
    row: usize,
    line: Map<String, Value>,
}

/// The `error` of a line.
fn error_of(line: &[u8]) -> Option<String> {
    let row: Map<String, Value> = serde_json::from_slice(line).ok()?;
    row.get("error").and_then(Value::as_str).map(String::from)
}

fn write_error(file: &Path, e: std::io::Error) -> Error {
    let mut e = Error::cannot_write(file, e);
    if let Some(remedy) = e.remedy_for_space() {
        e.diagnostic.help = format!("{remedy}, then continue with --resume");
    }
    e
}

fn changed(location: String, what: String) -> Error {
    Error::failed(location, what, "the file was changed: restore it, or start again with --overwrite")
}

fn is_empty(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|facts| facts.len() == 0)
}

/// Refuses an output that is a folder, a device or a pipe.
fn refuse_other_kinds(out: &Path) -> Result<()> {
    let kind = match fs::metadata(out) {
        Ok(facts) if facts.is_dir() => "is a folder",
        Ok(facts) if !facts.is_file() => "is not a regular file, so its lines could not be read again",
        _ => return Ok(()),
    };
    Err(Error::failed(format!("--out {}", out.display()), kind, "give the name of a file"))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::cannot_write(to, e))
}

fn remove_if_there(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::cannot_write(file, e)),
        _ => Ok(()),
    }
}
