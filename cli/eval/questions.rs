//! The questions of benchmarks, and the fixed protocol by which a model is asked. `reel eval` and evaluations during
//! training use this module, so both ask the same questions in the same way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use reel_eval::predict::SamplingSettings;
use reel_eval::{BenchmarkRow, LoadedBenchmark, Task, load_benchmark, read_subtitles};
use reel_input::MediaOptions;
use reel_input::media::profile::MediaProfile;
use reel_input::media::selection::select_frames;
use reel_input::sampling::SamplingOptions;
use reel_samples::conversations::RowConversations;
use reel_samples::dataset::Dataset;
use reel_samples::prompts::QuestionTemplate;
use reel_support::diagnostic::escape_controls;
use reel_train::options::Recipe;
use serde_json::{Map, Value, json};

use super::results;
use super::shard::Shard;
use crate::fail::{failed, usage_error};
use crate::generate::checked_sampling;
use crate::media::{MediaFlags, media_error_to_usage_error};
use crate::predictor::shortest_decimal;

/// The profile of frame and pixel limits that VideoRFT's evaluations use; the default of `--profile`.
const DEFAULT_PROFILE: &str = "videorft-eval";

/// A benchmark and its rows.
#[derive(Debug)]
pub struct Benchmark {
    pub task: Task,
    pub loaded: LoadedBenchmark,
}

/// How the questions of benchmarks are asked.
#[derive(Debug)]
pub struct EvaluationProtocol {
    /// Folder with the benchmarks' own files; or, for one benchmark, its file.
    pub data: PathBuf,
    /// Folder that the paths of videos are relative to; `None` is the folder of the benchmark's files.
    pub media_root: Option<PathBuf>,
    /// Maximum number of questions of each benchmark that are answered: the first ones.
    pub limit: Option<usize>,
    /// Whether rows that cannot be used are left out; otherwise the first one is an error.
    pub skip_bad_rows: bool,
    /// Whether only the part of a video that the question is about is shown.
    pub clips: bool,
    /// Whether the questions are asked without their videos and images.
    pub text_only: bool,
    /// Whether the prompts have the videos' subtitles.
    pub subtitles: bool,
    /// Whether the tasks' prompts are those of their reference harnesses.
    pub is_reference: bool,
    /// Which recipe's rules apply where papers and code differ.
    pub parity: Recipe,
    /// Frame and pixel options. Without a profile, the evaluation profile is used.
    pub media: MediaFlags,
    pub sampling: SamplingSettings,
}

/// The questions of one benchmark, ready to be asked.
#[derive(Debug)]
pub struct BenchmarkQuestions {
    pub rows: Arc<RowConversations>,
    /// Fingerprint of all rows of the benchmark.
    pub fingerprint: String,
    /// The options that influence the answers, by name.
    pub options: Map<String, Value>,
}

impl EvaluationProtocol {
    /// The protocol of `reel eval` without options: all questions of the benchmarks in `data`, with videos.
    pub fn new(data: &Path, parity: Recipe, media: &MediaFlags, sampling: SamplingSettings) -> Self {
        Self {
            data: data.to_path_buf(),
            media_root: None,
            limit: None,
            skip_bad_rows: false,
            clips: false,
            text_only: false,
            subtitles: false,
            is_reference: false,
            parity,
            media: media.with_default_profile(DEFAULT_PROFILE),
            sampling,
        }
    }

    /// Reads the data of the benchmarks.
    ///
    /// # Errors
    /// A file is missing or belongs to another benchmark; a row cannot be used; all videos are missing.
    pub fn load_benchmarks(&self, tasks: Vec<Task>, quiet: bool) -> Result<Vec<Benchmark>> {
        tasks.into_iter().map(|task| self.load_one(task, quiet)).collect()
    }

    fn load_one(&self, task: Task, quiet: bool) -> Result<Benchmark> {
        let mut loaded = load_benchmark(&task, &self.data, self.media_root.as_deref(), self.skip_bad_rows)?;
        if self.text_only {
            loaded.rows.iter_mut().for_each(BenchmarkRow::remove_media);
        }
        check_videos(&task, &mut loaded, self.skip_bad_rows, quiet)?;
        loaded.rows.truncate(self.limit.unwrap_or(usize::MAX));
        if self.subtitles {
            add_subtitles(&task, &mut loaded, quiet)?;
        }
        self.select_frames(&mut loaded)?;
        Ok(Benchmark { task, loaded })
    }

    /// Applies `--clips`. If a video is a folder of image files, selects its frames by the same rules as in a video
    /// file.
    fn select_frames(&self, loaded: &mut LoadedBenchmark) -> Result<()> {
        let profile = self.media.profile(MediaProfile::Qwen)?;
        let overrides = self.media.limit_overrides(profile)?;
        for clip in loaded.rows.iter_mut().filter_map(|row| row.video.as_mut()) {
            if !self.clips {
                (clip.start, clip.end) = (None, None);
            }
            clip.select_frames(|frames, fps| match frames {
                // A single image is shown whole, because the frame selection rules need at least two frames.
                1 => Ok((vec![0], fps)),
                _ => select_frames(frames as u64, fps, profile, &overrides)
                    .map(|choice| (choice.indices, choice.sample_fps)),
            })
            .map_err(media_error_to_usage_error)?;
        }
        Ok(())
    }

