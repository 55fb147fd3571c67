mod small;

use half::bf16;
use reel_device::DType::{self, BF16, F32};
use reel_device::launch::{AddressTable, ArrayEntry, chunks};
use reel_device::{Addr, Element};

use super::{
    Moments, ParameterEntry, Params, SplitParams, StepEntry, StepHyperparameters, StepTables, WEIGHTS_PER_CHUNK,
    formula, from_bf16_and_remainder, split_master, step, test_weight_counts, to_bf16_and_remainder,
};
use crate::checks::{addr, addr_mut, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, F32_HALF_ULP, assert_close, assert_rounded};
use small::{
    a_gradient_that_is_not_finite_spreads_over_its_block, a_split_master_takes_the_same_small_steps,
    a_step_with_8_bit_moments_is_close_to_the_formula, a_step_with_bf16_moments_is_close_to_the_formula,
    parts_step_as_the_whole_parameter, rounded_moments_have_no_bias,
};

checks!(
    equals_the_formula_over_steps,
    equals_torch,
    a_split_master_takes_the_same_steps_bit_for_bit,
    a_gradient_that_is_not_finite_shows,
    parameters_of_one_launch_step_as_each_alone,
    bf16_weights_split_in_place,
    a_step_with_bf16_moments_is_close_to_the_formula,
    a_step_with_8_bit_moments_is_close_to_the_formula,
    a_split_master_takes_the_same_small_steps,
    a_gradient_that_is_not_finite_spreads_over_its_block,
    parts_step_as_the_whole_parameter,
    rounded_moments_have_no_bias,
);

const SCALARS: StepHyperparameters =
    StepHyperparameters { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 1 };

/// Launches a step of several parameters. Each parameter has a state, a gradient (f32 `[n]`, or null) and scalars.
fn run_step(
    dtype: DType,
    moments: Moments,
    parameters: &[(ParameterEntry, Addr, StepEntry)],
    clip: Addr,
    threads: usize,
) {
    let entries: Vec<ParameterEntry> = parameters.iter().map(|p| p.0).collect();
    let gradients: Vec<ArrayEntry> = parameters.iter().map(|p| ArrayEntry { x: p.1, len: p.0.n }).collect();
    let steps: Vec<StepEntry> = parameters.iter().map(|p| p.2).collect();
    let chunks = chunks(entries.iter().map(|p| p.n as usize), WEIGHTS_PER_CHUNK);
    let params = Params {
        parameters: addr(&entries),
        gradients: addr(&gradients),
        steps: addr(&steps),
        chunks: addr(&chunks),
        clip,
        seed: 7,
        chunk_count: chunks.len() as u64,
    };
    let tables = StepTables { parameters: AddressTable::new(&entries), gradients: AddressTable::new(&gradients) };
    run(&step(dtype, moments, &params, tables, entries.iter().map(|p| p.n).sum()), threads);
}

/// Test data of one optimizer state: weights (f32, or bf16 with low halves) and both f32 moments.
#[derive(Clone, Debug, PartialEq)]
struct Weights {
    f32: Vec<f32>,
    hi: Vec<bf16>,
    low: Vec<i16>,
    m: Vec<f32>,
    v: Vec<f32>,
}

impl Weights {
    fn new(w: &[f32]) -> Weights {
        let n = w.len();
        let halves = |&w: &f32| {
            let (hi, low) = to_bf16_and_remainder(w);
            (bf16::from_bits(hi), low)
        };
        let (hi, low) = w.iter().map(halves).unzip();
        Weights { f32: w.to_vec(), hi, low, m: vec![0.0; n], v: vec![0.0; n] }
    }

    fn entry(&mut self, dtype: DType) -> ParameterEntry {
        let (w, low) = match dtype {
            F32 => (addr_mut(&mut self.f32), Addr::NULL),
            _ => (addr_mut(&mut self.hi), addr_mut(&mut self.low)),
        };
        let (m, v) = (addr_mut(&mut self.m), addr_mut(&mut self.v));
        ParameterEntry { w, low, m, v, scales: Addr::NULL, n: self.f32.len() as u64, first: 0 }
    }

    fn step(&mut self, dtype: DType, scalars: &StepHyperparameters, g: &[f32], clip: Addr, threads: usize) {
        let step = StepEntry { stream: 0, numbers: scalars.step_numbers() };
        run_step(dtype, Moments::F32, &[(self.entry(dtype), addr(g), step)], clip, threads);
    }

