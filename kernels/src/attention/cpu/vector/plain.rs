//! Portable vectors.
#![allow(unsafe_code)]
// All functions are unsafe: callers must meet the conditions that `Vector` documents.
#![allow(unsafe_op_in_unsafe_fn)]

use reel_device::Element;
use reel_device::cpu::simd::{Isa, exp, sum_lanes};

use super::super::product::SmallProduct;
use super::{LANES, Vector, dispatch};

/// Portable vectors, for machines without AVX2.
#[derive(Clone, Copy)]
pub struct PlainVector(pub(super) [f32; LANES]);

impl PlainVector {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        PlainVector(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Vector for PlainVector {
    const ROWS: usize = 2;
    const COLS: usize = 1;
    const TALL: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        PlainVector([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        PlainVector(p.cast::<[f32; LANES]>().read())
    }
    #[inline(always)]
    unsafe fn load_part<T: Element>(p: *const T, count: usize) -> Self {
        let mut lanes = [0.0; LANES];
        if count == LANES {
            // If `count` is `LANES`, the most common case, the loop has a constant length, which the compiler knows.
            for (i, lane) in lanes.iter_mut().enumerate() {
                *lane = p.add(i).read().to_f32();
            }
        } else {
            for (i, lane) in lanes.iter_mut().enumerate().take(count) {
                *lane = p.add(i).read().to_f32();
            }
        }
        PlainVector(lanes)
    }
    #[inline(always)]
    unsafe fn prefetch<T>(_: *const T) {}
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        p.cast::<[f32; LANES]>().write(self.0);
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // A fused multiply-add would be a library call on this target, so the product and the sum round separately.
        PlainVector(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn keep(self, count: usize, other: Self) -> Self {
        PlainVector(std::array::from_fn(|i| if i < count { self.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        PlainVector(std::array::from_fn(|i| exp(self.0[i])))
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        self.0.iter().fold(f32::NEG_INFINITY, |a, &b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        sum_lanes(self.0)
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        std::array::from_fn(|i| PlainVector(std::array::from_fn(|j| rows[j].0[i])))
    }
    unsafe fn product(p: &SmallProduct) {
        dispatch(Isa::Plain, p);
    }
}
