//! The report of a check: findings, notes, remarks and counts, also as JSON.

use crate::check::CheckReport;
use crate::exec::GpuSpec;
use crate::finding::{Finding, FindingKind, SourceLine, SourcePosition};
use crate::report::{CountReport, CounterTotals, LineCounts};
use crate::roofline::{ESTIMATED_GPUS, NumberOrigin, Roofline};
use anyhow::Result;
use serde_json::{Map, Value, json};

use super::causes::group_by_cause;
use super::entry::{demangle_symbols, demangled_signature};
use super::prepared::PreparedLaunch;
use super::remarks::{Remark, remarks};

/// The report of a checked kernel.
#[derive(Debug)]
pub struct KernelReport<'a> {
    /// The kernel and its launch.
    pub prepared: &'a PreparedLaunch,
    /// What the runs found and counted.
    pub report: CheckReport,
}

impl PreparedLaunch {
    /// Runs the kernel once per interleaving and returns its report, also if a limit has stopped a run.
    ///
    /// # Errors
    /// As for [`PreparedLaunch::check_program`].
    pub fn check(&self) -> Result<KernelReport<'_>> {
        let report = self.check_program(&self.program, self.options.clone())?;
        Ok(KernelReport { prepared: self, report })
    }
}

impl KernelReport<'_> {
    /// Returns the findings of all runs.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.report.findings.iter().flatten()
    }

    /// Whether the runs only counted: the order of accesses was not checked.
    pub fn count_only(&self) -> bool {
        self.prepared.options.count_only
    }

    /// Returns the finding that names an instruction which the simulator does not have. It is no defect of the kernel,
    /// and what the run did after it is not reliable.
    pub fn unsupported(&self) -> Option<&Finding> {
        self.findings().find(|f| f.kind == FindingKind::Unsupported)
    }

    /// Returns the counts of the first run, by source line.
    pub fn counts(&self) -> CountReport {
        let counters = self.report.counters.first().cloned().unwrap_or_default();
        CountReport::new(&self.prepared.program, &self.prepared.kernel, &counters)
    }

    /// Returns the roofline models of the first run, one per GPU.
    pub fn rooflines(&self) -> Vec<Roofline> {
        let counters = self.report.counters.first().cloned().unwrap_or_default();
        ESTIMATED_GPUS.iter().map(|gpu: &GpuSpec| Roofline::new(*gpu, &self.prepared.kernel, &counters)).collect()
    }

    /// Returns the remarks on the speed of the first run.
    pub fn remarks(&self) -> Vec<Remark> {
        let PreparedLaunch { program, kernel, launch, .. } = self.prepared;
        let threads = launch.block.into_iter().product();
        self.report.counters.first().map_or_else(Vec::new, |c| remarks(program, kernel, c, threads))
    }

    /// Returns the notes of the report, and a note on what a run that only counted did not check.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let of_report = self.report.notes.iter().map(|note| demangle_symbols(note));
        let not_checked = || {
            let option = self.prepared.wording.option("count-only");
            format!("races, missing waits and reads of unwritten bytes were not looked for ({option})")
        };
        of_report.chain(self.count_only().then(not_checked))
    }

    /// Returns the contents of the buffer of this name after the first run; `None` if no buffer has the name.
    pub fn buffer(&self, name: &str) -> Option<&[u8]> {
        let buffer = self.prepared.bound.buffers.iter().find(|b| b.name == name)?;
        self.report.memory.buffer_bytes(buffer.address)
    }

    /// Returns the number of findings and of runs as text, such as `1 finding in 8 interleavings`. Findings that may
    /// follow from other findings are not counted.
    pub fn verdict(&self) -> String {
        let verdict = match group_by_cause(self.findings()).len() {
            0 if self.count_only() => "counted".to_string(),
            0 => "no defects found".to_string(),
            1 => "1 finding".to_string(),
            n => format!("{n} findings"),
        };
        let runs = match self.report.interleavings {
            1 => "1 run".to_string(),
            n => format!("{n} interleavings"),
        };
        format!("{verdict} in {runs}")
    }

    /// Returns the report as JSON.
    pub fn json(&self) -> Value {
        let causes = group_by_cause(self.findings());
        let follows = |f: &Finding| causes.iter().any(|c| c.may_follow.iter().any(|other| std::ptr::eq(*other, f)));
        let findings: Vec<Value> = self.findings().map(|f| self.finding_json(f, follows(f))).collect();
        let counts = self.counts();
        let mut total = counted_json(&counts.total);
        total.insert("barriers".into(), counts.barriers.into());
        total.insert("blocks".into(), counts.blocks.into());
        let lines: Vec<Value> = counts.lines.iter().map(line_json).collect();
        let modelled: Map<String, Value> =
            self.rooflines().iter().map(|r| (r.gpu.name.to_string(), roofline_json(r))).collect();
        json!({
            "ok": self.is_ok(),
            "source": self.prepared.source.name(),
            "kernel": demangled_signature(&self.prepared.kernel.name),
            "findings": findings,
            "remarks": self.remarks().iter().map(remark_json).collect::<Vec<_>>(),
            "notes": self.notes().collect::<Vec<_>>(),
            "counters": { NumberOrigin::Counted.name(): total, "lines": lines, NumberOrigin::Modelled.name(): modelled },
            "interleavings": self.report.interleavings,
        })
    }

    /// Returns whether the kernel has no defects. Returns `None` for a run without findings that only counted, because
    /// such a run does not check the order of accesses.
    fn is_ok(&self) -> Option<bool> {
        match self.report.has_no_findings() {
            true if self.count_only() => None,
            is_ok => Some(is_ok),
        }
    }

    fn finding_json(&self, f: &Finding, may_follow: bool) -> Value {
        let [x, y, _] = self.prepared.launch.block;
        let warp = |[i, j, k]: [u32; 3]| (i + x * (j + y * k)) / 32;
        let place = |position: &SourcePosition, thread: Option<([u32; 3], [u32; 3])>| {
            json!({
                "file": position.file, "line": position.line, "ptx_line": position.ptx_line,
                "block": thread.map(|(block, _)| block), "thread": thread.map(|(_, thread)| thread),
                "warp": thread.map(|(_, thread)| warp(thread)),
            })
        };
        json!({
            "kind": f.kind.name(), "message": demangle_symbols(&f.message), "line": f.line, "block": f.block,
            "thread": f.thread, "space": f.space, "address": f.address, "count": f.count, "may_follow": may_follow,
            "help": f.kind.help(), "at": place(&f.position, Some((f.block, f.thread))),
            "other": f.other.as_ref().map(|other| place(&other.position, other.thread)),
        })
    }
}

