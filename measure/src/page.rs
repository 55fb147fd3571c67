//! The HTML page of a result: time by part and by op, clocks and power, memory over time.

use std::fmt::Write;

use reel_runtime::device::{MEMORY_CATEGORIES, MemorySample};
use serde_json::Value;

use reel_report::html::{self, escape_html};

use crate::clocks::{ClockSummary, READING_NAMES_AND_UNITS};
use crate::ops::OpTime;
use crate::parts::PartTime;
use crate::rounds::{MeasuredRounds, result_headline};

/// The page of a measurement; `result` is its JSON.
pub fn bench_page(measured: &MeasuredRounds, result: &Value) -> String {
    let word = |key: &str| escape_html(result.pointer(key).and_then(Value::as_str).unwrap_or_default());
    let mut page = html::page_start_html(&format!("reel bench {}", result["op"].as_str().unwrap_or_default()));
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<p>{}</p><p>{} on {} ({}), {}; {} tokens, batch {}, context {}; peak memory {:.3} GB.</p>",
        escape_html(&result_headline(result)),
        word("/model"),
        word("/device"),
        word("/machine/name"),
        word("/dtype"),
        result["tokens"],
        result["batch"],
        result["context"],
        measured.peak as f64 / 1e9
    );
    page += &parts(&measured.parts, measured.profiled);
    page += &ops(&measured.ops, measured.profiled);
    if let Some(clocks) = &measured.clocks {
        page += &clock_table(clocks);
    }
    page += &memory(measured);
    page + html::PAGE_END
}

/// The table of parts, one row per part; empty if there are no parts.
fn parts(rows: &[PartTime], round: f64) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "<h2>Parts</h2><table><thead><tr><th>part<th>ms<th>%<th>in launches, ms<th>launches<th>GFLOP<th>least possible ms</tr></thead><tbody>",
    );
    for p in rows {
        let _ = write!(
            text,
            "<tr><td>{}<td>{:.3}<td>{:.1}<td>{:.3}<td>{}<td>{:.3}<td>{:.3}</tr>",
            escape_html(p.name),
            p.seconds * 1e3,
            100.0 * p.seconds / round,
            p.busy * 1e3,
            p.launches,
            p.cost.flops / 1e9,
            p.floor * 1e3
        );
    }
    text + "</tbody></table>"
}

/// The table of ops, one row per op with a bar for its time; the mark in the bar is the op's least time.
fn ops(rows: &[OpTime], seconds: f64) -> String {
    let mut text = format!(
        "<h2>Time of {:.3} ms by op</h2><table><thead><tr><th>op<th>of the step<th>launches<th>ms<th>%<th>GFLOP/s<th>GB/s\
         <th>least possible ms<th>of roofline</tr></thead><tbody>",
        seconds * 1e3
    );
    let longest = rows.iter().map(|r| r.seconds).fold(f64::MIN_POSITIVE, f64::max);
    for row in rows {
        let width = |seconds: f64| 100.0 * (seconds / longest).clamp(0.0, 1.0);
        let _ = write!(
            text,
            "<tr><td>{}<td class=\"bar\"><i style=\"width:{:.2}%\"></i><b style=\"left:{:.2}%\"></b><td>{}<td>{:.3}<td>{:.1}<td>{:.1}<td>{:.1}<td>{:.3}<td>{:.1} %</tr>",
            escape_html(row.op),
            width(row.seconds),
            width(row.floor),
            row.launches,
            row.seconds * 1e3,
            100.0 * row.share,
            row.flops_per_second() / 1e9,
            row.bytes_per_second() / 1e9,
            row.floor * 1e3,
            100.0 * row.roofline_share()
        );
    }
    let inside: f64 = rows.iter().map(|r| r.seconds).sum();
    let _ = write!(
        text,
        "<tr><td>between ops<td><td><td>{:.3}<td>{:.1}<td><td><td><td></tr></tbody></table>",
        (seconds - inside) * 1e3,
        100.0 * (1.0 - inside / seconds)
    );
    text
}

