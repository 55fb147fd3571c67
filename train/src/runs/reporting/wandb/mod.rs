//! Writes a run for Weights & Biases without its client and without a network: a folder that `wandb sync` uploads.
//!
//! `OUT/wandb/offline-run-YYYYMMDD_HHMMSS-ID/` has the files that the client writes in offline mode:
//!
//! - `run-ID.wandb`, the log of records (framing: [`log`], messages: [`record`]), from which `wandb sync` makes
//!   `config.yaml` and `wandb-summary.json`;
//! - `files/wandb-metadata.json`, and `files/media/{images,html}/` with file names of step and hash, as the client
//!   names them.
//!
//! A resumed run gets a new folder with the whole run in it. Steps up to the checkpoint are copied from the previous
//! folder with their media, or made from metrics.jsonl if the previous folder lacks them. Uploading two folders with
//! one id instead would give a wrong history: wandb 0.19.11 overwrites steps, 0.31.0 appends them, and the steps after
//! the checkpoint exist twice (`tools/benches/peers/wandb_sync.py` shows it).
//!
//! The new folder has the run id of the previous folder. The previous folder is marked as uploaded (`.synced`), so that
//! the client skips it. If the previous folder was already uploaded or lies in another OUT, the new folder gets a new
//! id. `WANDB_RUN_ID` sets the id. With `WANDB_MODE=online` the folder is uploaded by `wandb sync` when the run ends.

mod earlier;
pub mod environment;
mod log;
mod record;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::metrics::{RolloutPreview, StepMetrics};
use chrono::{SecondsFormat, TimeDelta, Utc};
use earlier::{LoggedStep, WandbRunPart};
use environment::WandbEnvironment;
use log::WandbLogFile;
use record::{UploadedFileKind, WandbRecord};
use reel_input::media::strip::PngImage;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::runs::reporting::preview::{COMPLETIONS_TAG, FRAMES_TAG, Histogram, REWARDS_TAG};

/// The folder in OUT that has one folder for each part of the W&B run.
pub(crate) const FOLDER: &str = "wandb";

/// The inputs for creating the W&B folder of a new process: the output folder, the run to continue, and the metrics
/// up to the checkpoint.
#[derive(Debug)]
pub struct WandbStart<'a> {
    /// The output folder OUT.
    pub out: &'a Path,
    /// The output folder of the run that is resumed, whose W&B steps are copied; OUT for a fresh run.
    pub home: &'a Path,
    /// The step of the checkpoint from which the run resumes; 0 for a fresh run.
    pub step: u64,
    /// Metrics of the reported steps (every `--logging-steps`) up to the checkpoint.
    pub done: &'a [StepMetrics],
    /// The W&B project.
    pub project: &'a str,
    /// The run name; with `None`, `WANDB_NAME` or else the name of OUT is used.
    pub name: Option<&'a str>,
    /// The settings of the run in environment variables.
    pub environment: &'a WandbEnvironment,
    /// The content of run.json.
    pub run: &'a Value,
}

/// Writes the W&B folder of one process of a run (a part of the run).
#[derive(Debug)]
pub struct WandbRunWriter {
    folder: PathBuf,
    log: WandbLogFile,
    /// Number of records that were written.
    records: u64,
    begun: Instant,
    /// Seconds that the earlier processes of the run took.
    before: f64,
}

/// Whether a folder of this name in [`FOLDER`] is a part of a W&B run, complete or not.
pub(crate) fn is_run_folder(name: &str) -> bool {
    WandbRunPart::of(name).is_some() || earlier::is_incomplete(name)
}

impl WandbRunWriter {
    /// Creates the folder of a new part, and copies the steps of the earlier parts into it. The folder gets its final
    /// name when it is complete.
    pub fn create(begin: &WandbStart) -> Result<Self> {
        let (here, there) = (begin.out.join(FOLDER), begin.home.join(FOLDER));
        create_all(&here)?;
        earlier::remove_incomplete_part_folders(&here)?;
        let before = if begin.step > 0 { earlier::newest_run_part(&there)? } else { None };
        let newest = earlier::newest_run_part(&here)?;
        let same = newest.as_ref().filter(|part| begin.step > 0 && !part.is_uploaded(&here));
        let given = begin.environment.run_id.clone();
        let id = given.or_else(|| same.map(|part| part.id.clone())).unwrap_or_else(new_id);
        // `wandb sync` uploads folders in the order of the start times in their names, which are whole seconds. So
        // each part starts at least one second after the previous part.
        let start = newest.map_or_else(Utc::now, |part| Utc::now().max(part.start + TimeDelta::seconds(1)));
        let part = WandbRunPart { start, id };

        let draft = here.join(part.hidden_folder_name());
        create_all(&draft.join("files"))?;
        let log = WandbLogFile::create(&draft.join(part.log_file_name()))?;
        let mut wandb = Self { folder: draft.clone(), log, records: 0, begun: Instant::now(), before: 0.0 };
        wandb.write_header(begin, &part)?;
        wandb.copy_earlier_steps(begin, before.map(|part| (there.join(part.folder_name()), part.log_file_name())))?;
        wandb.log.flush()?;
        let folder = here.join(part.folder_name());
        std::fs::rename(&draft, &folder).map_err(|e| Error::cannot_write(&folder, e))?;
        wandb.log.set_path(folder.join(part.log_file_name()));
        wandb.folder = folder;
        earlier::mark_older_parts_as_uploaded(&here, &part)?;
        Ok(wandb)
    }

