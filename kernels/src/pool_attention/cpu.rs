//! Attention pooling on device `cpu`; one task computes one head of one image.
#![allow(unsafe_code)]

use std::ops::Range;

use reel_device::cpu::simd::{LANES, exp, sum_lanes};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::FwdParams;

simd_fn! {
    fn dot<T: Element>(a: &[f32], b: &[T]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            for i in 0..LANES {
                lanes[i] += a[i] * b[i].to_f32();
            }
        }
        for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
            lanes[i] += a * b.to_f32();
        }
        sum_lanes(lanes)
    }
}

simd_fn! {
    fn add<T: Element>(weight: f32, row: &[T], sum: &mut [f32]) {
        for (x, sum) in row.iter().zip(sum) {
            *sum += weight * x.to_f32();
        }
    }
}

simd_fn! {
    fn store<T: Element>(factor: f32, x: &[f32], y: &mut [T]) {
        for (x, y) in x.iter().zip(y) {
            *y = T::from_f32(x * factor);
        }
    }
}

fn widened<T: Element>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// Returns the range of token indices that belong to an image.
fn tokens_of(cu_seqlens: &[i32], image: usize, tokens: usize) -> Range<usize> {
    let (first, end) = (cu_seqlens[image] as usize, cu_seqlens[image + 1] as usize);
    assert!(
        first <= end && end <= tokens,
        "cu_seqlens says that image {image} has the tokens {first}..{end}, but there are {tokens} tokens"
    );
    first..end
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (tokens, images, heads, d) = (p.tokens as usize, p.images as usize, p.heads as usize, p.head_dim as usize);
    let row = heads * d;
    // SAFETY: q has `[heads, head_dim]` elements of T, k and v `[tokens, heads, head_dim]`.
    let (q, k, v) =
        unsafe { (slice_at::<T>(p.q, row), slice_at::<T>(p.k, tokens * row), slice_at::<T>(p.v, tokens * row)) };
    // SAFETY: cu_seqlens has `[images + 1]` i32, o `[images, heads, head_dim]` elements of T.
    let (cu, o) = unsafe { (slice_at::<i32>(p.cu_seqlens, images + 1), OutputArray::<T>::new(p.o, images * row)) };
    team.run(images * heads, |task| {
        let (image, head) = (task / heads, task % heads);
        let q = widened(&q[head * d..][..d]);
        let tokens = tokens_of(cu, image, tokens);
        let at = |token: usize| token * row + head * d..token * row + head * d + d;
        let scores: Vec<f32> = tokens.clone().map(|t| p.scale * dot(&q, &k[at(t)])).collect();
        let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (mut sum, mut pooled) = (0.0, vec![0.0; d]);
        for (t, s) in tokens.zip(&scores) {
            let weight = exp(s - top);
            sum += weight;
            add(weight, &v[at(t)], &mut pooled);
        }
        let factor = if scores.is_empty() { 0.0 } else { 1.0 / sum };
        // SAFETY: no two tasks write the same head of the same image.
        store(factor, &pooled, unsafe { o.part(task * d, d) });
    });
}
