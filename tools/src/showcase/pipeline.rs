//! The steps of the demo, in the order in which they run:
//!
//! ```text
//! prepare   clear the folder, write sft.toml and grpo.toml, create a random model and a random SigLIP,
//!           encode the clips, write list.jsonl, rl.jsonl, benchmarks/ and tool-rows/
//! run       curate list.jsonl, evaluate(model), SFT on curated/dataset.jsonl, evaluate(sft), GRPO on rl.jsonl,
//!           evaluate(grpo), SFT on tool-rows/sft.jsonl, evaluate(tools), training.html, eval/report.html
//! ```
//!
//! The caller passes a function that runs command lines (`reel curate`, `reel eval`, `reel report`), and functions for
//! the three training runs. These read their options from the folder's .toml files, as `reel sft --config` does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::curate::{CurationSummary, DATASET_FILE, SUMMARY_FILE};
use crate::error::{Error, Result};
use crate::measure::trace;
use rayon::prelude::*;
use reel_input::config::Family;
use reel_input::media::encode::{VideoCodec, VideoEncodingOptions, encode_video};
use reel_input::media::frames::FrameView;
use reel_input::tensor_file::StoredDType;
use reel_model::init::{InitOptions, Preset, init_model_folder, init_siglip};
use reel_support::diagnostic::input;
use reel_support::files::{FOLDER_LOCK_FILE, FolderLock};
use reel_train::options::RunOptions;
use serde_json::{Value, json};

use crate::showcase::benchmarks::{CLIP_FOLDER, ClipBenchmark, shuffled_clips, shuffled_file};
use crate::showcase::clips::flashes::FlashClip;
use crate::showcase::clips::{self, CLIP_FPS, CLIP_FRAMES, CLIP_SIDE, Clip, ClipSet, ClipTask, shuffle_frames};
use crate::showcase::command_line::CommandLine;
use crate::showcase::endpoint::StandInEndpoint;
use crate::showcase::evaluation::EvaluationAnswers;
use crate::showcase::tool_answers::ToolOutcome;
use crate::showcase::tool_rows::{TOOL_ROWS_FOLDER, TOOL_STAGE};
use crate::showcase::write;

/// One of the three training stages of the demo.
struct TrainingStage {
    /// The name of the stage's files: `sft`, `grpo` or `tools`.
    name: &'static str,
    /// The stage's options as TOML text, in the format of the file for `--config`.
    config: &'static str,
}

/// The training stages in their order.
const TRAINING_STAGES: [TrainingStage; 3] = [
    TrainingStage { name: "sft", config: include_str!("sft.toml") },
    TrainingStage { name: "grpo", config: include_str!("grpo.toml") },
    TrainingStage { name: TOOL_STAGE, config: include_str!("tools.toml") },
];

/// The file of the questions that are curated, in the demo's folder.
pub const QUESTION_LIST_FILE: &str = "list.jsonl";
/// The folder of the curation, in the demo's folder.
pub const CURATION_FOLDER: &str = "curated";
/// The folder of the task files and data of the evaluation, in the demo's folder.
pub const BENCHMARK_FOLDER: &str = "benchmarks";
/// The folder of the evaluations, in the demo's folder.
pub const EVALUATION_FOLDER: &str = "eval";

/// Names of all files and folders that this or an earlier version of the demo writes into its folder, except the .toml
/// files. The .toml files are not removed, because sft.toml shows that the folder belongs to a demo.
const PARTS: [&str; 16] = [
    "model",
    "siglip",
    CLIP_FOLDER,
    QUESTION_LIST_FILE,
    CURATION_FOLDER,
    "rl.jsonl",
    BENCHMARK_FOLDER,
    EVALUATION_FOLDER,
    "sft",
    "grpo",
    TOOL_ROWS_FOLDER,
    TOOL_STAGE,
    "training.html",
    "report.html",
    "sft.jsonl",
    "held-out.jsonl",
];

