//! Times what a video costs a model: its frames, the first token of an answer, and a GRPO step on it.
//!
//! ```text
//! preprocess   decode and resize the selected frames in a worker process, tokenize the prompt; no cache of frames
//! prefill      from the prompt to its first token: vision tower and decoder
//! GRPO step    sample the completions of the prompt, then one training step on them, without a reference model
//! ```
//! A warm-up round of all three comes before the timed rounds of each video.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use reel_device::{DType, Device};
use reel_engine::{Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_input::ModelInput;
use reel_input::encode::{ModelFolder, encode};
use reel_input::media::profile::MediaOverrides;
use reel_input::media::video::VideoInfo;
use reel_input::media::worker::worker_cpu_seconds;
use reel_input::media_loading::MediaOptions;
use reel_input::messages::{ContentPart, Conversation, MediaSource, VideoPart, VideoSource};
use reel_runtime::Cx;
use reel_samples::rewards::EmaMoments;
use reel_support::worker::processor_seconds;
use reel_train::options::{GrpoOptions, RunOptions};
use reel_train::rollout::group::{CompletionTokens, Rollout, RolloutSet};
use reel_train::rollout::prompts::{EndTokens, Prompt};
use reel_train::step::grpo::step;
use reel_train::step::hyperparameters::Hyperparameters;
use reel_train::step::trainer::Trainer;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::measure::{stats, trace};

/// The text after each video.
const QUESTION: &str = "Describe the video.";

/// Sizes of the measured work.
#[derive(Clone, Copy, Debug)]
pub struct VideoBenchShape {
    /// Timed rounds of each video.
    pub rounds: usize,
    /// Completions that the GRPO step samples and trains on, 2 or more.
    pub completions: usize,
    /// Tokens of each completion.
    pub tokens: usize,
}

/// A model that is ready to be measured on videos.
pub struct VideoBench {
    bundle: ModelFolder,
    media: MediaOptions,
    trainer: Trainer,
    options: GrpoOptions,
    shape: VideoBenchShape,
    /// Number of training steps done.
    steps: u64,
}

/// The measured times of a video.
pub struct VideoTimes {
    /// Properties of the file.
    pub info: VideoInfo,
    /// Number of selected frames.
    pub frames: usize,
    /// Height and width in pixels of a frame that the model sees.
    pub frame_size: [usize; 2],
    /// Tokens of the prompt with the video.
    pub prompt_tokens: usize,
    /// Seconds of preprocessing in each round.
    pub preprocess: Vec<f64>,
    /// Processor seconds of preprocessing in each round, of this process and of the decoding worker.
    pub cpu: Vec<f64>,
    /// Seconds of prefill in each round.
    pub prefill: Vec<f64>,
    /// Seconds of a GRPO step in each round.
    pub grpo_step: Vec<f64>,
}

impl VideoBench {
    /// Opens the model in `folder` for training in `dtype`. `media` says how frames are selected and resized; its
    /// caches are not used.
    ///
    /// # Errors
    /// The model cannot be opened.
    pub fn open(
        device: &Device,
        dtype: DType,
        folder: &Path,
        mut media: MediaOptions,
        shape: VideoBenchShape,
    ) -> Result<Self> {
        (media.decoder.cache, media.decoder.disk_cache) = (None, None);
        let run = RunOptions {
            gradient_accumulation_steps: 1,
            per_device_train_batch_size: shape.completions,
            ..GrpoOptions::default().run
        };
        let (num_generations, max_completion_length) = (shape.completions, shape.tokens);
        let options = GrpoOptions { run, num_generations, max_completion_length, beta: 0.0, ..GrpoOptions::default() };
        let bundle = ModelFolder::open(folder)?;
        let hyperparameters = Hyperparameters::new(&options, shape.rounds as u64 + 1);
        let opened = || Trainer::open(device, &bundle.config, folder, dtype, hyperparameters);
        let (trainer, _files) = trace::span("load", opened)?;
        Ok(Self { bundle, media, trainer, options, shape, steps: 0 })
    }

    /// Measures the video in `file`.
    ///
    /// # Errors
    /// The video cannot be decoded, its prompt with a completion exceeds the model's positions, or the device fails.
    pub fn measure(&mut self, file: &Path) -> Result<VideoTimes> {
        let info = self.media.decoder.probe(file)?;
        let first = Arc::new(self.preprocess(file)?);
        let positions = self.bundle.config.text.max_position_embeddings;
        if first.len() + self.shape.tokens > positions {
            let (tokens, new) = (first.len(), self.shape.tokens);
            let what =
                format!("has {tokens} tokens with its prompt, {new} more do not fit the model's {positions} positions");
            return Err(Error::failed(file.display().to_string(), what, "take fewer frames or pixels (--nframes, …)"));
        }
        let mut times = VideoTimes {
            info,
            frames: first.frames.videos.iter().map(|video| video.frames).sum(),
            frame_size: first.frames.videos.first().map_or([0; 2], |video| [video.height, video.width]),
            prompt_tokens: first.len(),
            preprocess: Vec::new(),
            cpu: Vec::new(),
            prefill: Vec::new(),
            grpo_step: Vec::new(),
        };
        self.prefill(&first)?;
        self.grpo_step(&first)?;
        for _ in 0..self.shape.rounds {
            let cpu_before = processor_seconds() + worker_cpu_seconds();
            let (input, seconds) = timed("preprocess", || self.preprocess(file))?;
            times.preprocess.push(seconds);
            times.cpu.push(processor_seconds() + worker_cpu_seconds() - cpu_before);
            let input = Arc::new(input);
            times.prefill.push(timed("prefill", || self.prefill(&input))?.1);
            times.grpo_step.push(timed("GRPO step", || self.grpo_step(&input))?.1);
        }
        Ok(times)
    }

    fn preprocess(&self, file: &Path) -> Result<ModelInput> {
        let video = ContentPart::Video(VideoPart {
            source: VideoSource::File(MediaSource::Path(file.to_path_buf())),
            overrides: MediaOverrides::default(),
            frame_times: None,
            location: file.display().to_string(),
        });
        encode(&self.bundle, &Conversation::from_user_message(vec![video], QUESTION), &self.media)
    }

    fn prefill(&self, prompt: &Arc<ModelInput>) -> Result<()> {
        let cx = Cx::inference(&self.trainer.device, self.trainer.dtype);
        let engine = Engine::new(&self.trainer.model, &cx)?;
        engine.generate(vec![GenerationRequest::new(prompt.clone())], |_| {}).map(drop)
    }

    /// Samples completions that no token ends, so that all steps do the same work, and trains on them.
    fn grpo_step(&mut self, prompt: &Arc<ModelInput>) -> Result<()> {
        let request = GenerationRequest {
            sampling: SamplingParams { temperature: 1.0, seed: self.steps, ..SamplingParams::default() },
            max_new_tokens: self.shape.tokens,
            stop_conditions: (0..self.shape.completions).map(|_| StopCondition::none()).collect(),
            ..GenerationRequest::new(prompt.clone())
        };
        let cx = Cx::inference(&self.trainer.device, self.trainer.dtype);
        let engine = Engine::new(&self.trainer.model, &cx)?.with_packed_trained_weights();
        let (sampled, _) = engine.generate(vec![request], |_| {})?;
        drop(engine);
        let tokens =
            |c: reel_engine::Completion| CompletionTokens::new(c.ids, c.log_probs, &EndTokens::default(), false);
        let completions: Vec<_> = sampled.into_iter().map(tokens).collect();
        // Rewards that differ, so that no advantage is 0.
        let rewards = (0..completions.len()).map(|i| (i % 2) as f32).collect();
        let prompt = Arc::new(Prompt { tokens: prompt.clone(), ..Prompt::from_model_input(ModelInput::default()) });
        let group = Rollout::with_rewards(prompt, completions, rewards);
        let rules = self.options.advantage_rules()?;
        let mut set = RolloutSet::new(vec![group], &rules, &mut EmaMoments::default());
        self.steps += 1;
        let result = step(&mut self.trainer, &self.options, None, &mut set, self.steps)?;
        match result.is_finite() {
            true => Ok(()),
            false => Err(Error::failed("GRPO step", "the loss is not finite", "use a model whose weights are finite")),
        }
    }
}

/// Runs `work` as a span of the trace and returns its result and its seconds.
fn timed<T>(name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let begun = Instant::now();
    let done = trace::span(name, work)?;
    Ok((done, begun.elapsed().as_secs_f64()))
}

impl VideoTimes {
    /// Length of the video in seconds.
    pub fn video_seconds(&self) -> f64 {
        self.info.total_frames as f64 / self.info.video_fps
    }

    /// The times as JSON, with the name of the file.
    pub fn json(&self, file: &Path) -> Value {
        let part = |samples: &[f64]| {
            let seconds = stats::median(samples);
            json!({"seconds": seconds, "videos_per_minute": 60.0 / seconds, "samples": samples})
        };
        let mut preprocess = part(&self.preprocess);
        preprocess["cpu_seconds"] = json!(stats::median(&self.cpu));
        json!({
            "file": file, "codec": self.info.codec, "video_seconds": self.video_seconds(),
            "frame_size": [self.info.height, self.info.width], "fps": self.info.video_fps, "frames": self.frames,
            "resized_to": self.frame_size, "prompt_tokens": self.prompt_tokens, "preprocess": preprocess,
            "prefill": part(&self.prefill), "grpo_step": part(&self.grpo_step),
        })
    }

    /// The header of a table whose rows are [`Self::table_row`]s.
    pub fn table_header() -> String {
        let columns = ["video s", "size", "frames", "tokens", "preprocess/min", "CPU s", "prefill/min", "GRPO/min"];
        let [a, b, c, d, e, f, g, h] = columns;
        format!("{a:>8} {b:>9} {c:>6} {d:>7} {e:>14} {f:>8} {g:>11} {h:>8}  video")
    }

    /// A row of the table: medians, as videos per minute, and processor seconds of preprocessing.
    pub fn table_row(&self, file: &Path) -> String {
        let per_minute = |samples: &[f64]| 60.0 / stats::median(samples);
        format!(
            "{:>8.1} {:>9} {:>6} {:>7} {:>14.2} {:>8.3} {:>11.2} {:>8.2}  {}",
            self.video_seconds(),
            format!("{}x{}", self.info.width, self.info.height),
            self.frames,
            self.prompt_tokens,
            per_minute(&self.preprocess),
            stats::median(&self.cpu),
            per_minute(&self.prefill),
            per_minute(&self.grpo_step),
            file.file_name().unwrap_or(file.as_os_str()).display()
        )
    }
}
