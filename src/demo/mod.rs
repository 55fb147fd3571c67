//! `reel demo`: a tiny model learns to answer questions about films, from nothing to a page of results.

mod chart;
mod clips;
mod exam;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use reel_media::encode::{Codec, Encoding, encode};
use reel_media::profile::{Overrides, Profile};
use reel_media::resize::FrameView;
use reel_media::worker::Decoder;
use reel_model::init::{InitOptions, Preset, init};
use reel_model::input::{MediaOptions, SecondPerGrid};
use reel_runtime::DType;
use reel_train::SftOptions;
use reel_train::options::{RunOptions, Scheduler};
use reel_train::sft::{self, Setup};
use serde_json::{Value, json};

use crate::common::Common;
use crate::fail::failed;
use crate::{interrupt, model, output, trace};
use clips::{Clip, FPS, FRAMES, SIDE, Task};
use exam::Exam;
use report::{Report, Step, tally};

/// Films to learn from.
const TRAIN: usize = 288;
/// Films to be examined on.
const HELD_OUT: usize = 48;
/// Pixels of a frame as the model sees it: two merged patches high and wide.
const PIXELS: u64 = 56 * 56;
const BATCH: usize = 12;
const STEPS: i64 = 1100;
const LEARNING_RATE: f64 = 1e-3;

/// Teach a tiny model to answer questions about films, and show it: a few minutes from nothing to a page of results.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel demo --out demo")]
pub struct Demo {
    /// The folder to make; an earlier demo in it is replaced
    #[arg(long, value_name = "DIR", default_value = "demo")]
    out: PathBuf,
    /// Steps of training; fewer teach it less
    #[arg(long, value_name = "N", default_value_t = STEPS, value_parser = clap::value_parser!(i64).range(1..))]
    steps: i64,
}

impl Demo {
    /// Makes everything.
    pub fn run(&self, common: &Common) -> Result<()> {
        let begun = Instant::now();
        let quiet = common.quiet || common.json;
        let say = |text: String| {
            if !quiet {
                eprintln!("{text}")
            }
        };
        let stop = interrupt::flag();
        let device = model::device(common)?;
        trace::record_launches(&device, DType::F32);
        self.clear()?;

        let seed = common.seed();
        let start = self.out.join("model");
        let made = init(&InitOptions { preset: Preset::Tiny, layers: None, vocab: None, dtype: None, seed }, &start)?;
        say(format!("{}: a random model of {:.1} M parameters", start.display(), made.parameters as f64 / 1e6));

        let (train, held_out) = (clips::make("train", TRAIN, seed), clips::make("held-out", HELD_OUT, seed));
        trace::span("clips", || self.write_films(&[&train[..], &held_out[..]]))?;
        say(format!("{}: {TRAIN} films to learn from and {HELD_OUT} to be examined on", self.films().display()));

        let media = media();
        let exam = trace::span("questions", || Exam::new(&start, &self.films(), &held_out, &media))?;
        let before = trace::span("exam", || exam.take(&start, &device))?;
        let before_tally = tally(&held_out, &before, None);
        say(format!("before: {} of {} held-out films answered correctly", before_tally.right, before_tally.of));

        let options = self.options(&start);
        let training = Instant::now();
        sft::run(&Setup {
            options: &options,
            model: &start,
            device: &device,
            dtype: DType::F32,
            seed,
            media: &media,
            resolved: &serde_json::to_value(&options)?,
            quiet,
            stop: &stop,
        })?;
        let training = training.elapsed();

        let after = trace::span("exam", || exam.take(&options.out, &device))?;
        let after_tally = tally(&held_out, &after, None);
        say(format!("after: {} of {} held-out films answered correctly", after_tally.right, after_tally.of));
        let steps = read_steps(&options.out.join("metrics.jsonl"))?;
        let page = self.out.join("report.html");
        let tokens: f64 = steps.iter().map(|s| s.tokens_per_second).sum::<f64>() / steps.len().max(1) as f64;
        let report = Report {
            clips: &held_out,
            before: &before,
            after: &after,
            steps: &steps,
            figures: vec![
                ("correct before", format!("{} of {}", before_tally.right, before_tally.of)),
                ("correct after", format!("{} of {}", after_tally.right, after_tally.of)),
                ("parameters", format!("{:.2} M", made.parameters as f64 / 1e6)),
                ("training clips", TRAIN.to_string()),
                ("steps", steps.len().to_string()),
                ("tokens a second", format!("{tokens:.0}")),
                ("training", seconds(training)),
                ("all", seconds(begun.elapsed())),
            ],
            commands: self.commands(&options, &held_out[0], seed),
            machine: machine(device.threads(), seed),
        };
        output::file(&page, report.html()?.as_bytes())?;
        self.finish(common, &held_out, [&before, &after], begun.elapsed(), &page)
    }

    /// Says how it went, with one question answered.
    fn finish(&self, common: &Common, clips: &[Clip], said: [&[String]; 2], took: Duration, page: &Path) -> Result<()> {
        let tallies = |task: Option<Task>| said.map(|s| tally(clips, s, task));
        if common.json {
            let of = |task: Option<Task>| {
                let [before, after] = tallies(task);
                json!({"n": after.of, "right_before": before.right, "right_after": after.right})
            };
            let mut result = json!({"report": page, "seconds": took.as_secs_f64(), "all": of(None)});
            for task in Task::ALL {
                result[task.name()] = of(Some(task));
            }
            return output::json(&result);
        }
        for task in Task::ALL {
            let [before, after] = tallies(Some(task));
            output::line(format!(
                "  {:8}{:2} of {} before, {:2} of {} after",
                task.name(),
                before.right,
                before.of,
                after.right,
                after.of
            ))?;
        }
        output::line(format!(
            "{}\n  {}\n  {}",
            self.films().join(&clips[0].file).display(),
            clips[0].task.question(),
            said[1][0]
        ))?;
        output::line(format!("{} ({})", page.display(), seconds(took)))
    }

