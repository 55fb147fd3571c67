//! `metrics.jsonl`: a line a step, written as the step ends; and `skipped.jsonl`: a line for each row left out. A resumed
//! run cuts both back to what its checkpoint knew, so that they become what an unbroken run would have written.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Result, TrainError};

/// What is known of a step when it is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean of the micro-batches' losses.
    pub loss: f64,
    /// L2 norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// The rate that the step used.
    pub learning_rate: f64,
    /// Tokens of all rows of the step, learned or not.
    pub tokens: u64,
    /// The same a second. A time field.
    pub tokens_per_second: f64,
    /// Seconds from the step's first row to its updated weights. A time field.
    pub step_seconds: f64,
    /// The most bytes that the device held so far, counted by its buffers.
    pub peak_bytes: u64,
    /// Fingerprint of the updated weights.
    pub hash: String,
    /// What else the command tells of its steps.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl StepMetrics {
    /// The numbers of the step that are drawn as curves, by name.
    pub fn points(&self) -> Vec<(String, f64)> {
        let own = [
            ("loss", self.loss),
            ("grad_norm", self.grad_norm),
            ("learning_rate", self.learning_rate),
            ("tokens_per_second", self.tokens_per_second),
            ("peak_bytes", self.peak_bytes as f64),
        ];
        let more = self.more.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)));
        own.into_iter().chain(more).map(|(name, value)| (format!("train/{name}"), value)).collect()
    }
}

/// A row that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRow {
    /// The row, counted from 0.
    pub row: usize,
    /// Its line in the data file, counted from 1.
    pub line: usize,
    /// Why it was left out.
    pub reason: String,
}

/// A file of JSON lines that is only ever added to.
#[derive(Debug)]
pub struct JsonlLog {
    path: PathBuf,
    file: File,
}

impl JsonlLog {
    /// A new file, in place of any that was there.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| TrainError::write(path, e))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Goes on after `lines`, which replace what is in the file. The file is replaced whole, so that it is never shorter
    /// than either.
    pub fn resume(path: &Path, lines: &[String]) -> Result<Self> {
        let part = path.with_extension("jsonl.part");
        let mut text = lines.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        let failed = |e| TrainError::write(path, e);
        File::create(&part)
            .and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
            .map_err(failed)?;
        std::fs::rename(&part, path).map_err(failed)?;
        let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Adds a line; it is in the system's hands when this returns.
    pub fn add(&mut self, record: &impl Serialize) -> Result<()> {
        let failed = |e| TrainError::write(&self.path, e);
        let mut line = serde_json::to_vec(record).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(failed)
    }

    /// Waits until all lines are on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| TrainError::write(&self.path, e))
    }
}

/// The lines of a log that `keep` wants, up to the first that is damaged (a killed run may leave half a line). A file that
/// is not there has none.
pub fn read<T: DeserializeOwned>(path: &Path, keep: impl Fn(&T) -> bool) -> Result<Vec<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(TrainError::read(path, e)),
    };
    let mut lines = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|e| TrainError::read(path, e))?;
        let Ok(text) = String::from_utf8(line) else { break };
        let Ok(record) = serde_json::from_str::<T>(&text) else { break };
        if keep(&record) {
            lines.push(text);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            loss: 1.5,
            grad_norm: 0.25,
            learning_rate: 1e-6,
            tokens: 10,
            tokens_per_second: 5.0,
            step_seconds: 2.0,
            peak_bytes: 7,
            hash: "00".into(),
            more: Map::new(),
        }
    }

    #[test]
    fn a_resumed_log_is_the_unbroken_one() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, broken) = (dir.path().join("a.jsonl"), dir.path().join("b.jsonl"));
        let mut log = JsonlLog::create(&whole).unwrap();
        (1..=5).for_each(|n| log.add(&line(n)).unwrap());
        let mut log = JsonlLog::create(&broken).unwrap();
        (1..=4).for_each(|n| log.add(&line(n)).unwrap());
        let bytes = std::fs::read(&broken).unwrap();
        for cut in [bytes.len(), bytes.len() - 1, bytes.len() - 20, bytes.len() / 4 * 3 + 1] {
            std::fs::write(&broken, &bytes[..cut]).unwrap();
            let kept = read(&broken, |m: &StepMetrics| m.step <= 2).unwrap();
            assert_eq!(kept.len(), 2);
            let mut log = JsonlLog::resume(&broken, &kept).unwrap();
            (3..=5).for_each(|n| log.add(&line(n)).unwrap());
            log.sync().unwrap();
            assert_eq!(std::fs::read(&broken).unwrap(), std::fs::read(&whole).unwrap());
        }
    }

    #[test]
    fn the_fields_are_the_contracts_in_order() {
        let text = serde_json::to_string(&line(1)).unwrap();
        let want = r#"{"step":1,"loss":1.5,"grad_norm":0.25,"learning_rate":1e-6,"tokens":10,"tokens_per_second":5.0,"step_seconds":2.0,"peak_bytes":7,"hash":"00"}"#;
        assert_eq!(text, want);
    }

    #[test]
    fn a_missing_log_is_empty_and_a_missing_folder_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&dir.path().join("x"), |_: &SkippedRow| true).unwrap().is_empty());
        let e = JsonlLog::create(&dir.path().join("no/x")).unwrap_err().to_string();
        assert!(e.contains("cannot be written: there is no such file or folder; "), "{e}");
    }
}
