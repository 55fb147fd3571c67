//! Curves of a run: a small chart a metric, steps to the right.

use std::collections::BTreeMap;
use std::fmt::Write;

use reel_train::metrics::StepMetrics;

use crate::html;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 22.0;

/// Metrics in the order in which they are looked for; others follow by name.
const FIRST: [&str; 8] =
    ["reward", "loss", "kl", "completion_length", "entropy", "grad_norm", "learning_rate", "tokens_per_second"];

/// All metrics of the steps that are numbers.
pub fn html(steps: &[StepMetrics]) -> String {
    let mut curves: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
    for step in steps {
        for (name, value) in step.points().into_iter().filter(|(_, value)| value.is_finite()) {
            curves.entry(name.trim_start_matches("train/").to_string()).or_default().push((step.step, value));
        }
    }
    let place = |name: &str| FIRST.iter().position(|f| *f == name).unwrap_or(FIRST.len());
    let mut names: Vec<&String> = curves.keys().collect();
    names.sort_by_key(|name| (place(name), !name.starts_with("rewards/"), (*name).clone()));
    let mut page = "<h2>Curves</h2><div class=\"curves\">".to_string();
    for name in names {
        let _ = write!(
            page,
            "<figure><figcaption>{}</figcaption>{}</figure>",
            html::escape(name),
            chart(&curves[name], name)
        );
    }
    page + "</div>"
}

/// Each value as a dot, their running mean as a line.
fn chart(points: &[(u64, f64)], label: &str) -> String {
    let over = |f: fn(f64, f64) -> f64| points.iter().map(|p| p.1).reduce(f).unwrap_or(0.0);
    let (mut low, mut high) = (over(f64::min), over(f64::max));
    if high - low <= 1e-12 * high.abs().max(1e-300) {
        let room = if high == 0.0 { 1.0 } else { 0.5 * high.abs() };
        (low, high) = (low - room, high + room);
    }
    let (begin, end) = (points.first().map_or(0, |p| p.0) as f64, points.last().map_or(1, |p| p.0) as f64);
    let x = |step: f64| LEFT + (WIDTH - LEFT - RIGHT) * (step - begin) / (end - begin).max(1.0);
    let y = |v: f64| TOP + (HEIGHT - TOP - BOTTOM) * (high - v) / (high - low);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", html::escape(label));
    for value in [low, (low + high) / 2.0, high] {
        let at = y(value);
        let _ =
            write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>", WIDTH - RIGHT);
        let _ =
            write!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, at + 4.0, short(value));
    }
    for step in [begin, end] {
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>", x(step), HEIGHT - 6.0);
    }
    for (step, value) in thinned(points) {
        let _ = write!(svg, "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.5\"/>", x(step as f64), y(value));
    }
    let mean = running_mean(points);
    let line: Vec<String> = thinned(&mean).iter().map(|(s, v)| format!("{:.1},{:.1}", x(*s as f64), y(*v))).collect();
    let _ = write!(svg, "<polyline class=\"line\" points=\"{}\"/>", line.join(" "));
    svg + "</svg>"
}

/// At most 400 of them, evenly.
fn thinned(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    points.iter().copied().step_by(points.len().div_ceil(400).max(1)).collect()
}

/// Mean of each value and those around it, a window of a twentieth of all.
fn running_mean(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let half = points.len() / 40;
    // Sums up to each place: a window is a difference.
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(points.iter().scan(0.0, |s, p| {
            Some({
                *s += p.1;
                *s
            })
        }))
        .collect();
    let mean = |i: usize| {
        let (from, to) = (i.saturating_sub(half), (i + half + 1).min(points.len()));
        (sums[to] - sums[from]) / (to - from) as f64
    };
    points.iter().enumerate().map(|(i, p)| (p.0, mean(i))).collect()
}

/// A number in few characters.
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
        /// No value puts a coordinate off the chart or breaks the picture.
        #[test]
        fn every_point_lies_on_the_chart(values in prop::collection::vec(-1e9f64..1e9, 1..900)) {
            let points: Vec<(u64, f64)> = (1..).zip(values).collect();
            let svg = chart(&points, "x");
            prop_assert!(svg.ends_with("</svg>") && !svg.contains("NaN") && !svg.contains("inf"));
            for part in svg.split("cy=\"").skip(1) {
                let y: f64 = part.split('"').next().unwrap().parse().unwrap();
                prop_assert!((0.0..=HEIGHT).contains(&y));
            }
        }
    }

    #[test]
    fn numbers_are_short() {
        let said: Vec<String> = [0.0, 1e-6, 0.25, 12.0, 4321.0, 2.5e9].map(short).into();
        assert_eq!(said, ["0", "1.0e-6", "0.25", "12", "4321", "2.5e9"]);
    }
}
