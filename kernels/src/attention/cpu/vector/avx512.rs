//! Vectors of AVX-512.
#![allow(unsafe_code)]
// All functions are unsafe: callers must meet the conditions that `Vector` documents.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;
use std::mem::transmute;

use half::bf16;
use reel_device::cpu::simd::{Isa, sum_lanes};
use reel_device::{DType, Element};

use super::super::product::{SmallProduct, WordContents};
use super::super::tiles;
use super::avx2::Avx2Vector;
use super::plain::PlainVector;
use super::{EXP, LANES, LN2_HI, LN2_LO, LOW, Vector, VectorCode, dispatch};

/// The indices 0, 16, 1, 17, ..., which interleave the elements of the two halves of a register.
const IN_TURNS: [u16; 32] = {
    let mut indices = [0; 32];
    let mut i = 0;
    while i < indices.len() {
        indices[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    indices
};

/// Values of `UNIT`, the unit that multiplies bf16 arrays: f32 multiply-adds of their elements, bf16 dot products
/// (`vdpbf16ps`), or AMX tiles.
pub const UNIT_MULTIPLY_ADDS: u8 = 0;
pub const UNIT_DOT_PRODUCTS: u8 = 1;
pub const UNIT_AMX_TILES: u8 = 2;

/// Vectors of AVX-512: one register of sixteen lanes. `UNIT` is [`UNIT_MULTIPLY_ADDS`], for which the functions for
/// pairs must not be called, [`UNIT_DOT_PRODUCTS`] or [`UNIT_AMX_TILES`].
#[derive(Clone, Copy)]
pub struct Avx512Vector<const UNIT: u8>(__m512);

impl<const UNIT: u8> Vector for Avx512Vector<UNIT> {
    const ROWS: usize = 4;
    const COLS: usize = 5;
    const TALL: usize = 8;
    const PAIRS: bool = UNIT != UNIT_MULTIPLY_ADDS;
    const DOTS: bool = UNIT == UNIT_DOT_PRODUCTS;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Avx512Vector(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Avx512Vector(_mm512_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn load_part<T: Element>(p: *const T, count: usize) -> Self {
        let mask = ((1u32 << count) - 1) as __mmask16;
        Avx512Vector(match T::DTYPE {
            DType::F32 => _mm512_maskz_loadu_ps(mask, p.cast()),
            DType::BF16 => {
                let halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
            }
            _ => return Avx512Vector(_mm512_loadu_ps(PlainVector::load_part(p, count).0.as_ptr())),
        })
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        _mm512_storeu_ps(p, self.0);
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Avx512Vector(_mm512_add_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Avx512Vector(_mm512_sub_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Avx512Vector(_mm512_mul_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Avx512Vector(_mm512_div_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        Avx512Vector(_mm512_max_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Avx512Vector(_mm512_fmadd_ps(self.0, b.0, c.0))
    }
    #[inline(always)]
    unsafe fn keep(self, count: usize, other: Self) -> Self {
        let mask = ((1u32 << count.min(LANES)) - 1) as __mmask16;
        Avx512Vector(_mm512_mask_blend_ps(mask, other.0, self.0))
    }
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // `max` returns its second operand if one operand is NaN, so this order of operands keeps a NaN.
        let x = _mm512_max_ps(_mm512_set1_ps(LOW), self.0);
        let n = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(n);
        let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HI), x);
        let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LO), r);
        let mut p = _mm512_set1_ps(EXP[0]);
        for c in &EXP[1..] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
        }
        let y = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r), _mm512_set1_ps(1.0));
        Avx512Vector(_mm512_scalef_ps(y, n))
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        let high = _mm512_extractf32x8_ps::<1>(self.0);
        Avx2Vector(_mm512_castps512_ps256(self.0), high).max_lane()
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(lanes.as_mut_ptr());
        sum_lanes(lanes)
    }
    #[inline(always)]
    unsafe fn transpose(r: [Self; LANES]) -> [Self; LANES] {
        let zero = _mm512_setzero_ps();
        let (mut a, mut b, mut out) = ([zero; LANES], [zero; LANES], r);
        for i in (0..LANES).step_by(2) {
            a[i] = _mm512_unpacklo_ps(r[i].0, r[i + 1].0);
            a[i + 1] = _mm512_unpackhi_ps(r[i].0, r[i + 1].0);
        }
        // Transposes four rows at a time: b[i + k] gets their columns k, 4 + k, 8 + k and 12 + k, one column in each
        // quarter of the register.
        for i in (0..LANES).step_by(4) {
            for k in 0..2 {
                let (x, y) = (_mm512_castps_pd(a[i + k]), _mm512_castps_pd(a[i + k + 2]));
                b[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
                b[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
            }
        }
        for k in 0..4 {
            let even = _mm512_shuffle_f32x4::<0x88>(b[k], b[4 + k]);
            let odd = _mm512_shuffle_f32x4::<0xdd>(b[k], b[4 + k]);
            let even2 = _mm512_shuffle_f32x4::<0x88>(b[8 + k], b[12 + k]);
            let odd2 = _mm512_shuffle_f32x4::<0xdd>(b[8 + k], b[12 + k]);
            out[k] = Avx512Vector(_mm512_shuffle_f32x4::<0x88>(even, even2));
            out[4 + k] = Avx512Vector(_mm512_shuffle_f32x4::<0x88>(odd, odd2));
            out[8 + k] = Avx512Vector(_mm512_shuffle_f32x4::<0xdd>(even, even2));
            out[12 + k] = Avx512Vector(_mm512_shuffle_f32x4::<0xdd>(odd, odd2));
        }
        out
    }
    unsafe fn product(p: &SmallProduct) {
        match p.words {
            WordContents::Elements => dispatch(Isa::Avx512, p),
            WordContents::Pairs if UNIT == UNIT_AMX_TILES => tiles::multiply_with_amx(p),
            WordContents::Pairs => multiply_pairs(p),
        }
    }

    #[inline(always)]
    unsafe fn dot(self, b: Self, c: Self) -> Self {
        // SAFETY: both types are 512 bits wide, and every bit pattern is valid.
        let (a, b) = (transmute::<__m512, __m512bh>(self.0), transmute::<__m512, __m512bh>(b.0));
        Avx512Vector(_mm512_dpbf16_ps(c.0, a, b))
    }
    #[inline(always)]
    unsafe fn first_only(self) -> Self {
        let bits = _mm512_and_si512(_mm512_castps_si512(self.0), _mm512_set1_epi32(0xffff));
        Avx512Vector(_mm512_castsi512_ps(bits))
    }
    #[inline(always)]
    unsafe fn pair_with(self, second: Self) -> Self {
        // `halves` has the elements of `self` and then the elements of `second`. The permutation interleaves them.
        let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second.0, self.0));
        Avx512Vector(_mm512_castsi512_ps(_mm512_permutexvar_epi16(transmute::<[u16; 32], __m512i>(IN_TURNS), halves)))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut f32) {
        _mm256_storeu_si256(p.cast(), transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(self.0)));
    }
    #[inline(always)]
    unsafe fn load_pairs(first: *const bf16, second: *const bf16, count: usize) -> Self {
        let mask = ((1u32 << count) - 1) as __mmask16;
        let first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, first.cast()));
        let second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, second.cast()));
        Avx512Vector(_mm512_castsi512_ps(_mm512_or_si512(first, _mm512_slli_epi32::<16>(second))))
    }
}

/// Computes a product of pairs with dot products.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2")]
unsafe fn multiply_pairs(p: &SmallProduct) {
    p.run::<Avx512Vector<UNIT_DOT_PRODUCTS>>();
}
