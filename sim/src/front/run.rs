//! The command `run`: checks a kernel of a PTX or CUDA file on the simulator.

use std::path::PathBuf;

use crate::check::CheckReport;
use crate::compile;
use crate::exec::{ExecOptions, GpuSpec, LaunchConfig};
use crate::program::op::Op;
use crate::program::{Kernel, Program, ProgramError};
use anyhow::Result;
use clap::Args;

use super::args::{self, KernelArgument};
use super::bind::bind_arguments;
use super::case::PreparedLaunch;
use super::causes::group_by_cause;
use super::compiler::{CompilerOptions, PtxSource};
use super::error::{UsageError, failed, usage_error};
use super::limits::LimitOptions;
use super::parameters::{is_from_triton, kernel_parameters};
use super::printable::escape_controls;
use super::quote::SourceQuotes;
use super::{CommonSettings, entry, output, page, show};

/// The example in the help text, which needs no compiler.
pub const RUN_EXAMPLE: &str = "\
Example:
  echo '.version 8.0 .target sm_80 .address_size 64
  .entry k(.param .u64 x) { .reg .u64 %p; .reg .u32 %v;
    ld.param.u64 %p, [x]; ld.global.u32 %v, [%p]; add.u32 %v, %v, 1;
    st.global.u32 [%p], %v; ret; }' > k.ptx
  reel-sim run k.ptx --entry k --grid 1 --block 1 --arg buf:u32:1:zeros";

/// Returns the example and the forms of kernel arguments, for the help text.
pub fn long_help() -> String {
    format!("{RUN_EXAMPLE}\n\n{ARGUMENTS}")
}

const ARGUMENTS: &str = "\
Arguments, one --arg per kernel parameter, in order:
  TYPE:VALUE           a number: i32:-5, u32:7, u64:0xff, f32:1.5, …
  buf:TYPE:COUNT:FILL  a pointer to COUNT elements. TYPE is u8, i8, u16, i16,
                       u32, i32, u64, i64, f16, bf16, f32, f64 or e4m3; FILL is
                       zeros, uninit, arange, random (normal, of --seed),
                       fill=VALUE or @FILE.safetensors#NAME
  struct:u32=5,buf=f32:64:zeros,…  a struct by value, in C's layout; TYPE[N]=V,V,…
                       or TYPE[N]=V is an array, pad=N are N bytes of padding
  struct:00ff…         a struct by value, as bytes in hexadecimal
  tmap:BUF:TYPE:DIMS:STRIDES:BOX:SWIZZLE  a tensor map of argument number BUF
                       (from 0): dims and box in elements, innermost first;
                       strides in bytes from dimension 1 on; none, 32, 64 or 128.
                       Buffers that only maps use come after the parameters
Examples:
  --arg buf:f32:64:fill=-inf
  --arg 'struct:u32=5,f32[3]=1,2,3,pad=4,buf=bf16:64:random'
  --arg tmap:1:bf16:64,32:128:64,8:128 --arg buf:bf16:2048:random
      a 32 × 64 tensor of bf16, rows of 128 bytes, boxes of 8 × 64";

/// Check a kernel of a PTX or CUDA file, and show its defects and the lines that waste time: bank conflicts,
/// uncoalesced accesses, idle lanes. --verbose also shows all counts and estimated time bounds.
#[derive(Args, Debug)]
pub struct SimRunArgs {
    /// PTX, or CUDA C++ (needs NVRTC or nvcc)
    #[arg(value_name = "FILE.ptx|FILE.cu")]
    file: PathBuf,
    /// Kernel to run: its symbol, its name in the source, or a part of that name [default: the only kernel]
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// Blocks of the grid
    #[arg(long, value_name = "X[,Y,Z]", value_parser = dims)]
    grid: Dimensions,
    /// Threads per block
    #[arg(long, value_name = "X[,Y,Z]", value_parser = dims)]
    block: Dimensions,
    /// Blocks per cluster [default: what the kernel requires, else none]
    #[arg(long, value_name = "X[,Y,Z]", value_parser = dims)]
    cluster: Option<Dimensions>,
    /// Bytes of dynamic shared memory
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    smem: u32,
    /// Architecture to compile for, and whose limits apply [default: that of the PTX; sm_90a for CUDA]
    #[arg(long, value_name = "sm_80|sm_90a|sm_100a", value_parser = architecture)]
    arch: Option<String>,
    /// Kernel argument, in order; `--help` lists the forms
    #[arg(long = "arg", value_name = "ARG")]
    args: Vec<String>,
    /// Number of runs, each with a different order of warps, blocks and asynchronous copies
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    interleavings: u32,
    /// Print the counts of instructions and bytes in one run, without checking the order of accesses: finds no races
    #[arg(long)]
    count_only: bool,
    /// Also report a generic read whose bytes an ordered asynchronous copy then overwrites, without a proxy fence in
    /// between, a copy that completes on an mbarrier that was initialised without a fence, and orders of tensor memory
    /// that the hardware has but the PTX ISA does not promise
    #[arg(long)]
    strict_proxy: bool,
    #[command(flatten)]
    compiler: CompilerOptions,
    #[command(flatten)]
    limits: LimitOptions,
    /// Write the buffers after the first run to this file, as arg0, arg1, …
    #[arg(long, value_name = "F.safetensors")]
    out: Option<PathBuf>,
    /// Write a page with the annotated source, the findings and the kernel on the roofline
    #[arg(long, value_name = "F.html")]
    html: Option<PathBuf>,
}

