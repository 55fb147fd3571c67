//! The HTML page of kernels on the roofline of a machine: operations per second over operations per byte, and a table
//! sorted by lost time, the measured time of a kernel less its least possible time.
//!
//! The page shows the kernels of a run; a collapsed list shows the other kernels of the catalogue with their least
//! possible times. Without a run, it shows the whole catalogue.

use std::path::Path;

use crate::report::chart::{Chart, Roof, RooflinePoint};
use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::table::HtmlTable;
use reel_device::{Arch, Cost, DType, OpTotals, compile};
use reel_kernels::catalogue::{ExampleCall, KernelFolder};

use crate::error::Result;
use crate::measure::catalogue::{dtype_of_kernel, example_calls_with_folders};
use crate::measure::ceilings::Ceilings;
use crate::measure::kernel_times::{KernelTime, KernelTimes};
use crate::measure::machine::{MachineSpec, data_sheet_name};

/// Operations per byte at which the chart shows kernels that do no arithmetic.
const NO_ARITHMETIC: f64 = 0.01;

/// A kernel on a roofline page; work and times are sums over its launches.
#[derive(Clone, Debug)]
struct PageRow {
    kernel: String,
    size: String,
    launches: u64,
    flops: f64,
    bytes: f64,
    /// Least seconds on the machine.
    floor: f64,
    /// Whether the operations need more time than the bytes.
    is_bound_by_arithmetic: bool,
    /// Measured seconds.
    seconds: Option<f64>,
    /// Registers per thread of the kernel's first launch on sm_90a; `None` if the kernel was not compiled.
    registers: Option<u32>,
    /// Bytes of shared memory per block of the kernel's first launch; `None` if the kernel was not compiled.
    shared: Option<u32>,
}

impl PageRow {
    /// Lost time in seconds: the measured time less the least possible time.
    fn lost(&self) -> Option<f64> {
        self.seconds.map(|seconds| (seconds - self.floor).max(0.0))
    }
}

/// The page that [`roofline_page`] returns.
pub struct RooflinePage {
    /// The page itself.
    pub html: String,
    /// Number of kernels on the page.
    pub kernel_count: usize,
}

/// Whether the page that [`roofline_page`] would return for these arguments is that of a GPU. The page of a GPU has the
/// registers and the shared memory of the CUDA kernels, so the kernels are compiled for it.
pub fn is_gpu_page(gpu: Option<&str>, times: Option<&Path>) -> Result<bool> {
    let times = times.filter(|_| gpu.is_none()).map(KernelTimes::read).transpose()?;
    Ok(times.is_none_or(|times| !times.is_of_cpu))
}

/// Returns the page of kernels on the roofline of a machine.
///
/// `times` is a file with the times of a run's kernels: the JSON of `reel kernels bench`, of `reel bench`, or a trace.
/// Without this file, the page shows the catalogue with the least possible times, computed from the roofline. The
/// machine is the GPU `gpu`. Without `gpu`, it is the machine that the file names, with the ceilings in the file;
/// without both, it is an H200.
///
/// # Errors
/// There is no data sheet of the GPU. The file of times cannot be read, or has no times of kernels.
pub fn roofline_page(gpu: Option<&str>, times: Option<&Path>) -> Result<RooflinePage> {
    let times = times.map(KernelTimes::read).transpose()?;
    let machine = machine(gpu, times.as_ref())?;
    let is_of_gpu = gpu.is_some() || times.as_ref().is_none_or(|times| !times.is_of_cpu);
    let catalogue: Vec<PageRow> =
        example_calls_with_folders().map(|example| catalogue_row(&machine, is_of_gpu, example)).collect();
    let Some(times) = times else {
        let kernel_count = catalogue.len();
        return Ok(RooflinePage { kernel_count, html: render(&machine, is_of_gpu, catalogue, Vec::new()) });
    };
    let own_floors = gpu.is_none() && times.ceilings.is_some();
    let measured: Vec<PageRow> =
        times.kernels.iter().map(|time| measured_row(&machine, &catalogue, time, own_floors)).collect();
    let others: Vec<PageRow> =
        catalogue.into_iter().filter(|row| measured.iter().all(|m| m.kernel != row.kernel)).collect();
    Ok(RooflinePage { kernel_count: measured.len(), html: render(&machine, is_of_gpu, measured, others) })
}

