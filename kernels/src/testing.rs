//! What kernel tests share: seeded inputs, launches on a cpu team, and both dtypes through one body.
#![allow(unsafe_code)]

use crate::{Addr, DType, Element, Launch, Team};
use half::bf16;

/// Seeded numbers with a normal-like spread, an outlier of 20 now and then, and a negative zero.
pub fn numbers(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count)
        .map(|i| {
            let x = (next() + next() + next() + next() - 2.0) * 1.732 * scale;
            match i % 997 {
                13 => x * 20.0,
                14 => -0.0,
                _ => x,
            }
        })
        .collect()
}

/// Values as stored in `dtype`, beside the exact values that the formula is given.
pub struct Data {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    dtype: DType,
}

impl Data {
    /// `values` rounded to `dtype` (F32 or BF16).
    pub fn new(dtype: DType, values: &[f32]) -> Data {
        let bf: Vec<bf16> = values.iter().map(|&x| <bf16 as Element>::from_f32(x)).collect();
        let f32 = if dtype == DType::F32 { values.to_vec() } else { bf.iter().map(|x| x.to_f32()).collect() };
        Data { f32, bf16: bf, dtype }
    }

    /// An array of `count` elements to be written, full of NaN.
    pub fn output(dtype: DType, count: usize) -> Data {
        Data::new(dtype, &vec![f32::NAN; count])
    }

    /// Where the stored values lie.
    pub fn addr(&self) -> Addr {
        match self.dtype {
            DType::F32 => addr(&self.f32),
            _ => addr(&self.bf16),
        }
    }

    /// The stored values, widened.
    pub fn f64(&self) -> Vec<f64> {
        self.values().iter().map(|&x| x as f64).collect()
    }

    /// The stored values, widened.
    pub fn values(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => self.f32.clone(),
            _ => self.bf16.iter().map(|x| x.to_f32()).collect(),
        }
    }
}

/// The address of a slice; kernels may write to it, so the owner must be looked at only through [`Data`]'s methods.
pub fn addr<T>(x: &[T]) -> Addr {
    Addr(x.as_ptr() as u64)
}

/// The address of a slice that a kernel writes.
pub fn addr_mut<T>(x: &mut [T]) -> Addr {
    Addr(x.as_mut_ptr() as u64)
}

/// Runs a launch on `threads` threads.
pub fn run(launch: &Launch, threads: usize) {
    let team = Team::new(threads);
    // SAFETY: tests pass addresses of live arrays of the documented sizes.
    unsafe { crate::launch::run_on_cpu(launch, &team) }
}
