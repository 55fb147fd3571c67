//! AdamW with bf16 or 8-bit moments on the CPU: each task updates whole blocks of weights.
#![allow(unsafe_code)]

use super::{
    SmallMomentParams, SplitWeightHighHalf, WEIGHTS_PER_SCALE, from_bf16_and_remainder, to_bf16_and_remainder,
};
use crate::Team;
use crate::philox::random_words;
use crate::view::{OutputArray, slice_at};
use half::bf16;

/// Weights that one task updates: a whole number of blocks.
const TASK: usize = 32 * WEIGHTS_PER_SCALE;

/// The scalars of a step, and its parameters, which include the seed and stream of the random bits.
struct Step {
    factor: f32,
    decay: f32,
    step_size: f32,
    root_bias2: f32,
    p: SmallMomentParams,
}

impl Step {
    /// # Safety
    /// `clip` is null or covers two f32.
    unsafe fn new(p: &SmallMomentParams) -> Step {
        // SAFETY: `clip` is null (then no elements are read) or covers two f32.
        let clip = unsafe { slice_at::<f32>(p.clip, if p.clip.is_null() { 0 } else { 2 }) };
        let numbers = &p.numbers;
        Step {
            factor: clip.get(1).copied().unwrap_or(1.0),
            decay: (1.0 - numbers.lr as f64 * numbers.weight_decay as f64) as f32,
            step_size: (numbers.lr as f64 / numbers.bias1 as f64) as f32,
            root_bias2: (numbers.bias2 as f64).sqrt() as f32,
            p: *p,
        }
    }

    /// w, m and v after the step.
    fn apply(&self, [w, m, v]: [f32; 3], g: f32) -> [f32; 3] {
        let (p, g) = (&self.p.numbers, g * self.factor);
        let m = m + p.rest1 * (g - m);
        let v = p.beta2 * v + p.rest2 * (g * g);
        [w * self.decay - self.step_size * (m / (v.sqrt() / self.root_bias2 + p.eps)), m, v]
    }

    /// Returns 16 random bits for m and 16 for v of each of the weights `8 * group .. 8 * group + 8`.
    fn draws(&self, group: usize) -> [[u16; 8]; 2] {
        [0, 1].map(|moment| {
            let words = random_words(self.p.seed, self.p.stream, 2 * group as u64 + moment);
            std::array::from_fn(|j| (words[j / 2] >> (16 * (j % 2))) as u16)
        })
    }
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

/// Returns the largest magnitude, or NaN if one element is NaN.
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most: f32, x| if x.abs() > most || x.is_nan() { x.abs() } else { most })
}

/// Access to f32 weights or to the two halves of split weights.
pub(super) trait Weights: Copy + Send + Sync {
    /// # Safety
    /// The addresses cover `n` weights.
    unsafe fn new(p: &SmallMomentParams, n: usize) -> Self;
    /// # Safety
    /// No other thread accesses the weights `at .. at + len` meanwhile.
    unsafe fn update(&self, at: usize, len: usize, step: impl FnMut(usize, f32) -> f32);
}

/// Weights in f32.
#[derive(Clone, Copy)]
pub(super) struct PlainWeights(OutputArray<f32>);

impl Weights for PlainWeights {
    unsafe fn new(p: &SmallMomentParams, n: usize) -> PlainWeights {
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
    unsafe fn new(p: &SmallMomentParams, n: usize) -> SplitWeights {
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
/// Every address in [`SmallMomentParams`] is valid for the shape and dtype that its field documents.
pub(super) unsafe fn step_bf16_moments<W: Weights>(p: &SmallMomentParams, team: &Team) {
    let n = p.n as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`SmallMomentParams`] documents.
    let (g, step, weights) = unsafe { (slice_at::<f32>(p.g, n), Step::new(p), W::new(p, n)) };
    // SAFETY: `p`'s addresses cover the shapes that [`SmallMomentParams`] documents.
    let (ms, vs) = unsafe { (OutputArray::<bf16>::new(p.m, n), OutputArray::<bf16>::new(p.v, n)) };
    team.run(n.div_ceil(TASK), |task| {
        let (at, len) = (task * TASK, TASK.min(n - task * TASK));
        // SAFETY: tasks do not overlap.
        let (m, v) = unsafe { (ms.part(at, len), vs.part(at, len)) };
        let mut draws = [[0; 8]; 2];
        let one = |i: usize, w: f32| {
            if i.is_multiple_of(8) {
                draws = step.draws((at + i) / 8);
            }
            let [w, m_new, v_new] = step.apply([w, m[i].to_f32(), v[i].to_f32()], g[at + i]);
            m[i] = round_stochastically_to_bf16(m_new, draws[0][i % 8]);
            v[i] = round_stochastically_to_bf16(v_new, draws[1][i % 8]);
            w
        };
        // SAFETY: tasks do not overlap.
        unsafe { weights.update(at, len, one) };
    });
}

/// # Safety
/// Every address in [`SmallMomentParams`] is valid for the shape and dtype that its field documents.
pub(super) unsafe fn step_8bit<W: Weights>(p: &SmallMomentParams, team: &Team) {
    let n = p.n as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`SmallMomentParams`] documents.
    let (g, step, weights) = unsafe { (slice_at::<f32>(p.g, n), Step::new(p), W::new(p, n)) };
    // SAFETY: `p`'s addresses cover the shapes that [`SmallMomentParams`] documents.
    let (ms, vs) = unsafe { (OutputArray::<i8>::new(p.m, n), OutputArray::<u8>::new(p.v, n)) };
    // SAFETY: `p`'s addresses cover the shapes that [`SmallMomentParams`] documents.
    let scales = unsafe { OutputArray::<f32>::new(p.scales, 2 * n.div_ceil(WEIGHTS_PER_SCALE)) };
    team.run(n.div_ceil(WEIGHTS_PER_SCALE), |block| {
        let (at, len) = (block * WEIGHTS_PER_SCALE, WEIGHTS_PER_SCALE.min(n - block * WEIGHTS_PER_SCALE));
        // SAFETY: blocks do not overlap.
        let (m, v, scale) = unsafe { (ms.part(at, len), vs.part(at, len), scales.part(2 * block, 2)) };
        let (mut new_m, mut new_v) = ([0.0; WEIGHTS_PER_SCALE], [0.0; WEIGHTS_PER_SCALE]);
        let one = |i: usize, w: f32| {
            let [w, m, v] =
                step.apply([w, scale[0] * decode_first_moment(m[i]), scale[1] * decode_second_moment(v[i])], g[at + i]);
            (new_m[i], new_v[i]) = (m, v);
            w
        };
        // SAFETY: blocks do not overlap.
        unsafe { weights.update(at, len, one) };
        scale.copy_from_slice(&[largest(&new_m[..len]), largest(&new_v[..len])]);
        for i in 0..len {
            let [for_m, for_v] = step.draws((at + i) / 8);
            m[i] = encode_first_moment(new_m[i], scale[0], for_m[i % 8]);
            v[i] = encode_second_moment(new_v[i], scale[1], for_v[i % 8]);
        }
    });
}