    /// The folder of this part, which `wandb sync` uploads.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes the header, the run record and the metadata.
    fn write_header(&mut self, begin: &WandbStart, part: &WandbRunPart) -> Result<()> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let host = host.as_deref().map(str::trim).filter(|host| !host.is_empty());
        let command = begin.run["command"].as_str().unwrap_or_default();
        let out = begin.out.canonicalize().unwrap_or_else(|_| begin.out.to_path_buf());
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        self.add(&WandbRecord::header());
        self.add(&WandbRecord::run(&record::RunInfo {
            id: &part.id,
            project: begin.project,
            name: begin.name.or(begin.environment.name.as_deref()).unwrap_or(&name),
            entity: begin.environment.entity.as_deref(),
            group: begin.environment.group.as_deref(),
            notes: begin.environment.notes.as_deref(),
            tags: &begin.environment.tags,
            job: begin.environment.job_type.as_deref().unwrap_or(command),
            host,
            start: part.start,
            config: &config(begin.run),
        }));
        let metadata = json!({
            "os": std::env::consts::OS,
            "host": host,
            "program": format!("reel {command}"),
            "startedAt": part.start.to_rfc3339_opts(SecondsFormat::Micros, true),
        });
        self.file("wandb-metadata.json", metadata.to_string().as_bytes())?;
        self.add(&WandbRecord::file("wandb-metadata.json", UploadedFileKind::Own));
        Ok(())
    }

    /// Copies the steps of earlier processes into the folder of this process: values and media from the folder of the
    /// last part, or only the metrics for steps that the last part lacks.
    fn copy_earlier_steps(&mut self, begin: &WandbStart, last: Option<(PathBuf, String)>) -> Result<()> {
        let logged = match &last {
            Some((folder, log)) => earlier::read_logged_steps(&folder.join(log), begin.step)?,
            None => BTreeMap::new(),
        };
        let unlogged = begin.done.iter().filter(|line| !logged.contains_key(&line.step));
        let mut steps: BTreeMap<u64, LoggedStep> = unlogged
            .map(|line| {
                (line.step, LoggedStep { media: Vec::new(), values: values(line.step, &line.named_metric_values()) })
            })
            .collect();
        steps.extend(logged);
        for (step, mut seen) in steps {
            if let Some((folder, _)) = &last {
                let mut there = Vec::new();
                for path in seen.media {
                    if self.copy(folder, &path)? {
                        there.push(path);
                    }
                }
                seen.media = there;
            }
            self.before = seen.values.get("_runtime").and_then(Value::as_f64).unwrap_or(self.before);
            self.step_records(step, &seen);
        }
        Ok(())
    }

    /// Adds a step and writes it to the file, without syncing the file to the disk.
    pub fn log_step(&mut self, step: u64, points: &[(String, f64)], preview: Option<&RolloutPreview>) -> Result<()> {
        let mut seen = LoggedStep { media: Vec::new(), values: values(step, points) };
        let now = Utc::now();
        seen.values.insert("_timestamp".into(), json!(now.timestamp_micros() as f64 / 1e6));
        seen.values.insert("_runtime".into(), json!(self.before + self.begun.elapsed().as_secs_f64()));
        if let Some(preview) = preview {
            self.add_preview(step, preview, &mut seen)?;
        }
        self.step_records(step, &seen);
        self.log.flush()
    }

    /// Writes the exit code of the run: 0 on success.
    pub fn finish(mut self, exit_code: u8) -> Result<()> {
        let seconds = self.before + self.begun.elapsed().as_secs_f64();
        self.add(&WandbRecord::exit(exit_code, seconds as u64));
        self.log.flush()
    }

    fn step_records(&mut self, step: u64, seen: &LoggedStep) {
        seen.media.iter().for_each(|path| self.add(&WandbRecord::file(path, UploadedFileKind::Media)));
        self.add(&WandbRecord::history(step, &seen.values));
        self.add(&WandbRecord::summary(&seen.values));
    }

    fn add(&mut self, record: &WandbRecord) {
        self.records += 1;
        self.log.append(record.with_sequence_number(self.records).as_ref());
    }

    /// Adds the rollout preview of a step in the formats of `wandb.Histogram`, `wandb.Html` and `wandb.Image`
    /// (`sdk/data_types`).
    fn add_preview(&mut self, step: u64, preview: &RolloutPreview, seen: &mut LoggedStep) -> Result<()> {
        if !preview.rewards.is_empty() {
            let Histogram { low, limits, counts, .. } = Histogram::new(&preview.rewards);
            let bins: Vec<f64> = [low].into_iter().chain(limits).collect();
            seen.values.insert(REWARDS_TAG.into(), json!({"_type": "histogram", "values": counts, "bins": bins}));
        }
        if !preview.text.is_empty() {
            let value = json!({"_type": "html-file"});
            self.media(step, ("html", COMPLETIONS_TAG, "html"), page(&preview.text).as_bytes(), value, seen)?;
        }
        if let Some(PngImage { width, height, bytes }) = &preview.strip {
            let value = json!({"_type": "image-file", "format": "png", "width": width, "height": height});
            self.media(step, ("images", FRAMES_TAG, "png"), bytes, value, seen)?;
        }
        Ok(())
    }

    fn media(
        &self,
        step: u64,
        (folder, key, ending): (&str, &str, &str),
        bytes: &[u8],
        mut value: Value,
        seen: &mut LoggedStep,
    ) -> Result<()> {
        let hash: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        let path = format!("media/{folder}/{key}_{step}_{}.{ending}", &hash[..20]);
        self.file(&path, bytes)?;
        value["path"] = json!(path);
        value["sha256"] = json!(hash);
        value["size"] = json!(bytes.len());
        seen.values.insert(key.into(), value);
        seen.media.push(path);
        Ok(())
    }

    /// Writes a file below `files/`.
    fn file(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let path = self.folder.join("files").join(path);
        let part = path.with_extension("part");
        create_all(path.parent().unwrap_or(&path))?;
        std::fs::write(&part, bytes)
            .and_then(|()| std::fs::rename(&part, &path))
            .map_err(|e| Error::cannot_write(&path, e))
    }

    /// Copies a media file of an earlier part into this part, by a hard link if possible. Returns false if the file
    /// is missing.
    fn copy(&self, from: &Path, path: &str) -> Result<bool> {
        let (from, to) = (from.join("files").join(path), self.folder.join("files").join(path));
        create_all(to.parent().unwrap_or(&to))?;
        match std::fs::hard_link(&from, &to).or_else(|_| std::fs::copy(&from, &to).map(drop)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::cannot_write(&to, e)),
        }
    }
}

