//! Counts as a flame graph: a file of the speedscope format (`file-format-schema.json` of speedscope), which its viewer
//! shows. A stack is the kernel, the functions that are inlined at a line, and the line.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::counters::InstructionCounts;
use crate::finding::inlined_calls;

use super::entry::demangled_signature;
use super::report::KernelReport;

/// A profile: its name, its unit in the format, and the count of an instruction.
type Profile = (&'static str, &'static str, fn(&InstructionCounts) -> u64);

/// What is counted. Every profile has the same stacks with other weights.
const PROFILES: [Profile; 7] = [
    ("warp instructions", "none", |c| c.warps),
    ("bytes of global memory, requested", "bytes", |c| c.global_read + c.global_written),
    ("bytes of global memory, in sectors of 32 bytes", "bytes", |c| 32 * c.sectors),
    ("bytes of shared memory, requested", "bytes", |c| c.shared_bytes),
    ("wavefronts of shared memory", "none", |c| c.wavefronts),
    ("bank conflicts", "none", |c| c.wavefronts.saturating_sub(c.wavefronts_least)),
    ("FLOPs of matrix products", "none", |c| c.matrix_flops),
];

/// Returns the counts of the first run as a document of the speedscope format.
pub fn speedscope(report: &KernelReport) -> Value {
    let (program, kernel) = (&report.prepared.program, &report.prepared.kernel);
    let name = demangled_signature(&kernel.name);
    let mut frames: Vec<(String, Option<String>, u32)> = vec![(name.clone(), None, 0)];
    let mut known: BTreeMap<(String, Option<String>, u32), usize> = BTreeMap::new();
    let mut stacks: BTreeMap<Vec<usize>, InstructionCounts> = BTreeMap::new();
    let counters = report.report.counters.first().cloned().unwrap_or_default();
    for (pc, count) in counters.by_instruction.iter().enumerate().filter(|(_, count)| count.warps > 0) {
        let mut stack = vec![0];
        for call in inlined_calls(program, kernel, pc as u32) {
            let file = call.file.as_deref().map(|path| path.rsplit('/').next().unwrap_or(path));
            let place = format!("{}:{}", file.unwrap_or("ptx"), call.line);
            let label = if call.function.is_empty() { place } else { format!("{} ({place})", call.function) };
            let frame = (label, call.file, call.line);
            let next = frames.len();
            let number = *known.entry(frame.clone()).or_insert(next);
            if number == next {
                frames.push(frame);
            }
            stack.push(number);
        }
        stacks.entry(stack).or_default().add(count);
    }
    let profiles: Vec<Value> = PROFILES
        .iter()
        .map(|(of, unit, weight)| {
            let used: Vec<(&Vec<usize>, u64)> =
                stacks.iter().map(|(stack, count)| (stack, weight(count))).filter(|(_, weight)| *weight > 0).collect();
            json!({
                "type": "sampled", "name": of, "unit": unit, "startValue": 0,
                "endValue": used.iter().map(|(_, weight)| weight).sum::<u64>(),
                "samples": used.iter().map(|(stack, _)| stack).collect::<Vec<_>>(),
                "weights": used.iter().map(|(_, weight)| weight).collect::<Vec<_>>(),
            })
        })
        .collect();
    let frames: Vec<Value> = frames
        .into_iter()
        .map(|(name, file, line)| match file {
            Some(file) => json!({"name": name, "file": file, "line": line}),
            None => json!({"name": name}),
        })
        .collect();
    json!({
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": name,
        "exporter": concat!("reel-sim ", env!("CARGO_PKG_VERSION")),
        "activeProfileIndex": 0,
        "shared": {"frames": frames},
        "profiles": profiles,
    })
}
