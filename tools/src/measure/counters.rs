//! Reads a GPU's hardware counters for single kernels with NVIDIA's Nsight Compute (`ncu`), if `ncu` is installed. The
//! counters tell which part of the GPU was busiest, which explains a kernel's time.
//!
//! `ncu` runs a program and repeats each of its kernels several times under counters. The clocks stay as they are
//! (`--clock-control none`), so that the times can be compared with other measurements. `ncu` writes its table to a
//! file, because it shares its stdout with the program that it runs. Source: Nsight Compute's manual, "Command Line
//! Options".

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reel_device::compile::toolkit::Toolkit;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The sections of metrics that are read.
const SECTIONS: [&str; 3] = ["SpeedOfLight", "ComputeWorkloadAnalysis", "Occupancy"];

/// The metrics of the utilization of each part of the GPU, in percent of its highest rate.
const PARTS: [&str; 5] = [
    "DRAM Throughput",
    "L2 Cache Throughput",
    "L1/TEX Cache Throughput",
    "Compute (SM) Throughput",
    "Issue Slots Busy",
];

/// Utilization in percent. If no part of the GPU exceeds this utilization, the kernel mostly waits: for latencies, or
/// because it has too few warps.
const BUSY: f64 = 60.0;

/// The counters of the last launch of a CUDA kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelCounters {
    /// Name of the CUDA kernel, such as `attention_bwd_bf16_dkv_128`.
    pub symbol: String,
    /// The metrics with numeric values, by name.
    pub metrics: BTreeMap<String, f64>,
}

