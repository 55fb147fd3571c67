//! The charts of a page. A chart is a `<figure>` with its data as JSON, which `page.js` draws with uPlot. Without
//! JavaScript, a page shows the first and the last values of its line charts as text.
//!
//! Charts have at most [`MAX_POINTS`] points per line and six significant digits per value, so that the page of a
//! long run stays small.

use std::fmt::Write;

use reel_support::diagnostic::escape_controls;
use serde_json::{Value, json};

use crate::report::escape::{escape_html, json_in_script};

/// Maximum number of points of a line. A line with more points is cut into stretches of steps, and only the lowest and
/// the highest point of each stretch are shown.
const MAX_POINTS: usize = 2000;

/// The range of values that a chart shows when the page opens. Buttons in the chart's caption select the other range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YRange {
    /// The range without spikes, which would make the rest of the curve nearly flat.
    Robust,
    /// A logarithmic range with all values above 0.
    Log,
}

/// What the x axis of a line chart counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XAxis {
    /// Steps of a run: many points, drawn with a running mean.
    Steps,
    /// Numbers of GPUs: few points, on a logarithmic axis.
    Gpus,
}

impl XAxis {
    /// The unit of the x axis in texts: `step` or `GPUs`.
    fn unit(self) -> &'static str {
        match self {
            XAxis::Steps => "step",
            XAxis::Gpus => "GPUs",
        }
    }
}

/// One line of a line chart: the values of one run over its steps.
#[derive(Clone, Debug, PartialEq)]
pub struct LineSeries {
    /// The name of the run.
    pub name: String,
    /// `(step, value)`, sorted by step. Values that are not finite are left out.
    pub points: Vec<(u64, f64)>,
    /// The interval `[low, high]` of each value, drawn as a bar; empty for values without intervals.
    pub intervals: Vec<[f64; 2]>,
}

impl LineSeries {
    /// A line of values without intervals.
    pub fn new(name: &str, points: Vec<(u64, f64)>) -> Self {
        Self { name: name.into(), points, intervals: Vec::new() }
    }
}

/// One layer of a stacked chart.
#[derive(Clone, Debug, PartialEq)]
pub struct AreaSeries {
    /// The name of the layer.
    pub name: String,
    /// One value for each position on the x axis.
    pub values: Vec<f64>,
}

/// A roof of a roofline chart: a line that rises with the machine's memory bandwidth up to its rate of arithmetic, and
/// stays flat from there.
#[derive(Clone, Debug, PartialEq)]
pub struct Roof {
    /// The rate of arithmetic that limits kernels under this roof, such as `bf16 products`.
    pub name: String,
    /// Operations per second.
    pub flops_per_second: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
}

/// A kernel in a roofline chart.
#[derive(Clone, Debug, PartialEq)]
pub struct RooflinePoint {
    /// The kernel's name.
    pub name: String,
    /// The text that the chart shows next to the kernel's name.
    pub text: String,
    /// The HTML `id` of the kernel's row in a table of the page; empty if it has no row.
    pub id: String,
    /// Operations per byte of memory traffic.
    pub intensity: f64,
    /// Operations per second.
    pub flops_per_second: f64,
    /// True if arithmetic limits the kernel, false if memory traffic does, `None` if neither does.
    pub is_bound_by_arithmetic: Option<bool>,
    /// The kernel's lost time in seconds: its measured time above its floor. A larger lost time gives a larger dot.
    pub lost_seconds: f64,
}

/// A chart of a page.
#[derive(Clone, Debug, PartialEq)]
pub enum Chart {
    /// A metric over the steps of training runs, one line per run, or over numbers of GPUs.
    Lines {
        /// The name of the metric.
        name: String,
        /// What the x axis counts.
        x: XAxis,
        /// The unit of the values: `s`, `B`, …; empty for plain numbers.
        unit: &'static str,
        /// One line per run; the index of a run decides its color.
        series: Vec<LineSeries>,
        /// The range of values when the page opens.
        range: YRange,
    },
    /// Bytes over time, as stacked layers.
    Area {
        /// What the chart shows.
        name: String,
        /// Positions on the x axis in seconds, ascending.
        seconds: Vec<f64>,
        /// The layers from the lowest to the highest, in bytes.
        series: Vec<AreaSeries>,
    },
    /// Kernels below the roofs of a machine.
    Roofline {
        /// The machine's name.
        name: String,
        /// The roofs of the machine, the most important roof first.
        roofs: Vec<Roof>,
        /// The kernels. A kernel without arithmetic gets a small intensity above 0, which the caller chooses.
        points: Vec<RooflinePoint>,
    },
}

