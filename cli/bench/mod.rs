//! `reel bench`: measures throughput of a model or of single kernels against the limits of this machine, or of a
//! server, and compares two results.

mod progress;
mod serve;
mod video;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use reel_device::Device;
use reel_engine::bench::{self, BenchPrompt, VideoShape};
use reel_input::config::{ModelConfig, open_preprocessor_config};
use reel_input::media::patches::ImageProcessorSettings;
use reel_kernels::catalogue::Sizes;
use reel_tools::measure::ceilings::Ceilings;
use reel_tools::measure::clocks::{ClockSampler, ClockSummary};
use reel_tools::measure::counters::{self, KernelCounters};
use reel_tools::measure::machine::PublishedLimits;
use reel_tools::measure::op::{op_timers, raised_ceilings, roofline_seconds, roofline_share, unknown_size_error};
use reel_tools::measure::ops::share_text;
use reel_tools::measure::rollout::{self, RolloutShape};
use reel_tools::measure::rounds::{self, BenchSubject, MeasuredRounds, hardware_json};
use reel_tools::measure::timing::{TimedKernel, TimingDevice};
use reel_tools::measure::train::{self, TrainShape};
use reel_tools::measure::{compare, page, trace};
use reel_train::options::{GradientCheckpointing, Optim};
use serde_json::{Map, Value, json};

use crate::common::{self, CommonOptions};
use crate::fail::{failed, usage_error};
use crate::generate::MAX_COMPLETIONS;
use crate::kernels::open_gpu;
use crate::model::{self, LoadedModel, QuantizeFlag, WeightLocation};
use crate::{output, prompt};
use progress::{BenchmarkProgress, timing_line};

/// Measure throughput (tokens/s) of prefill, decode, rollouts, training or a server, or the speed of single kernels;
/// compare two results.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  reel bench prefill --model tiny --tokens 128 --json > a.json
  reel bench prefill --model tiny --tokens 128 --threads 1 --json > b.json
  reel bench --compare a.json b.json")]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// Instead of measuring: say whether result B is faster than result A
    ///
    /// Prints the ratio of the median round times with a 99 % confidence interval (10000 bootstrap samples, fixed
    /// seed). B is faster or slower if three conditions hold: an exact two-sided permutation test of the rank sums of
    /// the round times has p < 0.01, the interval does not contain 1, and the medians differ by more than 1 %.
    /// Otherwise: no difference. This p-value needs at least five rounds in each result, or four in one and six in the
    /// other. All rounds of one process share the state of the process, which the test cannot correct for: two
    /// processes of the same program may differ as well.
    #[arg(long, value_names = ["A.json", "B.json"], num_args = 2)]
    compare: Option<Vec<PathBuf>>,
}

