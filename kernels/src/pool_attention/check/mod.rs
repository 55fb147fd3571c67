use reel_device::DType::{self, BF16, F32};

use super::formula::HeadOperands;
use super::{BwdParams, FwdParams, ImageBatch, bwd, formula, fwd, test_image_batches};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run};
use crate::compare::{
    DEFAULT_ROUNDING_FACTOR, F32_HALF_ULP, assert_close, assert_rounded, assert_within, f32_sum_error, rounding_error,
};

checks!(equals_the_formula, gradients_equal_differences_of_the_formula, threads_and_other_pictures_change_nothing);

/// The operands of a test case.
struct Given {
    q: TestArray,
    k: TestArray,
    v: TestArray,
    d_o: TestArray,
    cu_seqlens: Vec<i32>,
    case: ImageBatch,
    dtype: DType,
}

/// Results of the forward and the backward launch.
struct Got {
    o: Vec<f32>,
    lse: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
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
            d_o: data(case.lengths.len() * row, 4, 1.0),
            cu_seqlens,
            case: case.clone(),
            dtype,
        }
    }

    fn scale(&self) -> f32 {
        (self.case.head_dim as f32).powf(-0.5)
    }

    fn forward_params(&self, o: &TestArray, lse: &mut [f32]) -> FwdParams {
        FwdParams {
            q: self.q.addr(),
            k: self.k.addr(),
            v: self.v.addr(),
            cu_seqlens: addr(&self.cu_seqlens),
            o: o.addr(),
            lse: addr_mut(lse),
            tokens: self.cu_seqlens[self.cu_seqlens.len() - 1] as u32,
            images: self.case.lengths.len() as u32,
            heads: self.case.heads as u32,
            head_dim: self.case.head_dim as u32,
            scale: self.scale(),
            reserved: 0,
        }
    }

    fn run(&self, threads: usize) -> Got {
        let (row, images, tokens) =
            (self.case.heads * self.case.head_dim, self.case.lengths.len(), self.k.values().len());
        let output = |count| TestArray::output(self.dtype, count);
        let (o, mut lse) = (output(images * row), vec![f32::NAN; images * self.case.heads]);
        let forward = self.forward_params(&o, &mut lse);
        run(&fwd(self.dtype, &forward), threads);
        let (dq, dk, dv) = (output(row), output(tokens), output(tokens));
        let mut partial = vec![f32::NAN; images * row];
        let FwdParams { q, k, v, cu_seqlens, tokens, images, heads, head_dim, scale, reserved, .. } = forward;
        let backward = BwdParams {
            q,
            k,
            v,
            cu_seqlens,
            o: o.addr(),
            lse: addr(&lse),
            d_o: self.d_o.addr(),
            dq: dq.addr(),
            dk: dk.addr(),
            dv: dv.addr(),
            partial: addr_mut(&mut partial),
            tokens,
            images,
            heads,
            head_dim,
            scale,
            reserved,
        };
        run(&bwd(self.dtype, &backward), threads);
        Got { o: o.values(), lse, dq: dq.values(), dk: dk.values(), dv: dv.values() }
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

    /// Calls f(index of the pair in an `[images, heads]` array, image, head) for every pair of an image and a head.
    fn each(&self, mut f: impl FnMut(usize, usize, usize)) {
        for image in 0..self.case.lengths.len() {
            for head in 0..self.case.heads {
                f(image * self.case.heads + head, image, head);
            }
        }
    }
}

