//! Shows the report of a run as text and as JSON.

use std::fmt::Write as _;

use crate::check;
use crate::exec::{GpuSpec, LaunchConfig};
use crate::finding::Finding;
use crate::finding::FindingKind;
use crate::finding::SourceLine;
use crate::program::{Kernel, Program};
use crate::report::{CountReport, CounterTotals, LineCounts};
use crate::roofline::{ESTIMATED_GPUS, NumberOrigin, Roofline};
use serde_json::{Map, Value, json};

use super::causes::{FindingGroup, first_clause, group_by_cause};
use super::entry::{demangle_symbols, demangled_signature};
use super::quote::SourceQuotes;
use super::remarks::{Remark, remarks};

/// A checked kernel and its report, ready to be shown.
#[derive(Debug)]
pub struct RunDisplay<'a> {
    /// The file's path as the user gave it.
    pub file: &'a str,
    pub program: &'a Program,
    pub kernel: &'a Kernel,
    pub launch: &'a LaunchConfig,
    pub report: &'a check::CheckReport,
    /// Whether the run only counted (`--count-only`): the order of accesses was not checked.
    pub count_only: bool,
    /// The source lines that the report quotes.
    pub quotes: SourceQuotes,
}

/// The note in the report of a `--count-only` run.
const NOT_CHECKED: &str = "races, missing waits and reads of unwritten bytes were not looked for (--count-only)";

/// Maximum number of source lines in the text report's table; the lines with the highest counts are shown.
const MAX_COUNTED_LINES: usize = 8;

