//! `reel plan serve`: memory, the number of sequences that fit, and the latency of a server.
//!
//! ```text
//! weights                                 as files store them, or int8 (--quantize)
//! KV blocks                               as reel serve takes of the memory that the weights leave, or --kv-memory
//! a prompt, alone                         → time to first token
//! a decode step of all that decode        → inter-token latency, in the middle of answers
//! gathers of a divided model              bytes over the link between the GPUs (--tensor-parallel-size)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use clap::{ArgMatches, Args};
use reel_device::{DType, Device};
use reel_engine::Engine;
use reel_input::config::{ModelConfig, TextConfig};
use reel_input::tensor_file::StoredDType;
use reel_model::quantization::Quantization;
use reel_model::qwen_vl::QwenVl;
use reel_model::tensor_parallel::{ShardExchange, TensorParallel};
use reel_model::text::TextDecoder;
use reel_model::vision::VisionTower;
use reel_model::weights::{StoredWeights, WeightLoader, WeightSource};
use reel_runtime::ops::KvPages;
use reel_runtime::{Cx, Tensor};
use reel_support::diagnostic::Diagnostic;
use reel_support::error::{Error, Kind};
use reel_tools::measure::links::{ATTAINABLE_BANDWIDTH_SHARE, JobLinks};
use reel_tools::measure::machine::MachineSpec;
use reel_train::runs::plan::{OpCosts, PhaseCosts};
use serde::Serialize;
use serde_json::json;

use super::advice::{PlanAdditions, UsableMemory, advise_on_settings, push_changed_option};
use super::costs::{self, DryRunCounts};
use super::format::{format_duration, format_rate};
use super::row::PlannedRow;
use super::search::{PlanOutcome, SearchDimension, SettingsChange};
use super::table::{self, PredictionWording};
use super::{PlannedModel, Sizes, note_unused_options, parts, refuse_new_tokens, request};
use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::media::MediaFlags;
use crate::model::QuantizeFlag;
use crate::{model, output};

/// The category of the KV cache in reports of memory.
const KV_CATEGORY: &str = "kv_cache";

/// Minimum number of tokens that the planned requests generate: the first token comes from the prefill, and the costs
/// of a decode step are counted in the second step.
const MIN_NEW_TOKENS: usize = 4;

#[derive(Args, Clone, Debug)]
pub struct PlanServeArgs {
    /// Model folder, or Hugging Face model id
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Maximum number of completions that decode together [default: 256 on cuda, else 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,
    /// Maximum memory for keys and values, in MiB [default: the share of free memory that reel serve takes after
    /// loading the weights]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    kv_memory: Option<u32>,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_new_tokens: usize,
    /// Maximum tokens of a prompt with its answer, as reel serve --max-model-len: a longer prompt of --tokens is
    /// planned with the rest that --max-new-tokens leaves
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    max_model_len: Option<u32>,
    /// Divide the model among N GPUs of a machine, as reel serve --tensor-parallel-size N does: the memory is that of
    /// each GPU
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    tensor_parallel_size: u32,
    /// Link between the GPUs of --tensor-parallel-size: nvlink, pcie4 or pcie5 [default: nvlink, or the PCIe of GPUs
    /// without it]
    #[arg(long, value_name = "NAME")]
    link: Option<String>,
    #[command(flatten)]
    quantize: QuantizeFlag,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    sizes: Sizes,
}

/// Counts, on device `dry`, the bytes that a rank of a divided model receives from the other ranks.
#[derive(Debug)]
pub struct ExchangeCounter {
    ranks: usize,
    bytes: AtomicU64,
    exchanges: AtomicU64,
}

impl ShardExchange for ExchangeCounter {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        self.ranks
    }