fn create_all(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::cannot_write(folder, e))
}

/// The values of a step by name. `_step` is the step number.
fn values(step: u64, points: &[(String, f64)]) -> Map<String, Value> {
    let own = [("_step".to_string(), json!(step))];
    own.into_iter().chain(points.iter().map(|(name, x)| (name.clone(), json!(x)))).collect()
}

/// Returns the W&B config: the content of run.json without the commands for rewards and reports, which may hold
/// secrets. The options are moved to the top level, where W&B users look for names such as `learning_rate`.
fn config(run: &Value) -> Map<String, Value> {
    let map = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let mut config = map(&run["options"]);
    // The commands are left out, because they may hold secrets.
    for command in ["reward_command", "report_command"] {
        if config.get(command).is_some_and(|command| !command.is_null()) {
            config.shift_remove(command);
        }
    }
    config.extend(map(run).into_iter().filter(|(name, _)| name != "options"));
    config
}

/// Makes an HTML page that shows `text` literally.
fn page(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<!doctype html>\n<meta charset=\"utf-8\">\n<pre style=\"white-space: pre-wrap\">{text}</pre>\n")
}

/// Returns a random run id of 8 letters and digits, in the W&B client's format (`sdk/lib/runid.py`). Training does not
/// depend on this id.
fn new_id() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut n = RandomState::new().hash_one((Utc::now().timestamp_micros(), std::process::id()));
    let mut digit = || {
        let digit = DIGITS[(n % 36) as usize];
        n /= 36;
        char::from(digit)
    };
    (0..8).map(|_| digit()).collect()
}

#[cfg(test)]
mod tests;
