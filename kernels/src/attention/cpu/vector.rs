//! A vector of sixteen f32 lanes for each instruction set, and [`dispatch`], which runs code compiled for one of
//! them.
//!
//! Operations work lane by lane and round once, so a lane's result does not depend on its neighbours.
#![allow(unsafe_code)]
// All functions are unsafe, for the conditions that `Vector` documents.
#![allow(unsafe_op_in_unsafe_fn)]

use super::product::SmallProduct;
use crate::simd::{Isa, exp, sum_lanes};
use crate::{DType, Element};
use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
#[cfg(target_arch = "x86_64")]
use std::mem::transmute;

/// Number of lanes of a vector.
pub const LANES: usize = crate::simd::LANES;

/// A vector of sixteen f32 lanes.
///
/// # Safety
/// The machine supports the implementing type's instruction set. A pointer argument covers sixteen elements, or
/// `count` of them.
pub trait Vector: Copy {
    /// Number of rows of the largest product tile that fits into the registers.
    const ROWS: usize;
    /// Number of vectors in a row of the largest product tile.
    const COLS: usize;
    /// Number of rows of a product tile that is only one or two vectors wide. Such a tile needs more rows, so that
    /// enough independent sums hide the latency of an addition.
    const TALL: usize;
    /// Whether products of bf16 arrays in attention multiply pairs by [`Self::dot`] and not elements widened to f32.
    const DOTS: bool = false;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    /// Loads `count` (at most 16) elements at `p` and converts them to f32; the other lanes are 0.
    unsafe fn load_part<T: Element>(p: *const T, count: usize) -> Self;
    /// Prefetches the cache line at `p`, if the instruction set can.
    unsafe fn prefetch<T>(p: *const T);
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    unsafe fn max(self, b: Self) -> Self;
    /// `self * b + c`
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// Returns the first `count` lanes of `self` and the other lanes of `other`.
    unsafe fn keep(self, count: usize, other: Self) -> Self;
    /// Returns `e^x` with an error of about 1 ulp for x up to 88; 0 below -105.
    unsafe fn exp(self) -> Self;
    unsafe fn max_lane(self) -> f32;
    unsafe fn sum(self) -> f32;
    /// Transposes a 16 x 16 matrix.
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES];
    /// Runs `p` with this vector type, compiled for its instruction set.
    unsafe fn product(p: &SmallProduct);

    // Lanes as pairs: the lower and the upper half of a lane's 32 bits are the first and the second bf16 of a pair. These
    // functions are called only if `DOTS`; their default implementations are portable.

    /// Adds to each lane of `c` both products of the pairs of `self` and `b`.
    #[inline(always)]
    unsafe fn dot(self, b: Self, c: Self) -> Self {
        self.widen_second().mul_add(b.widen_second(), self.widen_first().mul_add(b.widen_first(), c))
    }
    /// The first element of each pair as f32.
    #[inline(always)]
    unsafe fn widen_first(self) -> Self {
        self.map_bits(|x| x << 16)
    }
    /// The second element of each pair as f32.
    #[inline(always)]
    unsafe fn widen_second(self) -> Self {
        self.map_bits(|x| x & 0xffff_0000)
    }
    /// Replaces the second element of each pair by 0.
    #[inline(always)]
    unsafe fn first_only(self) -> Self {
        self.map_bits(|x| x & 0xffff)
    }
    /// Rounds the f32 lanes of `self` and `second` to bf16 and returns them as pairs.
    #[inline(always)]
    unsafe fn pair_with(self, second: Self) -> Self {
        let (mut first, mut pairs) = ([0.0; LANES], [0.0; LANES]);
        self.store(first.as_mut_ptr());
        second.store(pairs.as_mut_ptr());
        for (pair, first) in pairs.iter_mut().zip(first) {
            *pair = pair_of([bf16::from_f32(first), bf16::from_f32(*pair)]);
        }
        Self::load(pairs.as_ptr())
    }
    /// Rounds the f32 lanes to bf16 and stores them as 8 pairs.
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut f32) {
        let mut lanes = [0.0; LANES];
        self.store(lanes.as_mut_ptr());
        for (i, lanes) in lanes.chunks_exact(2).enumerate() {
            p.add(i).write(pair_of([bf16::from_f32(lanes[0]), bf16::from_f32(lanes[1])]));
        }
    }
    /// Makes pairs of the `count` (at most 16) elements at `first` and those at `second`; the other lanes are 0.
    #[inline(always)]
    unsafe fn load_pairs(first: *const bf16, second: *const bf16, count: usize) -> Self {
        let mut pairs = [0.0; LANES];
        for (i, pair) in pairs.iter_mut().enumerate().take(count) {
            *pair = pair_of([first.add(i).read(), second.add(i).read()]);
        }
        Self::load(pairs.as_ptr())
    }
    /// Applies `f` to the bits of each lane.
    #[inline(always)]
    unsafe fn map_bits(self, f: impl Fn(u32) -> u32) -> Self {
        let mut lanes = [0.0; LANES];
        self.store(lanes.as_mut_ptr());
        let lanes = lanes.map(|x: f32| f32::from_bits(f(x.to_bits())));
        Self::load(lanes.as_ptr())
    }
}

