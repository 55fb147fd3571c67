//! Shows the report of a run as text.

use std::fmt::Write as _;

use crate::finding::{Finding, FindingKind};
use crate::kernel_check::{
    FindingGroup, KernelReport, Remark, demangle_symbols, demangled_signature, first_clause, group_by_cause,
};
use crate::report::LineCounts;

use super::quote::SourceQuotes;

/// A report to be shown, and the source lines that it quotes.
#[derive(Debug)]
pub struct RunDisplay<'a> {
    pub report: &'a KernelReport<'a>,
    pub quotes: SourceQuotes,
}

/// Maximum number of source lines in the text report's table; the lines with the highest counts are shown.
const MAX_COUNTED_LINES: usize = 8;

impl RunDisplay<'_> {
    /// Returns the report as text. The findings and the verdict come last; with `verbose`, all counts and modelled
    /// times come first. With `quiet`, only the findings are printed. A `--count-only` run always prints the counts.
    pub fn text(&self, quiet: bool, verbose: bool) -> String {
        let mut out = String::new();
        if self.report.count_only() || verbose && !quiet {
            self.add_counts(&mut out);
            self.add_rooflines(&mut out);
            out.push('\n');
        }
        if !quiet {
            for remark in self.report.remarks() {
                self.add_remark(&mut out, &remark);
            }
        }
        for note in self.report.notes() {
            out += &format!("note: {note}\n");
        }
        for FindingGroup { finding, may_follow } in group_by_cause(self.report.findings()) {
            self.add_finding(&mut out, finding);
            for f in may_follow {
                let (kind, file, clause) = (f.kind.name(), &self.quotes.name, first_clause(f));
                out += &format!("  may follow from this finding: {kind} at {file}:{}: {clause}\n", f.line);
            }
        }
        if !quiet {
            out += &format!(
                "{}: {}: {}\n",
                self.report.prepared.source.name(),
                demangled_signature(&self.report.prepared.kernel.name),
                self.report.verdict()
            );
        }
        out
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
        let counts = self.report.counts();
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
        let rooflines = self.report.rooflines();
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
