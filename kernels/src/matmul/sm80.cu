// Matrix products of bf16 operands; formula, operands and numerics: mod.rs. Hopper has kernels with wgmma and tensor
// copies (sm90a.cuh). All other GPUs have plain ones (plain.cuh), which are not optimized: on those GPUs device `cuda`
// uses cuBLASLt.
#include "cuh/base.cuh"
#include "cuh/wgmma.cuh"
#include "matmul/plain.cuh"
#if __CUDA_ARCH__ >= 900
#include "matmul/sm90a.cuh"
#endif

PLAIN_GEMM(gemm_fwd_bf16_plain, bf16, K_MAJOR, K_MAJOR)
PLAIN_GEMM(gemm_fwd_f32_plain, float, K_MAJOR, K_MAJOR)
PLAIN_GEMM(gemm_swiglu_bf16_plain, bf16, K_MAJOR, K_MAJOR, true)
PLAIN_GEMM(gemm_dx_bf16_plain, bf16, K_MAJOR, MN_MAJOR)
PLAIN_GEMM(gemm_dx_f32_plain, float, K_MAJOR, MN_MAJOR)
PLAIN_GEMM(gemm_dw_bf16_plain, bf16, MN_MAJOR, MN_MAJOR)
PLAIN_GEMM(gemm_dw_f32_plain, float, MN_MAJOR, MN_MAJOR)
