//! The command `mutants`: tests whether each barrier, fence and wait of a kernel is needed, and whether the simulator
//! detects a missing one.

use crate::exec::{ExecOptions, StopCause};
use crate::finding::{SourceLine, source_line};
use crate::kernel_check::{PreparedLaunch, failed};
use crate::mutate::{self, Mutant, MutantResult};
use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::CommonSettings;
use super::output;
use super::quote::SourceQuotes;
use super::run::SimRunArgs;

/// Remove or change each synchronisation instruction of a kernel, one at a time, and test whether a run detects it.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '.version 8.0 .target sm_80 .address_size 64
  .entry k(.param .u64 x) { .reg .u64 %p; .reg .u32 %v; .shared .u32 s;
    ld.param.u64 %p, [x]; st.shared.u32 [s], 1; bar.sync 0;
    ld.shared.u32 %v, [s]; st.global.u32 [%p], %v; ret; }' > k.ptx
  reel-sim mutants k.ptx --grid 1 --block 64 --arg buf:u32:1")]
pub struct SimMutantsArgs {
    #[command(flatten)]
    run: SimRunArgs,
}

/// A mutant counts as stuck if its warps execute this many instructions without a change in memory. The simulator's
/// default is higher; a lower limit is safe here because the unchanged kernel is known to end.
const MAX_IDLE_INSTRUCTIONS: u64 = 2_000_000;

impl SimMutantsArgs {
    /// Runs every mutant whose changed instruction the unchanged kernel executes.
    pub fn run(&self, settings: &CommonSettings) -> Result<()> {
        if self.run.estimate {
            return Err(failed("--estimate", "estimates one run, not its mutants", "use it with the command run"));
        }
        let case = self.run.check(settings)?.prepare()?;
        let location = case.source.name();
        let whole = case.check()?.report;
        case.error_if_stopped_early(&whole)?;
        if let Some(first) = whole.findings.iter().flatten().next() {
            let what =
                format!("the unchanged kernel already has a finding: {} at line {}", first.kind.name(), first.line);
            let help = format!("fix the kernel first; `{} run` shows the details", settings.program);
            return Err(failed(&location, what, help));
        }
        let counters = &whole.counters[0].by_instruction;
        let executed = |pc: u32| counters.get(pc as usize).is_some_and(|c| c.warps > 0);
        let mutants = mutate::reached_mutants(&case.program, &case.kernel, executed);
        let options = ExecOptions { patience: MAX_IDLE_INSTRUCTIONS, until_finding: true, ..case.options.clone() };
        let verdicts = mutate::run_mutants::<anyhow::Error>(&case.program, &mutants, |program| {
            let report = case.check_program(program, options.clone())?;
            // A mutant that loops without end has a finding.
            if report.stopped.as_ref().is_some_and(|stop| stop.cause != StopCause::NoProgress) {
                case.error_if_stopped_early(&report)?;
            }
            Ok(report.findings.iter().flatten().next().map(|f| f.kind))
        })?;
        let survivors = verdicts.iter().filter(|v| v.killed_by.is_none()).count();
        if settings.json {
            let rows: Vec<_> = verdicts.iter().map(|v| row(v, &line_of(&case, &v.mutant))).collect();
            return output::print_json(&json!({"mutants": verdicts.len(), "survivors": survivors, "verdicts": rows}));
        }
        let quotes = SourceQuotes::new(&case.program, &case.kernel.name, self.run.file(), &case.ptx);
        for v in &verdicts {
            let outcome = v.killed_by.map_or("SURVIVED".to_string(), |kind| format!("killed by {}", kind.name()));
            let (place, text) = quotes.location_and_text(&line_of(&case, &v.mutant));
            let text = text.map_or(String::new(), |text| format!(" | {text}"));
            output::print_line(format!("{outcome:28} {place}: {} {}{text}", v.mutant.opcode, v.mutant.change))?;
        }
        output::print_line(format!("{location}: {} of {} mutants survived", survivors, verdicts.len()))
    }
}

/// Returns the source line of the instruction that a mutant changes: of the CUDA file if the PTX has line information.
fn line_of(case: &PreparedLaunch, mutant: &Mutant) -> SourceLine {
    let name = case.program.module.functions.get(mutant.function).map(|function| &function.name);
    let code = case.kernel.functions.iter().find(|code| Some(&code.name) == name);
    match code {
        Some(code) => source_line(&case.program, &case.kernel, code.first + mutant.instruction as u32),
        None => SourceLine { file: None, line: mutant.line, cuda: false },
    }
}

fn row(v: &MutantResult, source: &SourceLine) -> serde_json::Value {
    let SourceLine { file, line, cuda } = source;
    json!({
        "line": line, "file": file, "of": if *cuda { "cuda" } else { "ptx" }, "ptx_line": v.mutant.line,
        "opcode": v.mutant.opcode, "change": v.mutant.change.to_string(),
        "killed_by": v.killed_by.map(|kind| kind.name()),
    })
}
