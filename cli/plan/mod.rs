//! `reel plan`: predicts memory and time of a command for a machine that need not exist here.
//!
//! The code of the command itself runs on device `dry`, which counts allocations, floating-point operations and the
//! bytes that kernels read and write, and computes nothing. A time is predicted from the share of the ceiling that the
//! kernel reached in a record of measurements on this GPU; from a model of the kernel if its code has changed since
//! (`reel_tools::measure::pricing`); from the ceiling alone if there is no record.

mod advice;
mod costs;
mod format;
mod generate;
mod job;
mod parts;
mod products;
mod row;
mod search;
mod serve;
mod table;
mod training;

use std::ops::DerefMut;
use std::path::PathBuf;

use anyhow::Result;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Subcommand};
use reel_device::{DType, Device, Kernels};
use reel_engine::{GenerationRequest, StopCondition};
use reel_input::ModelInput;
use reel_input::config::{ModelConfig, open_preprocessor_config};
use reel_input::fetch::MediaAccess;
use reel_input::media::patches::ImageProcessorSettings;
use reel_input::tensor_file::StoredDType;
use reel_model::init::{Preset, init_without_weights, preset_config};
use reel_model::weights::StoredWeights;
use reel_tools::measure::machine::MachineSpec;
use reel_train::options::{GradientCheckpointing, GrpoOptions, RunOptions, SftOptions, TrainingOptions};
use reel_train::runs::plan::{self, RowShape, RowSizes};
use reel_train::setup::{DataSetup, TrainerSetup};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::common::{self, CommonOptions};
use crate::fail::{failed, usage_error};
use crate::grpo::GrpoArgs;
use crate::init::ModelSizeFlags;
use crate::sft::SftArgs;
use crate::training::ResolvedOptions;
use crate::{media, model, prompt};
use costs::{DryRunCounts, TrainingCounts};
use generate::PlanGenerateArgs;
use job::JobFlags;
use row::{PlannedMedia, PlannedRow, RowSizeFlags};
use serve::PlanServeArgs;
use training::{PlannedSettings, TrainingPlanner};

/// Predict peak memory, floating-point operations and the time of a command, without running it, without a GPU and
/// without weights.
///
/// For a GPU with a record of measured kernels (h200), the time of each op is predicted from the latency and the share
/// of the ceilings in that record, or, if the code of the kernel has changed since or has no record, from a model of
/// the kernel. The table shows the time by each basis; `priced by` says which basis is used and what limits the model.
/// Predicted steps of a 7B model are within 25 % of the measured ones. For other GPUs every op is predicted from the
/// ceilings alone, which gives the least possible time.
///
/// --nframes, --fps, --profile and the other media options, with --frame-size and --duration, plan rows with a video:
/// its frames and their size are those that the command takes of such a video. Options of the command that change
/// neither memory nor time, such as --learning-rate, are accepted and have no effect.
///
/// A plan that does not fit exits with 1, after the nearest choices that would: LoRA, smaller moments of the optimizer,
/// checkpointing, a smaller micro-batch, more GPUs; int8 weights, shorter requests, tensor parallel.
/// `--find-batch-size` finds the largest micro-batch that fits.
///
/// `--world N` plans a training job of N GPUs: memory of each rank, bytes on each link, step time, and a table of weak
/// scaling to 1024 GPUs.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel plan sft --preset 3b --nframes 16 --frame-size 1280x720 --duration 20 \\
    --gpu h200
  reel plan grpo --preset 7b --tokens 2048 --vision-patches 4096 --gpu h200 \\
    --optim adamw-bf16
  reel plan sft --preset 72b --tokens 4096 --gpu h200 --lora-r 16 \\
    --world 16 --nodes 2 --gradient-accumulation-steps 16 --zero-stage 3
  reel plan generate --preset 7b --tokens 2048 --gpu h100
  reel plan serve --preset 7b --tokens 2048 --gpu h100")]
