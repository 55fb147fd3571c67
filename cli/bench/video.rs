//! `reel bench video`: times preprocessing, prefill and GRPO steps for videos. A warm-up round comes before the timed
//! rounds of each video.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use reel_engine::{Completion, Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_input::encode::{ModelFolder, encode};
use reel_input::fetch::MediaAccess;
use reel_input::media::profile::MediaOverrides;
use reel_input::media::worker::worker_cpu_seconds;
use reel_input::messages::{ContentPart, Conversation, MediaSource, VideoPart, VideoSource};
use reel_input::{MediaOptions, ModelInput};
use reel_runtime::Cx;
use reel_samples::rewards::EmaMoments;
use reel_support::error::Error;
use reel_support::worker::processor_seconds;
use reel_tools::measure::rounds::hardware_json;
use reel_tools::measure::{stats, trace};
use reel_train::options::GrpoOptions;
use reel_train::rollout::group::{CompletionTokens, Rollout, RolloutSet};
use reel_train::rollout::prompts::{EndTokens, Prompt};
use reel_train::step::grpo::step;
use reel_train::step::hyperparameters::Hyperparameters;
use reel_train::step::trainer::Trainer;
use serde_json::{Value, json};

use super::not_zero;
use super::progress::{BenchmarkProgress, timing_line};
use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};
use crate::generate::MAX_COMPLETIONS;
use crate::media::{MediaFlags, WorkerFlags, check_fits_model, media_error_to_usage_error};
use crate::{model, output, prompt};

/// Measure videos per minute through preprocessing, prefill and GRPO steps.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  reel bench video clip.mp4 --model tiny --nframes 8 --rounds 3")]
pub struct VideoArgs {
    /// Videos to measure, one after the other
    #[arg(value_name = "FILE", required = true)]
    videos: Vec<PathBuf>,
    /// Model folder, or Hugging Face model id
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Completions that a GRPO step samples for the video, and trains on
    #[arg(long, value_name = "B", default_value_t = 8)]
    batch: usize,
    /// Tokens of each completion
    #[arg(long, value_name = "N", default_value_t = 32)]
    tokens: usize,
    /// Timed rounds of each video; one warm-up round comes before them
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

/// The model that is measured.
struct VideoBench<'a> {
    args: &'a VideoArgs,
    bundle: ModelFolder,
    media: MediaOptions,
    trainer: Trainer,
    options: GrpoOptions,
    /// Number of training steps done.
    steps: u64,
}

impl VideoArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        not_zero(&[("--tokens", self.tokens), ("--rounds", self.rounds)])?;
        if !(2..=MAX_COMPLETIONS).contains(&self.batch) {
            let what = format!("is {}, but a GRPO step compares several completions", self.batch);
            return Err(usage_error("--batch", what, format!("give 2 to {MAX_COMPLETIONS}")));
        }
        let folder = prompt::find_or_download_model(&self.model)?;
        let (access, says_so) = (MediaAccess::default(), !common.quiet);
        let mut media = prompt::media_options(&self.media, &self.worker, Some(&folder), access, says_so, common)?;
        (media.decoder.cache, media.decoder.disk_cache) = (None, None);
        let bundle = ModelFolder::open(&folder)?;
        check_fits_model(&media, &bundle.config)?;
        let (device, dtype, profile) = (model::open_device(common)?, model::activation_dtype(common), media.profile);
        let mut options = GrpoOptions { num_generations: self.batch, beta: 0.0, ..GrpoOptions::default() };
        (options.run.gradient_accumulation_steps, options.run.per_device_train_batch_size) = (1, self.batch);
        let hyperparameters = Hyperparameters::new(&options, ((self.rounds + 1) * self.videos.len()) as u64);
        let opened = || Trainer::open(&device, &bundle.config, &folder, dtype, hyperparameters);
        let (trainer, _files) = trace::span("load", opened)?;
        let mut bench = VideoBench { args: self, bundle, media, trainer, options, steps: 0 };
        let progress = BenchmarkProgress::new(common.quiet || common.json);
        let mut videos = Vec::new();
        for (i, file) in self.videos.iter().enumerate() {
            progress.show(&timing_line(&file.display().to_string(), i + 1, self.videos.len()));
            let measured = bench.measure(file)?;
            progress.clear();
            if i == 0 && !common.json {
                output::print_line(row(["seconds", "size", "frames", "tokens"], RATES, "video"))?;
            }
            if !common.json {
                output::print_line(table_row(&measured, file))?;
            }
            videos.push(measured);
        }
        if !common.json {
            return Ok(());
        }
        output::print_json(&json!({
            "op": "video", "model": folder, "device": device.name(), "threads": device.threads(), "dtype": dtype.name(),
            "machine": hardware_json(&device), "profile": profile, "n": self.rounds, "batch": self.batch,
            "tokens": self.tokens, "videos": videos, "version": env!("CARGO_PKG_VERSION"),
        }))
    }
}