    fn all_gather(&self, _name: &str, own: &Tensor, parts: &[Tensor]) -> Result<(), Diagnostic> {
        self.bytes.fetch_add(((parts.len() - 1) * own.bytes()) as u64, Ordering::Relaxed);
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl ExchangeCounter {
    /// Returns the bytes and exchanges since the last call.
    pub fn take_counts(&self) -> ExchangeCounts {
        ExchangeCounts {
            bytes: self.bytes.swap(0, Ordering::Relaxed),
            exchanges: self.exchanges.swap(0, Ordering::Relaxed),
        }
    }
}

/// The bytes that each rank receives in a phase, and the number of exchanges.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ExchangeCounts {
    pub bytes: u64,
    pub exchanges: u64,
}

/// The sizes of a server on device `dry`: what fits into its memory.
struct ServingPlan {
    batch: usize,
    kv_bytes: usize,
    blocks: usize,
    /// Number of sequences (prompt and answer) whose KV blocks fit into memory at the same time.
    sequences: usize,
    /// Number of sequences in the decode step whose costs are counted.
    decoding: usize,
    /// The exchanges of a divided model: for a prompt, and in a decode step.
    gathers: [ExchangeCounts; 2],
}

/// Loads, without values, the part of a model that one of `ranks` GPUs has. Also returns the counter of the bytes
/// that this GPU receives.
pub fn load_model_part_of_rank(
    device: &Device,
    files: StoredDType,
    config: &ModelConfig,
    dtype: DType,
    quantization: Quantization,
    ranks: usize,
) -> Result<(Arc<ExchangeCounter>, QwenVl)> {
    let exchange = Arc::new(ExchangeCounter { ranks, bytes: AtomicU64::default(), exchanges: AtomicU64::default() });
    let parallel = if ranks > 1 { Some(TensorParallel::new(exchange.clone(), config)?) } else { None };
    let files = StoredWeights { dtype: files, quantization: config.quantization.as_ref() };
    let source = WeightSource::Uninitialised(files);
    let from =
        WeightLoader { device, source, dtype, quantization, may_pad: true, trainable: &|_| false, deferred: None };
    let weights = QwenVl {
        vision: VisionTower::load(&from, &config.vision)?,
        text: TextDecoder::load(&from, config, parallel.as_ref())?,
        config: config.clone(),
        features: None,
    };
    Ok((exchange, weights))
}

impl PlanServeArgs {
    pub fn run(&self, common: &CommonOptions, matches: &ArgMatches) -> Result<()> {
        note_unused_options(true, &self.sizes, common, matches);
        let machine = self.sizes.machine(common)?;
        let (counts, plan) = match self.count(common, machine.memory) {
            Err(e) if is_out_of_memory(&e) => return self.refuse_with_advice(common, &machine, e),
            counted => counted?,
        };
        let mut additions = PlanAdditions::default();
        if table::fits_in_memory(&counts, &machine) == Some(false) {
            additions = self.advice(common, &machine, Some(counts.memory.peak as u64))?;
        }
        let seconds: BTreeMap<&str, f64> = costs::phase_seconds(&counts, &machine).into_iter().collect();
        let ServingPlan { batch, kv_bytes, blocks, sequences, decoding, gathers } = plan;
        let ranks = self.tensor_parallel_size;
        let link = self.links(&machine)?.within_node;
        let [of_prompt, of_step] = gathers.map(|gathers| link.transfer_seconds(gathers.bytes));
        let (prompt, step) = (seconds["prefill"] + of_prompt, seconds["decode"] + of_step);
        let rate = decoding as f64 / step;
        if common.json {
            let mut all = json!({
                "tensor_parallel_size": ranks,
                "gathers": {
                    "link": link.name, "prefill": gathers[0], "prefill_seconds": of_prompt, "decode": gathers[1],
                    "decode_seconds": of_step,
                },
                "command": "serve", "subject": counts.subject, "rows": table::rows_json(&counts),
                "parts": parts::parts_json(&counts, &machine), "dtype": counts.dtype.name(), "device": machine.name,
                "peak_bytes": counts.memory.peak,
                "memory": counts.memory.at_peak.iter().copied().collect::<BTreeMap<_, _>>(),
                "capacity_bytes": machine.memory, "fits": table::fits_in_memory(&counts, &machine),
                "kv_bytes": kv_bytes, "kv_blocks": blocks, "kv_tokens": blocks * KvPages::BLOCK_TOKENS,
                "batch_size": batch, "sequences_that_fit": sequences, "decoding": decoding,
                "time_to_first_token_seconds": prompt, "inter_token_seconds": step, "tokens_per_second": rate,
                "ops": table::ops_json(&counts, &machine),
                "phases_by_basis": table::phase_seconds_by_prediction_basis_json(&counts, &machine),
                "ceilings": table::ceilings_json(&machine),
            });
            additions.merge_into(&mut all);
            output::print_json(&all)?;
            return table::refuse_large_peak(counts.memory.peak as u64, &machine);
        }
        table::print_memory(&counts, &machine)?;
        output::print_line(
            "host memory: up to 1 GiB for a cache of vision tokens, for media that are requested again",
        )?;
        output::print_line(format!(
            "\nKV cache: {blocks} blocks of {} tokens; room for {sequences} such sequences, of which {decoding} decode \
             together (--batch-size {batch})",
            KvPages::BLOCK_TOKENS
        ))?;
        if ranks > 1 {
            let [prompt, step] = gathers;
            output::print_line(format!(
                "the model is divided among {ranks} GPUs, and all figures are those of each: it receives {:.3} GB for a \
                 prompt and {:.2} MB in a decode step, in {} exchanges each, over {} at {:.0} % of its rate: {} and {}; \
                 the latency of exchanges is not counted",
                prompt.bytes as f64 / 1e9,
                step.bytes as f64 / 1e6,
                step.exchanges,
                link.title,
                100.0 * ATTAINABLE_BANDWIDTH_SHARE,
                format_duration(of_prompt),
                format_duration(of_step),
            ))?;
        }
        let PredictionWording { time, rate: about } = PredictionWording::for_machine(&machine);
        output::print_line(format!(
            "time to first token of one request {time} {}; between two tokens of {decoding} {time} {} in the middle of \
             their answers: {about} {} tokens/s",
            format_duration(prompt),
            format_duration(step),
            format_rate(rate),
        ))?;
        table::print_ops(&counts, &machine, common.verbose)?;
        additions.print_lines()?;
        table::refuse_large_peak(counts.memory.peak as u64, &machine)
    }