/// The one to three integers of `--grid`, `--block` or `--cluster`.
#[derive(Clone, Copy, Debug)]
struct Dimensions([u32; 3]);

fn dims(text: &str) -> Result<Dimensions, String> {
    let parts: Result<Vec<u32>, _> = text.split(',').map(str::parse).collect();
    match parts.as_deref() {
        Ok(&[x]) => Ok(Dimensions([x, 1, 1])),
        Ok(&[x, y]) => Ok(Dimensions([x, y, 1])),
        Ok(&[x, y, z]) => Ok(Dimensions([x, y, z])),
        _ => Err("give one to three integers separated by commas".into()),
    }
}

/// Parses `--arch`: an architecture that the simulator models.
fn architecture(text: &str) -> Result<String, String> {
    match text {
        "sm_80" | "sm_90" | "sm_90a" | "sm_100" | "sm_100a" => Ok(text.to_string()),
        _ => Err("the simulator models sm_80 (A100), sm_90a (H100, H200) and parts of sm_100a; use one of them".into()),
    }
}

impl SimRunArgs {
    /// Runs the kernel and prints the report; findings make the command fail.
    pub fn run(&self, settings: &CommonSettings) -> Result<()> {
        let case = self.prepare_launch(settings)?;
        let report = case.check_kernel(&case.program, case.options.clone())?;
        if let Some(out) = &self.out {
            case.bound.write_buffers(out, &report.memory)?;
        }
        let location = self.displayed_path();
        let quotes = SourceQuotes::new(&case.program, &case.kernel.name, &self.file, &case.ptx);
        let shown = show::RunDisplay {
            file: &location,
            program: &case.program,
            kernel: &case.kernel,
            launch: &case.launch,
            report: &report,
            count_only: self.count_only,
            quotes,
        };
        if let Some(html) = &self.html {
            output::write_file(html, page::run_page_html(&shown).as_bytes())?;
        }
        // If the reader of stdout, such as `head`, closes it early, the outcome of the check stays the same.
        let printed = if settings.json {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), escape_controls(&report.printed).as_bytes());
            output::print_json(&shown.json())
        } else {
            output::print_text(&report.printed)
                .and_then(|()| output::print_text(&shown.text(settings.quiet, settings.verbose)))
        };
        self.error_if_stopped_early(&report)?;
        let causes = group_by_cause(shown.findings());
        let Some(first) = causes.first().map(|cause| cause.finding) else { return printed };
        let more = match causes.len() - 1 {
            0 => String::new(),
            n => format!(", and {n} more"),
        };
        let what = format!("{} at line {}{more}", first.kind.name(), first.line);
        Err(failed(&location, what, "see the list of findings"))
    }

    /// Fails if a limit of time or memory has stopped the check.
    pub fn error_if_stopped_early(&self, report: &CheckReport) -> Result<()> {
        let error = |stop| self.limits.error_of_stop(&self.displayed_path(), stop);
        report.stopped.as_ref().and_then(error).map_or(Ok(()), Err)
    }

    /// Returns the file's path as the user gave it, for messages.
    pub fn displayed_path(&self) -> String {
        self.file.display().to_string()
    }

    /// Compiles the file, allocates the arguments and describes the launch.
    pub fn prepare_launch(&self, settings: &CommonSettings) -> Result<PreparedLaunch> {
        let arguments = self.arguments()?;
        let PtxSource { ptx, cuda_source } = self.compiler.read_or_compile(&self.file, self.arch.as_deref())?;
        let location = self.displayed_path();
        let refused = |e: ProgramError| {
            let help = match &e {
                ProgramError::Target { needed, .. } => format!("compile it for {needed}"),
                _ => "give complete PTX, as nvcc or NVRTC writes it".to_string(),
            };
            failed(&location, e, help)
        };
        let program = Program::parse(&ptx).map_err(refused)?;
        let symbol = entry::select_kernel_symbol(self.entry.as_deref(), &program.kernel_names(), &location)?;
        let kernel = program.kernel(symbol).map_err(refused)?;
        let options = ExecOptions {
            gpu: self.gpu(&program)?,
            seed: settings.seed,
            count_only: self.count_only,
            strict_proxy: self.strict_proxy,
            cuda_source,
            registers: registers(&ptx, &kernel, &self.compiler.register_options()),
            patience: PATIENCE,
            limits: self.limits.limits_from_now(),
            ..ExecOptions::default()
        };
        let parameters = kernel_parameters(&program, &kernel);
        let from_triton = is_from_triton(&program);
        let bound =
            bind_arguments(&kernel, from_triton, &parameters, &arguments, settings.seed, self.limits.memory_bytes())?;
        let launch = LaunchConfig {
            grid: self.grid.0,
            block: self.block.0,
            cluster: self.cluster.map_or([1; 3], |d| d.0),
            dynamic_shared: self.smem,
            params: bound.params.clone(),
        };
        let interleavings = if self.count_only { 1 } else { self.interleavings };
        Ok(PreparedLaunch {
            file: location,
            ptx,
            program,
            kernel,
            bound,
            launch,
            options,
            interleavings,
            threads: settings.threads,
        })
    }

    fn arguments(&self) -> Result<Vec<(String, KernelArgument)>> {
        let one = |text: &String| {
            let parsed = args::parse_kernel_argument(text).map_err(|e| UsageError(format!("--arg {text}: {e}")))?;
            Ok((text.clone(), parsed))
        };
        self.args.iter().map(one).collect()
    }

    /// Returns the GPU model whose limits apply to the launch: the GPU of `--arch`, else of the PTX's target.
    fn gpu(&self, program: &Program) -> Result<GpuSpec> {
        let target = number(&program.module.target).unwrap_or(80);
        let Some(arch) = &self.arch else { return Ok(GpuSpec::for_sm(target)) };
        let sm = number(arch).unwrap_or(target);
        if sm < target {
            let what = format!("GPUs of {arch} cannot run PTX for {}", program.module.target);
            return Err(usage_error("--arch", what, format!("use --arch {} or none", program.module.target)));
        }
        Ok(GpuSpec::for_sm(sm))
    }
}

