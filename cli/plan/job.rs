//! `reel plan sft|grpo --world N`: plans a training job of N GPUs from the plan of one process.
//!
//! The process of one rank runs on device `dry`, with the micro-batches of the rank that has the most work. From its
//! counts, [`reel_tools::measure::job`] predicts the memory of each rank, the bytes that the ranks exchange, and step
//! times.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_tools::measure::job::{
    BackwardTimes, DividedWeightBytes, JobShape, ProcessCosts, RankTraffic, ScalingPoint, StepTime, weak_scaling,
};
use reel_tools::measure::job_page::job_page;
use reel_tools::measure::links::{ATTAINABLE_BANDWIDTH_SHARE, GPUS_PER_NODE, JobLinks, Link};
use reel_tools::measure::machine::MachineSpec;
use reel_train::options::RunOptions;
use reel_train::runs::plan::ShardedWeights;
use serde_json::{Value, json};

use super::Sizes;
use super::advice::PlanAdditions;
use super::costs::{self, DryRunCounts, TrainingCounts};
use super::format::{format_duration, format_rate};
use super::search::PlanOutcome;
use super::table::{self, PredictionWording};
use crate::common::{CommonOptions, DeviceName};
use crate::fail::usage_error;
use crate::output;

/// Options for planning a job of several GPUs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Plan options")]
pub struct JobFlags {
    /// Plan a job of N GPUs with a process for each, which share the micro-batches of --gradient-accumulation-steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    world: Option<u32>,
    /// Number of machines of the job (`--nodes` of the planned command), each of which has the same number of GPUs.
    #[arg(skip)]
    nodes: Option<u32>,
    /// Link within machines (nvlink, pcie4, pcie5), link between them (ib400, ib200, eth100), or both, divided by a
    /// comma [default: nvlink, or the PCIe of GPUs without it; and ib400]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    link: Vec<String>,
    /// HTML page to write, with charts of step time and efficiency for 1 to 1024 GPUs
    #[arg(long, value_name = "OUT.html")]
    html: Option<PathBuf>,
}

/// A training job of several GPUs that is planned.
pub struct PlannedJob {
    shape: JobShape,
    /// Whether the ranks divide the weights (ZeRO-3).
    divides_weights: bool,
    links: JobLinks,
    html: Option<PathBuf>,
}

impl JobFlags {
    /// Returns these options for a command with `--nodes`, whose `--gpus` counts the GPUs of each machine.
    pub fn on_machines(&self, nodes: Option<u32>, options: &mut RunOptions) -> Self {
        let all =
            nodes.zip(options.gpus).filter(|_| self.world.is_none()).map(|(nodes, gpus)| nodes.saturating_mul(gpus));
        if all.is_some() {
            options.gpus = None;
        }
        Self { nodes, world: self.world.or(all), ..self.clone() }
    }