fn clock_table(clocks: &ClockSummary) -> String {
    let mut text = format!(
        "<h2>Clocks and power, {} readings</h2><table><thead><tr><th>figure<th>unit<th>minimum<th>median<th>maximum</tr></thead><tbody>",
        clocks.readings
    );
    for ((name, unit), figure) in READING_NAMES_AND_UNITS.iter().zip(&clocks.values) {
        if let Some([min, median, max]) = figure {
            let _ = write!(text, "<tr><td>{name}<td>{unit}<td>{min:.0}<td>{median:.0}<td>{max:.0}</tr>");
        }
    }
    for (reason, n) in &clocks.throttled {
        let _ = write!(text, "<tr><td>throttled: {reason}<td>readings<td><td>{n}<td></tr>");
    }
    text + "</tbody></table>"
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 260.0;
const BOTTOM: f64 = 24.0;
const LEFT: f64 = 64.0;
/// Number of columns of the memory chart; each column shows the highest total in its stretch of time.
const COLUMNS: usize = 448;

/// A stacked area chart of device memory by category over the profiled round.
fn memory(measured: &MeasuredRounds) -> String {
    let ((begun, span), samples) = (measured.launches, &measured.memory);
    let span = span.as_secs_f64().max(f64::MIN_POSITIVE);
    let mut columns = vec![None::<[usize; MEMORY_CATEGORIES.len()]>; COLUMNS];
    for MemorySample { at, bytes } in samples {
        let part = at.saturating_duration_since(begun).as_secs_f64() / span;
        let column = &mut columns[((part * COLUMNS as f64) as usize).min(COLUMNS - 1)];
        if column.is_none_or(|held| held.iter().sum::<usize>() <= bytes.iter().sum()) {
            *column = Some(*bytes);
        }
    }
    // A chart column without a memory sample repeats the bytes of the previous column.
    let mut held = samples.first().map_or([0; MEMORY_CATEGORIES.len()], |s| s.bytes);
    let columns: Vec<[usize; MEMORY_CATEGORIES.len()]> = columns
        .into_iter()
        .map(|column| {
            held = column.unwrap_or(held);
            held
        })
        .collect();
    let max = columns.iter().map(|c| c.iter().sum::<usize>()).max().unwrap_or(0);
    if max == 0 {
        return String::new();
    }
    let x = |i: usize| LEFT + (WIDTH - LEFT - 8.0) * i as f64 / COLUMNS as f64;
    let y = |bytes: usize| HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 16.0) * bytes as f64 / max as f64;
    let mut text = format!(
        "<h2>Memory from the first launch to the last</h2><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"memory\">\
         <text x=\"{}\" y=\"20\" text-anchor=\"end\">{:.3} GB</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{:.3} ms</text>",
        LEFT - 8.0,
        max as f64 / 1e9,
        WIDTH - 8.0,
        HEIGHT - 6.0,
        span * 1e3
    );
    let mut legend = String::from("<p>");
    for (k, category) in MEMORY_CATEGORIES.iter().enumerate().filter(|(k, _)| columns.iter().any(|c| c[*k] > 0)) {
        let (mut above, mut below) = (String::new(), String::new());
        for (i, column) in columns.iter().enumerate() {
            let base: usize = column[..k].iter().sum();
            let _ = write!(above, "L{:.1} {:.1}H{:.1}", x(i), y(base + column[k]), x(i + 1));
            below.insert_str(0, &format!("L{:.1} {:.1}H{:.1}", x(i + 1), y(base), x(i)));
        }
        let hue = k * 360 / MEMORY_CATEGORIES.len();
        let highest = columns.iter().map(|c| c[k]).max().unwrap_or(0) as f64 / 1e9;
        let name = category.name();
        let _ = write!(
            text,
            "<path class=\"area\" style=\"--hue:{hue}\" d=\"M{}Z\"><title>{name}: up to {highest:.3} GB</title></path>",
            (above + &below).trim_start_matches('L')
        );
        let _ = write!(legend, "<span class=\"key\" style=\"--hue:{hue}\"></span>{name} up to {highest:.3} GB ");
    }
    text + "</svg>" + &legend + "</p>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ceilings::{Ceilings, RooflineFloor};
    use serde_json::json;
    use std::time::{Duration, Instant};

    #[test]
    fn page_has_ops_clocks_and_memory() {
        let begun = Instant::now();
        let row = |op, seconds| OpTime { op, launches: 3, seconds, share: seconds, flops: 1e9, bytes: 1e6, floor: 0.1 };
        let sample = |ms, weights, activations| MemorySample {
            at: begun + Duration::from_millis(ms),
            bytes: [weights, 0, 0, activations, 0, 0, 0],
        };
        let measured = MeasuredRounds {
            samples: vec![1.0; 3],
            parts: Vec::new(),
            ops: vec![row("matmul_fwd", 0.6), row("a<b", 0.2)],
            profiled: 1.0,
            launches: (begun, Duration::from_secs(1)),
            memory: vec![sample(0, 1 << 30, 0), sample(400, 1 << 30, 1 << 29), sample(2000, 1 << 30, 0)],
            ceilings: Ceilings { f32: 1e9, bf16: 1e9, bytes: 1e9, cache: None },
            floor: RooflineFloor::default(),
            clocks: Some(ClockSummary {
                readings: 4,
                values: [Some([1.0, 2.0, 3.0]), None, None, None],
                ..ClockSummary::default()
            }),
            peak: 1 << 30,
        };
        let result = json!({
            "op": "prefill", "tokens_per_second": 9.0, "min": 8.0, "max": 10.0, "n": 3, "tokens": 5, "batch": 1, "context": 0,
            "dtype": "f32", "device": "cuda", "machine": {"name": "<GPU>"}, "model": "m",
            "roofline": {"share": 0.5, "gflops_f32": 1.0, "gflops_bf16": 1.0, "gigabytes_per_second": 1.0},
        });
        let html = bench_page(&measured, &result);
        for part in ["matmul_fwd", "a&lt;b", "between ops", "&lt;GPU&gt;", "power_watts", "activations up to 0.537 GB"]
        {
            assert!(html.contains(part), "no {part} in {html}");
        }
        assert_eq!((html.matches("class=\"area\"").count(), html.matches("class=\"bar\"").count()), (2, 2));
        assert!(!html.contains("http") && !html.contains("NaN") && !html.contains("inf"), "{html}");
    }
}