/// Number of warp instructions without a memory change after which a run counts as a deadlock. It is lower than the
/// simulator's default, so that a kernel that polls for ever ends within seconds.
const PATIENCE: u64 = 10_000_000;

/// Returns the registers per thread that ptxas assigns with these options. The rules of `setmaxnreg` depend on them.
/// Returns `None` if the kernel has no `setmaxnreg` or ptxas is not installed.
fn registers(ptx: &str, kernel: &Kernel, options: &[String]) -> Option<u32> {
    let uses_setmaxnreg =
        kernel.functions.iter().flat_map(|code| &code.instrs).any(|i| matches!(i.op, Op::SetMaxNReg { .. }));
    if uses_setmaxnreg { compile::registers_of_kernel(ptx, &kernel.name, options) } else { None }
}

/// Returns the number in an architecture name: 90 for `sm_90a`.
fn number(arch: &str) -> Option<u32> {
    let digits = arch.strip_prefix("sm_")?.trim_end_matches(|c: char| c.is_ascii_lowercase());
    digits.parse().ok().filter(|n| (50..=200).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_dimensions_and_architectures() {
        assert_eq!(dims("4").unwrap().0, [4, 1, 1]);
        assert_eq!(dims("4,2").unwrap().0, [4, 2, 1]);
        assert_eq!(dims("4,2,3").unwrap().0, [4, 2, 3]);
        assert!(dims("4,2,3,1").is_err() && dims("x").is_err() && dims("").is_err() && dims("-1").is_err());
        assert_eq!(["sm_80", "sm_90a", "sm_9", "80", "sm_"].map(number), [Some(80), Some(90), None, None, None]);
    }
}