    /// Returns the job that `--world`, or `--gpus` of the planned command, describes; `None` for a single process.
    /// Changes `options` to the options of one process that has the micro-batches of the rank with the most work.
    ///
    /// # Errors
    /// The GPU is not known, the numbers contradict each other, or the GPU does not have the links.
    pub fn reduce_to_one_rank(
        &self,
        options: &mut RunOptions,
        sizes: &Sizes,
        common: &CommonOptions,
    ) -> Result<Option<PlannedJob>> {
        let (option, ranks) = match (self.world, options.gpus) {
            (Some(world), Some(gpus)) if world != gpus => {
                return Err(usage_error("--gpus", format!("is {gpus}, but --world is {world}"), "leave out --gpus"));
            }
            (Some(world), _) => ("--world", world as usize),
            (None, Some(gpus)) => ("--gpus", gpus as usize),
            (None, None) => {
                let given = [
                    ("--nodes", self.nodes.is_some()),
                    ("--link", !self.link.is_empty()),
                    ("--html", self.html.is_some()),
                ];
                return match given.iter().find(|(_, is_given)| *is_given) {
                    Some((name, _)) => Err(usage_error(name, "is for a job of several GPUs", "give --world N as well")),
                    None => Ok(None),
                };
            }
        };
        if sizes.gpu.is_none() && !matches!(common.device()?, DeviceName::Cuda(_)) {
            let what = "plans GPUs and the links between them, but neither --gpu nor --device cuda says which GPUs";
            return Err(usage_error(option, what, "give --gpu NAME"));
        }
        let nodes = self.nodes.map_or(1, |nodes| nodes as usize);
        if !ranks.is_multiple_of(nodes) {
            let what = format!("is {nodes}, which does not divide the {ranks} GPUs of {option}");
            return Err(usage_error("--nodes", what, "give a number that divides the GPUs"));
        }
        let micro_batches = options.gradient_accumulation_steps;
        if micro_batches < ranks {
            let what = format!("is {micro_batches}, so some of the {ranks} GPUs would have no micro-batch");
            let help = format!("give at least {ranks}; it counts the micro-batches of all GPUs");
            return Err(usage_error("--gradient-accumulation-steps", what, help));
        }
        let links = JobLinks::new(&sizes.machine(common)?, &self.link)?;
        // The options of a job on one machine do not say how many GPUs the machines of larger jobs have, so the usual
        // number is assumed.
        let gpus_per_node = if nodes > 1 { ranks / nodes } else { ranks.max(GPUS_PER_NODE) };
        let shape = JobShape { ranks, gpus_per_node, micro_batches };
        options.gradient_accumulation_steps = shape.round_count();
        let divides_weights = options.zero_stage == 3;
        Ok(Some(PlannedJob { shape, divides_weights, links, html: self.html.clone() }))
    }
}

impl JobFlags {
    /// Returns the number of GPUs that `--world`, or `--gpus` of the planned command, sets; 1 if neither is given.
    pub fn rank_count(&self, options: &RunOptions) -> u32 {
        self.world.or(options.gpus).unwrap_or(1)
    }

    /// Sets the number of GPUs; the number of machines becomes the smallest that has so many GPUs.
    pub fn set_rank_count(&mut self, options: &mut RunOptions, ranks: u32) {
        let per_node = self.nodes.map_or(GPUS_PER_NODE as u32, |nodes| (self.rank_count(options) / nodes).max(1));
        self.nodes = self.nodes.map(|_| 1).into_iter().chain([ranks.div_ceil(per_node)]).max().filter(|n| *n > 1);
        if options.gpus.is_some() {
            options.gpus = Some(ranks);
        }
        if self.world.is_some() || options.gpus.is_none() {
            self.world = Some(ranks);
        }
    }

    /// Returns the options that change `before` to these flags. `old` and `new` are the options of the planned
    /// command before and after the change.
    pub fn changed_options(&self, before: &Self, old: &RunOptions, new: &RunOptions) -> Vec<String> {
        let changes = [("--world", before.world, self.world), ("--gpus", old.gpus, new.gpus)];
        let changes = changes.into_iter().chain([("--nodes", before.nodes, self.nodes)]);
        changes
            .filter(|(_, old, new)| old != new)
            .filter_map(|(name, _, new)| Some(format!("{name} {}", new?)))
            .collect()
    }
}

/// The predicted memory, traffic and speed of a job.
struct Prediction {
    process: ProcessCosts,
    /// Peak bytes by category, of the rank that needs the most memory.
    memory: Vec<(&'static str, u64)>,
    /// Peak bytes of each rank.
    peaks: Vec<u64>,
    /// Bytes of gradients and of weights that rank 0 exchanges in a step. No rank exchanges more.
    gradients: RankTraffic,
    weights: RankTraffic,
    /// Bytes of weights that rank 0 exchanges before an evaluation.
    evaluation: RankTraffic,
    time: StepTime,
    tokens_per_second: f64,
    scaling: Vec<ScalingPoint>,
}

impl PlannedJob {
    /// Returns the job's memory and speed; `None` if `counts` are not those of a training command. `fits` tells
    /// whether a GPU has room for a number of bytes.
    pub fn outcome(
        &self,
        counts: &DryRunCounts,
        machine: &MachineSpec,
        fits: impl Fn(u64) -> bool,
    ) -> Option<PlanOutcome> {
        let prediction = self.predict(counts, counts.training.as_ref()?, machine);
        let peak = prediction.peaks.iter().copied().max().unwrap_or(0);
        Some(PlanOutcome {
            peak,
            seconds: prediction.time.total_seconds(),
            tokens_per_second: prediction.tokens_per_second,
            gpus: self.shape.ranks as u64,
            fits: fits(peak),
        })
    }

