//! `reel plan generate`: memory and time of sampling completions of one prompt.

use anyhow::Result;
use clap::{ArgMatches, Args};
use reel_device::{DType, Device};
use reel_engine::Engine;
use reel_input::config::ModelConfig;
use reel_model::qwen_vl::QwenVl;
use reel_model::tensor_parallel::TensorParallel;
use reel_runtime::Cx;
use reel_tools::measure::links::JobLinks;
use reel_tools::measure::machine::MachineSpec;
use reel_train::runs::plan::{self, PhaseCosts, RowShape};
use serde_json::json;

use super::advice::{PlanAdditions, UsableMemory, advise_on_settings, push_changed_option};
use super::costs::{self, DryRunCounts};
use super::format::format_duration;
use super::search::{PlanOutcome, SearchDimension, SettingsChange};
use super::serve::load_model_part_of_rank;
use super::{PlannedModel, Sizes, note_unused_options, refuse_new_tokens, request, table};
use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::generate;
use crate::media::MediaFlags;
use crate::model::QuantizeFlag;

#[derive(Args, Clone, Debug)]
pub struct PlanGenerateArgs {
    /// Model folder, or Hugging Face model id
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_new_tokens: usize,
    /// Number of completions
    #[arg(long, value_name = "N", default_value_t = 1)]
    n: usize,
    /// Divide the model among N GPUs of a machine, as reel generate --tensor-parallel-size N does: the memory is that
    /// of each GPU
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    tensor_parallel_size: u32,
    #[command(flatten)]
    quantize: QuantizeFlag,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    sizes: Sizes,
}

/// The costs of a generation, and the bytes that each GPU receives from the other GPUs.
struct Counted {
    counts: DryRunCounts,
    received: u64,
}

impl PlanGenerateArgs {
    pub fn run(&self, common: &CommonOptions, matches: &ArgMatches) -> Result<()> {
        note_unused_options(true, &self.sizes, common, matches);
        let machine = self.sizes.machine(common)?;
        let counted = self.count(common)?;
        let mut additions = self.gathers(&counted, &machine)?;
        let usable = UsableMemory::of_planned_machine(&self.sizes, machine.memory, common)?;
        let lacks_memory = table::fits_in_memory(&counted.counts, &machine) == Some(false);
        let advice = || match usable.filter(|_| lacks_memory) {
            Some(usable) => self.advice(common, &machine, usable, counted.counts.memory.peak as u64),
            None => Ok(PlanAdditions::default()),
        };
        if common.json {
            additions.fields.extend(advice()?.fields);
            table::print_plan_with(common, &counted.counts, &machine, additions)?;
        } else {
            // The search may take a minute, so the plan is printed before it.
            table::print_plan_with(common, &counted.counts, &machine, additions)?;
            advice()?.print_lines()?;
        }
        table::refuse_large_peak(counted.counts.memory.peak as u64, &machine)
    }

    /// Searches for settings that fit into memory. `peak` is the peak memory of this plan in bytes.
    fn advice(
        &self,
        common: &CommonOptions,
        machine: &MachineSpec,
        usable: UsableMemory,
        peak: u64,
    ) -> Result<PlanAdditions> {
        let options_of = |changed: &Self| {
            let mut options = Vec::new();
            if self.quantize.name() != changed.quantize.name() {
                options.extend(changed.quantize.name().map(|name| format!("--quantize {name}")));
            }
            push_changed_option(&mut options, "--max-new-tokens", &self.max_new_tokens, &changed.max_new_tokens);
            let (before, now) = (&self.tensor_parallel_size, &changed.tensor_parallel_size);
            push_changed_option(&mut options, "--tensor-parallel-size", before, now);
            options.join(" ")
        };
        let plan = |changed: &Self| changed.outcome(common, machine, usable);
        let PlannedModel { config, .. } = self.sizes.config(self.model.as_deref(), common)?;
        Ok(advise_on_settings(self, &self.dimensions(common, &config), common, usable, Some(peak), options_of, plan))
    }

    /// Describes what the GPUs of a divided model exchange.
    fn gathers(&self, counted: &Counted, machine: &MachineSpec) -> Result<PlanAdditions> {
        let ranks = self.tensor_parallel_size;
        if ranks == 1 {
            return Ok(PlanAdditions::default());
        }
        let link = JobLinks::new(machine, &[])?.within_node;
        let (bytes, seconds) = (counted.received, link.transfer_seconds(counted.received));
        let serde_json::Value::Object(fields) = json!({
            "tensor_parallel_size": ranks, "gathers": {"link": link.name, "bytes": bytes, "seconds": seconds},
        }) else {
            return Ok(PlanAdditions::default());
        };
        let line = format!(
            "\nthe model is divided among {ranks} GPUs, and all figures are those of each: in the call it also receives \
             {:.3} GB over {}, which takes {}; the latency of exchanges is not counted",
            bytes as f64 / 1e9,
            link.title,
            format_duration(seconds)
        );
        Ok(PlanAdditions { fields, lines: vec![line] })
    }

