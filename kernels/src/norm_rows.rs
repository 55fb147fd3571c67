//! The row loops that the normalisation kernels share on device `cpu`: independent rows, and rows whose gradients of
//! the weights are summed over the rows.
//!
//! `rms_norm`, `layer_norm` and `normalise` give the arithmetic of one row. Bits do not depend on the number of
//! threads: a row is computed by one thread, and the sums over rows have a fixed order (see
//! [`rows_with_column_sums`]).
#![allow(unsafe_code)]

use crate::view::{Out, slice};
use crate::{Addr, Team, simd_fn};

/// Rows of one part. A column sum is computed within each part first, then over the parts.
pub(crate) const PART_ROWS: usize = 64;

/// Approximate number of elements that one task computes.
const TASK: usize = 16 * 1024;

/// Columns that one task sums over the parts.
const COLUMNS: usize = 512;

simd_fn! {
    fn add(x: &[f32], sum: &mut [f32]) {
        for (x, sum) in x.iter().zip(sum) {
            *sum += x;
        }
    }
}

/// An f32 `[rows]` output that may be absent.
#[derive(Clone, Copy)]
pub(crate) struct RowValues(Option<Out<f32>>);

impl RowValues {
    /// The array of `rows` elements at `addr`; writes are dropped if `addr` is null.
    ///
    /// # Safety
    /// `addr` is null or covers `rows` elements that nothing else uses while this value lives.
    pub(crate) unsafe fn new(addr: Addr, rows: usize) -> RowValues {
        // SAFETY: `addr` is not null here, so it covers `rows` elements.
        RowValues((!addr.is_null()).then(|| unsafe { Out::new(addr, rows) }))
    }

    /// Stores the value of a row.
    ///
    /// # Safety
    /// No other thread stores the value of this row.
    pub(crate) unsafe fn set(self, row: usize, value: f32) {
        if let Some(out) = self.0 {
            // SAFETY: no other thread stores the value of this row.
            let one = unsafe { out.part(row, 1) };
            one[0] = value;
        }
    }
}

/// Calls `each` for every row on the team's threads; a task has about [`TASK`] elements.
pub(crate) fn rows(team: &Team, rows: usize, cols: usize, each: impl Fn(usize) + Sync) {
    let step = (TASK / cols.max(1)).max(1);
    team.run(rows.div_ceil(step), |task| (task * step..(task * step + step).min(rows)).for_each(&each));
}

/// Calls `each(row, sums)` for every row and adds the sums over all rows to `targets`, N f32 arrays of `cols`
/// elements. `each` adds a row's contributions to `sums`, in which target `t` has `cols` elements at `t * cols`;
/// `sums` is empty if the targets are null.
///
/// Order of a sum: the rows of a part of [`PART_ROWS`] rows in ascending order, then the parts in ascending order,
/// then the value in the target.
///
/// # Safety
/// Each target covers `cols` elements, or all are null; `partial` covers `[rows / PART_ROWS rounded up, N, cols]`
/// elements unless they are null. Nothing else uses them meanwhile.
pub(crate) unsafe fn rows_with_column_sums<const N: usize>(
    team: &Team,
    rows: usize,
    cols: usize,
    targets: [Addr; N],
    partial: Addr,
    each: impl Fn(usize, &mut [f32]) + Sync,
) {
    if targets[0].is_null() {
        // Without column sums the rows are independent, so a task may be smaller than a part.
        return self::rows(team, rows, cols, |row| each(row, &mut []));
    }
    let (parts, len) = (rows.div_ceil(PART_ROWS), N * cols);
    // SAFETY: the targets are not null here, so `partial` covers `parts * len` elements.
    let sums = unsafe { Out::<f32>::new(partial, parts * len) };
    team.run(parts, |part| {
        // SAFETY: parts do not overlap.
        let sums = unsafe { sums.part(part * len, len) };
        sums.fill(0.0);
        (part * PART_ROWS..(part * PART_ROWS + PART_ROWS).min(rows)).for_each(|row| each(row, sums));
    });
    // SAFETY: `partial` covers `parts * len` elements; all parts are written, and nothing writes them any more.
    let sums = unsafe { slice::<f32>(partial, parts * len) };
    for (t, target) in targets.into_iter().enumerate() {
        // SAFETY: each target covers `cols` elements.
        let target = unsafe { Out::<f32>::new(target, cols) };
        team.run(cols.div_ceil(COLUMNS), |task| {
            let (start, len) = (task * COLUMNS, COLUMNS.min(cols - task * COLUMNS));
            let mut sum = [0.0; COLUMNS];
            for part in 0..parts {
                add(&sums[(part * N + t) * cols + start..][..len], &mut sum[..len]);
            }
            // SAFETY: column ranges do not overlap.
            add(&sum[..len], unsafe { target.part(start, len) });
        });
    }
}
