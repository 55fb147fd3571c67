//! `reel plan`: what a command needs on a machine that need not be there. The command's own code runs on the dry device.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::{ArgMatches, Args, Subcommand};
use reel_engine::{Engine, Request, Sampling, Stop};
use reel_model::batch::Sequence;
use reel_model::checkpoint;
use reel_model::config::ModelConfig;
use reel_model::init::{init_without_weights, preset_config};
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_model::weights::{Loader, Source};
use reel_runtime::{Cx, DType, Device, Kernels, MemoryUse, OpTotals};
use reel_train::plan::{self, Shape};
use reel_train::sft::Setup;
use serde_json::json;
use tempfile::TempDir;

use crate::common::{self, Common};
use crate::fail::{bad_usage, failed};
use crate::init::ShapeFlags;
use crate::machines::Machine;
use crate::sft::Sft;
use crate::{generate, model, output, prompt};

/// Say what a command would need, in memory and time, without running it.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel plan sft --preset 3b --tokens 2048 --vision-patches 4096 --gpu h200
  reel plan generate --preset 7b --tokens 2048 --gpu h100")]
pub struct Plan {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Plan `reel sft`, whose options it takes
    #[command(after_help = "Example:\n  reel plan sft --preset 3b --tokens 2048 --vision-patches 4096 --gpu h200")]
    Sft(Box<PlanSft>),
    /// Plan `reel generate`
    #[command(after_help = "Example:\n  reel plan generate --preset 7b --tokens 2048 --gpu h100")]
    Generate(PlanGenerate),
}

/// The machine and the sizes to plan for.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Plan options")]
struct Sizes {
    #[command(flatten)]
    shape: ShapeFlags,
    /// The GPU: h200, h100, a100, l40s or rtx4090; --device cpu plans for this machine
    #[arg(long, value_name = "NAME")]
    gpu: Option<String>,
    /// Tokens of a row, those of its media included
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Patches of a row's film, 4 to a token
    #[arg(long, value_name = "N", default_value_t = 0)]
    vision_patches: usize,
}

#[derive(Args, Debug)]
struct PlanSft {
    #[command(flatten)]
    sft: Sft,
    #[command(flatten)]
    sizes: Sizes,
}

#[derive(Args, Debug)]
struct PlanGenerate {
    /// The model folder, or a hub id
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Tokens to make
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_new_tokens: usize,
    /// Answers
    #[arg(long, value_name = "N", default_value_t = 1)]
    n: usize,
    #[command(flatten)]
    sizes: Sizes,
}

/// What was counted, and for what.
struct Counted {
    command: &'static str,
    subject: String,
    dtype: DType,
    memory: MemoryUse,
    /// Stretches of the work with their costs; the same number of units each.
    phases: Vec<(&'static str, BTreeMap<&'static str, OpTotals>)>,
    /// Steps or calls that were counted.
    units: u64,
    unit: &'static str,
    tokens: u64,
}

impl Plan {
    /// Counts and prints.
    pub fn run(&self, common: &Common, matches: &ArgMatches) -> Result<()> {
        let matches = matches.subcommand().map_or(matches, |(_, m)| m);
        let (sizes, counted) = match &self.what {
            What::Sft(p) => (&p.sizes, p.count(common, matches)?),
            What::Generate(p) => (&p.sizes, p.count(common)?),
        };
        print(common, &counted, &sizes.machine(common)?)
    }
}

impl Sizes {
    fn machine(&self, common: &Common) -> Result<Machine> {
        match &self.gpu {
            Some(name) => Machine::gpu(name),
            None => match common.device()? {
                common::Device::Cpu => Ok(Machine::this_processor(common.threads()?)),
                common::Device::Cuda(number) => Machine::this_gpu(number),
                common::Device::Sim => Err(bad_usage(
                    "--device",
                    "sim has the speed of this processor, not of a GPU",
                    "give --gpu NAME or --device cpu",
                )),
                common::Device::Dry => {
                    Err(bad_usage("--device", "dry has no speed", "give --gpu NAME or --device cpu"))
                }
            },
        }
    }

