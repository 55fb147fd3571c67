//! The captured graphs of one repeated step, such as a decode step: one entry for each number of rows that the step
//! runs with.
//!
//! ```text
//! run(rows):
//!     first call with this number of rows    launch the step directly: compiles kernels, chooses matmul algorithms
//!     second call                            capture the step, then replay the graphs
//!     later calls                            replay the graphs
//! ```
//!
//! One graph holds the whole step, with one exception. On device `cpu`, if the launches of the step are too small to be
//! worth sharing, the rows are split into one graph for each thread, and the threads meet only at the end of the step.
//! The bits of a row do not depend on the thread that computes it.

use std::collections::{BTreeMap, BTreeSet};

use super::{CapturedGraph, Device, Kernels};
use crate::error::RuntimeError;

/// A step whose launches have at most this many operations and [`SPLIT_MAX_BYTES`] bytes on average is split by rows:
/// handing such a launch to another thread takes about as long as computing it.
const SPLIT_MAX_FLOPS: f64 = 1e6;
/// See [`SPLIT_MAX_FLOPS`].
const SPLIT_MAX_BYTES: f64 = 256e3;

/// Captures a repeated step when it runs for the second time with a number of rows, and replays it from then on.
#[derive(Debug)]
pub struct GraphCache {
    device: Device,
    enabled: bool,
    /// By number of rows; several graphs of one entry compute disjoint ranges of the rows.
    graphs: BTreeMap<usize, Vec<CapturedGraph>>,
    /// Numbers of rows that have run once. The first run does work that must not happen inside a capture.
    warmed_up: BTreeSet<usize>,
    captures: usize,
}

impl GraphCache {
    /// An empty cache. If it is not `enabled`, every run launches the step directly.
    pub fn new(device: &Device, enabled: bool) -> GraphCache {
        let (graphs, warmed_up) = (BTreeMap::new(), BTreeSet::new());
        GraphCache { device: device.clone(), enabled, graphs, warmed_up, captures: 0 }
    }

    /// How often a step was captured so far.
    pub fn captures(&self) -> usize {
        self.captures
    }

    /// Runs the step over the first `rows` rows. `slice(first, count)` gives the state of a range of rows, which shares
    /// memory with the whole state; `launch` launches the step for such a state, always with the same launches.
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
        if self.enabled && !self.graphs.contains_key(&rows) && self.warmed_up.contains(&rows) {
            if self.device.kernels() == Kernels::Cpu {
                // There, row counts are not rounded: each one occurs for a while and does not return, and its graphs
                // would keep memory.
                self.graphs.clear();
            }
            let graphs = self.capture(rows, &slice, &launch)?;
            self.graphs.insert(rows, graphs);
            self.captures += 1;
        }
        match self.graphs.get(&rows) {
            Some(graphs) => self.device.replay_parallel(graphs)?,
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
    ) -> Result<Vec<CapturedGraph>, E>
    where
        S: Clone + Send + Sync + 'static,
        E: From<RuntimeError>,
    {
        let capture = |state: S| self.device.capture(state.clone(), || launch(&state));
        let whole = capture(slice(0, rows)?)?;
        let threads = if self.device.kernels() == Kernels::Cpu { self.device.threads().min(rows) } else { 1 };
        let (cost, launches) = (whole.cost(), whole.launches() as f64);
        if threads < 2 || cost.flops > SPLIT_MAX_FLOPS * launches || cost.bytes > SPLIT_MAX_BYTES * launches {
            return Ok(vec![whole]);
        }
        drop(whole);
        let ends = (0..=threads).map(|i| i * rows / threads).collect::<Vec<_>>();
        ends.windows(2).map(|w| capture(slice(w[0], w[1] - w[0])?)).collect()
    }
}
