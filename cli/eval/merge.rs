//! `reel eval merge`: joins the predictions of all parts of an evaluation (`--shard`) into one file and scores them.
//! The file has the same bytes as that of a run without `--shard`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_eval::{Extraction, Task};
use serde_json::{Value, json};

use super::page::{self, EvaluationPageFlags};
use super::results::{self, predictions_file, read_run_settings, tasks_of_output_folder};
use super::shard::Shard;
use crate::common::CommonOptions;
use crate::fail::failed;
use crate::media::WorkerFlags;
use crate::output;

/// Join the parts of runs with --shard in a folder, and score them. The files are those of a run without --shard.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  printf '%s' '[{\"video ID\": \"a\", \"Question ID\": 1, \"Question Type\": \"TA\",
    \"Question\": \"Who?\", \"Options\": {\"A\": \"he\", \"B\": \"she\"},
    \"Answer\": \"B\"}]' > test_Video-Holmes.json
  reel eval --model tiny --benchmark videoholmes --data . --out parts \\
    --max-new-tokens 8 --text-only --shard 0/1
  reel eval merge parts")]
pub struct MergeArgs {
    /// Folder with the parts
    #[arg(value_name = "OUT")]
    folder: PathBuf,
    /// Benchmarks, or task files [default: the benchmarks that the folder has]
    #[arg(long, value_name = "NAME")]
    benchmark: Option<String>,
    /// How the answer is found in an output: tags or lenient
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "RULE")]
    extraction: Extraction,
    /// Replace joined files of an earlier merge
    #[arg(long)]
    overwrite: bool,
    /// Folder that the paths of videos are relative to, for the page [default: the folder that the run used]
    #[arg(long, value_name = "DIR")]
    media_root: Option<PathBuf>,
    #[command(flatten)]
    page: EvaluationPageFlags,
}

impl MergeArgs {
    pub(super) fn run(&self, common: &CommonOptions) -> Result<()> {
        let mut scored = Vec::new();
        let tasks = tasks_of_output_folder(&self.folder, self.benchmark.as_deref())?;
        for task in &tasks {
            let joined = predictions_file(&self.folder, &task.name);
            match (parts(&self.folder, task)?, joined.exists()) {
                // A run without `--shard` has no parts; its answers are scored without joining.
                (parts, true) if parts.is_empty() => {}
                (_, true) if !self.overwrite => {
                    let help = "give --overwrite to join the parts again";
                    return Err(failed(joined.display(), "already exists beside the files of the shards", help));
                }
                (parts, _) if parts.is_empty() => {
                    let what = format!("has no part of {}", task.title);
                    let help = "run reel eval with --shard and this folder as --out";
                    return Err(failed(self.folder.display(), what, help));
                }
                (parts, _) => join(&parts, &joined)?,
            }
            scored.push(results::score_and_write(task, &self.folder, self.extraction, common.quiet)?);
        }
        let frames = self.page.frame_source(self.media_root.as_deref(), &WorkerFlags::default(), common)?;
        page::write_evaluation_page(
            &page::evaluation_page_path(&self.folder),
            &page::read_evaluation_run(&self.folder, &tasks)?,
            None,
            &frames,
            common,
        )?;
        results::print_benchmark_reports(&scored, common)?;
        results::error_if_rows_failed(&scored, &self.folder)
    }
}

/// One part of an evaluation (`--shard`) whose predictions are complete.
struct Part {
    file: PathBuf,
    settings: Value,
}

