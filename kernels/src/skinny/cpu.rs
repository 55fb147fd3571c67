//! Skinny GEMM on the CPU: [`matmul`] for bf16 weights; for int8 weights, tasks of 32 weight rows each.
#![allow(unsafe_code)]

use bytemuck::Zeroable;
use reel_device::cpu::simd::{LANES, sum_lanes};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::launch::{Matmul, Operand};
use reel_device::{Addr, DType, Element, Team, simd_fn};

use super::{Params, QkvParams};
use crate::matmul;
use crate::matmul::plain_product;
use crate::rms_norm::{self, FwdParams};
use crate::{rope_kv_write, swiglu};

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

/// Computes `c = x · wᵀ (+ bias)`. `c` is the (address, dtype) of the output.
///
/// # Safety
/// The addresses are valid as [`Params`] documents; `c` has `[m, n]` elements.
unsafe fn product<T: Element>(p: &Params, w: Addr, bias: Addr, c: (Addr, DType), team: &Team) {
    let size = [p.m, p.n, p.k].map(|size| size as usize);
    let operand = |addr, dtype| Operand { addr, dtype, transposed: false };
    let product = Matmul { bias, ..plain_product(size, operand(p.x, T::DTYPE), operand(w, DType::BF16), c.0, c.1) };
    // SAFETY: x, w and bias are valid as `Params` documents, and `c` has `[m, n]` elements.
    unsafe { matmul::cpu::run(&product, team) }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn linear<T: Element>(p: &Params, team: &Team) {
    if p.residual.is_null() {
        // SAFETY: the addresses are valid as `Params` documents; y has `[m, n]` elements of T.
        return unsafe { product::<T>(p, p.w, p.bias, (p.y, T::DTYPE), team) };
    }
    let mut products = vec![T::zeroed(); p.m as usize * p.n as usize];
    // SAFETY: the addresses are valid as `Params` documents; `products` has `[m, n]` elements of T.
    unsafe { product::<T>(p, p.w, p.bias, (Addr(products.as_mut_ptr() as u64), T::DTYPE), team) }
    // SAFETY: y and residual have `[m, n]` elements of T.
    unsafe { write_sums(p, &products) }
}

/// Writes `y = products + residual`.
///
/// # Safety
/// y and residual have as many elements of T as `products`; they may be the same array.
unsafe fn write_sums<T: Element>(p: &Params, products: &[T]) {
    // SAFETY: the caller promises it.
    let y = unsafe { OutputArray::<T>::new(p.y, products.len()) };
    for (i, product) in products.iter().enumerate() {
        // SAFETY: the residual has this element. It may be the element of y that is written below.
        let residual = unsafe { (p.residual.0 as *const T).add(i).read() };
        // SAFETY: no other thread writes.
        let one = unsafe { y.part(i, 1) };
        one[0] = T::from_f32(product.to_f32() + residual.to_f32());
    }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype; y is f32.
pub unsafe fn logits<T: Element>(p: &Params, team: &Team) {
    // SAFETY: the caller promises it.
    unsafe { product::<T>(p, p.w, Addr::NULL, (p.y, DType::F32), team) }
}

/// Calls `f` with the address of x or, if `norm` is not null, of the normalised rows of x.
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
/// Every address in [`QkvParams`] is valid for the documented shape and dtype, and no two rows have the same slot,
/// except negative ones.
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
/// The conditions of [`qkv`] hold.
unsafe fn products_and_writes<T: Element>(p: &QkvParams, team: &Team, linear: impl Fn(&Params)) {
    let count = p.m as usize * p.kv_heads as usize * p.head_dim as usize;
    let mut kv = [vec![T::zeroed(); count], vec![T::zeroed(); count]];
    let [k, v] = kv.each_mut().map(|x| Addr(x.as_mut_ptr() as u64));
    let products = |x: Addr| p.product_params(x, [p.q, k, v]).iter().for_each(&linear);
    // SAFETY: x and the norm are valid as `QkvParams` documents.
    unsafe { with_norm::<T>(p.x, (p.norm, p.eps), [p.m, p.k], team, products) }
    // SAFETY: k and v have `[m, kv_heads, head_dim]` elements, and the caller promises the rest.
    unsafe { rope_kv_write::cpu::write::<T>(&p.kv_write_params([k, v]), team) }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn swiglu<T: Element>(p: &Params, team: &Team) {
    // SAFETY: the caller promises it; `gated` passes valid products.
    unsafe { gated::<T>(p, team, |product| linear::<T>(product, team)) }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn swiglu_int8<T: Element>(p: &Params, team: &Team) {
    // SAFETY: the caller promises it; `gated` passes valid products.
    unsafe { gated::<T>(p, team, |product| linear_int8::<T>(product, team)) }
}

/// Computes the products of the normalised x with both weights by `linear`, then y = silu(gate) · up.
///
/// # Safety
/// The conditions of [`swiglu`] hold.
unsafe fn gated<T: Element>(p: &Params, team: &Team, linear: impl Fn(&Params)) {
    let mut products = [0, 1].map(|_| vec![T::zeroed(); p.m as usize * p.n as usize]);
    let [gate, up] = products.each_mut().map(|x| Addr(x.as_mut_ptr() as u64));
    let both = |x: Addr| {
        for (w, scale, y) in [(p.w, p.scale, gate), (p.w2, p.scale2, up)] {
            linear(&Params { x, w, scale, y, bias: Addr::NULL, residual: Addr::NULL, ..*p });
        }
    };
    // SAFETY: x and the norm are valid as `Params` documents.
    unsafe { with_norm::<T>(p.x, (p.norm, p.eps), [p.m, p.k], team, both) }
    let (count, cols) = (u64::from(p.m) * u64::from(p.n), u64::from(p.n).max(1));
    let params = swiglu::FwdParams { gate, up, y: p.y, count, cols, stride: cols };
    // SAFETY: gate, up and y have `[m, n]` elements of T.
    unsafe { swiglu::cpu::fwd::<T>(&params, team) }
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
/// Every address in [`Params`] is valid for the documented shape and dtype.
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
            let residual = unsafe { (p.residual.0 as *const T).add(r * n + c).read() };
            sum = T::from_f32(sum).to_f32() + residual.to_f32();
        }
        // SAFETY: each pair of rows has an element of its own.
        let one = unsafe { y.part(r * n + c, 1) };
        one[0] = T::from_f32(sum);
    });
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype; y is f32.
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
