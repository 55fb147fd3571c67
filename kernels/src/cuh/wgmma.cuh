// Matrix products of a warpgroup, four warps, on tensor cores (sm_90a): wgmma.mma_async. Source: PTX ISA 9.0, chapters
// 9.7.15 (wgmma), 9.7.13.1 (bar) and 9.7.19.5 (setmaxnreg).
//
// One product adds A [64, 16] times B [16, N] to the accumulators, with bf16 operands and f32 sums. B is in shared
// memory, A there or in registers. An operand in shared memory is stored as [m or n][k] (K_MAJOR) or as [k][m or n]
// (MN_MAJOR). Products of a warpgroup that add to the same sums do so in the order in which they are issued.
//
//   sums of lane l of warp w: d[4 j + 2 h + e] is row 16 w + l / 4 + 8 h, column 8 j + 2 (l % 4) + e
//   A in registers: as mma.cuh, for the 16 rows of each warp
//
//   wgmma_fence(); products; wgmma_commit(); ...; wgmma_wait<N>(): the sums may be read, operands may be overwritten
//
// Between its product and the wait, neither sums nor operands in registers may be accessed. ptxas otherwise waits for
// each product (warning C7510), which makes the kernel several times slower. The compiler may move
// such accesses over the wait; keep_registers() prevents it.
#pragma once

#include "cuh/base.cuh"