    /// Returns `[w, m, v]` of each weight, widened to f64.
    fn states(&self) -> Vec<[f64; 3]> {
        (0..self.f32.len()).map(|i| [self.f32[i], self.m[i], self.v[i]].map(|x| x as f64)).collect()
    }

    fn joined(&self) -> Vec<f32> {
        self.hi.iter().zip(&self.low).map(|(hi, low)| from_bf16_and_remainder(hi.to_bits(), *low)).collect()
    }
}

/// Asserts that the states after a step equal the f64 formula applied to the f32 states before it.
fn assert_stepped(scalars: &StepHyperparameters, before: &[[f64; 3]], g: &[f64], after: &[[f64; 3]]) {
    for (k, which) in ["w", "m", "v"].into_iter().enumerate() {
        let by = |f: fn(&StepHyperparameters, [f64; 3], f64) -> [f64; 3]| -> Vec<f64> {
            before.iter().zip(g).map(|(state, g)| f(scalars, *state, *g)[k]).collect()
        };
        let got: Vec<f32> = after.iter().map(|state| state[k] as f32).collect();
        // The tolerance is larger for few weights, because one moment that changes its sign may then cause most of
        // the relative error.
        let rounding_factor = DEFAULT_ROUNDING_FACTOR * (1.0 + 64.0 / got.len().max(1) as f64);
        assert_rounded(which, F32, &got, &by(formula::step_rounded), &by(formula::step), rounding_factor);
    }
}

fn equals_the_formula_over_steps() {
    for n in test_weight_counts() {
        let (start, clip) = (normal_numbers(n, 1, 0.1), [12.5f32, 0.4]);
        let mut weights = Weights::new(&start);
        let mut want: Vec<[f64; 3]> = start.iter().map(|&w| [w as f64, 0.0, 0.0]).collect();
        for t in 1..=5 {
            let (scalars, g) = (StepHyperparameters { step: t, ..SCALARS }, normal_numbers(n, 10 + t, 1.0));
            let before = weights.states();
            weights.step(F32, &scalars, &g, addr(&clip), 3);
            let clipped = |g: &f32| *g as f64 * 0.4f32 as f64;
            for (state, g) in want.iter_mut().zip(&g) {
                *state = formula::step(&scalars, *state, clipped(g));
            }
            assert_stepped(&scalars, &before, &g.iter().map(clipped).collect::<Vec<_>>(), &weights.states());
        }
        let part = |k: usize| want.iter().map(|s| s[k]).collect::<Vec<f64>>();
        // Compares only the change of each weight. The change is about a hundredth of the weight, so a comparison of
        // whole weights would tolerate a large relative error of the change.
        let change: Vec<f32> = weights.f32.iter().zip(&start).map(|(w, s)| w - s).collect();
        let want: Vec<f64> = part(0).iter().zip(&start).map(|(w, s)| w - *s as f64).collect();
        // Bound of the error of the change after five steps. Each step rounds w twice (after the decay and after the
        // update). The update is at most about lr and carries a few more roundings.
        let bound = |i: usize| 10.0 * F32_HALF_ULP * (f64::from(start[i].abs()) + 16.0 * SCALARS.lr);
        assert_close("change of w", &change, &want, 1e-4, bound);
    }
}

/// Reproduces four steps of `torch.optim.AdamW` (torch 2.7.1, CPU, f32, lr 1e-3, weight decay 0.01) on five weights.
fn equals_torch() {
    let mut weights = Weights::new(&[1.0, -0.37, 0.002, 123.5, -1e-6]);
    let gradients = [
        [0.5f32, -1e-4, 3.0, 0.0, 1e-9],
        [0.25, 2e-4, -3.0, 1e-3, -1e-9],
        [-0.125, 1.0, 0.1, 0.0, 5e-9],
        [0.75, -1e-4, 7.0, -1e-3, 0.0],
    ];
    for (t, g) in gradients.iter().enumerate() {
        weights.step(F32, &StepHyperparameters { step: t as u64 + 1, ..SCALARS }, g, Addr::NULL, 1);
    }
    let w = [0x3f7f_292d, 0xbebd_b3f4, 0x3a1b_2d35, 0x42f6_fcd5, 0xb9ac_3658u32];
    let m = [0x3df6_ae7e, 0x3db8_5159, 0x3f2f_4881, 0xb79f_6232, 0x2ff2_efe6u32];
    let v = [0x3a69_3d1e, 0x3a82_f0e1, 0x3d89_24f6, 0x3109_4d36, 0x1efe_b979u32];
    for (name, got, want) in [("w", &weights.f32, w), ("m", &weights.m, m), ("v", &weights.v, v)] {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let off = got.to_bits().abs_diff(want);
            assert!(off <= 2, "{name}[{i}]: {got}, torch has {}: off by {off} ulp", f32::from_bits(want));
        }
    }
}

