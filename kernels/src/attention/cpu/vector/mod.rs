//! A vector of sixteen f32 lanes for each instruction set, and [`dispatch`], which runs code compiled for one of
//! them.
//!
//! Operations work lane by lane and round once, so a lane's result does not depend on its neighbours.
#![allow(unsafe_code)]
// All functions are unsafe: callers must meet the conditions that `Vector` documents.
#![allow(unsafe_op_in_unsafe_fn)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;
#[cfg(test)]
mod tests;

use super::product::SmallProduct;
#[cfg(target_arch = "x86_64")]
use avx2::Avx2Vector;
#[cfg(target_arch = "x86_64")]
use avx512::{Avx512Vector, UNIT_AMX_TILES, UNIT_DOT_PRODUCTS, UNIT_MULTIPLY_ADDS};
use half::bf16;
use plain::PlainVector;
use reel_device::cpu::simd::Isa;
#[cfg(target_arch = "x86_64")]
use reel_device::cpu::simd::amx::Tiles;
use reel_device::{DType, Element};

/// Number of lanes of a vector.
pub const LANES: usize = reel_device::cpu::simd::LANES;

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
    /// Whether products of bf16 arrays multiply pairs of bf16; otherwise they multiply elements widened to f32.
    const PAIRS: bool = false;
    /// Whether [`Self::dot`] multiplies the pairs of bf16; otherwise AMX tiles multiply them.
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

    // Functions on lanes that hold pairs: the lower and the upper half of a lane's 32 bits are the first and the second
    // bf16 of a pair. They are called only if `PAIRS` is true; their default implementations are portable.

    /// Adds to each lane of `c` both products of the pairs of `self` and `b`.
    #[inline(always)]
    unsafe fn dot(self, b: Self, c: Self) -> Self {
        self.widen_second().mul_add(b.widen_second(), self.widen_first().mul_add(b.widen_first(), c))
    }
    /// Returns the first element of each pair as f32.
    #[inline(always)]
    unsafe fn widen_first(self) -> Self {
        self.map_bits(|x| x << 16)
    }
    /// Returns the second element of each pair as f32.
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
    /// Makes pairs: lane i has element i at `first` and element i at `second`, for the `count` (at most 16) elements;
    /// the other lanes are 0.
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

/// Vectors of AVX-512 on a processor with AMX. AMX tiles multiply the pairs.
#[cfg(target_arch = "x86_64")]
pub type AmxVector = Avx512Vector<UNIT_AMX_TILES>;

/// Returns a pair as the 32 bits of an f32.
fn pair_of([first, second]: [bf16; 2]) -> f32 {
    f32::from_bits(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
}

/// Code that is compiled for each vector type.
pub trait VectorCode {
    /// Dtype of the arrays whose products the code computes. If it is bf16 and the processor has AMX, [`dispatch`]
    /// configures the AMX tiles.
    const DTYPE: DType;

    /// Runs the code with vectors of type `V`.
    ///
    /// # Safety
    /// The machine supports the instruction set of `V`; the implementing type documents further conditions.
    unsafe fn run<V: Vector>(self);
}

/// Runs `work` with the vector type of instruction set `isa`.
///
/// # Safety
/// The machine supports `isa`, and the safety conditions of `W` hold.
pub unsafe fn dispatch<W: VectorCode>(isa: Isa, work: W) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx | Isa::AmxF32 if W::DTYPE == DType::BF16 => {
            let _tiles = Tiles::configure();
            enter_amx(work);
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if W::DTYPE == DType::BF16 => enter_avx512_bf16(work),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx | Isa::AmxF32 => enter_avx512(work),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => enter_avx2(work),
        _ => work.run::<PlainVector>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2")]
unsafe fn enter_amx<W: VectorCode>(work: W) {
    work.run::<AmxVector>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2")]
unsafe fn enter_avx512_bf16<W: VectorCode>(work: W) {
    work.run::<Avx512Vector<UNIT_DOT_PRODUCTS>>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2")]
unsafe fn enter_avx512<W: VectorCode>(work: W) {
    work.run::<Avx512Vector<UNIT_MULTIPLY_ADDS>>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi2")]
unsafe fn enter_avx2<W: VectorCode>(work: W) {
    work.run::<Avx2Vector>();
}

// Constants of e^x = 2^n e^r with r = x - n ln 2. `LOW` and `HIGH` bound x. The others are ln 2 in two parts and the
// coefficients of Cephes' minimax polynomial for e^r.
const LOW: f32 = -110.0;
const HIGH: f32 = 88.0;
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