    /// Removes what an earlier demo left, and nothing else.
    fn clear(&self) -> Result<()> {
        let there = |name: &str| self.out.join(name).exists();
        if self.out.is_dir() && !there("clips") && fs::read_dir(&self.out).is_ok_and(|mut d| d.next().is_some()) {
            return Err(failed(self.out.display(), "holds something that is no demo", "give another --out"));
        }
        for part in ["model", "clips", "tuned"] {
            let part = self.out.join(part);
            if part.is_dir() {
                fs::remove_dir_all(&part).map_err(|e| {
                    failed(part.display(), format!("cannot be replaced: {e}"), "remove it, or give another --out")
                })?;
            }
        }
        let films = self.films();
        fs::create_dir_all(&films)
            .map_err(|e| failed(films.display(), format!("cannot be made: {e}"), "give another --out"))
    }

    fn films(&self) -> PathBuf {
        self.out.join("clips")
    }

    /// Encodes the films of both sets and writes a file of rows for each.
    fn write_films(&self, sets: &[&[Clip]]) -> Result<()> {
        let how = Encoding::new(Codec::best(), (FPS as i32, 1));
        for (set, name) in sets.iter().zip(["train.jsonl", "held-out.jsonl"]) {
            let mut rows = String::new();
            for clip in *set {
                encode(&self.films().join(&clip.file), FrameView::new(&clip.frames, FRAMES, SIDE, SIDE)?, &how)?;
                rows += &row(clip).to_string();
                rows.push('\n');
            }
            output::file(&self.out.join(name), rows.as_bytes())?;
        }
        Ok(())
    }

    fn options(&self, start: &Path) -> SftOptions {
        let run = RunOptions {
            model: start.display().to_string(),
            data: self.out.join("train.jsonl"),
            media_root: Some(self.out.clone()),
            out: self.out.join("tuned"),
            learning_rate: LEARNING_RATE,
            lr_scheduler_type: Scheduler::Cosine,
            warmup_steps: 10,
            adam_beta2: 0.95,
            max_grad_norm: 1.0,
            per_device_train_batch_size: BATCH,
            gradient_accumulation_steps: 1,
            max_steps: Some(self.steps),
            gradient_checkpointing: false,
            save_steps: 0,
            logging_steps: 50,
            ..RunOptions::default()
        };
        SftOptions { run, ..SftOptions::default() }
    }

    /// The same by hand.
    fn commands(&self, o: &SftOptions, clip: &Clip, seed: u64) -> Vec<String> {
        let limits = format!("--nframes {FRAMES} --min-pixels {PIXELS} --max-pixels {PIXELS}");
        let out = self.out.display();
        vec![
            format!("reel init --preset tiny --seed {seed} --out {out}/model"),
            format!(
                "reel sft --model {out}/model --data {out}/train.jsonl --media-root {out} --out {out}/tuned --seed {seed} {limits} \\\n    \
                 --learning-rate {} --lr-scheduler-type cosine --warmup-steps {} --adam-beta2 {} --max-grad-norm {} --max-steps {} \\\n    \
                 --per-device-train-batch-size {} --gradient-accumulation-steps {} --gradient-checkpointing false --save-steps 0 --overwrite",
                o.learning_rate,
                o.warmup_steps,
                o.adam_beta2,
                o.max_grad_norm,
                self.steps,
                o.per_device_train_batch_size,
                o.gradient_accumulation_steps,
            ),
            format!(
                "reel generate --model {out}/tuned --video {}/{} {limits} \\\n    --prompt \"{}\"",
                self.films().display(),
                clip.file,
                clip.task.question(),
            ),
        ]
    }
}

/// How the demo's films are read: all their frames, small.
fn media() -> MediaOptions {
    let overrides = Overrides {
        nframes: Some(FRAMES as i64),
        min_pixels: Some(PIXELS),
        max_pixels: Some(PIXELS),
        ..Overrides::default()
    };
    let decoder = Decoder { threads: 1, ..Decoder::this_program() };
    MediaOptions { profile: Profile::Qwen, overrides, decoder, second_per_grid: SecondPerGrid::True }
}

/// A film as a row to learn from.
fn row(clip: &Clip) -> Value {
    let film = json!({"type": "video", "video": format!("clips/{}", clip.file)});
    let question = json!({"type": "text", "text": clip.task.question()});
    json!({"messages": [
        {"role": "user", "content": [film, question]},
        {"role": "assistant", "content": clip.completion()},
    ]})
}

fn read_steps(metrics: &Path) -> Result<Vec<Step>> {
    let text = fs::read_to_string(metrics).map_err(|e| output::not_read(metrics, e))?;
    text.lines()
        .map(|line| {
            let v: Value = serde_json::from_str(line)?;
            let number = |key: &str| v[key].as_f64().unwrap_or(f64::NAN);
            Ok(Step { loss: number("loss"), tokens_per_second: number("tokens_per_second") })
        })
        .collect()
}

fn seconds(d: Duration) -> String {
    let s = d.as_secs_f64().round() as u64;
    if s < 100 { format!("{s} s") } else { format!("{} min {} s", s / 60, s % 60) }
}

fn machine(threads: usize, seed: u64) -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, m)| m.trim());
    format!("reel {}, {threads} threads of {model}, seed {seed}.", env!("CARGO_PKG_VERSION"))
}