    /// Prints the plan of the job with `additions` and, with `--html`, writes its page. `counts` are the counts of one
    /// process with the micro-batches of one rank.
    pub fn print(
        &self,
        common: &CommonOptions,
        counts: &DryRunCounts,
        machine: &MachineSpec,
        additions: PlanAdditions,
    ) -> Result<()> {
        let Some(training) = &counts.training else {
            return table::print_plan_with(common, counts, machine, additions);
        };
        let prediction = self.predict(counts, training, machine);
        if let Some(to) = &self.html {
            let title = format!("{} of {} on {}", counts.command, counts.subject, machine.name.to_uppercase());
            output::write_file(to, job_page(&title, &self.notes(), &prediction.scaling).as_bytes())?;
        }
        if common.json {
            let mut plan = table::plan_json(counts, machine);
            plan["job"] = self.json(&prediction, machine);
            additions.merge_into(&mut plan);
            return output::print_json(&plan);
        }
        self.print_text(&prediction, counts, training, machine)?;
        additions.print_lines()
    }

    fn predict(&self, counts: &DryRunCounts, training: &TrainingCounts, machine: &MachineSpec) -> Prediction {
        let mut process = process_costs(counts, training, machine);
        if !self.divides_weights {
            process.divided = None;
        }
        let shape = &self.shape;
        let memory_of_rank = |rank| shape.memory_of_rank(rank, &process);
        let peaks: Vec<u64> =
            (0..shape.ranks).map(|rank| memory_of_rank(rank).iter().map(|(_, bytes)| bytes).sum()).collect();
        let largest = (0..shape.ranks).max_by_key(|rank| peaks[*rank]).unwrap_or(0);
        let time = shape.step_time(&process, &self.links);
        let tokens = process.tokens / shape.round_count() as f64 * shape.micro_batches as f64;
        Prediction {
            memory: memory_of_rank(largest),
            peaks,
            gradients: shape.gradient_traffic(0, process.parameters),
            weights: shape.weight_traffic(0, &process),
            evaluation: shape.evaluation_traffic(0, &process),
            time,
            tokens_per_second: tokens / time.total_seconds(),
            scaling: weak_scaling(&process, shape.round_count(), shape.gpus_per_node, &self.links),
            process,
        }
    }

    /// Returns the assumptions behind the table of weak scaling, one paragraph each.
    fn notes(&self) -> Vec<String> {
        let JobLinks { within_node, between_nodes } = self.links;
        let link = |link: &Link| format!("{}, {:.1} GB/s", link.title, link.bytes_per_second / 1e9);
        vec![
            format!(
                "Weak scaling: every GPU computes {} in a step, so the global batch grows with the GPUs. Efficiency is \
                 the step time of one GPU divided by the step time of N GPUs.",
                counted(self.shape.round_count(), "micro-batch", "es")
            ),
            format!(
                "Links of a GPU in one direction: {} within a machine of {} GPUs, {} between machines; exchanges are \
                 assumed to reach {:.0} % of these rates. Exposed is the exchange that does not fit beside later \
                 launches of the backward pass. Latency of messages, buffers of NCCL and waiting for slower ranks are \
                 not counted.",
                link(&within_node),
                self.shape.gpus_per_node,
                link(&between_nodes),
                100.0 * ATTAINABLE_BANDWIDTH_SHARE,
            ),
        ]
    }