pub struct PlanArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Plan `reel sft`, with the same options
    #[command(after_help = "Example:\n  reel plan sft --preset 3b --tokens 2048 --vision-patches 4096 --gpu h200")]
    Sft(Box<PlanSftArgs>),
    /// Plan `reel grpo`, with the same options: sampling completions of maximum length, and the training steps on them
    #[command(
        after_help = "Example:\n  reel plan grpo --preset 7b --tokens 2048 --vision-patches 4096 --gpu h200 \\\n    --optim adamw-bf16"
    )]
    Grpo(Box<PlanGrpoArgs>),
    /// Plan `reel generate`
    #[command(after_help = "Example:\n  reel plan generate --preset 7b --tokens 2048 --gpu h100")]
    Generate(PlanGenerateArgs),
    /// Plan `reel serve`: the sequences that fit, and the latency of a prompt and of a token
    #[command(after_help = "Example:\n  reel plan serve --preset 7b --tokens 4096 --vision-patches 8192 --gpu h200")]
    Serve(PlanServeArgs),
}

/// Options that all plans share: the machine, the model's size, and the size of the rows (training examples or
/// prompts).
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Plan options")]
struct Sizes {
    #[command(flatten)]
    shape: ModelSizeFlags,
    /// GPU to plan for: b200, h200, h100, a100, l40s, rtx4090, or a file NAME.toml with the figures of a GPU
    /// (docs/guide-performance.md); --device cpu plans for this machine
    #[arg(long, value_name = "NAME")]
    gpu: Option<String>,
    #[command(flatten)]
    row: RowSizeFlags,
}

/// The planned model, which needs no weights.
struct PlannedModel {
    config: ModelConfig,
    /// The dtype in which the weight files store weights that are not quantised.
    files: StoredDType,
    name: String,
    processor: ImageProcessorSettings,
    /// The model folder; `None` for a preset.
    folder: Option<PathBuf>,
}

/// The option `--find-batch-size` of plans of training commands.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Plan options")]
struct BatchSizeFlag {
    /// Find the largest micro-batch that fits the memory, and plan it: rows, completions, or tokens with --packing
    #[arg(long)]
    find_batch_size: bool,
}

#[derive(Args, Debug)]
struct PlanSftArgs {
    #[command(flatten)]
    sft: SftArgs,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    batch_size: BatchSizeFlag,
    #[command(flatten)]
    job: JobFlags,
}

#[derive(Args, Debug)]
struct PlanGrpoArgs {
    #[command(flatten)]
    grpo: GrpoArgs,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    batch_size: BatchSizeFlag,
    #[command(flatten)]
    job: JobFlags,
}

impl PlanArgs {
    pub fn run(&self, common: &CommonOptions, matches: &ArgMatches) -> Result<()> {
        let matches = matches.subcommand().map_or(matches, |(_, m)| m);
        match &self.what {
            What::Sft(p) => p.run(common, matches),
            What::Grpo(p) => p.run(common, matches),
            What::Generate(p) => p.run(common, matches),
            What::Serve(p) => p.run(common, matches),
        }
    }
}

impl Sizes {
    fn machine(&self, common: &CommonOptions) -> Result<MachineSpec> {
        match &self.gpu {
            Some(_) if common.device.as_deref().is_some_and(|device| !device.starts_with("cuda")) => {
                Err(usage_error("--gpu", "names a different machine from --device", "give one of the two"))
            }
            Some(name) => Ok(MachineSpec::gpu_by_name_or_file(name)?),
            None => match common.device()? {
                common::DeviceName::Cpu => Ok(MachineSpec::this_cpu(common.threads()?)),
                common::DeviceName::Cuda(number) => Ok(MachineSpec::this_gpu(number)?),
                common::DeviceName::Sim => Err(usage_error(
                    "--device",
                    "device sim is not a machine to plan for: it simulates a GPU on this CPU",
                    "give --gpu NAME or --device cpu",
                )),
                common::DeviceName::Dry => {
                    Err(usage_error("--device", "dry has no speed", "give --gpu NAME or --device cpu"))
                }
            },
        }
    }

    /// Returns true if the planned machine is a GPU.
    fn plans_gpu(&self, common: &CommonOptions) -> bool {
        self.gpu.is_some() || matches!(common.device(), Ok(common::DeviceName::Cuda(_)))
    }

