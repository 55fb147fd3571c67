//! The two passes of a separable resize: [`resize_along_rows`] changes the width, [`resize_down_columns`] the height.
//! Each output sample is the sum of its taps in one fixed order, so its bits do not depend on the number of threads or
//! on the SIMD width.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::taps::{FilterTaps, WEIGHT_FRACTION_BITS};

/// Number of rows that [`resize_along_rows`] processes together: each SIMD lane holds one row, and all lanes are at the
/// same column.
pub(super) const LANES: usize = 16;
/// Number of neighbouring samples of an output row whose sums [`resize_down_columns`] keeps in registers.
const COLUMNS: usize = 64;
const CHANNELS: usize = 3;

/// The number format in which a weighted sum is computed: [`FixedPoint`] or [`FloatingPoint`].
pub(super) trait FilterArithmetic: Sized {
    /// Type of accumulators and weights.
    type Lane: Copy + Send + Sync;
    /// Initial value of an accumulator.
    const START: Self::Lane;
    fn multiply_add(sum: Self::Lane, sample: Self::Lane, weight: Self::Lane) -> Self::Lane;

    /// The weighted sums of pixels in [`LANES`] rows. `pixels` holds the channels of the first pixel, of the second, ….
    #[inline(always)]
    fn weighted_sums<S: Simd>(_: S, pixels: &[[Self::Lane; LANES]], weights: &[Self::Lane]) -> LaneSums<Self> {
        let mut sums = [[Self::START; LANES]; CHANNELS];
        for (tap, &weight) in weights.iter().enumerate() {
            for (sums, samples) in sums.iter_mut().zip(&pixels[tap * CHANNELS..][..CHANNELS]) {
                for lane in 0..LANES {
                    sums[lane] = Self::multiply_add(sums[lane], samples[lane], weight);
                }
            }
        }
        sums
    }
}

/// A sum for each channel and row.
type LaneSums<A> = [[<A as FilterArithmetic>::Lane; LANES]; CHANNELS];

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

    /// Compilers unroll the loop over the rows and then compute each row alone, so the vectors are written out.
    #[inline(always)]
    fn weighted_sums<S: Simd>(simd: S, pixels: &[[f32; LANES]], weights: &[f32]) -> LaneSums<Self> {
        match S::F32_LANES {
            // Two vectors of each channel are summed at a time: one alone waits for its last addition.
            width if LANES.is_multiple_of(2 * width) => sums_of_vectors::<S, 2>(simd, pixels, weights),
            _ => sums_of_vectors::<S, 1>(simd, pixels, weights),
        }
    }
}

/// The sums of [`FilterArithmetic::weighted_sums`] by fused multiply-add of `N` vectors of each channel at a time.
#[inline(always)]
fn sums_of_vectors<S: Simd, const N: usize>(
    simd: S,
    pixels: &[[f32; LANES]],
    weights: &[f32],
) -> LaneSums<FloatingPoint> {
    let mut sums = [[0.0; LANES]; CHANNELS];
    for first in (0..LANES / S::F32_LANES).step_by(N) {
        let mut vectors = [[simd.splat_f32s(FloatingPoint::START); N]; CHANNELS];
        for (tap, &weight) in weights.iter().enumerate() {
            let weight = simd.splat_f32s(weight);
            let pixel = &pixels[tap * CHANNELS..][..CHANNELS];
            for channel in 0..CHANNELS {
                let samples = &S::as_simd_f32s(&pixel[channel]).0[first..first + N];
                for i in 0..N {
                    vectors[channel][i] = simd.mul_add_f32s(samples[i], weight, vectors[channel][i]);
                }
            }
        }
        for channel in 0..CHANNELS {
            S::as_mut_simd_f32s(&mut sums[channel]).0[first..first + N].copy_from_slice(&vectors[channel]);
        }
    }
    sums
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

/// Where the passes run: in the calling thread, with a workspace that is kept between calls, or in all threads of Rayon.
pub(super) enum Threads<'w, L> {
    Calling(&'w mut Vec<[L; LANES]>),
    All,
}

/// Resizes each row of `source` (`[H, width, 3]`, rows of `stride` bytes) into `target` `[H, taps.output_len(), 3]`.
pub(super) fn resize_along_rows<A: FilterArithmetic, O: PixelSample<A>>(
    source: &[u8],
    stride: usize,
    width: usize,
    taps: &FilterTaps<A::Lane>,
    target: &mut [O],
    threads: &mut Threads<'_, A::Lane>,
) where
    u8: PixelSample<A>,
{
    let (source_row, target_row) = (width * CHANNELS, taps.output_len() * CHANNELS);
    let arch = pulp::Arch::new();
    let resize = |transposed: &mut Vec<[A::Lane; LANES]>, (to, from): (&mut [O], &[u8])| {
        transposed.resize(source_row, [A::START; LANES]);
        arch.dispatch(Rows::<A, O> { from, stride, transposed, taps, to });
    };
    match threads {
        Threads::Calling(transposed) => target
            .chunks_mut(LANES * target_row)
            .zip(source.chunks(LANES * stride))
            .for_each(|rows| resize(transposed, rows)),
        Threads::All => target
            .par_chunks_mut(LANES * target_row)
            .zip(source.par_chunks(LANES * stride))
            .for_each_init(Vec::new, resize),
    }
}

/// One task of [`resize_along_rows`]: up to [`LANES`] rows. It is a type instead of a closure because pulp compiles
/// implementations of `WithSimd` for each instruction set and picks the widest one at run time.
struct Rows<'a, A: FilterArithmetic, O> {
    from: &'a [u8],
    stride: usize,
    /// Workspace `[W * 3][LANES]`: the source rows, transposed so that each SIMD lane holds one row.
    transposed: &'a mut [[A::Lane; LANES]],
    taps: &'a FilterTaps<A::Lane>,
    to: &'a mut [O],
}

