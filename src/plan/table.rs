//! Prints a plan: peak memory by category, totals, and a table of ops.

use std::collections::BTreeMap;

use anyhow::Result;
use reel_measure::machine::MachineSpec;
use reel_runtime::{DType, MemoryUse};
use reel_train::plan::PhaseCosts;
use serde_json::json;

use crate::common::CommonOptions;
use crate::output;

/// What device `dry` counted for a command.
pub struct CommandCounts {
    pub command: &'static str,
    pub subject: String,
    pub dtype: DType,
    pub memory: MemoryUse,
    /// The phases of the work (forward, decode, …) with the costs of their ops, summed over all steps or calls.
    pub phases: PhaseCosts,
    /// Number of steps or calls that were counted.
    pub units: u64,
    pub unit: &'static str,
    pub tokens: u64,
    /// Size of a checkpoint in bytes; `None` for commands that write none.
    pub checkpoint: Option<u64>,
}

/// One line of the table of ops, with the totals of one op in one phase.
struct Line<'a> {
    phase: &'a str,
    op: &'a str,
    launches: f64,
    flops: f64,
    bytes: f64,
    seconds: f64,
    bound: &'static str,
}

fn lines<'a>(c: &'a CommandCounts, m: &MachineSpec) -> Vec<Line<'a>> {
    let each = c.units as f64;
    let mut lines = Vec::new();
    for (phase, totals) in &c.phases.0 {
        lines.extend(totals.iter().map(|(op, t)| {
            let seconds = m.ceilings.roofline_seconds_of_launches(op, t, c.dtype);
            let bound = if seconds * m.ceilings.bytes > t.cost.bytes * 1.000_001 { "arithmetic" } else { "memory" };
            let (flops, bytes) = (t.cost.flops / each, t.cost.bytes / each);
            Line { phase, op, launches: t.launches as f64 / each, flops, bytes, seconds: seconds / each, bound }
        }));
    }
    lines.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    lines
}

pub fn print_plan(common: &CommonOptions, c: &CommandCounts, m: &MachineSpec) -> Result<()> {
    let lines = lines(c, m);
    let sum = |f: fn(&Line) -> f64| lines.iter().map(f).sum::<f64>();
    let (flops, bytes, seconds) = (sum(|l| l.flops), sum(|l| l.bytes), sum(|l| l.seconds));
    let tokens = c.tokens as f64 / c.units as f64;
    let fits = m.memory.map(|all| c.memory.peak as f64 <= all);
    let phase = |name: &str| lines.iter().filter(|l| l.phase == name).map(|l| l.seconds).sum::<f64>();
    let phases: Vec<(&str, f64)> = c.phases.0.iter().map(|(name, _)| (*name, phase(name))).collect();
    if common.json {
        let phases: BTreeMap<&str, f64> = phases.into_iter().collect();
        let ops: Vec<_> = lines
            .iter()
            .map(|l| {
                json!({"phase": l.phase, "op": l.op, "launches": l.launches, "flops": l.flops, "bytes": l.bytes, "seconds": l.seconds, "bound": l.bound})
            })
            .collect();
        return output::print_json(&json!({
            "command": c.command, "subject": c.subject, "dtype": c.dtype.name(), "device": m.name,
            "peak_bytes": c.memory.peak, "memory": c.memory.at_peak.iter().copied().collect::<BTreeMap<_, _>>(),
            "capacity_bytes": m.memory, "fits": fits,
            "checkpoint_bytes": c.checkpoint, "tokens": tokens, "flops": flops, "bytes": bytes, "seconds": seconds, "phases": phases,
            "tokens_per_second": tokens / seconds, "ops": ops,
            "ceilings": {"flops_f32": m.ceilings.f32, "flops_bf16": m.ceilings.bf16, "bytes_per_second": m.ceilings.bytes, "source": m.source},
        }));
    }
    output::print_line(format!("reel {} in {}: {}", c.command, c.dtype, c.subject))?;
    let verdict = match (m.memory, fits) {
        (Some(all), Some(true)) => format!(" of {:.1} GB: fits", all / 1e9),
        (Some(all), _) => format!(" of {:.1} GB: DOES NOT FIT", all / 1e9),
        _ => String::new(),
    };
    output::print_line(format!("\npeak memory {:.3} GB{verdict}", c.memory.peak as f64 / 1e9))?;
    for (name, bytes) in c.memory.at_peak.iter().filter(|(_, b)| *b > 0) {
        output::print_line(format!("  {name:12} {:>11.3} GB", *bytes as f64 / 1e9))?;
    }
    if let Some(bytes) = c.checkpoint {
        let bytes = bytes as f64 / 1e9;
        output::print_line(format!(
            "checkpoint {bytes:.3} GB; writing it in the background needs as much host memory"
        ))?;
    }
    output::print_line(format!(
        "\none {} on {}: at least {}, {:.3} TFLOP, {:.3} GB moved, at most {:.0} tokens/s",
        c.unit,
        m.name,
        duration(seconds),
        flops / 1e12,
        bytes / 1e9,
        tokens / seconds
    ))?;
    if phases.len() > 1 {
        let texts: Vec<String> = phases.iter().map(|(name, s)| format!("{name} {}", duration(*s))).collect();
        output::print_line(format!("of which {}", texts.join(", ")))?;
    }
    output::print_line(format!(
        "ceilings: {:.1} TFLOP/s bf16, {:.1} TFLOP/s f32, {:.3} TB/s ({})",
        m.ceilings.bf16 / 1e12,
        m.ceilings.f32 / 1e12,
        m.ceilings.bytes / 1e12,
        m.source
    ))?;
    output::print_line(format!(
        "\n  {:8} {:34} {:>9} {:>12} {:>11} {:>10}  bound by",
        "phase", "op", "launches", "TFLOP", "GB", "time"
    ))?;
    for l in &lines {
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

fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}
