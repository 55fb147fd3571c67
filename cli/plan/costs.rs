//! The counts of a run on device `dry`, and their predicted times.

use reel_device::{DType, MemoryUse, OpTotals};
use reel_tools::measure::machine::MachineSpec;
use reel_tools::measure::predicted_time::PredictedTime;
use reel_tools::measure::pricing::record_of_gpu;
use reel_train::runs::plan::{BackwardPass, PhaseCosts, RowSizes, ShardedWeights, TrainedParameterSize};
use serde_json::Value;

/// The counts of a command's run on device `dry`, which computes nothing and only counts memory, operations and bytes.
pub struct DryRunCounts {
    pub command: &'static str,
    pub subject: String,
    pub dtype: DType,
    pub memory: MemoryUse,
    /// The phases of the work (forward, decode, …) with the costs of their ops, summed over all steps or calls.
    pub phases: PhaseCosts,
    /// Number of steps or calls over which `phases` and `tokens` are summed; the table divides them by this number.
    pub units: u64,
    pub unit: &'static str,
    pub tokens: u64,
    /// Sizes of the planned rows, prompts or requests.
    pub row_sizes: RowSizes,
    /// The planned video of each row; null without one.
    pub video: Value,
    /// Counts that only training commands have.
    pub training: Option<TrainingCounts>,
}

/// Additional counts of a training command.
pub struct TrainingCounts {
    /// Processor seconds for the frames of each planned video, and the videos of a step; `None` without videos.
    pub decoding: Option<(f64, u64)>,
    /// Size of a checkpoint in bytes.
    pub checkpoint: u64,
    /// The costs of some of the steps by part of the work, such as `backward` and `optimizer`.
    pub parts: PhaseCosts,
    /// The launches of the first backward pass.
    pub backward: BackwardPass,
    /// The number of trained parameters and their bytes.
    pub trained: TrainedParameterSize,
    /// The weights that ZeRO-3 shards among the ranks.
    pub divided: ShardedWeights,
    /// Whether the data has fewer rows than a micro-batch or a step.
    pub has_few_rows: bool,
}

/// One line of the table of ops: the costs of one op in one phase, per step or call.
pub struct Line<'a> {
    pub phase: &'a str,
    pub op: &'a str,
    pub launches: f64,
    pub flops: f64,
    pub bytes: f64,
    pub price: PredictedTime,
    pub bound: &'static str,
}

/// Returns the lines of the table for `phases`. `counts` describe the command that has these costs.
pub fn lines<'a>(phases: &'a PhaseCosts, counts: &DryRunCounts, machine: &MachineSpec) -> Vec<Line<'a>> {
    let each = counts.units as f64;
    let record = record_of_gpu(&machine.name);
    let mut lines = Vec::new();
    for (phase, totals) in &phases.0 {
        lines.extend(totals.iter().map(|(op, t)| {
            let floor_seconds = machine.ceilings.roofline_seconds_of_launches(op, t, counts.dtype);
            let bound =
                if floor_seconds * machine.ceilings.bytes > t.cost.bytes * 1.000_001 { "arithmetic" } else { "memory" };
            let price = match record {
                Some(record) => record.predict_time(op, t, &machine.ceilings, counts.dtype),
                None => PredictedTime::by_ceilings(floor_seconds),
            };
            let price = price.per_step(each);
            let (flops, bytes) = (t.cost.flops / each, t.cost.bytes / each);
            Line { phase, op, launches: t.launches as f64 / each, flops, bytes, price, bound }
        }));
    }
    lines.sort_by(|a, b| b.price.seconds.total_cmp(&a.price.seconds));
    lines
}

/// Returns the predicted seconds of each phase, per step or call.
pub fn phase_seconds(counts: &DryRunCounts, machine: &MachineSpec) -> Vec<(&'static str, f64)> {
    seconds_of_phases(&counts.phases, counts, machine)
}

/// Returns the predicted seconds of each phase of `phases`, per step or call. `counts` describe the command that has
/// these costs.
pub fn seconds_of_phases(
    phases: &PhaseCosts,
    counts: &DryRunCounts,
    machine: &MachineSpec,
) -> Vec<(&'static str, f64)> {
    let lines = lines(phases, counts, machine);
    let seconds = |phase: &str| total(lines.iter().filter(|l| l.phase == phase).map(|l| l.price.seconds));
    phases.0.iter().map(|(name, _)| (*name, seconds(name))).collect()
}

/// Returns the predicted seconds of each launch of the backward pass.
pub fn backward_launch_seconds(training: &TrainingCounts, dtype: DType, machine: &MachineSpec) -> Vec<f64> {
    let record = record_of_gpu(&machine.name);
    let seconds = |(op, totals): &(&'static str, OpTotals)| match record {
        Some(record) => record.predict_time(op, totals, &machine.ceilings, dtype).seconds,
        None => machine.ceilings.roofline_seconds_of_launches(op, totals, dtype),
    };
    training.backward.launches.iter().map(seconds).collect()
}

/// Returns the sum of `values`; 0 if there are none. [`Iterator::sum`] returns -0 in that case, which would be
/// printed.
pub fn total(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |sum, value| sum + value)
}