/// What is measured.
#[derive(Subcommand, Debug)]
enum What {
    /// Prefill: the forward pass over prompts, up to the logits of the last token of each
    ///
    /// With --frames, each prompt begins with a video, before the text. The time then includes the vision tower, and
    /// tokens/s counts the video's tokens as well. Decoding and resizing of a video are not timed.
    Prefill(PrefillArgs),
    /// Decode: sampling one token after the other
    Decode(DecodeArgs),
    /// Rollouts: sampling completions of one prompt at temperature 1, as a GRPO step does
    ///
    /// The prompt is prefilled once for all completions, which then decode together to a fixed length; end tokens are
    /// ignored. Tokens/s counts the tokens of the completions and includes the time of the prefill. In the JSON result,
    /// `parts` splits the time of the profiled round into prefill and decode.
    Rollout(RolloutArgs),
    /// Training: steps of full fine-tuning on text (forward, backward, AdamW)
    ///
    /// All sequences are packed into one micro-batch. `mfu` (model FLOPs utilization) is the model's operations per
    /// second over the dense rate of the GPU's data sheet for the dtype; null if reel does not know the GPU. The
    /// model's operations are 6 per token and weight of the matrices that multiply the token, plus those of causal
    /// attention; recomputed operations do not count. `busy` is the share of the profiled step in
    /// which a kernel ran; `parts` splits that step into forward, backward (with recomputation) and optimizer;
    /// `planned_peak_bytes` is the peak memory that `reel plan` gives.
    Train(TrainArgs),
    /// Videos: videos per minute through preprocessing, the prefill of their prompts, and GRPO steps
    ///
    /// Preprocessing decodes, selects and resizes the frames as the command that uses such a video does, without any
    /// cache of frames, and tokenizes the prompt. `CPU s` are the processor seconds of one video in it: of this process
    /// and of the process that decodes. Prefill is the time from the prompt to its first token, with the vision tower. A
    /// GRPO step samples --batch completions of the prompt and trains all weights on them, without a reference model.
    Video(Box<video::VideoArgs>),
    /// One kernel, the kernels of a folder, matrix products, or the output layer, on cpu or cuda
    ///
    /// Each is timed by itself, at the size in `reel kernels list` or at sizes given with --size.
    ///
    /// NAME is a kernel of `reel kernels list`, or a folder of kernels; `matmul` for the products of a linear layer,
    /// forward and both gradients (or one of them: matmul_fwd_bf16, matmul_dx_f32, …), on a GPU by cuBLASLt and in turns
    /// by reel's own kernel (gemm_…) if it has one;
    /// `linear_log_prob_products` for the output layer with log-probabilities as training runs it, forward and
    /// backward, by matrix products of tiles.
    ///
    /// Sizes: matmul has m, n, k; attention tokens, heads, kv_heads, head_dim, causal; paged_attention batch, context,
    /// heads, kv_heads, head_dim; rms_norm tokens, hidden; swiglu tokens, intermediate; linear_log_prob_products
    /// tokens, hidden, vocab; log_prob rows, vocab; skinny batch, n, k; adamw count. attention also has seqs
    /// (the tokens are divided into sequences of equal length) and prefix (1: each sequence but the first sees the
    /// first one).
    ///
    /// On cuda, if NVIDIA's ncu is installed, a last column names what limits the kernel: the busiest of DRAM, L2, L1,
    /// the arithmetic units and the issue slots, with its share of its highest rate.
    Op(OpArgs),
    /// A running server with OpenAI's API: requests/s, tokens/s and latency under load
    ///
    /// Sends prompts of random words, streams the answers, and prints throughput, time to first token, time per output
    /// token, inter-token latency and end-to-end latency, defined as by vllm bench serve.
    Serve(Box<serve::ServeArgs>),
}

impl BenchArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        match (&self.compare, &self.what) {
            (Some(files), None) => compare_files(common, &files[0], &files[1]),
            (None, Some(What::Prefill(c))) => c.run(common),
            (None, Some(What::Decode(c))) => c.run(common),
            (None, Some(What::Rollout(c))) => c.run(common),
            (None, Some(What::Train(c))) => c.run(common),
            (None, Some(What::Op(c))) => c.run(common),
            (None, Some(What::Video(c))) => c.run(common),
            (None, Some(What::Serve(c))) => c.run(common),
            (Some(_), Some(_)) => Err(usage_error(
                "--compare",
                "only compares two result files and cannot be combined with a measurement",
                "leave out the measurement's name and options",
            )),
            (None, None) => {
                let help = "name what to measure (prefill, decode, rollout, train, video, op or serve), or give --compare A.json B.json";
                Err(usage_error("bench", "nothing to measure", help))
            }
        }
    }
}

fn compare_files(common: &CommonOptions, a: &Path, b: &Path) -> Result<()> {
    let comparison = compare::compare_results(a, b)?;
    if common.json { output::print_json(&comparison.json()) } else { output::print_line(comparison.text()) }
}

/// Options that all measurements of a model share.
#[derive(Args, Debug)]
struct RoundsArgs {
    /// Model folder, or Hugging Face model id
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Batch size: number of sequences that are computed together
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
    /// Timed rounds; one warm-up round comes before them, one profiled round after them
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
    /// Where the weights are on a CPU; reel serve copies them
    #[arg(long, value_name = "PLACE", value_enum, default_value_t = WeightLocation::Mapped)]
    weights: WeightLocation,
    /// Also write an HTML page: time by op, GPU clocks and power, memory over time
    #[arg(long, value_name = "OUT.html")]
    html: Option<PathBuf>,
}

