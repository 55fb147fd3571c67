//! The table of a curation's stage: `OUT/NAME.jsonl`, to which each outcome is appended as soon as it is known, and
//! `OUT/NAME.parquet`, a copy that is written when the stage has ended.
//!
//! The last line of a key counts. A killed process can leave an incomplete last line, which the next run removes;
//! complete lines are never lost, and an accepted answer is not asked for again. A line of status `asked` is written
//! before a request that costs money. If the process is killed during the request, the next run reads the cost from
//! this line and counts it as spent.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reel_input::rows::Table;
use reel_support::diagnostic::input;
use reel_support::files::AtomicFile;

use crate::curate::complete_file::{cannot_write_curation, with_help_to_resume};
use crate::curate::record::{RECORD_FORMAT, RecordStatus, StageRecord};
use crate::error::{Error, Result};

/// Maximum time until appended lines are synced to disk. Before that, they are only in the page cache of the
/// operating system: a power failure loses them, but the end of the process does not.
const SYNC_EVERY: Duration = Duration::from_secs(1);

const CHANGED: &str = "restore the file, or start this stage again with --redo";

/// The records of a stage, in memory and on disk.
#[derive(Debug)]
pub struct StageTable {
    path: PathBuf,
    content: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    /// The last record of each video or question, by key, without records of status `asked`.
    records: HashMap<String, StageRecord>,
    /// Maximum cost in US dollars, by key, of each request that has no outcome yet (status `asked`).
    unfinished: HashMap<String, f64>,
    /// Cost of all requests with a recorded outcome, in US dollars.
    recorded_cost: f64,
    /// Maximum cost in US dollars of the requests that killed processes left without an outcome.
    lost_cost: f64,
    /// Opened by the first append.
    file: Option<File>,
    /// Number of bytes of the complete lines that were found in the file.
    bytes: u64,
    synced: Option<Instant>,
}

impl StageTable {
    /// Reads the table `NAME` in the folder `out`; an absent table is empty. Changes nothing. If only the Parquet file
    /// exists, its records are read.
    ///
    /// # Errors
    /// A file cannot be read, or a line is not a record.
    pub fn open(out: &Path, name: &str) -> Result<Self> {
        let path = out.join(format!("{name}.jsonl"));
        let parquet = path.with_extension("parquet");
        let mut content = Content::default();
        if path.exists() {
            content.read_lines(&path)?;
        } else if parquet.exists() {
            content.read_parquet(&parquet)?;
        }
        // A request that an earlier process left without an outcome will never get one.
        content.lost_cost += content.unfinished.drain().map(|(_, cost)| cost).sum::<f64>();
        Ok(Self { path, content: Mutex::new(content) })
    }

    /// A table without records. Does not read the files that [`Self::open`] would read.
    pub fn empty(out: &Path, name: &str) -> Self {
        Self { path: out.join(format!("{name}.jsonl")), content: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last record of a key.
    pub fn get(&self, key: &str) -> Option<StageRecord> {
        self.lock().records.get(key).cloned()
    }

    /// Calls `visit` with the last record of each video or question, in no particular order.
    pub fn for_each(&self, visit: impl FnMut(&StageRecord)) {
        self.lock().records.values().for_each(visit);
    }

    /// Cost of all requests in US dollars. A request that was in flight when its process was killed counts with its
    /// maximum cost.
    pub fn cost_in_dollars(&self) -> f64 {
        let content = self.lock();
        content.recorded_cost + content.lost_cost
    }

    /// Appends a record.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&self, record: StageRecord) -> Result<()> {
        let mut content = self.lock();
        let failed = |e| cannot_write_curation(&self.path, &e);
        let mut line = serde_json::to_vec(&record).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        if content.file.is_none() {
            content.file = Some(self.open_for_append(&content)?);
            content.synced = Some(Instant::now());
        }
        let is_due = content.synced.is_none_or(|at| at.elapsed() >= SYNC_EVERY);
        if let Some(file) = &mut content.file {
            // The line is written by one call, so that a killed process leaves at most one incomplete line.
            file.write_all(&line).map_err(failed)?;
            if is_due {
                file.sync_data().map_err(failed)?;
            }
        }
        if is_due {
            content.synced = Some(Instant::now());
        }
        content.take(record);
        Ok(())
    }

    /// Opens the file for appending after its last complete line. If the records came from the Parquet file, writes
    /// them to the new file first.
    fn open_for_append(&self, content: &Content) -> Result<File> {
        let failed = |e| cannot_write_curation(&self.path, &e);
        if content.bytes == 0 && !content.records.is_empty() {
            let mut draft = AtomicFile::create(&self.path).map_err(with_help_to_resume)?;
            for record in content.sorted() {
                let line = serde_json::to_string(record).map_err(|e| failed(e.into()))? + "\n";
                draft.write_all(line.as_bytes()).map_err(failed)?;
            }
            draft.commit().map_err(with_help_to_resume)?;
            return OpenOptions::new().append(true).open(&self.path).map_err(failed);
        }
        let file = OpenOptions::new().append(true).create(true).open(&self.path).map_err(failed)?;
        file.set_len(content.bytes).map_err(failed)?;
        Ok(file)
    }

    /// Syncs all lines to disk and writes the Parquet file. Does nothing if the table has no records.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn finish(&self) -> Result<()> {
        let content = self.lock();
        if let Some(file) = &content.file {
            file.sync_data().map_err(|e| cannot_write_curation(&self.path, &e))?;
        }
        if content.records.is_empty() {
            return Ok(());
        }
        let parquet = self.path.with_extension("parquet");
        let lines: Vec<String> = content
            .sorted()
            .into_iter()
            .map(|record| serde_json::to_string(record).map_err(|e| cannot_write_curation(&parquet, &e.into())))
            .collect::<Result<_>>()?;
        write_parquet(&parquet, &lines)
    }
}

