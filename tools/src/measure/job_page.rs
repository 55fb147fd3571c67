//! The HTML page of a planned training job: step time, efficiency, exchange and memory over the number of GPUs.

use crate::report::chart::{Chart, LineSeries, XAxis, YRange};
use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::table::HtmlTable;

use crate::measure::job::ScalingPoint;

/// Returns the page with charts and a table of weak scaling, `points`. `title` names the job; `notes` are the
/// paragraphs above the charts. Both are plain text.
pub fn job_page(title: &str, notes: &[String], points: &[ScalingPoint]) -> String {
    let mut page = HtmlPage::new(title);
    for note in notes {
        page.add(&format!("<p>{}</p>\n", escape_html(note)));
    }
    let mut chart = |name: &str, unit: &'static str, value: &dyn Fn(&ScalingPoint) -> f64| {
        let line = points.iter().map(|point| (point.shape.ranks as u64, value(point))).collect();
        let series = vec![LineSeries::new(name, line)];
        page.add_chart(&Chart::Lines { name: name.into(), x: XAxis::Gpus, unit, series, range: YRange::Robust });
    };
    chart("step time", "s", &|point| point.time.total_seconds());
    chart("weak scaling efficiency", "", &|point| point.efficiency);
    chart("exposed exchange", "s", &|point| point.time.exposed_seconds());
    chart("peak memory of a GPU", "B", &|point| point.peak_bytes as f64);
    chart("tokens per second of all GPUs", "", &|point| point.tokens_per_second);
    page.add_table(&table(points));
    page.into_html()
}

fn table(points: &[ScalingPoint]) -> HtmlTable {
    let mut table = HtmlTable::new(&[
        "GPUs",
        "nodes",
        "step, s",
        "compute, s",
        "optimizer, s",
        "exposed exchange, s",
        "hidden exchange, s",
        "efficiency",
        "tokens/s",
        "memory of a GPU, GB",
    ]);
    for ScalingPoint { shape, time, efficiency, peak_bytes, tokens_per_second } in points {
        let seconds = |seconds: f64| format!("{seconds:.4}");
        table.add_row(vec![
            shape.ranks.to_string(),
            shape.node_count().to_string(),
            seconds(time.total_seconds()),
            seconds(time.compute),
            seconds(time.optimizer),
            seconds(time.exposed_seconds()),
            seconds(time.hidden_seconds()),
            format!("{:.1} %", 100.0 * efficiency),
            format!("{tokens_per_second:.0}"),
            format!("{:.3}", *peak_bytes as f64 / 1e9),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::job::{JobShape, StepTime};

    #[test]
    fn page_has_a_chart_and_a_row_for_each_number_of_gpus() {
        let point = |ranks: usize| ScalingPoint {
            shape: JobShape { ranks, gpus_per_node: 8, micro_batches: ranks },
            time: StepTime { compute: 1.0, optimizer: 0.0, gradients: 0.5, weights: 0.25, exposed_gradients: 0.5 },
            efficiency: 0.571,
            peak_bytes: 12_000_000_000,
            tokens_per_second: 1000.0,
        };
        let html = job_page("72b <on> 8", &["InfiniBand & NVLink".to_string()], &[point(8), point(16)]);
        for part in ["72b &lt;on&gt; 8", "InfiniBand &amp; NVLink", ">1.7500<", ">57.1 %<", ">12.000<"] {
            assert!(html.contains(part), "{part}");
        }
        assert_eq!(html.matches("\"x\":\"GPUs\"").count(), 5);
    }
}
