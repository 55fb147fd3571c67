//! The HTML page of an evaluation, which `reel eval`, `reel eval merge` and `reel report` write. The page is made only
//! from the files in the output folder, so the three commands write the same bytes.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_eval::{BenchmarkReport, Task, overall_score};
use reel_support::diagnostic::input;
use reel_tools::report::evaluation::{
    AnsweredRow, BenchmarkAnswers, EvaluationRun, FrameSource, FrameStrips, evaluation_page_html,
};
use serde_json::Value;

use super::results::{predictions_file, read_run_settings, refuse_rows_of_other_benchmark};
use crate::common::CommonOptions;
use crate::fail::failed;
use crate::media::WorkerFlags;
use crate::{lines, output};

/// File name of the page in the output folder of a run.
pub const REPORT_PAGE_FILE: &str = "report.html";
/// Maximum number of videos that are decoded at the same time.
const MAX_DECODERS: usize = 8;
/// Allowed difference between two means whose sums were computed in different orders.
const ROUNDING: f64 = 1e-6;

/// Options for the frames in the page of an evaluation.
#[derive(Args, Clone, Debug)]
pub struct EvaluationPageFlags {
    /// Maximum MiB of frames in the page (report.html), those of wrong answers first; 0 leaves them out [default: 16]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(0..=1024))]
    frames_mib: Option<u64>,
}

/// MiB of frames in the page if `--frames-mib` is not given.
const DEFAULT_FRAMES_MIB: u64 = 16;

impl EvaluationPageFlags {
    /// Returns true if an option for the frames of the page is given.
    pub fn has_frame_options(&self) -> bool {
        self.frames_mib.is_some()
    }

    /// Returns the source of the frames for the page. `media_root` replaces the media folder in the run's settings.
    pub fn frame_source(
        &self,
        media_root: Option<&Path>,
        worker: &WorkerFlags,
        common: &CommonOptions,
    ) -> Result<FrameSource> {
        let threads = common.threads()?;
        let mut decoder = worker.decode_worker(common)?;
        let decoders = threads.clamp(1, MAX_DECODERS);
        decoder.threads = (threads / decoders).max(1);
        let media_root = media_root.map(Path::to_path_buf);
        let frames_mib = self.frames_mib.unwrap_or(DEFAULT_FRAMES_MIB);
        Ok(FrameSource { media_root, decoder, threads: decoders, max_bytes: (frames_mib as usize) << 20 })
    }
}

/// Reads the answers, scores and settings of a run.
///
/// # Errors
/// A file is missing or damaged, has the answers of another benchmark, or the scores are not those of the answers.
pub fn read_evaluation_run(folder: &Path, tasks: &[Task]) -> Result<EvaluationRun> {
    let benchmarks = tasks.iter().map(|task| read_benchmark(folder, task)).collect::<Result<_>>()?;
    Ok(EvaluationRun { name: folder.display().to_string(), benchmarks })
}

fn read_benchmark(folder: &Path, task: &Task) -> Result<BenchmarkAnswers> {
    let file = predictions_file(folder, &task.name);
    let rows = lines::parse_json_lines(&file, AnsweredRow::from_json_line)?;
    refuse_rows_of_other_benchmark(&file, task, rows.iter().map(|(line, answer)| (*line, &answer.prediction)))?;
    let answers: Vec<AnsweredRow> = rows.into_iter().map(|(line, answer)| AnsweredRow { line, ..answer }).collect();
    let scores = folder.join(format!("{}.json", task.name));
    let help = format!("score the answers again with reel eval merge {}", folder.display());
    let wrong = |what: String| failed(scores.display(), what, &help);
    let bytes = match input::read_file(&scores, input::MAX_CONFIG_BYTES) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(wrong("does not exist".into())),
        read => read.map_err(|e| output::cannot_read(&scores, e))?,
    };
    let report: BenchmarkReport =
        serde_json::from_slice(&bytes).map_err(|e| wrong(format!("is not a scores file of a benchmark: {e}")))?;
    let overall = overall_score(task, answers.iter().map(|answer| &answer.prediction), report.extraction);
    if report.benchmark != task.name || report.n != answers.len() || (overall - report.overall).abs() > ROUNDING {
        return Err(wrong(format!("does not have the scores of the answers in {}", file.display())));
    }
    let settings = read_run_settings(&file)?;
    Ok(BenchmarkAnswers { task: task.clone(), report, settings, answers })
}

/// Writes the page of a run. If `against` is given, the page shows this second run over the same questions beside the
/// first.
pub fn write_evaluation_page(
    page: &Path,
    run: &EvaluationRun,
    against: Option<&EvaluationRun>,
    source: &FrameSource,
    common: &CommonOptions,
) -> Result<()> {
    let shows_progress = !common.quiet && !common.json && output::stderr_is_terminal();
    let progress = |count: usize| {
        if shows_progress {
            let _ = write!(std::io::stderr(), "\rframes for {}: {count} videos", page.display());
            let _ = std::io::stderr().flush();
        }
    };
    let frames = FrameStrips::load(run, source, progress);
    if shows_progress {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    let html = evaluation_page_html(run, against, &frames)?;
    output::write_file(page, html.as_bytes())
}

/// Returns true if `reel eval` wrote the folder: it then has a settings file of predictions. An unreadable settings
/// file also counts, so that a later error names it.
pub fn is_evaluation(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let command = |name: String| {
        let bytes = input::read_file(folder.join(name), input::MAX_CONFIG_BYTES).ok()?;
        let settings: Value = serde_json::from_slice(&bytes).ok()?;
        Some(settings["command"] == "eval")
    };
    let settings: Vec<String> = names.filter(|name| name.ends_with(".jsonl.run.json")).collect();
    settings.into_iter().any(|name| command(name) != Some(false))
}

/// Returns the path of the evaluation page in the folder `out`.
pub fn evaluation_page_path(out: &Path) -> PathBuf {
    out.join(REPORT_PAGE_FILE)
}