    /// Returns the prompt of `reel generate` or `reel serve`, whose frame and pixel limits are `flags`, or those of the
    /// run that wrote the model.
    fn prompt(&self, model: &PlannedModel, flags: &media::MediaFlags, common: &CommonOptions) -> Result<PlannedRow> {
        let (worker, access) = (media::WorkerFlags::default(), MediaAccess::default());
        let options = prompt::media_options(flags, &worker, model.folder.as_deref(), access, false, common)?;
        media::check_fits_model(&options, &model.config)?;
        self.row.row(&model.config, &model.processor, &PlannedMedia::new(&options, flags), "the prompt")
    }

    /// Opens device `dry` with the kernels that the planned machine would run and with its memory (on a CPU, the free
    /// memory).
    fn device(&self, common: &CommonOptions) -> Result<Device> {
        if self.gpu.is_none() && common.device()? == common::DeviceName::Cpu {
            return Ok(Device::dry_machine(Kernels::Cpu, 0, Device::cpu(1).free_bytes()));
        }
        let machine = self.machine(common)?;
        // The kernels for Hopper run on no later architecture, so newer GPUs load the PTX of compute_80, which has
        // the kernels for the A100.
        let capability = if machine.compute_capability > 90 { 80 } else { machine.compute_capability };
        Ok(Device::dry_machine(Kernels::Cuda, capability, machine.memory.map(|bytes| bytes as u64)))
    }

    /// Creates a temporary model folder of the preset, without weights.
    fn write_preset_folder(&self, common: &CommonOptions) -> Result<TempDir> {
        let folder = reel_support::files::temporary_folder()
            .map_err(|e| failed("temporary folder", e, "set TMPDIR to a writable folder"))?;
        init_without_weights(&self.shape.options(&CommonOptions { dtype: None, ..common.clone() })?, folder.path())?;
        Ok(folder)
    }

    /// Returns the dtype of activations: `--dtype`, else bf16 on a GPU and f32 on the CPU.
    fn dtype(&self, common: &CommonOptions) -> DType {
        if common.dtype.is_none() && self.gpu.is_some() { DType::BF16 } else { model::activation_dtype(common) }
    }

    /// Returns the model that `--model` or `--preset` selects.
    fn config(&self, model: Option<&str>, common: &CommonOptions) -> Result<PlannedModel> {
        match (model.filter(|m| !m.is_empty()), &self.shape.preset) {
            (Some(_), Some(_)) => {
                Err(usage_error("--preset", "cannot be combined with --model", "give one of the two"))
            }
            (None, None) => {
                let help = format!("give --model MODEL, or --preset NAME: {}", Preset::NAMES);
                Err(usage_error("--model", "is missing", help))
            }
            (Some(model), None) => {
                self.shape.refuse_beside_model()?;
                let folder = prompt::find_or_download_model(model)?;
                let config = ModelConfig::open(&folder)?;
                let files = plan::stored_weights(&folder, &config).dtype;
                let processor = open_preprocessor_config(&folder, &config)?;
                Ok(PlannedModel { config, files, name: model.to_string(), processor, folder: Some(folder) })
            }
            (None, Some(name)) => {
                // In `reel plan`, --dtype is the dtype of activations; the preset decides the dtype of the weight
                // files.
                let options = self.shape.options(&CommonOptions { dtype: None, ..common.clone() })?;
                let (config, files) = (preset_config(&options)?, options.preset.default_dtype());
                let folder = self.write_preset_folder(common)?;
                let processor = open_preprocessor_config(folder.path(), &config)?;
                Ok(PlannedModel { config, files, name: name.clone(), processor, folder: None })
            }
        }
    }
}

/// Options that concern the rows of `--data`, or the threads of a CPU.
const OF_DATA: [&str; 8] = [
    "media_root",
    "allow_remote_media",
    "confine_media",
    "media_timeout",
    "media_memory",
    "max_samples",
    "no_shuffle",
    "quarantine",
];

/// Options that concern decoded frames.
const OF_FRAMES: [&str; 3] = ["frame_cache", "frame_cache_limit", "decoder"];

