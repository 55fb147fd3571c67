use half::bf16;
use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};

use super::{SCALARS, run_step};
use crate::adamw::small::{decode_first_moment, decode_second_moment};
use crate::adamw::{
    Moments, ParameterEntry, StepEntry, StepHyperparameters, WEIGHTS_PER_SCALE, formula, from_bf16_and_remainder,
    test_weight_counts,
};
use crate::checks::{addr, addr_mut, normal_numbers, with_one_interleaving};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, F32_HALF_ULP, assert_rounded};

/// Test data of one optimizer state: f32 or split weights, and the moments twice, as bf16 and as 8-bit codes.
#[derive(Clone, Debug, PartialEq)]
struct State {
    f32: Vec<f32>,
    hi: Vec<u16>,
    low: Vec<i16>,
    bf16: [Vec<bf16>; 2],
    first: Vec<i8>,
    second: Vec<u8>,
    scales: Vec<f32>,
}

impl State {
    fn new(w: &[f32]) -> State {
        let n = w.len();
        let (hi, low) = w.iter().map(|&w| crate::adamw::to_bf16_and_remainder(w)).unzip();
        let bf16 = [vec![bf16::ZERO; n], vec![bf16::ZERO; n]];
        State {
            f32: w.to_vec(),
            hi,
            low,
            bf16,
            first: vec![0; n],
            second: vec![0; n],
            scales: vec![0.0; 2 * n.div_ceil(WEIGHTS_PER_SCALE)],
        }
    }

    fn entry(&mut self, dtype: DType, moments: Moments) -> ParameterEntry {
        let (w, low) = match dtype {
            F32 => (addr_mut(&mut self.f32), Addr::NULL),
            _ => (addr_mut(&mut self.hi), addr_mut(&mut self.low)),
        };
        let (m, v, scales) = match moments {
            Moments::Int8 => (addr_mut(&mut self.first), addr_mut(&mut self.second), addr_mut(&mut self.scales)),
            _ => (addr_mut(&mut self.bf16[0]), addr_mut(&mut self.bf16[1]), Addr::NULL),
        };
        ParameterEntry { w, low, m, v, scales, n: self.f32.len() as u64, first: 0 }
    }

    fn step(&mut self, dtype: DType, moments: Moments, scalars: &StepHyperparameters, g: &[f32], threads: usize) {
        let entry = self.entry(dtype, moments);
        run_step(dtype, moments, &[(entry, addr(g), step_entry(scalars))], Addr::NULL, threads);
    }

    /// Steps the state as [`State::step`] does, but the table has one entry for each part of `part_len` weights. The
    /// last part may be shorter.
    fn step_in_parts(
        &mut self,
        dtype: DType,
        moments: Moments,
        scalars: &StepHyperparameters,
        g: &[f32],
        part_len: usize,
    ) {
        let (whole, gradient) = (self.entry(dtype, moments), addr(g));
        let moment_bytes = if moments == Moments::Int8 { 1 } else { 2 };
        let part = |first: usize| {
            let at = |start: Addr, bytes| if start.is_null() { start } else { start.offset(first * bytes) };
            let entry = ParameterEntry {
                w: at(whole.w, dtype.size()),
                low: at(whole.low, 2),
                m: at(whole.m, moment_bytes),
                v: at(whole.v, moment_bytes),
                scales: if whole.scales.is_null() {
                    Addr::NULL
                } else {
                    whole.scales.offset(8 * first / WEIGHTS_PER_SCALE)
                },
                n: part_len.min(g.len() - first) as u64,
                first: first as u64,
            };
            (entry, at(gradient, 4), step_entry(scalars))
        };
        let parts: Vec<_> = (0..g.len()).step_by(part_len).map(part).collect();
        run_step(dtype, moments, &parts, Addr::NULL, 2);
    }

    fn step_bf16(&mut self, dtype: DType, scalars: &StepHyperparameters, g: &[f32], threads: usize) {
        self.step(dtype, Moments::Bf16, scalars, g, threads);
    }

