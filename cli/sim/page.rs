//! The HTML page of `reel sim run --html`: findings, the kernel on the roofline, and the source with counts and
//! findings beside each line.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use reel_sim::finding::Finding;
use reel_sim::report::{CountReport, LineCounts};
use reel_sim::roofline::Roofline;
use reel_tools::report::chart::{Chart, Roof, RooflinePoint};
use reel_tools::report::escape::escape_html;
use reel_tools::report::html::HtmlPage;
use reel_tools::report::table::HtmlTable;

use super::entry::{demangle_symbols, demangled_signature};
use super::show::{RunDisplay, readable_message};

/// Number of lines shown around each executed line or finding of a long source.
const CONTEXT_LINES: usize = 3;
/// Sources of up to this many lines are shown whole.
const MAX_WHOLE_LINES: usize = 600;

/// CSS of this page, in addition to the common CSS of all pages.
const STYLE: &str = "\
td.code{font-family:ui-monospace,monospace;white-space:pre;font-size:12px;overflow-wrap:normal}\
td.n{color:var(--dim)}tr.bad td{background:color-mix(in srgb,var(--bad) 18%,transparent)}\
.count{background:var(--c0);opacity:.6;display:inline-block;height:10px}\
.finding{border-left:4px solid var(--bad);padding:4px 8px;margin:8px 0;white-space:pre-wrap;overflow-wrap:anywhere}\
@media(max-width:640px){.source .more{display:none}td.code{white-space:pre-wrap}}";

/// Returns the page of a checked kernel.
pub fn run_page_html(run: &RunDisplay) -> String {
    let name = demangled_signature(&run.kernel.name);
    let mut page = HtmlPage::new(&format!("{name}: {}", run.verdict())).with_style(STYLE);
    let ([gx, gy, gz], [bx, by, bz]) = (run.launch.grid, run.launch.block);
    page.add(&format!(
        "<p>{}: grid ({gx},{gy},{gz}), block ({bx},{by},{bz}), {} bytes of dynamic shared memory. The simulator \
         counted instructions and bytes; it measures no times.</p>\n",
        escape_html(run.file),
        run.launch.dynamic_shared
    ));
    page.add(&findings_html(run));
    let counts = run.counts();
    add_roofline(&mut page, run, &name, &counts);
    page.add(&source_html(run, &counts));
    page.into_html()
}

fn findings_html(run: &RunDisplay) -> String {
    let mut out = String::from("<h2>Findings</h2>\n");
    if run.findings().next().is_none() {
        out += "<p>No findings.</p>\n";
    }
    for f in run.findings() {
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
    if !run.report.notes.is_empty() {
        out += "<h2>Notes</h2><ul>";
        run.report.notes.iter().for_each(|note| {
            let _ = write!(out, "<li>{}</li>", escape_html(&demangle_symbols(note)));
        });
        out += "</ul>\n";
    }
    out
}

/// Adds a table with the kernel's least time by each bound on each GPU, and a chart with the kernel on the roofline of
/// the H100.
fn add_roofline(page: &mut HtmlPage, run: &RunDisplay, name: &str, counts: &CountReport) {
    let rooflines = run.rooflines();
    let names = rooflines.first().map(|r| r.bounds.map(|b| format!("{}, µs", b.name))).unwrap_or_default();
    let columns: Vec<&str> =
        ["GPU"].into_iter().chain(names.iter().map(String::as_str)).chain(["at least, µs", "bound"]).collect();
    let mut table = HtmlTable::new(&columns);
    for r in &rooflines {
        let largest = r.largest_bound();
        let times = r.bounds.iter().chain([&largest]).map(|b| format!("{:.3}", 1e6 * b.seconds));
        table.add_row([r.gpu.name.to_string()].into_iter().chain(times).chain([largest.name.to_string()]).collect());
    }
    page.add("<h2>Roofline (modelled, not measured)</h2>\n");
    page.add_table(&table);
    let Some(r) = rooflines.iter().find(|r| r.gpu.name == "H100") else { return };
    match roofline_chart(r, name, counts) {
        Some(chart) => page.add_chart(&chart),
        None => page.add(
            "<p>The kernel has no floating-point operations or no memory traffic, so it cannot be placed on the roofline.</p>\n",
        ),
    }
}

/// Returns a roofline chart of a GPU, with the kernel at its least time. `None` if the kernel has no floating-point
/// operations or no memory traffic.
fn roofline_chart(r: &Roofline, name: &str, counts: &CountReport) -> Option<Chart> {
    let float = counts.total.executed_classes().find(|(class, _)| class.name() == "float");
    let operations = counts.total.count.matrix_flops as f64 + 2.0 * float.map_or(0.0, |(_, e)| e.threads as f64);
    let bytes = (counts.total.count.global_read + counts.total.count.global_written) as f64;
    let seconds = r.largest_bound().seconds;
    if operations == 0.0 || bytes == 0.0 || seconds == 0.0 {
        return None;
    }
    let roof = |name: &str, flops_per_second: f64| Roof {
        name: name.to_string(),
        flops_per_second,
        bytes_per_second: r.gpu.bandwidth,
    };
    let (intensity, rate) = (operations / bytes, operations / seconds);
    let point = RooflinePoint {
        name: name.to_string(),
        text: format!("{intensity:.3} operations per byte, at most {rate:.3e} operations/s on {}", r.gpu.name),
        id: String::new(),
        intensity,
        flops_per_second: rate,
        is_bound_by_arithmetic: match r.largest_bound().name {
            "tensor" | "f32" => Some(true),
            "dram" => Some(false),
            _ => None,
        },
        lost_seconds: 0.0,
    };
    Some(Chart::Roofline {
        name: format!("{} (data sheet); the dot is the kernel at its least possible time", r.gpu.name),
        roofs: vec![roof("bf16 products", r.gpu.bf16_flops), roof("f32", r.gpu.f32_flops)],
        points: vec![point],
    })
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
    run.findings().for_each(|f| findings.entry(f.line).or_default().push(f));
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
