//! `reel plan sft|grpo`: prints the plan, settings that fit if the plan does not, and the largest micro-batch
//! (`--find-batch-size`).

use std::collections::BTreeMap;
use std::ops::DerefMut;

use anyhow::Result;
use reel_tools::measure::machine::MachineSpec;
use reel_train::options::{GradientCheckpointing, GrpoOptions, Optim, RunOptions, SftOptions, TrainingOptions};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::advice::{PlanAdditions, UsableMemory, advise_on_settings, push_changed_option, shows_progress};
use super::costs::{self, DryRunCounts};
use super::format::format_duration;
use super::job::{JobFlags, PlannedJob};
use super::search::{PlanOutcome, SearchDimension, SettingsChange, largest_that_fits};
use super::{Counting, Sizes, table};
use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};

/// LoRA rank in suggested options; the README's example has the same rank.
const LORA_RANK: usize = 16;
/// Numbers of GPUs that are tried as advice.
const GPU_COUNTS: [u32; 6] = [2, 4, 8, 16, 32, 64];

/// Maximum micro-batches that `--find-batch-size` tries: `MAX_ROWS` rows of one size; `MAX_TOKENS` tokens with
/// packing, because the host must create the inputs for device `dry`; `MAX_ROWS_OF_DATA` rows of a data file, because
/// a plan reads no more rows.
const MAX_ROWS: usize = 4096;
const MAX_TOKENS: usize = 1 << 22;
const MAX_ROWS_OF_DATA: usize = 256;

/// Options of a training command whose micro-batch `reel plan` changes.
pub trait MicroBatchOptions: TrainingOptions + DerefMut<Target = RunOptions> + Clone + DeserializeOwned {
    /// Number of rows by which the size of a micro-batch can change.
    fn rows_of_unit(&self) -> usize;

    /// Returns the number of tokens that packing puts into a micro-batch (`--max-length`); `None` without packing.
    fn packed_tokens(&mut self) -> Option<&mut Option<usize>>;

    /// Describes these options in words, for the headline of a plan.
    fn subject(&self) -> String;
}

impl MicroBatchOptions for SftOptions {
    fn rows_of_unit(&self) -> usize {
        1
    }

    fn packed_tokens(&mut self) -> Option<&mut Option<usize>> {
        self.packing.then_some(&mut self.max_length)
    }

    fn subject(&self) -> String {
        String::new()
    }
}

impl MicroBatchOptions for GrpoOptions {
    fn rows_of_unit(&self) -> usize {
        self.num_generations.max(1)
    }

    fn packed_tokens(&mut self) -> Option<&mut Option<usize>> {
        None
    }

    fn subject(&self) -> String {
        let shuffled = if self.temporal { ", and half as many more with shuffled frames" } else { "" };
        let (completions, tokens) = (self.num_generations, self.max_completion_length);
        format!("; {completions} completions of {tokens} tokens per prompt{shuffled}")
    }
}

/// The settings that `reel plan` varies: the options of the command, and those of the job.
#[derive(Clone, Debug)]
pub struct PlannedSettings<O> {
    pub options: O,
    pub job: JobFlags,
}

/// Plans a training command with various settings.
pub struct TrainingPlanner<'a, O> {
    pub counting: Counting<'a, O>,
    pub sizes: &'a Sizes,
    pub common: &'a CommonOptions,
}

/// A plan: the counts of one rank's process, and the job if there are several ranks.
struct Planned {
    counts: DryRunCounts,
    job: Option<PlannedJob>,
}

impl Planned {
    fn outcome(&self, machine: &MachineSpec, usable: Option<UsableMemory>) -> PlanOutcome {
        let fits = |peak: u64| usable.is_none_or(|usable| peak <= usable.bytes());
        if let Some(outcome) = self.job.as_ref().and_then(|job| job.outcome(&self.counts, machine, fits)) {
            return outcome;
        }
        let seconds = costs::total(costs::phase_seconds(&self.counts, machine).iter().map(|(_, seconds)| *seconds));
        let tokens_per_second = self.counts.tokens as f64 / self.counts.units as f64 / seconds;
        let peak = self.counts.memory.peak as u64;
        PlanOutcome { peak, seconds, tokens_per_second, gpus: 1, fits: fits(peak) }
    }
}