/// Measure prefill: the forward pass over prompts, up to the logits of the last token of each.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  reel bench prefill --model tiny --tokens 128 --html prefill.html")]
struct PrefillArgs {
    #[command(flatten)]
    rounds: RoundsArgs,
    #[command(flatten)]
    quantize: QuantizeFlag,
    /// Tokens of text in each prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    tokens: usize,
    /// Number of frames of a video of arbitrary pixels that is put before the text
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    frames: Option<u16>,
    /// Size of a frame in pixels; both sides are multiples of 28
    #[arg(long, value_name = "HEIGHTxWIDTH", requires = "frames", default_value = "224x224", value_parser = frame_size)]
    frame_size: (u16, u16),
}

/// Measure decoding: sampling one token after the other.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  reel bench decode --model tiny --context 64 --tokens 16")]
struct DecodeArgs {
    #[command(flatten)]
    rounds: RoundsArgs,
    #[command(flatten)]
    quantize: QuantizeFlag,
    /// Tokens to sample for each sequence
    #[arg(long, value_name = "N", default_value_t = 32)]
    tokens: usize,
    /// Tokens in the KV cache before the first decode step
    #[arg(long, value_name = "N", default_value_t = 64)]
    context: usize,
}

/// Measure rollouts: sampling completions of one prompt, as a GRPO step does.
#[derive(Args, Debug)]
#[command(
    after_help = "\
Example:
  reel init --preset tiny --out tiny
  reel bench rollout --model tiny --context 64 --tokens 16 --batch 8",
    mut_arg("batch", |batch| batch.default_value("8").help("Number of completions of the prompt"))
)]
struct RolloutArgs {
    #[command(flatten)]
    rounds: RoundsArgs,
    #[command(flatten)]
    quantize: QuantizeFlag,
    /// Tokens of each completion
    #[arg(long, value_name = "N", default_value_t = 32)]
    tokens: usize,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 64)]
    context: usize,
}

/// Measure training: steps of full fine-tuning on text.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  reel bench train --model tiny --tokens 64 --batch 2")]
struct TrainArgs {
    #[command(flatten)]
    rounds: RoundsArgs,
    /// Tokens of each sequence
    #[arg(long, value_name = "N", default_value_t = 512)]
    tokens: usize,
    /// Which activations the backward pass computes again instead of keeping them
    #[arg(long, value_enum, num_args = 0..=1, default_value_t, default_missing_value = "full")]
    gradient_checkpointing: GradientCheckpointing,
    /// Optimizer; the choices differ in how its state is stored
    #[arg(long, value_enum, default_value_t)]
    optim: Optim,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel bench op attention --size tokens=256 --dtype bf16 --runs 5")]
struct OpArgs {
    /// What to time
    #[arg(value_name = "NAME")]
    name: String,
    /// Size to time instead of the one in `reel kernels list`, such as tokens=4096; may be given several times
    #[arg(long = "size", value_name = "KEY=VALUE", value_parser = size)]
    sizes: Vec<(String, u64)>,
    /// Number of timed runs. On a GPU, a run is a chain of launches with several sets of operands, so that large weights
    /// are in no cache; on a CPU, 256 MiB of other memory are written before each run
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// Also time each variant of a kernel (tile shapes, stages, splits) that is compiled in, and name the fastest
    #[arg(long)]
    variants: bool,
    /// On cuda: do not read the GPU's counters, which takes a second process with NVIDIA's ncu
    #[arg(long)]
    no_counters: bool,
    /// Only launch the op: neither measure ceilings nor print anything. This program runs itself with this option under
    /// `ncu`, which counts every launch
    #[arg(long, hide = true)]
    launch_only: bool,
}

impl PrefillArgs {
    fn run(&self, common: &CommonOptions) -> Result<()> {
        let RoundsArgs { batch, rounds, .. } = self.rounds;
        not_zero(&[("--tokens", self.tokens), ("--batch", batch), ("--rounds", rounds)])?;
        self.rounds.check_sizes(self.tokens, 0)?;
        let prompt = self.prompt()?;
        let tokens = prompt.tokens();
        self.rounds.check_sizes(tokens, 0)?;
        if batch.saturating_mul(tokens) > MAX_PREFILL_TOKENS {
            let what = format!("{batch} prompts of {tokens} tokens do not fit into one forward pass");
            return Err(usage_error("--batch", what, format!("give at most {MAX_PREFILL_TOKENS} tokens in all")));
        }
        self.rounds.measure(common, self.quantize, "prefill", tokens, 0, |model| {
            Ok(bench::time_prefill(&model.weights, &model.cx, &prompt, batch, 1)?.iter().sum())
        })
    }

