//! Prints a plan: peak memory by category, totals, and a table of ops.

use std::collections::BTreeMap;

use anyhow::Result;
use reel_tools::measure::kernel_model;
use reel_tools::measure::machine::MachineSpec;
use reel_tools::measure::ops::{MIN_SHOWN_SHARE, hidden_ops_line};
use reel_tools::measure::predicted_time::{PredictedTime, PredictionBasis};
use reel_tools::measure::pricing::record_of_gpu;
use reel_train::runs::plan::RowSizes;
use serde_json::{Value, json};

use super::advice::PlanAdditions;
use super::costs::{DryRunCounts, Line, TrainingCounts, lines, phase_seconds, total};
use super::format::{format_duration, format_large, format_rate};
use super::parts::{parts_json, print_parts};
use super::products::{cublaslt_products_json, print_cublaslt_products};
use crate::common::CommonOptions;
use crate::fail::failed;
use crate::output;

/// Words in front of predicted numbers: a bound if the prediction uses the ceilings alone, else an estimate.
pub struct PredictionWording {
    /// Before a time: `at least` or `about`.
    pub time: &'static str,
    /// Before a rate: `at most` or `about`.
    pub rate: &'static str,
}

impl PredictionWording {
    /// Returns the words for a plan of `machine`.
    pub fn for_machine(machine: &MachineSpec) -> PredictionWording {
        match record_of_gpu(&machine.name) {
            Some(_) => PredictionWording { time: "about", rate: "about" },
            None => PredictionWording { time: "at least", rate: "at most" },
        }
    }
}

/// Returns true if the peak memory fits the machine; `None` if the machine's memory is unknown.
pub fn fits_in_memory(counts: &DryRunCounts, machine: &MachineSpec) -> Option<bool> {
    machine.memory.map(|all| counts.memory.peak as f64 <= all)
}

/// Returns the table of ops as JSON.
pub fn ops_json(counts: &DryRunCounts, machine: &MachineSpec) -> Vec<Value> {
    let line = |l: &Line| {
        let PredictedTime { seconds, floor_seconds, recorded, modelled, basis, .. } = &l.price;
        json!({
            "phase": l.phase, "op": l.op, "launches": l.launches, "flops": l.flops, "bytes": l.bytes, "seconds": seconds,
            "floor_seconds": floor_seconds, "share": l.price.assumed_share_of_ceilings(), "basis": basis.name(),
            "source": l.price.source().name(), "priced_by": l.price.basis_text(), "bound": l.bound,
            "record": recorded.as_ref().map(|r| json!({
                "seconds": r.seconds, "share": r.share, "size": r.size, "date": r.date, "similar_kernel": r.similar,
                "other_size": r.other_size, "code_changed": r.changed,
            })),
            "model": modelled.as_ref().map(|m| json!({
                "seconds": m.seconds, "limit": m.main_bottleneck(), "code_counted": m.has_instruction_counts(),
                "seconds_by_limit": m.seconds_by_limit,
            })),
        })
    };
    lines(&counts.phases, counts, machine).iter().map(line).collect()
}

/// Returns the basis of the predicted times as JSON: the ceilings, the record of measurements and the constants of
/// the kernel model.
pub fn ceilings_json(machine: &MachineSpec) -> Value {
    let record = record_of_gpu(&machine.name);
    json!({
        "flops_f32": machine.ceilings.f32, "flops_bf16": machine.ceilings.bf16, "bytes_per_second": machine.ceilings.bytes,
        "source": machine.source, "records": record.map(|r| &r.records),
        "model": record.map(|r| json!({
            "streaming_share": r.streaming_share(&machine.ceilings),
            "memory_latency": kernel_model::MEMORY_LATENCY_SECONDS,
            "launch_gap": kernel_model::LAUNCH_GAP_SECONDS, "l2_bytes_per_second": kernel_model::L2_BYTES_PER_SECOND,
            "mma_share": kernel_model::MMA_SHARE_OF_CEILING,
        })),
    })
}

/// The times of each phase in seconds if every op were predicted by one basis alone (ceilings, record or model), as
/// JSON.
pub fn phase_seconds_by_prediction_basis_json(counts: &DryRunCounts, machine: &MachineSpec) -> Value {
    let lines = lines(&counts.phases, counts, machine);
    let phases = counts.phases.0.iter().map(|(phase, _)| {
        let [ceiling, record, model] = BASES.map(|basis| seconds_by(&lines, phase, basis));
        (phase.to_string(), json!({ "ceiling": ceiling, "record": record, "model": model }))
    });
    Value::Object(phases.collect())
}

const BASES: [PredictionBasis; 3] = [PredictionBasis::Ceiling, PredictionBasis::Record, PredictionBasis::Model];

fn seconds_by(lines: &[Line], phase: &str, basis: PredictionBasis) -> f64 {
    total(lines.iter().filter(|l| l.phase == phase).map(|l| l.price.seconds_by(basis)))
}

