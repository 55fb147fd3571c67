//! Vectors of AVX2 and FMA.
#![allow(unsafe_code)]
// All functions are unsafe: callers must meet the conditions that `Vector` documents.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;

use reel_device::Element;
use reel_device::cpu::simd::{Isa, sum_lanes};

use super::super::product::SmallProduct;
use super::plain::PlainVector;
use super::{EXP, HIGH, LANES, LN2_HI, LN2_LO, LOW, Vector, dispatch};

/// Vectors of AVX2 and FMA: two registers of eight lanes.
#[derive(Clone, Copy)]
pub struct Avx2Vector(pub(super) __m256, pub(super) __m256);

impl Avx2Vector {
    #[inline(always)]
    unsafe fn array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(lanes.as_mut_ptr());
        lanes
    }
    #[inline(always)]
    unsafe fn exp8(x: __m256) -> __m256 {
        // `max` and `min` return their second operand if one operand is NaN, so this order of operands keeps a NaN.
        let x = _mm256_min_ps(_mm256_set1_ps(HIGH), _mm256_max_ps(_mm256_set1_ps(LOW), x));
        let n = _mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E));
        let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(n);
        let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_HI), x);
        let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_LO), r);
        let mut p = _mm256_set1_ps(EXP[0]);
        for c in &EXP[1..] {
            p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
        }
        let y = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(p, r), r, r), _mm256_set1_ps(1.0));
        // Multiplies by 2^n in two steps, each by a power of 2, because n can be -159 and the least normal f32 is
        // 2^-126.
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        let bias = _mm256_set1_epi32(127);
        let a = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias)));
        let b = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias)));
        _mm256_mul_ps(_mm256_mul_ps(y, a), b)
    }
}

impl Vector for Avx2Vector {
    const ROWS: usize = 4;
    const COLS: usize = 1;
    const TALL: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        let x = _mm256_set1_ps(x);
        Avx2Vector(x, x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Avx2Vector(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)))
    }
    #[inline(always)]
    unsafe fn load_part<T: Element>(p: *const T, count: usize) -> Self {
        let lanes = PlainVector::load_part(p, count).0;
        Self::load(lanes.as_ptr())
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        _mm256_storeu_ps(p, self.0);
        _mm256_storeu_ps(p.add(8), self.1);
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Avx2Vector(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Avx2Vector(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Avx2Vector(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Avx2Vector(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        Avx2Vector(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Avx2Vector(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1))
    }
    #[inline(always)]
    unsafe fn keep(self, count: usize, other: Self) -> Self {
        let count = _mm256_set1_epi32(count as i32);
        let low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let a = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, low));
        let b = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_add_epi32(low, _mm256_set1_epi32(8))));
        Avx2Vector(_mm256_blendv_ps(other.0, self.0, a), _mm256_blendv_ps(other.1, self.1, b))
    }
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        Avx2Vector(Self::exp8(self.0), Self::exp8(self.1))
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        let m = _mm256_max_ps(self.0, self.1);
        let m = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps::<1>(m));
        let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps::<1>(m, m)))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        sum_lanes(self.array())
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        let mut lanes = [[0.0; LANES]; LANES];
        for (j, row) in rows.iter().enumerate() {
            for (i, x) in row.array().into_iter().enumerate() {
                lanes[i][j] = x;
            }
        }
        let mut columns = rows;
        for (column, lanes) in columns.iter_mut().zip(&lanes) {
            *column = Self::load(lanes.as_ptr());
        }
        columns
    }
    unsafe fn product(p: &SmallProduct) {
        dispatch(Isa::Avx2, p);
    }
}
