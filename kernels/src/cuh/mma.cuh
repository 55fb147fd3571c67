// Matrix products of one warp on tensor cores (sm_80): mma.sync and ldmatrix. Source: PTX ISA 9.0, chapters
// 9.7.14.5.8 and 9.7.14.5.15.
//
// (row, column) of the elements that a lane holds, with g = lane / 4 and t = lane % 4. A register has two bf16 of
// neighbouring columns, the first in the lower half; "2t.." means columns 2t and 2t + 1.
//   A 16x16, row-major: a[0] = (g, 2t..), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t + 8..)
//   B 16x8 as [n][k]:   b0 = (n = g, k = 2t..), b1 = (n = g, k = 2t + 8..)
//   C 16x8:             c[0], c[1] = (g, 2t..), c[2], c[3] = (g + 8, 2t..)
// Columns 16j .. 16j + 16 of a result are two neighbouring C tiles. Rounded to bf16 and packed in pairs, these
// registers are operand A of step j of a following product.
#pragma once

#include "cuh/base.cuh"

// Converts a pointer into shared memory to the address that shared-memory instructions take.
__device__ __forceinline__ u32 shared_address(const void* p) {
  u32 a;
  asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(a) : "l"(p));
  return a;
}

// Loads four 8x8 matrices of 16-bit elements. Lane l passes the address of row l % 8 of matrix l / 8 (16-byte
// aligned) and receives elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1) of each matrix.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Loads four 8x8 matrices and transposes each: lane l receives elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l /
// 4).
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Loads two 8x8 matrices; lanes 0 to 15 pass the addresses of their rows.
__device__ __forceinline__ void ldmatrix_x2(u32 (&r)[2], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

// Loads two 8x8 matrices and transposes each; lanes 0 to 15 pass the addresses of their rows.
__device__ __forceinline__ void ldmatrix_x2_trans(u32 (&r)[2], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

// Computes c += a b for one 16x8 tile of c and an inner dimension of 16, with bf16 operands and f32 sums.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