impl RunDisplay<'_> {
    /// Returns the findings of all runs.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.report.findings.iter().flatten()
    }

    /// Returns the counts of the first run, by source line.
    pub fn counts(&self) -> CountReport {
        let counters = self.report.counters.first().cloned().unwrap_or_default();
        CountReport::new(self.program, self.kernel, &counters)
    }

    /// Returns the roofline models of the first run, one per GPU.
    pub fn rooflines(&self) -> Vec<Roofline> {
        let counters = self.report.counters.first().cloned().unwrap_or_default();
        ESTIMATED_GPUS.iter().map(|gpu: &GpuSpec| Roofline::new(*gpu, self.kernel, &counters)).collect()
    }

    /// Returns the report as JSON.
    pub fn json(&self) -> Value {
        let causes = group_by_cause(self.findings());
        let follows = |f: &Finding| causes.iter().any(|c| c.may_follow.iter().any(|other| std::ptr::eq(*other, f)));
        let findings: Vec<Value> = self.findings().map(|f| finding_json(f, follows(f))).collect();
        let counts = self.counts();
        let mut total = counted_json(&counts.total);
        total.insert("barriers".into(), counts.barriers.into());
        total.insert("blocks".into(), counts.blocks.into());
        let lines: Vec<Value> = counts.lines.iter().map(line_json).collect();
        let modelled: Map<String, Value> =
            self.rooflines().iter().map(|r| (r.gpu.name.to_string(), roofline_json(r))).collect();
        json!({
            "ok": self.is_ok(),
            "findings": findings,
            "remarks": self.remarks().iter().map(remark_json).collect::<Vec<_>>(),
            "notes": self.notes().collect::<Vec<_>>(),
            "counters": { NumberOrigin::Counted.name(): total, "lines": lines, NumberOrigin::Modelled.name(): modelled },
            "interleavings": self.report.interleavings,
        })
    }

    /// Returns whether the kernel has no defects. Returns `None` for a `--count-only` run without findings, because
    /// such a run does not check the order of accesses.
    fn is_ok(&self) -> Option<bool> {
        match self.report.has_no_findings() {
            true if self.count_only => None,
            is_ok => Some(is_ok),
        }
    }

    /// Returns the notes of the report, and a note on what a `--count-only` run did not check.
    fn notes(&self) -> impl Iterator<Item = String> {
        let of_report = self.report.notes.iter().map(|note| demangle_symbols(note));
        of_report.chain(self.count_only.then(|| NOT_CHECKED.to_string()))
    }

    /// Returns the remarks on the speed of the first run.
    pub fn remarks(&self) -> Vec<Remark> {
        let threads = self.launch.block.into_iter().product();
        self.report.counters.first().map_or_else(Vec::new, |c| remarks(self.program, self.kernel, c, threads))
    }

    /// Returns the report as text. The findings and the verdict come last; with `verbose`, all counts and modelled
    /// times come first. With `quiet`, only the findings are printed. A `--count-only` run always prints the counts.
    pub fn text(&self, quiet: bool, verbose: bool) -> String {
        let mut out = String::new();
        if self.count_only || verbose && !quiet {
            self.add_counts(&mut out);
            self.add_rooflines(&mut out);
            out.push('\n');
        }
        if !quiet {
            for remark in self.remarks() {
                self.add_remark(&mut out, &remark);
            }
        }
        for note in self.notes() {
            out += &format!("note: {note}\n");
        }
        for FindingGroup { finding, may_follow } in group_by_cause(self.findings()) {
            self.add_finding(&mut out, finding);
            for f in may_follow {
                let (kind, file, clause) = (f.kind.name(), &self.quotes.name, first_clause(f));
                out += &format!("  may follow from this finding: {kind} at {file}:{}: {clause}\n", f.line);
            }
        }
        if !quiet {
            out += &format!("{}: {}: {}\n", self.file, demangled_signature(&self.kernel.name), self.verdict());
        }
        out
    }

    /// Returns the number of findings and of runs as text, such as `1 finding in 8 interleavings`. Findings that may
    /// follow from other findings are not counted.
    pub fn verdict(&self) -> String {
        let verdict = match group_by_cause(self.findings()).len() {
            0 if self.count_only => "counted".to_string(),
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

    fn add_finding(&self, out: &mut String, f: &Finding) {
        let [[bx, by, bz], [tx, ty, tz]] = [f.block, f.thread];
        let memory = match (f.space, f.address) {
            (Some(space), Some(address)) => format!(", {space} {address:#x}"),
            _ => String::new(),
        };
        let times = if f.count == 1 { "once".to_string() } else { format!("{} times", f.count) };
        let (name, line) = (&self.quotes.name, f.line);
        *out += &format!(
            "{}: {name}:{line}: block ({bx},{by},{bz}) thread ({tx},{ty},{tz}){memory}, {times}\n",
            f.kind.name()
        );
        if let Some(text) = self.quotes.source_line(line) {
            *out += &format!("  {line:>5} | {text}\n");
        }
        *out += &format!("  {}\n", readable_message(f));
    }

    fn add_remark(&self, out: &mut String, remark: &Remark) {
        let (place, quote) = self.quotes.location_and_text(&remark.line);
        *out += &format!("{}: {place}: {}\n", remark.kind, remark.message);
        if let Some(text) = quote {
            *out += &format!("  {:>5} | {text}\n", remark.line.line);
        }
    }

    fn add_counts(&self, out: &mut String) {
        let counts = self.counts();
        let c = &counts.total.count;
        *out += "counted in the first run:\n";
        let mut row = |name: &str, value: String| *out += &format!("  {name:<24}{value}\n");
        row("blocks, barriers", format!("{}, {}", counts.blocks, counts.barriers));
        row("instructions", format!("{} executed by warps, {} by threads", c.warps, c.threads));
        for (class, executed) in counts.total.executed_classes() {
            row(&format!("  {}", class.name()), format!("{}, {}", executed.warps, executed.threads));
        }
        if c.matrix_flops > 0 {
            row("matrix flops", c.matrix_flops.to_string());
        }
        row("global bytes", format!("{} read, {} written", c.global_read, c.global_written));
        if let Some(efficiency) = counts.total.sector_efficiency() {
            row(
                "global sectors",
                format!("{}; the kernel requested {:.0} % of their bytes", c.sectors, 100.0 * efficiency),
            );
        }
        if c.wavefronts > 0 {
            row(
                "shared wavefronts",
                format!("{}, {} above the minimum", c.wavefronts, counts.total.bank_conflict_wavefronts()),
            );
        }
        let busiest = counts.busiest_lines(MAX_COUNTED_LINES);
        if busiest.is_empty() {
            return;
        }
        *out += &format!(
            "\n  {:>16} {:>10} {:>12} {:>12} {:>8} {:>10} {:>9}\n",
            "line", "warps", "threads", "global B", "sectors", "wavefronts", "conflicts"
        );
        for line in busiest {
            let c = &line.counted.count;
            let bytes = c.global_read + c.global_written;
            let quote = if line.origin.file.is_none() && line.origin.cuda == self.quotes.cuda {
                self.quotes.source_line(line.origin.line)
            } else {
                None
            };
            let _ = writeln!(
                out,
                "  {:>16} {:>10} {:>12} {:>12} {:>8} {:>10} {:>9}  {}",
                location(line, &self.quotes),
                c.warps,
                c.threads,
                bytes,
                c.sectors,
                c.wavefronts,
                line.counted.bank_conflict_wavefronts(),
                quote.map(|q| q.chars().take(60).collect::<String>()).unwrap_or_default(),
            );
        }
    }

    fn add_rooflines(&self, out: &mut String) {
        *out += "\nmodelled, not measured: minimum time of each part in microseconds:\n";
        let rooflines = self.rooflines();
        let names = rooflines.first().map(|r| r.bounds.map(|b| b.name)).unwrap_or_default();
        *out += &format!("  {:6}", "");
        names.iter().for_each(|name| *out += &format!(" {name:>10}"));
        out.push('\n');
        for r in &rooflines {
            *out += &format!("  {:6}", r.gpu.name);
            r.bounds.iter().for_each(|b| *out += &format!(" {:>10.3}", 1e6 * b.seconds));
            *out +=
                &format!("  at least {:.3} us, bound by {}\n", 1e6 * r.largest_bound().seconds, r.largest_bound().name);
        }
    }
}

/// Returns a finding's message with demangled names; the waits of a deadlock are on lines of their own.
pub fn readable_message(f: &Finding) -> String {
    let message = demangle_symbols(&f.message);
    let lists_waits = f.kind == FindingKind::Deadlock || message.contains("no thread can continue: ");
    if lists_waits { message.replace("; ", ";\n    ") } else { message }
}

/// Returns the file and number of a line in at most 16 characters: `k.cu:12`, or `ptx:12` for a PTX line without a
/// CUDA line. The beginning of a longer path is cut off.
fn location(line: &LineCounts, quotes: &SourceQuotes) -> String {
    let main = if line.origin.cuda == quotes.cuda { quotes.name.rsplit('/').next().unwrap_or_default() } else { "ptx" };
    let full = format!("{}:{}", line.origin.file.as_deref().unwrap_or(main), line.origin.line);
    let excess = full.chars().count().saturating_sub(16);
    full.chars().skip(excess).collect()
}

fn finding_json(f: &Finding, may_follow: bool) -> Value {
    json!({
        "kind": f.kind.name(), "message": demangle_symbols(&f.message), "line": f.line, "block": f.block, "thread": f.thread,
        "space": f.space, "address": f.address, "count": f.count, "may_follow": may_follow,
    })
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
    })
}