impl<O: MicroBatchOptions> TrainingPlanner<'_, O> {
    /// Makes the plan and prints it. `finds_batch_size` is the value of `--find-batch-size`.
    pub fn run(&self, settings: PlannedSettings<O>, finds_batch_size: bool) -> Result<()> {
        if !finds_batch_size {
            let planned = self.plan(&settings)?;
            let machine = self.sizes.machine(self.common)?;
            return self.print(&settings, &planned, &machine, PlanAdditions::default());
        }
        let machine = self.sizes.machine(self.common)?;
        let Some(usable) = UsableMemory::of_planned_machine(self.sizes, machine.memory, self.common)? else {
            return Err(usage_error("--find-batch-size", "the memory of this machine is unknown", "give --gpu NAME"));
        };
        let (settings, largest, additions) = self.find_batch_size(settings, &machine, usable)?;
        self.print(&settings, &self.plan(&settings)?, &machine, additions)?;
        let nothing_fits = || {
            let what = format!("not even the smallest fits into the usable {:.1} GB", usable.bytes() as f64 / 1e9);
            failed("--find-batch-size", what, "plan with one of the options above, or with shorter rows")
        };
        largest.map(drop).ok_or_else(nothing_fits)
    }

    fn plan(&self, settings: &PlannedSettings<O>) -> Result<Planned> {
        let mut options = settings.options.clone();
        let job = settings.job.reduce_to_one_rank(&mut options, self.sizes, self.common)?;
        let mut counts = self.counting.count(self.common, &options)?;
        counts.subject += &options.subject();
        Ok(Planned { counts, job })
    }

    /// Prints a plan with `additions`. If the plan does not fit, also searches for settings that fit and prints them
    /// after the text of the plan.
    ///
    /// # Errors
    /// The plan does not fit into the memory; it cannot be printed.
    fn print(
        &self,
        settings: &PlannedSettings<O>,
        planned: &Planned,
        machine: &MachineSpec,
        mut additions: PlanAdditions,
    ) -> Result<()> {
        let usable = UsableMemory::of_planned_machine(self.sizes, machine.memory, self.common)?;
        let outcome = planned.outcome(machine, None);
        // A GPU needs memory for more than the tensors, so advice is given before the tensors fill all of the memory.
        let is_gpu = self.sizes.plans_gpu(self.common);
        if is_gpu {
            add_decoding(&mut additions, &planned.counts, outcome.seconds);
        }
        let lacks_memory =
            |usable: &UsableMemory| outcome.peak as f64 > if is_gpu { usable.bytes() as f64 } else { usable.all };
        // No advice is given for settings that the command itself would refuse.
        let is_valid = settings.options.validate_values().is_ok();
        let advice = || match usable.filter(lacks_memory) {
            None => PlanAdditions::default(),
            Some(usable) => advise_on_settings(
                settings,
                &self.dimensions(settings),
                self.common,
                usable,
                Some(outcome.peak),
                |changed| options_between(settings, changed),
                |changed| {
                    if is_valid {
                        changed.options.validate_values()?;
                    }
                    Ok(self.plan(changed)?.outcome(machine, Some(usable)))
                },
            ),
        };
        let print = |additions| match &planned.job {
            Some(job) => job.print(self.common, &planned.counts, machine, additions),
            None => table::print_plan_with(self.common, &planned.counts, machine, additions),
        };
        if self.common.json {
            additions.fields.extend(advice().fields);
            print(additions)?;
        } else {
            print(additions)?;
            advice().print_lines()?;
        }
        table::refuse_large_peak(outcome.peak, machine)
    }

    /// Returns the ways to save memory that these settings do not use yet. A search weakens the last dimension first.
    fn dimensions(&self, settings: &PlannedSettings<O>) -> Vec<SearchDimension<PlannedSettings<O>>> {
        let mut all = vec![
            SearchDimension { name: "LoRA", group: "lora", levels: lora_levels(&settings.options) },
            SearchDimension { name: "smaller moments", group: "optim", levels: optimizer_levels(&settings.options) },
            SearchDimension {
                name: "a smaller micro-batch",
                group: "batch",
                levels: micro_batch_levels(&settings.options),
            },
            SearchDimension {
                name: "checkpointing",
                group: "checkpointing",
                levels: checkpointing_levels(&settings.options),
            },
        ];
        if self.sizes.plans_gpu(self.common) {
            let levels = |stage| gpu_levels(settings, stage);
            all.push(SearchDimension { name: "more GPUs (ZeRO-3)", group: "gpus", levels: levels(3) });
            if settings.options.zero_stage == 2 {
                all.push(SearchDimension { name: "more GPUs (ZeRO-2)", group: "gpus", levels: levels(2) });
            }
        }
        all.retain(|dimension| !dimension.levels.is_empty());
        all
    }

    /// Finds the largest micro-batch that fits. Returns the settings with this micro-batch, or with the smallest one
    /// if none fits, and the number of its units.
    fn find_batch_size(
        &self,
        settings: PlannedSettings<O>,
        machine: &MachineSpec,
        usable: UsableMemory,
    ) -> Result<(PlannedSettings<O>, Option<u64>, PlanAdditions)> {
        let unit = BatchUnit::of(&settings.options, self.counting.row_tokens(self.common, &settings.options)?)?;
        let mut planned: BTreeMap<u64, PlanOutcome> = BTreeMap::new();
        let with = |n: u64| {
            let mut changed = settings.clone();
            unit.set(&mut changed.options, n as usize);
            changed
        };
        let shows_progress = shows_progress(self.common);
        let largest = largest_that_fits(1, unit.most as u64, |n| {
            if shows_progress {
                eprint!("\r\x1b[Kplanning {} {}", unit.option, n as usize * unit.size);
            }
            let plan = self.plan(&with(n))?;
            if n > 1 && plan.counts.training.as_ref().is_some_and(|training| training.has_few_rows) {
                let what = format!("reaches {} {}, but --data has fewer rows", unit.option, n as usize * unit.size);
                return Err(usage_error(
                    "--find-batch-size",
                    what,
                    "give a file with more rows, or --tokens N instead",
                ));
            }
            let outcome = plan.outcome(machine, Some(usable));
            planned.insert(n, outcome);
            Ok(outcome.fits)
        });
        if shows_progress {
            eprint!("\r\x1b[K");
        }
        let largest = largest?;
        let report = |n: u64| {
            let o = planned.get(&n)?;
            Some(json!({
                "value": n as usize * unit.size, "peak_bytes": o.peak, "fits": o.fits,
                "seconds_per_token": 1.0 / o.tokens_per_second,
            }))
        };
        let next = largest.map_or(Some(1), |n| (n < unit.most as u64).then_some(n + 1));
        let mut fields = Map::new();
        fields.insert(
            "find_batch_size".into(),
            json!({
                "option": unit.option, "largest": largest.and_then(report), "next": next.and_then(report),
                "usable_bytes": usable.bytes(), "dry_runs": planned.len(),
            }),
        );
        let value = |n: u64| n as usize * unit.size;
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let limit = format!("{:.1} GB are usable, {:.0} % of the memory", gb(usable.bytes()), 100.0 * usable.share);
        let peak = |n: u64| planned.get(&n).map_or(0.0, |o| gb(o.peak));
        let line = match (largest, next) {
            (None, _) => format!("\nnot even {} {} fits: {:.3} GB; {limit}", unit.option, value(1), peak(1)),
            (Some(n), next) => {
                let time = planned.get(&n).map_or(0.0, |o| 1.0 / o.tokens_per_second);
                let beyond = match next {
                    Some(next) => format!("{} would need {:.3} GB", value(next), peak(next)),
                    None => "the search ends there".to_string(),
                };
                format!(
                    "\nlargest micro-batch that fits: {} {}, {:.3} GB, {} for each token; {beyond} ({limit})",
                    unit.option,
                    value(n),
                    peak(n),
                    format_duration(time)
                )
            }
        };
        Ok((with(largest.unwrap_or(1)), largest, PlanAdditions { fields, lines: vec![line] }))
    }
}

