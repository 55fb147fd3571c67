//! The two passes of a separable resize: along the rows first, then along the columns, one fixed order of summation a
//! sample, whatever the number of threads.

use rayon::prelude::*;

use super::taps::{PRECISION_BITS, Taps};

/// Rows that the first pass takes at once, so that neighbouring lanes hold the same sample of different rows.
const LANES: usize = 16;
/// Samples of a row that the second pass keeps in registers.
const COLUMNS: usize = 64;
const CHANNELS: usize = 3;

/// The arithmetic of a resize: what is accumulated, and what is kept between the passes.
pub(super) trait Arithmetic: Sync {
    /// Accumulator and weight.
    type Lane: Copy + Send + Sync;
    /// A sample between the passes.
    type Mid: Copy + Default + Send + Sync;
    const START: Self::Lane;
    fn load(sample: u8) -> Self::Lane;
    fn multiply_add(sum: Self::Lane, sample: Self::Lane, weight: Self::Lane) -> Self::Lane;
    fn to_mid(sum: Self::Lane) -> Self::Mid;
    fn load_mid(sample: Self::Mid) -> Self::Lane;
    fn to_u8(sum: Self::Lane) -> u8;
}

/// Pillow: integers with [`PRECISION_BITS`] fractional bits, rounded to u8 after each pass.
pub(super) struct Fixed;

impl Arithmetic for Fixed {
    type Lane = i32;
    type Mid = u8;
    const START: i32 = 1 << (PRECISION_BITS - 1);

    #[inline(always)]
    fn load(sample: u8) -> i32 {
        i32::from(sample)
    }
    #[inline(always)]
    fn multiply_add(sum: i32, sample: i32, weight: i32) -> i32 {
        sum.wrapping_add(sample.wrapping_mul(weight))
    }
    #[inline(always)]
    fn to_mid(sum: i32) -> u8 {
        Self::to_u8(sum)
    }
    #[inline(always)]
    fn load_mid(sample: u8) -> i32 {
        i32::from(sample)
    }
    #[inline(always)]
    fn to_u8(sum: i32) -> u8 {
        (sum >> PRECISION_BITS).clamp(0, 255) as u8
    }
}

/// PyTorch: f32 with fused multiply-adds, rounded once at the end (half to even).
pub(super) struct Float;

impl Arithmetic for Float {
    type Lane = f32;
    type Mid = f32;
    const START: f32 = 0.0;

    #[inline(always)]
    fn load(sample: u8) -> f32 {
        f32::from(sample)
    }
    #[inline(always)]
    fn multiply_add(sum: f32, sample: f32, weight: f32) -> f32 {
        sample.mul_add(weight, sum)
    }
    #[inline(always)]
    fn to_mid(sum: f32) -> f32 {
        sum
    }
    #[inline(always)]
    fn load_mid(sample: f32) -> f32 {
        sample
    }
    #[inline(always)]
    fn to_u8(sum: f32) -> u8 {
        sum.clamp(0.0, 255.0).round_ties_even() as u8
    }
}

/// Resizes one picture u8 [H,W,3] (`width` = W) into `target` u8 [vertical.len(), horizontal.len(), 3].
pub(super) fn resize<A: Arithmetic>(
    source: &[u8],
    width: usize,
    horizontal: &Taps<A::Lane>,
    vertical: &Taps<A::Lane>,
    target: &mut [u8],
) {
    let row = horizontal.len() * CHANNELS;
    let height = source.len() / (width * CHANNELS);
    let mut middle = vec![A::Mid::default(); height * row];
    // pulp picks the widest instructions of this processor; the bits are the same with all of them.
    let arch = pulp::Arch::new();
    middle
        .par_chunks_mut(LANES * row)
        .zip(source.par_chunks(LANES * width * CHANNELS))
        .for_each(|(to, from)| arch.dispatch(|| along_rows::<A>(from, width, horizontal, to)));
    target
        .par_chunks_mut(row)
        .enumerate()
        .for_each(|(y, to)| arch.dispatch(|| down_columns::<A>(&middle, y, vertical, to)));
}

/// First pass over up to [`LANES`] rows.
#[inline(always)]
fn along_rows<A: Arithmetic>(from: &[u8], width: usize, taps: &Taps<A::Lane>, to: &mut [A::Mid]) {
    let (source_row, target_row) = (width * CHANNELS, taps.len() * CHANNELS);
    let mut turned = vec![[A::load(0); LANES]; source_row]; // [W*3][LANES]
    for (lane, row) in from.chunks_exact(source_row).enumerate() {
        for (cell, &sample) in turned.iter_mut().zip(row) {
            cell[lane] = A::load(sample);
        }
    }
    for x in 0..taps.len() {
        let (first, weights) = taps.at(x);
        let mut sums = [[A::START; LANES]; CHANNELS];
        let pixels = turned[first * CHANNELS..].chunks_exact(CHANNELS);
        for (pixel, &weight) in pixels.zip(weights) {
            for (sums, samples) in sums.iter_mut().zip(pixel) {
                for (sum, &sample) in sums.iter_mut().zip(samples) {
                    *sum = A::multiply_add(*sum, sample, weight);
                }
            }
        }
        for (lane, row) in to.chunks_exact_mut(target_row).enumerate() {
            for (channel, sums) in sums.iter().enumerate() {
                row[x * CHANNELS + channel] = A::to_mid(sums[lane]);
            }
        }
    }
}

/// Second pass: output row `y`.
#[inline(always)]
fn down_columns<A: Arithmetic>(middle: &[A::Mid], y: usize, taps: &Taps<A::Lane>, to: &mut [u8]) {
    let row = to.len();
    let (first, weights) = taps.at(y);
    let rows = &middle[first * row..];
    for (block, to) in to.chunks_mut(COLUMNS).enumerate() {
        let mut sums = [A::START; COLUMNS];
        for (from, &weight) in rows.chunks_exact(row).zip(weights) {
            let from = &from[block * COLUMNS..][..to.len()];
            // The whole block has a length known when compiling; the last one of a row may be shorter.
            if let Ok(from) = <&[A::Mid; COLUMNS]>::try_from(from) {
                for (sum, &sample) in sums.iter_mut().zip(from) {
                    *sum = A::multiply_add(*sum, A::load_mid(sample), weight);
                }
            } else {
                for (sum, &sample) in sums.iter_mut().zip(from) {
                    *sum = A::multiply_add(*sum, A::load_mid(sample), weight);
                }
            }
        }
        for (to, &sum) in to.iter_mut().zip(&sums) {
            *to = A::to_u8(sum);
        }
    }
}