/// Whether the values of all points are equal.
pub(crate) fn is_constant(points: &[(u64, f64)]) -> bool {
    points.windows(2).all(|two| two[0].1 == two[1].1)
}

impl Chart {
    /// Returns a sentence with the values of a line chart over steps as HTML, if all lines of the chart are constant;
    /// `None` for any other chart.
    pub(crate) fn constant_values_html(&self) -> Option<String> {
        let Chart::Lines { name, unit, series, x: XAxis::Steps, .. } = self else { return None };
        let values: Vec<String> = series
            .iter()
            .filter_map(|s| s.points.first().filter(|_| is_constant(&s.points)))
            .map(|point| format!("{} {unit}", rounded(point.1)).trim_end().to_string())
            .collect();
        let text = || format!("<p>{}: {} in every step</p>\n", escape_html(name), values.join(", "));
        (!series.is_empty() && values.len() == series.len()).then(text)
    }

    /// The chart as HTML.
    pub(crate) fn html(&self) -> String {
        let (name, unit) = match self {
            Chart::Lines { name, unit, .. } => (name, *unit),
            Chart::Area { name, .. } => (name, "B"),
            Chart::Roofline { name, .. } => (name, "FLOP/s"),
        };
        let unit = if unit.is_empty() { String::new() } else { format!(" <small>{unit}</small>") };
        format!(
            "<figure class=\"chart\"><figcaption><b>{}</b>{unit}</figcaption>{}<div class=\"plot\"></div>\
             <noscript>{}</noscript><script type=\"application/json\">{}</script></figure>\n",
            escape_html(name),
            self.legend(),
            self.fallback(),
            json_in_script(&self.data())
        )
    }

    /// The data that `page.js` reads.
    fn data(&self) -> Value {
        match self {
            Chart::Lines { name, x, unit, series, range } => {
                let one = |(color, series): (usize, &LineSeries)| {
                    let points = thinned(&series.points);
                    let mut line = json!({
                        "name": escape_controls(&series.name), "color": color,
                        "x": points.iter().map(|p| p.0).collect::<Vec<u64>>(),
                        "y": points.iter().map(|p| rounded(p.1)).collect::<Vec<f64>>(),
                    });
                    // If points were left out, the line is too dense for interval bars.
                    if !series.intervals.is_empty() && series.intervals.len() == points.len() {
                        for (i, name) in ["low", "high"].into_iter().enumerate() {
                            line[name] = json!(series.intervals.iter().map(|ci| rounded(ci[i])).collect::<Vec<f64>>());
                        }
                    }
                    line
                };
                let with_values = series.iter().enumerate().filter(|(_, s)| s.points.iter().any(|p| p.1.is_finite()));
                json!({
                    "kind": "lines", "name": escape_controls(name), "x": x.unit(), "unit": unit,
                    "range": match range { YRange::Robust => "robust", YRange::Log => "log" },
                    "series": with_values.map(one).collect::<Vec<Value>>(),
                })
            }
            Chart::Area { name, seconds, series } => {
                let one = |(color, s): (usize, &AreaSeries)| {
                    let values: Vec<f64> = s.values.iter().map(|v| rounded(*v)).collect();
                    json!({"name": escape_controls(&s.name), "color": color, "y": values})
                };
                json!({
                    "kind": "area", "name": escape_controls(name), "unit": "B", "x_unit": "s",
                    "x": seconds.iter().map(|s| rounded(*s)).collect::<Vec<f64>>(),
                    "series": series.iter().enumerate().map(one).collect::<Vec<Value>>(),
                })
            }
            Chart::Roofline { name, roofs, points } => {
                let roof = |r: &Roof| {
                    let (flops, bytes) = (rounded(r.flops_per_second), rounded(r.bytes_per_second));
                    json!({"name": escape_controls(&r.name), "flops": flops, "bandwidth": bytes})
                };
                let point = |p: &RooflinePoint| {
                    json!({
                        "name": escape_controls(&p.name), "text": escape_controls(&p.text), "id": p.id,
                        "x": rounded(p.intensity), "y": rounded(p.flops_per_second),
                        "weight": rounded(p.lost_seconds), "color": usize::from(p.is_bound_by_arithmetic == Some(true)),
                    })
                };
                json!({
                    "kind": "roofline", "name": escape_controls(name), "unit": "FLOP/s",
                    "x": "operations per byte of memory traffic",
                    "roofs": roofs.iter().map(roof).collect::<Vec<Value>>(),
                    "points": points.iter().filter(|p| p.is_drawable()).map(point).collect::<Vec<Value>>(),
                })
            }
        }
    }