/// Adds how many processor cores decode the planned videos as fast as each GPU trains on them. A step takes `seconds`.
fn add_decoding(additions: &mut PlanAdditions, counts: &DryRunCounts, seconds: f64) {
    let Some((each, rows)) = counts.training.as_ref().and_then(|training| training.decoding) else { return };
    let cores = each * rows as f64 / seconds;
    let fields = json!({"cpu_seconds_per_video": each, "videos_per_step": rows, "cpu_cores_per_gpu": cores});
    additions.fields.insert("decoding".into(), fields);
    additions.lines.push(format!(
        "\ndecoding: {rows} videos per step, about {each:.2} CPU seconds each (H.264), need {cores:.1} CPU cores per GPU; \
         with fewer, the CPU limits the GPU"
    ));
}

/// The unit in which an option gives the size of a micro-batch.
struct BatchUnit {
    option: &'static str,
    /// The value of the option for one unit.
    size: usize,
    /// Maximum number of units that is tried.
    most: usize,
}

impl BatchUnit {
    /// `tokens` is the number of tokens of each row; `None` for the rows of a data file.
    fn of<O: MicroBatchOptions>(options: &O, tokens: Option<usize>) -> Result<Self> {
        let mut options = options.clone();
        let rows_of_unit = options.rows_of_unit();
        let most = |tokens: usize, rows: usize| MAX_ROWS.min(MAX_TOKENS / tokens.max(1) / rows).max(1);
        match (options.packed_tokens(), tokens) {
            (Some(_), Some(tokens)) => Ok(Self { option: "--max-length", size: tokens.max(1), most: most(tokens, 1) }),
            (Some(_), None) => Err(usage_error(
                "--find-batch-size",
                "with --packing, rows of --data that are longer than a smaller --max-length would be skipped",
                "give --tokens N instead of --data",
            )),
            (None, tokens) => {
                let most = tokens.map_or(MAX_ROWS_OF_DATA / rows_of_unit, |tokens| most(tokens, rows_of_unit));
                Ok(Self { option: "--per-device-train-batch-size", size: rows_of_unit, most: most.max(1) })
            }
        }
    }

