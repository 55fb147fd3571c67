//! The command `run`: checks a kernel of a PTX or CUDA file on the simulator.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::kernel_check::argument::NamedArgument;
use crate::kernel_check::{
    ARCHITECTURES, ARCHITECTURES_HELP, InputError, KernelCheck, Source, Wording, failed, first_clause, group_by_cause,
    sarif, speedscope, write_file,
};
use anyhow::Result;
use clap::Args;

use super::compiler::CompilerOptions;
use super::limits::LimitOptions;
use super::printable::escape_controls;
use super::quote::SourceQuotes;
use super::{CommonSettings, args, estimate, output, page, show};

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
    /// between, a copy that completes on an mbarrier that was initialised without a fence, orders of tensor memory that
    /// the hardware has but the PTX ISA does not promise, and a warp that comes two phases too late to an mbarrier
    #[arg(long)]
    strict_proxy: bool,
    /// Print how long the run will take on this machine with these options, and do not run it; takes up to 2 s
    #[arg(long, conflicts_with_all = ["out", "html", "sarif", "speedscope"])]
    pub(super) estimate: bool,
    #[command(flatten)]
    compiler: CompilerOptions,
    #[command(flatten)]
    limits: LimitOptions,
    /// Write the buffers after the first run to this file, as arg0, arg1, …
    #[arg(long, value_name = "F.safetensors")]
    out: Option<PathBuf>,
    /// Write the findings as SARIF 2.1.0; files below the current folder are named relative to it
    #[arg(long, value_name = "F.sarif")]
    sarif: Option<PathBuf>,
    /// Write the counts as a flame graph for speedscope
    #[arg(long, value_name = "F.json")]
    speedscope: Option<PathBuf>,
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
    if ARCHITECTURES.contains(&text) { Ok(text.to_string()) } else { Err(ARCHITECTURES_HELP.into()) }
}

impl SimRunArgs {
    /// Runs the kernel and prints the report; findings make the command fail.
    pub fn run(&self, settings: &CommonSettings) -> Result<()> {
        let start = Instant::now();
        let prepared = self.check(settings)?.prepare()?;
        if self.estimate {
            return estimate::print_estimate(&prepared, settings, start.elapsed());
        }
        let checked = prepared.check()?;
        let report = &checked.report;
        if let Some(out) = &self.out {
            prepared.write_buffers(out, report)?;
        }
        let quotes = SourceQuotes::new(&prepared.program, &prepared.kernel.name, &self.file, &prepared.ptx);
        let shown = show::RunDisplay { report: &checked, quotes };
        if let Some(html) = &self.html {
            write_file(html, page::run_page_html(&shown).as_bytes())?;
        }
        if let Some(to) = &self.sarif {
            let here = std::env::current_dir().map_err(|e| failed(".", e, "run in a folder that exists"))?;
            write_file(to, sarif(&[checked.json()], &here).to_string().as_bytes())?;
        }
        if let Some(to) = &self.speedscope {
            write_file(to, speedscope(&checked).to_string().as_bytes())?;
        }
        // If the reader of stdout, such as `head`, closes it early, the outcome of the check stays the same.
        let printed = if settings.json {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), escape_controls(&report.printed).as_bytes());
            output::print_json(&checked.json())
        } else {
            output::print_text(&report.printed)
                .and_then(|()| output::print_text(&shown.text(settings.quiet, settings.verbose)))
        };
        prepared.error_if_stopped_early(report)?;
        let location = prepared.source.name();
        if let Some(f) = checked.unsupported() {
            let help = "what the run did after it is not reliable; compile for another architecture";
            return Err(failed(format!("{location}:{}", f.line), first_clause(f), help));
        }
        let causes = group_by_cause(checked.findings());
        let Some(first) = causes.first().map(|cause| cause.finding) else { return printed };
        let more = match causes.len() - 1 {
            0 => String::new(),
            n => format!(", and {n} more"),
        };
        let (kind, line) = (first.kind.name(), first.line);
        Err(FindingsError(format!("{location}: {kind} at line {line}{more}; see the list of findings")).into())
    }

    /// Returns the check that the options describe.
    pub fn check(&self, settings: &CommonSettings) -> Result<KernelCheck> {
        let argument = |(n, text): (usize, &String)| {
            let argument = args::parse_kernel_argument(text).map_err(|e| InputError(format!("--arg {text}: {e}")))?;
            let (name, location) = (format!("arg{n}"), format!("--arg {text}"));
            Ok(NamedArgument { name, location, text: Some(text.clone()), argument })
        };
        Ok(KernelCheck {
            entry: self.entry.clone(),
            grid: self.grid.0,
            block: self.block.0,
            cluster: self.cluster.map(|d| d.0),
            shared: self.smem,
            arch: self.arch.clone(),
            arguments: self.args.iter().enumerate().map(argument).collect::<Result<_>>()?,
            interleavings: self.interleavings,
            count_only: self.count_only,
            strict_proxy: self.strict_proxy,
            threads: settings.threads,
            seed: settings.seed,
            compiler: self.compiler.settings(),
            limits: self.limits.limits(),
            wording: Wording::CommandLine,
            source: Source::File(self.file.clone()),
        })
    }

    /// Returns the file that the user named.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

/// The error of a kernel that has findings, for which the programs exit with code 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FindingsError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_dimensions_and_architectures() {
        assert_eq!(dims("4").unwrap().0, [4, 1, 1]);
        assert_eq!(dims("4,2").unwrap().0, [4, 2, 1]);
        assert_eq!(dims("4,2,3").unwrap().0, [4, 2, 3]);
        assert!(dims("4,2,3,1").is_err() && dims("x").is_err() && dims("").is_err() && dims("-1").is_err());
        assert!(architecture("sm_90a").is_ok() && architecture("sm_9").is_err());
    }
}
