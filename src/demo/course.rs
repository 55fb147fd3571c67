//! The recipe, once: a random model, films, supervised fine-tuning, T-GRPO, and an exam before, between and after.

use std::fs;
use std::ops::DerefMut;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use reel_media::encode::{VideoCodec, VideoEncoding, encode_video};
use reel_media::resize::FrameView;
use reel_model::checkpoint;
use reel_model::init::{InitOptions, Preset, init, init_siglip};
use reel_train::options::{RunOptions, TrainingOptions};
use reel_train::run::{RunSetup, RunSummary};
use reel_train::{GrpoOptions, SftOptions, config_file, grpo, sft};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::clips::{self, Clip, FPS, FRAMES, SIDE, Set};
use super::exam::{Exam, Said};
use super::report::SHOWN;
use crate::common::Common;
use crate::fail::failed;
use crate::media::{MediaFlags, WorkerFlags};
use crate::training::Resolved;
use crate::{model, output, report, trace};

/// A stage of the recipe.
pub struct Stage {
    /// The command, and what its files are called.
    pub name: &'static str,
    /// Its options as `--config` takes them.
    recipe: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    /// What its page shows over its steps: a metric, what it is, and whether by its logarithm.
    pub curves: &'static [(&'static str, &'static str, bool)],
}

/// The recipe.
pub const STAGES: [Stage; 2] = [
    Stage {
        name: "sft",
        recipe: include_str!("sft.toml"),
        title: "Supervised fine-tuning",
        about: "Whole answers to imitate.",
        curves: &[("loss", "loss of each step and its running mean, logarithmic", true)],
    },
    Stage {
        name: "grpo",
        recipe: include_str!("grpo.toml"),
        title: "From rewards",
        about: "Answers alone: eight completions are drawn for each film and rewarded for accuracy and format, and in T-GRPO, where they are no \
                worse than those to the film with its frames shuffled, for that (0.3). The semantic reward runs with a random SigLIP at weight 0: it is computed \
                and counts for nothing.",
        curves: &[
            ("rewards/accuracy", "mean accuracy of the completions of each step", false),
            ("reward", "mean reward", false),
            ("rewards/temporal", "mean temporal reward", false),
            ("entropy", "entropy of the drawn tokens, nats", false),
        ],
    },
];

/// Everything that a course makes in its folder, but for the recipe, by which the folder is known.
const PARTS: [&str; 9] =
    ["model", "siglip", "clips", "sft.jsonl", "rl.jsonl", "held-out.jsonl", "sft", "grpo", "report.html"];

/// The page of what the second stage drew over time.
pub const DRAWN: &str = "grpo/report.html";

/// A folder to follow the recipe in.
pub struct Course<'a> {
    pub folder: PathBuf,
    pub seed: u64,
    /// Fewer steps of each stage than the recipe's.
    pub steps: Option<i64>,
    /// Whether the second stage has the temporal reward, as the recipe says.
    pub temporal: bool,
    pub common: &'a Common,
    pub quiet: bool,
}

/// What came of it.
pub struct Outcome {
    pub seed: u64,
    /// Whether the second stage had the temporal reward.
    pub temporal: bool,
    /// The films of the exams.
    pub clips: Vec<Clip>,
    /// What was said in the exams before, between and after the stages.
    pub said: [Said; 3],
    /// Lines of `metrics.jsonl` of each stage.
    pub steps: [Vec<Value>; 2],
    /// What each stage took.
    pub took: [Duration; 2],
    /// What everything took.
    pub all: Duration,
    pub parameters: u64,
    /// Commands that do by hand what was done.
    pub commands: Vec<String>,
}

impl Outcome {
    /// What the second stage is called.
    pub fn second(&self) -> &'static str {
        if self.temporal { "T-GRPO" } else { "GRPO" }
    }
}