/// Writes rows of JSON as a Parquet file, which appears under its name when it is complete. `lines` must not be empty.
pub(crate) fn write_parquet(path: &Path, lines: &[String]) -> Result<()> {
    let table = Table::parse(path, lines.join("\n"))?;
    let mut draft = AtomicFile::create(path).map_err(with_help_to_resume)?;
    reel_input::rows::write_parquet(&table, &mut draft).map_err(|e| match e {
        reel_input::rows::WriteError::Row(e) => e,
        reel_input::rows::WriteError::Io(e) => cannot_write_curation(path, &e),
    })?;
    draft.commit().map_err(with_help_to_resume)
}

impl Content {
    fn read_lines(&mut self, path: &Path) -> Result<()> {
        let failed = |e| Error::cannot_read(path, &e);
        let mut reader = BufReader::new(input::open_regular_file(path).map_err(failed)?);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let bytes = reader.read_until(b'\n', &mut line).map_err(failed)?;
            // A last line without a line break is incomplete: the process was killed while it wrote the line.
            if !line.ends_with(b"\n") {
                break;
            }
            let record =
                parse(&line).map_err(|what| Error::failed(format!("{}:{number}", path.display()), what, CHANGED))?;
            self.take(record);
            self.bytes += bytes as u64;
        }
        Ok(())
    }

    fn read_parquet(&mut self, path: &Path) -> Result<()> {
        let table = Table::open(path)?;
        for row in 0..table.len() {
            let text = table.value(row)?.to_string();
            let record = parse(text.as_bytes()).map_err(|what| Error::failed(table.location(row), what, CHANGED))?;
            self.take(record);
        }
        Ok(())
    }

    fn take(&mut self, record: StageRecord) {
        if record.status == RecordStatus::Asked {
            let earlier = self.unfinished.insert(record.key, record.cost);
            // A second line of status `asked` with the same key means that the process of the first request was
            // killed.
            self.lost_cost += earlier.unwrap_or(0.0);
            return;
        }
        self.unfinished.remove(&record.key);
        self.recorded_cost += record.cost;
        self.records.insert(record.key.clone(), record);
    }

    /// The records in the order of their keys.
    fn sorted(&self) -> Vec<&StageRecord> {
        let mut records: Vec<_> = self.records.values().collect();
        records.sort_by(|a, b| a.key.cmp(&b.key));
        records
    }
}

fn parse(line: &[u8]) -> Result<StageRecord, String> {
    let record: StageRecord =
        serde_json::from_slice(line).map_err(|e| format!("is not a record of this stage: {}", without_position(&e)))?;
    match record.format {
        RECORD_FORMAT => Ok(record),
        other => Err(format!("has the format {other}; this version of reel reads format {RECORD_FORMAT}")),
    }
}

