use crate::Addr;
use crate::DType;
use crate::DType::{BF16, F32};
use crate::adamw::small::{first, second};
use crate::adamw::{BLOCK, Scalars, SmallParams, cases, formula, join, step_8bit, step_bf16_moments};
use crate::checks::{addr, addr_mut, numbers, run};
use half::bf16;

const SCALARS: Scalars = Scalars { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 1 };

/// Weights, f32 or split, and small moments of both kinds.
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
        let (hi, low) = w.iter().map(|&w| crate::adamw::split(w)).unzip();
        let bf16 = [vec![bf16::ZERO; n], vec![bf16::ZERO; n]];
        State {
            f32: w.to_vec(),
            hi,
            low,
            bf16,
            first: vec![0; n],
            second: vec![0; n],
            scales: vec![0.0; 2 * n.div_ceil(BLOCK)],
        }
    }

    fn params(&mut self, dtype: DType, scalars: &Scalars, g: &[f32]) -> SmallParams {
        let (w, low) = match dtype {
            F32 => (addr_mut(&mut self.f32), Addr::NULL),
            _ => (addr_mut(&mut self.hi), addr_mut(&mut self.low)),
        };
        SmallParams { w, low, g: addr(g), n: g.len() as u64, seed: 7, stream: scalars.step, ..scalars.small_params() }
    }

    fn step_bf16(&mut self, dtype: DType, scalars: &Scalars, g: &[f32], threads: usize) {
        let (m, v) = (addr_mut(&mut self.bf16[0]), addr_mut(&mut self.bf16[1]));
        let params = SmallParams { m, v, ..self.params(dtype, scalars, g) };
        run(&step_bf16_moments(dtype, &params), threads);
    }

    fn step_8bit(&mut self, dtype: DType, scalars: &Scalars, g: &[f32], threads: usize) {
        let (m, v, scales) = (addr_mut(&mut self.first), addr_mut(&mut self.second), addr_mut(&mut self.scales));
        let params = SmallParams { m, v, scales, ..self.params(dtype, scalars, g) };
        run(&step_8bit(dtype, &params), threads);
    }

    /// The values of the 8-bit moments of weight `i`.
    fn moments(&self, i: usize) -> [f64; 2] {
        let scale = |k: usize| self.scales[2 * (i / BLOCK) + k] as f64;
        [scale(0) * first(self.first[i]) as f64, scale(1) * second(self.second[i]) as f64]
    }

    fn joined(&self) -> Vec<f32> {
        self.hi.iter().zip(&self.low).map(|(h, l)| join(*h, *l)).collect()
    }
}

/// Whether two numbers differ by at most `rel` of the second.
fn near(got: f64, want: f64, rel: f64) -> bool {
    (got - want).abs() <= rel * want.abs() + 1e-30
}

pub(super) fn a_step_with_bf16_moments_lands_beside_the_formula() {
    for n in cases() {
        let mut state = State::new(&numbers(n, 1, 0.1));
        for t in 1..=3 {
            let (scalars, g) = (Scalars { step: t, ..SCALARS }, numbers(n, 10 + t, 1.0));
            let before = state.clone();
            state.step_bf16(F32, &scalars, &g, 3);
            for (i, g) in g.iter().enumerate() {
                let old = [before.f32[i] as f64, before.bf16[0][i].to_f64(), before.bf16[1][i].to_f64()];
                let [w, m, v] = formula::step(&scalars, old, *g as f64);
                assert!((state.f32[i] as f64 - w).abs() <= 3e-7 * w.abs().max(0.01), "w[{i}]: {} {w}", state.f32[i]);
                // Never further than the next of bf16, which is at most 2⁻⁷ away.
                assert!(near(state.bf16[0][i].to_f64(), m, 0.0079), "m[{i}]: {} {m}", state.bf16[0][i]);
                assert!(near(state.bf16[1][i].to_f64(), v, 0.0079), "v[{i}]: {} {v}", state.bf16[1][i]);
            }
        }
    }
}

pub(super) fn a_step_with_8_bit_moments_lands_beside_the_formula() {
    for n in cases() {
        let mut state = State::new(&numbers(n, 1, 0.1));
        for t in 1..=3 {
            let (scalars, g) = (Scalars { step: t, ..SCALARS }, numbers(n, 10 + t, 1.0));
            let before = state.clone();
            state.step_8bit(F32, &scalars, &g, 3);
            let mut want = vec![];
            for (i, g) in g.iter().enumerate() {
                let [m, v] = before.moments(i);
                want.push(formula::step(&scalars, [before.f32[i] as f64, m, v], *g as f64));
                let w = want[i][0];
                assert!((state.f32[i] as f64 - w).abs() <= 3e-7 * w.abs().max(0.01), "w[{i}]: {} {w}", state.f32[i]);
            }
            for (b, block) in want.chunks(BLOCK).enumerate() {
                for k in [0, 1] {
                    let largest = block.iter().fold(0.0, |a: f64, x| a.max(x[k + 1].abs()));
                    let scale = state.scales[2 * b + k];
                    assert!(near(scale as f64, largest, 1e-6), "scale {k} of block {b}: {scale} {largest}");
                }
            }
            for (i, w) in want.iter().enumerate() {
                let [m, v] = state.moments(i);
                let scale = |k: usize| state.scales[2 * (i / BLOCK) + k] as f64;
                // A code's neighbours: 2/127 of a root of the scale for m, 4/255 of the fourth root's cube for v.
                let root = |x: f64, k: usize, p: f64| (x.abs() / scale(k)).powf(p);
                let (step_m, step_v) =
                    ((root(m, 0, 0.5) - root(w[1], 0, 0.5)) * 127.0, (root(v, 1, 0.25) - root(w[2], 1, 0.25)) * 255.0);
                assert!(step_m.abs() <= 1.001 && (m * w[1] >= 0.0), "m[{i}]: {m} {}: {step_m} steps", w[1]);
                assert!(step_v.abs() <= 1.001, "v[{i}]: {v} {}: {step_v} steps", w[2]);
            }
        }
    }
}

pub(super) fn a_split_master_takes_the_same_small_steps() {
    for n in cases() {
        let start = numbers(n, 1, 0.1);
        let [mut plain, mut split, mut more] = [(); 3].map(|_| State::new(&start));
        for t in 1..=4 {
            let (scalars, g) = (Scalars { step: t, lr: 1e-6, ..SCALARS }, numbers(n, 10 + t, 1.0));
            type StepFn = fn(&mut State, DType, &Scalars, &[f32], usize);
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

pub(super) fn what_is_not_finite_spreads_over_its_block() {
    let mut state = State::new(&[1.0; 600]);
    let mut g = vec![1.0; 600];
    g[300] = f32::NAN;
    state.step_8bit(F32, &SCALARS, &g, 1);
    assert!(state.f32[300].is_nan() && state.f32[299].is_finite());
    let bad: Vec<bool> = (0..600).map(|i| state.moments(i)[0].is_nan() && state.moments(i)[1].is_nan()).collect();
    assert!((0..600).all(|i| bad[i] == (i / BLOCK == 1)));
    state.step_bf16(F32, &SCALARS, &g, 1);
    assert!(state.bf16[0][300].is_nan() && state.bf16[1][300].is_nan() && state.bf16[0][299].is_finite());
}

#[cfg(test)]
mod tests;