    /// Returns the legend of an area or roofline chart. `page.js` makes the legend of a line chart.
    fn legend(&self) -> String {
        let key = |color: usize, text: &str| {
            format!(
                "<span class=\"entry\"><i class=\"key\" style=\"background:var(--c{})\"></i>{text}</span>",
                color % 8
            )
        };
        let entries: String = match self {
            Chart::Lines { .. } => return String::new(),
            Chart::Area { series, .. } => {
                let highest = |s: &AreaSeries| s.values.iter().copied().fold(0.0, f64::max) / 1e9;
                let entry = |(i, s): (usize, &AreaSeries)| {
                    key(i, &format!("{} up to {:.3} GB", escape_html(&s.name), highest(s)))
                };
                series.iter().enumerate().map(entry).collect()
            }
            Chart::Roofline { points, .. } => {
                let is_used = |arithmetic| points.iter().any(|p| p.is_bound_by_arithmetic == Some(arithmetic));
                let kinds = [(false, "bound by memory traffic"), (true, "bound by arithmetic")];
                let entries = kinds.iter().filter(|(arithmetic, _)| is_used(*arithmetic));
                entries.map(|(arithmetic, text)| key(usize::from(*arithmetic), text)).collect()
            }
        };
        format!("<div class=\"legend\">{entries}</div>")
    }

    /// The text that a browser without JavaScript shows: for a line chart, the first and the last value of each line;
    /// for other charts, a notice.
    fn fallback(&self) -> String {
        let Chart::Lines { x, series, .. } = self else { return "<p>This chart needs JavaScript.</p>".into() };
        let (x, mut text) = (x.unit(), String::new());
        for LineSeries { name, points, .. } in series {
            let (Some(first), Some(last)) = (points.first(), points.last()) else { continue };
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "<p>{} {x} {}: {}, {x} {}: {}</p>",
                escape_html(name),
                first.0,
                rounded(first.1),
                last.0,
                rounded(last.1)
            );
        }
        text
    }
}

impl RooflinePoint {
    /// Whether the point can be drawn on logarithmic axes: both coordinates are finite and above 0.
    fn is_drawable(&self) -> bool {
        [self.intensity, self.flops_per_second].iter().all(|v| v.is_finite() && *v > 0.0)
    }
}

/// Returns the finite points. If there are more than [`MAX_POINTS`], keeps only the lowest and the highest point of
/// each stretch of steps, so that spikes stay visible.
fn thinned(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let finite: Vec<(u64, f64)> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
    if finite.len() <= MAX_POINTS {
        return finite;
    }
    let stretches = finite.chunks(finite.len().div_ceil(MAX_POINTS / 2));
    let extremes = |stretch: &[(u64, f64)]| {
        let low = stretch.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
        let high = stretch.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
        let mut both: Vec<(u64, f64)> = low.into_iter().chain(high).collect();
        both.sort_by_key(|p| p.0);
        both.dedup_by_key(|p| p.0);
        both
    };
    stretches.flat_map(extremes).collect()
}