/// Totals of a plan per step or call.
struct Totals {
    flops: f64,
    bytes: f64,
    seconds: f64,
    tokens: f64,
}

impl Totals {
    fn of(counts: &DryRunCounts, machine: &MachineSpec) -> Self {
        let lines = lines(&counts.phases, counts, machine);
        let sum = |f: fn(&Line) -> f64| total(lines.iter().map(f));
        let tokens = counts.tokens as f64 / counts.units as f64;
        Self { flops: sum(|l| l.flops), bytes: sum(|l| l.bytes), seconds: sum(|l| l.price.seconds), tokens }
    }
}

/// Returns the sizes of the planned rows as JSON: the least and the greatest numbers of tokens and patches.
pub fn rows_json(counts: &DryRunCounts) -> Value {
    let RowSizes { rows, tokens, patches } = counts.row_sizes;
    json!({"planned": rows, "tokens": tokens, "patches": patches, "video": counts.video})
}

/// Refuses a plan whose peak memory does not fit into the machine's memory.
///
/// # Errors
/// The plan does not fit.
pub fn refuse_large_peak(peak: u64, machine: &MachineSpec) -> Result<()> {
    match machine.memory {
        Some(all) if peak as f64 > all => {
            let what = format!("the plan needs {:.3} GB and does not fit into {:.3} GB", peak as f64 / 1e9, all / 1e9);
            Err(failed("memory", what, "plan with one of the options above, or with smaller rows"))
        }
        _ => Ok(()),
    }
}

/// Returns the plan as JSON.
pub fn plan_json(counts: &DryRunCounts, machine: &MachineSpec) -> Value {
    let Totals { flops, bytes, seconds, tokens } = Totals::of(counts, machine);
    let phases: BTreeMap<&str, f64> = phase_seconds(counts, machine).into_iter().collect();
    json!({
        "command": counts.command, "subject": counts.subject, "rows": rows_json(counts), "dtype": counts.dtype.name(), "device": machine.name,
        "peak_bytes": counts.memory.peak, "memory": counts.memory.at_peak.iter().copied().collect::<BTreeMap<_, _>>(),
        "capacity_bytes": machine.memory, "fits": fits_in_memory(counts, machine),
        "checkpoint_bytes": counts.training.as_ref().map(|training| training.checkpoint),
        "tokens": tokens, "flops": flops, "bytes": bytes, "seconds": seconds, "phases": phases,
        "tokens_per_second": tokens / seconds, "parts": parts_json(counts, machine),
        "ops": ops_json(counts, machine), "cublaslt_products": cublaslt_products_json(counts),
        "phases_by_basis": phase_seconds_by_prediction_basis_json(counts, machine), "ceilings": ceilings_json(machine),
    })
}

/// Prints a plan with `additions`.
pub fn print_plan_with(
    common: &CommonOptions,
    counts: &DryRunCounts,
    machine: &MachineSpec,
    additions: PlanAdditions,
) -> Result<()> {
    if common.json {
        let mut plan = plan_json(counts, machine);
        additions.merge_into(&mut plan);
        return output::print_json(&plan);
    }
    print_plan(counts, machine, common.verbose)?;
    additions.print_lines()
}

/// Prints a plan as text; `all` is as in [`print_ops`].
fn print_plan(counts: &DryRunCounts, machine: &MachineSpec, all: bool) -> Result<()> {
    let Totals { flops, bytes, seconds, tokens } = Totals::of(counts, machine);
    let phases = phase_seconds(counts, machine);
    print_memory(counts, machine)?;
    if let Some(training) = &counts.training {
        print_checkpoint(training, 1)?;
    }
    let PredictionWording { time, rate } = PredictionWording::for_machine(machine);
    output::print_line(format!(
        "\none {} on {}: takes {time} {}, computes {}, moves {} GB; {rate} {} tokens/s",
        counts.unit,
        machine.name,
        format_duration(seconds),
        format_large(flops, 1e11, 3, "FLOP"),
        if bytes >= 1e8 { format!("{:.3}", bytes / 1e9) } else { format_rate(bytes / 1e9) },
        format_rate(tokens / seconds)
    ))?;
    if phases.len() > 1 {
        let texts: Vec<String> = phases.iter().map(|(name, s)| format!("{name} {}", format_duration(*s))).collect();
        output::print_line(format!("of which {}", texts.join(", ")))?;
    }
    print_ops(counts, machine, all)
}

/// Prints the size of a checkpoint of a run with `ranks` processes, and how it is written. A single process copies
/// the checkpoint and writes it in the background.
pub fn print_checkpoint(training: &TrainingCounts, ranks: usize) -> Result<()> {
    let bytes = training.checkpoint as f64 / 1e9;
    let how = match ranks {
        1 => "and as much host memory while it is written in the background",
        _ => "which all processes write together before the next step",
    };
    output::print_line(format!("checkpoint {bytes:.3} GB on disk, {how}"))
}