    fn step_8bit(&mut self, dtype: DType, scalars: &StepHyperparameters, g: &[f32], threads: usize) {
        self.step(dtype, Moments::Int8, scalars, g, threads);
    }

    /// Returns the decoded 8-bit moments `[m, v]` of weight `i`.
    fn moments(&self, i: usize) -> [f64; 2] {
        let scale = |k: usize| self.scales[2 * (i / WEIGHTS_PER_SCALE) + k];
        [scale(0) * decode_first_moment(self.first[i]), scale(1) * decode_second_moment(self.second[i])]
            .map(|x| x as f64)
    }

    fn joined(&self) -> Vec<f32> {
        self.hi.iter().zip(&self.low).map(|(h, l)| from_bf16_and_remainder(*h, *l)).collect()
    }
}

fn step_entry(scalars: &StepHyperparameters) -> StepEntry {
    StepEntry { stream: scalars.step, numbers: scalars.step_numbers() }
}

/// Tells whether `got` differs from `want` by at most `rel` times the magnitude of `want`.
fn near(got: f64, want: f64, rel: f64) -> bool {
    (got - want).abs() <= rel * want.abs() + 1e-30
}

/// Asserts that the weights after a step equal the formula. `old(i)` returns the state `[w, m, v]` of weight i before
/// the step.
fn assert_weights(scalars: &StepHyperparameters, old: impl Fn(usize) -> [f64; 3], g: &[f32], got: &[f32]) {
    let [with, want] = [formula::step_rounded, formula::step]
        .map(|f| g.iter().enumerate().map(|(i, g)| f(scalars, old(i), *g as f64)[0]).collect::<Vec<f64>>());
    assert_rounded("w", F32, got, &with, &want, DEFAULT_ROUNDING_FACTOR);
}

pub(super) fn a_step_with_bf16_moments_is_close_to_the_formula() {
    for n in test_weight_counts() {
        let mut state = State::new(&normal_numbers(n, 1, 0.1));
        for t in 1..=3 {
            let (scalars, g) = (StepHyperparameters { step: t, ..SCALARS }, normal_numbers(n, 10 + t, 1.0));
            let before = state.clone();
            state.step_bf16(F32, &scalars, &g, 3);
            let old = |i: usize| [before.f32[i] as f64, before.bf16[0][i].to_f64(), before.bf16[1][i].to_f64()];
            assert_weights(&scalars, old, &g, &state.f32);
            for (i, g) in g.iter().enumerate() {
                let [_, m, v] = formula::step(&scalars, old(i), *g as f64);
                // Stochastic rounding moves a value at most to the neighbouring bf16, a relative distance of 2⁻⁷. The
                // new m may be much smaller than the old m, so the f32 roundings of the terms with the old m have a
                // bound of their own.
                let (got, rounding) = (state.bf16[0][i].to_f64(), 4.0 * F32_HALF_ULP * old(i)[1].abs());
                assert!((got - m).abs() <= 0.0079 * m.abs() + rounding + 1e-30, "m[{i}]: {got}, want {m}");
                assert!(near(state.bf16[1][i].to_f64(), v, 0.0079), "v[{i}]: {}, want {v}", state.bf16[1][i]);
            }
        }
    }
}

