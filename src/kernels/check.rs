//! `reel kernels check`: compiles every kernel for every architecture, or runs them on a device.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use reel_kernels::catalogue::folder;
use reel_kernels::compile::check::{Checked, Function, check};
use reel_kernels::compile::ptxas::Resources;
use reel_kernels::compile::{self, ARCHITECTURES, CompileError};
use reel_kernels::{FOLDERS, Source};
use serde_json::{Value, json};

use crate::common::Common;
use crate::fail::{bad_usage, failed};
use crate::output;

/// Compile every kernel for every architecture; fail on spills and on what ptxas gave up. With --device cpu, sim or cuda: run
/// them on data of --seed and compare with their formulas.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  reel kernels check --kernel rms_norm\n  reel kernels check --device sim --kernel rms_norm --seed 7\n  reel kernels check --device cuda --compare"
)]
pub struct Check {
    /// Only this kernel, or this folder
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Only this architecture; may be given several times [default: sm_80 sm_86 sm_89 sm_90a]
    #[arg(long, value_name = "ARCH")]
    arch: Vec<String>,
    /// With --device cuda: simulate every launch too, and say how far apart the results are
    #[arg(long)]
    compare: bool,
}

/// One unit on one architecture.
pub struct Done {
    sm: String,
    source: &'static Source,
    checked: Result<Checked, CompileError>,
}

impl Check {
    /// Prints the table; fails when anything in it is wrong.
    pub fn run(&self, common: &Common) -> Result<()> {
        if common.device.is_some() {
            if !self.arch.is_empty() {
                let cure = "leave out --arch, or --device";
                return Err(bad_usage("--arch", "is for compiling; a device has its own", cure));
            }
            return super::hold::run(common, self.kernel.as_deref(), self.compare);
        }
        if self.compare {
            return Err(bad_usage("--compare", "compares a GPU with the simulator", "use --device cuda"));
        }
        self.known_architectures()?;
        compile::available()?;
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
            output::json(&json!({"ok": problems.is_empty(), "functions": functions, "problems": problems}))?;
        } else {
            table(&done)?;
            problems.iter().try_for_each(|p| output::line(format!("problem: {p}")))?;
        }
        match problems.first() {
            None => Ok(()),
            Some(first) => {
                let others = match problems.len() - 1 {
                    0 => String::new(),
                    n => format!(", and {n} more"),
                };
                Err(failed("kernels", format!("{first}{others}"), "`reel kernels check` lists them with every figure"))
            }
        }
    }

    /// An architecture that no kernel is compiled for is a mistake in the command.
    fn known_architectures(&self) -> Result<()> {
        match self.arch.iter().find(|a| !ARCHITECTURES.contains(&a.as_str())) {
            None => Ok(()),
            Some(other) => {
                let cure = format!("use one of {}", ARCHITECTURES.join(", "));
                Err(bad_usage("--arch", format!("{other}: kernels are not compiled for it"), cure))
            }
        }
    }

    /// Compiles what was asked for on the threads that there are.
    fn compile(&self, common: &Common) -> Result<Vec<Done>> {
        let archs = if self.arch.is_empty() { ARCHITECTURES.map(String::from).to_vec() } else { self.arch.clone() };
        let mut done = compile_all(&self.sources()?, &archs, common)?;
        if let Some(name) = &self.kernel {
            for checked in done.iter_mut().filter_map(|d| d.checked.as_mut().ok()) {
                only(checked, name);
            }
        }
        Ok(done)
    }

    /// The units that hold what was asked for.
    fn sources(&self) -> Result<Vec<&'static Source>> {
        let Some(name) = &self.kernel else { return Ok(FOLDERS.iter().map(|f| f.source).collect()) };
        Ok(vec![super::named(name)?[0].0.source])
    }
}