/// Prints what is planned, and the peak memory by category.
pub fn print_memory(counts: &DryRunCounts, machine: &MachineSpec) -> Result<()> {
    output::print_line(format!("reel {} in {}: {}", counts.command, counts.dtype, counts.subject))?;
    let parts: Vec<(&str, u64)> = counts.memory.at_peak.iter().map(|(name, bytes)| (*name, *bytes as u64)).collect();
    print_peak("peak memory", &parts, machine)
}

/// Prints `title`, the total of `parts` (bytes by category), whether the total fits into the memory, and the parts.
pub fn print_peak(title: &str, parts: &[(&str, u64)], machine: &MachineSpec) -> Result<()> {
    let peak = parts.iter().map(|(_, bytes)| bytes).sum::<u64>() as f64;
    let verdict = match machine.memory {
        Some(all) if peak <= all => format!(" of {:.1} GB: fits", all / 1e9),
        Some(all) => format!(" of {:.1} GB: DOES NOT FIT", all / 1e9),
        None => String::new(),
    };
    output::print_line(format!("\n{title} {:.3} GB{verdict}", peak / 1e9))?;
    for (name, bytes) in parts.iter().filter(|(_, bytes)| *bytes > 0) {
        output::print_line(format!("  {name:13} {:>10.3} GB", *bytes as f64 / 1e9))?;
    }
    Ok(())
}

/// Prints the ceilings, the basis of the predicted times, and the table of ops. Ops below [`MIN_SHOWN_SHARE`] of the
/// time are joined into one line, unless `all` is true.
pub fn print_ops(counts: &DryRunCounts, machine: &MachineSpec, all: bool) -> Result<()> {
    print_prediction_basis(counts, machine)?;
    let lines = lines(&counts.phases, counts, machine);
    output::print_line(format!(
        "\n  {:9} {:34} {:>9} {:>12} {:>11} {:>10} {:>10} {:>10} {:>10} {:>6}  {:10}  {:9}  priced by",
        "phase", "op", "launches", "TFLOP", "GB", "time", "ceiling", "record", "model", "share", "bound by", "source"
    ))?;
    let least = MIN_SHOWN_SHARE * total(lines.iter().map(|l| l.price.seconds));
    let (shown, hidden): (Vec<&Line>, Vec<&Line>) = lines.iter().partition(|l| all || l.price.seconds >= least);
    for l in shown {
        let of_basis = |seconds: Option<f64>| seconds.map_or("-".to_string(), format_duration);
        output::print_line(format!(
            "  {:9} {:34} {:>9.0} {:>12.4} {:>11.4} {:>10} {:>10} {:>10} {:>10} {:>6.2}  {:10}  {:9}  {}",
            l.phase,
            l.op,
            l.launches,
            l.flops / 1e12,
            l.bytes / 1e9,
            format_duration(l.price.seconds),
            format_duration(l.price.floor_seconds),
            of_basis(l.price.recorded.as_ref().map(|r| r.seconds)),
            of_basis(l.price.modelled.as_ref().map(|m| m.seconds)),
            l.price.assumed_share_of_ceilings(),
            l.bound,
            l.price.source().name(),
            l.price.basis_text()
        ))?;
    }
    let rest = hidden_ops_line(hidden.len(), total(hidden.iter().map(|l| l.price.seconds)));
    if !rest.is_empty() {
        output::print_line(rest.trim_end())?;
    }
    print_cublaslt_products(counts)
}

/// Prints the ceilings and the basis of the predicted times.
pub fn print_prediction_basis(counts: &DryRunCounts, machine: &MachineSpec) -> Result<()> {
    output::print_line(format!(
        "ceilings: {} bf16, {} f32, {} ({})",
        format_large(machine.ceilings.bf16, 1e12, 1, "FLOP/s"),
        format_large(machine.ceilings.f32, 1e12, 1, "FLOP/s"),
        format_large(machine.ceilings.bytes, 1e11, 3, "B/s"),
        machine.source
    ))?;
    output::print_line(assumptions(machine))?;
    print_parts(counts, machine)
}

/// Describes the basis of the predicted times: the ceilings alone, or records and the constants of the model.
fn assumptions(machine: &MachineSpec) -> String {
    let Some(record) = record_of_gpu(&machine.name) else {
        return "times: every op reaches its ceiling; launch overhead is not counted".to_string();
    };
    format!(
        "times: measured in tools/benches/results/{}/{}; modelled: {:.0} % of the bandwidth (the share of plain copies in that \
         record), {:.0} ns of latency, {:.1} us per launch",
        machine.name,
        record.records.join(", "),
        100.0 * record.streaming_share(&machine.ceilings),
        1e9 * kernel_model::MEMORY_LATENCY_SECONDS,
        1e6 * kernel_model::LAUNCH_GAP_SECONDS,
    )
}
