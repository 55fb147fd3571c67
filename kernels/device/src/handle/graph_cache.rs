//! The captured graphs of one repeated step, such as a decode step, by the number of rows that the step computes.
//!
//! ```text
//! run_step(rows):
//!     first call with this number of rows    launch the step directly: compiles kernels, chooses matmul algorithms
//!     second call                            capture the step, then replay the graphs
//!     later calls                            replay the graphs
//! ```
//!
//! Device `cpu` has nothing to compile or to choose, so it captures the very first step too. For every later number
//! of rows it waits for the second call. It does not round the number of rows up, so some numbers occur in only one
//! step.

use std::collections::{BTreeMap, BTreeSet};

use super::{CapturedGraph, Device};
use crate::capabilities::Kernels;
use crate::error::DeviceError;

/// Captures a repeated step at its second run with the same number of rows (sequences of the batch), and replays the
/// graph from then on.
#[derive(Debug)]
pub struct GraphCache {
    device: Device,
    enabled: bool,
    /// The captured step for each number of rows.
    graphs: BTreeMap<usize, CapturedGraph>,
    /// Numbers of rows for which the step has run once. The first run does work that a capture must not contain, such
    /// as compiling kernels.
    warmed_up: BTreeSet<usize>,
    captures: usize,
}

impl GraphCache {
    /// Creates an empty cache. If `enabled` is false, every run launches the step directly.
    pub fn new(device: &Device, enabled: bool) -> GraphCache {
        let (graphs, warmed_up) = (BTreeMap::new(), BTreeSet::new());
        GraphCache { device: device.clone(), enabled, graphs, warmed_up, captures: 0 }
    }

    /// The number of captures so far.
    pub fn capture_count(&self) -> usize {
        self.captures
    }

    /// Runs the step over the first `rows` rows. `first_rows(rows)` returns the state of these rows, which shares
    /// memory with the state of all rows. `launch` enqueues the step for such a state, and must make the same
    /// launches each time.
    ///
    /// # Errors
    /// The error of `first_rows`, `launch` or the device.
    pub fn run_step<S, E>(
        &mut self,
        rows: usize,
        first_rows: impl Fn(usize) -> Result<S, E>,
        launch: impl Fn(&S) -> Result<(), E>,
    ) -> Result<(), E>
    where
        S: Clone + Send + Sync + 'static,
        E: From<DeviceError>,
    {
        let is_cpu = self.device.kernels() == Kernels::Cpu;
        let may_capture = self.warmed_up.contains(&rows) || (is_cpu && self.warmed_up.is_empty());
        if self.enabled && !self.graphs.contains_key(&rows) && may_capture {
            if is_cpu {
                // Device `cpu` does not round the number of rows up, so this number changes whenever a sequence ends.
                // Graphs for earlier numbers of rows are seldom used again and would occupy memory.
                self.graphs.clear();
            }
            let state = first_rows(rows)?;
            let graph = self.device.capture(state.clone(), || launch(&state))?;
            self.graphs.insert(rows, graph);
            self.captures += 1;
        }
        match self.graphs.get(&rows) {
            Some(graph) => self.device.replay(graph)?,
            None => launch(&first_rows(rows)?)?,
        }
        self.warmed_up.insert(rows);
        Ok(())
    }
}
