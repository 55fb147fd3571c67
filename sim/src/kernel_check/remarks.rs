//! Remarks on the speed of a kernel by source line: bank conflicts, uncoalesced accesses to global memory, and idle
//! lanes. They are counted in the first run and do not count as defects.

use std::collections::BTreeMap;

use crate::counters::Counters;
use crate::finding::{SourceLine, source_line};
use crate::program::op::InstructionClass;
use crate::program::{Kernel, Program};

/// A line gets a remark only if its accesses take at least this many times the sectors or wavefronts that they need.
const WORTH_NAMING: f64 = 1.5;
/// A line gets a remark only if it has at least this share of the launch's sectors, wavefronts or instructions.
const LEAST_SHARE: f64 = 0.02;
/// A line gets a remark about idle lanes if on average fewer than this many lanes are active.
const FEW_LANES: f64 = 16.0;
/// Maximum number of remarks of each kind; the lines that waste the most are shown.
const MAX_REMARKS: usize = 3;

/// A source line that wastes time, and the reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Remark {
    /// `bank-conflicts`, `uncoalesced` or `idle-lanes`.
    pub kind: &'static str,
    /// The line.
    pub line: SourceLine,
    /// A sentence about what is wasted.
    pub message: String,
}

/// Memory transactions of a source line, actual and minimum, and its executed warps and threads.
#[derive(Clone, Copy, Debug, Default)]
struct LineUse {
    sectors: u64,
    sectors_least: u64,
    wavefronts: u64,
    wavefronts_least: u64,
    warps: u64,
    threads: u64,
}

/// Returns the remarks on a launch, by kind and then by waste. `threads` is the number of threads of a block.
pub fn remarks(program: &Program, kernel: &Kernel, counters: &Counters, threads: u32) -> Vec<Remark> {
    let mut lines: BTreeMap<SourceLine, LineUse> = BTreeMap::new();
    let mut all = LineUse::default();
    for (pc, count) in counters.by_instruction.iter().enumerate().filter(|(_, count)| count.warps > 0) {
        // The minimum is one sector per access of a warp, and enough sectors for all bytes. It can be lower if lanes
        // read the same bytes, so it is limited to the counted sectors.
        let bytes = count.global_read + count.global_written;
        let least = bytes.div_ceil(32).max(count.warps).min(count.sectors);
        for sum in [&mut all, lines.entry(source_line(program, kernel, pc as u32)).or_default()] {
            sum.sectors += count.sectors;
            sum.sectors_least += least;
            sum.wavefronts += count.wavefronts;
            sum.wavefronts_least += count.wavefronts_least;
            // The counter of a branch includes only the lanes that take it, so it says nothing about idle lanes.
            if !is_branch(kernel, pc as u32) {
                sum.warps += count.warps;
                sum.threads += count.threads;
            }
        }
    }
    let mut found = worst(&lines, |line| {
        let wasted = line.wavefronts.saturating_sub(line.wavefronts_least);
        let is_much = is_multiple(line.wavefronts, line.wavefronts_least) && is_share(wasted, all.wavefronts);
        is_much.then(|| {
            let message = format!(
                "{} passes through the banks of shared memory, where {} would do",
                line.wavefronts, line.wavefronts_least
            );
            ("bank-conflicts", wasted, message)
        })
    });
    found.extend(worst(&lines, |line| {
        let wasted = line.sectors.saturating_sub(line.sectors_least);
        (is_multiple(line.sectors, line.sectors_least) && is_share(wasted, all.sectors)).then(|| {
            let message =
                format!("{} sectors of 32 bytes of global memory, where {} would do", line.sectors, line.sectors_least);
            ("uncoalesced", wasted, message)
        })
    }));
    // In a block with fewer threads than a warp, the missing threads do not count as idle lanes.
    let lanes = f64::from(threads.min(32));
    found.extend(worst(&lines, |line| {
        let working = line.threads as f64 / line.warps.max(1) as f64;
        let wasted = 32 * line.warps - line.threads.min(32 * line.warps);
        let is_much =
            line.warps > 0 && working < FEW_LANES.min(lanes / WORTH_NAMING) && is_share(line.warps, all.warps);
        is_much.then(|| {
            let message =
                format!("{working:.0} of {lanes:.0} lanes work on average, in {} warp instructions", line.warps);
            ("idle-lanes", wasted, message)
        })
    }));
    found
}

fn is_branch(kernel: &Kernel, pc: u32) -> bool {
    let (code, index) = kernel.function_and_instruction_index(pc);
    code.instrs.get(index).is_some_and(|instruction| instruction.class == InstructionClass::Control)
}

fn is_multiple(used: u64, least: u64) -> bool {
    used as f64 >= WORTH_NAMING * least as f64 && used > least
}

fn is_share(part: u64, all: u64) -> bool {
    part as f64 >= LEAST_SHARE * all as f64
}

/// Returns the lines that waste the most, as remarks. `of` returns the kind, the waste and the message for a line;
/// `None` if the line gets no remark.
fn worst(
    lines: &BTreeMap<SourceLine, LineUse>,
    of: impl Fn(&LineUse) -> Option<(&'static str, u64, String)>,
) -> Vec<Remark> {
    let mut found: Vec<(u64, Remark)> = lines
        .iter()
        .filter(|(line, _)| line.line > 0)
        .filter_map(|(line, used)| {
            let (kind, wasted, message) = of(used)?;
            Some((wasted, Remark { kind, line: line.clone(), message }))
        })
        .collect();
    found.sort_by_key(|(wasted, _)| std::cmp::Reverse(*wasted));
    found.truncate(MAX_REMARKS);
    found.into_iter().map(|(_, remark)| remark).collect()
}
