//! A captured step whose launches are so small that handing each of them to other threads takes about as long as
//! computing it, as a decode step of a small model. The threads of device `cpu` share the step instead of each launch:
//!
//! ```text
//! for each phase:                                  # the threads wait for each other at its end
//!     rows       thread i: the launches of the phase, for its rows of the batch
//!     columns    thread i: its columns of each product of the phase, for all rows
//! ```
//!
//! A row of any launch but a product depends on the same row of those before it, so a thread needs no other thread's
//! rows. A product reads a whole weight, however few its rows are. With its columns divided, each thread reads a part
//! of each weight, which then stays in the cache of its core from step to step. Products that follow each other and
//! read the same rows are one phase.
//!
//! The bits of an element do not depend on the thread that computes it, nor on what else it computes.

use std::ops::Range;
use std::sync::Arc;

use reel_kernels::matmul::Matmul;
use reel_kernels::{Addr, Launch};

use super::CapturedGraph;
use crate::device::Device;
use crate::error::{Result, RuntimeError};

/// A step that is captured for all rows, and once more for the rows of each thread.
#[derive(Debug)]
pub struct SharedStep {
    whole: CapturedGraph,
    /// The owners of what the phases use.
    parts: Vec<CapturedGraph>,
    phases: Vec<Phase>,
}

/// What the threads compute before they wait for each other.
#[derive(Debug)]
pub(in crate::device) enum Phase {
    /// The launches of each part of the rows.
    Rows(Vec<Vec<Launch>>),
    /// Products whose columns are divided; none reads what another one writes.
    Columns(Vec<Matmul>),
}

impl SharedStep {
    /// Divides the step `whole`. `parts` are the same step for ranges of its rows, captured in its memory
    /// ([`Device::capture_part`]). With `by_columns`, products are divided by columns.
    ///
    /// # Errors
    /// A part has another number of launches than the whole step.
    pub(in crate::device) fn new(
        whole: CapturedGraph,
        parts: Vec<(Range<usize>, CapturedGraph)>,
        by_columns: bool,
    ) -> Result<SharedStep> {
        let (ranges, parts): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        if let Some(part) = parts.iter().find(|part| part.launch_count() != whole.launch_count()) {
            let (all, some) = (whole.launch_count(), part.launch_count());
            return Err(RuntimeError::Device(format!(
                "shared step: has {all} launches for all rows and {some} for some of them; launch the same for any rows"
            )));
        }
        let mut phases: Vec<Phase> = Vec::new();
        for (index, launch) in whole.launches.iter().enumerate() {
            let of_parts = || parts.iter().map(|part| &part.launches[index]);
            let product = match launch {
                Launch::Matmul(p) if by_columns && has_parts(p, ranges.iter().cloned().zip(of_parts())) => Some(p),
                _ => None,
            };
            match (product, phases.last_mut()) {
                (Some(p), Some(Phase::Columns(products))) if products[0].a == p.a => products.push(*p),
                (Some(p), _) => phases.push(Phase::Columns(vec![*p])),
                (None, Some(Phase::Rows(lists))) => {
                    lists.iter_mut().zip(of_parts()).for_each(|(list, launch)| list.push(launch.clone()));
                }
                (None, _) => phases.push(Phase::Rows(of_parts().map(|launch| vec![launch.clone()]).collect())),
            }
        }
        Ok(SharedStep { whole, parts, phases })
    }

    /// The number of parts into which the step is divided.
    pub(in crate::device) fn part_count(&self) -> usize {
        self.parts.len()
    }
}

/// Whether products of ranges of rows are the parts of product `p`: they read the same B, and their rows of A and C
/// are those of `p`.
fn has_parts<'a>(p: &Matmul, mut parts: impl Iterator<Item = (Range<usize>, &'a Launch)>) -> bool {
    let row = |addr: Addr, row: usize, elements: usize, bytes: usize| Addr(addr.0 + (row * elements * bytes) as u64);
    !p.a.transposed
        && !p.b.transposed
        && parts.all(|(rows, launch)| {
            let mut part = Matmul { m: rows.len(), ..*p };
            part.a.addr = row(p.a.addr, rows.start, p.k, p.a.dtype.size());
            part.c = row(p.c, rows.start, p.n, p.c_dtype.size());
            matches!(launch, Launch::Matmul(found) if *found == part)
        })
}

impl Device {
    /// Enqueues the launches of a shared step.
    ///
    /// # Errors
    /// The step belongs to another device; a launch fails.
    pub fn replay_shared(&self, step: &SharedStep) -> Result<()> {
        // A profile has the time of each launch, not of its parts. `replay` also refuses another device's step.
        if self.0.profile.is_collecting() || !Arc::ptr_eq(&self.0, &step.whole.memory.device.0) {
            return self.replay(&step.whole);
        }
        self.0.backend.launch_phases(&step.phases, step.part_count())
    }
}

#[cfg(test)]
mod tests;
