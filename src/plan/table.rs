//! Prints a plan: peak memory by category, totals, and a table of ops.

use std::collections::BTreeMap;

use anyhow::Result;
use reel_measure::machine::MachineSpec;
use reel_runtime::{DType, MemoryUse};
use reel_train::plan::PhaseCosts;
use serde_json::{Value, json};

use crate::common::CommonOptions;
use crate::output;

/// What a run of a command on device `dry` counted. That device computes nothing: it only counts memory, operations
/// and bytes.
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
    /// Size in bytes of a checkpoint that the command would write; `None` for commands that write none.
    pub checkpoint: Option<u64>,
}

/// One line of the table of ops: the costs of one op in one phase, per step or call.
struct Line<'a> {
    phase: &'a str,
    op: &'a str,
    launches: f64,
    flops: f64,
    bytes: f64,
    seconds: f64,
    bound: &'static str,
}

fn lines<'a>(counts: &'a DryRunCounts, machine: &MachineSpec) -> Vec<Line<'a>> {
    let each = counts.units as f64;
    let mut lines = Vec::new();
    for (phase, totals) in &counts.phases.0 {
        lines.extend(totals.iter().map(|(op, t)| {
            let seconds = machine.ceilings.roofline_seconds_of_launches(op, t, counts.dtype);
            let bound =
                if seconds * machine.ceilings.bytes > t.cost.bytes * 1.000_001 { "arithmetic" } else { "memory" };
            let (flops, bytes) = (t.cost.flops / each, t.cost.bytes / each);
            Line { phase, op, launches: t.launches as f64 / each, flops, bytes, seconds: seconds / each, bound }
        }));
    }
    lines.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    lines
}

/// The least seconds of each phase, per step or call.
pub fn phase_seconds(counts: &DryRunCounts, machine: &MachineSpec) -> Vec<(&'static str, f64)> {
    let lines = lines(counts, machine);
    let seconds = |phase: &str| lines.iter().filter(|l| l.phase == phase).map(|l| l.seconds).sum::<f64>();
    counts.phases.0.iter().map(|(name, _)| (*name, seconds(name))).collect()
}

/// Whether the peak memory fits the machine; `None` if the machine's memory is unknown.
pub fn fits(counts: &DryRunCounts, machine: &MachineSpec) -> Option<bool> {
    machine.memory.map(|all| counts.memory.peak as f64 <= all)
}

/// The table of ops as JSON.
pub fn ops_json(counts: &DryRunCounts, machine: &MachineSpec) -> Vec<Value> {
    let line = |l: &Line| json!({"phase": l.phase, "op": l.op, "launches": l.launches, "flops": l.flops, "bytes": l.bytes, "seconds": l.seconds, "bound": l.bound});
    lines(counts, machine).iter().map(line).collect()
}

/// The ceilings that times follow from, as JSON.
pub fn ceilings_json(machine: &MachineSpec) -> Value {
    json!({"flops_f32": machine.ceilings.f32, "flops_bf16": machine.ceilings.bf16, "bytes_per_second": machine.ceilings.bytes, "source": machine.source})
}

pub fn print_plan(common: &CommonOptions, counts: &DryRunCounts, machine: &MachineSpec) -> Result<()> {
    let lines = lines(counts, machine);
    let sum = |f: fn(&Line) -> f64| lines.iter().map(f).sum::<f64>();
    let (flops, bytes, seconds) = (sum(|l| l.flops), sum(|l| l.bytes), sum(|l| l.seconds));
    let tokens = counts.tokens as f64 / counts.units as f64;
    let phases = phase_seconds(counts, machine);
    if common.json {
        let phases: BTreeMap<&str, f64> = phases.into_iter().collect();
        return output::print_json(&json!({
            "command": counts.command, "subject": counts.subject, "dtype": counts.dtype.name(), "device": machine.name,
            "peak_bytes": counts.memory.peak, "memory": counts.memory.at_peak.iter().copied().collect::<BTreeMap<_, _>>(),
            "capacity_bytes": machine.memory, "fits": fits(counts, machine),
            "checkpoint_bytes": counts.checkpoint, "tokens": tokens, "flops": flops, "bytes": bytes, "seconds": seconds, "phases": phases,
            "tokens_per_second": tokens / seconds, "ops": ops_json(counts, machine),
            "ceilings": ceilings_json(machine),
        }));
    }
    print_memory(counts, machine)?;
    if let Some(bytes) = counts.checkpoint {
        let bytes = bytes as f64 / 1e9;
        output::print_line(format!(
            "checkpoint {bytes:.3} GB on disk, and as much host memory while it is written in the background"
        ))?;
    }
    output::print_line(format!(
        "\none {} on {}: takes at least {}, computes {:.3} TFLOP, moves {:.3} GB; at most {:.0} tokens/s",
        counts.unit,
        machine.name,
        duration(seconds),
        flops / 1e12,
        bytes / 1e9,
        tokens / seconds
    ))?;
    if phases.len() > 1 {
        let texts: Vec<String> = phases.iter().map(|(name, s)| format!("{name} {}", duration(*s))).collect();
        output::print_line(format!("of which {}", texts.join(", ")))?;
    }
    print_ops(counts, machine)
}

/// Prints what is planned, and the peak memory by category.
pub fn print_memory(counts: &DryRunCounts, machine: &MachineSpec) -> Result<()> {
    output::print_line(format!("reel {} in {}: {}", counts.command, counts.dtype, counts.subject))?;
    let verdict = match (machine.memory, fits(counts, machine)) {
        (Some(all), Some(true)) => format!(" of {:.1} GB: fits", all / 1e9),
        (Some(all), _) => format!(" of {:.1} GB: DOES NOT FIT", all / 1e9),
        _ => String::new(),
    };
    output::print_line(format!("\npeak memory {:.3} GB{verdict}", counts.memory.peak as f64 / 1e9))?;
    for (name, bytes) in counts.memory.at_peak.iter().filter(|(_, b)| *b > 0) {
        output::print_line(format!("  {name:12} {:>11.3} GB", *bytes as f64 / 1e9))?;
    }
    Ok(())
}

/// Prints the ceilings and the table of ops.
pub fn print_ops(counts: &DryRunCounts, machine: &MachineSpec) -> Result<()> {
    output::print_line(format!(
        "ceilings: {:.1} TFLOP/s bf16, {:.1} TFLOP/s f32, {:.3} TB/s ({})",
        machine.ceilings.bf16 / 1e12,
        machine.ceilings.f32 / 1e12,
        machine.ceilings.bytes / 1e12,
        machine.source
    ))?;
    output::print_line(format!(
        "\n  {:8} {:34} {:>9} {:>12} {:>11} {:>10}  bound by",
        "phase", "op", "launches", "TFLOP", "GB", "time"
    ))?;
    for l in &lines(counts, machine) {
        output::print_line(format!(
            "  {:9} {:34} {:>9.0} {:>12.4} {:>11.4} {:>10}  {}",
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

/// A duration in a unit that suits it.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}