/// The path of the curation's page, relative to the demo's folder.
pub const CURATION_PAGE: &str = "curated/report.html";
/// The path of the page of all training runs, relative to the demo's folder.
pub const TRAINING_PAGE: &str = "training.html";
/// The path of the page of the evaluations after SFT and after GRPO, relative to the demo's folder.
pub const EVALUATION_PAGE: &str = "eval/report.html";

/// The models that are evaluated, as (sub-folder of the demo's folder, when in the demo it is evaluated).
const EVALUATED: [(&str, &str); 3] = [("model", "before"), ("sft", "after SFT"), ("grpo", "after GRPO")];

/// The demo with one seed, in one folder.
pub struct Demo {
    /// The output folder.
    pub folder: PathBuf,
    /// The seed of weights, clips and sampling.
    pub seed: u64,
    /// The family of the model.
    pub family: Family,
    /// Number of held-out clips, at least 1.
    pub held_out: usize,
    /// Number of steps of each training stage; `None` uses the number in the stage's .toml file.
    pub steps: Option<i64>,
    /// Whether the GRPO stage has the temporal reward (T-GRPO).
    pub temporal: bool,
    /// Whether no progress is printed on stderr.
    pub quiet: bool,
}

/// A demo that is ready for training: its models, clips and data files are written.
pub struct PreparedDemo {
    started: Instant,
    /// Number of parameters of the model.
    parameters: u64,
    /// The held-out clips, without their frames.
    held_out: Vec<Clip>,
    /// The held-out clips of the third stage.
    flashes: Vec<FlashClip>,
}

/// The results of a demo.
pub struct DemoOutcome {
    /// The seed of weights, clips and sampling.
    pub seed: u64,
    /// Whether the GRPO stage had the temporal reward.
    pub temporal: bool,
    /// The held-out clips.
    pub clips: Vec<Clip>,
    /// The answers to the held-out clips before training, after SFT and after GRPO.
    pub answers: [EvaluationAnswers; 3],
    /// The funnel of the curation: how many rows were kept, rejected or failed.
    pub curation: CurationSummary,
    /// The duration of each of the first two training stages.
    pub took: [Duration; 2],
    /// The results of the third stage.
    pub tools: ToolOutcome,
    /// The duration of the whole demo.
    pub all: Duration,
    /// Number of parameters of the model.
    pub parameters: u64,
    /// Shell commands that repeat the demo step by step with the same results. The shown curation finds all answers in
    /// its tables, so it asks no endpoint.
    pub commands: Vec<String>,
}

impl DemoOutcome {
    /// The name of the second training stage: GRPO, or T-GRPO with the temporal reward.
    pub fn second_stage_name(&self) -> &'static str {
        if self.temporal { "T-GRPO" } else { "GRPO" }
    }
}

impl Demo {
    /// The size of the model.
    pub(crate) fn preset(&self) -> Preset {
        match self.family {
            Family::Qwen25Vl => Preset::Tiny,
            Family::Qwen3Vl => Preset::Qwen3Tiny,
        }
    }

    /// The pixels of a frame: 2 × 2 vision tokens.
    pub(crate) fn frame_pixels(&self) -> u64 {
        4 * self.family.token_pixels()
    }

    /// Writes models, clips and data files; replaces an earlier demo in the folder.
    ///
    /// # Errors
    /// The folder holds other files than a demo, a file cannot be written, or a clip cannot be encoded.
    pub fn prepare(&self) -> Result<PreparedDemo> {
        let started = Instant::now();
        self.prepare_folder()?;
        let parameters = self.make_models()?;
        let held_out = trace::span("clips", || self.make_clips())?;
        let flashes = trace::span("clips", || self.make_tool_rows())?;
        Ok(PreparedDemo { started, parameters, held_out, flashes })
    }

