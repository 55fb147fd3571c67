//! The HTML page of all kernels on the roofline of a GPU: a plot of operations per second over operations per byte,
//! and a table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use reel_diagnostic::{Diagnostic, input};
use reel_kernels::catalogue::{ExampleCall, KernelFolder};
use reel_kernels::{Arch, DType, compile};
use reel_report::html::{self, escape_html};
use serde_json::Value;

use crate::catalogue::{dtype_of_kernel, example_calls_with_folders};
use crate::error::{MeasureError, Result, failed};
use crate::machine::MachineSpec;

/// A kernel on the roofline page.
struct PageRow {
    kernel: &'static str,
    folder: &'static str,
    size: String,
    flops: f64,
    bytes: f64,
    /// Least seconds on the GPU.
    floor: f64,
    /// Measured seconds.
    seconds: Option<f64>,
    /// Registers per thread of the kernel's first launch on sm_90a; `None` if the kernel was not compiled.
    registers: Option<u32>,
    shared: u32,
}

impl PageRow {
    fn intensity(&self) -> f64 {
        self.flops / self.bytes
    }
}

/// The page that [`roofline_page`] returns.
pub struct RooflinePage {
    /// The page itself.
    pub html: String,
    /// Number of kernels on the page.
    pub kernel_count: usize,
}

/// Returns the page of all kernels on `machine`'s roofline.
///
/// `times` is a file that `reel kernels bench --json` printed on that GPU; without it, the page shows only the least
/// possible times, computed from the roofline.
///
/// # Errors
/// The file of times cannot be read, or is not such a file.
pub fn roofline_page(machine: &MachineSpec, times: Option<&Path>) -> Result<RooflinePage> {
    let seconds = times.map(read_times).transpose()?;
    let rows = rows(machine, seconds.as_ref());
    Ok(RooflinePage { html: render(machine, &rows, seconds.is_some()), kernel_count: rows.len() })
}

/// Reads the measured seconds of each kernel from a file.
fn read_times(path: &Path) -> Result<BTreeMap<String, f64>> {
    let wrong =
        |what: &str| failed(path.display().to_string(), what, "give a file that `reel kernels bench --json` printed");
    let text = input::read_text(path, input::MAX_MESSAGES_BYTES)
        .map_err(|e| MeasureError::Failed(Diagnostic::cannot_read(path, &e)))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| wrong(&format!("is not JSON: {e}")))?;
    let kernels = value["kernels"].as_array().ok_or_else(|| wrong("has no list `kernels`"))?;
    let one = |k: &Value| Some((k["kernel"].as_str()?.to_string(), k["seconds"].as_f64().filter(|s| *s > 0.0)?));
    kernels.iter().map(|k| one(k).ok_or_else(|| wrong("`kernels`: an entry lacks `kernel` or `seconds`"))).collect()
}

fn rows(machine: &MachineSpec, times: Option<&BTreeMap<String, f64>>) -> Vec<PageRow> {
    let row = |(folder, example): (&'static KernelFolder, ExampleCall)| {
        let (kernel, cost) = (example.launch.kernel, example.launch.cost);
        let floor =
            machine.ceilings.roofline_seconds(kernel.name, cost, dtype_of_kernel(kernel.name).unwrap_or(DType::F32));
        let stage = (kernel.plan)(&example.launch.params, &Arch::H100).into_iter().next();
        let report = compile::compile_to_cubin(kernel.source, "sm_90a").ok().map(|c| c.report);
        let resources = stage.as_ref().and_then(|s| report.as_ref()?.resources_of_function(s.symbol).cloned());
        PageRow {
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
    example_calls_with_folders().map(row).collect()
}

fn render(machine: &MachineSpec, rows: &[PageRow], measured: bool) -> String {
    let mut page = String::new();
    let name = machine.name.to_uppercase();
    let what = match measured {
        true => "Dots: measured kernels. The distance to the roof above is the possible speedup.",
        false => {
            "Dots: modelled times, not measured: the least time that a kernel's floating-point operations and memory traffic allow. <code>reel kernels bench</code> measures the actual speed."
        }
    };
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "{}<p>{what} Ceilings: {}.</p>",
        html::page_start_html(&format!("Kernels on the roofline of {name}")),
        escape_html(&machine.source)
    );
    page += &plot(machine, rows);
    page += "<table><thead><tr><th>kernel<th>size<th>GFLOP<th>MB<th>FLOP/B<th>least possible &micro;s<th>measured &micro;s<th>of roofline<th>registers<th>shared, B</tr></thead><tbody>";
    for row in rows {
        let measured = row.seconds.map_or("–".to_string(), |s| format!("{:.1}", s * 1e6));
        let share = row.seconds.map_or("–".to_string(), |s| format!("{:.0} %", 100.0 * row.floor / s));
        let registers = row.registers.map_or("–".to_string(), |r| r.to_string());
        let _ = write!(
            page,
            "<tr id=\"{0}\"><td>{0}<td class=\"words\">{1}<td>{2:.3}<td>{3:.1}<td>{4:.2}<td>{5:.1}<td>{measured}<td>{share}<td>{registers}<td>{6}</tr>",
            row.kernel,
            escape_html(&row.size),
            row.flops / 1e9,
            row.bytes / 1e6,
            row.intensity(),
            row.floor * 1e6,
            row.shared
        );
    }
    page += "</tbody></table>";
    page += html::PAGE_END;
    page
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 520.0;
/// Margins of the plot for the labels of its axes.
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 44.0;
/// Range of the x axis (operations per byte) and of the y axis (operations per second), as powers of ten.
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

/// The roofline plot: two roofs (bf16 and f32) and a dot per kernel. Kernels without arithmetic are drawn at the left
/// edge, as if they did 0.01 operations per byte.
fn plot(machine: &MachineSpec, rows: &[PageRow]) -> String {
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
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">operations per byte</text><text x=\"{LEFT}\" y=\"12\">TFLOP/s</text>",
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

/// A power of ten as short text.
fn number(x: f64) -> String {
    if (0.001..=100_000.0).contains(&x) { format!("{x}") } else { format!("{x:.0e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_every_kernel_and_both_roofs() {
        let machine = MachineSpec::gpu_by_name("h200").unwrap();
        let row = |kernel, flops, seconds| PageRow {
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
        let html = render(&machine, &[row("one", 1e9, Some(2e-6)), row("two", 0.0, None)], true);
        for part in ["id=\"one\"", "id=\"two\"", "1 &lt; 2", "50 %", "bf16 products"] {
            assert!(html.contains(part), "{part}");
        }
        assert_eq!(html.matches("<circle").count(), 2);
        assert!(!html.contains("NaN") && !html.contains("inf"));
    }
}
