//! AdamW with bf16 or 8-bit moments on the CPU: each task updates a chunk of the weights of one parameter.
#![allow(unsafe_code)]

use half::bf16;
use reel_device::Team;
use reel_device::launch::view::{OutputArray, slice_at};

use super::cpu::{ChunkUpdate, for_each_chunk};
use super::{
    ParameterEntry, Params, SplitWeightHighHalf, StepNumbers, WEIGHTS_PER_SCALE, from_bf16_and_remainder,
    to_bf16_and_remainder,
};
use reel_support::philox::random_words;

/// The scalars of a step, and the seed and stream of its random bits.
struct Step {
    factor: f32,
    decay: f32,
    step_size: f32,
    root_bias2: f32,
    numbers: StepNumbers,
    seed: u64,
    stream: u64,
}

impl Step {
    fn new(p: &Params, task: &ChunkUpdate) -> Step {
        let numbers = task.step.numbers;
        Step {
            factor: task.factor,
            decay: (1.0 - numbers.lr as f64 * numbers.weight_decay as f64) as f32,
            step_size: (numbers.lr as f64 / numbers.bias1 as f64) as f32,
            root_bias2: (numbers.bias2 as f64).sqrt() as f32,
            numbers,
            seed: p.seed,
            stream: task.step.stream,
        }
    }

    /// w, m and v after the step.
    fn apply(&self, [w, m, v]: [f32; 3], g: f32) -> [f32; 3] {
        let (p, g) = (&self.numbers, g * self.factor);
        let m = m + p.rest1 * (g - m);
        let v = p.beta2 * v + p.rest2 * (g * g);
        [w * self.decay - self.step_size * (m / (v.sqrt() / self.root_bias2 + p.eps)), m, v]
    }
}

/// Returns 16 random bits for m and 16 for v of each of the weights `8 * group .. 8 * group + 8`.
pub(super) fn rounding_random_bits(seed: u64, stream: u64, group: u64) -> [[u16; 8]; 2] {
    let words = random_words(seed, stream, group);
    let word = |j: usize| if j < 4 { words[j] } else { mixed(words[j - 4]) };
    [0, 16].map(|shift| std::array::from_fn(|j| (word(j) >> shift) as u16))
}

/// An invertible mixing function of 32 bits: if one bit of `word` changes, about half of the result's bits change.
fn mixed(word: u32) -> u32 {
    let z = (word ^ (word >> 16)).wrapping_mul(0x7feb_352d);
    z ^ (z >> 15)
}

/// Rounds `x` to bf16 stochastically: adds 16 random bits below the bf16's last bit and truncates.
pub(super) fn round_stochastically_to_bf16(x: f32, random_bits: u16) -> bf16 {
    if x.is_nan() { bf16::NAN } else { bf16::from_bits(((x.to_bits() + random_bits as u32) >> 16) as u16) }
}

/// Returns the first moment that code `c` stands for at scale 1.
pub(super) fn decode_first_moment(c: i8) -> f32 {
    let q = c as f32 / 127.0;
    q * q.abs()
}

/// Returns the second moment that code `c` stands for at scale 1.
pub(super) fn decode_second_moment(c: u8) -> f32 {
    let q = c as f32 / 255.0;
    (q * q) * (q * q)
}

/// Returns the code of `x` (0 to 1), stochastically rounded. `root` is the exact code as a real number; `random_bits`
/// choose between the codes below and above it. `value` decodes a code; `last` is the largest code.
fn stochastic_code(x: f32, root: f32, last: i32, random_bits: u16, value: impl Fn(i32) -> f32) -> i32 {
    let below = (root as i32).clamp(0, last - 1);
    let (low, high) = (value(below), value(below + 1));
    below + ((random_bits as f32) * (high - low) < 65536.0 * (x - low)) as i32
}

/// Returns the stochastically rounded code of the first moment `m` in a block whose scale is `scale`.
pub(super) fn encode_first_moment(m: f32, scale: f32, random_bits: u16) -> i8 {
    let x = m.abs() / scale;
    let c = stochastic_code(x, 127.0 * x.sqrt(), 127, random_bits, |c| decode_first_moment(c as i8));
    if m < 0.0 { -c as i8 } else { c as i8 }
}

/// Returns the stochastically rounded code of the second moment `v` in a block whose scale is `scale`.
pub(super) fn encode_second_moment(v: f32, scale: f32, random_bits: u16) -> u8 {
    let x = v / scale;
    stochastic_code(x, 255.0 * x.sqrt().sqrt(), 255, random_bits, |c| decode_second_moment(c as u8)) as u8
}

/// Returns the largest magnitude in `x`, or NaN if an element is NaN.
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most: f32, x| if x.abs() > most || x.is_nan() { x.abs() } else { most })
}

/// Access to f32 weights or to the two halves of split weights.
pub(super) trait Weights: Copy + Send + Sync {
    /// Whether the weights are split into halves.
    const SPLIT: bool;
    /// # Safety
    /// The addresses of the parameter cover `n` weights.
    unsafe fn new(p: &ParameterEntry, n: usize) -> Self;
    /// # Safety
    /// No other thread accesses the weights `at .. at + len` during the call.
    unsafe fn update(&self, at: usize, len: usize, step: impl FnMut(usize, f32) -> f32);
}

/// Weights in f32.
#[derive(Clone, Copy)]
pub(super) struct PlainWeights(OutputArray<f32>);

impl Weights for PlainWeights {
    const SPLIT: bool = false;

    unsafe fn new(p: &ParameterEntry, n: usize) -> PlainWeights {
        // SAFETY: `p.w` covers `n` weights.
        PlainWeights(unsafe { OutputArray::new(p.w, n) })
    }