    fn set<O: MicroBatchOptions>(&self, options: &mut O, units: usize) {
        let value = units * self.size;
        match options.packed_tokens() {
            Some(tokens) => *tokens = Some(value),
            None => options.per_device_train_batch_size = value,
        }
    }
}

fn lora_levels<O: MicroBatchOptions>(options: &O) -> Vec<SettingsChange<PlannedSettings<O>>> {
    match options.lora_r {
        0 if !options.freeze_llm => vec![Box::new(|s: &mut PlannedSettings<O>| s.options.lora_r = LORA_RANK)],
        _ => Vec::new(),
    }
}

fn optimizer_levels<O: MicroBatchOptions>(options: &O) -> Vec<SettingsChange<PlannedSettings<O>>> {
    let smaller: &[Optim] = match options.optim {
        Optim::Adamw => &[Optim::AdamwBf16, Optim::Adamw8bit],
        Optim::AdamwBf16 => &[Optim::Adamw8bit],
        Optim::Adamw8bit => &[],
    };
    let level = |&optim: &Optim| -> SettingsChange<PlannedSettings<O>> { Box::new(move |s| s.options.optim = optim) };
    smaller.iter().map(level).collect()
}

/// Returns the changes to stronger gradient checkpointing. The mode `auto` has none: if a plan with `auto` does not
/// fit, every layer is recomputed already.
fn checkpointing_levels<O: MicroBatchOptions>(options: &O) -> Vec<SettingsChange<PlannedSettings<O>>> {
    use GradientCheckpointing::{Auto, Full, None, Selective};
    let stronger: &[GradientCheckpointing] = match options.gradient_checkpointing {
        None => &[Selective, Full],
        Selective => &[Full],
        Auto | Full => &[],
    };
    let level = |&mode: &GradientCheckpointing| -> SettingsChange<PlannedSettings<O>> {
        Box::new(move |s| s.options.gradient_checkpointing = mode)
    };
    stronger.iter().map(level).collect()
}

