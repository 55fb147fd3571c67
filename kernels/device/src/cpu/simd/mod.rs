//! Code for the instruction sets of a processor: [`isa()`] is the one in use, chosen at run time or named by
//! `REEL_CPU`; [`simd_fn!`](crate::simd_fn) compiles a function once for each instruction set. `amx` gives access to
//! the tiles of AMX.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(all(any(test, feature = "amx-emulator"), target_arch = "x86_64", target_os = "linux"))]
pub mod amx_emulator;
mod isa;
pub mod prefetch;
pub mod row_steps;

#[cfg(target_arch = "x86_64")]
pub use isa::is_intel;
pub use isa::{DefaultIsa, ISA_VARIABLE, Isa, best_isa, default_isa, isa, requested_isa};

/// Compiles a function for each instruction set; calls use the best one of this machine: `simd_fn! { pub fn double<T:
/// Element>(x: &mut [T]) { … } }`. Write the body as plain loops over arrays, which the compiler turns into vector
/// code. Sums need explicit lanes (`[f32; 16]`), because the compiler does not reorder f32 sums.
#[macro_export]
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($t:ident : $bound:path),+>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2")]
                #[allow(clippy::too_many_arguments)]
                fn avx512 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma,bmi2")]
                #[allow(clippy::too_many_arguments)]
                fn avx2 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[allow(unsafe_code)]
                match $crate::cpu::simd::isa() {
                    $crate::cpu::simd::Isa::Avx512
                    | $crate::cpu::simd::Isa::Avx512Bf16
                    | $crate::cpu::simd::Isa::Amx
                    | $crate::cpu::simd::Isa::AmxF32 => {
                        // SAFETY: `isa` found these features on this machine.
                        return unsafe { avx512($($arg),*) };
                    }
                    // SAFETY: `isa` found these features on this machine.
                    $crate::cpu::simd::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::cpu::simd::Isa::Plain => {}
                }
            }
            body($($arg),*)
        }
    };
}

/// Number of lanes of the vectors that hold partial sums.
pub const LANES: usize = 16;

/// Adds 16 lanes, always in the same tree order.
#[inline(always)]
pub fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    // Arrays of constant length compile to vector code; a loop over the lengths would compile to scalar code with
    // branches.
    fold_once::<2>(fold_once::<4>(fold_once::<8>(fold_once::<16>(lanes))))[0]
}

/// Adds the upper half of `N` lanes to the lower half; the upper half of the result is 0.
#[inline(always)]
fn fold_once<const N: usize>(lanes: [f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(|i| if i < N / 2 { lanes[i] + lanes[i + N / 2] } else { 0.0 })
}

simd_fn! {
    /// Adds each element of `x` to the sum at the same index.
    pub fn add_to_sums<T: crate::Element>(x: &[T], sums: &mut [f32]) {
        for (x, sum) in x.iter().zip(sums) {
            *sum += x.to_f32();
        }
    }
}

/// `e^x` in f32 to within 2 units in the last place, as straight-line code that vectorises; 0 below -87.34, infinity
/// above 88.72, NaN for NaN. Argument reduction by ln 2 in two parts, then a polynomial (minimax form as in Cephes'
/// `expf`).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to the nearest integer and leaves it in the low bits. A conversion by `as` would check
    // its range, which costs more than the polynomial.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = (-n).mul_add_fast(0.693_359_4, x);
    let r = (-n).mul_add_fast(-2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add_fast(r, 1.398_199_9e-3);
    p = p.mul_add_fast(r, 8.333_452e-3);
    p = p.mul_add_fast(r, 4.166_579_6e-2);
    p = p.mul_add_fast(r, 1.666_666_5e-1);
    p = p.mul_add_fast(r, 5e-1);
    let y = p.mul_add_fast(r * r, r) + 1.0;
    // Adding n to the exponent multiplies y by 2^n. For x between the bounds below the result is a normal number, even
    // for n = 128, where y is less than 1. For other x the result is meaningless.
    let y = f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23));
    let y = if x < -87.336_54 { 0.0 } else { y };
    let y = if x > 88.722_83 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// A multiply-add that rounds the product and the sum. `f32::mul_add`, which rounds once, would call a slow library
/// function on a CPU without FMA.
trait MulAddFast {
    fn mul_add_fast(self, a: f32, b: f32) -> f32;
}

impl MulAddFast for f32 {
    #[inline(always)]
    fn mul_add_fast(self, a: f32, b: f32) -> f32 {
        self * a + b
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exp_is_within_three_ulps(x in -87.0f32..88.7) {
            let (got, want) = (exp(x) as f64, (x as f64).exp());
            prop_assert!((got - want).abs() <= 3.0 * f32::EPSILON as f64 * want, "{x}: {got} {want}");
        }
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(-1e30), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn lanes_are_all_summed() {
        let mut lanes = [0.0; LANES];
        for (i, x) in lanes.iter_mut().enumerate() {
            *x = (1u32 << i) as f32;
        }
        assert_eq!(sum_lanes(lanes), 65535.0);
    }
}