    unsafe fn update(&self, at: usize, len: usize, mut step: impl FnMut(usize, f32) -> f32) {
        // SAFETY: no other thread accesses these weights.
        let part = unsafe { self.0.part(at, len) };
        part.iter_mut().enumerate().for_each(|(i, w)| *w = step(i, *w));
    }
}

/// Split weights: the bf16 high halves and the 16-bit low halves.
#[derive(Clone, Copy)]
pub(super) struct SplitWeights(OutputArray<SplitWeightHighHalf>, OutputArray<i16>);

impl Weights for SplitWeights {
    const SPLIT: bool = true;

    unsafe fn new(p: &ParameterEntry, n: usize) -> SplitWeights {
        // SAFETY: `p.w` and `p.low` cover `n` weights.
        unsafe { SplitWeights(OutputArray::new(p.w, n), OutputArray::new(p.low, n)) }
    }

    unsafe fn update(&self, at: usize, len: usize, mut step: impl FnMut(usize, f32) -> f32) {
        // SAFETY: no other thread accesses these weights.
        let (hi, low) = unsafe { (self.0.part(at, len), self.1.part(at, len)) };
        for (i, (hi, low)) in hi.iter_mut().zip(low).enumerate() {
            let (h, l) = to_bf16_and_remainder(step(i, from_bf16_and_remainder(hi.to_bits(), *low)));
            (*hi, *low) = (SplitWeightHighHalf::from_bits(h), l);
        }
    }
}

/// # Safety
/// Every address in [`Params`] and in its tables is valid for the documented shape and dtype.
pub(super) unsafe fn step_bf16_moments<W: Weights>(p: &Params, team: &Team) {
    let update = |task: &ChunkUpdate| {
        let (parameter, n, at, len) = (&task.parameter, task.parameter.n as usize, task.at, task.len);
        // SAFETY: the addresses of a parameter cover `n` elements.
        let (weights, ms, vs) = unsafe {
            (W::new(parameter, n), OutputArray::<bf16>::new(parameter.m, n), OutputArray::<bf16>::new(parameter.v, n))
        };
        // SAFETY: chunks do not overlap; the gradient covers `n` elements.
        let (m, v, g) = unsafe { (ms.part(at, len), vs.part(at, len), slice_at::<f32>(task.gradient, n)) };
        let step = Step::new(p, task);
        let mut drawn = [[0; 8]; 2];
        let one = |i: usize, w: f32| {
            if i.is_multiple_of(8) {
                drawn = rounding_random_bits(step.seed, step.stream, (parameter.first + (at + i) as u64) / 8);
            }
            let [w, m_new, v_new] = step.apply([w, m[i].to_f32(), v[i].to_f32()], g[at + i]);
            m[i] = round_stochastically_to_bf16(m_new, drawn[0][i % 8]);
            v[i] = round_stochastically_to_bf16(v_new, drawn[1][i % 8]);
            w
        };
        // SAFETY: chunks do not overlap.
        unsafe { weights.update(at, len, one) };
    };
    // SAFETY: the caller's promise.
    unsafe { for_each_chunk(p, W::SPLIT, team, update) };
}

/// # Safety
/// Every address in [`Params`] and in its tables is valid for the documented shape and dtype.
pub(super) unsafe fn step_8bit<W: Weights>(p: &Params, team: &Team) {
    let update = |task: &ChunkUpdate| {
        let (parameter, n) = (&task.parameter, task.parameter.n as usize);
        // SAFETY: the addresses of a parameter cover `n` elements.
        let (weights, ms, vs) = unsafe {
            (W::new(parameter, n), OutputArray::<i8>::new(parameter.m, n), OutputArray::<u8>::new(parameter.v, n))
        };
        // SAFETY: `scales` has two elements for each block; the gradient covers `n` elements.
        let (scales, g) = unsafe {
            let scales = OutputArray::<f32>::new(parameter.scales, 2 * n.div_ceil(WEIGHTS_PER_SCALE));
            (scales, slice_at::<f32>(task.gradient, n))
        };
        let step = Step::new(p, task);
        // A chunk is a whole number of blocks of `WEIGHTS_PER_SCALE` weights, unless it is the last chunk of its
        // parameter.
        for at in (task.at..task.at + task.len).step_by(WEIGHTS_PER_SCALE) {
            let len = WEIGHTS_PER_SCALE.min(task.at + task.len - at);
            // SAFETY: blocks do not overlap.
            let (m, v, scale) =
                unsafe { (ms.part(at, len), vs.part(at, len), scales.part(2 * (at / WEIGHTS_PER_SCALE), 2)) };
            let (mut new_m, mut new_v) = ([0.0; WEIGHTS_PER_SCALE], [0.0; WEIGHTS_PER_SCALE]);
            let one = |i: usize, w: f32| {
                let old = [w, scale[0] * decode_first_moment(m[i]), scale[1] * decode_second_moment(v[i])];
                let [w, m, v] = step.apply(old, g[at + i]);
                (new_m[i], new_v[i]) = (m, v);
                w
            };
            // SAFETY: blocks do not overlap.
            unsafe { weights.update(at, len, one) };
            scale.copy_from_slice(&[largest(&new_m[..len]), largest(&new_v[..len])]);
            for group in (0..len).step_by(8) {
                let [for_m, for_v] =
                    rounding_random_bits(step.seed, step.stream, (parameter.first + (at + group) as u64) / 8);
                for i in group..len.min(group + 8) {
                    m[i] = encode_first_moment(new_m[i], scale[0], for_m[i % 8]);
                    v[i] = encode_second_moment(new_v[i], scale[1], for_v[i % 8]);
                }
            }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { for_each_chunk(p, W::SPLIT, team, update) };
}
