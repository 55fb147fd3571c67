//! `reel kernels report`: one HTML page with every kernel's place on the roofline.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_kernels::compile;
use reel_kernels::{Arch, FOLDERS};
use reel_runtime::OpTotals;
use serde_json::Value;

use super::check::compile_all;
use super::{all, dtype};
use crate::common::Common;
use crate::fail::failed;
use crate::html::{self, escape};
use crate::machines::Machine;
use crate::output;

/// Write a page with every kernel's place on a GPU's roofline.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel kernels report --gpu h200 --times times.json --out kernels.html")]
pub struct Report {
    /// The GPU: h200, h100, a100, l40s or rtx4090
    #[arg(long, value_name = "GPU", default_value = "h200")]
    gpu: String,
    /// What `reel kernels bench --json` printed on that GPU; without it only floors are shown
    #[arg(long, value_name = "F.json")]
    times: Option<PathBuf>,
    /// Where the page goes
    #[arg(long, value_name = "F.html", default_value = "kernels.html")]
    out: PathBuf,
}

/// A kernel's row.
struct Row {
    kernel: &'static str,
    folder: &'static str,
    size: String,
    flops: f64,
    bytes: f64,
    /// The least that it takes on the GPU.
    floor: f64,
    /// What it took.
    seconds: Option<f64>,
    /// Registers a thread of its first launch on sm_90a, where it could be compiled.
    registers: Option<u32>,
    shared: u32,
}

impl Row {
    fn intensity(&self) -> f64 {
        self.flops / self.bytes
    }
}

impl Report {
    /// Writes the page.
    pub fn run(&self, common: &Common) -> Result<()> {
        let machine = Machine::gpu(&self.gpu)?;
        let times = self.times.as_ref().map(|path| read_times(path)).transpose()?;
        // Where there is no NVRTC, or a kernel does not compile, its registers are left out.
        compile_all(&FOLDERS.iter().map(|f| f.source).collect::<Vec<_>>(), &["sm_90a".to_string()], common)?;
        let rows = rows(&machine, times.as_ref());
        output::file(&self.out, page(&machine, &rows, self.times.is_some()).as_bytes())?;
        match common.json {
            true => output::json(&serde_json::json!({"out": self.out, "kernels": rows.len()})),
            false => output::line(format!("{}: {} kernels", self.out.display(), rows.len())),
        }
    }
}

/// Seconds by kernel.
fn read_times(path: &std::path::Path) -> Result<BTreeMap<String, f64>> {
    let wrong = |what: &str| failed(path.display(), what, "give what `reel kernels bench --json` printed");
    let text = std::fs::read_to_string(path).map_err(|e| output::not_read(path, e))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| wrong(&format!("is not JSON: {e}")))?;
    let kernels = value["kernels"].as_array().ok_or_else(|| wrong("has no list `kernels`"))?;
    let one = |k: &Value| Some((k["kernel"].as_str()?.to_string(), k["seconds"].as_f64().filter(|s| *s > 0.0)?));
    kernels.iter().map(|k| one(k).ok_or_else(|| wrong("`kernels`: an entry lacks `kernel` or `seconds`"))).collect()
}

fn rows(machine: &Machine, times: Option<&BTreeMap<String, f64>>) -> Vec<Row> {
    let row = |(folder, example): (&'static reel_kernels::catalogue::Folder, reel_kernels::catalogue::Example)| {
        let (kernel, cost) = (example.launch.kernel, example.launch.cost);
        let totals = OpTotals { launches: 1, cost, seconds: 0.0 };
        let floor =
            machine.ceilings.seconds(kernel.name, &totals, dtype(kernel.name).unwrap_or(reel_kernels::DType::F32));
        let stage = (kernel.plan)(&example.launch.params, &Arch::H100).into_iter().next();
        let report = compile::cubin(kernel.source, "sm_90a").ok().map(|c| c.report);
        let resources = stage.as_ref().and_then(|s| report.as_ref()?.function(s.symbol).cloned());
        Row {
            kernel: kernel.name,
            folder: folder.name,
            size: example.size.to_string(),
            flops: cost.flops,
            bytes: cost.bytes,
            floor,
            seconds: times.and_then(|t| t.get(kernel.name).copied()),
            registers: resources.as_ref().map(|r| r.registers),
            shared: resources.as_ref().map_or(0, |r| r.shared) + stage.map_or(0, |s| s.shared),
        }
    };
    all().map(row).collect()
}

