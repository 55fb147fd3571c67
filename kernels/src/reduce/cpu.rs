//! Reductions to one number on device `cpu`. Each chunk of 64 Ki elements is summed in 16 f64 lanes, then the sums of
//! the chunks are added.
#![allow(unsafe_code)]

use reel_device::cpu::simd::prefetch;
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::launch::{ArrayEntry, Chunk};
use reel_device::{Team, simd_fn};

use super::{ClipParams, ELEMENTS_PER_CHUNK, SumSquaresParams, WeightedSumParams};

/// Number of f64 partial sums in a vector loop.
const LANES: usize = 16;

fn sum(lanes: [f64; LANES]) -> f64 {
    lanes.iter().sum()
}

simd_fn! {
    fn dot(x: &[f32], w: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let ((x, x_rest), (w, w_rest)) = (x.as_chunks::<LANES>(), w.as_chunks::<LANES>());
        for (x, w) in x.iter().zip(w) {
            for i in 0..LANES {
                lanes[i] += x[i] as f64 * w[i] as f64;
            }
        }
        for (i, (x, w)) in x_rest.iter().zip(w_rest).enumerate() {
            lanes[i] += *x as f64 * *w as f64;
        }
        sum(lanes)
    }
}

simd_fn! {
    fn squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (x, rest) = x.as_chunks::<LANES>();
        for x in x {
            prefetch::prefetch_read(x);
            for i in 0..LANES {
                let x = x[i] as f64;
                lanes[i] += x * x;
            }
        }
        for (i, x) in rest.iter().enumerate() {
            let x = *x as f64;
            lanes[i] += x * x;
        }
        sum(lanes)
    }
}

/// Computes the weighted sum in one task, because it has only one term per token.
///
/// # Safety
/// Every address in [`WeightedSumParams`] is valid for the documented shape and dtype.
pub unsafe fn weighted_sum(p: &WeightedSumParams, _: &Team) {
    let n = p.n as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`WeightedSumParams`] documents.
    let (x, w, out) = unsafe { (slice_at::<f32>(p.x, n), slice_at::<f32>(p.w, n), OutputArray::<f32>::new(p.out, 1)) };
    // SAFETY: the only part.
    let one = unsafe { out.part(0, 1) };
    one[0] = dot(x, w) as f32;
}

/// # Safety
/// Every address in [`SumSquaresParams`] and in its table is valid for the documented shape and dtype.
pub unsafe fn sum_squares(p: &SumSquaresParams, team: &Team) {
    let n = p.chunk_count as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`SumSquaresParams`] documents.
    let (chunks, partials) = unsafe { (slice_at::<Chunk>(p.chunks, n), OutputArray::<f64>::new(p.partials, n)) };
    let count = chunks.iter().map(|chunk| chunk.array as usize + 1).max().unwrap_or(0);
    // SAFETY: the table has an entry for each array that a chunk names.
    let arrays = unsafe { slice_at::<ArrayEntry>(p.arrays, count) };
    team.run(n, |task| {
        let array = &arrays[chunks[task].array as usize];
        // SAFETY: the table has the length of each array; an array that is left out has no elements here.
        let x = unsafe { slice_at::<f32>(array.x, if array.x.is_null() { 0 } else { array.len as usize }) };
        let first = x.len().min(chunks[task].index as usize * ELEMENTS_PER_CHUNK);
        // SAFETY: each chunk has an element of its own.
        let one = unsafe { partials.part(task, 1) };
        one[0] = squares(&x[first..x.len().min(first + ELEMENTS_PER_CHUNK)]);
    });
}

/// # Safety
/// Every address in [`ClipParams`] is valid for the documented shape and dtype.
pub unsafe fn clip(p: &ClipParams, _: &Team) {
    // SAFETY: `p`'s addresses cover the shapes that [`ClipParams`] documents.
    let (partials, out) = unsafe { (slice_at::<f64>(p.partials, p.count as usize), OutputArray::<f32>::new(p.out, 2)) };
    let norm = partials.iter().sum::<f64>().sqrt();
    let factor = p.max_norm as f64 / (norm + 1e-6);
    // SAFETY: the only part.
    let out = unsafe { out.part(0, 2) };
    out[0] = norm as f32;
    // `min` would turn a NaN into 1.
    out[1] = if factor > 1.0 { 1.0 } else { factor as f32 };
}
