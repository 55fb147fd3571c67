//! The HTML page of `reel sim run --html`: findings, the kernel on the roofline, and the source with counts and
//! findings beside each line.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use reel_report::html::{PAGE_END, escape_html, page_start_html};
use reel_sim::finding::Finding;
use reel_sim::report::{CountReport, LineCounts};
use reel_sim::roofline::Roofline;

use super::entry::{demangle_symbols, signature};
use super::show::{RunDisplay, readable_message};

/// Lines of a long source that the page shows around each executed line or finding.
const CONTEXT_LINES: usize = 3;
/// Sources of up to this many lines are shown whole.
const MAX_WHOLE_LINES: usize = 600;

/// Style of this page, besides that of all pages.
const STYLE: &str = "<style>.code{font-family:ui-monospace,monospace;white-space:pre;font-size:12px}\
td.n{text-align:right;color:#888;font-variant-numeric:tabular-nums}tr.bad td{background:#fdd}\
.bar{background:#cde;display:inline-block;height:10px}.scroll{overflow-x:auto}\
.finding{border-left:4px solid #c00;padding:4px 8px;margin:8px 0;white-space:pre-wrap}\
@media(prefers-color-scheme:dark){tr.bad td{background:#522}.bar{background:#357}}</style>";

/// Returns the page of a checked kernel.
pub fn run_page_html(run: &RunDisplay) -> String {
    let name = signature(&run.kernel.name);
    let mut out = page_start_html(&format!("{name}: {}", run.verdict()));
    out += STYLE;
    let ([gx, gy, gz], [bx, by, bz]) = (run.launch.grid, run.launch.block);
    let _ = write!(
        out,
        "<p>{}: grid ({gx},{gy},{gz}), block ({bx},{by},{bz}), {} bytes of dynamic shared memory. The simulator counted \
         instructions and bytes; it measures no times.</p>",
        escape_html(run.file),
        run.launch.dynamic_shared
    );
    add_findings(&mut out, run);
    let counts = run.counts();
    add_roofline(&mut out, run, &counts);
    add_source(&mut out, run, &counts);
    out + PAGE_END
}

fn add_findings(out: &mut String, run: &RunDisplay) {
    *out += "<h2>Findings</h2>";
    if run.findings().next().is_none() {
        *out += "<p>No findings.</p>";
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
        *out += "<h2>Notes</h2><ul>";
        run.report.notes.iter().for_each(|note| {
            let _ = write!(out, "<li>{}</li>", escape_html(&demangle_symbols(note)));
        });
        *out += "</ul>";
    }
}

/// Adds the roofline of each GPU: the least time of each part, and the kernel's place by arithmetic intensity.
fn add_roofline(out: &mut String, run: &RunDisplay, counts: &CountReport) {
    *out += "<h2>Roofline (modelled, not measured)</h2><div class=\"scroll\"><table><tr><th>GPU</th>";
    let rooflines = run.rooflines();
    let names = rooflines.first().map(|r| r.bounds.map(|b| b.name)).unwrap_or_default();
    names.iter().for_each(|name| {
        let _ = write!(out, "<th>{name}, µs</th>");
    });
    *out += "<th>bound</th></tr>";
    for r in &rooflines {
        let _ = write!(out, "<tr><td>{}</td>", r.gpu.name);
        r.bounds.iter().for_each(|b| {
            let _ = write!(out, "<td class=\"n\">{:.3}</td>", 1e6 * b.seconds);
        });
        let largest = r.largest_bound();
        let _ = write!(out, "<td>{}: at least {:.3} µs</td></tr>", largest.name, 1e6 * largest.seconds);
    }
    *out += "</table></div>";
    if let Some(r) = rooflines.iter().find(|r| r.gpu.name == "H100") {
        *out += &roofline_svg(r, counts);
    }
}

