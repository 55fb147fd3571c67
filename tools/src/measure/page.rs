//! The HTML page of a result: time by part and by op, clocks and power, memory over time.

use crate::report::chart::{AreaSeries, Chart};
use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::table::HtmlTable;
use reel_device::{MEMORY_CATEGORIES, MemorySample};
use serde_json::Value;

use crate::measure::clocks::{ClockSummary, READING_NAMES_AND_UNITS};
use crate::measure::ops::{OpTime, share_text};
use crate::measure::parts::PartTime;
use crate::measure::roofline_page::{KernelPoint, roofline_chart, roofline_point};
use crate::measure::rounds::{MeasuredRounds, result_headline};

/// The page of a measurement; `result` is its JSON.
pub fn bench_page(measured: &MeasuredRounds, result: &Value) -> String {
    let word = |key: &str| escape_html(result.pointer(key).and_then(Value::as_str).unwrap_or_default());
    let mut page = HtmlPage::new(&format!("reel bench {}", result["op"].as_str().unwrap_or_default()));
    page.add(&format!(
        "<p>{}</p><p>{} on {} ({}), {}; {} tokens, batch {}, context {}; peak memory {:.3} GB.</p>\n",
        escape_html(&result_headline(result)),
        word("/model"),
        word("/device"),
        word("/machine/name"),
        word("/dtype"),
        result["tokens"],
        result["batch"],
        result["context"],
        measured.peak as f64 / 1e9
    ));
    add_parts(&mut page, &measured.parts, measured.profiled);
    add_ops(&mut page, measured);
    if let Some(clocks) = &measured.clocks {
        add_clocks(&mut page, clocks);
    }
    add_memory(&mut page, measured);
    page.into_html()
}

/// Adds the table of parts, one row per part, if there are any.
fn add_parts(page: &mut HtmlPage, rows: &[PartTime], round: f64) {
    if rows.is_empty() {
        return;
    }
    let columns = ["part", "ms", "%", "in launches, ms", "launches", "GFLOP", "least possible, ms"];
    let mut table = HtmlTable::new(&columns);
    for p in rows {
        table.add_row(vec![
            escape_html(p.name),
            format!("{:.3}", p.seconds * 1e3),
            format!("{:.1}", 100.0 * p.seconds / round),
            format!("{:.3}", p.busy * 1e3),
            p.launches.to_string(),
            format!("{:.3}", p.cost.flops / 1e9),
            format!("{:.3}", p.floor * 1e3),
        ]);
    }
    page.add("<h2>Parts</h2>\n");
    page.add_table(&table);
}

/// Adds a roofline chart of the ops and a table of them, sorted by their lost time. The row of an op has a bar for its
/// time; the mark in the bar is the op's least possible time.
fn add_ops(page: &mut HtmlPage, measured: &MeasuredRounds) {
    let (seconds, ceilings) = (measured.profiled, &measured.ceilings);
    let lost = |row: &OpTime| (row.seconds - row.floor).max(0.0);
    let mut rows: Vec<&OpTime> = measured.ops.iter().collect();
    rows.sort_by(|a, b| lost(b).total_cmp(&lost(a)).then_with(|| a.op.cmp(b.op)));
    page.add(&format!("<h2>Time of {:.3} ms by op</h2>\n", seconds * 1e3));
    page.add(
        "<p>The larger a dot, the more time its op takes above its roofline; the table is sorted by that time.</p>\n",
    );
    let point = |row: &&OpTime| {
        let OpTime { flops, bytes, floor, is_bound_by_arithmetic, .. } = **row;
        let time = KernelPoint { flops, bytes, floor, seconds: Some(row.seconds), is_bound_by_arithmetic };
        roofline_point(row.op, time)
    };
    page.add_chart(&roofline_chart("roofline", ceilings, rows.iter().map(point).collect()));
    let columns = [
        "op",
        "of the step",
        "lost, ms",
        "ms",
        "%",
        "launches",
        "GFLOP/s",
        "GB/s",
        "least possible, ms",
        "of roofline",
    ];
    let mut table = HtmlTable::new(&columns);
    let longest = rows.iter().map(|r| r.seconds).fold(f64::MIN_POSITIVE, f64::max);
    for row in &rows {
        let width = |seconds: f64| 100.0 * (seconds / longest).clamp(0.0, 1.0);
        let bar = format!(
            "<span class=\"bar\"><i style=\"width:{:.2}%\"></i><b style=\"left:{:.2}%\"></b></span>",
            width(row.seconds),
            width(row.floor)
        );
        let cells = vec![
            escape_html(row.op),
            bar,
            format!("{:.3}", lost(row) * 1e3),
            format!("{:.3}", row.seconds * 1e3),
            format!("{:.1}", 100.0 * row.share),
            row.launches.to_string(),
            format!("{:.1}", row.flops_per_second() / 1e9),
            format!("{:.1}", row.bytes_per_second() / 1e9),
            format!("{:.3}", row.floor * 1e3),
            share_text(row.roofline_share()),
        ];
        table.add_row_with_attributes(&format!(" id=\"{}\"", escape_html(row.op)), cells);
    }
    let inside: f64 = rows.iter().map(|r| r.seconds).sum();
    let mut between = vec![String::new(); columns.len()];
    between[0] = "between ops".into();
    between[3] = format!("{:.3}", (seconds - inside) * 1e3);
    between[4] = format!("{:.1}", 100.0 * (1.0 - inside / seconds));
    table.add_row(between);
    page.add_table(&table);
}