impl VideoBench<'_> {
    /// Measures the video in `file`. Returns its properties and times as JSON.
    fn measure(&mut self, file: &Path) -> Result<Value> {
        let info = self.media.decoder.probe(file)?;
        let mut input = self.preprocess(file).map_err(media_error_to_usage_error)?;
        let (tokens, positions) = (input.len(), self.bundle.config.text.max_position_embeddings);
        if tokens + self.args.tokens > positions {
            let new = self.args.tokens;
            let what = format!("is a prompt of {tokens} tokens; {new} more exceed the model's {positions} positions");
            return Err(failed(file.display(), what, "take fewer tokens, or fewer frames (--nframes)"));
        }
        let [mut preprocess, mut cpu, mut prefill, mut grpo_step] = [const { Vec::new() }; 4];
        self.prefill(&input)?;
        self.grpo_step(&input)?;
        for _ in 0..self.args.rounds {
            let cpu_before = processor_seconds() + worker_cpu_seconds();
            input = timed("preprocess", &mut preprocess, || self.preprocess(file))?;
            cpu.push(processor_seconds() + worker_cpu_seconds() - cpu_before);
            timed("prefill", &mut prefill, || self.prefill(&input))?;
            timed("GRPO step", &mut grpo_step, || self.grpo_step(&input))?;
        }
        let part = |samples: Vec<f64>| {
            let seconds = stats::median(&samples);
            json!({"seconds": seconds, "videos_per_minute": 60.0 / seconds, "samples": samples})
        };
        let mut preprocess = part(preprocess);
        preprocess["cpu_seconds"] = json!(stats::median(&cpu));
        let frames = input.frames.videos.first();
        Ok(json!({
            "file": file, "codec": info.codec, "video_seconds": info.total_frames as f64 / info.video_fps,
            "fps": info.video_fps, "height": info.height, "width": info.width, "frames": frames.map(|f| f.frames),
            "resized_to": frames.map(|f| [f.height, f.width]), "prompt_tokens": tokens, "preprocess": preprocess,
            "prefill": part(prefill), "grpo_step": part(grpo_step),
        }))
    }

    fn preprocess(&self, file: &Path) -> Result<Arc<ModelInput>, Error> {
        let video = ContentPart::Video(VideoPart {
            source: VideoSource::File(MediaSource::Path(file.to_path_buf())),
            overrides: MediaOverrides::default(),
            frame_times: None,
            location: file.display().to_string(),
        });
        let conversation = Conversation::from_user_message(vec![video], "Describe the video.");
        encode(&self.bundle, &conversation, &self.media).map(Arc::new)
    }

    fn prefill(&self, prompt: &Arc<ModelInput>) -> Result<(), Error> {
        let cx = Cx::inference(&self.trainer.device, self.trainer.dtype);
        let engine = Engine::new(&self.trainer.model, &cx)?;
        engine.generate(vec![GenerationRequest::new(prompt.clone())], |_| {}).map(drop)
    }

    /// Samples completions that no token ends, so that all steps do the same work, and trains on them.
    fn grpo_step(&mut self, prompt: &Arc<ModelInput>) -> Result<(), Error> {
        let request = GenerationRequest {
            sampling: SamplingParams { temperature: 1.0, seed: self.steps, ..SamplingParams::default() },
            max_new_tokens: self.args.tokens,
            stop_conditions: (0..self.args.batch).map(|_| StopCondition::none()).collect(),
            ..GenerationRequest::new(prompt.clone())
        };
        let cx = Cx::inference(&self.trainer.device, self.trainer.dtype);
        let engine = Engine::new(&self.trainer.model, &cx)?.with_packed_trained_weights();
        let (sampled, _) = engine.generate(vec![request], |_| {})?;
        drop(engine);
        let tokens = |c: Completion| CompletionTokens::new(c.ids, c.log_probs, &EndTokens::default(), false);
        let completions: Vec<_> = sampled.into_iter().map(tokens).collect();
        // Rewards that differ, so that no advantage is 0.
        let rewards = (0..completions.len()).map(|i| (i % 2) as f32).collect();
        let prompt = Arc::new(Prompt { tokens: prompt.clone(), ..Prompt::from_model_input(ModelInput::default()) });
        let groups = vec![Rollout::with_rewards(prompt, completions, rewards)];
        let mut set = RolloutSet::new(groups, &self.options.advantage_rules()?, &mut EmaMoments::default());
        self.steps += 1;
        let result = step(&mut self.trainer, &self.options, None, &mut set, self.steps)?;
        let help = "use a model whose weights are finite";
        result.is_finite().then_some(()).ok_or_else(|| Error::failed("GRPO step", "the loss is not finite", help))
    }
}

/// Runs `work` as a span of the trace and adds its seconds to `samples`.
fn timed<T>(name: &'static str, samples: &mut Vec<f64>, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let begun = Instant::now();
    let done = trace::span(name, work)?;
    samples.push(begun.elapsed().as_secs_f64());
    Ok(done)
}

/// Headings of the columns with videos per minute and processor seconds.
const RATES: [&str; 4] = ["preprocess/min", "CPU s", "prefill/min", "GRPO/min"];

fn row<T: std::fmt::Display>([a, b, c, d]: [T; 4], [e, f, g, h]: [T; 4], file: &str) -> String {
    format!("{a:>8} {b:>9} {c:>6} {d:>7} {e:>14} {f:>8} {g:>11} {h:>8}  {file}")
}

/// A row of the table: medians, as videos per minute, and processor seconds of preprocessing.
fn table_row(video: &Value, file: &Path) -> String {
    let number = |key: &str, digits| format!("{:.digits$}", video.pointer(key).and_then(Value::as_f64).unwrap_or(0.0));
    let size = format!("{}x{}", video["width"], video["height"]);
    let rates = ["/preprocess/videos_per_minute", "/prefill/videos_per_minute", "/grpo_step/videos_per_minute"];
    let [preprocess, prefill, grpo] = rates.map(|key| number(key, 2));
    row(
        [number("/video_seconds", 1), size, number("/frames", 0), number("/prompt_tokens", 0)],
        [preprocess, number("/preprocess/cpu_seconds", 3), prefill, grpo],
        &file.file_name().unwrap_or(file.as_os_str()).display().to_string(),
    )
}