/// Returns the parts of a benchmark in order; empty if there are none.
fn parts(folder: &Path, task: &Task) -> Result<Vec<Part>> {
    let entries = std::fs::read_dir(folder).map_err(|e| output::cannot_read(folder, e))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let shard_of = |name: String| {
        let part = name.strip_prefix(&format!("{}.", task.name))?;
        let part = part.strip_suffix(".partial").unwrap_or(part).strip_suffix(".jsonl")?;
        let (index, count) = part.split_once("-of-")?;
        format!("{index}/{count}").parse::<Shard>().ok()
    };
    let mut found: Vec<Shard> = names.filter_map(shard_of).collect();
    found.sort_by_key(|shard| (shard.count, shard.index));
    found.dedup();
    let Some(count) = found.first().map(|shard| shard.count) else { return Ok(Vec::new()) };
    if let Some(other) = found.iter().find(|shard| shard.count != count) {
        let (title, parts) = (&task.title, other.count);
        let what = format!("has parts of {title} from a run with {count} parts and from one with {parts} parts");
        return Err(failed(folder.display(), what, "keep those of one run"));
    }
    let mut parts: Vec<Part> = Vec::new();
    for index in 0..count {
        let shard = Shard { index, count };
        let file = shard.predictions_file(folder, &task.name);
        if !file.exists() {
            let what = format!("is missing or not complete: part {shard} of {}", task.title);
            return Err(failed(file.display(), what, format!("run this part with --shard {shard} --resume")));
        }
        let mut settings = read_run_settings(&file)?;
        settings["options"].as_object_mut().map(|options| options.shift_remove("shard"));
        if let Some(first) = parts.first() {
            refuse_other_settings(&file, &settings, first)?;
        }
        parts.push(Part { file, settings });
    }
    Ok(parts)
}

/// Refuses a part that was made with other settings than the first part.
fn refuse_other_settings(file: &Path, settings: &Value, first: &Part) -> Result<()> {
    let without_rows = |settings: &Value| {
        let mut settings = settings.clone();
        // The video folder may be different on each machine, so it is not compared.
        (settings["rows"], settings["media_root"]) = (Value::Null, Value::Null);
        settings
    };
    let (own, of_first) = (without_rows(settings), without_rows(&first.settings));
    if own == of_first {
        return Ok(());
    }
    let fields = own.as_object().into_iter().flatten().filter(|(name, _)| *name != "options");
    let mut differing: Vec<String> =
        fields.filter(|(name, value)| of_first.get(*name) != Some(value)).map(|(name, _)| name.clone()).collect();
    for (name, value) in own["options"].as_object().into_iter().flatten() {
        if of_first["options"].get(name) != Some(value) {
            differing.push(format!("--{}", name.replace('_', "-")));
        }
    }
    let what = format!("was made with a different {} than {}", differing.join(", "), first.file.display());
    Err(failed(file.display(), what, "run all parts with the same settings"))
}

/// Writes the rows of all parts in the order of the benchmark, and the settings file of the joined run.
fn join(parts: &[Part], joined: &Path) -> Result<()> {
    let mut text = Vec::new();
    let mut readers = Vec::new();
    for part in parts {
        readers.push((part, BufReader::new(File::open(&part.file).map_err(|e| output::cannot_read(&part.file, e))?)));
    }
    let mut rows = 0;
    loop {
        let count = readers.len();
        let (part, reader) = &mut readers[rows % count];
        let read = reader.read_until(b'\n', &mut text).map_err(|e| output::cannot_read(&part.file, e))?;
        if read == 0 {
            break;
        }
        rows += 1;
    }
    // Part I of N has the rows with index ≡ I (mod N), so the rows are read from the parts in turn. When the first
    // part has no further row, the other parts must have ended as well; this loop checks their row counts.
    for (index, part) in parts.iter().enumerate() {
        let expected = (rows + parts.len() - 1 - index) / parts.len();
        if part.settings["rows"].as_u64() != Some(expected as u64) {
            let what = format!("does not have the {expected} rows that part {index} of {} must have", parts.len());
            return Err(failed(part.file.display(), what, "run the part again with --overwrite"));
        }
    }
    let mut settings = parts[0].settings.clone();
    settings["rows"] = json!(rows);
    let mut settings = serde_json::to_vec_pretty(&settings)?;
    settings.push(b'\n');
    let name = joined.file_name().unwrap_or_default().to_string_lossy();
    output::write_file(&joined.with_file_name(format!("{name}.run.json")), &settings)?;
    output::write_file(joined, &text)
}
