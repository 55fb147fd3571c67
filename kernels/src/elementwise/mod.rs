//! Element-wise operations on arrays `[count]`. Bytes are those that an operation must move per element, with `T` the
//! size of an element in bytes:
//!
//! | function | formula | element types | bytes |
//! |---|---|---|---|
//! | [`add`] | `y = a + b` | f32, bf16 | `3 T` |
//! | [`accumulate`] | `dst += src` | f32 or bf16, each to its own type or bf16 to f32 | `T(src) + 2 T(dst)` |
//! | [`cast`] | `dst = src` | f32 to bf16, bf16 to f32 | 6 |
//! | [`fill`] | `dst = value` | f32, bf16 | `T` |
//! | [`mul_scalar`] | `y = x · scalar[0]`, the scalar in device memory | f32 | 8 |
//! | [`copy`] | `dst = src`, as bytes | any | `2 T` |
//!
//! Outputs may not overlap inputs. Numerics: arithmetic in f32, one operation and one rounding at the store, to
//! nearest, ties to even. Memory-bound: at most one operation per element.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use half::bf16;
use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of `y = a + b`.
    pub struct AddParams {
        /// `[count]`
        pub a: Addr,
        /// `[count]`
        pub b: Addr,
        /// `[count]`, written.
        pub y: Addr,
        /// Number of elements.
        pub count: u64,
    }
}

params! {
    /// Parameters of `dst += src`.
    pub struct AccumulateParams {
        /// `[count]`
        pub src: Addr,
        /// `[count]`, added to.
        pub dst: Addr,
        /// Number of elements.
        pub count: u64,
    }
}

params! {
    /// Parameters of a cast, `dst = src` in another element type.
    pub struct CastParams {
        /// `[count]`
        pub src: Addr,
        /// `[count]`, written.
        pub dst: Addr,
        /// Number of elements.
        pub count: u64,
    }
}

params! {
    /// Parameters of a fill, `dst = value`.
    pub struct FillParams {
        /// `[count]`, written.
        pub dst: Addr,
        /// Number of elements.
        pub count: u64,
        /// The number that is stored in every element, rounded to the element type.
        pub value: f32,
        /// 0
        pub reserved: u32,
    }
}

params! {
    /// Parameters of `y = x · scalar`, all f32.
    pub struct MulScalarParams {
        /// `[count]`
        pub x: Addr,
        /// `[1]`
        pub scalar: Addr,
        /// `[count]`, written.
        pub y: Addr,
        /// Number of elements.
        pub count: u64,
    }
}

params! {
    /// Parameters of a copy of bytes.
    pub struct CopyParams {
        /// `[bytes]`
        pub src: Addr,
        /// `[bytes]`, written.
        pub dst: Addr,
        /// Number of bytes.
        pub bytes: u64,
    }
}

/// Bytes that a thread block of the copy kernel copies.
const COPY_BLOCK: u64 = 32 * 1024;

kernel_folder! {
    name: "elementwise",
    params: [AddParams, AccumulateParams, CastParams, FillParams, MulScalarParams, CopyParams],
    traffic: traffic_launches,
}

