//! The two passes of a separable resize: [`resize_along_rows`] changes the width, [`resize_down_columns`] the height.
//! Each output sample is the sum of its taps in one fixed order, so its bits do not depend on the number of threads or
//! on the SIMD width.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::taps::{FilterTaps, WEIGHT_FRACTION_BITS};

/// Number of rows that [`resize_along_rows`] processes together: each SIMD lane holds one row, and all lanes are at the
/// same column.
const LANES: usize = 16;
/// Number of neighbouring samples of an output row whose sums [`resize_down_columns`] keeps in registers.
const COLUMNS: usize = 64;
const CHANNELS: usize = 3;

/// The number format in which a weighted sum is computed: [`FixedPoint`] or [`FloatingPoint`].
pub(super) trait FilterArithmetic {
    /// Type of accumulators and weights.
    type Lane: Copy + Send + Sync;
    /// Initial value of an accumulator.
    const START: Self::Lane;
    fn multiply_add(sum: Self::Lane, sample: Self::Lane, weight: Self::Lane) -> Self::Lane;
}

/// A sample type in memory (u8 or f32) that can be loaded into an accumulator and stored from it.
pub(super) trait PixelSample<A: FilterArithmetic>: Copy + Default + Send + Sync {
    fn load(self) -> A::Lane;
    fn store(sum: A::Lane) -> Self;
}

/// Pillow's arithmetic: i32 with [`WEIGHT_FRACTION_BITS`] fractional bits. `START` is one half, so that the final shift
/// rounds.
pub(super) struct FixedPoint;

impl FilterArithmetic for FixedPoint {
    type Lane = i32;
    const START: i32 = 1 << (WEIGHT_FRACTION_BITS - 1);

    #[inline(always)]
    fn multiply_add(sum: i32, sample: i32, weight: i32) -> i32 {
        sum.wrapping_add(sample.wrapping_mul(weight))
    }
}

impl PixelSample<FixedPoint> for u8 {
    #[inline(always)]
    fn load(self) -> i32 {
        i32::from(self)
    }
    #[inline(always)]
    fn store(sum: i32) -> u8 {
        (sum >> WEIGHT_FRACTION_BITS).clamp(0, 255) as u8
    }
}

/// PyTorch's arithmetic: f32 with fused multiply-add.
pub(super) struct FloatingPoint;

impl FilterArithmetic for FloatingPoint {
    type Lane = f32;
    const START: f32 = 0.0;

    #[inline(always)]
    fn multiply_add(sum: f32, sample: f32, weight: f32) -> f32 {
        sample.mul_add(weight, sum)
    }
}

impl PixelSample<FloatingPoint> for u8 {
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from(self)
    }
    #[inline(always)]
    fn store(sum: f32) -> u8 {
        sum.clamp(0.0, 255.0).round_ties_even() as u8
    }
}

impl PixelSample<FloatingPoint> for f32 {
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }
    #[inline(always)]
    fn store(sum: f32) -> f32 {
        sum
    }
}

/// Resizes each row of `source` `[H, width, 3]` into `target` `[H, taps.output_len(), 3]`.
pub(super) fn resize_along_rows<A: FilterArithmetic, I: PixelSample<A>, O: PixelSample<A>>(
    source: &[I],
    width: usize,
    taps: &FilterTaps<A::Lane>,
    target: &mut [O],
) {
    let (source_row, target_row) = (width * CHANNELS, taps.output_len() * CHANNELS);
    let arch = pulp::Arch::new();
    target.par_chunks_mut(LANES * target_row).zip(source.par_chunks(LANES * source_row)).for_each_init(
        || vec![[I::default().load(); LANES]; source_row],
        |transposed, (to, from)| {
            arch.dispatch(Rows::<A, I, O> { from, transposed, taps, to });
        },
    );
}

/// One task of [`resize_along_rows`]: up to [`LANES`] rows. It is a type instead of a closure because pulp compiles
/// implementations of `WithSimd` for each instruction set and picks the widest one at run time.
struct Rows<'a, A: FilterArithmetic, I, O> {
    from: &'a [I],
    /// Workspace `[W * 3][LANES]`: the source rows, transposed so that each SIMD lane holds one row.
    transposed: &'a mut [[A::Lane; LANES]],
    taps: &'a FilterTaps<A::Lane>,
    to: &'a mut [O],
}

impl<A: FilterArithmetic, I: PixelSample<A>, O: PixelSample<A>> WithSimd for Rows<'_, A, I, O> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { from, transposed, taps, to } = self;
        for (lane, row) in from.chunks_exact(transposed.len()).enumerate() {
            for (cell, &sample) in transposed.iter_mut().zip(row) {
                cell[lane] = sample.load();
            }
        }
        let target_row = taps.output_len() * CHANNELS;
        for x in 0..taps.output_len() {
            let (first, weights) = taps.first_source_index_and_weights(x);
            let mut sums = [[A::START; LANES]; CHANNELS];
            let pixels = transposed[first * CHANNELS..].chunks_exact(CHANNELS);
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

/// Resizes each column of `source` `[H, row]` into `target` `[taps.output_len(), row]`, where `row` is W * 3 samples.
pub(super) fn resize_down_columns<A: FilterArithmetic, I: PixelSample<A>, O: PixelSample<A>>(
    source: &[I],
    row: usize,
    taps: &FilterTaps<A::Lane>,
    target: &mut [O],
) {
    let arch = pulp::Arch::new();
    target.par_chunks_mut(row).enumerate().for_each(|(y, to)| {
        let (first, weights) = taps.first_source_index_and_weights(y);
        arch.dispatch(Columns::<A, I, O> { from: &source[first * row..], weights, to });
    });
}

/// One task of [`resize_down_columns`]: it computes one row of the target. `from` begins at the first source row whose
/// weight is not zero.
struct Columns<'a, A: FilterArithmetic, I, O> {
    from: &'a [I],
    weights: &'a [A::Lane],
    to: &'a mut [O],
}

impl<A: FilterArithmetic, I: PixelSample<A>, O: PixelSample<A>> WithSimd for Columns<'_, A, I, O> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { from, weights, to } = self;
        let row = to.len();
        for (block, to) in to.chunks_mut(COLUMNS).enumerate() {
            let mut sums = [A::START; COLUMNS];
            for (line, &weight) in from.chunks_exact(row).zip(weights) {
                let line = &line[block * COLUMNS..][..to.len()];
                // A full block has a length known at compile time, so the compiler vectorises this loop; the last
                // block of a row may be shorter.
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