    /// What counts: the kernels of the machine that is planned for.
    fn device(&self, common: &Common) -> Result<Device> {
        let cpu = self.gpu.is_none() && common.device()? == common::Device::Cpu;
        Ok(match cpu {
            true => Device::dry(Kernels::Cpu),
            false => Device::dry_of(Kernels::Cuda, self.machine(common)?.compute_capability),
        })
    }

    /// A folder of the preset without weights, if the model is to be a preset.
    fn preset_folder(&self, wanted: bool, common: &Common) -> Result<Option<TempDir>> {
        if !wanted {
            return Ok(None);
        }
        let folder = tempfile::tempdir()
            .map_err(|e| failed("temporary folder", e, "set TMPDIR to a folder that can be written"))?;
        init_without_weights(&self.shape.options(&Common { dtype: None, ..common.clone() })?, folder.path())?;
        Ok(Some(folder))
    }

    /// bf16 on a GPU, f32 here, unless asked otherwise.
    fn dtype(&self, common: &Common) -> DType {
        if common.dtype.is_none() && self.gpu.is_some() { DType::BF16 } else { model::dtype(common) }
    }

    /// Config and weight dtype of a folder or of a preset, and what to call it.
    fn config(&self, model: Option<&str>, common: &Common) -> Result<(ModelConfig, checkpoint::Dtype, String)> {
        match (model.filter(|m| !m.is_empty()), &self.shape.preset) {
            (Some(_), Some(_)) => Err(bad_usage("--preset", "given together with --model", "give one of the two")),
            (None, None) => Err(bad_usage("--model", "is missing", "give --model MODEL or --preset tiny|3b|7b")),
            (Some(model), None) => {
                let folder = prompt::folder(model)?;
                let config = ModelConfig::open(&folder)?;
                let files = plan::file_dtype(&folder, &config);
                Ok((config, files, model.to_string()))
            }
            (None, Some(name)) => {
                // --dtype is that of activations here; the preset's files keep their own.
                let options = self.shape.options(&Common { dtype: None, ..common.clone() })?;
                Ok((preset_config(&options)?, options.preset.dtype(), name.clone()))
            }
        }
    }
}

impl PlanSft {
    fn count(&self, common: &Common, matches: &ArgMatches) -> Result<Counted> {
        let resolved = self.sft.resolved(common, matches)?;
        let (options, dtype) = (&resolved.options, self.sizes.dtype(common));
        let model = Some(options.model.as_str());
        let (config, files, name) = self.sizes.config(model, common)?;
        let (plan, rows) = match self.sizes.tokens {
            Some(tokens) => {
                let shape = Shape::new(tokens, self.sizes.vision_patches, &config)?;
                let patches = self.sizes.vision_patches;
                (
                    plan::with_shape(options, &config, files, dtype, &shape, &self.sizes.device(common)?)?,
                    format!("rows of {tokens} tokens, {patches} patches"),
                )
            }
            None if options.data.as_os_str().is_empty() => {
                return Err(bad_usage("--tokens", "is missing", "give --tokens N, or --data FILE with --model"));
            }
            None => {
                // A preset brings its own small tokenizer, in a folder that lives as long as the count.
                let preset = self.sizes.preset_folder(options.model.is_empty(), common)?;
                let folder = match &preset {
                    Some(folder) => folder.path().to_path_buf(),
                    None => prompt::folder(&options.model)?,
                };
                let setup = Setup {
                    options,
                    model: &folder,
                    device: &self.sizes.device(common)?,
                    dtype,
                    seed: resolved.common.seed(),
                    media: &resolved.media()?,
                    resolved: &serde_json::Value::Null,
                    quiet: true,
                    stop: &std::sync::atomic::AtomicBool::new(false),
                };
                let tokenizer = if preset.is_some() { " (text counted by the preset's small tokenizer)" } else { "" };
                (plan::with_data(&setup, files)?, format!("the rows of {}{tokenizer}", options.data.display()))
            }
        };
        if plan.steps == 0 {
            return Err(failed(
                options.data.display(),
                "no row of it can be used",
                "run reel sft --check-data to see why",
            ));
        }
        Ok(Counted {
            command: "sft",
            subject: format!("{name}, {rows}, {} at a time", options.per_device_train_batch_size),
            dtype,
            memory: plan.memory,
            phases: vec![("step", plan.ops)],
            units: plan.steps,
            unit: "step",
            tokens: plan.tokens,
        })
    }
}

