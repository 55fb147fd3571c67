//! The CUDA kernels of this folder for products of bf16 operands, and which products they support.

use bytemuck::Zeroable;
use half::bf16;
use reel_device::launch::{KernelLaunch, Matmul, Operand, RightLayout};
use reel_device::{Addr, Arch, Cost, DType, Kernel, Launch, MIN_WAVE_SHARE, Team, kernel};

pub use super::form::Params;
pub(super) use super::form::{DW, DW_TO_F32, DX, DX_TO_F32, FWD, FWD_TO_F32, OperandLayout, form};
use super::plan;
use super::{SOURCE, cpu, plain_product};
use crate::swiglu;
use crate::tuning::Variant;

/// Declares kernels: the constant's name, the name in profiles, the form, and the tile if the kernel fixes one
/// (otherwise the plan chooses).
macro_rules! kernels {
    ($($id:ident: $name:literal, $form:expr, $tile:expr;)*) => {
        $(kernel!(
            pub $id, $name, Params,
            run_on_cpu::<{ $form.a_transposed }, { $form.b_transposed }, { matches!($form.c_dtype, DType::F32) }>,
            &SOURCE, |p, arch| plan::plan_stages(p, arch, $form, $tile)
        );)*
    };
}

kernels! {
    FWD_BF16: "gemm_fwd_bf16", FWD, None;
    FWD_BF16_HALVES: "gemm_fwd_bf16", FWD, Some(&plan::FWD_HALVES);
    FWD_BF16_128X256: "gemm_fwd_bf16", FWD, Some(&plan::FWD_128X256);
    FWD_BF16_HELD: "gemm_fwd_bf16", FWD, Some(&plan::FWD_HELD);
    FWD_BF16_128X192: "gemm_fwd_bf16", FWD, Some(&plan::FWD_128X192);
    FWD_BF16_128X224: "gemm_fwd_bf16", FWD, Some(&plan::FWD_128X224);
    FWD_BF16_128X160: "gemm_fwd_bf16", FWD, Some(&plan::FWD_128X160);
    FWD_BF16_128X128: "gemm_fwd_bf16", FWD, Some(&plan::FWD_128X128);
    FWD_BF16_64X144: "gemm_fwd_bf16", FWD, Some(&plan::FWD_64X144);
    FWD_F32: "gemm_fwd_f32", FWD_TO_F32, None;
    DX_BF16: "gemm_dx_bf16", DX, None;
    DX_BF16_HALVES: "gemm_dx_bf16", DX, Some(&plan::DX_HALVES);
    DX_BF16_128X256: "gemm_dx_bf16", DX, Some(&plan::DX_128X256);
    DX_BF16_128X224: "gemm_dx_bf16", DX, Some(&plan::DX_128X224);
    DX_BF16_128X128: "gemm_dx_bf16", DX, Some(&plan::DX_128X128);
    DX_F32: "gemm_dx_f32", DX_TO_F32, None;
    DW_BF16: "gemm_dw_bf16", DW, None;
    DW_F32: "gemm_dw_f32", DW_TO_F32, None;
    DW_F32_128X256: "gemm_dw_f32", DW_TO_F32, Some(&plan::DW_F32);
    DW_F32_128X160: "gemm_dw_f32", DW_TO_F32, Some(&plan::DW_F32_128X160);
}

pub(super) const VARIANTS: &[Variant] = &[
    Variant { of: &FWD_BF16, name: "256 x 192 in halves", kernel: &FWD_BF16_HALVES },
    Variant { of: &FWD_BF16, name: "128 x 256", kernel: &FWD_BF16_128X256 },
    Variant { of: &FWD_BF16, name: "128 x 256 held", kernel: &FWD_BF16_HELD },
    Variant { of: &FWD_BF16, name: "128 x 192", kernel: &FWD_BF16_128X192 },
    Variant { of: &FWD_BF16, name: "128 x 224", kernel: &FWD_BF16_128X224 },
    Variant { of: &FWD_BF16, name: "128 x 160", kernel: &FWD_BF16_128X160 },
    Variant { of: &FWD_BF16, name: "128 x 128", kernel: &FWD_BF16_128X128 },
    Variant { of: &FWD_BF16, name: "64 x 144", kernel: &FWD_BF16_64X144 },
    Variant { of: &DX_BF16, name: "256 x 192 in halves", kernel: &DX_BF16_HALVES },
    Variant { of: &DX_BF16, name: "128 x 256", kernel: &DX_BF16_128X256 },
    Variant { of: &DX_BF16, name: "128 x 224", kernel: &DX_BF16_128X224 },
    Variant { of: &DX_BF16, name: "128 x 128", kernel: &DX_BF16_128X128 },
    Variant { of: &DW_F32, name: "128 x 256", kernel: &DW_F32_128X256 },
    Variant { of: &DW_F32, name: "128 x 160", kernel: &DW_F32_128X160 },
];