impl KernelCounters {
    /// The busiest part of the GPU and its share of the highest rate in percent; `None` if `ncu` reported none of the
    /// metrics in `PARTS`.
    pub fn busiest_part(&self) -> Option<(&'static str, f64)> {
        let known = PARTS.iter().filter_map(|part| Some((*part, *self.metrics.get(*part)?)));
        known.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// A short text that explains the time of the kernel by the busiest part of the GPU.
    pub fn explanation(&self) -> String {
        let Some((part, percent)) = self.busiest_part() else { return "no counters".to_string() };
        if percent >= BUSY {
            return format!("{part} {percent:.0} %");
        }
        let warps = self.metrics.get("Achieved Occupancy").map(|w| format!(", Achieved Occupancy {w:.0} %"));
        format!("latency-bound; the busiest unit is {part} at {percent:.0} %{}", warps.unwrap_or_default())
    }

    /// These counters as JSON.
    pub fn json(&self) -> Value {
        json!({"symbol": self.symbol, "explanation": self.explanation(), "metrics": self.metrics})
    }
}

/// Finds the program `ncu`, in the CUDA installation or on the shell's search path.
pub fn find_ncu() -> Option<PathBuf> {
    Toolkit::from_environment().program("ncu")
}

/// Runs `program` with `arguments` under `ncu` and returns the counters of its CUDA kernels.
///
/// # Errors
/// A file cannot be written, or `ncu` fails: this user may not read counters, or `program` fails.
pub fn read_counters(ncu: &Path, program: &Path, arguments: &[String]) -> Result<Vec<KernelCounters>> {
    let failed =
        |e: std::io::Error| Error::failed("temporary folder", e.to_string(), "set TMPDIR to a writable folder");
    let scratch = reel_support::files::temporary_folder().map_err(failed)?;
    let table = scratch.path().join("counters.csv");
    let mut command = Command::new(ncu);
    command.args(["--csv", "--clock-control", "none", "--page", "details"]);
    command.args(SECTIONS.iter().flat_map(|section| ["--section", section]));
    command.arg("--log-file").arg(&table).arg(program).args(arguments);
    let ran = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let text = std::fs::read_to_string(&table).unwrap_or_default();
    let found = counters_from_csv(&text);
    match ran {
        Ok(status) if status.success() && !found.is_empty() => Ok(found),
        Ok(status) => {
            let said = text.lines().find_map(|line| line.strip_prefix("==ERROR== "));
            let what = said.map_or_else(|| format!("ncu ended with {status} and reported no counters"), str::to_string);
            Err(Error::failed(
                ncu.display().to_string(),
                what,
                "allow this user to read counters, or give --no-counters",
            ))
        }
        Err(e) => Err(Error::failed(ncu.display().to_string(), e.to_string(), "give --no-counters")),
    }
}

/// Parses the table that `ncu --csv --page details` writes: one line per launch and metric. If a kernel is launched
/// several times, its last launch is kept, because the first launches are warm-up. Lines before the table begin with
/// `==`.
fn counters_from_csv(text: &str) -> Vec<KernelCounters> {
    let mut lines = text.lines().filter(|line| line.starts_with('"')).map(csv_fields);
    let header = lines.next().unwrap_or_default();
    let column = |name: &str| header.iter().position(|h| h == name);
    let (Some(id), Some(kernel), Some(metric), Some(value)) =
        (column("ID"), column("Kernel Name"), column("Metric Name"), column("Metric Value"))
    else {
        return Vec::new();
    };
    let mut launches: Vec<(String, KernelCounters)> = Vec::new();
    for fields in lines {
        let [Some(id), Some(kernel), Some(metric), Some(value)] = [id, kernel, metric, value].map(|i| fields.get(i))
        else {
            continue;
        };
        // `ncu` writes a kernel's name with its parameters, as in `attention_fwd(const Params)`, and a template's name
        // with its arguments. The symbol is the text before the parenthesis.
        let symbol = kernel.split('(').next().unwrap_or(kernel).to_string();
        if !launches.iter().any(|(known, _)| known == id) {
            launches.push((id.clone(), KernelCounters { symbol, metrics: BTreeMap::new() }));
        }
        let Some((_, launch)) = launches.iter_mut().find(|(known, _)| known == id) else { continue };
        launch.metrics.extend(value.replace(',', "").parse().ok().map(|number| (metric.clone(), number)));
    }
    let mut last: Vec<KernelCounters> = Vec::new();
    for (_, launch) in launches {
        last.retain(|known| known.symbol != launch.symbol);
        last.push(launch);
    }
    last
}

/// Splits a line of CSV into its fields. Within a quoted field, two quotes mean one quote.
fn csv_fields(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const TABLE: &str = r#"==PROF== Connected to process 7
"ID","Process ID","Process Name","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","7","reel","swiglu_fwd_bf16(FwdParams)","GPU Speed Of Light Throughput","DRAM Throughput","%","11.5"
"1","7","reel","void gemm<2, ""x"">(int)","GPU Speed Of Light Throughput","Compute (SM) Throughput","%","41.0"
"1","7","reel","void gemm<2, ""x"">(int)","Occupancy","Achieved Occupancy","%","12.5"
"2","7","reel","swiglu_fwd_bf16(FwdParams)","GPU Speed Of Light Throughput","DRAM Throughput","%","91.2"
"2","7","reel","swiglu_fwd_bf16(FwdParams)","GPU Speed Of Light Throughput","Elapsed Cycles","cycle","1,234,567"
"2","7","reel","swiglu_fwd_bf16(FwdParams)","Occupancy","Block Limit SM","block","n/a"
"#;

    #[test]
    fn the_busiest_part_explains_the_last_launch_of_each_kernel() {
        let found = counters_from_csv(TABLE);
        let said: Vec<_> = found.iter().map(|k| (k.symbol.as_str(), k.explanation())).collect();
        let waits =
            "latency-bound; the busiest unit is Compute (SM) Throughput at 41 %, Achieved Occupancy 12 %".to_string();
        assert_eq!(said, [("void gemm<2, \"x\">", waits), ("swiglu_fwd_bf16", "DRAM Throughput 91 %".to_string())]);
        assert_eq!(found[1].metrics["Elapsed Cycles"], 1_234_567.0);
        assert_eq!(found[1].metrics.len(), 2);
    }

    /// A stand-in for ncu that writes `table` to the file of `--log-file` and ends with `status`.
    fn stand_in(folder: &Path, table: &str, status: u8) -> PathBuf {
        let (path, text) = (folder.join("ncu"), folder.join("table"));
        std::fs::write(&text, table).unwrap();
        let script = format!(
            "#!/bin/sh\nwhile [ \"$1\" != --log-file ]; do shift; done\ncp '{}' \"$2\"\nexit {status}\n",
            text.display()
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn what_ncu_says_is_read_and_its_failures_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new("reel");
        let found = read_counters(&stand_in(folder.path(), TABLE, 0), program, &[]).unwrap();
        assert_eq!(found.len(), 2);
        let refused = "==ERROR== ERR_NVGPUCTRPERM - no permission\n";
        let e = read_counters(&stand_in(folder.path(), refused, 1), program, &[]).unwrap_err().to_string();
        assert!(e.contains("ERR_NVGPUCTRPERM - no permission") && e.contains("--no-counters"), "{e}");
        let e = read_counters(&folder.path().join("absent"), program, &[]).unwrap_err().to_string();
        assert!(e.contains("absent"), "{e}");
    }
}