    /// Prints the settings with which a request would fit, and returns `error`. Called if the KV cache has no room
    /// for one request.
    fn refuse_with_advice(&self, common: &CommonOptions, machine: &MachineSpec, error: anyhow::Error) -> Result<()> {
        let additions = self.advice(common, machine, None)?;
        if common.json {
            let mut plan = json!({"command": "serve", "device": machine.name, "fits": false});
            additions.merge_into(&mut plan);
            output::print_json(&plan)?;
        } else {
            additions.print_lines()?;
        }
        Err(error)
    }

    /// Searches for settings with which the server fits into memory.
    fn advice(&self, common: &CommonOptions, machine: &MachineSpec, peak: Option<u64>) -> Result<PlanAdditions> {
        let Some(usable) = UsableMemory::of_planned_machine(&self.sizes, machine.memory, common)? else {
            return Ok(PlanAdditions::default());
        };
        let options_of = |changed: &Self| {
            let mut options = Vec::new();
            if self.quantize.name() != changed.quantize.name() {
                options.extend(changed.quantize.name().map(|name| format!("--quantize {name}")));
            }
            let length = |args: &Self| args.max_model_len.unwrap_or(0);
            push_changed_option(&mut options, "--max-model-len", &length(self), &length(changed));
            let (before, now) = (&self.tensor_parallel_size, &changed.tensor_parallel_size);
            push_changed_option(&mut options, "--tensor-parallel-size", before, now);
            options.join(" ")
        };
        let plan = |changed: &Self| changed.outcome(common, machine, usable);
        let model = self.sizes.config(self.model.as_deref(), common)?;
        let row = self.sizes.prompt(&model, &self.media, common)?;
        Ok(advise_on_settings(
            self,
            &self.dimensions(common, &model.config, &row),
            common,
            usable,
            peak,
            options_of,
            plan,
        ))
    }

