//! `reel sim mutants`: is every barrier, fence and wait of a kernel needed, and would a missing one be found?

use anyhow::Result;
use clap::Args;
use reel_sim::exec::ExecOptions;
use reel_sim::mutate::{self, MutantResult};
use serde_json::json;

use super::run::Run;
use crate::common::Common;
use crate::fail::failed;
use crate::output;

/// Change one synchronisation of a kernel at a time and see whether a run finds it.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '.version 8.0 .target sm_80 .address_size 64
  .entry k(.param .u64 x) { .reg .u64 %p; .reg .u32 %v; .shared .u32 s;
    ld.param.u64 %p, [x]; st.shared.u32 [s], 1; bar.sync 0;
    ld.shared.u32 %v, [s]; st.global.u32 [%p], %v; ret; }' > k.ptx
  reel sim mutants k.ptx --grid 1 --block 64 --arg buf:u32:1")]
pub struct Mutants {
    #[command(flatten)]
    run: Run,
}

/// Warp instructions without an effect after which a mutant counts as stuck; a correct kernel has been seen to end.
const PATIENCE: u64 = 2_000_000;

impl Mutants {
    /// Judges every mutant whose instruction the run reaches.
    pub fn run(&self, common: &Common) -> Result<()> {
        let case = self.run.case(common)?;
        let place = self.run.place();
        let whole = case.check(&case.program, case.options.clone())?;
        if let Some(first) = whole.findings.iter().flatten().next() {
            let what = format!("{} at line {} before anything is changed", first.kind.name(), first.line);
            return Err(failed(&place, what, "mend the kernel first; `reel sim run` says more"));
        }
        let counters = &whole.counters[0].by_instruction;
        let executed = |pc: u32| counters.get(pc as usize).is_some_and(|c| c.warps > 0);
        let mutants = mutate::reached_mutants(&case.program, &case.kernel, executed);
        let options = ExecOptions { patience: PATIENCE, until_finding: true, ..case.options.clone() };
        let verdicts = mutate::run_mutants::<anyhow::Error>(&case.program, &mutants, |program| {
            let report = case.check(program, options.clone())?;
            Ok(report.findings.iter().flatten().next().map(|f| f.kind))
        })?;
        let survivors = verdicts.iter().filter(|v| v.killed_by.is_none()).count();
        if common.json {
            let rows: Vec<_> = verdicts.iter().map(|v| self.row(v)).collect();
            return output::json(&json!({"mutants": verdicts.len(), "survivors": survivors, "verdicts": rows}));
        }
        for v in &verdicts {
            let fate = v.killed_by.map_or("SURVIVED".to_string(), |kind| format!("killed by {}", kind.name()));
            output::line(format!("{fate:28} {}", v.mutant))?;
        }
        output::line(format!("{place}: {} of {} mutants survived", survivors, verdicts.len()))
    }

    fn row(&self, v: &MutantResult) -> serde_json::Value {
        json!({
            "line": v.mutant.line, "opcode": v.mutant.opcode, "change": v.mutant.change.to_string(),
            "killed_by": v.killed_by.map(|kind| kind.name()),
        })
    }
}