    /// Creates the prompt of the prefill benchmark.
    fn prompt(&self) -> Result<BenchPrompt> {
        let folder = prompt::find_or_download_model(&self.rounds.model)?;
        let config = ModelConfig::open(&folder)?;
        let Some(frames) = self.frames else {
            return Ok(BenchPrompt::new(
                &config,
                ImageProcessorSettings::of_published(config.family()),
                self.tokens,
                None,
            )?);
        };
        let processor = open_preprocessor_config(&folder, &config)?;
        let (height, width) = (usize::from(self.frame_size.0), usize::from(self.frame_size.1));
        let side = processor.patch_size * processor.merge_size;
        if !height.is_multiple_of(side) || !width.is_multiple_of(side) || height * width == 0 {
            let what = format!("{height}x{width} pixels cannot be divided into blocks of {side} x {side} pixels");
            return Err(usage_error("--frame-size", what, format!("give multiples of {side}")));
        }
        if usize::from(frames) * height * width > MAX_PREFILL_PIXELS {
            let what = format!("{frames} frames of {height} x {width} pixels do not fit into one forward pass");
            return Err(usage_error("--frames", what, format!("give at most {MAX_PREFILL_PIXELS} pixels in all")));
        }
        let video = VideoShape { frames: frames.into(), height, width };
        Ok(BenchPrompt::new(&config, processor, self.tokens, Some(video))?)
    }
}

impl DecodeArgs {
    fn run(&self, common: &CommonOptions) -> Result<()> {
        let RoundsArgs { batch, rounds, .. } = self.rounds;
        not_zero(&[("--tokens", self.tokens), ("--context", self.context), ("--batch", batch), ("--rounds", rounds)])?;
        self.rounds.check_sizes(self.tokens, self.context)?;
        self.rounds.measure(common, self.quantize, "decode", self.tokens, self.context, |model| {
            Ok(bench::time_decode(&model.weights, &model.cx, self.context, batch, self.tokens)?.iter().sum())
        })
    }
}

impl RolloutArgs {
    fn run(&self, common: &CommonOptions) -> Result<()> {
        let RoundsArgs { batch, rounds, .. } = self.rounds;
        not_zero(&[("--tokens", self.tokens), ("--context", self.context), ("--batch", batch), ("--rounds", rounds)])?;
        self.rounds.check_sizes(self.tokens, self.context)?;
        let shape = RolloutShape { context: self.context, completions: batch, tokens: self.tokens };
        self.rounds.measure(common, self.quantize, "rollout", self.tokens, self.context, |model| {
            rollout::time_rollout(&model.weights, &model.cx, shape)
        })
    }
}

impl TrainArgs {
    fn run(&self, common: &CommonOptions) -> Result<()> {
        let RoundsArgs { batch, rounds, .. } = self.rounds;
        not_zero(&[("--tokens", self.tokens), ("--batch", batch), ("--rounds", rounds)])?;
        if self.tokens == 1 {
            return Err(usage_error(
                "--tokens",
                "a sequence of 1 token has no next token to predict",
                "give 2 or more",
            ));
        }
        let folder = prompt::find_or_download_model(&self.rounds.model)?;
        let config = ModelConfig::open(&folder)?;
        let (device, dtype, tokens) = (&model::open_device(common)?, model::activation_dtype(common), self.tokens);
        let (gradient_checkpointing, optim) = (self.gradient_checkpointing, self.optim);
        let shape = TrainShape { tokens, batch, gradient_checkpointing, optim };
        let (measured, figures) = train::measure_training(device, dtype, &folder, &config, shape, rounds)?;
        let model = folder.display().to_string();
        let subject = BenchSubject { op: "train", model, device, dtype, tokens, batch, context: 0 };
        self.rounds.print(common, &measured, &measured.json(&subject, figures))
    }
}

/// Returns an error if an option has the value 0, because there would be nothing to measure.
fn not_zero(amounts: &[(&str, usize)]) -> Result<()> {
    match amounts.iter().find(|(_, n)| *n == 0) {
        Some((option, _)) => Err(usage_error(option, "is 0, so there would be nothing to measure", "give 1 or more")),
        None => Ok(()),
    }
}

/// Maximum number of tokens in one prefill pass. It limits host memory, in which token ids and positions are created
/// before the device allocates anything.
const MAX_PREFILL_TOKENS: usize = 1 << 22;

/// Maximum number of pixels in the frames of one prompt, as many as in 1000 frames of 1280 x 720.
const MAX_PREFILL_PIXELS: usize = 1000 * 1280 * 720;

impl RoundsArgs {
    /// Refuses batches above [`MAX_COMPLETIONS`] and sequences longer than the model's positions.
    fn check_sizes(&self, tokens: usize, context: usize) -> Result<()> {
        if self.batch > MAX_COMPLETIONS {
            let what = format!("{} sequences are too many for one batch", self.batch);
            return Err(usage_error("--batch", what, format!("give 1 to {MAX_COMPLETIONS}")));
        }
        let positions = ModelConfig::open(&prompt::find_or_download_model(&self.model)?)?.text.max_position_embeddings;
        if context.saturating_add(tokens) > positions {
            let (after, help) = match context {
                0 => (String::new(), "give fewer tokens"),
                n => (format!(" after a prompt of {n} tokens"), "give fewer tokens, or a smaller --context"),
            };
            let what = format!("{tokens} tokens{after} are more than the model's {positions} positions");
            return Err(usage_error("--tokens", what, help));
        }
        Ok(())
    }