impl<A: FilterArithmetic, O: PixelSample<A>> WithSimd for Rows<'_, A, O>
where
    u8: PixelSample<A>,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { from, stride, transposed, taps, to } = self;
        let source_row = transposed.len();
        // Whole cache lines of the workspace are written one after another, a tile of LANES samples at a time. The loops
        // have fixed lengths and no closures, so that they are compiled for this instruction set.
        for (tile, cells) in transposed.chunks_mut(LANES).enumerate() {
            let mut samples = [[0; LANES]; LANES];
            for (lane, row) in samples.iter_mut().zip(from.chunks(stride)) {
                let row = &row[..source_row][tile * LANES..];
                match row.first_chunk() {
                    Some(whole) => *lane = *whole,
                    None => lane[..row.len()].copy_from_slice(row),
                }
            }
            let samples = transpose(&samples);
            for (cell, samples) in cells.iter_mut().zip(&samples) {
                for lane in 0..LANES {
                    cell[lane] = samples[lane].load();
                }
            }
        }
        let target_row = taps.output_len() * CHANNELS;
        for x in 0..taps.output_len() {
            let (first, weights) = taps.first_source_index_and_weights(x);
            let sums = A::weighted_sums(simd, &transposed[first * CHANNELS..], weights);
            for (lane, row) in to.chunks_exact_mut(target_row).enumerate() {
                for (channel, sums) in sums.iter().enumerate() {
                    row[x * CHANNELS + channel] = O::store(sums[lane]);
                }
            }
        }
    }
}

/// Transposes a tile of bytes with the instructions of SSE2, which every x86-64 processor has: compilers turn the loop of
/// other processors into 256 moves of one byte.
///
/// Four times, the first half of the rows is interleaved with the second half. This shifts the 8 bits of a byte's
/// position, row and column, by one each time; after four times, row and column are exchanged.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose(rows: &[[u8; LANES]; LANES]) -> [[u8; LANES]; LANES] {
    use std::arch::x86_64::{__m128i, _mm_unpackhi_epi8, _mm_unpacklo_epi8};
    let mut tile: [__m128i; LANES] = bytemuck::cast(*rows);
    for _ in 0..LANES.ilog2() {
        let from = tile;
        for i in 0..LANES / 2 {
            // SAFETY: every x86-64 processor has SSE2.
            unsafe {
                tile[2 * i] = _mm_unpacklo_epi8(from[i], from[i + LANES / 2]);
                tile[2 * i + 1] = _mm_unpackhi_epi8(from[i], from[i + LANES / 2]);
            }
        }
    }
    bytemuck::cast(tile)
}

/// Transposes a tile of bytes.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transpose(rows: &[[u8; LANES]; LANES]) -> [[u8; LANES]; LANES] {
    let mut tile = [[0; LANES]; LANES];
    for row in 0..LANES {
        for column in 0..LANES {
            tile[column][row] = rows[row][column];
        }
    }
    tile
}

/// Resizes each column of `source` (`[H, row]`, rows at a distance of `stride` samples) into `target`
/// `[taps.output_len(), row]`, where `row` is W * 3 samples.
pub(super) fn resize_down_columns<A: FilterArithmetic, I: PixelSample<A>, O: PixelSample<A>>(
    source: &[I],
    stride: usize,
    row: usize,
    taps: &FilterTaps<A::Lane>,
    target: &mut [O],
    threads: &Threads<'_, A::Lane>,
) {
    let arch = pulp::Arch::new();
    let resize = |(y, to): (usize, &mut [O])| {
        let (first, weights) = taps.first_source_index_and_weights(y);
        arch.dispatch(Columns::<A, I, O> { from: &source[first * stride..], stride, weights, to });
    };
    match threads {
        Threads::Calling(_) => target.chunks_mut(row).enumerate().for_each(resize),
        Threads::All => target.par_chunks_mut(row).enumerate().for_each(resize),
    }
}

/// One task of [`resize_down_columns`]: it computes one row of the target. `from` begins at the first source row whose
/// weight is not zero.
struct Columns<'a, A: FilterArithmetic, I, O> {
    from: &'a [I],
    stride: usize,
    weights: &'a [A::Lane],
    to: &'a mut [O],
}

impl<A: FilterArithmetic, I: PixelSample<A>, O: PixelSample<A>> WithSimd for Columns<'_, A, I, O> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { from, stride, weights, to } = self;
        for (block, to) in to.chunks_mut(COLUMNS).enumerate() {
            let mut sums = [A::START; COLUMNS];
            for (line, &weight) in from.chunks(stride).zip(weights) {
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
