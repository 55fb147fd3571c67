//! `reel kernels check`: compiles every kernel for every architecture and fails on register spills, or runs the kernels
//! on a device.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use reel_device::Source;
use reel_device::compile::check::{CheckResult, CheckedFunction, check_machine_code};
use reel_device::compile::ptxas::FunctionResources;
use reel_device::compile::{self, ARCHITECTURES, CompileError};
use reel_device::launch::replace_file;
use reel_kernels::FOLDERS;
use reel_kernels::catalogue::find_kernel_folder;
use reel_support::diagnostic::{Diagnostic, input};
use reel_tools::measure::catalogue::find_example_calls;
use serde_json::{Value, json};

use crate::common::CommonOptions;
use crate::fail::{failed, usage_error};
use crate::output;

/// Compile every kernel for every architecture; fail on register spills and on optimizations that ptxas gave up. With
/// --device cpu, sim or cuda: run the kernels on random data of --seed and compare the results with their f64 formulas.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel kernels check --kernel rms_norm
  reel kernels check --device cpu --kernel rms_norm --seed 7
  reel kernels check --device cuda --compare")]
pub struct KernelsCheckArgs {
    /// Only this kernel, or the kernels of this folder
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Only this GPU architecture; may be given several times [default: sm_80 sm_86 sm_89 sm_90a]
    #[arg(long, value_name = "ARCH")]
    arch: Vec<String>,
    /// CUDA file in place of the file of the same name of the kernel's folder, or of kernels/src/cuh, that the program
    /// was built with; may be given several times. An edited file is so checked without building the program
    #[arg(long, value_name = "FILE", requires = "kernel")]
    source: Vec<PathBuf>,
    /// With --device cuda: also simulate every launch, and print how far the GPU's results are from the simulator's
    #[arg(long)]
    compare: bool,
}

/// What the compiler reported for one source file and one architecture.
pub struct CompiledSource {
    sm: String,
    source: &'static Source,
    checked: Result<CheckResult, CompileError>,
}

impl KernelsCheckArgs {
    /// Without `--device`, compiles the kernels and prints a table of their resources; with it, runs the kernels.
    /// Returns an error if a check fails.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        self.replace_sources(common)?;
        if common.device.is_some() {
            if !self.arch.is_empty() {
                let help = "omit --arch or --device";
                return Err(usage_error(
                    "--arch",
                    "selects an architecture to compile for and cannot be combined with --device, which runs kernels on an existing device",
                    help,
                ));
            }
            return super::run_checks::run(common, self.kernel.as_deref(), self.compare);
        }
        if self.compare {
            return Err(usage_error(
                "--compare",
                "compares a GPU with the simulator, so it needs a GPU",
                "use --device cuda",
            ));
        }
        self.check_architectures()?;
        compile::check_nvrtc()?;
        let mut done = self.compile(common)?;
        let mut problems = Vec::new();
        for d in &mut done {
            match &mut d.checked {
                Ok(c) => problems.append(&mut c.problems),
                Err(e) => problems.push(format!("{} {}: {e}", d.source.name, d.sm)),
            }
        }
        if common.json {
            let functions: Vec<Value> = each(&done).map(|(d, f)| function(d, f)).collect();
            output::print_json(&json!({"ok": problems.is_empty(), "functions": functions, "problems": problems}))?;
        } else {
            print_table(&done)?;
            problems.iter().try_for_each(|p| output::print_line(format!("problem: {p}")))?;
        }
        match problems.first() {
            None => Ok(()),
            Some(first) => {
                let others = match problems.len() - 1 {
                    0 => String::new(),
                    n => format!(", and {n} more"),
                };
                Err(failed("kernels", format!("{first}{others}"), "see the list of all problems on stdout"))
            }
        }
    }

    /// Replaces files of the kernel's folder by those of `--source`.
    fn replace_sources(&self, common: &CommonOptions) -> Result<()> {
        let (Some(kernel), false) = (&self.kernel, self.source.is_empty()) else { return Ok(()) };
        if common.device.as_deref() == Some("cpu") {
            let help = "give --device sim or cuda, or leave --device out to compile the file";
            return Err(usage_error("--source", "has no effect with --device cpu, which runs no CUDA code", help));
        }
        let source = find_example_calls(kernel)?[0].0.source;
        let mut replaced: Vec<String> = Vec::new();
        for path in &self.source {
            let option = format!("--source {}", path.display());
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            // The folder's own files come first, so they win over headers of the same name in other folders.
            let names = source.file_names();
            let Some(name) = names.iter().find(|name| name.rsplit('/').next() == Some(&*file)) else {
                let what = format!("is not the name of a file that {kernel} is compiled from");
                return Err(usage_error(&option, what, format!("name it as one of {}", names.join(", "))));
            };
            if replaced.contains(name) {
                return Err(usage_error(&option, format!("replaces {name} a second time"), "give one file for it"));
            }
            let text = input::read_text(path, input::MAX_CONFIG_BYTES).map_err(|e| output::cannot_read(path, e))?;
            replace_file(name, text);
            replaced.push(name.clone());
        }
        Ok(())
    }

    /// Refuses architectures for which reel does not compile kernels.
    fn check_architectures(&self) -> Result<()> {
        match self.arch.iter().find(|a| !ARCHITECTURES.contains(&a.as_str())) {
            None => Ok(()),
            Some(other) => {
                let help = format!("use one of {}", ARCHITECTURES.join(", "));
                Err(usage_error(
                    "--arch",
                    format!("{other}: reel does not compile kernels for this architecture"),
                    help,
                ))
            }
        }
    }

    /// Compiles the selected kernels for all selected architectures.
    fn compile(&self, common: &CommonOptions) -> Result<Vec<CompiledSource>> {
        let archs = if self.arch.is_empty() { ARCHITECTURES.map(String::from).to_vec() } else { self.arch.clone() };
        let mut done = compile_all_sources(&self.sources()?, &archs, common)?;
        if let Some(name) = &self.kernel {
            for checked in done.iter_mut().filter_map(|d| d.checked.as_mut().ok()) {
                retain_kernel(checked, name);
            }
        }
        Ok(done)
    }

    /// Returns the source files of the selected kernels.
    fn sources(&self) -> Result<Vec<&'static Source>> {
        let Some(name) = &self.kernel else { return Ok(FOLDERS.iter().map(|f| f.source).collect()) };
        Ok(vec![find_example_calls(name)?[0].0.source])
    }
}