pub(super) fn a_step_with_8_bit_moments_is_close_to_the_formula() {
    for n in test_weight_counts() {
        let mut state = State::new(&normal_numbers(n, 1, 0.1));
        for t in 1..=3 {
            let (scalars, g) = (StepHyperparameters { step: t, ..SCALARS }, normal_numbers(n, 10 + t, 1.0));
            let before = state.clone();
            state.step_8bit(F32, &scalars, &g, 3);
            let old = |i: usize| {
                let [m, v] = before.moments(i);
                [before.f32[i] as f64, m, v]
            };
            assert_weights(&scalars, old, &g, &state.f32);
            let want: Vec<[f64; 3]> =
                g.iter().enumerate().map(|(i, g)| formula::step(&scalars, old(i), *g as f64)).collect();
            for (b, block) in want.chunks(WEIGHTS_PER_SCALE).enumerate() {
                for k in [0, 1] {
                    let largest = block.iter().fold(0.0, |a: f64, x| a.max(x[k + 1].abs()));
                    let scale = state.scales[2 * b + k];
                    assert!(near(scale as f64, largest, 1e-6), "scale {k} of block {b} is {scale}, want {largest}");
                }
            }
            for (i, w) in want.iter().enumerate() {
                let [m, v] = state.moments(i);
                let scale = |k: usize| state.scales[2 * (i / WEIGHTS_PER_SCALE) + k] as f64;
                // The errors of m and v, counted in codes. Code c means m = scale · (c / 127)² or v = scale · (c /
                // 255)⁴, so the code of a number is 127 · (m / scale)^(1/2) or 255 · (v / scale)^(1/4).
                let root = |x: f64, k: usize, p: f64| (x.abs() / scale(k)).powf(p);
                let (step_m, step_v) =
                    ((root(m, 0, 0.5) - root(w[1], 0, 0.5)) * 127.0, (root(v, 1, 0.25) - root(w[2], 1, 0.25)) * 255.0);
                assert!(
                    step_m.abs() <= 1.001 && (m * w[1] >= 0.0),
                    "m[{i}]: {m}, want {}: off by {step_m} codes",
                    w[1]
                );
                assert!(step_v.abs() <= 1.001, "v[{i}]: {v}, want {}: off by {step_v} codes", w[2]);
            }
        }
    }
}

pub(super) fn a_split_master_takes_the_same_small_steps() {
    for n in test_weight_counts() {
        let start = normal_numbers(n, 1, 0.1);
        let [mut plain, mut split, mut more] = [(); 3].map(|_| State::new(&start));
        for t in 1..=4 {
            let (scalars, g) = (StepHyperparameters { step: t, lr: 1e-6, ..SCALARS }, normal_numbers(n, 10 + t, 1.0));
            type StepFn = fn(&mut State, DType, &StepHyperparameters, &[f32], usize);
            for step in [State::step_bf16 as StepFn, State::step_8bit] {
                step(&mut plain, F32, &scalars, &g, 2);
                step(&mut split, BF16, &scalars, &g, 1);
                step(&mut more, BF16, &scalars, &g, 4);
            }
        }
        assert_eq!(split.joined(), plain.f32);
        assert_eq!(
            (&split.bf16, &split.first, &split.second, &split.scales),
            (&plain.bf16, &plain.first, &plain.second, &plain.scales)
        );
        assert_eq!((&split.hi, &split.low, &split.first), (&more.hi, &more.low, &more.first));
    }
}

/// Updating a parameter in parts, as the ranks of a job do, gives the same bits as updating the whole parameter.
pub(super) fn parts_step_as_the_whole_parameter() {
    for (n, part_len) in [(17, WEIGHTS_PER_SCALE), (8191, 3 * WEIGHTS_PER_SCALE), (8192, 8 * WEIGHTS_PER_SCALE)] {
        let start = normal_numbers(n, 1, 0.1);
        for (dtype, moments) in [F32, BF16].into_iter().flat_map(|t| [(t, Moments::Bf16), (t, Moments::Int8)]) {
            let [mut whole, mut parts] = [(); 2].map(|()| State::new(&start));
            for t in 1..=3 {
                let (scalars, g) = (StepHyperparameters { step: t, ..SCALARS }, normal_numbers(n, 10 + t, 1.0));
                whole.step(dtype, moments, &scalars, &g, 2);
                parts.step_in_parts(dtype, moments, &scalars, &g, part_len);
            }
            assert_eq!(parts, whole, "{n} weights in parts of {part_len}, {dtype}, {moments:?}");
        }
    }
}

pub(super) fn a_gradient_that_is_not_finite_spreads_over_its_block() {
    let mut state = State::new(&[1.0; 600]);
    let mut g = vec![1.0; 600];
    g[300] = f32::NAN;
    state.step_8bit(F32, &SCALARS, &g, 1);
    assert!(state.f32[300].is_nan() && state.f32[299].is_finite());
    let bad: Vec<bool> = (0..600).map(|i| state.moments(i)[0].is_nan() && state.moments(i)[1].is_nan()).collect();
    assert!((0..600).all(|i| bad[i] == (i / WEIGHTS_PER_SCALE == 1)));
    state.step_bf16(F32, &SCALARS, &g, 1);
    assert!(state.bf16[0][300].is_nan() && state.bf16[1][300].is_nan() && state.bf16[0][299].is_finite());
}