    /// Returns the ways to save memory that these options do not use yet.
    fn dimensions(&self, common: &CommonOptions, config: &ModelConfig, row: &PlannedRow) -> Vec<SearchDimension<Self>> {
        let int8: Vec<SettingsChange<Self>> = match self.quantize.name() {
            Some(_) => Vec::new(),
            None => vec![Box::new(|args| args.quantize = QuantizeFlag::int8())],
        };
        // Tries half, a quarter, … of the planned length, as long as at least half of it is left for the prompt.
        let now = self.prompt_and_answer(row);
        let lengths = (1..16).map(|power| now >> power).take_while(|length| *length >= 2 * self.max_new_tokens);
        let shorter = |length: usize| -> SettingsChange<Self> {
            Box::new(move |args| args.max_model_len = Some(length.next_multiple_of(KvPages::BLOCK_TOKENS) as u32))
        };
        let lengths = lengths.filter(|length| length.next_multiple_of(KvPages::BLOCK_TOKENS) < now);
        let mut all = vec![
            SearchDimension { name: "int8 weights", group: "int8", levels: int8 },
            SearchDimension { name: "shorter requests", group: "length", levels: lengths.map(shorter).collect() },
        ];
        if self.sizes.plans_gpu(common) {
            let can_share = |n: &u32| TensorParallel::check(config, *n as usize).is_ok();
            let ranks = [2u32, 4, 8].into_iter().filter(|n| *n > self.tensor_parallel_size).filter(can_share);
            let level = |n: u32| -> SettingsChange<Self> { Box::new(move |args| args.tensor_parallel_size = n) };
            all.push(SearchDimension { name: "tensor parallel", group: "gpus", levels: ranks.map(level).collect() });
        }
        all.retain(|dimension| !dimension.levels.is_empty());
        all
    }

    /// Returns the memory and speed of a decode step of all sequences.
    fn outcome(&self, common: &CommonOptions, machine: &MachineSpec, usable: UsableMemory) -> Result<PlanOutcome> {
        let (counts, plan) = self.count(common, machine.memory)?;
        let phases = costs::phase_seconds(&counts, machine);
        let compute = costs::total(phases.iter().filter(|(name, _)| *name == "decode").map(|(_, s)| *s));
        let seconds = compute + self.links(machine)?.within_node.transfer_seconds(plan.gathers[1].bytes);
        let peak = counts.memory.peak as u64;
        Ok(PlanOutcome {
            peak,
            seconds,
            tokens_per_second: plan.decoding as f64 / seconds,
            gpus: self.tensor_parallel_size.into(),
            fits: peak <= usable.bytes() && plan.sequences > 0,
        })
    }

    /// Returns the number of tokens of a prompt with its answer.
    fn prompt_and_answer(&self, row: &PlannedRow) -> usize {
        let all = row.shape.tokens + self.max_new_tokens;
        self.max_model_len.map_or(all, |most| all.min(most as usize))
    }

    /// Returns the links between the GPUs of a divided model.
    fn links(&self, machine: &MachineSpec) -> Result<JobLinks> {
        if self.link.is_some() && self.tensor_parallel_size == 1 {
            return Err(usage_error("--link", "is for several GPUs", "give --tensor-parallel-size N as well"));
        }
        let names: Vec<String> = self.link.iter().cloned().collect();
        Ok(JobLinks::new(machine, &names)?)
    }