    /// Returns the ways to save memory that these options do not use yet.
    fn dimensions(&self, common: &CommonOptions, config: &ModelConfig) -> Vec<SearchDimension<Self>> {
        let int8: Vec<SettingsChange<Self>> = match self.quantize.name() {
            Some(_) => Vec::new(),
            None => vec![Box::new(|args| args.quantize = QuantizeFlag::int8())],
        };
        let lengths = (1..8).map(|power| self.max_new_tokens >> power).take_while(|tokens| *tokens >= 16);
        let shorter = |tokens: usize| -> SettingsChange<Self> { Box::new(move |args| args.max_new_tokens = tokens) };
        let mut all = vec![
            SearchDimension { name: "int8 weights", group: "int8", levels: int8 },
            SearchDimension { name: "fewer new tokens", group: "length", levels: lengths.map(shorter).collect() },
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

    fn outcome(&self, common: &CommonOptions, machine: &MachineSpec, usable: UsableMemory) -> Result<PlanOutcome> {
        let Counted { counts, received } = self.count(common)?;
        let compute = costs::total(costs::phase_seconds(&counts, machine).iter().map(|(_, seconds)| *seconds));
        let exchange =
            if received > 0 { JobLinks::new(machine, &[])?.within_node.transfer_seconds(received) } else { 0.0 };
        let (seconds, peak) = (compute + exchange, counts.memory.peak as u64);
        Ok(PlanOutcome {
            peak,
            seconds,
            tokens_per_second: counts.tokens as f64 / seconds,
            gpus: self.tensor_parallel_size.into(),
            fits: peak <= usable.bytes(),
        })
    }

    fn count(&self, common: &CommonOptions) -> Result<Counted> {
        let dtype = self.sizes.dtype(common);
        let model = self.sizes.config(self.model.as_deref(), common)?;
        let row = self.sizes.prompt(&model, &self.media, common)?;
        let PlannedModel { config, files, name, .. } = model;
        let (shape, tokens) = (&row.shape, row.shape.tokens);
        let positions = config.text.max_position_embeddings;
        if tokens > positions {
            let what = format!("is {tokens}, more than the model's {positions} positions");
            return Err(usage_error("--tokens", what, "lower it"));
        }
        // The number of new tokens is checked first: device `dry` runs one forward pass per token, so a huge number
        // would take very long.
        refuse_new_tokens(self.max_new_tokens, &config)?;
        generate::check_completion_count(self.n)?;
        let device = self.sizes.device(common)?;
        let ranks = self.tensor_parallel_size as usize;
        let (exchange, weights) =
            load_model_part_of_rank(&device, files, &config, dtype, self.quantize.quantization(), ranks)?;
        let count = |new: usize| -> Result<plan::OpCosts> {
            device.profiler().clear();
            device.reset_peak();
            exchange.take_counts();
            generate_on(&device, &weights, dtype, shape, new, self.n)?;
            Ok(device.profiler().totals()?)
        };
        let prefill = count(1)?;
        let mut decode = count(self.max_new_tokens)?;
        plan::subtract_costs(&mut decode, &prefill);
        let counts = DryRunCounts {
            command: "generate",
            subject: format!("{name}, a prompt of {row}, {} completions of {} tokens", self.n, self.max_new_tokens),
            dtype,
            memory: device.memory(),
            phases: PhaseCosts(vec![("prefill", prefill), ("decode", decode)]),
            units: 1,
            unit: "call",
            tokens: (tokens + self.n * self.max_new_tokens) as u64,
            row_sizes: row.sizes(),
            video: row.video_json(),
            training: None,
        };
        Ok(Counted { counts, received: exchange.take_counts().bytes })
    }
}

/// Runs the inference engine on device `dry`: samples `n` completions of `new` tokens for a prompt of the size
/// `shape`.
fn generate_on(device: &Device, weights: &QwenVl, dtype: DType, shape: &RowShape, new: usize, n: usize) -> Result<()> {
    let request = request(&weights.config, shape, new, n);
    Engine::new(weights, &Cx::inference(device, dtype))?.generate(vec![request], |_| {})?;
    Ok(())
}
