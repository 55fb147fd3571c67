//! The chart of a kernel on the roofline of a GPU: operations per byte of global memory against operations per second,
//! both axes logarithmic. The chart is a static SVG image; its numbers follow as JSON, for programs.

use std::fmt::Write as _;

use crate::report::CountReport;
use crate::roofline::Roofline;
use serde_json::json;

use super::printable::{escape_controls_in_json, escape_html};

/// The size of the drawing area in the units of the SVG image, and the space for the labels of the axes.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 56.0;
const BELOW: f64 = 40.0;

/// A logarithmic axis: the powers of ten at its ends, and the positions of the ends in the image.
struct Axis {
    decades: [i32; 2],
    ends: [f64; 2],
}

impl Axis {
    /// An axis that has these values and ends at whole powers of ten.
    fn new(least: f64, most: f64, ends: [f64; 2]) -> Axis {
        let (from, to) = (least.log10().floor() as i32, most.log10().ceil() as i32);
        Axis { decades: [from, to.max(from + 1)], ends }
    }

    fn position(&self, value: f64) -> f64 {
        let [from, to] = self.decades.map(f64::from);
        self.ends[0] + (value.log10() - from) / (to - from) * (self.ends[1] - self.ends[0])
    }
}

/// Returns a figure with the kernel at its least possible time on the roofline of a GPU. `None` if the kernel has no
/// floating-point operations or no memory traffic.
pub fn roofline_chart(r: &Roofline, name: &str, counts: &CountReport) -> Option<String> {
    let float = counts.total.executed_classes().find(|(class, _)| class.name() == "float");
    let operations = counts.total.count.matrix_flops as f64 + 2.0 * float.map_or(0.0, |(_, e)| e.threads as f64);
    let bytes = (counts.total.count.global_read + counts.total.count.global_written) as f64;
    let seconds = r.largest_bound().seconds;
    if operations == 0.0 || bytes == 0.0 || seconds == 0.0 {
        return None;
    }
    let (intensity, rate) = (operations / bytes, operations / seconds);
    let roofs = [("bf16 products", r.gpu.bf16_flops), ("f32", r.gpu.f32_flops)];
    let ridges = roofs.map(|(_, flops)| flops / r.gpu.bandwidth);
    let x = Axis::new(intensity.min(ridges[1] / 100.0), intensity.max(ridges[0]) * 3.0, [LEFT, WIDTH]);
    let least_rate = rate.min(r.gpu.bandwidth * 10f64.powi(x.decades[0]));
    let y = Axis::new(least_rate, r.gpu.bf16_flops * 2.0, [HEIGHT, 0.0]);

    let mut svg = format!("<svg viewBox=\"0 0 {} {}\" role=\"img\">", WIDTH + 20.0, HEIGHT + BELOW);
    // Writing to a string cannot fail.
    for decade in x.decades[0]..=x.decades[1] {
        let at = x.position(10f64.powi(decade));
        let _ = write!(svg, "<path class=\"grid\" d=\"M{at:.1} 0V{HEIGHT}\"/>");
        let _ = write!(svg, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">1e{decade}</text>", HEIGHT + 16.0);
    }
    for decade in y.decades[0]..=y.decades[1] {
        let at = y.position(10f64.powi(decade));
        let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{WIDTH}\"/>");
        let _ = write!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">1e{decade}</text>", LEFT - 6.0, at + 4.0);
    }
    let _ = write!(svg, "<text x=\"{WIDTH}\" y=\"{}\" text-anchor=\"end\">operations per byte</text>", HEIGHT + 34.0);
    let _ = write!(svg, "<text x=\"{}\" y=\"14\">operations per second</text>", LEFT + 6.0);
    for ((label, flops), ridge) in roofs.into_iter().zip(ridges) {
        let start = 10f64.powi(x.decades[0]);
        let (x0, y0) = (x.position(start), y.position(start * r.gpu.bandwidth));
        let (x1, y1) = (x.position(ridge), y.position(flops));
        let _ = write!(svg, "<path class=\"roof\" d=\"M{x0:.1} {y0:.1}L{x1:.1} {y1:.1}H{WIDTH}\"/>");
        let _ = write!(svg, "<text x=\"{WIDTH}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", y1 - 6.0);
    }
    let about = format!("{intensity:.3} operations per byte, at most {rate:.3e} operations/s on {}", r.gpu.name);
    let (at_x, at_y) = (x.position(intensity), y.position(rate));
    let _ = write!(
        svg,
        "<circle class=\"kernel\" cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"5\"><title>{}: {about}</title></circle></svg>",
        escape_html(name)
    );
    let caption = format!("{} (data sheet); the dot is the kernel at its least possible time", r.gpu.name);
    let data = json!({
        "name": caption,
        "roofs": roofs.map(|(label, flops)| {
            json!({"name": label, "flops_per_second": flops, "bytes_per_second": r.gpu.bandwidth})
        }),
        "points": [{
            "name": name, "intensity": intensity, "flops_per_second": rate, "bound": r.largest_bound().name,
        }],
    });
    Some(format!(
        "<figure><figcaption>{caption}: {about}</figcaption>{svg}\
         <script type=\"application/json\">{}</script></figure>\n",
        json_in_script(&data)
    ))
}

/// Writes JSON for a `<script>` element. No string in it can end the element or begin an HTML comment.
fn json_in_script(value: &serde_json::Value) -> String {
    let json = escape_controls_in_json(&value.to_string());
    [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")]
        .into_iter()
        .fold(json, |json, (c, escape)| json.replace(c, escape))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_its_values_between_whole_powers_of_ten() {
        let axis = Axis::new(0.02, 300.0, [0.0, 500.0]);
        assert_eq!(axis.decades, [-2, 3]);
        assert_eq!([0.01, 1.0, 1000.0].map(|value| axis.position(value)), [0.0, 200.0, 500.0]);
    }

    #[test]
    fn no_text_ends_the_data() {
        let value = json!({"name": "</script><!--\u{7f}&\u{2028}"});
        let json = json_in_script(&value);
        assert!(!json.contains(['<', '>', '&', '\u{7f}', '\u{2028}']), "{json}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
    }
}