/// Prints which options on the command line have no effect on a plan: those for decoded frames, those for reading rows if
/// no rows are read, and the number of CPU threads if the plan is for a GPU.
fn note_unused_options(reads_rows: bool, sizes: &Sizes, common: &CommonOptions, matches: &ArgMatches) {
    let is_given = |name: &&str| {
        let is_known = matches.ids().any(|id| id.as_str() == *name);
        is_known && matches.value_source(name) == Some(ValueSource::CommandLine)
    };
    let of_data: &[&str] = if reads_rows { &[] } else { &OF_DATA };
    let of_cpu: &[&str] = if sizes.plans_gpu(common) { &["threads"] } else { &[] };
    let unused: [(&[&str], &str); 3] =
        [(of_data, "it reads no rows (--data)"), (of_cpu, "it is for a GPU"), (&OF_FRAMES, "it decodes no videos")];
    for (names, why) in unused {
        for name in names.iter().filter(|name| is_given(name) && !common.quiet) {
            reel_support::diagnostic::note!(
                "note: --{}: has no effect on this plan, because {why}",
                name.replace('_', "-")
            );
        }
    }
}

/// A training command to plan, with the functions that run it on device `dry`.
struct Counting<'a, O> {
    resolved: &'a ResolvedOptions<O>,
    sizes: &'a Sizes,
    media: PlannedMedia,
    /// The name of training examples in the printed plan: `rows` or `prompts`.
    rows: &'static str,
    /// The unit of work that needs `wanted` training examples: `micro-batch` or `step`.
    unit: &'static str,
    /// Returns the number of training examples in a unit; `None` with packing.
    wanted: fn(&O) -> Option<usize>,
    /// Returns the option that limits the tokens of a training example, and its value.
    token_limit: fn(&O) -> (&'static str, Option<usize>),
    plan_rows_of_one_size: WithShape<O>,
    plan_run_on_data: fn(&O, &DataSetup, &TrainerSetup, StoredWeights) -> reel_train::Result<plan::Plan>,
}

type WithShape<O> = fn(&O, &ModelConfig, StoredWeights, DType, &RowShape, &Device) -> reel_train::Result<plan::Plan>;