/// A value with six significant digits; 0 for a value that is not finite.
fn rounded(value: f64) -> f64 {
    if value.is_finite() { format!("{value:.5e}").parse().unwrap_or(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(points: Vec<(u64, f64)>) -> Value {
        let series = vec![LineSeries::new("a", points)];
        Chart::Lines { name: "loss".into(), x: XAxis::Steps, unit: "", series, range: YRange::Robust }.data()
    }

    proptest! {
        // The number of test cases is small, because each case has thousands of values.
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// A line has at most [`MAX_POINTS`] points, sorted by step; the lowest and the highest value are among them.
        #[test]
        fn lines_are_short_and_keep_their_extremes(
            values in prop::collection::vec(prop_oneof![9 => -1e9f64..1e9, 1 => Just(f64::NAN)], 1..6000),
        ) {
            let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
            let data = lines((1..).zip(values).collect());
            let Some(series) = data["series"].as_array().and_then(|s| s.first()) else {
                prop_assert!(finite.is_empty());
                return Ok(());
            };
            let numbers = |key: &str| -> Vec<f64> {
                series[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
            };
            let (x, y) = (numbers("x"), numbers("y"));
            prop_assert!(x.len() == y.len() && x.len() <= MAX_POINTS && x.windows(2).all(|two| two[0] < two[1]));
            for extreme in [f64::min, f64::max] {
                let of = |values: &[f64]| values.iter().copied().reduce(extreme).unwrap();
                prop_assert!((of(&y) - of(&finite)).abs() <= 1e-5 * of(&finite).abs());
            }
        }
    }

    #[test]
    fn spikes_survive_thinning() {
        let spiky = (0..100_000).map(|i| (i, if i == 77_777 { 1e6 } else { 1.0 })).collect();
        let data = lines(spiky);
        let y = data["series"][0]["y"].as_array().unwrap();
        assert!(y.len() <= MAX_POINTS && y.iter().filter(|v| v.as_f64() == Some(1e6)).count() == 1);
    }

    #[test]
    fn line_chart_with_constant_values_is_a_sentence() {
        let series = |values: [f64; 2]| LineSeries::new("a", vec![(1, values[0]), (2, values[1])]);
        let chart =
            |series| Chart::Lines { name: "<kl>".into(), x: XAxis::Steps, unit: "nats", series, range: YRange::Robust };
        let constant = chart(vec![series([0.5, 0.5]), series([2.0, 2.0])]);
        let text = "<p>&lt;kl&gt;: 0.5 nats, 2 nats in every step</p>\n";
        assert_eq!(constant.constant_values_html().as_deref(), Some(text));
        assert_eq!(chart(vec![series([0.5, 0.5]), series([2.0, 3.0])]).constant_values_html(), None);
        assert_eq!(chart(Vec::new()).constant_values_html(), None);
    }

    #[test]
    fn chart_shows_its_last_value_without_javascript() {
        let series = vec![LineSeries::new("run", vec![(1, 3.0), (9, 0.1234567)])];
        let (name, x) = ("step_seconds".into(), XAxis::Steps);
        let chart = Chart::Lines { name, x, unit: "s", series, range: YRange::Log };
        let html = chart.html();
        assert!(html.contains("<noscript><p>run step 1: 3, step 9: 0.123457</p></noscript>"), "{html}");
        assert!(html.contains("<b>step_seconds</b> <small>s</small>") && html.contains("\"range\":\"log\""));
    }

    #[test]
    fn chart_over_gpus_is_drawn_even_if_it_is_constant() {
        let series = vec![LineSeries::new("memory", vec![(1, 3.0), (1024, 3.0)])];
        let (name, x) = ("memory".into(), XAxis::Gpus);
        let chart = Chart::Lines { name, x, unit: "B", series, range: YRange::Robust };
        assert_eq!((chart.constant_values_html(), &chart.data()["x"]), (None, &json!("GPUs")));
        assert!(chart.html().contains("<p>memory GPUs 1: 3, GPUs 1024: 3</p>"));
    }

    #[test]
    fn kernels_with_zero_or_nan_coordinates_are_not_drawn() {
        let point = |intensity, rate| RooflinePoint {
            name: "k".into(),
            text: String::new(),
            id: "k".into(),
            intensity,
            flops_per_second: rate,
            is_bound_by_arithmetic: Some(true),
            lost_seconds: 1e-3,
        };
        let points = vec![point(1.0, 1e9), point(0.0, 1e9), point(1.0, f64::NAN)];
        let roofs = vec![Roof { name: "f32".into(), flops_per_second: 1e12, bytes_per_second: 1e12 }];
        let chart = Chart::Roofline { name: "gpu".into(), roofs, points };
        let data = chart.data();
        assert_eq!((data["points"].as_array().unwrap().len(), &data["points"][0]["color"]), (1, &json!(1)));
        assert!(chart.html().contains("bound by arithmetic") && !chart.html().contains("bound by memory"));
    }
}