/// Draws operations per second over operations per byte, both logarithmic: the limits of the GPU and the kernel.
fn roofline_svg(r: &Roofline, counts: &CountReport) -> String {
    let float = counts.total.executed_classes().find(|(class, _)| class.name() == "float");
    let operations = counts.total.count.matrix_flops as f64 + 2.0 * float.map_or(0.0, |(_, e)| e.threads as f64);
    let bytes = (counts.total.count.global_read + counts.total.count.global_written) as f64;
    let seconds = r.largest_bound().seconds;
    if operations == 0.0 || bytes == 0.0 || seconds == 0.0 {
        return "<p>The kernel has no floating-point operations or no traffic, so it has no place on the roofline.</p>"
            .into();
    }
    let peak = if counts.total.count.matrix_flops > 0 { r.gpu.bf16_flops } else { r.gpu.f32_flops };
    let (intensity, rate) = (operations / bytes, operations / seconds);
    // The plot covers 10^-3 to 10^5 operations per byte and 10^8 to 10^16 operations per second.
    let x = |intensity: f64| 60.0 + 80.0 * (intensity.log10() + 3.0).clamp(0.0, 8.0);
    let y = |rate: f64| 300.0 - 35.0 * (rate.log10() - 8.0).clamp(0.0, 8.0);
    let ridge = peak / r.gpu.bandwidth;
    let mut out = String::from("<div class=\"scroll\"><svg viewBox=\"0 0 740 340\" width=\"740\" role=\"img\">");
    for power in -3..=5 {
        let at = x(10f64.powi(power));
        let _ = write!(
            out,
            "<text x=\"{at}\" y=\"318\" font-size=\"11\" text-anchor=\"middle\">10<tspan dy=\"-4\" font-size=\"8\">{power}</tspan></text>"
        );
    }
    for power in [9, 12, 15] {
        let (at, name) = (y(10f64.powi(power)), ["GFLOP/s", "TFLOP/s", "PFLOP/s"][(power as usize - 9) / 3]);
        let _ = write!(out, "<text x=\"56\" y=\"{at}\" font-size=\"11\" text-anchor=\"end\">1 {name}</text>");
    }
    let (low, high) = (1e-3, 1e5);
    let _ = write!(
        out,
        "<text x=\"380\" y=\"336\" font-size=\"12\" text-anchor=\"middle\">operations per byte of global memory</text>\
         <polyline fill=\"none\" stroke=\"#36c\" stroke-width=\"2\" points=\"{},{} {},{} {},{}\"/>\
         <circle cx=\"{}\" cy=\"{}\" r=\"6\" fill=\"#c30\"><title>{intensity:.3} operations per byte, at most {:.3e} \
         operations/s on {}</title></circle></svg></div>\
         <p>The line is the limit of {} (data sheet); the dot is the kernel at its least time: {intensity:.3} operations \
         per byte.</p>",
        x(low),
        y(low * r.gpu.bandwidth),
        x(ridge),
        y(peak),
        x(high),
        y(peak),
        x(intensity),
        y(rate),
        rate,
        r.gpu.name,
        r.gpu.name
    );
    out
}

fn add_source(out: &mut String, run: &RunDisplay, counts: &CountReport) {
    let lines = run.quotes.lines();
    if lines.is_empty() {
        return;
    }
    let _ = write!(out, "<h2>{}</h2>", escape_html(&run.quotes.name));
    let here = |l: &&LineCounts| l.origin.file.is_none() && l.origin.cuda == run.quotes.cuda;
    let counted: BTreeMap<u32, &LineCounts> = counts.lines.iter().filter(here).map(|l| (l.origin.line, l)).collect();
    let mut findings: BTreeMap<u32, Vec<&Finding>> = BTreeMap::new();
    run.findings().for_each(|f| findings.entry(f.line).or_default().push(f));
    let most = counted.values().map(|l| l.counted.count.warps).max().unwrap_or(1).max(1);
    *out += "<div class=\"scroll\"><table><tr><th>line</th><th>warp instructions</th><th></th><th>global bytes</th>\
             <th>sectors</th><th>bank conflicts</th><th>source</th></tr>";
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
            *out += "<tr><td colspan=\"7\">…</td></tr>";
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
                    "<td class=\"n\">{}</td><td><span class=\"bar\" style=\"width:{width}px\"></span></td>\
                     <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>",
                    c.warps,
                    c.global_read + c.global_written,
                    c.sectors,
                    l.counted.bank_conflict_wavefronts()
                );
            }
            None => *out += "<td></td><td></td><td></td><td></td><td></td>",
        }
        let _ = write!(out, "<td class=\"code\">{}", escape_html(text));
        for f in findings.get(&line).into_iter().flatten() {
            let _ =
                write!(out, "<div class=\"finding\">{}: {}</div>", f.kind.name(), escape_html(&readable_message(f)));
        }
        *out += "</td></tr>";
    }
    *out += "</table></div>";
}