kernel!(pub ADD_F32, "add_f32", AddParams, cpu::add::<f32>, &SOURCE, |p, _| cuh::plan_elementwise("add_f32", p.count));
kernel!(pub ADD_BF16, "add_bf16", AddParams, cpu::add::<bf16>, &SOURCE, |p, _| cuh::plan_elementwise("add_bf16", p.count));
kernel!(pub ACCUMULATE_F32_F32, "accumulate_f32_f32", AccumulateParams, cpu::accumulate::<f32, f32>, &SOURCE, |p, _| cuh::plan_elementwise("accumulate_f32_f32", p.count));
kernel!(pub ACCUMULATE_BF16_BF16, "accumulate_bf16_bf16", AccumulateParams, cpu::accumulate::<bf16, bf16>, &SOURCE, |p, _| cuh::plan_elementwise("accumulate_bf16_bf16", p.count));
kernel!(pub ACCUMULATE_BF16_F32, "accumulate_bf16_f32", AccumulateParams, cpu::accumulate::<bf16, f32>, &SOURCE, |p, _| cuh::plan_elementwise("accumulate_bf16_f32", p.count));
kernel!(pub CAST_F32_BF16, "cast_f32_bf16", CastParams, cpu::cast::<f32, bf16>, &SOURCE, |p, _| cuh::plan_elementwise("cast_f32_bf16", p.count));
kernel!(pub CAST_BF16_F32, "cast_bf16_f32", CastParams, cpu::cast::<bf16, f32>, &SOURCE, |p, _| cuh::plan_elementwise("cast_bf16_f32", p.count));
kernel!(pub FILL_F32, "fill_f32", FillParams, cpu::fill::<f32>, &SOURCE, |p, _| cuh::plan_elementwise("fill_f32", p.count));
kernel!(pub FILL_BF16, "fill_bf16", FillParams, cpu::fill::<bf16>, &SOURCE, |p, _| cuh::plan_elementwise("fill_bf16", p.count));
kernel!(pub MUL_SCALAR, "mul_scalar_f32", MulScalarParams, cpu::mul_scalar, &SOURCE, |p, _| cuh::plan_elementwise("mul_scalar_f32", p.count));
kernel!(pub COPY, "copy", CopyParams, cpu::copy, &SOURCE, |p, _| cuh::plan_blocks("copy", p.bytes.div_ceil(COPY_BLOCK), 256));

/// Launches `y = a + b`; `dtype` is the type of every operand, F32 or BF16.
pub fn add(dtype: DType, params: &AddParams) -> Launch {
    let n = params.count as f64;
    let cost = Cost { flops: n, bytes: 3.0 * n * dtype.size() as f64 };
    Launch::kernel(kernel_for_dtype(dtype, &ADD_F32, &ADD_BF16), params, cost)
}

/// Launches `dst += src` for (src, dst) of (F32, F32), (BF16, BF16) or (BF16, F32).
///
/// # Panics
/// For other pairs of types.
pub fn accumulate(src: DType, dst: DType, params: &AccumulateParams) -> Launch {
    let kernel = match (src, dst) {
        (DType::F32, DType::F32) => &ACCUMULATE_F32_F32,
        (DType::BF16, DType::BF16) => &ACCUMULATE_BF16_BF16,
        (DType::BF16, DType::F32) => &ACCUMULATE_BF16_F32,
        _ => panic!("accumulate: no kernel adds {src} elements to {dst} elements"),
    };
    let n = params.count as f64;
    Launch::kernel(kernel, params, Cost { flops: n, bytes: n * (src.size() + 2 * dst.size()) as f64 })
}

/// Launches `dst = src`: F32 to BF16, BF16 to F32, or a plain copy between equal types.
///
/// # Panics
/// For other pairs of types.
pub fn cast(src: DType, dst: DType, params: &CastParams) -> Launch {
    if src == dst {
        let bytes = params.count * src.size() as u64;
        return copy(&CopyParams { src: params.src, dst: params.dst, bytes });
    }
    let kernel = match (src, dst) {
        (DType::F32, DType::BF16) => &CAST_F32_BF16,
        (DType::BF16, DType::F32) => &CAST_BF16_F32,
        _ => panic!("cast: no kernel converts {src} elements to {dst}"),
    };
    Launch::kernel(kernel, params, Cost { flops: 0.0, bytes: params.count as f64 * (src.size() + dst.size()) as f64 })
}

/// Launches `dst = value`; `dtype` is F32 or BF16.
pub fn fill(dtype: DType, params: &FillParams) -> Launch {
    let cost = Cost { flops: 0.0, bytes: params.count as f64 * dtype.size() as f64 };
    Launch::kernel(kernel_for_dtype(dtype, &FILL_F32, &FILL_BF16), params, cost)
}

/// Launches `y = x · scalar[0]` in f32.
pub fn mul_scalar(params: &MulScalarParams) -> Launch {
    let n = params.count as f64;
    Launch::kernel(&MUL_SCALAR, params, Cost { flops: n, bytes: 8.0 * n })
}

/// Launches a copy of bytes.
pub fn copy(params: &CopyParams) -> Launch {
    Launch::kernel(&COPY, params, Cost { flops: 0.0, bytes: 2.0 * params.bytes as f64 })
}

/// Returns the array lengths that the checks use.
pub fn test_element_counts() -> Vec<usize> {
    vec![0, 1, 17, 8191, 16384 * 2 + 5]
}