    /// Opens the model, times the rounds, and prints the result; `round` does the work of one round and returns its
    /// seconds.
    fn measure(
        &self,
        common: &CommonOptions,
        quantize: QuantizeFlag,
        op: &'static str,
        tokens: usize,
        context: usize,
        round: impl Fn(&LoadedModel) -> reel_support::error::Result<f64>,
    ) -> Result<()> {
        let folder = prompt::find_or_download_model(&self.model)?;
        let config = ModelConfig::open(&folder)?;
        let (device, quantization) = (model::open_device(common)?, quantize.quantization());
        let model = LoadedModel::open_on_device(
            &device,
            &folder,
            None,
            &config,
            quantization,
            Some(self.weights),
            None,
            common,
        )?;
        let (device, dtype) = (model.cx.device(), model.cx.dtype());
        let measured = rounds::time_rounds(device, dtype, self.rounds, || round(&model))?;
        let model = folder.display().to_string();
        let subject = BenchSubject { op, model, device, dtype, tokens, batch: self.batch, context };
        let mut more = Map::new();
        more.extend(quantize.name().map(|format| ("quantize".to_string(), Value::from(format))));
        self.print(common, &measured, &measured.json(&subject, more))
    }

    /// Prints a benchmark's result and, with `--html`, writes its page.
    fn print(&self, common: &CommonOptions, measured: &MeasuredRounds, result: &Value) -> Result<()> {
        if let Some(to) = &self.html {
            output::write_file(to, page::bench_page(measured, result).as_bytes())?;
        }
        if common.json {
            output::print_json(result)
        } else {
            output::print_line(rounds::result_summary(measured, result, common.verbose))
        }
    }
}

fn frame_size(text: &str) -> Result<(u16, u16), String> {
    let sides = text.split_once('x').and_then(|(height, width)| Some((height.parse().ok()?, width.parse().ok()?)));
    sides.ok_or_else(|| format!("{text:?} is not HEIGHTxWIDTH, such as 224x420"))
}

fn size(text: &str) -> Result<(String, u64), String> {
    let (key, value) = text.split_once('=').ok_or("give KEY=NUMBER, such as tokens=4096")?;
    let value = value.parse().map_err(|_| format!("give a whole number after {key}=, such as {key}=4096"))?;
    Ok((key.to_string(), value))
}

/// The results of `reel bench op`, to be printed as JSON.
struct OpResults<'a> {
    rows: &'a [TimedKernel],
    clocks: Option<&'a ClockSummary>,
    /// Error messages of kernels that could not be timed.
    problems: &'a [String],
    /// Name of the matrix product library (such as cuBLASLt) and the algorithms that the library chose, as JSON.
    products: Value,
    /// The GPU's counters of each CUDA kernel that ran.
    counters: &'a [KernelCounters],
}