impl<O: TrainingOptions + DerefMut<Target = RunOptions> + Clone + DeserializeOwned> Counting<'_, O> {
    /// Returns the row of the planned sizes, for a plan without `--data`.
    fn row(&self, model: &PlannedModel) -> Result<PlannedRow> {
        let rows = format!("the {}, --data FILE", self.rows);
        self.sizes.row.row(&model.config, &model.processor, &self.media, &rows)
    }

    /// Returns the number of tokens of each row; `None` for the rows of `--data`.
    fn row_tokens(&self, common: &CommonOptions, options: &O) -> Result<Option<usize>> {
        if !options.data.as_os_str().is_empty() {
            return Ok(None);
        }
        Ok(Some(self.row(&self.sizes.config(Some(&options.model), common)?)?.shape.tokens))
    }

    /// Runs the command with `options` on device `dry` and returns its costs.
    fn count(&self, common: &CommonOptions, options: &O) -> Result<DryRunCounts> {
        let Self { resolved, sizes, rows, .. } = self;
        let dtype = sizes.dtype(common);
        let planned = sizes.config(Some(&options.model), common)?;
        let PlannedModel { config, files, name, .. } = &planned;
        media::check_fits_model(&resolved.media_options()?, config)?;
        let files = StoredWeights { dtype: *files, quantization: config.quantization.as_ref() };
        let (mut video, mut decoding) = (serde_json::Value::Null, None);
        let (plan, rows) = match options.data.as_os_str().is_empty() {
            true => {
                let row = self.row(&planned)?;
                let (limit, most) = (self.token_limit)(options);
                let tokens = row.shape.tokens;
                if let Some(most) = most.filter(|most| tokens > *most) {
                    let what = format!("is {tokens}, more than {limit} {most} allows");
                    return Err(usage_error("--tokens", what, format!("lower it, or raise {limit}")));
                }
                let device = sizes.device(common)?;
                let plan = (self.plan_rows_of_one_size)(options, config, files, dtype, &row.shape, &device)?;
                // The tokens of a step of GRPO include completions, but it always has the wanted number of prompts.
                let videos = match O::COMMAND {
                    "grpo" => (self.wanted)(options).unwrap_or_default() as u64,
                    _ => plan.tokens.checked_div(plan.steps * tokens as u64).unwrap_or_default(),
                };
                decoding = row.decoding_seconds().map(|seconds| (seconds, videos));
                video = row.video_json();
                (plan, format!("{rows} of {row}"))
            }
            false => {
                sizes.row.refuse_beside_data()?;
                // A preset has no model folder, so create a temporary one with its small tokenizer; it must exist
                // until the rows are counted.
                let preset = options.model.is_empty().then(|| sizes.write_preset_folder(common)).transpose()?;
                let folder = match &preset {
                    Some(folder) => folder.path().to_path_buf(),
                    None => prompt::find_or_download_model(&options.model)?,
                };
                let (device, media) = (sizes.device(common)?, resolved.media_options()?);
                let data = DataSetup { model: &folder, media: &media, seed: resolved.common.seed() };
                let trainer = TrainerSetup::new(&device, dtype);
                let tokenizer =
                    if preset.is_some() { " (text tokenized with the small tokenizer of the preset)" } else { "" };
                let plan = (self.plan_run_on_data)(options, &data, &trainer, files)?;
                let RowSizes { rows: count, tokens, patches } = plan.row_sizes;
                let range = |[least, most]: [usize; 2]| match least == most {
                    true => least.to_string(),
                    false => format!("{least} to {most}"),
                };
                let (tokens, patches) = (range(tokens), range(patches));
                let sizes = format!("{count} planned, each of {tokens} tokens, {patches} patches");
                (plan, format!("the {rows} of {}{tokenizer} ({sizes})", options.data.display()))
            }
        };
        if plan.steps == 0 {
            return Err(failed(
                options.data.display(),
                "no row of this data file can be used for training",
                format!("run reel {} --check-data to see why", O::COMMAND),
            ));
        }
        let few = match (self.wanted)(options).filter(|wanted| plan.rows < *wanted) {
            None => String::new(),
            Some(wanted) => format!(
                "; the run has only {} {} for a {} of {wanted}, so it computes these together, as planned here",
                plan.rows, self.rows, self.unit
            ),
        };
        Ok(DryRunCounts {
            command: O::COMMAND,
            subject: format!(
                "{name}, {rows}, micro-batch size {}, gradient checkpointing {}{few}",
                options.per_device_train_batch_size,
                plan.checkpointing.map_or(options.gradient_checkpointing, GradientCheckpointing::from)
            ),
            dtype,
            memory: plan.memory,
            phases: plan.phases,
            units: plan.steps,
            unit: "step",
            tokens: plan.tokens,
            row_sizes: plan.row_sizes,
            video,
            training: Some(TrainingCounts {
                decoding,
                checkpoint: plan.checkpoint,
                parts: plan.parts,
                backward: plan.backward,
                trained: plan.trained,
                divided: plan.divided,
                has_few_rows: !few.is_empty(),
            }),
        })
    }
}

impl PlanSftArgs {
    fn run(&self, common: &CommonOptions, matches: &ArgMatches) -> Result<()> {
        let mut resolved = self.sft.resolved(common, matches)?;
        resolved.worker.decode_on_cpu();
        let resolved = &resolved;
        let media = planned_media(resolved, matches)?;
        note_unused_options(!resolved.options.data.as_os_str().is_empty(), &self.sizes, common, matches);
        let common = &planned_common_options(&resolved.common, common, &self.sizes);
        let sizes = &self.sizes;
        let counting = Counting {
            resolved,
            sizes,
            media,
            rows: "rows",
            unit: "micro-batch",
            wanted: |o: &SftOptions| (!o.packing).then_some(o.per_device_train_batch_size),
            token_limit: |o: &SftOptions| ("--max-length", o.max_length),
            plan_rows_of_one_size: plan::plan_rows_of_one_size,
            plan_run_on_data: plan::plan_run_on_data,
        };
        let mut options = resolved.options.clone();
        let settings = PlannedSettings { job: self.job.on_machines(resolved.job.nodes, &mut options), options };
        TrainingPlanner { counting, sizes, common }.run(settings, self.batch_size.find_batch_size)
    }
}

