use super::formula::HeadOperands;
use super::{BwdParams, FwdParams, ImageBatch, bwd, formula, fwd, test_image_batches};
use crate::DType::{self, BF16, F32};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_close, assert_rounded, check_close};

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

fn equals_the_formula() {
    for dtype in [F32, BF16] {
        for case in test_image_batches() {
            let given = Given::new(dtype, &case);
            let got = given.run(2);
            let (mut o, mut lse) = (Vec::new(), Vec::new());
            given.each(|_, image, head| {
                let (pooled, sum) = formula::output_and_log_sum_exp(&given.head(image, head));
                o.extend(pooled);
                lse.push(sum);
            });
            let name = format!("o {dtype} {case:?}");
            match dtype {
                BF16 => assert_rounded(&name, dtype, &got.o, &o, &o, DEFAULT_ROUNDING_FACTOR),
                _ => assert_close(&name, &got.o, &o, 3e-6, f64::MAX),
            }
            let finite: Vec<(f32, f64)> =
                got.lse.iter().copied().zip(lse).filter(|(_, want)| want.is_finite()).collect();
            let (values, want): (Vec<f32>, Vec<f64>) = finite.into_iter().unzip();
            assert_close(&format!("lse {dtype} {case:?}"), &values, &want, 3e-6, f64::MAX);
            given.each(|at, image, _| {
                assert!(case.lengths[image] > 0 || got.lse[at] == f32::NEG_INFINITY, "{dtype} {case:?}");
            });
        }
    }
}

fn gradients_equal_differences_of_the_formula() {
    for (dtype, tol) in [(F32, 2e-5), (BF16, 5e-3)] {
        for case in test_image_batches() {
            let given = Given::new(dtype, &case);
            let (d, row) = (case.head_dim, case.heads * case.head_dim);
            let got = given.run(3);
            let (mut dq, mut dk, mut dv) = (vec![0.0; row], vec![0.0; got.dk.len()], vec![0.0; got.dk.len()]);
            let d_o = given.d_o.to_f64();
            given.each(|at, image, head| {
                let d_o = &d_o[at * d..][..d];
                let delta = got.o[at * d..].iter().zip(d_o).map(|(&o, d)| o as f64 * d).sum();
                let [q, k, v] = formula::gradients_of_q_k_v(&given.head(image, head), d_o, delta);
                dq[head * d..].iter_mut().zip(&q).for_each(|(sum, q)| *sum += q);
                let first = given.cu_seqlens[image] as usize;
                for (t, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
                    let at = (first + t) * row + head * d;
                    dk[at..at + d].copy_from_slice(k);
                    dv[at..at + d].copy_from_slice(v);
                }
            });
            // If one softmax weight is almost 1, the terms of dq and dk cancel and only rounding errors remain, so
            // the check bounds the absolute error.
            let largest = |x: &TestArray| x.to_f64().iter().fold(0.0f64, |most, x| most.max(x.abs()));
            let term = largest(&given.v) * largest(&given.d_o) * d as f64 * largest(&given.k).max(largest(&given.q));
            for (name, got, want) in [("dq", &got.dq, &dq), ("dk", &got.dk, &dk)] {
                let name = format!("{name} {dtype} {case:?}");
                if check_close(&name, got, want, f64::MAX, 1e-7 * term * f64::from(given.scale())).is_err() {
                    assert_close(&name, got, want, tol, f64::MAX);
                }
            }
            assert_close(&format!("dv {dtype} {case:?}"), &got.dv, &dv, tol, f64::MAX);
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