/// Returns a line for each kernel that was timed with its variants: which variant was the fastest.
fn fastest_variants(rows: &[TimedKernel]) -> Vec<String> {
    let chosen = rows.iter().filter(|row| row.variant.is_none());
    let with_variants = chosen.filter_map(|row| {
        let variants = rows.iter().filter(|v| v.kernel == row.kernel).filter_map(|v| Some((v.variant?, v)));
        let seconds = |row: &TimedKernel| row.timed.median_seconds();
        let (name, fastest) = variants.min_by(|(_, a), (_, b)| seconds(a).total_cmp(&seconds(b)))?;
        let ratio = seconds(row) / seconds(fastest);
        Some(format!(
            "  {}: fastest variant: {name}; the variant that reel uses takes {ratio:.3} times as long",
            row.kernel
        ))
    });
    with_variants.collect()
}

impl OpArgs {
    fn run(&self, common: &CommonOptions) -> Result<()> {
        let sizes = Sizes::new(self.sizes.iter().cloned()).map_err(unknown_size_error)?;
        let (device, timing_device) = match common.device()? {
            common::DeviceName::Cpu => (model::open_device(common)?, TimingDevice::Cpu(common.threads()?)),
            common::DeviceName::Cuda(number) => {
                let gpu = open_gpu(&format!("cuda:{number}"), "choose --device cpu")?;
                (model::open_device(common)?, TimingDevice::for_gpu(gpu))
            }
            _ => return Err(usage_error("--device", "kernels can be timed only on cpu and cuda", "use one of them")),
        };
        let dtype = common.dtype.map(common::DtypeName::to_dtype);
        let runs = self.runs as usize;
        let timers = op_timers(&self.name, &sizes, dtype, runs, self.variants, &device, &timing_device)?;
        if self.launch_only {
            return timers.into_iter().try_for_each(|timer| Ok((timer.time)().map(drop)?));
        }
        let limits = PublishedLimits::of_device(&device);
        let progress = BenchmarkProgress::new(common.quiet || common.json);
        progress.show("measuring the roofline ceilings of this machine");
        let mut ceilings = Ceilings::measure(&device)?;
        progress.clear();
        let mut sampler = ClockSampler::start_on_gpu_of(&device, Duration::from_millis(5));
        let (mut rows, mut problems, mut readings) = (Vec::new(), Vec::new(), Vec::new());
        let count = timers.len();
        for (i, timer) in timers.into_iter().enumerate() {
            progress.show(&timing_line(&timer.name, i + 1, count));
            sampler.as_mut().map(|sampler| sampler.summarize_new(&mut readings));
            let timed = (timer.time)();
            let clocks = sampler.as_mut().map(|sampler| sampler.summarize_new(&mut readings));
            progress.clear();
            match timed {
                Ok(timed) => {
                    for row in timed {
                        let row = TimedKernel { clocks: clocks.clone(), ..row };
                        ceilings = raised_ceilings(&row, ceilings, limits.as_ref());
                        if !common.json {
                            // The table's header is printed with the first row, so that a failing command prints
                            // nothing on stdout.
                            if rows.is_empty() {
                                output::print_line(format!("{}  of roofline", TimedKernel::table_header()))?;
                            }
                            let share = share_text(roofline_share(&row, &ceilings));
                            let variant = row.variant.map(|v| format!("  {v}")).unwrap_or_default();
                            output::print_line(format!("{}  {share:>7}{variant}", row.table_row()))?;
                        }
                        rows.push(row);
                    }
                }
                Err(e) => problems.push(e.to_string()),
            }
        }
        let clocks = sampler.map(|_| ClockSummary::summarize(&readings));
        if let Some(first) = problems.first().filter(|_| rows.is_empty()) {
            return Err(anyhow::anyhow!("{first}"));
        }
        trace::set_ceilings(ceilings);
        trace::record_timed_kernels(device.name(), &device.hardware().name, &rows, |row| {
            roofline_share(row, &ceilings)
        });
        let counters = if device.capabilities().async_launches && !self.no_counters {
            self.counters(common, &progress)
        } else {
            Vec::new()
        };
        if common.json {
            let products = timing_device.matmul_library_json().unwrap_or_else(|| rounds::matmul_library_json(&device));
            let results =
                OpResults { rows: &rows, clocks: clocks.as_ref(), problems: &problems, products, counters: &counters };
            self.print_json(&device, &ceilings, results)?;
        } else {
            if let Some(row) = rows.first() {
                output::print_line(format!("  {}", row.size))?;
            }
            for fastest in fastest_variants(&rows) {
                output::print_line(fastest)?;
            }
            for kernel in &counters {
                output::print_line(format!("  {:34} {}", kernel.symbol, kernel.explanation()))?;
            }
            if let Some(clocks) = clocks {
                output::print_line(clocks.summary_line())?;
            }
        }
        match problems.first() {
            None => Ok(()),
            Some(first) => Err(failed(&self.name, first, "all other kernels were timed")),
        }
    }