impl PlanGenerate {
    fn count(&self, common: &Common) -> Result<Counted> {
        let dtype = self.sizes.dtype(common);
        let (config, files, name) = self.sizes.config(self.model.as_deref(), common)?;
        let Some(tokens) = self.sizes.tokens else {
            return Err(bad_usage("--tokens", "is missing", "give the tokens of the prompt"));
        };
        // Each token is a pass that is counted.
        let most = config.text.max_position_embeddings;
        if !(1..=most).contains(&self.max_new_tokens) {
            let what = format!("is {}", self.max_new_tokens);
            return Err(bad_usage(
                "--max-new-tokens",
                what,
                format!("give 1 to {most}, the longest text of the model"),
            ));
        }
        if !(1..=generate::MOST_ANSWERS).contains(&self.n) {
            return Err(generate::answers_refused(self.n));
        }
        let shape = Shape::new(tokens, self.sizes.vision_patches, &config)?;
        let device = self.sizes.device(common)?;
        let loader = Loader { device: &device, source: Source::Nothing(files), dtype, trainable: &|_| false };
        let weights = Qwen25Vl::load(&loader, &config)?;
        let count = |new: usize| -> Result<BTreeMap<&'static str, OpTotals>> {
            device.profile().clear();
            device.reset_peak();
            answer(&device, &weights, dtype, &shape, new, self.n)?;
            Ok(device.profile().totals()?)
        };
        let prefill = count(1)?;
        let mut decode = count(self.max_new_tokens)?;
        for (name, before) in &prefill {
            if let Some(all) = decode.get_mut(name) {
                all.launches -= before.launches;
                all.cost.flops -= before.cost.flops;
                all.cost.bytes -= before.cost.bytes;
            }
        }
        decode.retain(|_, t| t.launches > 0);
        Ok(Counted {
            command: "generate",
            subject: format!("{name}, a prompt of {tokens} tokens, {} answers of {}", self.n, self.max_new_tokens),
            dtype,
            memory: device.memory(),
            phases: vec![("prefill", prefill), ("decode", decode)],
            units: 1,
            unit: "call",
            tokens: (tokens + self.n * self.max_new_tokens) as u64,
        })
    }
}

/// Runs the engine on a prompt of this size, with nothing in it.
fn answer(device: &Device, weights: &Qwen25Vl, dtype: DType, shape: &Shape, new: usize, n: usize) -> Result<()> {
    let config = &weights.config;
    let patches: usize = shape.video_grid_thw.iter().map(|g| g.iter().product::<usize>()).sum();
    let mut ids = vec![0; shape.tokens];
    ids[..patches / config.vision.merge_unit()].fill(i64::from(config.tokens.video));
    let (positions, frames) = (vec![0; shape.tokens], shape.frames(config));
    let request = Request {
        prompt: Sequence {
            input_ids: &ids,
            position_ids: [&positions; 3],
            frames: Some(&frames),
            video_grid_thw: &shape.video_grid_thw,
            ..Sequence::default()
        },
        rope_delta: 0,
        sampling: Sampling::default(),
        max_new_tokens: new,
        eos: &[],
        min_new_tokens: 0,
        stops: (0..n).map(|_| Stop::none()).collect(),
    };
    Engine::new(weights, &Cx::inference(device, dtype))?.generate(vec![request], |_| {})?;
    Ok(())
}

/// One line of the table of ops.
struct Line<'a> {
    phase: &'a str,
    op: &'a str,
    launches: f64,
    flops: f64,
    bytes: f64,
    seconds: f64,
    bound: &'static str,
}