    fn json(&self, prediction: &Prediction, machine: &MachineSpec) -> Value {
        let Prediction { process, memory, peaks, gradients, weights, evaluation, time, tokens_per_second, scaling } =
            prediction;
        let fits = |bytes: u64| machine.memory.map(|all| bytes as f64 <= all);
        let link = |link: &Link| {
            json!({
                "name": link.name, "title": link.title, "bytes_per_second": link.bytes_per_second,
                "attainable_share": ATTAINABLE_BANDWIDTH_SHARE,
            })
        };
        let traffic = |RankTraffic { within_node, between_nodes }: &RankTraffic| {
            json!({
                "within_node": {"sent": within_node.sent, "received": within_node.received},
                "between_nodes": {"sent": between_nodes.sent, "received": between_nodes.received},
            })
        };
        let peak = peaks.iter().copied().max().unwrap_or(0);
        let point = |p: &ScalingPoint| {
            json!({
                "gpus": p.shape.ranks, "nodes": p.shape.node_count(), "seconds": p.time.total_seconds(),
                "exposed_seconds": p.time.exposed_seconds(), "hidden_seconds": p.time.hidden_seconds(), "efficiency": p.efficiency,
                "tokens_per_second": p.tokens_per_second, "peak_bytes": p.peak_bytes, "fits": fits(p.peak_bytes),
            })
        };
        json!({
            "zero_stage": if self.divides_weights { 3 } else { 2 },
            "world": self.shape.ranks, "nodes": self.shape.node_count(), "gpus_per_node": self.shape.gpus_per_node,
            "micro_batches": self.shape.micro_batches, "rounds": self.shape.round_count(),
            "links": {"within_node": link(&self.links.within_node), "between_nodes": link(&self.links.between_nodes)},
            "trained_parameters": process.parameters, "trained_bytes": process.weight_bytes,
            "peak_bytes": peak, "fits": fits(peak), "memory": memory.iter().copied().collect::<BTreeMap<_, _>>(),
            "peak_bytes_by_rank": peaks,
            "bytes": {
                "gradients": traffic(gradients), "weights": traffic(weights), "evaluation": traffic(evaluation),
            },
            "seconds": time.total_seconds(), "compute_seconds": time.compute, "optimizer_seconds": time.optimizer,
            "gradient_exchange_seconds": time.gradients, "weight_exchange_seconds": time.weights,
            "exposed_seconds": time.exposed_seconds(), "hidden_seconds": time.hidden_seconds(),
            "tokens_per_second": tokens_per_second,
            "scaling": scaling.iter().map(point).collect::<Vec<_>>(),
        })
    }

    fn print_text(
        &self,
        prediction: &Prediction,
        counts: &DryRunCounts,
        training: &TrainingCounts,
        machine: &MachineSpec,
    ) -> Result<()> {
        let JobShape { ranks, micro_batches, .. } = self.shape;
        output::print_line(format!(
            "reel {} in {}: {}; {} on {}, {} in a step, at most {} on a GPU{}",
            counts.command,
            counts.dtype,
            counts.subject,
            counted(ranks, "GPU", "s"),
            counted(self.shape.node_count(), "machine", "s"),
            counted(micro_batches, "micro-batch", "es"),
            self.shape.round_count(),
            if self.divides_weights { "; the weights are sharded across the GPUs (ZeRO-3)" } else { "" }
        ))?;
        table::print_peak("peak memory of a GPU", &prediction.memory, machine)?;
        table::print_checkpoint(training, ranks)?;
        self.print_traffic(prediction)?;
        let PredictionWording { time: about, rate } = PredictionWording::for_machine(machine);
        let time = prediction.time;
        output::print_line(format!(
            "\none step on {ranks} {}: takes {about} {}; {rate} {} tokens/s",
            machine.name,
            format_duration(time.total_seconds()),
            format_rate(prediction.tokens_per_second)
        ))?;
        output::print_line(format!(
            "of which computing {}, optimizer {}, exposed exchange {}; the exchange takes {} for gradients, of which {} \
             are hidden behind the backward pass, and {} for weights",
            format_duration(time.compute),
            format_duration(time.optimizer),
            format_duration(time.exposed_seconds()),
            format_duration(time.gradients),
            format_duration(time.hidden_seconds()),
            format_duration(time.weights)
        ))?;
        table::print_prediction_basis(counts, machine)?;
        output::print_line("")?;
        self.notes().iter().try_for_each(output::print_line)?;
        print_scaling(&prediction.scaling, machine)
    }