impl Course<'_> {
    /// Makes everything.
    pub fn run(&self) -> Result<Outcome> {
        let begun = Instant::now();
        self.clear()?;
        let made = self.make_models()?;
        let clips = trace::span("clips", || self.make_films())?;
        let device = model::device(self.common)?;
        trace::record_launches(&device, model::dtype(self.common));
        let mut sft_run = self.resolved(SftOptions::default(), "sft.toml")?;
        let mut grpo_run = self.resolved(GrpoOptions::default(), "grpo.toml")?;
        self.fill(&mut sft_run.options, "model", "sft");
        self.fill(&mut grpo_run.options, "sft", "grpo");
        grpo_run.options.siglip = Some(self.path("siglip"));

        let exam = trace::span("questions", || {
            Exam::new(&self.path("model"), &self.path("clips"), &clips, &sft_run.media()?)
        })?;
        let take = |part: &str, when: &str| -> Result<Said> {
            let said = trace::span("exam", || exam.take(&self.path(part), &device))?;
            self.say(format!("{when}: {}", said.line(&clips)));
            Ok(said)
        };
        let before = take("model", "before")?;
        let sft_took = self.stage(&sft_run, sft::run)?;
        let between = take("sft", "after sft")?;
        let grpo_took = self.stage(&grpo_run, grpo::run)?;
        let after = take("grpo", "after grpo")?;
        output::file(&self.path(DRAWN), report::page(&self.path("grpo"))?.as_bytes())?;
        Ok(Outcome {
            seed: self.seed,
            temporal: self.temporal,
            said: [before, between, after],
            steps: [steps(&self.path("sft"))?, steps(&self.path("grpo"))?],
            took: [sft_took, grpo_took],
            all: begun.elapsed(),
            parameters: made,
            commands: self.commands(&clips[0]),
            clips,
        })
    }

    fn path(&self, part: &str) -> PathBuf {
        self.folder.join(part)
    }

    fn say(&self, text: String) {
        if !self.quiet {
            eprintln!("{text}")
        }
    }

    /// Removes what an earlier demo left, and nothing else; begins with the recipe.
    fn clear(&self) -> Result<()> {
        want_demo(&self.folder)?;
        let cannot = |path: &Path, e| {
            failed(path.display(), format!("cannot be replaced: {e}"), "remove it, or give another --out")
        };
        for part in PARTS {
            let part = self.path(part);
            if part.is_dir() {
                fs::remove_dir_all(&part).map_err(|e| cannot(&part, e))?;
            } else if part.exists() {
                fs::remove_file(&part).map_err(|e| cannot(&part, e))?;
            }
        }
        let films = self.path("clips");
        fs::create_dir_all(&films)
            .map_err(|e| failed(films.display(), format!("cannot be made: {e}"), "give another --out"))?;
        for stage in &STAGES {
            let recipe = if self.temporal { stage.recipe.to_string() } else { without_temporal(stage.recipe) };
            output::file(&self.path(&format!("{}.toml", stage.name)), recipe.as_bytes())?;
        }
        Ok(())
    }

    /// A random model to teach and a random SigLIP; the parameters of the first.
    fn make_models(&self) -> Result<u64> {
        let start = self.path("model");
        let options = InitOptions { preset: Preset::Tiny, layers: None, vocab: None, dtype: None, seed: self.seed };
        let made = init(&options, &start)?;
        init_siglip(checkpoint::StoredDType::F32, self.seed, &self.path("siglip"))?;
        self.say(format!("{}: a random model of {:.1} M parameters", start.display(), made.parameters as f64 / 1e6));
        Ok(made.parameters)
    }

    /// Encodes all films and writes a file of rows for each set; returns those held out.
    fn make_films(&self) -> Result<Vec<Clip>> {
        let how = VideoEncoding::new(VideoCodec::best(), (FPS as i32, 1));
        let mut held_out = Vec::new();
        for set in Set::ALL {
            let mut made = clips::make(set, self.seed);
            let mut rows = String::new();
            for clip in &made {
                encode_video(
                    &self.path("clips").join(&clip.file),
                    FrameView::new(&clip.frames, FRAMES, SIDE, SIDE)?,
                    &how,
                )?;
                rows += &row(clip, set).to_string();
                rows.push('\n');
            }
            output::file(&self.path(&format!("{}.jsonl", set.name())), rows.as_bytes())?;
            // Pictures are there for the page alone from here on, and of all films they are hundreds of megabytes.
            made.iter_mut().skip(SHOWN).for_each(|clip| clip.frames = Vec::new());
            held_out = made;
        }
        let [sft, rl, held_out_films] = Set::ALL.map(Set::count);
        self.say(format!(
            "{}: films, {sft} to imitate, {rl} to be rewarded for, {held_out_films} to be examined on",
            self.path("clips").display()
        ));
        Ok(held_out)
    }

    /// The options of a stage: the recipe's over the command's own.
    fn resolved<O: TrainingOptions + DerefMut<Target = RunOptions> + Clone + DeserializeOwned>(
        &self,
        options: O,
        recipe: &str,
    ) -> Result<Resolved<O>> {
        let common =
            Common { seed: Some(self.seed), json: false, quiet: self.quiet, trace: None, ..self.common.clone() };
        let plain =
            Resolved { options, media: MediaFlags::default(), worker: WorkerFlags::default(), common: common.clone() };
        let mut resolved: Resolved<O> = config_file::apply(&plain, &self.path(recipe), |_| false)?;
        resolved.common = common;
        Ok(resolved)
    }

    /// What the recipe leaves open.
    fn fill(&self, options: &mut RunOptions, from: &str, to: &str) {
        options.model = self.path(from).display().to_string();
        options.data = self.path(if to == "sft" { "sft.jsonl" } else { "rl.jsonl" });
        options.media_root = Some(self.folder.clone());
        options.out = self.path(to);
        options.max_steps = self.steps.or(options.max_steps);
    }

    fn stage<O>(
        &self,
        resolved: &Resolved<O>,
        run: impl FnOnce(&RunSetup<O>) -> reel_train::Result<RunSummary>,
    ) -> Result<Duration>
    where
        O: TrainingOptions + DerefMut<Target = RunOptions> + Clone + DeserializeOwned,
    {
        let begun = Instant::now();
        resolved.with_setup(|setup| Ok(run(setup)?))?;
        Ok(begun.elapsed())
    }

    /// The same by hand.
    fn commands(&self, clip: &Clip) -> Vec<String> {
        let (out, seed) = (self.folder.display(), self.seed);
        let run = |stage: &str, from: &str, data: &str, more: &str| {
            format!(
                "reel {stage} --config {out}/{stage}.toml --model {out}/{from} --data {out}/{data}.jsonl --media-root {out} \\\n    \
                 --out {out}/{stage} --seed {seed}{more} --overwrite"
            )
        };
        vec![
            format!("reel init --preset tiny --seed {seed} --out {out}/model"),
            format!("reel init --preset siglip-tiny --seed {seed} --out {out}/siglip"),
            run("sft", "model", "sft", ""),
            run("grpo", "sft", "rl", &format!(" --siglip {out}/siglip")),
            format!("reel report {out}/grpo --out {out}/{DRAWN}"),
            format!(
                "reel generate --model {out}/grpo --video {}/{} --nframes 8 --min-pixels 3136 --max-pixels 3136 \\\n    --prompt \"{}\"",
                self.path("clips").display(),
                clip.file,
                clip.task.question(),
            ),
        ]
    }
}

