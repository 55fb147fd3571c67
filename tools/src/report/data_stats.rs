//! The page of `reel data stats`: what the rows of a data file hold, with histograms. Histograms are bars of HTML, so
//! the page needs no script.

use std::fmt::Write;

use reel_samples::inspect::{DataStats, Distribution};

use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::table::HtmlTable;

/// Number of bars of a histogram.
const BINS: usize = 20;

/// Maximum number of values of a column that the page lists.
const MAX_VALUES: usize = 50;

const STYLE: &str = "
.bars { display: grid; grid-template-columns: minmax(0, max-content) minmax(72px, 1fr) max-content; gap: 2px 10px; margin: 12px 0 0; \
font-size: 12px; align-items: center; }
.bars i { display: block; height: 12px; min-width: 1px; background: var(--c0); border-radius: 2px; }
.bars span { color: var(--dim); font-variant-numeric: tabular-nums; text-align: right; \
overflow-wrap: anywhere; }
";

/// The page about a data file named `title`.
pub fn data_stats_page_html(title: &str, stats: &DataStats) -> String {
    let mut page = HtmlPage::new(title).with_style(STYLE);
    page.add(&format!(
        "<p>{} rows, of which {} cannot be used; {} images and videos.</p>\n",
        stats.rows, stats.unusable_rows, stats.media_files
    ));
    let layouts = ("Layout".to_string(), stats.layouts.clone());
    for (name, counts) in std::iter::once(&layouts).chain(&stats.columns) {
        page.add(&format!("<h2>Rows by {}</h2>\n", escape_html(&name.to_lowercase())));
        let mut values: Vec<_> = counts.iter().collect();
        values.sort_by_key(|(value, count)| (std::cmp::Reverse(**count), (*value).clone()));
        let most = values.first().map_or(1, |(_, count)| **count);
        let bars: Vec<_> = values.iter().take(MAX_VALUES).map(|(value, count)| ((*value).clone(), **count)).collect();
        page.add(&bars_html(&bars, most));
        if values.len() > MAX_VALUES {
            page.add(&format!("<p class=\"note\">and {} more values</p>\n", values.len() - MAX_VALUES));
        }
    }
    let distributions = [
        ("Video duration", "s", &stats.video_seconds),
        ("Video frame rate", "frames/s", &stats.video_fps),
        ("Longer side of images and videos", "pixels", &stats.longer_side),
        ("Tokens per row", "tokens", &stats.tokens),
    ];
    for (name, unit, distribution) in distributions {
        let Some(distribution) = distribution else { continue };
        page.add(&format!("<h2>{name} <small>{unit}</small></h2>\n"));
        page.add(&histogram_html(distribution, ["tokens", "pixels"].contains(&unit)));
        let mut table = HtmlTable::new(&["", "min", "p50", "p90", "p99", "max", "mean"]);
        let d = distribution;
        let numbers = [d.min, d.p50, d.p90, d.p99, d.max, d.mean].map(number);
        table.add_row(std::iter::once(format!("{} values", d.count)).chain(numbers).collect());
        page.add_table(&table);
    }
    if !stats.problem_counts.is_empty() {
        page.add("<h2>Problems</h2>\n");
        let mut table = HtmlTable::new(&["problem", "rows"]).with_text_columns(1);
        for (kind, count) in &stats.problem_counts {
            table.add_row(vec![kind.name().to_string(), count.to_string()]);
        }
        page.add_table(&table);
    }
    page.into_html()
}

/// A histogram. If all values are whole numbers, the label of a bar is the first and the last number that the bar
/// counts.
fn histogram_html(distribution: &Distribution, are_whole: bool) -> String {
    let bins = distribution.histogram(BINS);
    let most = bins.iter().map(|bin| bin.2).max().unwrap_or(1);
    let label =
        |from: f64, to: f64| if from >= to { number(from) } else { format!("{} – {}", number(from), number(to)) };
    let last = bins.len().saturating_sub(1);
    let bars = bins.into_iter().enumerate().filter_map(|(i, (from, to, count))| {
        if !are_whole {
            return Some((label(from, to), count));
        }
        // A bin ends before the next bin begins; only the last bin includes its end. Edges are rounded, because they
        // are computed in floating point.
        let ceil = |edge: f64| (edge - 1e-6).ceil();
        let (first, end) = (ceil(from), if i == last { to } else { ceil(to) - 1.0 });
        (first <= end || count > 0).then(|| (label(first, end), count))
    });
    bars_html(&bars.collect::<Vec<_>>(), most)
}

/// Horizontal bars, each with its text on the left and its count on the right. The longest bar has the count `most`.
fn bars_html(bars: &[(String, usize)], most: usize) -> String {
    let mut html = String::from("<div class=\"bars\">\n");
    for (text, count) in bars {
        let width = 100.0 * *count as f64 / most.max(1) as f64;
        // Writing to a string cannot fail.
        let _ = writeln!(
            html,
            "<span>{}</span><div><i style=\"width:{width:.1}%\"></i></div><span>{count}</span>",
            escape_html(&text.chars().take(60).collect::<String>())
        );
    }
    html + "</div>\n"
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 { format!("{value}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_histograms_and_escapes_values() {
        let stats = DataStats {
            rows: 3,
            unusable_rows: 1,
            commands: Vec::new(),
            layouts: [("messages".to_string(), 2)].into(),
            columns: vec![("source".to_string(), [("<script>".to_string(), 2)].into())],
            media_files: 2,
            video_seconds: Distribution::new([1.0, 2.5, 11.0]),
            video_fps: None,
            longer_side: None,
            tokens: Distribution::new([7.0]),
            problem_counts: vec![(reel_samples::inspect::ProblemKind::MissingMedia, 1)],
            problems: Vec::new(),
        };
        let html = data_stats_page_html("a<b>.jsonl", &stats);
        assert!(html.contains("a&lt;b&gt;.jsonl") && html.contains("&lt;script&gt;") && !html.contains("<script"));
        assert!(html.contains("3 rows, of which 1 cannot be used") && html.contains("missing media"));
        // One bar for the layout, one for the column, 20 for the durations, and one because all rows have the same
        // number of tokens.
        assert_eq!(html.matches("<i style").count(), 1 + 1 + 20 + 1);
        assert!(html.contains("10.50 – 11</span>") && html.contains(">2.50<"), "{html}");
        // Numbers of tokens are whole.
        let tokens = Distribution::new((52..=128).map(f64::from)).unwrap();
        let html = histogram_html(&tokens, true);
        assert!(html.contains("<span>52 – 55</span>") && html.contains("<span>125 – 128</span>"), "{html}");
        assert_eq!(html.matches("<i style").count(), BINS);
    }
}