// Orders accesses to registers before the products that follow. Needed before the first product and after each access
// to sums or to operands in registers.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Makes one group of all products that the warpgroup issued since its previous group.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all groups except the newest N are complete.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Prevents the compiler from moving accesses to these registers across this point. Emits no instruction.
template <int N>
__device__ __forceinline__ void keep_registers(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int N>
__device__ __forceinline__ void keep_registers(u32 (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

// How an operand is stored in shared memory: as [m or n][k] (K_MAJOR) or as [k][m or n] (MN_MAJOR).
constexpr int K_MAJOR = 0;
constexpr int MN_MAJOR = 1;

// Returns the upper part of the descriptor of an operand in shared memory that was copied with a swizzle of SWIZZLE
// bytes (128, 64 or 32). The operand has rows of SWIZZLE bytes, in blocks of eight rows; a block begins `stride_bytes`
// after the previous block. If an operand is MN_MAJOR and wider than the swizzle, it has several columns of such
// blocks, `leading_bytes` apart.
template <int SWIZZLE>
__device__ __forceinline__ constexpr u64 operand_layout(u32 leading_bytes = 16, u32 stride_bytes = 8 * SWIZZLE) {
  static_assert(SWIZZLE == 128 || SWIZZLE == 64 || SWIZZLE == 32, "swizzle");
  constexpr u64 mode = SWIZZLE == 128 ? 1 : SWIZZLE == 64 ? 2 : 3;
  return mode << 62 | static_cast<u64>(stride_bytes >> 4) << 32 | static_cast<u64>(leading_bytes >> 4) << 16;
}

// The lower part of a descriptor. Only 18 bits of the address may be in it: the shared address of a block of a
// cluster has the block's rank in bits 24 and above, which would change the leading bytes. Adding n to the lower
// part, or to a descriptor, moves the operand's address by 16 n bytes.
__device__ __forceinline__ u32 operand_address(u32 shared) { return (shared & 0x3FFFF) >> 4; }

// Products with N columns. `d` is the array of sums, used from element O on. `a` and `b` are descriptors; B_MAJOR tells
// how B lies in shared memory.
//   ss      d += A B (d = A B if add is 0), A in shared memory
//   rs      the same with A in the registers a[4], K_MAJOR
//   ss_new  d = A B, and rs_new: the old sums are not an input, so that their registers are free before
template <int N>
struct Wgmma;

// Macros that write the names %0, %1, ... of the sums' registers, and their operands. t is the tens digit of a number:
// empty, 1, 2, ...
#define NAMES_2(t) "%" #t "0, %" #t "1"
#define NAMES_4(t) NAMES_2(t) ", %" #t "2, %" #t "3"
#define NAMES_6(t) NAMES_4(t) ", %" #t "4, %" #t "5"
#define NAMES_8(t) NAMES_6(t) ", %" #t "6, %" #t "7"
#define NAMES_10(t) NAMES_8(t) ", %" #t "8, %" #t "9"
#define SUMS_2(how, t) how(d[O + t##0]), how(d[O + t##1])
#define SUMS_4(how, t) SUMS_2(how, t), how(d[O + t##2]), how(d[O + t##3])
#define SUMS_6(how, t) SUMS_4(how, t), how(d[O + t##4]), how(d[O + t##5])
#define SUMS_8(how, t) SUMS_6(how, t), how(d[O + t##6]), how(d[O + t##7])
#define SUMS_10(how, t) SUMS_8(how, t), how(d[O + t##8]), how(d[O + t##9])

#define NAMES_OF_8 NAMES_8()
#define NAMES_OF_16 NAMES_10() ", " NAMES_6(1)
#define NAMES_OF_30 NAMES_10() ", " NAMES_10(1) ", " NAMES_10(2)
#define NAMES_OF_32 NAMES_OF_30 ", " NAMES_2(3)
#define NAMES_OF_40 NAMES_OF_30 ", " NAMES_10(3)
#define NAMES_OF_60 NAMES_OF_40 ", " NAMES_10(4) ", " NAMES_10(5)
#define NAMES_OF_64 NAMES_OF_60 ", " NAMES_4(6)
#define NAMES_OF_70 NAMES_OF_60 ", " NAMES_10(6)
#define NAMES_OF_72 NAMES_OF_70 ", " NAMES_2(7)
#define NAMES_OF_80 NAMES_OF_70 ", " NAMES_10(7)
#define NAMES_OF_88 NAMES_OF_80 ", " NAMES_8(8)
#define NAMES_OF_90 NAMES_OF_80 ", " NAMES_10(8)
#define NAMES_OF_96 NAMES_OF_90 ", " NAMES_6(9)
#define NAMES_OF_112 NAMES_OF_90 ", " NAMES_10(9) ", " NAMES_10(10) ", " NAMES_2(11)
#define NAMES_OF_128 NAMES_OF_90 ", " NAMES_10(9) ", " NAMES_10(10) ", " NAMES_10(11) ", " NAMES_8(12)

#define SUMS_OF_8(how) SUMS_8(how, )
#define SUMS_OF_16(how) SUMS_10(how, ), SUMS_6(how, 1)
#define SUMS_OF_30(how) SUMS_10(how, ), SUMS_10(how, 1), SUMS_10(how, 2)
#define SUMS_OF_32(how) SUMS_OF_30(how), SUMS_2(how, 3)
#define SUMS_OF_40(how) SUMS_OF_30(how), SUMS_10(how, 3)
#define SUMS_OF_60(how) SUMS_OF_40(how), SUMS_10(how, 4), SUMS_10(how, 5)
#define SUMS_OF_64(how) SUMS_OF_60(how), SUMS_4(how, 6)
#define SUMS_OF_70(how) SUMS_OF_60(how), SUMS_10(how, 6)
#define SUMS_OF_72(how) SUMS_OF_70(how), SUMS_2(how, 7)
#define SUMS_OF_80(how) SUMS_OF_70(how), SUMS_10(how, 7)
#define SUMS_OF_88(how) SUMS_OF_80(how), SUMS_8(how, 8)
#define SUMS_OF_90(how) SUMS_OF_80(how), SUMS_10(how, 8)
#define SUMS_OF_96(how) SUMS_OF_90(how), SUMS_6(how, 9)
#define SUMS_OF_112(how) SUMS_OF_90(how), SUMS_10(how, 9), SUMS_10(how, 10), SUMS_2(how, 11)
#define SUMS_OF_128(how) SUMS_OF_90(how), SUMS_10(how, 9), SUMS_10(how, 10), SUMS_10(how, 11), SUMS_8(how, 12)

// Products of N columns, with R = N / 2 sums per thread. The operands after the sums are numbered p0 = R, p1 = R + 1,
// ...
#define WGMMA_PRODUCTS(N, R, p0, p1, p2, p3, p4, p5, p6)                                                              \
  template <>                                                                                                         \
  struct Wgmma<N> {                                                                                                   \
    template <int O, int A_MAJOR, int B_MAJOR, class D>                                                               \
    __device__ static __forceinline__ void ss(D& d, u64 a, u64 b, int add) {                                          \
      asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #p2 ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #N        \
                   "k16.f32.bf16.bf16 {" NAMES_OF_##R "}, %" #p0 ", %" #p1 ", p, 1, 1, %" #p3 ", %" #p4 ";\n\t}"      \
                   : SUMS_OF_##R("+f")                                                                                \
                   : "l"(a), "l"(b), "r"(add), "n"(A_MAJOR), "n"(B_MAJOR));                                           \
    }                                                                                                                 \
    template <int O, int A_MAJOR, int B_MAJOR, class D>                                                               \
    __device__ static __forceinline__ void ss_new(D& d, u64 a, u64 b) {                                               \
      asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, 0, 0;\n\twgmma.mma_async.sync.aligned.m64n" #N               \
                   "k16.f32.bf16.bf16 {" NAMES_OF_##R "}, %" #p0 ", %" #p1 ", p, 1, 1, %" #p2 ", %" #p3 ";\n\t}"      \
                   : SUMS_OF_##R("=f")                                                                                \
                   : "l"(a), "l"(b), "n"(A_MAJOR), "n"(B_MAJOR));                                                     \
    }                                                                                                                 \
    template <int O, int B_MAJOR, class D>                                                                            \
    __device__ static __forceinline__ void rs(D& d, const u32 (&a)[4], u64 b, int add) {                              \
      asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #p5 ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #N        \
                   "k16.f32.bf16.bf16 {" NAMES_OF_##R "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4            \
                   ", p, 1, 1, %" #p6 ";\n\t}"                                                                        \
                   : SUMS_OF_##R("+f")                                                                                \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(B_MAJOR));                     \
    }                                                                                                                 \
    template <int O, int B_MAJOR, class D>                                                                            \
    __device__ static __forceinline__ void rs_new(D& d, const u32 (&a)[4], u64 b) {                                   \
      asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, 0, 0;\n\twgmma.mma_async.sync.aligned.m64n" #N               \
                   "k16.f32.bf16.bf16 {" NAMES_OF_##R "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4            \
                   ", p, 1, 1, %" #p5 ";\n\t}"                                                                        \
                   : SUMS_OF_##R("=f")                                                                                \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(B_MAJOR));                               \
    }                                                                                                                 \
  }
WGMMA_PRODUCTS(16, 8, 8, 9, 10, 11, 12, 13, 14);
WGMMA_PRODUCTS(32, 16, 16, 17, 18, 19, 20, 21, 22);
WGMMA_PRODUCTS(64, 32, 32, 33, 34, 35, 36, 37, 38);
WGMMA_PRODUCTS(80, 40, 40, 41, 42, 43, 44, 45, 46);
WGMMA_PRODUCTS(128, 64, 64, 65, 66, 67, 68, 69, 70);
WGMMA_PRODUCTS(144, 72, 72, 73, 74, 75, 76, 77, 78);
WGMMA_PRODUCTS(160, 80, 80, 81, 82, 83, 84, 85, 86);
WGMMA_PRODUCTS(176, 88, 88, 89, 90, 91, 92, 93, 94);
WGMMA_PRODUCTS(192, 96, 96, 97, 98, 99, 100, 101, 102);
WGMMA_PRODUCTS(224, 112, 112, 113, 114, 115, 116, 117, 118);
WGMMA_PRODUCTS(256, 128, 128, 129, 130, 131, 132, 133, 134);

// Stores four 8x8 matrices of 16-bit elements to shared memory, the reverse of ldmatrix_x4: lane l passes the address
// of row l % 8 of matrix l / 8 (16-byte aligned), and has elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1) of
// each.
__device__ __forceinline__ void stmatrix_x4(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r0), "r"(r1),
               "r"(r2), "r"(r3)
               : "memory");
}

// Sets the number of registers of each thread of the calling warpgroup, a multiple of 8 from 24 to 256. A number
// below the one that the kernel was compiled for frees registers for other warpgroups. With a larger number, the call
// waits until enough registers are free.
template <int N>
__device__ __forceinline__ void free_registers_down_to() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void take_registers_up_to() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// Arrives at a named barrier (number 1 to 15) of `threads` threads. named_barrier_sync also waits for the other
// threads. __syncthreads() is barrier 0.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