fn lines<'a>(c: &'a Counted, m: &Machine) -> Vec<Line<'a>> {
    let each = c.units as f64;
    let mut lines = Vec::new();
    for (phase, totals) in &c.phases {
        lines.extend(totals.iter().map(|(op, t)| {
            let seconds = m.ceilings.seconds(op, t, c.dtype);
            let bound = if seconds * m.ceilings.bytes > t.cost.bytes * 1.000_001 { "arithmetic" } else { "memory" };
            let (flops, bytes) = (t.cost.flops / each, t.cost.bytes / each);
            Line { phase, op, launches: t.launches as f64 / each, flops, bytes, seconds: seconds / each, bound }
        }));
    }
    lines.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    lines
}

fn print(common: &Common, c: &Counted, m: &Machine) -> Result<()> {
    let lines = lines(c, m);
    let sum = |f: fn(&Line) -> f64| lines.iter().map(f).sum::<f64>();
    let (flops, bytes, seconds) = (sum(|l| l.flops), sum(|l| l.bytes), sum(|l| l.seconds));
    let tokens = c.tokens as f64 / c.units as f64;
    let fits = m.memory.map(|all| c.memory.peak as f64 <= all);
    if common.json {
        let phase = |name: &str| lines.iter().filter(|l| l.phase == name).map(|l| l.seconds).sum::<f64>();
        let phases: BTreeMap<&str, f64> = c.phases.iter().map(|(name, _)| (*name, phase(name))).collect();
        let ops: Vec<_> = lines
            .iter()
            .map(|l| {
                json!({"phase": l.phase, "op": l.op, "launches": l.launches, "flops": l.flops, "bytes": l.bytes, "seconds": l.seconds, "bound": l.bound})
            })
            .collect();
        return output::json(&json!({
            "command": c.command, "subject": c.subject, "dtype": c.dtype.name(), "device": m.name,
            "peak_bytes": c.memory.peak, "memory": c.memory.at_peak.iter().copied().collect::<BTreeMap<_, _>>(),
            "capacity_bytes": m.memory, "fits": fits,
            "tokens": tokens, "flops": flops, "bytes": bytes, "seconds": seconds, "phases": phases,
            "tokens_per_second": tokens / seconds, "ops": ops,
            "ceilings": {"flops_f32": m.ceilings.f32, "flops_bf16": m.ceilings.bf16, "bytes_per_second": m.ceilings.bytes, "source": m.source},
        }));
    }
    output::line(format!("reel {} in {}: {}", c.command, c.dtype, c.subject))?;
    let verdict = match (m.memory, fits) {
        (Some(all), Some(true)) => format!(" of {:.1} GB: fits", all / 1e9),
        (Some(all), _) => format!(" of {:.1} GB: DOES NOT FIT", all / 1e9),
        _ => String::new(),
    };
    output::line(format!("\npeak memory {:.3} GB{verdict}", c.memory.peak as f64 / 1e9))?;
    for (name, bytes) in c.memory.at_peak.iter().filter(|(_, b)| *b > 0) {
        output::line(format!("  {name:12} {:>11.3} GB", *bytes as f64 / 1e9))?;
    }
    output::line(format!(
        "\na {} on {}: at least {}, {:.3} TFLOP, {:.3} GB moved, {:.0} tokens a second",
        c.unit,
        m.name,
        duration(seconds),
        flops / 1e12,
        bytes / 1e9,
        tokens / seconds
    ))?;
    output::line(format!(
        "ceilings: {:.1} TFLOP/s bf16, {:.1} TFLOP/s f32, {:.3} TB/s ({})",
        m.ceilings.bf16 / 1e12,
        m.ceilings.f32 / 1e12,
        m.ceilings.bytes / 1e12,
        m.source
    ))?;
    output::line(format!(
        "\n  {:8} {:34} {:>9} {:>12} {:>11} {:>10}  bound by",
        "phase", "op", "launches", "TFLOP", "GB", "time"
    ))?;
    for l in &lines {
        output::line(format!(
            "  {:8} {:34} {:>9.0} {:>12.4} {:>11.4} {:>10}  {}",
            l.phase,
            l.op,
            l.launches,
            l.flops / 1e12,
            l.bytes / 1e9,
            duration(l.seconds),
            l.bound
        ))?;
    }
    Ok(())
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}