    /// Prints the bytes that a rank sends and receives in a step, by link.
    fn print_traffic(&self, Prediction { gradients, weights, evaluation, .. }: &Prediction) -> Result<()> {
        if self.shape.ranks == 1 {
            return Ok(());
        }
        output::print_line("\nbytes that a GPU sends and receives in a step")?;
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let JobLinks { within_node, between_nodes } = self.links;
        let rows = [
            ("within machines", within_node, gradients.within_node, weights.within_node),
            ("between machines", between_nodes, gradients.between_nodes, weights.between_nodes),
        ];
        for (place, link, gradients, weights) in rows.into_iter().take(self.shape.node_count()) {
            output::print_line(format!(
                "  {place:16} gradients {:>9.3} and {:>9.3} GB, weights {:>9.3} and {:>9.3} GB, by {} ({:.1} GB/s)",
                gb(gradients.sent),
                gb(gradients.received),
                gb(weights.sent),
                gb(weights.received),
                link.title,
                link.bytes_per_second / 1e9
            ))?;
        }
        let received = evaluation.within_node.received + evaluation.between_nodes.received;
        if received > 0 {
            let (received, seconds) = (gb(received), evaluation.exchange_seconds(&self.links));
            output::print_line(format!(
                "before an evaluation, a GPU receives {received:.3} GB of weights in {}",
                format_duration(seconds)
            ))?;
        }
        Ok(())
    }
}

/// Formats a count with its noun: `1 machine`, `2 machines`.
fn counted(number: usize, thing: &str, plural_end: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { plural_end })
}

fn print_scaling(points: &[ScalingPoint], machine: &MachineSpec) -> Result<()> {
    output::print_line(format!(
        "\n  {:>5} {:>6} {:>10} {:>10} {:>10} {:>11} {:>12} {:>12}",
        "GPUs", "nodes", "step", "exposed", "hidden", "efficiency", "tokens/s", "memory"
    ))?;
    let seconds = |seconds: f64| if seconds > 0.0 { format_duration(seconds) } else { "-".to_string() };
    for ScalingPoint { shape, time, efficiency, peak_bytes, tokens_per_second } in points {
        let peak = *peak_bytes as f64;
        let fits = if machine.memory.is_some_and(|all| peak > all) { "  DOES NOT FIT" } else { "" };
        output::print_line(format!(
            "  {:>5} {:>6} {:>10} {:>10} {:>10} {:>9.1} % {:>12} {:>9.3} GB{fits}",
            shape.ranks,
            shape.node_count(),
            seconds(time.total_seconds()),
            seconds(time.exposed_seconds()),
            seconds(time.hidden_seconds()),
            100.0 * efficiency,
            format_rate(*tokens_per_second),
            peak / 1e9
        ))?;
    }
    Ok(())
}

/// Returns the costs of one step of the process that `counts` describes.
fn process_costs(counts: &DryRunCounts, training: &TrainingCounts, machine: &MachineSpec) -> ProcessCosts {
    let step = costs::total(costs::phase_seconds(counts, machine).iter().map(|(_, seconds)| *seconds));
    // `training.parts` may cover fewer steps than `counts`, so only the relative times of the parts are used.
    let parts = costs::seconds_of_phases(&training.parts, counts, machine);
    let all = costs::total(parts.iter().map(|(_, seconds)| *seconds));
    let seconds_of = |wanted: &str| {
        let part = costs::total(parts.iter().filter(|(name, _)| *name == wanted).map(|(_, seconds)| *seconds));
        if all > 0.0 { step * part / all } else { 0.0 }
    };
    let optimizer_seconds = seconds_of("optimizer");
    let divided = training.divided.clone();
    let ShardedWeights { all, two_units, gathered, gathered_beside_rounds, are_evaluated, are_trained, .. } = divided;
    let ShardedWeights { memory_by_units, memory_with_all, .. } = divided;
    ProcessCosts {
        memory: counts.memory.clone(),
        parameters: training.trained.parameters,
        weight_bytes: training.trained.bytes,
        largest_parameter: training.trained.largest,
        divided: Some(DividedWeightBytes {
            all,
            two_units,
            gathered,
            gathered_beside_rounds,
            are_evaluated,
            are_trained,
            memory_by_units,
            memory_with_all,
        }),
        compute_seconds: step - optimizer_seconds,
        backward_seconds: seconds_of("backward"),
        backward: BackwardTimes {
            launches: costs::backward_launch_seconds(training, counts.dtype, machine),
            gradients: training.backward.gradients.clone(),
        },
        optimizer_seconds,
        tokens: counts.tokens as f64 / counts.units as f64,
    }
}
