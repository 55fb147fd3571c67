//! Line charts as SVG that stands alone; colours come from the page's style.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;

/// A chart of values over steps (numbered from 1), on a logarithmic scale: each value as a dot, their running mean as a line.
pub fn log_line(values: &[f64], label: &str) -> String {
    let shown: Vec<f64> = values.iter().copied().filter(|v| v.is_finite() && *v > 0.0).collect();
    let (Some(low), Some(high)) = (shown.iter().copied().reduce(f64::min), shown.iter().copied().reduce(f64::max))
    else {
        return String::new();
    };
    let (low, high) = (low.log10(), high.log10().max(low.log10() + 1e-3));
    let x = |step: f64| LEFT + (WIDTH - LEFT - RIGHT) * (step - 1.0) / (values.len() as f64 - 1.0).max(1.0);
    let y = |v: f64| TOP + (HEIGHT - TOP - BOTTOM) * (high - v.log10().clamp(low, high)) / (high - low);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">");
    for tick in log_ticks(low, high) {
        let at = y(tick);
        let _ =
            write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>", WIDTH - RIGHT);
        let _ = write!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>", LEFT - 8.0, at + 4.0);
    }
    for step in step_ticks(values.len()) {
        let at = x(step as f64);
        let _ =
            write!(svg, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>", HEIGHT - BOTTOM + 20.0);
    }
    for (i, v) in values.iter().enumerate().filter(|(_, v)| v.is_finite() && **v > 0.0) {
        let _ = write!(svg, "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.6\"/>", x(i as f64 + 1.0), y(*v));
    }
    let line: Vec<String> = running_mean(values)
        .iter()
        .enumerate()
        .map(|(i, v)| format!("{:.1},{:.1}", x(i as f64 + 1.0), y(*v)))
        .collect();
    let _ = write!(svg, "<polyline class=\"line\" points=\"{}\"/>", line.join(" "));
    svg + "</svg>"
}

/// Mean of each value and those around it, a window of a twentieth of all.
fn running_mean(values: &[f64]) -> Vec<f64> {
    let half = values.len() / 40;
    (0..values.len())
        .map(|i| {
            let near: Vec<f64> = values[i.saturating_sub(half)..(i + half + 1).min(values.len())]
                .iter()
                .copied()
                .filter(|v| v.is_finite())
                .collect();
            near.iter().sum::<f64>() / near.len().max(1) as f64
        })
        .collect()
}

/// 1, 2 and 5 times powers of ten between two logarithms.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = low.floor() as i32..=high.ceil() as i32;
    let all = decades.flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d)));
    let mut ticks: Vec<f64> = all.filter(|t| (low..=high).contains(&t.log10())).collect();
    if ticks.len() > 7 {
        ticks.retain(|t| (t.log10() - t.log10().round()).abs() < 1e-9);
    }
    // Powers of ten are not exact below 1: print what is meant.
    ticks.iter().map(|t| format!("{t:.12}").parse().unwrap_or(*t)).collect()
}

fn step_ticks(n: usize) -> Vec<usize> {
    let raw = n as f64 / 6.0;
    let unit = 10f64.powf(raw.max(1.0).log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * unit).into_iter().find(|s| *s >= raw).unwrap_or(unit).max(1.0) as usize;
    (step..=n).step_by(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(log_ticks(0.01f64.log10(), 6f64.log10()), [0.01, 0.1, 1.0]);
        assert_eq!(log_ticks(0.9f64.log10(), 6f64.log10()), [1.0, 2.0, 5.0]);
        assert_eq!(step_ticks(300), [50, 100, 150, 200, 250, 300]);
        assert_eq!(step_ticks(3), [1, 2, 3]);
    }

    #[test]
    fn charts_survive_odd_values() {
        assert_eq!(log_line(&[], "x"), "");
        assert_eq!(log_line(&[f64::NAN, 0.0], "x"), "");
        for values in [&[1.0][..], &[1.0, 1.0], &[3.0, f64::INFINITY, 0.0, 0.5]] {
            let svg = log_line(values, "x");
            assert!(svg.ends_with("</svg>") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