fn page(machine: &Machine, rows: &[Row], measured: bool) -> String {
    let mut page = String::new();
    let name = machine.name.to_uppercase();
    let what = match measured {
        true => "Dots: measured. Their height under the roof is what is left to gain.",
        false => {
            "Dots: modelled, each at the least time that arithmetic and memory allow. Measure with <code>reel kernels bench</code>."
        }
    };
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "{}<p>{what} Ceilings: {}.</p>",
        html::begin(&format!("Kernels on the roofline of {name}")),
        escape(&machine.source)
    );
    page += &plot(machine, rows);
    page += "<table><thead><tr><th>kernel<th>size<th>GFLOP<th>MB<th>FLOP/B<th>floor, &micro;s<th>measured, &micro;s<th>of the floor<th>registers<th>shared, B</tr></thead><tbody>";
    for row in rows {
        let measured = row.seconds.map_or("–".to_string(), |s| format!("{:.1}", s * 1e6));
        let share = row.seconds.map_or("–".to_string(), |s| format!("{:.0} %", 100.0 * row.floor / s));
        let registers = row.registers.map_or("–".to_string(), |r| r.to_string());
        let _ = write!(
            page,
            "<tr id=\"{0}\"><td>{0}<td class=\"words\">{1}<td>{2:.3}<td>{3:.1}<td>{4:.2}<td>{5:.1}<td>{measured}<td>{share}<td>{registers}<td>{6}</tr>",
            row.kernel,
            escape(&row.size),
            row.flops / 1e9,
            row.bytes / 1e6,
            row.intensity(),
            row.floor * 1e6,
            row.shared
        );
    }
    page += "</tbody></table>";
    page += html::END;
    page
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 520.0;
/// Room for labels.
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 44.0;
/// Decades of operations a byte, and of operations a second, that the plot shows.
const X: [f64; 2] = [-2.0, 5.0];
const Y: [f64; 2] = [9.0, 15.5];

fn x_of(intensity: f64) -> f64 {
    let at = intensity.max(1e-9).log10().clamp(X[0], X[1]);
    LEFT + (at - X[0]) / (X[1] - X[0]) * (WIDTH - LEFT - 16.0)
}

fn y_of(rate: f64) -> f64 {
    let at = rate.max(1.0).log10().clamp(Y[0], Y[1]);
    HEIGHT - BOTTOM - (at - Y[0]) / (Y[1] - Y[0]) * (HEIGHT - BOTTOM - 16.0)
}

/// The roofs and a dot a kernel; kernels that do no arithmetic lie on the left edge at the rate of one operation a byte.
fn plot(machine: &Machine, rows: &[Row]) -> String {
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"roofline\">");
    for decade in X[0] as i32..=X[1] as i32 {
        let x = x_of(10f64.powi(decade));
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{x:.1} 16V{:.1}\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0,
            number(10f64.powi(decade))
        );
    }
    for decade in Y[0] as i32..=Y[1] as i32 {
        let y = y_of(10f64.powi(decade));
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - 16.0,
            LEFT - 8.0,
            y + 4.0,
            number(10f64.powi(decade - 12))
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">operations a byte</text><text x=\"{LEFT}\" y=\"12\">TFLOP/s</text>",
        (WIDTH + LEFT) / 2.0,
        HEIGHT - 8.0
    );
    let rates = &machine.ceilings;
    for (rate, label) in [(rates.bf16, "bf16 products"), (rates.f32, "f32")] {
        let knee = rate / rates.bytes;
        let _ = write!(
            svg,
            "<path class=\"roof\" d=\"M{:.1} {:.1}L{:.1} {:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            x_of(10f64.powf(X[0])),
            y_of(10f64.powf(X[0]) * rates.bytes),
            x_of(knee),
            y_of(rate),
            WIDTH - 16.0,
            WIDTH - 20.0,
            y_of(rate) - 6.0
        );
    }
    let mut folders: Vec<&str> = rows.iter().map(|r| r.folder).collect();
    folders.dedup();
    for row in rows {
        let operations = if row.flops > 0.0 { row.flops } else { row.bytes * 10f64.powf(X[0]) };
        let rate = operations / row.seconds.unwrap_or(row.floor);
        let hue = folders.iter().position(|f| *f == row.folder).unwrap_or(0) * 360 / folders.len().max(1);
        let _ = write!(
            svg,
            "<a href=\"#{0}\"><circle cx=\"{1:.1}\" cy=\"{2:.1}\" r=\"4.5\" style=\"--hue:{hue}\"><title>{0}: {3:.2} TFLOP/s, {4:.0} GB/s</title></circle></a>",
            row.kernel,
            x_of(operations / row.bytes),
            y_of(rate),
            row.flops / row.seconds.unwrap_or(row.floor) / 1e12,
            row.bytes / row.seconds.unwrap_or(row.floor) / 1e9
        );
    }
    svg + "</svg>"
}

/// A power of ten in few letters.
fn number(x: f64) -> String {
    if (0.001..=100_000.0).contains(&x) { format!("{x}") } else { format!("{x:.0e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_every_kernel_and_both_roofs() {
        let machine = Machine::gpu("h200").unwrap();
        let row = |kernel, flops, seconds| Row {
            kernel,
            folder: "f",
            size: "1 < 2".into(),
            flops,
            bytes: 1e6,
            floor: 1e-6,
            seconds,
            registers: Some(32),
            shared: 0,
        };
        let html = page(&machine, &[row("one", 1e9, Some(2e-6)), row("two", 0.0, None)], true);
        for part in ["id=\"one\"", "id=\"two\"", "1 &lt; 2", "50 %", "bf16 products"] {
            assert!(html.contains(part), "{part}");
        }
        assert_eq!(html.matches("<circle").count(), 2);
        assert!(!html.contains("NaN") && !html.contains("inf"));
    }
}