/// Number of samples from which the tests of stochastic rounding compute a mean.
const DRAWS: usize = 1 << 20;

/// Asserts that `got` are stochastically rounded samples of `x`: each sample is one of the two representable
/// neighbours of `x`, and their mean is `x`.
fn assert_unbiased(name: &str, x: f64, got: impl Iterator<Item = f64> + Clone) {
    let (low, high) = got.clone().fold((f64::MAX, f64::MIN), |(low, high), y| (low.min(y), high.max(y)));
    assert!(low < x && x < high, "{name}: {x} is not between its roundings {low} and {high}");
    assert!(
        got.clone().all(|y| y == low || y == high),
        "{name}: {x} was rounded to more than two values; the least is {low}, the greatest {high}"
    );
    let count = got.clone().count();
    assert!(count >= DRAWS);
    // Compares the share of samples that were rounded up, which loses less precision than comparing means.
    let share = (x - low) / (high - low);
    let mean = got.filter(|y| *y == high).count() as f64 / count as f64;
    let deviation = (share * (1.0 - share) / count as f64).sqrt();
    assert!(
        (mean - share).abs() <= 4.0 * deviation,
        "{name}: {x}: a share of {mean} was rounded up, want {share} ± {deviation}"
    );
}

/// Gives many weights the same update with different random bits, and checks that rounding of the moments has no bias.
pub(super) fn rounded_moments_have_no_bias() {
    for g in [0.83f32, -2.7e-5, 311.0] {
        let mut state = State::new(&vec![0.5; DRAWS]);
        let gradients = vec![g; DRAWS];
        with_one_interleaving(|| state.step_bf16(F32, &SCALARS, &gradients, 1));
        let [_, m, v] = formula::step_rounded(&SCALARS, [0.5, 0.0, 0.0], g as f64);
        for (name, x, got) in [("bf16 m", m, &state.bf16[0]), ("bf16 v", v, &state.bf16[1])] {
            assert_unbiased(name, x, got.iter().map(|y| y.to_f64()));
            let bits = || got.iter().map(|y| y.to_bits());
            assert!(bits().max() == bits().min().map(|low| low + 1), "{name}: {x}");
        }
    }
    // The first weight of a block of weights has the largest moments and sets the block's scale; the moments of the
    // other weights are rounded stochastically.
    let blocks = DRAWS / (WEIGHTS_PER_SCALE - 1) + 1;
    for g in [0.83f32, -2.7e-2] {
        let mut state = State::new(&vec![0.5; blocks * WEIGHTS_PER_SCALE]);
        let gradients: Vec<f32> =
            (0..blocks * WEIGHTS_PER_SCALE).map(|i| if i % WEIGHTS_PER_SCALE == 0 { 1.7 } else { g }).collect();
        with_one_interleaving(|| state.step_8bit(F32, &SCALARS, &gradients, 1));
        let [[_, m, v], [_, m_scale, v_scale]] =
            [g, 1.7].map(|g| formula::step_rounded(&SCALARS, [0.5, 0.0, 0.0], g as f64));
        let draws = || (0..blocks * WEIGHTS_PER_SCALE).filter(|i| i % WEIGHTS_PER_SCALE > 0);
        assert_unbiased("8-bit m", m / m_scale, draws().map(|i| decode_first_moment(state.first[i]) as f64));
        assert_unbiased("8-bit v", v / v_scale, draws().map(|i| decode_second_moment(state.second[i]) as f64));
        let next = |codes: [Option<i32>; 2]| codes[0].map(|c| c + 1) == codes[1];
        let first = || draws().map(|i| state.first[i] as i32);
        let second = || draws().map(|i| state.second[i] as i32);
        assert!(next([first().min(), first().max()]) && next([second().min(), second().max()]));
    }
}

#[cfg(test)]
mod tests;
