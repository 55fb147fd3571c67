//! The HTML page of `run --html`: findings, the kernel on the roofline, and the source with counts and findings beside
//! each line. A page is one file without scripts: its Content Security Policy forbids all requests.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::finding::Finding;
use crate::kernel_check::{demangle_symbols, demangled_signature};
use crate::report::{CountReport, LineCounts};

use super::printable::escape_html;
use super::roofline_chart::roofline_chart;
use super::show::{RunDisplay, readable_message};

/// Number of lines shown around each executed line or finding of a long source.
const CONTEXT_LINES: usize = 3;
/// Sources of up to this many lines are shown whole.
const MAX_WHOLE_LINES: usize = 600;

const STYLE: &str = include_str!("page.css");

/// Returns the page of a checked kernel.
pub fn run_page_html(run: &RunDisplay) -> String {
    let prepared = run.report.prepared;
    let name = demangled_signature(&prepared.kernel.name);
    let title = escape_html(&format!("{name}: {}", run.report.verdict()));
    let ([gx, gy, gz], [bx, by, bz]) = (prepared.launch.grid, prepared.launch.block);
    let launch = format!(
        "<p>{}: grid ({gx},{gy},{gz}), block ({bx},{by},{bz}), {} bytes of dynamic shared memory. The simulator \
         counted instructions and bytes; it measures no times.</p>",
        escape_html(&prepared.source.name()),
        prepared.launch.dynamic_shared
    );
    let counts = run.report.counts();
    let (findings, roofline, source) =
        (findings_html(run), roofline_html(run, &name, &counts), source_html(run, &counts));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>{title}</title><style>{STYLE}</style></head>\n\
         <body><main><h1>{title}</h1>\n{launch}\n{findings}{roofline}{source}</main>\n</body></html>\n"
    )
}

fn findings_html(run: &RunDisplay) -> String {
    let mut out = String::from("<h2>Findings</h2>\n");
    if run.report.findings().next().is_none() {
        out += "<p>No findings.</p>\n";
    }
    for f in run.report.findings() {
        let [[bx, by, bz], [tx, ty, tz]] = [f.block, f.thread];
        let _ = write!(
            out,
            "<div class=\"finding\"><b>{}</b> at <a href=\"#L{}\">line {}</a>, block ({bx},{by},{bz}) thread \
             ({tx},{ty},{tz}), {} times\n{}</div>",
            f.kind.name(),
            f.line,
            f.line,
            f.count,
            escape_html(&readable_message(f))
        );
    }
    if !run.report.report.notes.is_empty() {
        out += "<h2>Notes</h2><ul>";
        run.report.report.notes.iter().for_each(|note| {
            let _ = write!(out, "<li>{}</li>", escape_html(&demangle_symbols(note)));
        });
        out += "</ul>\n";
    }
    out
}

/// Returns a table with the kernel's least time by each bound on each GPU, and a chart with the kernel on the roofline
/// of the H100.
fn roofline_html(run: &RunDisplay, name: &str, counts: &CountReport) -> String {
    let rooflines = run.report.rooflines();
    let names = rooflines.first().map(|r| r.bounds.map(|b| format!("{}, µs", b.name))).unwrap_or_default();
    let row = |cells: Vec<String>| format!("<tr><td class=\"text\">{}</td></tr>\n", cells.join("</td><td>"));
    let columns = ["GPU".to_string()].into_iter().chain(names).chain(["at least, µs", "bound"].map(String::from));
    let mut out = "<h2>Roofline (modelled, not measured)</h2>\n<div class=\"scroll\"><table>\n".to_string();
    out += &row(columns.collect()).replace("td", "th");
    for r in &rooflines {
        let largest = r.largest_bound();
        let times = r.bounds.iter().chain([&largest]).map(|b| format!("{:.3}", 1e6 * b.seconds));
        out += &row([r.gpu.name.to_string()].into_iter().chain(times).chain([largest.name.to_string()]).collect());
    }
    out += "</table></div>\n";
    let Some(r) = rooflines.iter().find(|r| r.gpu.name == "H100") else { return out };
    out += &roofline_chart(r, name, counts).unwrap_or_else(|| {
        "<p>The kernel has no floating-point operations or no memory traffic, so it cannot be placed on the \
         roofline.</p>\n"
            .to_string()
    });
    out
}

fn source_html(run: &RunDisplay, counts: &CountReport) -> String {
    let lines = run.quotes.lines();
    if lines.is_empty() {
        return String::new();
    }
    let mut out = format!("<h2>{}</h2>\n", escape_html(&run.quotes.name));
    let here = |l: &&LineCounts| l.origin.file.is_none() && l.origin.cuda == run.quotes.cuda;
    let counted: BTreeMap<u32, &LineCounts> = counts.lines.iter().filter(here).map(|l| (l.origin.line, l)).collect();
    let mut findings: BTreeMap<u32, Vec<&Finding>> = BTreeMap::new();
    run.report.findings().for_each(|f| findings.entry(f.line).or_default().push(f));
    let most = counted.values().map(|l| l.counted.count.warps).max().unwrap_or(1).max(1);
    out += "<div class=\"scroll\"><table class=\"source\"><tr><th>line</th><th>warp instructions</th>\
            <th class=\"more\"></th><th class=\"more\">global bytes</th><th class=\"more\">sectors</th>\
            <th class=\"more\">bank conflicts</th><th class=\"text\">source</th></tr>\n";
    let interesting = |line: u32| counted.contains_key(&line) || findings.contains_key(&line);
    let near =
        |line: usize| (line.saturating_sub(CONTEXT_LINES)..=line + CONTEXT_LINES).any(|line| interesting(line as u32));
    let mut skipped = false;
    for (number, text) in (1..).zip(lines) {
        if lines.len() > MAX_WHOLE_LINES && !near(number) {
            skipped = true;
            continue;
        }
        if std::mem::take(&mut skipped) {
            out += "<tr><td colspan=\"7\">…</td></tr>\n";
        }
        let line = number as u32;
        let class = if findings.contains_key(&line) { " class=\"bad\"" } else { "" };
        let _ = write!(out, "<tr{class} id=\"L{line}\"><td class=\"n\">{line}</td>");
        match counted.get(&line) {
            Some(l) => {
                let c = &l.counted.count;
                let width = (60.0 * c.warps as f64 / most as f64).ceil();
                let _ = write!(
                    out,
                    "<td class=\"n\">{}</td>\
                     <td class=\"text more\"><span class=\"count\" style=\"width:{width}px\"></span></td>\
                     <td class=\"n more\">{}</td><td class=\"n more\">{}</td><td class=\"n more\">{}</td>",
                    c.warps,
                    c.global_read + c.global_written,
                    c.sectors,
                    l.counted.bank_conflict_wavefronts()
                );
            }
            None => out += &format!("<td></td>{}", "<td class=\"more\"></td>".repeat(4)),
        }
        let _ = write!(out, "<td class=\"text code\">{}", escape_html(text));
        for f in findings.get(&line).into_iter().flatten() {
            let _ =
                write!(out, "<div class=\"finding\">{}: {}</div>", f.kind.name(), escape_html(&readable_message(f)));
        }
        out += "</td></tr>\n";
    }
    out + "</table></div>\n"
}