    /// Runs the engine of a server on device `dry`, for a machine with `memory` bytes.
    fn count(&self, common: &CommonOptions, memory: Option<f64>) -> Result<(DryRunCounts, ServingPlan)> {
        let Self { sizes, max_new_tokens: new, kv_memory, .. } = self;
        let dtype = sizes.dtype(common);
        let model = sizes.config(self.model.as_deref(), common)?;
        let row = sizes.prompt(&model, &self.media, common)?;
        let PlannedModel { config, files, name, .. } = model;
        refuse_new_tokens(*new, &config)?;
        let tokens = self.prompt_and_answer(&row).saturating_sub(*new);
        if tokens == 0 {
            let what = format!("is {new}, which leaves no token of --max-model-len for the prompt");
            return Err(usage_error("--max-new-tokens", what, "lower --max-new-tokens, or raise --max-model-len"));
        }
        let positions = config.text.max_position_embeddings;
        if tokens + new > positions {
            let what = format!("is {new}, but the prompt takes {tokens} of the model's {positions} positions");
            return Err(usage_error("--max-new-tokens", what, "lower --max-new-tokens or --tokens"));
        }
        let row = row.shortened_to(tokens, &config)?;
        let shape = &row.shape;
        let device = sizes.device(common)?;
        let ranks = self.tensor_parallel_size as usize;
        let (exchange, weights) =
            load_model_part_of_rank(&device, files, &config, dtype, self.quantize.quantization(), ranks)?;
        let text = TensorParallel::config_of_one_rank(&config.text, ranks);
        let batch = self.batch_size.map_or_else(|| model::default_batch_size(&device), usize::from);
        let free = memory.map(|all| (all as u64).saturating_sub(device.memory().current as u64));
        let default_kv_bytes = || model::serving_kv_bytes(&device, free, &text, dtype, batch);
        let engine = Engine::new(&weights, &Cx::inference(&device, dtype))?.max_slots(batch);
        let mut running = engine
            .continuous_batch(kv_memory.map_or_else(default_kv_bytes, |mib| (u64::from(mib) << 20) / ranks as u64))?;
        let (blocks, kv_bytes) = (running.stats().blocks, bytes_now(&device, KV_CATEGORY));
        let planned = (*new).max(MIN_NEW_TOKENS);
        // The last token of an answer is never an input of the model, so it takes no place in the KV cache.
        let sequences = blocks / (tokens + planned - 1).div_ceil(KvPages::BLOCK_TOKENS);
        let decoding = batch.min(sequences).max(1);
        device.profiler().clear();
        running.add(0, request(&config, shape, 1, 1))?;
        while !running.is_idle() {
            running.step(&mut |_| {})?;
        }
        let prefill = device.profiler().totals()?;
        let of_prompt = exchange.take_counts();
        // Completions of one prompt have the same decode costs as completions of different prompts.
        running.add(1, request(&config, shape, planned, decoding))?;
        while running.stats().running < decoding && !running.is_idle() {
            running.step(&mut |_| {})?;
        }
        device.profiler().clear();
        exchange.take_counts();
        running.step(&mut |_| {})?;
        let gathers = [of_prompt, exchange.take_counts()];
        let mut decode = device.profiler().totals()?;
        let keys = decoding as f64 * (tokens as f64 + *new as f64 / 2.0);
        count_keys(&mut decode, &text, dtype, keys);
        let counts = DryRunCounts {
            command: "serve",
            subject: format!("{name}, prompts of {row}, answers of {new} tokens"),
            dtype,
            memory: device.memory(),
            phases: PhaseCosts(vec![("prefill", prefill), ("decode", decode)]),
            units: 1,
            unit: "prompt and decode step",
            tokens: (tokens + decoding) as u64,
            row_sizes: row.sizes(),
            video: row.video_json(),
            training: None,
        };
        Ok((counts, ServingPlan { batch, kv_bytes, blocks, sequences, decoding, gathers }))
    }
}

/// Returns true if a plan failed because the KV cache has no room for one request.
fn is_out_of_memory(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error { kind: Kind::TooLong { .. }, .. }))
}

/// Replaces the number of keys that the attention of a decode step reads. The counted step is at the beginning of the
/// answers; `keys` is the number of keys of all sequences in the middle of the answers.
fn count_keys(decode: &mut OpCosts, text: &TextConfig, dtype: DType, keys: f64) {
    let layers = text.num_hidden_layers as f64;
    let (flops_per_key, bytes_per_key) = (
        4.0 * layers * (text.num_attention_heads * text.head_dim) as f64,
        2.0 * layers * (text.num_key_value_heads * text.head_dim * dtype.size()) as f64,
    );
    for totals in decode.iter_mut().filter(|(op, _)| op.starts_with("paged_attention")).map(|(_, totals)| totals) {
        let counted = totals.cost.flops / flops_per_key;
        let before = totals.cost;
        totals.cost.flops = keys * flops_per_key;
        totals.cost.bytes -= (counted - keys) * bytes_per_key;
        totals.planned.scale(totals.cost.flops / before.flops, totals.cost.bytes / before.bytes);
    }
}

/// The bytes of a memory category that are in use now.
fn bytes_now(device: &Device, category: &str) -> usize {
    device.memory().now.iter().filter(|(name, _)| *name == category).map(|(_, bytes)| bytes).sum()
}