kernel!(
    pub SWIGLU_BF16, "gemm_swiglu_bf16", Params, swiglu_on_cpu, &SOURCE, |p, arch| plan::plan_swiglu_stages(p, arch)
);

impl OperandLayout {
    /// Returns the kernel for products of this form whose plan chooses the tile.
    pub(super) fn kernel(self) -> &'static Kernel {
        match (self.a_transposed, self.b_transposed, self.c_dtype) {
            (true, _, DType::F32) => &DW_F32,
            (true, ..) => &DW_BF16,
            (false, true, DType::F32) => &DX_F32,
            (false, true, _) => &DX_BF16,
            (false, false, DType::F32) => &FWD_F32,
            (false, false, _) => &FWD_BF16,
        }
    }

    /// Returns the product that a kernel of this form computes.
    pub(super) fn matmul_of_params(self, p: &Params) -> Matmul {
        let operand = |addr, transposed| Operand { addr, dtype: DType::BF16, transposed };
        let (a, b) = (operand(p.a, self.a_transposed), operand(p.b, self.b_transposed));
        let product = plain_product([p.m, p.n, p.k].map(|size| size as usize), a, b, p.c, self.c_dtype);
        Matmul { bias: p.bias, accumulate: p.accumulate != 0, scale: p.scale, ..product }
    }

    /// Returns a launch of a kernel of this form.
    pub(super) fn launch(self, kernel: &'static Kernel, params: &Params) -> Launch {
        Launch::kernel(kernel, params, self.matmul_of_params(params).cost())
    }
}

/// # Safety
/// The addresses in `p` are those of the operands of a product of this form.
#[allow(unsafe_code)]
unsafe fn run_on_cpu<const A_TRANSPOSED: bool, const B_TRANSPOSED: bool, const TO_F32: bool>(p: &Params, team: &Team) {
    let c_dtype = if TO_F32 { DType::F32 } else { DType::BF16 };
    // SAFETY: the condition of this function.
    unsafe { cpu::run(&form(A_TRANSPOSED, B_TRANSPOSED, c_dtype).matmul_of_params(p), team) }
}

/// # Safety
/// The addresses in `p` are those of the operands of `gemm_swiglu_bf16`.
#[allow(unsafe_code)]
unsafe fn swiglu_on_cpu(p: &Params, team: &Team) {
    let (count, cols) = (u64::from(p.m) * u64::from(p.n / 2), u64::from(p.n / 2));
    let mut products = [(); 2].map(|()| vec![bf16::ZERO; count as usize]);
    let [gate, up] = products.each_mut().map(|product| Addr(product.as_mut_ptr() as u64));
    for (b, c) in [(p.b, gate), (p.b2, up)] {
        // SAFETY: the condition of this function; `c` has `[m, n / 2]` elements.
        unsafe { cpu::run(&FWD.matmul_of_params(&Params { b, c, n: p.n / 2, ..*p }), team) }
    }
    // SAFETY: gate, up and C have `count` elements.
    unsafe { swiglu::cpu::fwd::<bf16>(&swiglu::FwdParams { gate, up, y: p.c, count, cols, stride: cols }, team) }
}

/// Returns the launch of `gemm_swiglu_bf16` with these parameters.
pub(super) fn swiglu_launch(params: &Params) -> Launch {
    let product = FWD.matmul_of_params(params).cost();
    // C has half of the product's columns.
    let bytes = product.bytes - f64::from(params.m) * f64::from(params.n);
    Launch::kernel(&SWIGLU_BF16, params, Cost { bytes, ..product })
}