    /// Returns the questions of a benchmark, or of one part if a shard is given. `options` are the options of the
    /// model or server that influence its answers; the protocol's options are added to them.
    ///
    /// # Errors
    /// The shard has no row.
    pub fn questions(
        &self,
        benchmark: &Benchmark,
        media: MediaOptions,
        mut options: Map<String, Value>,
        seed: u64,
        shard: Option<Shard>,
    ) -> Result<BenchmarkQuestions> {
        let Benchmark { task, loaded } = benchmark;
        let rows: Vec<String> =
            loaded.rows.iter().map(|row| Value::Object(row.to_json(task, self.parity)).to_string()).collect();
        let fingerprint = reel_support::files::fingerprint::bytes_fingerprint(rows.join("\n").as_bytes());
        // The rows of other parts become blank lines, so that a row has the same line number in messages for every
        // `--shard`.
        let text: String = rows
            .iter()
            .enumerate()
            .map(
                |(i, row)| {
                    if shard.is_none_or(|shard| shard.contains_row(i)) { format!("{row}\n") } else { "\n".into() }
                },
            )
            .collect();
        if text.trim().is_empty() {
            let what = format!("leaves this part without a row of {}", task.title);
            return Err(usage_error("--shard", what, format!("use at most {} parts", rows.len())));
        }
        let params = &self.sampling.params;
        options.insert("temperature".into(), shortest_decimal(params.temperature));
        options.insert("top_p".into(), shortest_decimal(params.top_p));
        options.insert("repetition_penalty".into(), shortest_decimal(params.repetition_penalty));
        options.insert("parity".into(), json!(self.parity));
        options.insert("benchmark".into(), json!(task.name));
        options.insert("task_version".into(), json!(task.version));
        options.insert("data_files".into(), results::describe_benchmark_data(loaded));
        let given = [
            ("limit", self.limit.map(|limit| json!(limit))),
            ("text_only", self.text_only.then(|| json!(true))),
            ("subtitles", self.subtitles.then(|| json!(true))),
            ("protocol", self.is_reference.then(|| json!(results::REFERENCE_PROTOCOL))),
        ];
        options.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))));
        if let Some(shard) = shard {
            options.insert("shard".into(), json!(shard.to_string()));
        }
        let dataset = Dataset::parse(Path::new(&task.name), text)?;
        // The rows already have complete prompts, so the template only decides how frame times are computed: from the
        // true timestamps.
        let rules = (self.parity, QuestionTemplate::Evaluation);
        let rows = Arc::new(RowConversations::new(dataset, media, &loaded.media_root, rules, seed));
        Ok(BenchmarkQuestions { rows, fingerprint, options })
    }
}

/// Returns the sampling parameters. The default top-p is that of the model cards. The default temperature is 0.01 as in
/// the model cards, or 0.1 as in the scripts with `--parity videorft` or `video-r1`.
///
/// # Errors
/// A parameter is out of its range; the error names its option.
pub fn sampling_settings(parity: Recipe, options: SamplingOptions) -> Result<SamplingSettings> {
    let temperature = Some(if parity.follows_papers() { 0.01 } else { 0.1 });
    let default = SamplingOptions { temperature, top_p: Some(0.001), ..SamplingOptions::default() };
    let max_new_tokens = options.max_new_tokens.unwrap_or(1024);
    Ok(SamplingSettings { params: checked_sampling(options.or(default))?, max_new_tokens, n: 1, stop: Vec::new() })
}

/// Reads the subtitles of all rows. Rows without a file of subtitles are counted in a note, because many videos have no
/// speech.
///
/// # Errors
/// No row has a file of subtitles; a file cannot be read.
fn add_subtitles(task: &Task, loaded: &mut LoadedBenchmark, quiet: bool) -> Result<()> {
    for row in &mut loaded.rows {
        row.subtitles = row.subtitle_file.as_deref().map(read_subtitles).transpose()?;
    }
    let (of, without) = (loaded.rows.len(), loaded.rows.iter().filter(|row| row.subtitles.is_none()).count());
    if without == of {
        let what = format!("is given, but {} has no subtitles of {}", loaded.media_root.display(), task.title);
        return Err(usage_error("--subtitles", what, "leave it out, or put the files where the task file says"));
    }
    if without > 0 && !quiet {
        reel_support::diagnostic::note!("note: {without} of {of} rows of {} have no file of subtitles", task.title);
    }
    Ok(())
}

/// Returns an error if all videos of a benchmark are missing, because `--media-root` is then wrong. If some are
/// missing, prints a warning; with `leave_out`, removes their rows and counts them.
fn check_videos(task: &Task, loaded: &mut LoadedBenchmark, leave_out: bool, quiet: bool) -> Result<()> {
    let root = loaded.media_root.clone();
    let is_missing = |row: &BenchmarkRow| {
        let path = row.video.as_ref().map(|clip| &clip.path).filter(|path| !path.contains("://"));
        path.is_some_and(|path| !root.join(path).exists())
    };
    let of = loaded.rows.iter().filter(|row| row.video.is_some()).count();
    let missing: Vec<&BenchmarkRow> = loaded.rows.iter().filter(|row| is_missing(row)).collect();
    let count = missing.len();
    let Some(first) = missing.first().and_then(|row| Some(row.video.as_ref()?.path.clone())) else { return Ok(()) };
    if count == of {
        let what = format!("has none of the {of} videos of {}; the first is {first}", task.title);
        return Err(failed(root.display(), what, "give their folder as --media-root"));
    }
    if leave_out {
        loaded.rows.retain(|row| !is_missing(row));
        loaded.left_out.insert("video is missing".into(), count);
    } else if !quiet {
        let (root, first) = (root.display(), escape_controls(&first));
        reel_support::diagnostic::note!(
            "warning: {root} lacks the videos of {count} of {of} rows of {}; the first is {first}",
            task.title
        );
    }
    Ok(())
}
