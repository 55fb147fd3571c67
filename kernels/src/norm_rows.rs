//! Code that the normalisation kernels share: the launch plans of RMS and layer normalisation in CUDA, and the loops
//! over rows of device `cpu` (rows that are independent, and rows whose weight gradients are summed over all rows).
//!
//! `rms_norm`, `layer_norm` and `normalise` give the arithmetic of one row. Bits do not depend on the number of
//! threads: a row is computed by one thread, and the sums over rows have a fixed order (see
//! [`for_each_row_with_column_sums`]).
#![allow(unsafe_code)]

use reel_device::cpu::simd::add_to_sums;
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Addr, Arch, Stage, Team};

use crate::cuh;

/// Number of consecutive rows that device `cpu` sums first. A column's sum first adds the rows of each block, then the
/// sums of the blocks.
pub(crate) const ROWS_PER_BLOCK: usize = 64;

/// The number of rows that a block of a CUDA backward kernel with column sums processes (`norm_rows.cuh`).
const fn rows_per_cuda_block(rows: usize) -> usize {
    let even = rows.div_ceil(132).next_multiple_of(16);
    if even < 48 {
        48
    } else if even > 256 {
        256
    } else {
        even
    }
}

/// Approximate number of elements that one task computes.
const TASK: usize = 16 * 1024;

/// Number of columns that one task sums over all blocks of rows.
const COLUMNS: usize = 512;

/// Plans the forward kernel of RMS or layer normalisation. `symbols` are the kernel for rows of usual length and the
/// kernel for long rows.
pub(crate) fn plan_fwd(symbols: [&'static str; 2], rows: u32, cols: u32, arch: &Arch) -> Vec<Stage> {
    cuh::ThreadsPerRow::new(cols).plan_row_loop(symbols, rows, 256, if cols > 4096 { 1 } else { 4 }, arch)
}

/// Plans the backward kernel of RMS normalisation. The symbols are the kernel for rows of usual length, the
/// kernel for long rows, and the kernel that adds up the column sums of all blocks of rows. If `dw` is null, no column
/// sums are computed.
pub(crate) fn plan_bwd(symbols: [&'static str; 3], [rows, cols]: [u32; 2], dw: Addr, arch: &Arch) -> Vec<Stage> {
    plan_bwd_with_sums(symbols, [rows, cols], dw, cols.into(), arch)
}

/// Like [`plan_bwd`], for a kernel with `columns` column sums per block of rows; `sums` is null if it computes none.
pub(crate) fn plan_bwd_with_sums(
    [usual, wide, sum]: [&'static str; 3],
    [rows, cols]: [u32; 2],
    sums: Addr,
    columns: u64,
    arch: &Arch,
) -> Vec<Stage> {
    let held = cuh::ThreadsPerRow::new(cols);
    match sums {
        Addr::NULL => held.plan_row_loop([usual, wide], rows, 512, 1, arch),
        _ => {
            let blocks = (rows as usize).div_ceil(rows_per_cuda_block(rows as usize));
            held.plan_column_sums([usual, wide], sum, blocks as u64, columns)
        }
    }
}

/// Returns the largest number of blocks into which a device divides `rows` rows. `partial`, the workspace of the
/// backward kernel, has the column sums of each block.
pub const fn row_block_count(rows: usize) -> usize {
    let (cpu, cuda) = (rows.div_ceil(ROWS_PER_BLOCK), rows.div_ceil(rows_per_cuda_block(rows)));
    if cpu > cuda { cpu } else { cuda }
}

/// An f32 `[rows]` output that may be absent.
#[derive(Clone, Copy)]
pub(crate) struct OptionalRowOutput(Option<OutputArray<f32>>);

impl OptionalRowOutput {
    /// Returns the array of `rows` elements at `addr`. If `addr` is null, writes are dropped.
    ///
    /// # Safety
    /// `addr` is null or covers `rows` elements that nothing else uses while this value lives.
    pub(crate) unsafe fn new(addr: Addr, rows: usize) -> OptionalRowOutput {
        // SAFETY: `addr` is not null here, so it covers `rows` elements.
        OptionalRowOutput((!addr.is_null()).then(|| unsafe { OutputArray::new(addr, rows) }))
    }

    /// Stores the value that belongs to row `row`.
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
pub(crate) fn for_each_row(team: &Team, rows: usize, cols: usize, each: impl Fn(usize) + Sync) {
    let step = (TASK / cols.max(1)).max(1);
    team.run(rows.div_ceil(step), |task| (task * step..(task * step + step).min(rows)).for_each(&each));
}

/// Calls `each(row, sums)` for every row, and writes the sums over all rows to the N f32 arrays `targets` of `cols`
/// elements, or adds them where the target's flag is set. `each` adds a row's contributions to `sums`, whose elements
/// from `t * cols` on belong to target `t`. The sum of a null target is dropped; `sums` is empty if all are null.
///
/// Order of a sum: first the rows of each part ([`ROWS_PER_BLOCK`] rows) in ascending order, then the parts in
/// ascending order, then the old value of the target if its flag is set.
///
/// # Safety
/// Each target covers `cols` elements or is null; `partial` covers `[rows / ROWS_PER_BLOCK rounded up, N, cols]`
/// elements unless all are null. Nothing else uses these arrays during the call.
pub(crate) unsafe fn for_each_row_with_column_sums<const N: usize>(
    team: &Team,
    rows: usize,
    cols: usize,
    targets: [(Addr, bool); N],
    partial: Addr,
    each: impl Fn(usize, &mut [f32]) + Sync,
) {
    if targets.iter().all(|(target, _)| target.is_null()) {
        // Without column sums the rows are independent, so a task may have fewer rows than a block.
        return for_each_row(team, rows, cols, |row| each(row, &mut []));
    }
    let (parts, len) = (rows.div_ceil(ROWS_PER_BLOCK), N * cols);
    // SAFETY: a target is not null here, so `partial` covers `parts * len` elements.
    let sums = unsafe { OutputArray::<f32>::new(partial, parts * len) };
    team.run(parts, |part| {
        // SAFETY: parts do not overlap.
        let sums = unsafe { sums.part(part * len, len) };
        sums.fill(0.0);
        (part * ROWS_PER_BLOCK..(part * ROWS_PER_BLOCK + ROWS_PER_BLOCK).min(rows)).for_each(|row| each(row, sums));
    });
    // SAFETY: `partial` covers `parts * len` elements; all parts are written, and nothing writes them any more.
    let sums = unsafe { slice_at::<f32>(partial, parts * len) };
    for (t, (target, accumulate)) in targets.into_iter().enumerate().filter(|(_, (target, _))| !target.is_null()) {
        // SAFETY: a target that is not null covers `cols` elements.
        let target = unsafe { OutputArray::<f32>::new(target, cols) };
        team.run(cols.div_ceil(COLUMNS), |task| {
            let (start, len) = (task * COLUMNS, COLUMNS.min(cols - task * COLUMNS));
            let mut sum = [0.0; COLUMNS];
            for part in 0..parts {
                add_to_sums(&sums[(part * N + t) * cols + start..][..len], &mut sum[..len]);
            }
            // SAFETY: column ranges do not overlap.
            let target = unsafe { target.part(start, len) };
            match accumulate {
                true => add_to_sums(&sum[..len], target),
                false => target.copy_from_slice(&sum[..len]),
            }
        });
    }
}
