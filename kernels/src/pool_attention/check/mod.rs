use reel_device::DType::{self, BF16, F32};

use super::formula::HeadOperands;
use super::{FwdParams, ImageBatch, formula, fwd, test_image_batches};
use crate::checks::{TestArray, addr, checks, normal_numbers, run};
use crate::compare::{
    DEFAULT_ROUNDING_FACTOR, F32_HALF_ULP, assert_close, assert_rounded, assert_within, f32_sum_error, rounding_error,
};

checks!(equals_the_formula, threads_and_other_pictures_change_nothing);

/// The operands of a test case.
struct Given {
    q: TestArray,
    k: TestArray,
    v: TestArray,
    cu_seqlens: Vec<i32>,
    case: ImageBatch,
    dtype: DType,
}

impl Given {
    fn new(dtype: DType, case: &ImageBatch) -> Given {
        let (row, tokens): (usize, usize) = (case.heads * case.head_dim, case.lengths.iter().sum());
        let data = |count, seed, scale| TestArray::new(dtype, &normal_numbers(count, seed, scale));
        let mut cu_seqlens = vec![0];
        for &n in &case.lengths {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + n as i32);
        }
        Given {
            q: data(row, 1, case.spread),
            k: data(tokens * row, 2, 1.0),
            v: data(tokens * row, 3, 1.0),
            cu_seqlens,
            case: case.clone(),
            dtype,
        }
    }

    fn scale(&self) -> f32 {
        (self.case.head_dim as f32).powf(-0.5)
    }

    fn params(&self, o: &TestArray) -> FwdParams {
        FwdParams {
            q: self.q.addr(),
            k: self.k.addr(),
            v: self.v.addr(),
            cu_seqlens: addr(&self.cu_seqlens),
            o: o.addr(),
            tokens: self.cu_seqlens[self.cu_seqlens.len() - 1] as u32,
            images: self.case.lengths.len() as u32,
            heads: self.case.heads as u32,
            head_dim: self.case.head_dim as u32,
            scale: self.scale(),
            reserved: 0,
        }
    }

    /// Runs the launch; returns o.
    fn run(&self, threads: usize) -> Vec<f32> {
        let o = TestArray::output(self.dtype, self.case.lengths.len() * self.case.heads * self.case.head_dim);
        run(&fwd(self.dtype, &self.params(&o)), threads);
        o.values()
    }

    /// Returns the operands of one head of an image.
    fn head(&self, image: usize, head: usize) -> HeadOperands {
        let (d, row) = (self.case.head_dim, self.case.heads * self.case.head_dim);
        let tokens = self.cu_seqlens[image] as usize..self.cu_seqlens[image + 1] as usize;
        let of = |x: &TestArray| -> Vec<f64> {
            let x = x.to_f64();
            tokens.clone().flat_map(|t| x[t * row + head * d..][..d].to_vec()).collect()
        };
        HeadOperands {
            q: self.q.to_f64()[head * d..][..d].to_vec(),
            k: of(&self.k),
            v: of(&self.v),
            scale: self.scale() as f64,
        }
    }
}

/// The softmax probabilities of a head's keys, with bounds of their errors. All kernels compute them in f32.
struct Probabilities {
    p: Vec<f64>,
    p_bounds: Vec<f64>,
}

impl Probabilities {
    fn new(head: &HeadOperands) -> Probabilities {
        let (d, n) = (head.q.len(), head.k.len() / head.q.len());
        let (_, lse) = formula::output_and_log_sum_exp(head);
        let scores: Vec<f64> = head.k.chunks_exact(d).map(|k| head.scale * dot(&head.q, k)).collect();
        let score_bounds: Vec<f64> =
            head.k.chunks_exact(d).map(|k| f32_sum_error(d, head.scale * dot_magnitude(&head.q, k))).collect();
        let largest = score_bounds.iter().copied().fold(0.0, f64::max);
        // The sum over the keys has a relative error, which the logarithm makes absolute.
        let lse_bound = largest + f32_sum_error(n, 1.0) + 2.0 * F32_HALF_ULP * lse.abs();
        let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
        // The errors of the exponent, of its roundings, and of the exponential (two units in the last place).
        let relative =
            |j: usize| score_bounds[j] + lse_bound + F32_HALF_ULP * (2.0 * (scores[j].abs() + lse.abs()) + 8.0);
        let p_bounds = (0..n).map(|j| p[j] * relative(j)).collect();
        Probabilities { p, p_bounds }
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn dot_magnitude(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum()
}

/// Returns bounds of the errors of o, before it is stored.
fn output_bounds(head: &HeadOperands) -> Vec<f64> {
    let (d, of) = (head.q.len(), Probabilities::new(head));
    let bound = |c: usize| {
        let column = || head.v.iter().skip(c).step_by(d).map(|v| v.abs());
        let (off, size) = column()
            .zip(of.p.iter().zip(&of.p_bounds))
            .fold((0.0, 0.0), |(off, size), (v, (p, p_bound))| (off + p_bound * v, size + p * v));
        off + f32_sum_error(of.p.len(), size)
    };
    (0..d).map(bound).collect()
}

fn equals_the_formula() {
    for dtype in [F32, BF16] {
        for case in test_image_batches() {
            let given = Given::new(dtype, &case);
            let got = given.run(2);
            let (mut o, mut o_bounds) = (vec![], vec![]);
            for image in 0..case.lengths.len() {
                for head in 0..case.heads {
                    let head = given.head(image, head);
                    o.extend(formula::output_and_log_sum_exp(&head).0);
                    o_bounds.extend(output_bounds(&head));
                }
            }
            let name = format!("o {dtype} {case:?}");
            let bound = |i: usize| o_bounds[i] + rounding_error(dtype) * o[i].abs();
            if dtype == F32 {
                assert_close(&name, &got, &o, 3e-6, bound);
            } else {
                assert_within(&name, &got, &o, bound);
                assert_rounded(&name, dtype, &got, &o, &o, DEFAULT_ROUNDING_FACTOR);
            }
        }
    }
}

fn threads_and_other_pictures_change_nothing() {
    let (all, alone) = ([65usize, 70, 3], [70usize]);
    for dtype in [F32, BF16] {
        let case = |lengths: &[usize]| ImageBatch { lengths: lengths.to_vec(), heads: 3, head_dim: 24, spread: 1.0 };
        let given = Given::new(dtype, &case(&all));
        let got = given.run(1);
        assert_eq!(got, given.run(4));
        let row = 72;
        let part = |x: &TestArray, first: usize, count: usize| {
            TestArray::new(dtype, &x.values()[first * row..][..count * row])
        };
        let second = Given {
            k: part(&given.k, 65, 70),
            v: part(&given.v, 65, 70),
            q: TestArray::new(dtype, &given.q.values()),
            cu_seqlens: vec![0, 70],
            case: case(&alone),
            dtype,
        };
        assert_eq!(second.run(2), got[row..2 * row], "{dtype}");
    }
}

#[cfg(test)]
mod tests;