fn add_clocks(page: &mut HtmlPage, clocks: &ClockSummary) {
    let mut table = HtmlTable::new(&["figure", "unit", "minimum", "median", "maximum"]).with_text_columns(2);
    for ((name, unit), figure) in READING_NAMES_AND_UNITS.iter().zip(&clocks.values) {
        if let Some(figures) = figure {
            let names = [name.to_string(), unit.to_string()];
            table.add_row(names.into_iter().chain(figures.iter().map(|f| format!("{f:.0}"))).collect());
        }
    }
    for (reason, n) in &clocks.throttled {
        let name = format!("throttled: {reason}");
        table.add_row(vec![name, "readings".into(), String::new(), n.to_string(), String::new()]);
    }
    page.add(&format!("<h2>Clocks and power, {} readings</h2>\n", clocks.readings));
    page.add_table(&table);
}

/// Number of columns of the memory chart. Each column shows the highest total in its stretch of time.
const COLUMNS: usize = 448;

/// Adds a stacked area chart of device memory by category over the profiled round, if the round used device memory.
fn add_memory(page: &mut HtmlPage, measured: &MeasuredRounds) {
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
    // A column without a memory sample repeats the bytes of the column before it.
    let mut held = samples.first().map_or([0; MEMORY_CATEGORIES.len()], |s| s.bytes);
    for column in &mut columns {
        held = column.unwrap_or(held);
        *column = Some(held);
    }
    let columns: Vec<_> = columns.into_iter().flatten().collect();
    let layer = |(k, name): (usize, &str)| {
        let values: Vec<f64> = columns.iter().map(|c| c[k] as f64).collect();
        values.iter().any(|v| *v > 0.0).then(|| AreaSeries { name: name.to_string(), values })
    };
    let names = MEMORY_CATEGORIES.iter().map(|category| category.name());
    let series: Vec<AreaSeries> = names.enumerate().filter_map(layer).collect();
    if series.is_empty() {
        return;
    }
    let seconds = (0..COLUMNS).map(|i| span * i as f64 / COLUMNS as f64).collect();
    page.add("<h2>Memory from the first launch to the last</h2>\n");
    page.add_chart(&Chart::Area { name: "device memory by category".into(), seconds, series });
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;
    use crate::measure::ceilings::{Ceilings, RooflineFloor};

    #[test]
    fn page_has_ops_clocks_and_memory() {
        let begun = Instant::now();
        let row = |op, seconds| OpTime {
            op,
            launches: 3,
            seconds,
            share: seconds,
            flops: 1e9,
            bytes: 1e6,
            floor: 0.1,
            is_miscounted: false,
            is_bound_by_arithmetic: true,
        };
        let sample = |ms, weights, activations| MemorySample {
            at: begun + Duration::from_millis(ms),
            bytes: [weights, 0, 0, activations, 0, 0, 0],
        };
        let measured = MeasuredRounds {
            samples: vec![1.0; 3],
            handovers: Vec::new(),
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
        assert_eq!((html.matches("class=\"bar\"").count(), html.matches("\"weight\"").count()), (2, 2));
        // The op `a<b` loses less time than `matmul_fwd`; the round used two categories of memory.
        assert!(html.find("id=\"matmul_fwd\"") < html.find("id=\"a&lt;b\"") && html.contains("lost, ms"));
        let memory = html.split("\"kind\":\"area\"").nth(1).expect("a chart of memory");
        let series = memory.split("</script>").next().unwrap();
        assert_eq!(series.matches("\"name\":").count(), 3, "the chart's name and those of two categories");
        assert!(!series.contains("null") && !html.contains("NaN %"));
    }
}