/// Compiles every source file for every architecture, in parallel. Prints the compile time of each compilation that
/// takes longer than a second.
pub fn compile_all_sources(
    sources: &[&'static Source],
    archs: &[String],
    common: &CommonOptions,
) -> Result<Vec<CompiledSource>> {
    let jobs: Vec<_> = sources.iter().flat_map(|s| archs.iter().map(move |sm| (*s, sm))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut compiled = Vec::new();
        while let Some((source, sm)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let module = find_kernel_folder(source.name).map_or("", |f| f.module);
            compiled.push(CompiledSource {
                sm: sm.to_string(),
                source,
                checked: check_machine_code(source, sm, module),
            });
            let seconds = start.elapsed().as_secs_f64();
            if seconds > 1.0 && !common.quiet && !common.json {
                reel_support::diagnostic::note!("{} for {sm}: {seconds:.1} s", source.name);
            }
        }
        compiled
    };
    let mut done: Vec<CompiledSource> = thread::scope(|scope| {
        let start = |_| thread::Builder::new().spawn_scoped(scope, work);
        let threads = (0..common.threads()?.min(jobs.len())).map(start).collect::<std::io::Result<Vec<_>>>();
        let threads = threads.map_err(|e| Diagnostic::cannot_start_thread("compiling the kernels", &e))?;
        let lists = threads.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        anyhow::Ok(lists.flatten().collect())
    })?;
    done.sort_by(|a, b| (a.source.name, &a.sm).cmp(&(b.source.name, &b.sm)));
    Ok(done)
}

/// Keeps only the functions of the kernel `name`: their symbols begin with the name. Keeps all functions if `name` is
/// a folder.
fn retain_kernel(checked: &mut CheckResult, name: &str) {
    if FOLDERS.iter().any(|f| f.name == name) {
        return;
    }
    checked.functions.retain(|f| f.resources.symbol.starts_with(name));
    checked.problems.retain(|p| p.contains(name) || p.contains("ptxas: "));
}

fn each(done: &[CompiledSource]) -> impl Iterator<Item = (&CompiledSource, &CheckedFunction)> {
    done.iter().flat_map(|d| d.checked.iter().flat_map(move |c| c.functions.iter().map(move |f| (d, f))))
}

fn function(d: &CompiledSource, f: &CheckedFunction) -> Value {
    let mut value = resources_json(&f.resources);
    value["folder"] = json!(d.source.name);
    value["arch"] = json!(d.sm);
    value["local_accesses"] = json!(f.local_accesses);
    value
}

/// Returns as JSON the registers, memory and spills that ptxas reports for a function.
pub fn resources_json(r: &FunctionResources) -> Value {
    json!({
        "symbol": r.symbol, "entry": r.entry, "registers": r.registers, "static_shared": r.shared, "stack": r.stack,
        "spill_stores": r.spill_stores, "spill_loads": r.spill_loads, "barriers": r.barriers,
    })
}

/// Prints one line per function: its registers on each architecture, then its shared memory, stack, spills and
/// local-memory accesses, each as the maximum over all architectures.
fn print_table(done: &[CompiledSource]) -> Result<()> {
    let mut archs: Vec<&str> = done.iter().map(|d| d.sm.as_str()).collect();
    archs.sort();
    archs.dedup();
    let mut rows: BTreeMap<(&str, &str), BTreeMap<&str, &CheckedFunction>> = BTreeMap::new();
    for (d, f) in each(done) {
        rows.entry((d.source.name, &f.resources.symbol)).or_default().insert(&d.sm, f);
    }
    let width = rows.keys().map(|(_, symbol)| symbol.len()).max().unwrap_or(0).max(8);
    let head: String = archs.iter().map(|sm| format!(" {sm:>6}")).collect();
    output::print_line(format!("{:width$}  registers on", ""))?;
    output::print_line(format!("{:width$} {head}  static shared  stack  spills  local", "function"))?;
    for ((_, symbol), by_arch) in rows {
        let registers = |sm: &&str| by_arch.get(sm).map_or(String::new(), |f| f.resources.registers.to_string());
        let registers: String = archs.iter().map(|sm| format!(" {:>6}", registers(sm))).collect();
        let max = |of: fn(&CheckedFunction) -> u32| by_arch.values().map(|f| of(f)).max().unwrap_or(0);
        output::print_line(format!(
            "{symbol:width$} {registers}  {:>13}  {:>5}  {:>6}  {:>5}",
            max(|f| f.resources.shared),
            max(|f| f.resources.stack),
            max(|f| f.resources.spill_stores + f.resources.spill_loads),
            max(|f| f.local_accesses)
        ))?;
    }
    Ok(())
}