/// Returns a pair as the 32 bits of an f32.
fn pair_of([first, second]: [bf16; 2]) -> f32 {
    f32::from_bits(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
}

/// Code that is compiled for each vector type.
pub trait VectorCode {
    /// Runs the code with vectors of type `V`.
    ///
    /// # Safety
    /// The machine supports the instruction set of `V`; the implementing type documents further conditions.
    unsafe fn run<V: Vector>(self);
}

/// Runs `work` with the vector type of instruction set `isa`.
///
/// # Safety
/// The machine supports `isa`, and the conditions of the work hold.
pub unsafe fn dispatch<W: VectorCode>(isa: Isa, work: W) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => enter_avx512_bf16(work),
        // The processors with AMX have slow bf16 dot products of vectors ([`crate::simd::isa`]).
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => enter_avx512(work),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => enter_avx2(work),
        _ => work.run::<PlainVector>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2")]
unsafe fn enter_avx512_bf16<W: VectorCode>(work: W) {
    work.run::<Avx512Vector<true>>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2")]
unsafe fn enter_avx512<W: VectorCode>(work: W) {
    work.run::<Avx512Vector<false>>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi2")]
unsafe fn enter_avx2<W: VectorCode>(work: W) {
    work.run::<Avx2Vector>();
}

// Constants of e^x = 2^n e^r with r = x - n ln 2: the bounds of x, ln 2 in two parts, and the coefficients of Cephes'
// minimax polynomial for e^r.
const LOW: f32 = -110.0;
const HIGH: f32 = 88.0;
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];

/// Portable vectors, for machines without AVX2.
#[derive(Clone, Copy)]
pub struct PlainVector([f32; LANES]);

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
            // In this common case the compiler knows the loop's length.
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

/// Vectors of AVX2 and FMA: two registers of eight lanes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx2Vector(__m256, __m256);

#[cfg(target_arch = "x86_64")]
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
        // Multiplies by 2^n as by two powers of 2, because n can be -159 and the least normal f32 is 2^-126.
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        let bias = _mm256_set1_epi32(127);
        let a = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias)));
        let b = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias)));
        _mm256_mul_ps(_mm256_mul_ps(y, a), b)
    }
}

#[cfg(target_arch = "x86_64")]
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

/// The indices 0, 16, 1, 17, ... that take the elements of both halves of a register in turns.
#[cfg(target_arch = "x86_64")]
const IN_TURNS: [u16; 32] = {
    let mut indices = [0; 32];
    let mut i = 0;
    while i < indices.len() {
        indices[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    indices
};

/// Vectors of AVX-512: one register of sixteen lanes. `DOTS` tells whether the bf16 dot product is used; without
/// it the functions for pairs must not be called.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx512Vector<const DOTS: bool>(__m512);

#[cfg(target_arch = "x86_64")]
impl<const DOTS: bool> Vector for Avx512Vector<DOTS> {
    const ROWS: usize = 4;
    const COLS: usize = 5;
    const TALL: usize = 8;
    const DOTS: bool = DOTS;

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
        // From four rows, b[i + k] gets the columns k, 4 + k, 8 + k and 12 + k, one in each quarter of the register.
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
        dispatch(if DOTS { Isa::Avx512Bf16 } else { Isa::Avx512 }, p);
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
        // The elements of `self`, then those of `second`; then one of each in turns.
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