/// The message of a JSON error without its line number, which is always 1 because each line of a table is parsed alone.
fn without_position(e: &serde_json::Error) -> String {
    let text = e.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, status: RecordStatus, cost: f64) -> StageRecord {
        StageRecord {
            format: RECORD_FORMAT,
            key: key.into(),
            location: "list.jsonl:1".into(),
            status,
            reason: None,
            output: Some("text".into()),
            prompt: "reason-1-00".into(),
            model: "m".into(),
            prompt_tokens: 3,
            completion_tokens: 4,
            attempts: 1,
            cost,
            seconds: 0.5,
            unix_time: 1,
            reel: "0".into(),
        }
    }

    #[test]
    fn last_line_of_a_key_counts_and_an_incomplete_line_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let table = StageTable::open(dir.path(), "reason").unwrap();
        table.append(record("a", RecordStatus::Failed, 1.0)).unwrap();
        table.append(record("b", RecordStatus::Ok, 2.0)).unwrap();
        table.append(record("a", RecordStatus::Ok, 4.0)).unwrap();
        let path = dir.path().join("reason.jsonl");
        let whole = std::fs::read(&path).unwrap();
        // A killed process can cut the file at any byte. Only the line that contains this byte is lost.
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let table = StageTable::open(dir.path(), "reason").unwrap();
            let complete = whole[..cut].iter().filter(|&&b| b == b'\n').count();
            let known = |key| table.get(key).map(|r| r.cost);
            let wanted = [None, Some(1.0), Some(1.0), Some(4.0)][complete];
            assert_eq!((known("a"), known("b")), (wanted, (complete >= 2).then_some(2.0)), "{cut}");
            table.append(record("c", RecordStatus::Ok, 8.0)).unwrap();
            let again = StageTable::open(dir.path(), "reason").unwrap();
            assert_eq!(again.get("c").map(|r| r.cost), Some(8.0), "{cut}");
            assert_eq!(again.get("a").map(|r| r.cost), wanted, "{cut}");
        }
    }

    #[test]
    fn requests_that_a_kill_cut_off_count_with_the_most_that_they_can_have_cost() {
        let dir = tempfile::tempdir().unwrap();
        let table = StageTable::open(dir.path(), "reason").unwrap();
        for (key, status, cost) in [
            ("a", RecordStatus::Asked, 10.0),
            ("a", RecordStatus::Ok, 1.0),
            ("b", RecordStatus::Asked, 20.0),
            ("b", RecordStatus::Asked, 30.0),
            ("b", RecordStatus::Failed, 2.0),
            ("c", RecordStatus::Asked, 40.0),
        ] {
            table.append(record(key, status, cost)).unwrap();
        }
        assert_eq!(StageTable::open(dir.path(), "reason").unwrap().cost_in_dollars(), 1.0 + 20.0 + 2.0 + 40.0);
        assert!(table.get("c").is_none());
    }

    #[test]
    fn parquet_has_the_records_and_replaces_a_lost_table() {
        let dir = tempfile::tempdir().unwrap();
        let table = StageTable::open(dir.path(), "reason").unwrap();
        table.append(record("b", RecordStatus::Ok, 2.0)).unwrap();
        table.append(record("a", RecordStatus::Failed, 1.0)).unwrap();
        table.finish().unwrap();
        std::fs::remove_file(dir.path().join("reason.jsonl")).unwrap();
        let again = StageTable::open(dir.path(), "reason").unwrap();
        assert_eq!(again.get("b"), Some(record("b", RecordStatus::Ok, 2.0)));
        again.append(record("c", RecordStatus::Ok, 3.0)).unwrap();
        let third = StageTable::open(dir.path(), "reason").unwrap();
        assert_eq!((third.get("a"), third.get("c")), (table.get("a"), Some(record("c", RecordStatus::Ok, 3.0))));
        // The error about a truncated Parquet file names the file.
        std::fs::remove_file(dir.path().join("reason.jsonl")).unwrap();
        let parquet = dir.path().join("reason.parquet");
        let bytes = std::fs::read(&parquet).unwrap();
        std::fs::write(&parquet, &bytes[..bytes.len() / 2]).unwrap();
        let e = StageTable::open(dir.path(), "reason").unwrap_err().to_string();
        assert!(e.contains("reason.parquet") && e.contains("; ") && !e.contains('\n'), "{e}");
    }

    #[test]
    fn other_fields_are_named_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reason.jsonl");
        let good = serde_json::to_value(record("a", RecordStatus::Ok, 1.0)).unwrap();
        for (field, value, wanted) in [
            (
                "status",
                Some(serde_json::json!("done")),
                "reason.jsonl:2: is not a record of this stage: unknown variant `done`",
            ),
            ("model", None, "reason.jsonl:2: is not a record of this stage: missing field `model`"),
            (
                "prompts",
                Some(serde_json::json!(1)),
                "reason.jsonl:2: is not a record of this stage: unknown field `prompts`",
            ),
            ("format", Some(serde_json::json!(2)), "reason.jsonl:2: has the format 2; "),
        ] {
            let mut bad = good.clone();
            match value {
                Some(value) => bad[field] = value,
                None => drop(bad.as_object_mut().unwrap().remove(field)),
            }
            std::fs::write(&path, format!("{good}\n{bad}\n")).unwrap();
            let e = StageTable::open(dir.path(), "reason").unwrap_err().to_string();
            assert!(e.contains(wanted) && e.contains("--redo"), "{e}");
        }
    }
}