    /// Curates the data set, trains in three stages, and evaluates before, between and after them.
    ///
    /// `command` must run a command line without printing. `sft`, `grpo` and `tools` must run the training commands,
    /// with the options of the stages' .toml files after [`Demo::set_paths_and_steps`] has completed them.
    ///
    /// # Errors
    /// A command or training fails, or a file cannot be read or written.
    pub fn run<E: From<Error>>(
        &self,
        prepared: PreparedDemo,
        command: impl Fn(&CommandLine) -> std::result::Result<(), E>,
        sft: impl FnOnce() -> std::result::Result<(), E>,
        grpo: impl FnOnce() -> std::result::Result<(), E>,
        tools: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<DemoOutcome, E> {
        let PreparedDemo { started, parameters, held_out, flashes } = prepared;
        let endpoint = StandInEndpoint::start()?;
        trace::span("curation", || command(&self.curate_command(&endpoint.url)))?;
        let curation = self.curation_summary()?;
        let (rows, kept, rejected) = (curation.rows, curation.kept, curation.rejected);
        let folder = self.path_in_folder(CURATION_FOLDER);
        self.progress(format!("{}: {kept} of {rows} chains of thought kept, {rejected} rejected", folder.display()));
        let evaluate = |index: usize| -> std::result::Result<EvaluationAnswers, E> {
            let (model, when) = EVALUATED[index];
            trace::span("evaluation", || command(&self.eval_command(model)))?;
            let answers = EvaluationAnswers::read(&self.evaluation_folder(model), &held_out)?;
            self.progress(format!("{when}: {}", answers.summary(&held_out)));
            Ok(answers)
        };
        let before = evaluate(0)?;
        let started_sft = Instant::now();
        sft()?;
        let sft_took = started_sft.elapsed();
        let between = evaluate(1)?;
        let started_grpo = Instant::now();
        grpo()?;
        let grpo_took = started_grpo.elapsed();
        let after = evaluate(2)?;
        let tools = self.run_tool_stage(&flashes, &command, tools)?;
        command(&self.training_page_command())?;
        command(&self.evaluation_page_command())?;
        let asked = &held_out[0];
        let video = self.path_in_folder(CLIP_FOLDER).join(&asked.file);
        Ok(DemoOutcome {
            seed: self.seed,
            temporal: self.temporal,
            answers: [before, between, after],
            curation,
            took: [sft_took, grpo_took],
            tools,
            all: started.elapsed(),
            parameters,
            commands: self.shown_commands(&endpoint.url, &video, asked.task.question()),
            clips: held_out,
        })
    }

    /// The path of a file or folder inside the demo's folder.
    pub fn path_in_folder(&self, part: &str) -> PathBuf {
        self.folder.join(part)
    }

    /// Sets the options that a .toml file of the demo leaves open: paths and steps. The stage (`sft`, `grpo` or
    /// `tools`) starts from the model in the demo's sub-folder `from`.
    pub fn set_paths_and_steps(&self, options: &mut RunOptions, from: &str, stage: &str) {
        options.model = self.path_in_folder(from).display().to_string();
        let (data, media_root) = self.data_and_media_root(stage);
        (options.data, options.media_root) = (data, Some(media_root));
        options.out = self.path_in_folder(stage);
        options.max_steps = self.steps.or(options.max_steps);
    }

    /// The data file of a training stage, and the folder that the paths in it are relative to.
    pub(crate) fn data_and_media_root(&self, stage: &str) -> (PathBuf, PathBuf) {
        let (data, media_root) = match stage {
            "sft" => (format!("{CURATION_FOLDER}/{DATASET_FILE}"), self.folder.clone()),
            TOOL_STAGE => (format!("{TOOL_ROWS_FOLDER}/sft.jsonl"), self.path_in_folder(TOOL_ROWS_FOLDER)),
            _ => ("rl.jsonl".into(), self.folder.clone()),
        };
        (self.path_in_folder(&data), media_root)
    }

    pub(crate) fn progress(&self, text: String) {
        if !self.quiet {
            eprintln!("{text}")
        }
    }

    /// Removes the files of an earlier demo and no other files, and writes the configuration file (.toml) of each
    /// stage.
    fn prepare_folder(&self) -> Result<()> {
        check_output_folder(&self.folder)?;
        let cannot = |path: &Path, what: &str, e: std::io::Error, help: &str| {
            Error::failed(path.display().to_string(), format!("cannot be {what}: {e}"), help)
        };
        for part in PARTS {
            let part = self.path_in_folder(part);
            let removed = match (part.is_dir(), part.exists()) {
                (true, _) => fs::remove_dir_all(&part),
                (false, true) => fs::remove_file(&part),
                (false, false) => Ok(()),
            };
            removed.map_err(|e| cannot(&part, "replaced", e, "remove it, or give another --out"))?;
        }
        let clips = self.path_in_folder(CLIP_FOLDER);
        fs::create_dir_all(&clips).map_err(|e| cannot(&clips, "created", e, "give another --out"))?;
        for stage in &TRAINING_STAGES {
            let config = if self.temporal { stage.config.to_string() } else { without_temporal(stage.config) };
            // The files have the pixels of a frame for Qwen2.5-VL.
            let config = config.replace("3136", &self.frame_pixels().to_string());
            let config = config.replace("56 x 56", &format!("{0} x {0}", 2 * self.family.token_side()));
            write(&self.path_in_folder(&format!("{}.toml", stage.name)), &config)?;
        }
        Ok(())
    }

    /// Writes a random model to train and a random SigLIP; returns the model's number of parameters.
    fn make_models(&self) -> Result<u64> {
        let model = self.path_in_folder("model");
        let options = InitOptions { preset: self.preset(), layers: None, vocab: None, dtype: None, seed: self.seed };
        let made = init_model_folder(&options, &model)?;
        init_siglip(StoredDType::F32, self.seed, &self.path_in_folder("siglip"))?;
        let millions = made.parameters as f64 / 1e6;
        self.progress(format!("{}: a model of {millions:.1} M parameters with random weights", model.display()));
        Ok(made.parameters)
    }

    /// Encodes all clips and writes the list for curation, the data of GRPO and the benchmarks; returns the held-out
    /// clips.
    fn make_clips(&self) -> Result<Vec<Clip>> {
        let encoding = VideoEncodingOptions::new(VideoCodec::best_available_codec(), (CLIP_FPS as i32, 1));
        let folder = self.path_in_folder(CLIP_FOLDER);
        let encode = |file: &str, frames: &[u8]| -> Result<()> {
            let frames = FrameView::new(frames, CLIP_FRAMES, CLIP_SIDE, CLIP_SIDE)?;
            encode_video(&folder.join(file), frames, &encoding)
        };
        // Draws and encodes clips on all cores. The frames of all clips would take two gigabytes, so each clip is
        // drawn right before it is encoded, and only the first `kept` clips keep their frames.
        let make_all = |count: usize, kept: usize, draw: &(dyn Fn(usize) -> Clip + Sync)| -> Result<Vec<Clip>> {
            let make = |i: usize| {
                let clip = draw(i);
                encode(&clip.file, &clip.frames)?;
                Ok(if i < kept { clip } else { Clip { frames: Vec::new(), ..clip } })
            };
            (0..count).into_par_iter().map(make).collect()
        };
        let make_set =
            |set: ClipSet, kept: usize| make_all(self.clip_count(set), kept, &|i| clips::make_clip(set, i, self.seed));
        let mut curated = make_set(ClipSet::Sft, 0)?;
        curated.extend(make_all(clips::GREY_CLIP_COUNT, 0, &|i| clips::make_grey_clip(i, self.seed))?);
        let rl = make_set(ClipSet::Rl, 0)?;
        let mut held_out = make_set(ClipSet::HeldOut, self.held_out)?;
        let shuffled: Vec<&Clip> = shuffled_clips(&held_out).collect();
        make_all(shuffled.len(), 0, &|i| {
            let frames = shuffle_frames(&shuffled[i].frames, self.seed, i as u64);
            Clip { file: shuffled_file(shuffled[i]), frames, ..shuffled[i].clone() }
        })?;
        held_out.iter_mut().for_each(|clip| clip.frames = Vec::new());
        let lines = |rows: Vec<Value>| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
        let listed = curated.iter().zip(1..).map(|(clip, id)| list_row(clip, id)).collect();
        write(&self.path_in_folder(QUESTION_LIST_FILE), &lines(listed))?;
        write(&self.path_in_folder("rl.jsonl"), &lines(rl.iter().map(prompt_row).collect()))?;
        for benchmark in ClipBenchmark::ALL {
            benchmark.write(&self.path_in_folder(BENCHMARK_FOLDER), &held_out)?;
        }
        self.progress(format!(
            "{}: {} clips to curate, {} for GRPO, {} held out",
            folder.display(),
            curated.len(),
            rl.len(),
            held_out.len()
        ));
        Ok(held_out)
    }

    fn clip_count(&self, set: ClipSet) -> usize {
        if set == ClipSet::HeldOut { self.held_out } else { set.default_clip_count() }
    }

    /// Reads the summary that the curation has written.
    fn curation_summary(&self) -> Result<CurationSummary> {
        let file = self.path_in_folder(CURATION_FOLDER).join(SUMMARY_FILE);
        let text = input::read_text(&file, input::MAX_CONFIG_BYTES).map_err(|e| Error::cannot_read(&file, &e))?;
        serde_json::from_str(&text).map_err(|e| {
            let what = format!("is not the summary of a curation: {e}");
            Error::failed(file.display().to_string(), what, "run the demo again")
        })
    }
}

/// Turns off the temporal reward in the options of a stage.
fn without_temporal(config: &str) -> String {
    let lines = config.lines().map(|line| if line == "temporal = true" { "temporal = false" } else { line });
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Locks the output folder of a demo, and checks that it may be overwritten ([`check_output_folder`]).
///
/// # Errors
/// Another process writes to the folder, the folder cannot be created, or it holds other files than a demo.
pub fn lock_output_folder(folder: &Path) -> Result<FolderLock> {
    let lock = FolderLock::acquire(folder).map_err(|e| Error::cannot_lock_folder(folder, e))?;
    check_output_folder(folder)?;
    Ok(lock)
}

/// Checks that a folder is new, empty, or holds a demo (or demos of several seeds) and may be overwritten.
///
/// # Errors
/// The folder holds other files than a demo.
pub fn check_output_folder(folder: &Path) -> Result<()> {
    // In every version of the demo, the first line of sft.toml ends with this text.
    let of_a_demo = |config: String| config.lines().next().is_some_and(|line| line.ends_with("(`reel sft --config`)."));
    let is_demo = |folder: &Path| fs::read_to_string(folder.join("sft.toml")).is_ok_and(of_a_demo);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut entries = entries.filter(|entry| entry.file_name() != FOLDER_LOCK_FILE).peekable();
    if entries.peek().is_none() || is_demo(folder) || entries.any(|entry| is_demo(&entry.path())) {
        return Ok(());
    }
    let what = "holds files that are not an earlier demo";
    Err(Error::failed(folder.display().to_string(), what, "give another --out"))
}

/// A clip as a row of the list for curation.
fn list_row(clip: &Clip, id: usize) -> Value {
    // These questions have no options. The type `free-form` compares an answer in words as a whole.
    let kind = if clip.task == ClipTask::Count { "numerical" } else { "free-form" };
    json!({"problem_id": id, "problem": clip.task.question(), "data_type": "video", "problem_type": kind,
        "solution": clip.solution(), "path": format!("{CLIP_FOLDER}/{}", clip.file), "data_source": clip.data_source()})
}

/// A clip as a row of the data for GRPO.
fn prompt_row(clip: &Clip) -> Value {
    let video = json!({"type": "video", "video": format!("{CLIP_FOLDER}/{}", clip.file)});
    let question = json!({"role": "user", "content": [video, {"type": "text", "text": clip.task.question()}]});
    json!({"prompt": [question], "problem_type": clip.task.problem_type(), "solution": clip.solution()})
}
