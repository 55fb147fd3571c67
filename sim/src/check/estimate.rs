//! Estimates how long a check takes, from its first interleavings.
//!
//! ```text
//! rounds of one interleaving per thread, until the time is up:
//!     run the interleavings for a part of the time        seconds of a whole round
//!                                                           = seconds of a run / its part of all instructions
//!     part of all instructions = executed / (instructions per ended block * blocks of the grid)
//! an interleaving ended no block:  count the instructions of the grid without checks (`count_only`), which ends its
//!                                  first block sooner
//! the check = the first round + the others, which share its matrix products
//! ```

use std::time::{Duration, Instant};

use super::{CheckPlan, options_of};
use crate::exec::{self, ExecOptions, LaunchError, RunLimits, SimLaunch, SimOutcome, StopCause};
use crate::memory::SimMemory;

/// Number of interleavings that are measured, if time allows, but at least two rounds. They differ in the length of the
/// warps' turns and in the timing of asynchronous operations, which both repeat soon.
const MAX_MEASURED: u32 = 4;
/// The first round gets this part of the time, and the counting run `COUNTING_PART` of what is left.
const FIRST_PART: f64 = 0.4;
const COUNTING_PART: f64 = 0.7;

/// An estimate of the time of a check, and how it was derived.
#[derive(Clone, Debug)]
pub struct CheckEstimate {
    /// Seconds of the whole check; `None` if no block ended in the measured time, so that it is not known how much of
    /// the work that was.
    pub seconds: Option<f64>,
    /// If `seconds` is not known, seconds that the check takes at least: each interleaving takes longer than the
    /// measured part of the first one.
    pub at_least: f64,
    /// Interleavings that were run, for their whole length or a part of it.
    pub measured_interleavings: u32,
    /// The smallest part of its instructions that one of these interleavings executed, from 0 to 1; 0 if unknown.
    pub measured_part: f64,
    /// Seconds that the measurement took.
    pub measured_seconds: f64,
    /// Whether the number of instructions comes from a run without checks.
    pub counted: bool,
}

/// Estimates the time of a check of `launch` by `plan` on this machine. The measurement takes about `time` at most.
///
/// # Errors
/// Returns an error if the launch is outside of the limits of its kernel or of the GPU.
pub fn estimate_check(
    launch: SimLaunch,
    memory: &SimMemory,
    plan: &CheckPlan,
    time: Duration,
) -> Result<CheckEstimate, LaunchError> {
    let start = Instant::now();
    let mut runs = plan.interleavings.max(1);
    let products = plan.options.products.clone().or_else(|| (runs > 1).then(Default::default));
    let run = |options: ExecOptions, part: f64| -> Result<(SimOutcome, f64), LaunchError> {
        let deadline = Some(Instant::now() + time.saturating_sub(start.elapsed()).mul_f64(part));
        let options = ExecOptions { limits: RunLimits { deadline, ..options.limits }, ..options };
        let (begin, mut own) = (Instant::now(), memory.clone());
        let outcome = exec::run(launch.program, launch.kernel, launch.launch, &mut own, &options)?;
        Ok((outcome, begin.elapsed().as_secs_f64()))
    };
    let mut estimate = CheckEstimate {
        seconds: None,
        at_least: 0.0,
        measured_interleavings: 0,
        measured_part: 1.0,
        measured_seconds: 0.0,
        counted: false,
    };
    let threads = plan.threads.clamp(1, runs as usize) as u32;
    let rounds = MAX_MEASURED.div_ceil(threads).max(2).min(runs.div_ceil(threads));
    let (mut seconds, mut instructions) = (Vec::new(), None);
    'measure: for round in 0..rounds {
        if round > 0 && start.elapsed() >= time {
            break;
        }
        let part = if round == 0 { FIRST_PART } else { 1.0 / f64::from(rounds - round) };
        let numbers = round * threads..runs.min((round + 1) * threads);
        // As many interleavings run at the same time as in the check, so that they slow each other down as much.
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let spawn = |i: u32| {
                let options = ExecOptions { products: products.clone(), ..options_of(plan, i as usize) };
                let run = &run;
                scope.spawn(move || run(options, part))
            };
            let spawned: Vec<_> = numbers.map(spawn).collect();
            spawned.into_iter().map(|run| run.join().expect("a run does not panic")).collect()
        });
        let (count, mut sum) = (outcomes.len() as f64, 0.0);
        for outcome in outcomes {
            let (outcome, took) = outcome?;
            estimate.measured_interleavings += 1;
            let mut part = executed_part(&outcome);
            if part.is_none() && instructions.is_none() && !plan.options.count_only {
                let (counted, _) = run(ExecOptions { count_only: true, ..options_of(plan, 0) }, COUNTING_PART)?;
                instructions = executed_part(&counted).map(|part| counted.counters.total().warps as f64 / part);
                estimate.counted = true;
            }
            let executed = outcome.counters.total().warps as f64;
            part = part.or_else(|| instructions.map(|all| (executed / all).min(1.0)));
            let Some(part) = part.filter(|part| *part > 0.0) else {
                (estimate.measured_part, estimate.at_least) = (0.0, took * f64::from(runs.div_ceil(threads)));
                break 'measure;
            };
            estimate.measured_part = estimate.measured_part.min(part);
            sum += took / part;
            // A run that a limit stops, other than the time, ends the check.
            if outcome.stopped.is_some_and(|stop| stop.cause != StopCause::Time) {
                runs = runs.min((round + 1) * threads);
            }
        }
        seconds.push(sum / count);
        if (round + 1) * threads >= runs {
            break;
        }
    }
    if let Some((first, others)) = seconds.split_first() {
        let mean = if others.is_empty() { *first } else { others.iter().sum::<f64>() / others.len() as f64 };
        estimate.seconds = Some(first + mean * f64::from(runs.div_ceil(threads) - 1));
    }
    estimate.measured_seconds = start.elapsed().as_secs_f64();
    Ok(estimate)
}

/// Returns the part of its instructions that a run executed: 1 unless the deadline stopped it. `None` if it is not
/// known, because no block had ended.
fn executed_part(outcome: &SimOutcome) -> Option<f64> {
    match &outcome.stopped {
        Some(stop) if stop.cause == StopCause::Time => stop.executed_part,
        _ => Some(1.0),
    }
}
