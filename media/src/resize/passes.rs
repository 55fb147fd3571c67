//! The two passes of a separable resize, along the rows and down the columns: one fixed order of summation a sample,
//! whatever the number of threads.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::taps::{PRECISION_BITS, Taps};

/// Rows that [`along_rows`] takes at once, so that neighbouring lanes hold the same sample of different rows.
const LANES: usize = 16;
/// Samples of a row that [`down_columns`] keeps in registers.
const COLUMNS: usize = 64;
const CHANNELS: usize = 3;

/// The arithmetic of a weighted sum.
pub(super) trait Arithmetic {
    /// Accumulator and weight.
    type Lane: Copy + Send + Sync;
    const START: Self::Lane;
    fn multiply_add(sum: Self::Lane, sample: Self::Lane, weight: Self::Lane) -> Self::Lane;
}

/// How a sample in memory enters and leaves a sum.
pub(super) trait Sample<A: Arithmetic>: Copy + Default + Send + Sync {
    fn load(self) -> A::Lane;
    fn store(sum: A::Lane) -> Self;
}

/// Pillow's: integers with [`PRECISION_BITS`] fractional bits.
pub(super) struct Fixed;

impl Arithmetic for Fixed {
    type Lane = i32;
    const START: i32 = 1 << (PRECISION_BITS - 1);

    #[inline(always)]
    fn multiply_add(sum: i32, sample: i32, weight: i32) -> i32 {
        sum.wrapping_add(sample.wrapping_mul(weight))
    }
}

impl Sample<Fixed> for u8 {
    #[inline(always)]
    fn load(self) -> i32 {
        i32::from(self)
    }
    #[inline(always)]
    fn store(sum: i32) -> u8 {
        (sum >> PRECISION_BITS).clamp(0, 255) as u8
    }
}

/// PyTorch's: f32 with fused multiply-adds.
pub(super) struct Float;

impl Arithmetic for Float {
    type Lane = f32;
    const START: f32 = 0.0;

    #[inline(always)]
    fn multiply_add(sum: f32, sample: f32, weight: f32) -> f32 {
        sample.mul_add(weight, sum)
    }
}

impl Sample<Float> for u8 {
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from(self)
    }
    #[inline(always)]
    fn store(sum: f32) -> u8 {
        sum.clamp(0.0, 255.0).round_ties_even() as u8
    }
}

impl Sample<Float> for f32 {
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }
    #[inline(always)]
    fn store(sum: f32) -> f32 {
        sum
    }
}

/// Resizes each row: `source` [H,width,3] into `target` [H,taps.len(),3].
pub(super) fn along_rows<A: Arithmetic, I: Sample<A>, O: Sample<A>>(
    source: &[I],
    width: usize,
    taps: &Taps<A::Lane>,
    target: &mut [O],
) {
    let (source_row, target_row) = (width * CHANNELS, taps.len() * CHANNELS);
    let arch = pulp::Arch::new();
    target.par_chunks_mut(LANES * target_row).zip(source.par_chunks(LANES * source_row)).for_each_init(
        || vec![[I::default().load(); LANES]; source_row],
        |turned, (to, from)| {
            arch.dispatch(Rows::<A, I, O> { from, turned, taps, to });
        },
    );
}

/// One task of [`along_rows`]: up to [`LANES`] rows. It is a type, not a closure, so that pulp can compile it for the
/// widest instructions of the processor; the bits are the same with all of them.
struct Rows<'a, A: Arithmetic, I, O> {
    from: &'a [I],
    /// [W*3][LANES], the workspace.
    turned: &'a mut [[A::Lane; LANES]],
    taps: &'a Taps<A::Lane>,
    to: &'a mut [O],
}

impl<A: Arithmetic, I: Sample<A>, O: Sample<A>> WithSimd for Rows<'_, A, I, O> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { from, turned, taps, to } = self;
        for (lane, row) in from.chunks_exact(turned.len()).enumerate() {
            for (cell, &sample) in turned.iter_mut().zip(row) {
                cell[lane] = sample.load();
            }
        }
        let target_row = taps.len() * CHANNELS;
        for x in 0..taps.len() {
            let (first, weights) = taps.at(x);
            let mut sums = [[A::START; LANES]; CHANNELS];
            let pixels = turned[first * CHANNELS..].chunks_exact(CHANNELS);
            for (pixel, &weight) in pixels.zip(weights) {
                for channel in 0..CHANNELS {
                    for lane in 0..LANES {
                        sums[channel][lane] = A::multiply_add(sums[channel][lane], pixel[channel][lane], weight);
                    }
                }
            }
            for (lane, row) in to.chunks_exact_mut(target_row).enumerate() {
                for (channel, sums) in sums.iter().enumerate() {
                    row[x * CHANNELS + channel] = O::store(sums[lane]);
                }
            }
        }
    }
}

/// Resizes each column: `source` [H,row] into `target` [taps.len(),row], `row` = W * 3.
pub(super) fn down_columns<A: Arithmetic, I: Sample<A>, O: Sample<A>>(
    source: &[I],
    row: usize,
    taps: &Taps<A::Lane>,
    target: &mut [O],
) {
    let arch = pulp::Arch::new();
    target.par_chunks_mut(row).enumerate().for_each(|(y, to)| {
        let (first, weights) = taps.at(y);
        arch.dispatch(Columns::<A, I, O> { from: &source[first * row..], weights, to });
    });
}

/// One task of [`down_columns`]: one row of the target. `from` begins at its first source row.
struct Columns<'a, A: Arithmetic, I, O> {
    from: &'a [I],
    weights: &'a [A::Lane],
    to: &'a mut [O],
}

impl<A: Arithmetic, I: Sample<A>, O: Sample<A>> WithSimd for Columns<'_, A, I, O> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { from, weights, to } = self;
        let row = to.len();
        for (block, to) in to.chunks_mut(COLUMNS).enumerate() {
            let mut sums = [A::START; COLUMNS];
            for (line, &weight) in from.chunks_exact(row).zip(weights) {
                let line = &line[block * COLUMNS..][..to.len()];
                // A whole block has a length that the compiler knows; the last one of a row may be shorter.
                if let Ok(line) = <&[I; COLUMNS]>::try_from(line) {
                    for (sum, sample) in sums.iter_mut().zip(line) {
                        *sum = A::multiply_add(*sum, sample.load(), weight);
                    }
                } else {
                    for (sum, sample) in sums.iter_mut().zip(line) {
                        *sum = A::multiply_add(*sum, sample.load(), weight);
                    }
                }
            }
            for (to, &sum) in to.iter_mut().zip(&sums) {
                *to = O::store(sum);
            }
        }
    }
}
