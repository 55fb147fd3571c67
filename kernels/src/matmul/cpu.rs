//! First form: one dot product an element.
#![allow(unsafe_code)]

use super::{Matmul, Operand};
use crate::simd::{LANES, sum_lanes};
use crate::view::{Out, slice};
use crate::{DType, Element, Team, simd_fn};
use half::bf16;

simd_fn! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (mut ca, mut cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        for (x, y) in (&mut ca).zip(&mut cb) {
            for i in 0..LANES {
                lanes[i] = x[i].mul_add(y[i], lanes[i]);
            }
        }
        for (i, (x, y)) in ca.remainder().iter().zip(cb.remainder()).enumerate() {
            lanes[i] = x.mul_add(*y, lanes[i]);
        }
        sum_lanes(lanes)
    }
}

/// A row-major `[rows, k]` copy in f32.
unsafe fn widen(x: &Operand, rows: usize, k: usize) -> Vec<f32> {
    // SAFETY: the caller's promise.
    let all: Vec<f32> = unsafe {
        match x.dtype {
            DType::F32 => slice::<f32>(x.addr, rows * k).to_vec(),
            _ => slice::<bf16>(x.addr, rows * k).iter().map(|v| v.to_f32()).collect(),
        }
    };
    if !x.transposed {
        return all;
    }
    let mut out = vec![0.0; rows * k];
    for i in 0..k {
        for r in 0..rows {
            out[r * k + i] = all[i * rows + r];
        }
    }
    out
}

/// # Safety
/// The addresses cover what [`Matmul`] says, and nothing else uses C.
pub unsafe fn run(p: &Matmul, team: &Team) {
    // SAFETY: the caller's promise.
    unsafe {
        match p.c_dtype {
            DType::F32 => run_to::<f32>(p, team),
            _ => run_to::<bf16>(p, team),
        }
    }
}

unsafe fn run_to<T: Element>(p: &Matmul, team: &Team) {
    // SAFETY: the caller's promise.
    let (a, b) = unsafe { (widen(&p.a, p.m, p.k), widen(&p.b, p.n, p.k)) };
    // SAFETY: the caller's promise.
    let (c, bias) =
        unsafe { (Out::<T>::new(p.c, p.m * p.n), slice::<T>(p.bias, if p.bias.is_null() { 0 } else { p.n })) };
    team.run(p.m, |row| {
        // SAFETY: rows do not overlap.
        let c = unsafe { c.part(row * p.n, p.n) };
        for (j, c) in c.iter_mut().enumerate() {
            let mut sum = dot(&a[row * p.k..][..p.k], &b[j * p.k..][..p.k]);
            sum += bias.get(j).map_or(0.0, |x| x.to_f32());
            *c = T::from_f32(if p.accumulate { sum + c.to_f32() } else { sum });
        }
    });
}