impl PlanGrpoArgs {
    fn run(&self, common: &CommonOptions, matches: &ArgMatches) -> Result<()> {
        let mut resolved = self.grpo.resolved(common, matches)?;
        resolved.worker.decode_on_cpu();
        let resolved = &resolved;
        let media = planned_media(resolved, matches)?;
        note_unused_options(!resolved.options.data.as_os_str().is_empty(), &self.sizes, common, matches);
        let common = &planned_common_options(&resolved.common, common, &self.sizes);
        let sizes = &self.sizes;
        let counting = Counting {
            resolved,
            sizes,
            media,
            rows: "prompts",
            unit: "step",
            wanted: |o: &GrpoOptions| Some(o.groups_per_step()),
            token_limit: |o: &GrpoOptions| ("--max-prompt-length", o.max_prompt_length),
            plan_rows_of_one_size: plan::grpo::plan_rows_of_one_size,
            plan_run_on_data: plan::grpo::plan_run_on_data,
        };
        let mut options = resolved.options.clone();
        let settings = PlannedSettings { job: self.job.on_machines(resolved.job.nodes, &mut options), options };
        TrainingPlanner { counting, sizes, common }.run(settings, self.batch_size.find_batch_size)
    }
}

/// Returns the frame and pixel limits of a training command. The profile counts as given only if the command line names
/// it, because every configuration file of a run names one.
fn planned_media<O>(resolved: &ResolvedOptions<O>, matches: &ArgMatches) -> Result<PlannedMedia>
where
    O: TrainingOptions + DerefMut<Target = RunOptions> + Clone + DeserializeOwned,
{
    let mut media = PlannedMedia::new(&resolved.media_options()?, &resolved.media);
    let names_profile = matches.value_source("profile") == Some(ValueSource::CommandLine);
    media.given.retain(|name| names_profile || name != "--profile");
    Ok(media)
}

/// Returns the common options for planning a training command: those of the run (`resolved`, with its configuration
/// file). The device in that file is where the run computes, so it does not replace the planned machine of `--gpu`.
fn planned_common_options(resolved: &CommonOptions, given: &CommonOptions, sizes: &Sizes) -> CommonOptions {
    let device = if sizes.gpu.is_some() { &given.device } else { &resolved.device };
    CommonOptions { device: device.clone(), ..resolved.clone() }
}

/// Refuses a number of new tokens that is larger than the model's number of positions.
fn refuse_new_tokens(tokens: usize, config: &ModelConfig) -> Result<()> {
    let positions = config.text.max_position_embeddings;
    match (1..=positions).contains(&tokens) {
        true => Ok(()),
        false => Err(usage_error(
            "--max-new-tokens",
            format!("is {tokens}"),
            format!("give 1 to {positions}, the maximum sequence length of the model"),
        )),
    }
}

/// A request for `n` completions of `new` tokens for a prompt of the size `shape`.
fn request(config: &ModelConfig, shape: &RowShape, new: usize, n: usize) -> GenerationRequest {
    let patches: usize = shape.video_grid_thw.iter().map(|g| g.iter().product::<usize>()).sum();
    let mut ids = vec![0; shape.tokens];
    ids[..patches / config.vision.patches_per_vision_token()].fill(config.tokens.video);
    let prompt = ModelInput {
        input_ids: ids,
        position_ids: std::array::from_fn(|_| vec![0; shape.tokens]),
        frames: shape.black_videos(config),
        video_grid_thw: shape.video_grid_thw.clone(),
        ..ModelInput::default()
    };
    GenerationRequest {
        max_new_tokens: new,
        stop_conditions: (0..n).map(|_| StopCondition::none()).collect(),
        ..GenerationRequest::new(prompt)
    }
}