/// The machine for the roofline of the page.
fn machine(gpu: Option<&str>, times: Option<&KernelTimes>) -> Result<MachineSpec> {
    if let Some(gpu) = gpu {
        return MachineSpec::gpu_by_name_or_file(gpu);
    }
    let name = times.and_then(|t| t.machine.as_deref());
    match times.and_then(|t| t.ceilings) {
        Some(ceilings) => Ok(MachineSpec {
            name: name.unwrap_or("the measured machine").to_string(),
            ceilings,
            compute_capability: 0,
            memory: None,
            nvlink: None,
            pcie: String::new(),
            source: "measured with the times".to_string(),
        }),
        None => MachineSpec::gpu_by_name(name.and_then(data_sheet_name).unwrap_or("h200")),
    }
}

/// Returns the row of a kernel at its example size in the catalogue, without a measured time. On the page of a GPU,
/// the CUDA code is compiled so that the row has registers and shared memory.
fn catalogue_row(
    machine: &MachineSpec,
    is_of_gpu: bool,
    (_, example): (&'static KernelFolder, ExampleCall),
) -> PageRow {
    let (kernel, cost) = (example.launch.kernel, example.launch.cost);
    let dtype = dtype_of_kernel(kernel.name).unwrap_or(DType::F32);
    let stage = (kernel.plan)(&example.launch.params, &Arch::H100).into_iter().next();
    let compiled = || compile::compile_to_cubin(kernel.source, "sm_90a").ok();
    let report = is_of_gpu.then(compiled).flatten().map(|c| c.report);
    let from_memory = Ceilings { cache: None, ..machine.ceilings };
    let totals = OpTotals { launches: 1, cost, ..OpTotals::default() };
    let resources = stage.as_ref().and_then(|s| report.as_ref()?.resources_of_function(s.symbol).cloned());
    PageRow {
        kernel: kernel.name.to_string(),
        size: example.size.to_string(),
        launches: 1,
        flops: cost.flops,
        bytes: cost.bytes,
        floor: from_memory.roofline_seconds_of_launches(kernel.name, &totals, dtype),
        is_bound_by_arithmetic: from_memory.is_bound_by_arithmetic(kernel.name, &totals, dtype),
        seconds: None,
        registers: resources.as_ref().map(|r| r.registers),
        shared: resources.map(|r| r.shared + stage.map_or(0, |s| s.shared)),
    }
}

/// Returns the row of a kernel of a run. Figures that the file of times lacks come from the catalogue. With
/// `own_floors`, the least times that the file states are kept.
fn measured_row(machine: &MachineSpec, catalogue: &[PageRow], time: &KernelTime, own_floors: bool) -> PageRow {
    let known = catalogue.iter().find(|row| row.kernel == time.kernel);
    let (flops, bytes) = time.cost.or(known.map(|row| (row.flops, row.bytes))).unwrap_or_default();
    let dtype = dtype_of_kernel(&time.kernel).unwrap_or(DType::F32);
    let (launches, cost, seconds) = (time.launches, Cost { flops, bytes }, time.seconds);
    let totals = OpTotals { launches, cost, seconds, ..OpTotals::default() };
    let floor = machine.ceilings.roofline_seconds_of_launches(&time.kernel, &totals, dtype);
    // A kernel with a size was timed alone. The caches were overwritten before each run, so every byte came from
    // memory.
    let cache = machine.ceilings.cache.filter(|_| time.size.is_empty());
    let ceilings = Ceilings { cache, ..machine.ceilings };
    let catalogue_size = known.map(|row| row.size.clone()).filter(|_| time.cost.is_none()).unwrap_or_default();
    PageRow {
        kernel: time.kernel.clone(),
        size: if time.size.is_empty() { catalogue_size } else { time.size.clone() },
        launches: time.launches,
        flops,
        bytes,
        floor: time.floor.filter(|_| own_floors).unwrap_or(floor),
        is_bound_by_arithmetic: ceilings.is_bound_by_arithmetic(&time.kernel, &totals, dtype),
        seconds: Some(time.seconds),
        registers: known.and_then(|row| row.registers),
        shared: known.and_then(|row| row.shared),
    }
}

/// Returns the page: it shows `rows` in the chart and in the table, and `others` in a collapsed list. The page of a
/// GPU has the registers and the shared memory of the CUDA kernels.
fn render(machine: &MachineSpec, is_of_gpu: bool, mut rows: Vec<PageRow>, others: Vec<PageRow>) -> String {
    let is_measured = rows.iter().any(|row| row.seconds.is_some());
    let order = |row: &PageRow| row.lost().unwrap_or(row.floor);
    rows.sort_by(|a, b| order(b).total_cmp(&order(a)).then_with(|| a.kernel.cmp(&b.kernel)));
    let mut page = HtmlPage::new(&format!("Kernels on the roofline of {}", machine.name.to_uppercase()));
    let what = match is_measured {
        true => {
            "Dots: measured kernels. The distance to the roof above is the possible speedup; the larger a dot, \
             the more time its kernel takes above the roof; the table is sorted by that time."
        }
        false => {
            "Dots: modelled times, not measured: the least time that a kernel's floating-point operations and memory \
             traffic allow. <code>reel kernels bench</code> measures the actual speed."
        }
    };
    page.add(&format!(
        "<p>{what} Kernels without arithmetic are drawn at {NO_ARITHMETIC} operations per byte. Ceilings: {}.</p>\n",
        escape_html(&machine.source)
    ));
    let points = rows.iter().map(|row| {
        let PageRow { flops, bytes, floor, seconds, is_bound_by_arithmetic, .. } = *row;
        roofline_point(&row.kernel, KernelPoint { flops, bytes, floor, seconds, is_bound_by_arithmetic })
    });
    page.add_chart(&roofline_chart(&machine.name.to_uppercase(), &machine.ceilings, points.collect()));
    page.add_table(&table(&rows, is_measured, is_of_gpu));
    if !others.is_empty() {
        let summary = format!("{} kernels that did not run, with modelled times", others.len());
        page.add(&format!("<details><summary>{summary}</summary>\n"));
        page.add_table(&table(&others, false, is_of_gpu));
        page.add("</details>\n");
    }
    page.into_html()
}

fn table(rows: &[PageRow], is_measured: bool, is_of_gpu: bool) -> HtmlTable {
    let microseconds = |seconds: Option<f64>| seconds.map_or("–".to_string(), |s| format!("{:.1}", s * 1e6));
    let whole = |count: Option<u32>| count.map_or("–".to_string(), |n| n.to_string());
    // A row that sums up launches of several sizes has no size.
    let has_sizes = rows.iter().any(|row| !row.size.is_empty());
    let mut columns = vec!["kernel"];
    if has_sizes {
        columns.push("size");
    }
    if is_measured {
        columns.extend(["launches", "lost, µs", "measured, µs", "of roofline"]);
    }
    columns.extend(["least possible, µs", "operations", "bytes", "FLOP/B"]);
    if is_of_gpu {
        columns.extend(["registers", "shared, B"]);
    }
    let mut table = HtmlTable::new(&columns).with_text_columns(1 + usize::from(has_sizes));
    for row in rows {
        let mut cells = vec![escape_html(&row.kernel)];
        if has_sizes {
            cells.push(escape_html(&row.size));
        }
        if is_measured {
            let share = row.seconds.map_or("–".to_string(), |s| format!("{:.0} %", 100.0 * (row.floor / s).min(1.0)));
            cells.extend([row.launches.to_string(), microseconds(row.lost()), microseconds(row.seconds), share]);
        }
        cells.extend([
            microseconds(Some(row.floor)),
            with_prefix(row.flops),
            with_prefix(row.bytes),
            if row.bytes > 0.0 { format!("{:.2}", row.flops / row.bytes) } else { "–".into() },
        ]);
        if is_of_gpu {
            cells.extend([whole(row.registers), whole(row.shared)]);
        }
        table.add_row_with_attributes(&format!(" id=\"{}\"", escape_html(&row.kernel)), cells);
    }
    table
}

/// A count with a decimal prefix: `57.2 M`.
fn with_prefix(count: f64) -> String {
    match [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")].iter().find(|(factor, _)| count >= *factor) {
        Some((factor, prefix)) => format!("{:.1} {prefix}", count / factor),
        None => format!("{count:.0}"),
    }
}

/// The work and the times of a kernel: sums over its launches.
pub(crate) struct KernelPoint {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
    /// Least possible seconds.
    pub floor: f64,
    /// Measured seconds; `None` for a modelled kernel, which is drawn at its least possible time.
    pub seconds: Option<f64>,
    /// Whether the operations need more time than the bytes.
    pub is_bound_by_arithmetic: bool,
}

/// Returns the dot of a kernel on a roofline. Its row in the page's table has the kernel's name as its id.
pub(crate) fn roofline_point(kernel: &str, time: KernelPoint) -> RooflinePoint {
    let KernelPoint { flops, bytes, floor, seconds, is_bound_by_arithmetic } = time;
    let took = seconds.unwrap_or(floor);
    // The axis is logarithmic, so a kernel without arithmetic is drawn at `NO_ARITHMETIC` operations per byte.
    let operations = if flops > 0.0 { flops } else { bytes * NO_ARITHMETIC };
    let rates = format!("{:.3} TFLOP/s, {:.0} GB/s", flops / took / 1e12, bytes / took / 1e9);
    let text = match seconds {
        Some(seconds) => format!(
            "{rates}, {:.0} % of the roofline, loses {:.1} of {:.1} µs",
            100.0 * (floor / seconds).min(1.0),
            (seconds - floor).max(0.0) * 1e6,
            seconds * 1e6
        ),
        None => format!("{rates} at the modelled time of {:.1} µs", floor * 1e6),
    };
    RooflinePoint {
        name: kernel.to_string(),
        text,
        id: kernel.to_string(),
        intensity: operations / bytes,
        flops_per_second: operations / took,
        is_bound_by_arithmetic: Some(is_bound_by_arithmetic),
        lost_seconds: (took - floor).max(0.0),
    }
}

/// Returns the chart of a machine's roofs with these kernels.
pub(crate) fn roofline_chart(name: &str, ceilings: &Ceilings, points: Vec<RooflinePoint>) -> Chart {
    let roof = |name: &str, flops_per_second: f64, bytes_per_second: f64| Roof {
        name: name.to_string(),
        flops_per_second,
        bytes_per_second,
    };
    let mut roofs = vec![roof("bf16 products", ceilings.bf16, ceilings.bytes)];
    // A machine without a fast path for bf16 has one roof for bf16 and f32.
    if (ceilings.f32 / ceilings.bf16 - 1.0).abs() > 0.02 {
        roofs.push(roof("f32", ceilings.f32, ceilings.bytes));
    }
    if let Some(cache) = ceilings.cache {
        roofs.push(roof("in the caches", ceilings.bf16.max(ceilings.f32), cache.bytes));
    }
    Chart::Roofline { name: name.to_string(), roofs, points }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kernel: &str, flops: f64, seconds: Option<f64>) -> PageRow {
        PageRow {
            kernel: kernel.into(),
            size: "1 < 2".into(),
            launches: 1,
            flops,
            bytes: 1e6,
            floor: 1e-6,
            is_bound_by_arithmetic: flops > 0.0,
            seconds,
            registers: Some(32),
            shared: None,
        }
    }

    #[test]
    fn page_sorts_the_kernels_of_the_run_by_lost_time() {
        let machine = MachineSpec::gpu_by_name("h200").unwrap();
        let measured = vec![row("small", 1e9, Some(2e-6)), row("large", 0.0, Some(9e-6)), row("fast", 1e9, Some(1e-6))];
        let html = render(&machine, true, measured.clone(), vec![row("unused", 1e9, None)]);
        let place = |text: &str| html.find(text).unwrap_or_else(|| panic!("no {text}"));
        let order = ["id=\"large\"", "id=\"small\"", "id=\"fast\"", "<details>", "id=\"unused\"", "</details>"];
        assert!(order.windows(2).all(|two| place(two[0]) < place(two[1])), "{html}");
        for part in ["1 &lt; 2", "50 %", ">8.0<", "bf16 products", "bound by memory traffic", "loses 8.0 of 9.0 µs"] {
            assert!(html.contains(part), "{part}");
        }
        assert_eq!(html.matches("\"weight\"").count(), 3, "the chart has kernels that the run does not have");
        assert!(!html.contains("NaN") && !html.contains("\"src="));
        assert!(html.contains(">registers<"));
        // The page of a CPU has no column for registers of CUDA kernels.
        assert!(!render(&machine, false, measured.clone(), measured).contains(">registers<"));
    }

    #[test]
    fn page_without_a_run_shows_modelled_times() {
        let machine = MachineSpec::gpu_by_name("a100").unwrap();
        let html = render(&machine, true, vec![row("one", 1e9, None), row("two", 1e9, None)], Vec::new());
        assert!(html.contains("modelled times, not measured") && !html.contains("<details>"));
        assert!(!html.contains("lost, µs") && html.matches("data-label=\"least possible, µs\"").count() == 2);
    }

    #[test]
    fn ceilings_of_the_file_are_used_unless_a_gpu_is_named() {
        let ceilings = Ceilings { f32: 1e9, bf16: 2e9, bytes: 1e9, cache: None };
        let machine_name = Some("NVIDIA H100 80GB".into());
        let times = KernelTimes { machine: machine_name, is_of_cpu: false, ceilings: None, kernels: Vec::new() };
        assert_eq!(machine(None, Some(&times)).unwrap().name, "h100");
        let times = KernelTimes { ceilings: Some(ceilings), ..times };
        assert_eq!(machine(None, Some(&times)).unwrap().ceilings, ceilings);
        assert_eq!(machine(Some("a100"), Some(&times)).unwrap().name, "a100");
        assert_eq!(machine(None, None).unwrap().name, "h200");
        // If no GPU is named, the row keeps the least time that the file states.
        let time = KernelTime {
            kernel: "matmul_fwd".into(),
            size: String::new(),
            launches: 2,
            seconds: 1.0,
            cost: Some((1e9, 1e6)),
            floor: Some(0.75),
        };
        let spec = machine(None, Some(&times)).unwrap();
        assert_eq!(measured_row(&spec, &[], &time, true).lost(), Some(0.25));
        assert_eq!(measured_row(&spec, &[], &time, false).floor, 1.0);
        // The work needs 1 s of arithmetic and 1 ms of memory traffic, so arithmetic is the bound, whatever least time
        // the file states.
        assert!(measured_row(&spec, &[], &time, true).is_bound_by_arithmetic);
        let of_bytes = KernelTime { cost: Some((1e6, 1e9)), ..time };
        assert!(!measured_row(&spec, &[], &of_bytes, true).is_bound_by_arithmetic);
    }
}