fn remark_json(remark: &Remark) -> Value {
    let SourceLine { file, line, cuda } = &remark.line;
    json!({
        "kind": remark.kind, "line": line, "file": file, "of": if *cuda { "cuda" } else { "ptx" },
        "message": remark.message,
    })
}

fn line_json(line: &LineCounts) -> Value {
    let mut fields = Map::new();
    fields.insert("line".into(), line.origin.line.into());
    fields.insert("file".into(), line.origin.file.clone().into());
    fields.insert("of".into(), if line.origin.cuda { "cuda" } else { "ptx" }.into());
    fields.extend(counted_json(&line.counted));
    fields.into()
}

fn counted_json(counted: &CounterTotals) -> Map<String, Value> {
    let c = &counted.count;
    let by_class: Map<String, Value> = counted
        .executed_classes()
        .map(|(class, e)| (class.name().to_string(), json!({"warps": e.warps, "threads": e.threads})))
        .collect();
    let fields = json!({
        "warp_instructions": c.warps,
        "thread_instructions": c.threads,
        "by_class": by_class,
        "matrix_flops": c.matrix_flops,
        "global_bytes_read": c.global_read,
        "global_bytes_written": c.global_written,
        "global_sectors": c.sectors,
        "sector_efficiency": counted.sector_efficiency(),
        "shared_bytes": c.shared_bytes,
        "shared_wavefronts": c.wavefronts,
        "shared_wavefronts_least": c.wavefronts_least,
        "bank_conflicts": counted.bank_conflict_wavefronts(),
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn roofline_json(r: &Roofline) -> Value {
    let bounds: Map<String, Value> = r.bounds.iter().map(|b| (b.name.to_string(), b.seconds.into())).collect();
    json!({
        "multiprocessors": r.multiprocessors,
        "seconds": bounds,
        "least_seconds": r.largest_bound().seconds,
        "bound": r.largest_bound().name,
        "tensor_occupancy": r.tensor_occupancy(),
    })
}