/// Returns the launch that computes SwiGLU, `silu(gate) · up`, of the product `gate` and of the product of the same A
/// with the weights `up`, and writes it to C of `gate`, with the bits of launches of their own. Returns `None` if no
/// kernel of this folder computes `gate`, or if the tile of this launch reaches less than [`MIN_WAVE_SHARE`] of whole
/// waves.
pub fn swiglu_of_product(gate: &Matmul, up: Addr, arch: &Arch) -> Option<Launch> {
    let (form, params) = kernel_params(gate, arch)?;
    let params = Params { b2: up, n: 2 * params.n, ..params };
    let is_plain = form == FWD && gate.bias.is_null() && !gate.accumulate && gate.scale == 1.0;
    let fits = is_plain && up.0.is_multiple_of(16) && plan::swiglu_wave_share(&params, arch)? >= MIN_WAVE_SHARE;
    fits.then(|| swiglu_launch(&params))
}

/// If the gradient of a weight has fewer rows or columns than this, cuBLASLt computes it. Such a C has few blocks, each
/// with long sums over the tokens; cuBLASLt divides a sum among multiprocessors, and these kernels do not.
const MIN_WEIGHT_SIDE: usize = 64;

/// Returns the launch of a kernel of this folder that computes a product on a GPU of this architecture. Returns
/// `None` if no kernel does: below compute capability 9.0, for operands that are not bf16 or that tensor copies
/// cannot read (an address or the bytes of a row are not a multiple of 16), and for the gradients of narrow weights.
pub fn kernel_launch(product: &Matmul, arch: &Arch) -> Option<KernelLaunch> {
    let (form, params) = kernel_params(product, arch)?;
    match form.launch(form.kernel(), &params) {
        Launch::Kernel(launch) => Some(launch),
        _ => None,
    }
}

/// Returns the share of whole waves that a kernel of this folder reaches with a product (`plan.rs`): the elements of C
/// divided by the elements that all multiprocessors compute in the time of the busiest one. `None` if no kernel
/// computes the product.
pub fn wave_share(product: &Matmul, arch: &Arch) -> Option<f64> {
    kernel_params(product, arch).map(|(form, params)| plan::wave_share(&params, arch, form))
}

/// Returns the form and the parameters of the kernel that computes a product.
fn kernel_params(product: &Matmul, arch: &Arch) -> Option<(OperandLayout, Params)> {
    let p = product;
    let form = form(p.a.transposed, p.b.transposed, p.c_dtype);
    let has_kernel = [FWD, FWD_TO_F32, DX, DX_TO_F32, DW, DW_TO_F32].contains(&form);
    let bf16 = [p.a.dtype, p.b.dtype] == [DType::BF16; 2] && p.b_layout == RightLayout::Plain && p.b_scale.is_null();
    let rows = [
        if p.a.transposed { p.m } else { p.k } * p.a.dtype.size(),
        if p.b.transposed { p.n } else { p.k } * p.b.dtype.size(),
        p.n * p.c_dtype.size(),
    ];
    let aligned = [p.a.addr, p.b.addr, p.c, p.bias].iter().all(|at| at.0.is_multiple_of(16))
        && rows.iter().all(|bytes| bytes.is_multiple_of(16));
    // Kernels count rows, columns and k with 32 bits, rounded up to whole tiles.
    let sizes = [p.m, p.n, p.k].iter().all(|&size| (1..=1 << 30).contains(&size));
    let narrow = p.a.transposed && p.m.min(p.n) < MIN_WEIGHT_SIDE;
    if arch.sm < 90 || !has_kernel || !bf16 || !aligned || !sizes || narrow {
        return None;
    }
    let params = Params {
        a: p.a.addr,
        b: p.b.addr,
        c: p.c,
        bias: p.bias,
        m: p.m as u32,
        n: p.n as u32,
        k: p.k as u32,
        accumulate: p.accumulate.into(),
        scale: p.scale,
        ..Params::zeroed()
    };
    Some((form, params))
}