fn a_split_master_takes_the_same_steps_bit_for_bit() {
    for n in test_weight_counts() {
        let start = normal_numbers(n, 1, 0.1);
        let (mut plain, mut split, mut threads) = (Weights::new(&start), Weights::new(&start), Weights::new(&start));
        for t in 1..=20 {
            let (scalars, g) = (StepHyperparameters { step: t, lr: 1e-6, ..SCALARS }, normal_numbers(n, 10 + t, 1.0));
            plain.step(F32, &scalars, &g, Addr::NULL, 2);
            split.step(BF16, &scalars, &g, Addr::NULL, 1);
            threads.step(BF16, &scalars, &g, Addr::NULL, 4);
        }
        assert_eq!(split.joined(), plain.f32);
        assert_eq!((&split.m, &split.v), (&plain.m, &plain.v));
        assert_eq!((&split.hi, &split.low), (&threads.hi, &threads.low));
    }
}

fn a_gradient_that_is_not_finite_shows() {
    let mut weights = Weights::new(&[1.0, 2.0]);
    weights.step(F32, &SCALARS, &[1.0, 1.0], addr(&[f32::NAN, f32::NAN]), 1);
    assert!(weights.f32.iter().all(|w| w.is_nan()));
}

fn parameters_of_one_launch_step_as_each_alone() {
    let clip = [3.0f32, 0.7];
    let mut counts = test_weight_counts();
    counts.extend([WEIGHTS_PER_CHUNK, 5, WEIGHTS_PER_CHUNK + 1]);
    let start: Vec<Weights> =
        counts.iter().zip(1..).map(|(&n, seed)| Weights::new(&normal_numbers(n, seed, 0.1))).collect();
    let gradients: Vec<Vec<f32>> = counts.iter().zip(20..).map(|(&n, seed)| normal_numbers(n, seed, 1.0)).collect();
    // Learning rate, weight decay, step number and weight representation differ between parameters, and two parameters
    // have no gradient.
    let scalars = |i: usize| StepHyperparameters {
        lr: 1e-3 * (i + 1) as f64,
        weight_decay: if i.is_multiple_of(3) { 0.0 } else { 0.1 },
        step: 1 + i as u64,
        ..SCALARS
    };
    let dtype_of = |i: usize| if i % 3 == 1 { BF16 } else { F32 };
    let has_gradient = |i: usize| i != 2 && i != 6;
    let mut alone = start.clone();
    for (i, weights) in alone.iter_mut().enumerate().filter(|(i, _)| has_gradient(*i)) {
        weights.step(dtype_of(i), &scalars(i), &gradients[i], addr(&clip), 1);
    }
    let mut together = start;
    for dtype in [F32, BF16] {
        let parameters: Vec<_> = together
            .iter_mut()
            .enumerate()
            .map(|(i, weights)| {
                let gradient = if has_gradient(i) { addr(&gradients[i]) } else { Addr::NULL };
                let step = StepEntry { stream: i as u64, numbers: scalars(i).step_numbers() };
                (weights.entry(dtype_of(i)), gradient, step)
            })
            .collect();
        run_step(dtype, Moments::F32, &parameters, addr(&clip), 3);
    }
    assert_eq!(together, alone);
}

fn bf16_weights_split_in_place() {
    for n in test_weight_counts() {
        let start: Vec<bf16> = normal_numbers(n, 1, 0.1).into_iter().map(<bf16 as Element>::from_f32).collect();
        let (mut copy, mut low) = (vec![bf16::NAN; n], vec![7i16; n]);
        let params = SplitParams { src: addr(&start), w: addr_mut(&mut copy), low: addr_mut(&mut low), n: n as u64 };
        run(&split_master(&params), 2);
        assert_eq!((&copy, &low), (&start, &vec![0; n]));
        low.fill(7);
        let same = addr_mut(&mut copy);
        run(&split_master(&SplitParams { src: same, w: same, low: addr_mut(&mut low), n: n as u64 }), 2);
        assert_eq!((&copy, &low), (&start, &vec![0; n]));
    }
}

#[cfg(test)]
mod tests;