/// Compiles every source for every architecture on the threads that there are, and says what takes long.
pub fn compile_all(sources: &[&'static Source], archs: &[String], common: &Common) -> Result<Vec<Done>> {
    let jobs: Vec<_> = sources.iter().flat_map(|s| archs.iter().map(move |sm| (*s, sm))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut mine = Vec::new();
        while let Some((source, sm)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let module = folder(source.name).map_or("", |f| f.module);
            mine.push(Done { sm: sm.to_string(), source, checked: check(source, sm, module) });
            let seconds = start.elapsed().as_secs_f64();
            if seconds > 1.0 && !common.quiet && !common.json {
                eprintln!("{} for {sm}: {seconds:.1} s", source.name);
            }
        }
        mine
    };
    let mut done: Vec<Done> = thread::scope(|scope| {
        let threads: Vec<_> = (0..common.threads()?.min(jobs.len())).map(|_| scope.spawn(work)).collect();
        let lists = threads.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        anyhow::Ok(lists.flatten().collect())
    })?;
    done.sort_by(|a, b| (a.source.name, &a.sm).cmp(&(b.source.name, &b.sm)));
    Ok(done)
}

/// Leaves one kernel and its further launches (whose names begin with its own); a folder's name leaves all.
fn only(checked: &mut Checked, name: &str) {
    if FOLDERS.iter().any(|f| f.name == name) {
        return;
    }
    checked.functions.retain(|f| f.resources.symbol.starts_with(name));
    checked.problems.retain(|p| p.contains(name) || p.contains("ptxas: "));
}

fn each(done: &[Done]) -> impl Iterator<Item = (&Done, &Function)> {
    done.iter().flat_map(|d| d.checked.iter().flat_map(move |c| c.functions.iter().map(move |f| (d, f))))
}

fn function(d: &Done, f: &Function) -> Value {
    let mut value = resources(&f.resources);
    value["folder"] = json!(d.source.name);
    value["arch"] = json!(d.sm);
    value["local_accesses"] = json!(f.local_accesses);
    value
}

/// ptxas's figures as JSON.
pub fn resources(r: &Resources) -> Value {
    json!({
        "symbol": r.symbol, "entry": r.entry, "registers": r.registers, "static_shared": r.shared, "stack": r.stack,
        "spill_stores": r.spill_stores, "spill_loads": r.spill_loads, "barriers": r.barriers,
    })
}

/// One line a function, its registers by architecture, the largest of the rest.
fn table(done: &[Done]) -> Result<()> {
    let mut archs: Vec<&str> = done.iter().map(|d| d.sm.as_str()).collect();
    archs.sort();
    archs.dedup();
    let mut rows: BTreeMap<(&str, &str), BTreeMap<&str, &Function>> = BTreeMap::new();
    for (d, f) in each(done) {
        rows.entry((d.source.name, &f.resources.symbol)).or_default().insert(&d.sm, f);
    }
    let width = rows.keys().map(|(_, symbol)| symbol.len()).max().unwrap_or(0).max(8);
    let head: String = archs.iter().map(|sm| format!(" {sm:>6}")).collect();
    output::line(format!("{:width$}  registers on", ""))?;
    output::line(format!("{:width$} {head}  static shared  stack  spills  local", "function"))?;
    for ((_, symbol), by_arch) in rows {
        let registers = |sm: &&str| by_arch.get(sm).map_or(String::new(), |f| f.resources.registers.to_string());
        let registers: String = archs.iter().map(|sm| format!(" {:>6}", registers(sm))).collect();
        let most = |of: fn(&Function) -> u32| by_arch.values().map(|f| of(f)).max().unwrap_or(0);
        output::line(format!(
            "{symbol:width$} {registers}  {:>13}  {:>5}  {:>6}  {:>5}",
            most(|f| f.resources.shared),
            most(|f| f.resources.stack),
            most(|f| f.resources.spill_stores + f.resources.spill_loads),
            most(|f| f.local_accesses)
        ))?;
    }
    Ok(())
}
