//! Skinny GEMM on the CPU: [`matmul`] for bf16 weights; for int8 weights, tasks of 32 weight rows each.
#![allow(unsafe_code)]

use bytemuck::Zeroable;

use super::{Params, QkvParams};
use crate::matmul::{self, Matmul, Operand};
use crate::rms_norm::{self, FwdParams};
use crate::simd::{LANES, exp, sum_lanes};
use crate::view::{OutputArray, slice_at};
use crate::{Addr, DType, Element, Team, rope_kv_write, simd_fn};

/// Number of rows of an int8 weight that one task multiplies with x.
const PER_TASK: usize = 32;

simd_fn! {
    fn dot(x: &[f32], w: &[i8]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let ((xs, x), (ws, w)) = (x.as_chunks::<LANES>(), w.as_chunks::<LANES>());
        for (x, w) in xs.iter().zip(ws) {
            for i in 0..LANES {
                lanes[i] += x[i] * w[i] as f32;
            }
        }
        for (i, (x, w)) in x.iter().zip(w).enumerate() {
            lanes[i] += x * *w as f32;
        }
        sum_lanes(lanes)
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Computes `c = x · wᵀ (+ bias)`, or adds it to c if `accumulate`. `c` is (address, dtype).
///
/// # Safety
/// The addresses are valid as [`Params`] documents; `c` has `[m, n]` elements.
unsafe fn product<T: Element>(p: &Params, w: Addr, bias: Addr, c: (Addr, DType), accumulate: bool, team: &Team) {
    let product = Matmul {
        m: p.m as usize,
        n: p.n as usize,
        k: p.k as usize,
        a: Operand { addr: p.x, dtype: T::DTYPE, transposed: false },
        b: Operand { addr: w, dtype: DType::BF16, transposed: false },
        b_scale: Addr::NULL,
        b_grouped: false,
        c: c.0,
        c_dtype: c.1,
        bias,
        accumulate,
        scale: 1.0,
    };
    // SAFETY: x, w and bias are valid as `Params` documents, and `c` has `[m, n]` elements.
    unsafe { matmul::cpu::run(&product, team) }
}

/// # Safety
/// Every address in [`Params`] is valid for the shape and dtype that its field documents.
pub unsafe fn linear<T: Element>(p: &Params, team: &Team) {
    let size = p.m as usize * p.n as usize;
    if !p.residual.is_null() && p.residual != p.y {
        // SAFETY: residual and y have `[m, n]` elements of T.
        let (from, to) = unsafe { (slice_at::<T>(p.residual, size), OutputArray::<T>::new(p.y, size)) };
        // SAFETY: no other thread writes yet.
        unsafe { to.part(0, size) }.copy_from_slice(from);
    }
    // SAFETY: the addresses are valid as `Params` documents; y has `[m, n]` elements of T.
    unsafe { product::<T>(p, p.w, p.bias, (p.y, T::DTYPE), !p.residual.is_null(), team) }
}

/// # Safety
/// Every address in [`Params`] is valid for the shape and dtype that its field documents; y is f32.
pub unsafe fn logits<T: Element>(p: &Params, team: &Team) {
    // SAFETY: the caller promises it.
    unsafe { product::<T>(p, p.w, Addr::NULL, (p.y, DType::F32), false, team) }
}

/// Calls `f` with the address of x, or of its rows after the norm if `norm` is not null.
///
/// # Safety
/// `x` covers `[m, k]` elements of T; `norm` covers `[k]` or is null.
unsafe fn with_norm<T: Element>(
    x: Addr,
    (norm, eps): (Addr, f32),
    [m, k]: [u32; 2],
    team: &Team,
    f: impl FnOnce(Addr),
) {
    if norm.is_null() {
        return f(x);
    }
    let mut normed = vec![T::zeroed(); m as usize * k as usize];
    let y = Addr(normed.as_mut_ptr() as u64);
    let params = FwdParams { x, w: norm, y, rows: m, cols: k, eps, ..Zeroable::zeroed() };
    // SAFETY: x, norm and y cover the shapes that `FwdParams` documents; there is neither a residual nor a rstd.
    unsafe { rms_norm::cpu::fwd::<T>(&params, team) }
    f(y);
}

/// # Safety
/// Every address in [`QkvParams`] is valid for the shape and dtype that its field documents, and no two rows have the
/// same slot, except negative ones.
pub unsafe fn qkv<T: Element>(p: &QkvParams, team: &Team) {
    // SAFETY: the caller promises it; `products_and_writes` passes valid products.
    unsafe { products_and_writes::<T>(p, team, |product| linear::<T>(product, team)) }
}

/// # Safety
/// As for [`qkv`].
pub unsafe fn qkv_int8<T: Element>(p: &QkvParams, team: &Team) {
    // SAFETY: the caller promises it; `products_and_writes` passes valid products.
    unsafe { products_and_writes::<T>(p, team, |product| linear_int8::<T>(product, team)) }
}

/// Computes each product of the normalised x with `linear`, then rotates q and writes keys and values to the caches.
///
/// # Safety
/// As for [`qkv`].
unsafe fn products_and_writes<T: Element>(p: &QkvParams, team: &Team, linear: impl Fn(&Params)) {
    let count = p.m as usize * p.kv_heads as usize * p.head_dim as usize;
    let mut kv = [vec![T::zeroed(); count], vec![T::zeroed(); count]];
    let [k, v] = kv.each_mut().map(|x| Addr(x.as_mut_ptr() as u64));
    let products = |x: Addr| p.products(x, [p.q, k, v]).iter().for_each(&linear);
    // SAFETY: x and the norm are valid as `QkvParams` documents.
    unsafe { with_norm::<T>(p.x, (p.norm, p.eps), [p.m, p.k], team, products) }
    // SAFETY: k and v have `[m, kv_heads, head_dim]` elements, and the caller promises the rest.
    unsafe { rope_kv_write::cpu::write::<T>(&p.writes([k, v]), team) }
}

/// # Safety
/// Every address in [`Params`] is valid for the shape and dtype that its field documents.
pub unsafe fn swiglu<T: Element>(p: &Params, team: &Team) {
    // SAFETY: the caller promises it.
    unsafe {
        with_norm::<T>(p.x, (p.norm, p.eps), [p.m, p.k], team, |x| normed_swiglu::<T>(&Params { x, ..*p }, team));
    }
}

/// [`swiglu`] without a norm.
///
/// # Safety
/// Every address in [`Params`] is valid for the shape and dtype that its field documents.
unsafe fn normed_swiglu<T: Element>(p: &Params, team: &Team) {
    let size = p.m as usize * p.n as usize;
    let mut sums = [vec![0.0f32; size], vec![0.0f32; size]];
    for (sums, w) in sums.iter_mut().zip([p.w, p.w2]) {
        // SAFETY: x and both weights are valid as `Params` documents; `sums` has `[m, n]` f32.
        unsafe { product::<T>(p, w, Addr::NULL, (Addr(sums.as_mut_ptr() as u64), DType::F32), false, team) }
    }
    // SAFETY: y has `[m, n]` elements of T.
    let y = unsafe { OutputArray::<T>::new(p.y, size) };
    // SAFETY: no other thread writes.
    for ((y, gate), up) in unsafe { y.part(0, size) }.iter_mut().zip(&sums[0]).zip(&sums[1]) {
        *y = T::from_f32(silu(*gate) * up);
    }
}

/// Calls `f(row index of x, row index of the weight, row of x as f32)` for all pairs of rows. Each task of the team
/// has PER_TASK rows of the weight.
fn int8_rows<T: Element>(p: &Params, team: &Team, f: impl Fn(usize, usize, &[f32]) + Sync) {
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    // SAFETY: the callers promise that x has `[m, k]` elements of T.
    let x: Vec<f32> = unsafe { slice_at::<T>(p.x, m * k) }.iter().map(|x| x.to_f32()).collect();
    team.run(n.div_ceil(PER_TASK), |task| {
        for c in (task * PER_TASK..n).take(PER_TASK) {
            for r in 0..m {
                f(r, c, &x[r * k..][..k]);
            }
        }
    });
}

/// # Safety
/// Every address in [`Params`] is valid for the shape and dtype that its field documents.
pub unsafe fn linear_int8<T: Element>(p: &Params, team: &Team) {
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    // SAFETY: w has `[n, k]` int8, scale `[n]` f32.
    let (w, scale) = unsafe { (slice_at::<i8>(p.w, n * k), slice_at::<f32>(p.scale, n)) };
    // SAFETY: bias has `[n]` elements of T, or is null and read as empty.
    let bias = unsafe { slice_at::<T>(p.bias, if p.bias.is_null() { 0 } else { n }) };
    // SAFETY: y has `[m, n]` elements of T.
    let y = unsafe { OutputArray::<T>::new(p.y, m * n) };
    int8_rows::<T>(p, team, |r, c, x| {
        let mut sum = dot(x, &w[c * k..][..k]) * scale[c];
        sum += bias.get(c).map_or(0.0, |b| b.to_f32());
        if !p.residual.is_null() {
            // SAFETY: residual has `[m, n]` elements; if it is y, this element is written later, below.
            sum += unsafe { (p.residual.0 as *const T).add(r * n + c).read() }.to_f32();
        }
        // SAFETY: each pair of rows has an element of its own.
        let one = unsafe { y.part(r * n + c, 1) };
        one[0] = T::from_f32(sum);
    });
}

/// # Safety
/// Every address in [`Params`] is valid for the shape and dtype that its field documents; y is f32.
pub unsafe fn logits_int8<T: Element>(p: &Params, team: &Team) {
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    // SAFETY: w has `[n, k]` int8, scale `[n]` f32.
    let (w, scale) = unsafe { (slice_at::<i8>(p.w, n * k), slice_at::<f32>(p.scale, n)) };
    // SAFETY: y has `[m, n]` f32.
    let y = unsafe { OutputArray::<f32>::new(p.y, m * n) };
    int8_rows::<T>(p, team, |r, c, x| {
        // SAFETY: each pair of rows has an element of its own.
        let one = unsafe { y.part(r * n + c, 1) };
        one[0] = dot(x, &w[c * k..][..k]) * scale[c];
    });
}

/// # Safety
/// Every address in [`Params`] is valid for the shape and dtype that its field documents.
pub unsafe fn swiglu_int8<T: Element>(p: &Params, team: &Team) {
    // SAFETY: the caller promises it.
    unsafe {
        with_norm::<T>(p.x, (p.norm, p.eps), [p.m, p.k], team, |x| normed_swiglu_int8::<T>(&Params { x, ..*p }, team));
    }
}

/// [`swiglu_int8`] without a norm.
///
/// # Safety
/// Every address in [`Params`] is valid for the shape and dtype that its field documents.
unsafe fn normed_swiglu_int8<T: Element>(p: &Params, team: &Team) {
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    // SAFETY: both weights have `[n, k]` int8.
    let (w, w2) = unsafe { (slice_at::<i8>(p.w, n * k), slice_at::<i8>(p.w2, n * k)) };
    // SAFETY: both scales have `[n]` f32.
    let (scale, scale2) = unsafe { (slice_at::<f32>(p.scale, n), slice_at::<f32>(p.scale2, n)) };
    // SAFETY: y has `[m, n]` elements of T.
    let y = unsafe { OutputArray::<T>::new(p.y, m * n) };
    int8_rows::<T>(p, team, |r, c, x| {
        let (gate, up) = (dot(x, &w[c * k..][..k]) * scale[c], dot(x, &w2[c * k..][..k]) * scale2[c]);
        // SAFETY: each pair of rows has an element of its own.
        let one = unsafe { y.part(r * n + c, 1) };
        one[0] = T::from_f32(silu(gate) * up);
    });
}