/// A stage's options without the temporal reward.
fn without_temporal(recipe: &str) -> String {
    let lines = recipe.lines().map(|line| if line == "temporal = true" { "temporal = false" } else { line });
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Refuses a folder that holds anything but a demo, or demos of several seeds.
pub fn want_demo(folder: &Path) -> Result<()> {
    let first_line = STAGES[0].recipe.lines().next().unwrap_or_default();
    let is_demo =
        |folder: &Path| fs::read_to_string(folder.join("sft.toml")).is_ok_and(|recipe| recipe.starts_with(first_line));
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten().peekable();
    if entries.peek().is_none() || is_demo(folder) || entries.any(|entry| is_demo(&entry.path())) {
        return Ok(());
    }
    Err(failed(folder.display(), "holds something that is no demo", "give another --out"))
}

/// A film as a row to learn from.
fn row(clip: &Clip, set: Set) -> Value {
    let film = json!({"type": "video", "video": format!("clips/{}", clip.file)});
    let question = json!({"role": "user", "content": [film, {"type": "text", "text": clip.task.question()}]});
    match set {
        Set::Rl => json!({"prompt": [question], "problem_type": clip.task.problem_type(), "solution": clip.solution()}),
        _ => json!({"messages": [question, {"role": "assistant", "content": clip.completion()}]}),
    }
}

fn steps(run: &Path) -> Result<Vec<Value>> {
    let metrics = run.join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).map_err(|e| output::not_read(&metrics, e))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