    /// Reads the GPU's counters by running this measurement again under ncu. Without ncu, or if ncu fails, returns no
    /// counters and says why in one line on stderr.
    fn counters(&self, common: &CommonOptions, progress: &BenchmarkProgress) -> Vec<KernelCounters> {
        let Some(ncu) = counters::find_ncu() else {
            reel_support::diagnostic::note!(
                "bench: the GPU's counters are not read: ncu is not installed (it comes with CUDA's Nsight Compute)"
            );
            return Vec::new();
        };
        let mut arguments: Vec<String> =
            ["bench", "op", &self.name, "--runs", "1", "--launch-only"].map(String::from).into();
        arguments.extend(self.sizes.iter().flat_map(|(key, value)| ["--size".into(), format!("{key}={value}")]));
        arguments.extend(self.variants.then(|| "--variants".to_string()));
        arguments.extend(common.device.iter().flat_map(|device| ["--device".into(), device.clone()]));
        arguments.extend(common.dtype.iter().flat_map(|dtype| ["--dtype".into(), dtype.to_dtype().name().to_string()]));
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        progress.show("reading the GPU's counters with ncu");
        let counters = counters::read_counters(&ncu, &program, &arguments);
        progress.clear();
        counters.unwrap_or_else(|why| {
            reel_support::diagnostic::note!("bench: the GPU's counters are not read: {why}");
            Vec::new()
        })
    }

    fn print_json(&self, device: &Device, ceilings: &Ceilings, results: OpResults) -> Result<()> {
        let OpResults { rows, clocks, problems, products, counters } = results;
        let kernels: Vec<Value> = rows
            .iter()
            .map(|row| {
                let mut one = row.json();
                one["floor_seconds"] = json!(roofline_seconds(row, ceilings));
                one["share_of_floor"] = json!(roofline_share(row, ceilings));
                one
            })
            .collect();
        let sizes: Map<String, Value> = self.sizes.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        output::print_json(&json!({
            "op": "op", "name": self.name, "sizes": sizes, "n": self.runs, "device": device.name(),
            "threads": device.threads(), "machine": hardware_json(device), "kernels": kernels, "ceilings": ceilings,
            "products": products, "clocks": clocks.map(ClockSummary::json), "problems": problems,
            "counters": counters.iter().map(KernelCounters::json).collect::<Vec<_>>(), "version": env!("CARGO_PKG_VERSION"),
        }))
    }
}
