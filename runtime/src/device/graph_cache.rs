//! The captured graphs of one repeated step, such as a decode step, by the number of rows that the step computes.
//!
//! ```text
//! run(rows):
//!     first call with this number of rows    launch the step directly: compiles kernels, chooses matmul algorithms
//!     second call                            capture the step, then replay the graphs
//!     later calls                            replay the graphs
//! ```
//!
//! Device `cpu` has nothing to compile or to choose, so it captures the very first step, too. With later numbers of
//! rows it also waits for the second call, because it does not round numbers up: with some numbers there is only one.
//!
//! One graph holds the whole step. On device `cpu`, if the launches of the step are too small to be shared by several
//! threads, the threads share the step ([`SharedStep`]).

use std::collections::{BTreeMap, BTreeSet};

use super::{CapturedGraph, Device, Kernels, SharedStep};
use crate::error::RuntimeError;

/// The threads of device `cpu` share a step if its launches have on average at most this many operations and at most
/// [`SPLIT_MAX_BYTES`] bytes: handing such a launch to another thread takes about as long as computing it.
const SPLIT_MAX_FLOPS: f64 = 1e6;
/// Maximum average number of bytes per launch, see [`SPLIT_MAX_FLOPS`].
const SPLIT_MAX_BYTES: f64 = 256e3;
/// Minimum number of bytes of a shared step from which its products are divided by columns: fewer stay in the caches of
/// every core.
const COLUMNS_MIN_BYTES: f64 = 1e6;

/// Captures a repeated step when it runs for the second time with the same number of rows (sequences of the batch),
/// and replays the graph from then on.
#[derive(Debug)]
pub struct GraphCache {
    device: Device,
    enabled: bool,
    /// The step for each number of rows.
    steps: BTreeMap<usize, Step>,
    /// Numbers of rows with which the step has run once. The first run does work that a capture must not contain.
    warmed_up: BTreeSet<usize>,
    captures: usize,
}

/// A captured step.
#[derive(Debug)]
enum Step {
    Whole(CapturedGraph),
    Shared(SharedStep),
}

impl GraphCache {
    /// An empty cache. If it is not `enabled`, every run launches the step directly.
    pub fn new(device: &Device, enabled: bool) -> GraphCache {
        let (steps, warmed_up) = (BTreeMap::new(), BTreeSet::new());
        GraphCache { device: device.clone(), enabled, steps, warmed_up, captures: 0 }
    }

    /// How often a step was captured so far.
    pub fn capture_count(&self) -> usize {
        self.captures
    }

    /// Runs the step over the first `rows` rows. `slice(first, count)` gives the state of a range of rows, which
    /// shares memory with the whole state. `launch` enqueues the step for such a state; it must make the same
    /// launches each time.
    ///
    /// # Errors
    /// The error of `slice`, `launch` or the device.
    pub fn run<S, E>(
        &mut self,
        rows: usize,
        slice: impl Fn(usize, usize) -> Result<S, E>,
        launch: impl Fn(&S) -> Result<(), E>,
    ) -> Result<(), E>
    where
        S: Clone + Send + Sync + 'static,
        E: From<RuntimeError>,
    {
        let is_cpu = self.device.kernels() == Kernels::Cpu;
        let may_capture = self.warmed_up.contains(&rows) || (is_cpu && self.warmed_up.is_empty());
        if self.enabled && !self.steps.contains_key(&rows) && may_capture {
            if is_cpu {
                // Device `cpu` does not round the number of rows up, so it changes whenever a sequence ends. Graphs
                // for earlier numbers are seldom used again and would keep memory.
                self.steps.clear();
            }
            let step = self.capture(rows, &slice, &launch)?;
            self.steps.insert(rows, step);
            self.captures += 1;
        }
        match self.steps.get(&rows) {
            Some(Step::Whole(graph)) => self.device.replay(graph)?,
            Some(Step::Shared(step)) => self.device.replay_shared(step)?,
            None => launch(&slice(0, rows)?)?,
        }
        self.warmed_up.insert(rows);
        Ok(())
    }

    fn capture<S, E>(
        &self,
        rows: usize,
        slice: impl Fn(usize, usize) -> Result<S, E>,
        launch: impl Fn(&S) -> Result<(), E>,
    ) -> Result<Step, E>
    where
        S: Clone + Send + Sync + 'static,
        E: From<RuntimeError>,
    {
        let state = slice(0, rows)?;
        let whole = self.device.capture(state.clone(), || launch(&state))?;
        let threads = if self.device.kernels() == Kernels::Cpu { self.device.threads().min(rows) } else { 1 };
        let (cost, launches) = (whole.max_cost(), whole.launch_count() as f64);
        if threads < 2 || cost.flops > SPLIT_MAX_FLOPS * launches || cost.bytes > SPLIT_MAX_BYTES * launches {
            return Ok(Step::Whole(whole));
        }
        let capture_part = |i: usize| {
            let part = i * rows / threads..(i + 1) * rows / threads;
            let state = slice(part.start, part.len())?;
            let graph = self.device.capture_part(&whole, (part.clone(), rows), state.clone(), || launch(&state))?;
            Ok((part, graph))
        };
        let parts = (0..threads).map(capture_part).collect::<Result<_, E>>()?;
        Ok(Step::Shared(SharedStep::new(whole, parts, cost.bytes >= COLUMNS_MIN_BYTES)?))
    }
}
