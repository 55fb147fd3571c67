//! Seeded inputs for checks, and arrays of f32 or bf16 whose addresses launches take.

use half::bf16;
use reel_device::{Addr, DType, Element};

use super::arrays::register_array;

/// Returns seeded random numbers with about a normal distribution of standard deviation `scale`. Of every 997
/// numbers, one is multiplied by 20 and one is a negative zero.
pub fn normal_numbers(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let seed = seed ^ super::check_seed().wrapping_mul(0xd134_2543_de82_ef95);
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

/// An array of f32 or bf16 values, which are also available as the f64 input of a formula.
pub struct TestArray {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    dtype: DType,
    output: bool,
}

impl TestArray {
    /// Stores `values` rounded to `dtype` (F32 or BF16).
    pub fn new(dtype: DType, values: &[f32]) -> TestArray {
        let bf: Vec<bf16> = values.iter().map(|&x| <bf16 as Element>::from_f32(x)).collect();
        let f32 = if dtype == DType::F32 { values.to_vec() } else { bf.iter().map(|x| x.to_f32()).collect() };
        TestArray { f32, bf16: bf, dtype, output: false }
    }

    /// Makes an output array of `count` elements, filled with NaN.
    pub fn output(dtype: DType, count: usize) -> TestArray {
        TestArray { output: true, ..TestArray::new(dtype, &vec![f32::NAN; count]) }
    }

    /// Registers the array and returns its address.
    pub fn addr(&self) -> Addr {
        match self.dtype {
            DType::F32 => register_array(&self.f32, self.is_written()),
            _ => register_array(&self.bf16, self.is_written()),
        }
    }

    /// Whether a kernel may read the array: it is an input, or an earlier launch has written it.
    fn is_written(&self) -> bool {
        !self.output || self.values().iter().any(|x| !x.is_nan())
    }

    /// Returns the stored values, widened to f64.
    pub fn to_f64(&self) -> Vec<f64> {
        self.values().iter().map(|&x| x as f64).collect()
    }

    /// Returns the stored values, widened to f32.
    pub fn values(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => self.f32.clone(),
            _ => self.bf16.iter().map(|x| x.to_f32()).collect(),
        }
    }
}

/// A generator of random choices, for randomised test cases.
pub struct RandomChoices {
    state: u64,
}

impl RandomChoices {
    /// Seeds the generator from `seed` and the seed of the check.
    pub fn new(seed: u64) -> RandomChoices {
        RandomChoices { state: seed ^ super::check_seed().wrapping_mul(0xd134_2543_de82_ef95) }
    }

    /// Returns a random u64, by SplitMix64 (Steele, Lea, Flood 2014).
    pub fn random_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Returns a random number from `from` (inclusive) to `to` (exclusive). In a quarter of the calls it is one of
    /// the four smallest possible numbers.
    pub fn integer_between(&mut self, from: usize, to: usize) -> usize {
        let span = (to - from) as u64;
        let span = if self.true_with_probability(0.25) { span.min(4) } else { span };
        from + (self.random_u64() % span) as usize
    }

    /// Returns a random number from 0 (inclusive) to 1 (exclusive).
    pub fn unit_float(&mut self) -> f32 {
        (self.random_u64() >> 40) as f32 / (1u64 << 24) as f32
    }

    pub fn true_with_probability(&mut self, probability: f32) -> bool {
        self.unit_float() < probability
    }

    /// Returns a random element of `options`.
    pub fn one_of<T: Copy>(&mut self, options: &[T]) -> T {
        options[(self.random_u64() % options.len() as u64) as usize]
    }

    /// Returns a list whose random length is from `from` (inclusive) to `to` (exclusive).
    pub fn random_list<T>(&mut self, from: usize, to: usize, mut item: impl FnMut(&mut RandomChoices) -> T) -> Vec<T> {
        (0..self.integer_between(from, to)).map(|_| item(self)).collect()
    }
}