/// The softmax probabilities of a head's keys, with bounds of the errors of the probabilities and of the log-sum-exp.
/// All kernels compute both in f32.
struct Probabilities {
    p: Vec<f64>,
    p_bounds: Vec<f64>,
    lse_bound: f64,
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
        Probabilities { p, p_bounds, lse_bound }
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn dot_magnitude(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum()
}

/// Returns bounds of the errors of o, before it is stored, and of the log-sum-exp.
fn forward_bounds(head: &HeadOperands) -> (Vec<f64>, f64) {
    let (d, of) = (head.q.len(), Probabilities::new(head));
    let bound = |c: usize| {
        let column = || head.v.iter().skip(c).step_by(d).map(|v| v.abs());
        let (off, size) = column()
            .zip(of.p.iter().zip(&of.p_bounds))
            .fold((0.0, 0.0), |(off, size), (v, (p, p_bound))| (off + p_bound * v, size + p * v));
        off + f32_sum_error(of.p.len(), size)
    };
    ((0..d).map(bound).collect(), of.lse_bound)
}

/// Returns bounds of the errors of a head's contributions to dq, dk and dv, before they are stored. `delta` is the
/// argument of [`formula::gradients_of_q_k_v`].
fn backward_bounds(head: &HeadOperands, o: &[f64], d_o: &[f64], delta: f64) -> [Vec<f64>; 3] {
    let (d, of) = (head.q.len(), Probabilities::new(head));
    let (mut dq, mut dq_size, mut dk, mut dv) = (vec![0.0; d], vec![0.0; d], vec![], vec![]);
    // The error of the finite differences, in f64, by which the formula computes dq, dk and dv.
    let differences = 1e-9 * d_o.iter().map(|x| x.abs()).sum::<f64>();
    for (j, (k, v)) in head.k.chunks_exact(d).zip(head.v.chunks_exact(d)).enumerate() {
        let slope = (dot(d_o, v) - delta).abs();
        let slope_bound = f32_sum_error(d, dot_magnitude(d_o, v)) + f32_sum_error(d, dot_magnitude(d_o, o));
        let ds = head.scale * of.p[j] * slope;
        let ds_bound = head.scale * (of.p_bounds[j] * slope + of.p[j] * slope_bound) + 4.0 * F32_HALF_ULP * ds;
        for c in 0..d {
            dq[c] += ds_bound * k[c].abs();
            dq_size[c] += ds * k[c].abs();
            dk.push(ds_bound * head.q[c].abs() + differences);
            dv.push(of.p_bounds[j] * d_o[c].abs() + differences);
        }
    }
    let sum = |(off, size): (&f64, &f64)| off + f32_sum_error(of.p.len(), *size) + differences;
    [dq.iter().zip(&dq_size).map(sum).collect(), dk, dv]
}

fn equals_the_formula() {
    for dtype in [F32, BF16] {
        for case in test_image_batches() {
            let given = Given::new(dtype, &case);
            let got = given.run(2);
            let (mut o, mut lse, mut o_bounds, mut lse_bounds) = (vec![], vec![], vec![], vec![]);
            given.each(|_, image, head| {
                let head = given.head(image, head);
                let (pooled, sum) = formula::output_and_log_sum_exp(&head);
                o.extend(pooled);
                lse.push(sum);
                let (of_o, of_lse) = forward_bounds(&head);
                o_bounds.extend(of_o);
                lse_bounds.push(of_lse);
            });
            let name = format!("o {dtype} {case:?}");
            let bound = |i: usize| o_bounds[i] + rounding_error(dtype) * o[i].abs();
            if dtype == F32 {
                assert_close(&name, &got.o, &o, 3e-6, bound);
            } else {
                assert_within(&name, &got.o, &o, bound);
                assert_rounded(&name, dtype, &got.o, &o, &o, DEFAULT_ROUNDING_FACTOR);
            }
            // The log-sum-exp of an image without tokens is minus infinity in the kernel and in the formula.
            assert_close(&format!("lse {dtype} {case:?}"), &got.lse, &lse, 3e-6, |i| lse_bounds[i]);
        }
    }
}

fn gradients_equal_differences_of_the_formula() {
    for (dtype, tol) in [(F32, 2e-5), (BF16, 5e-3)] {
        for case in test_image_batches() {
            let given = Given::new(dtype, &case);
            let (d, row) = (case.head_dim, case.heads * case.head_dim);
            let got = given.run(3);
            let zeros = || [vec![0.0; row], vec![0.0; got.dk.len()], vec![0.0; got.dk.len()]];
            let ([mut dq, mut dk, mut dv], [mut dq_bounds, mut dk_bounds, mut dv_bounds]) = (zeros(), zeros());
            let d_o = given.d_o.to_f64();
            given.each(|at, image, head| {
                let d_o = &d_o[at * d..][..d];
                let o: Vec<f64> = got.o[at * d..][..d].iter().map(|&o| o as f64).collect();
                let (delta, operands) = (dot(&o, d_o), given.head(image, head));
                let gradients = formula::gradients_of_q_k_v(&operands, d_o, delta);
                let bounds = backward_bounds(&operands, &o, d_o, delta);
                let first = given.cu_seqlens[image] as usize;
                for ([of_q, of_k, of_v], dq, dk, dv) in
                    [(gradients, &mut dq, &mut dk, &mut dv), (bounds, &mut dq_bounds, &mut dk_bounds, &mut dv_bounds)]
                {
                    dq[head * d..].iter_mut().zip(&of_q).for_each(|(sum, q)| *sum += q);
                    for (t, (k, v)) in of_k.chunks_exact(d).zip(of_v.chunks_exact(d)).enumerate() {
                        let at = (first + t) * row + head * d;
                        dk[at..at + d].copy_from_slice(k);
                        dv[at..at + d].copy_from_slice(v);
                    }
                }
            });
            // If one softmax weight is almost 1, the terms of dq and dk cancel and only rounding errors remain, so the
            // relative L2 distance of dq and dk is not checked.
            for (name, got, want, bounds) in [("dq", &got.dq, &dq, &dq_bounds), ("dk", &got.dk, &dk, &dk_bounds)] {
                let bound = |i: usize| bounds[i] + rounding_error(dtype) * want[i].abs();
                assert_within(&format!("{name} {dtype} {case:?}"), got, want, bound);
            }
            let bound = |i: usize| dv_bounds[i] + rounding_error(dtype) * dv[i].abs();
            assert_close(&format!("dv {dtype} {case:?}"), &got.dv, &dv, tol, bound);
        }
    }
}

fn threads_and_other_pictures_change_nothing() {
    let (all, alone) = ([65usize, 70, 3], [70usize]);
    for dtype in [F32, BF16] {
        let case = |lengths: &[usize]| ImageBatch { lengths: lengths.to_vec(), heads: 3, head_dim: 24, spread: 1.0 };
        let given = Given::new(dtype, &case(&all));
        let got = given.run(1);
        let again = given.run(4);
        assert_eq!((&got.o, &got.dq, &got.dk), (&again.o, &again.dq, &again.dk));
        let row = 72;
        let part = |x: &TestArray, first: usize, count: usize| {
            TestArray::new(dtype, &x.values()[first * row..][..count * row])
        };
        let second = Given {
            k: part(&given.k, 65, 70),
            v: part(&given.v, 65, 70),
            d_o: part(&given.d_o, 1, 1),
            q: TestArray::new(dtype, &given.q.values()),
            cu_seqlens: vec![0, 70],
            case: case(&alone),
            dtype,
        };
        let second = second.run(2);
        assert_eq!(second.o, got.o[row..2 * row], "{dtype}");
        assert_eq!(second.dk, got.dk[65 * row..135 * row], "{dtype}");
        assert_eq!(second.dv, got.dv[65 * row..135 * row], "{dtype}");
    }
}

#[cfg(test)]
mod tests;