/// Returns the changes to smaller micro-batches. Each size divides the present one, so that a step keeps its number
/// of rows.
fn micro_batch_levels<O: MicroBatchOptions>(options: &O) -> Vec<SettingsChange<PlannedSettings<O>>> {
    let (rows, unit) = (options.per_device_train_batch_size, options.rows_of_unit());
    if options.clone().packed_tokens().is_some() {
        return Vec::new();
    }
    let units = rows / unit;
    let level = |n: usize| -> SettingsChange<PlannedSettings<O>> {
        Box::new(move |s| {
            s.options.per_device_train_batch_size = n * unit;
            s.options.gradient_accumulation_steps *= units / n;
        })
    };
    (1..units).rev().filter(|n| units.is_multiple_of(*n)).map(level).collect()
}

/// Returns the changes to more GPUs, with at least one micro-batch per GPU. For ZeRO-3 instead of ZeRO-2, the present
/// number of GPUs is also tried if there are several.
fn gpu_levels<O: MicroBatchOptions>(
    settings: &PlannedSettings<O>,
    zero_stage: u8,
) -> Vec<SettingsChange<PlannedSettings<O>>> {
    let now = settings.job.rank_count(&settings.options);
    let level = |ranks: u32| -> SettingsChange<PlannedSettings<O>> {
        Box::new(move |s| {
            s.job.set_rank_count(&mut s.options, ranks);
            s.options.zero_stage = zero_stage;
            s.options.gradient_accumulation_steps = s.options.gradient_accumulation_steps.max(ranks as usize);
        })
    };
    let same = (now > 1 && zero_stage == 3 && settings.options.zero_stage == 2).then_some(now);
    let more = GPU_COUNTS.into_iter().filter(|n| *n > now && n.is_multiple_of(now));
    same.into_iter().chain(more).map(level).collect()
}

/// Returns the options that change `before` to `after`.
fn options_between<O: MicroBatchOptions>(before: &PlannedSettings<O>, after: &PlannedSettings<O>) -> String {
    let mut options = Vec::new();
    let (old, new): (&RunOptions, &RunOptions) = (&before.options, &after.options);
    push_changed_option(&mut options, "--lora-r", &old.lora_r, &new.lora_r);
    if old.optim != new.optim {
        let name = serde_json::to_value(new.optim).ok();
        options.extend(name.as_ref().and_then(Value::as_str).map(|name| format!("--optim {name}")));
    }
    push_changed_option(
        &mut options,
        "--gradient-checkpointing",
        &old.gradient_checkpointing.to_string(),
        &new.gradient_checkpointing.to_string(),
    );
    push_changed_option(
        &mut options,
        "--per-device-train-batch-size",
        &old.per_device_train_batch_size,
        &new.per_device_train_batch_size,
    );
    options.extend(after.job.changed_options(&before.job, old, new));
    push_changed_option(&mut options, "--zero-stage", &old.zero_stage, &new.zero_stage);
    push_changed_option(
        &mut options,
        "--gradient-accumulation-steps",
        &old.gradient_accumulation_steps,
        &new.gradient_accumulation_steps,
    );
    options.join(" ")
}
