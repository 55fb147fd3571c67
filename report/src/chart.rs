//! Line charts as inline SVG: each value is a dot, the running mean is a line. Colors come from the style sheet of the
//! page.

use std::fmt::Write;

use crate::html;

const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 26.0;
/// Maximum number of dots in a chart, and of points of its line.
const MAX_POINTS: usize = 400;

/// Size and scale of a chart.
#[derive(Clone, Copy, Debug)]
pub struct LineChart {
    /// Width in units of the SVG.
    pub width: f64,
    /// Height in units of the SVG.
    pub height: f64,
    /// Whether the y axis is logarithmic; values of 0 and below are then omitted.
    pub log: bool,
}

impl LineChart {
    /// Draws a chart of `(step, value)` points, sorted by step. Values that are not finite are omitted; the result is
    /// empty if no value is left.
    pub fn to_svg(&self, points: &[(u64, f64)], label: &str) -> String {
        let visible = |v: f64| v.is_finite() && (!self.log || v > 0.0);
        let points: Vec<(u64, f64)> = points.iter().copied().filter(|p| visible(p.1)).collect();
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return String::new() };
        let scaled = |v: f64| if self.log { v.log10() } else { v };
        let over = |f: fn(f64, f64) -> f64| points.iter().map(|p| scaled(p.1)).reduce(f).unwrap_or(0.0);
        let (low, high) = widened(over(f64::min), over(f64::max));
        let (begin, end) = (first.0 as f64, last.0 as f64);
        let x = |step: u64| LEFT + (self.width - LEFT - RIGHT) * (step as f64 - begin) / (end - begin).max(1.0);
        let y = |v: f64| TOP + (self.height - TOP - BOTTOM) * (high - scaled(v).clamp(low, high)) / (high - low);

        let mut svg = format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">",
            self.width,
            self.height,
            html::escape_html(label)
        );
        for tick in if self.log { log_ticks(low, high) } else { ticks(low, high) } {
            let at = y(tick);
            let right = self.width - RIGHT;
            let _ = write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
            let (left, at) = (LEFT - 6.0, at + 4.0);
            let _ = write!(svg, "<text x=\"{left}\" y=\"{at:.1}\" text-anchor=\"end\">{}</text>", short(tick));
        }
        for step in [first.0, last.0] {
            let (at, under) = (x(step), self.height - 8.0);
            let _ = write!(svg, "<text x=\"{at:.1}\" y=\"{under}\" text-anchor=\"middle\">{step}</text>");
        }
        for (step, value) in subsampled(&points) {
            let _ = write!(svg, "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.5\"/>", x(step), y(value));
        }
        let mean = subsampled(&running_mean(&points));
        let line: Vec<String> = mean.iter().map(|(s, v)| format!("{:.1},{:.1}", x(*s), y(*v))).collect();
        let _ = write!(svg, "<polyline class=\"line\" points=\"{}\"/>", line.join(" "));
        svg + "</svg>"
    }
}

/// The range of the y axis; widened if both ends are equal.
fn widened(low: f64, high: f64) -> (f64, f64) {
    if high - low > 1e-12 * high.abs().max(1e-300) {
        return (low, high);
    }
    let room = if high == 0.0 { 1.0 } else { 0.5 * high.abs() };
    (low - room, high + room)
}

/// At most [`MAX_POINTS`] of these points, evenly spaced.
fn subsampled(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    points.iter().copied().step_by(points.len().div_ceil(MAX_POINTS).max(1)).collect()
}

/// The mean of each value and its neighbours, over a window of 1/20 of all points.
fn running_mean(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let half = points.len() / 40;
    // With prefix sums, the sum over a window is a difference of two of them.
    let mut sums = vec![0.0];
    for p in points {
        sums.push(sums[sums.len() - 1] + p.1);
    }
    let mean = |i: usize| {
        let (from, to) = (i.saturating_sub(half), (i + half + 1).min(points.len()));
        (sums[to] - sums[from]) / (to - from) as f64
    };
    points.iter().enumerate().map(|(i, p)| (p.0, mean(i))).collect()
}

/// Ticks of a linear axis: both ends and the middle.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    vec![low, low + (high - low) / 2.0, high]
}

/// Ticks of a logarithmic axis, given the logarithms of its ends: 1, 2 and 5 times powers of ten, or the ends if there
/// are none.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = low.floor() as i32..=high.ceil() as i32;
    let all = decades.flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d)));
    let mut ticks: Vec<f64> = all.filter(|t| (low..=high).contains(&t.log10())).collect();
    if ticks.len() > 7 {
        ticks.retain(|t| (t.log10() - t.log10().round()).abs() < 1e-9);
    }
    if ticks.is_empty() { vec![10f64.powf(low), 10f64.powf(high)] } else { ticks }
}

/// A number as short text.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if v >= 1e6 => format!("{value:.1e}"),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 0.01 => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').into(),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Coordinates are finite and inside the chart, whatever the values are.
        #[test]
        fn every_point_is_inside_the_chart(values in prop::collection::vec(prop_oneof![9 => -1e9f64..1e9, 1 => Just(f64::NAN)], 1..900), log: bool) {
            let points: Vec<(u64, f64)> = (1..).zip(values).collect();
            let svg = LineChart { width: 360.0, height: 170.0, log }.to_svg(&points, "x");
            prop_assert!(!svg.contains("NaN") && !svg.contains("inf"));
            prop_assert_eq!(svg.is_empty(), points.iter().all(|p| p.1.is_nan() || log && p.1 <= 0.0));
            for part in svg.split("cy=\"").skip(1) {
                let y: f64 = part.split('"').next().unwrap().parse().unwrap();
                prop_assert!((0.0..=170.0).contains(&y));
            }
        }
    }

    #[test]
    fn tick_labels_are_short() {
        let texts: Vec<String> = [0.0, 1e-6, 0.25, 12.0, 4321.0, 2.5e9].map(short).into();
        assert_eq!(texts, ["0", "1.0e-6", "0.25", "12", "4321", "2.5e9"]);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(
            log_ticks(0.01f64.log10(), 6f64.log10()).into_iter().map(short).collect::<Vec<_>>(),
            ["0.01", "0.1", "1"]
        );
        assert_eq!(log_ticks(0.9f64.log10(), 6f64.log10()), [1.0, 2.0, 5.0]);
    }
}
