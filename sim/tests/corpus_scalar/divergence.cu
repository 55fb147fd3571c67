// Control flow that makes warps diverge; all kernels are correct.
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

//@ launch: grid=2 block=48 args=buf:96:zeros
extern "C" __global__ void nested_loops(unsigned* out) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x, sum = 0;
    for (unsigned j = 0; j < i % 7; ++j) {
        for (unsigned k = j; k < i % 5 + j; ++k) {
            if ((j ^ k ^ i) & 1) sum += j * k + i;
        }
        sum = sum * 3 + 1;
    }
    out[i] = sum;
}

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void break_continue(unsigned* out) {
    unsigned i = threadIdx.x, sum = 0;
    for (unsigned j = 0; j < 40; ++j) {
        if ((i + j) % 3 == 0) continue;
        unsigned k = 0;
        while (true) {
            if (k > i % 11) break;
            k += j % 4 + 1;
            if (k == 6) goto next;
        }
        sum += k;
        if (sum > 60 + i) break;
    next:
        sum ^= j;
    }
    out[i] = sum;
}

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void switches(unsigned* out) {
    unsigned i = threadIdx.x, v = i;
    for (int round = 0; round < 3; ++round) {
        switch (v % 9) {
            case 0: v = v * 5 + 3; break;
            case 1: v += 17; [[fallthrough]];
            case 2: v ^= 0x55; break;
            case 3: for (unsigned k = 0; k < i % 6; ++k) v += k; break;
            case 4: v = v >> 1 | v << 31; break;
            case 5: v = ~v; break;
            case 7: v -= 1000; break;
            default: v += 2;
        }
    }
    out[i] = v;
}

//@ launch: grid=1 block=96 args=buf:96:zeros,u32=77
extern "C" __global__ void early_exit(unsigned* out, unsigned n) {
    __shared__ unsigned s[96];
    unsigned i = threadIdx.x;
    s[i] = i;
    if (i >= n) return;
    for (unsigned k = 0; k < 50; ++k) {
        if (k == i % 50 && i % 4 == 3) return;
        s[i] += k;
    }
    __syncthreads();
    out[i] = s[i] + s[i & ~3u];
}

__device__ __noinline__ unsigned fibonacci(unsigned n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void recursion(unsigned* out) { out[threadIdx.x] = fibonacci(threadIdx.x % 10); }

typedef unsigned (*Function)(unsigned);
__device__ __noinline__ unsigned twice(unsigned x) { return 2 * x; }
__device__ __noinline__ unsigned square(unsigned x) { return x * x; }
__device__ __noinline__ unsigned deep(unsigned x) { return x & 1 ? twice(x + 3) : square(x + 4); }
__device__ Function table[4] = {twice, square, deep, fibonacci};
//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void function_pointers(unsigned* out) {
    unsigned i = threadIdx.x;
    out[i] = table[i % 3](i) + table[(i / 3) % 4](i % 8);
}

__device__ __noinline__ unsigned several_returns(unsigned x, unsigned* side) {
    if (x % 5 == 0) return 1;
    *side += x;
    for (unsigned k = 0; k < x; ++k) {
        if (k * k > x) return k;
        if (x % (k + 2) == 0) { *side += 100; return x / (k + 2); }
    }
    return 99;
}
//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void divergent_returns(unsigned* out) {
    unsigned side = 7, sum = 0;
    for (unsigned k = 0; k < 3; ++k) sum = sum * 7 + several_returns(threadIdx.x + k, &side);
    out[threadIdx.x] = sum + 1000 * side;
}

// Shuffles in divergent code, with masks of the participating lanes.
//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void divergent_shuffles(unsigned* out) {
    unsigned t = threadIdx.x, v = t;
    if (t % 2) {
        v = __shfl_sync(0xaaaaaaaau, v, (t + 2) % 32 | 1);
        if (t < 16) v += __shfl_xor_sync(0x0000aaaau, v, 2);
    } else {
        v += 100 * __popc(__ballot_sync(0x55555555u, t % 4 == 0));
        v += __reduce_max_sync(0x55555555u, t);
    }
    __syncwarp();
    v += __shfl_down_sync(~0u, v, 1);
    out[t] = v;
}

//@ launch: grid=1 block=32 args=buf:32:zeros
extern "C" __global__ void syncwarp_in_branches(unsigned* out) {
    __shared__ unsigned s[32];
    unsigned t = threadIdx.x;
    if (t < 16) {
        s[t] = t;
        __syncwarp();
        out[t] = s[t + 16];
    } else {
        s[t] = 2 * t;
        __syncwarp();
        out[t] = s[t - 16];
    }
}

//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void tiles(unsigned* out) {
    __shared__ unsigned s[64];
    auto block = cg::this_thread_block();
    auto tile = cg::tiled_partition<8>(block);
    unsigned t = threadIdx.x, v = t;
    if (tile.meta_group_rank() % 2) {
        for (int d = 4; d > 0; d /= 2) v += tile.shfl_down(v, d);
        v = tile.shfl(v, 0);
    } else {
        s[t] = t;
        tile.sync();
        v = s[t ^ 7] + tile.any(t == 17);
    }
    block.sync();
    out[t] = v;
}

//@ launch: grid=1 block=64 args=buf:1:zeros,buf:1:zeros
extern "C" __global__ void coalesced(unsigned* n, unsigned* calls) {
    if (threadIdx.x % 3 == 0) {
        auto active = cg::coalesced_threads();
        if (active.thread_rank() == 0) {
            atomicAdd(n, active.size());
            atomicAdd(calls, 1u);
        }
        active.sync();
    }
}

// The lanes of one warp take turns, from lane 31 to lane 0; each waits in a loop until it has the token.
//@ launch: grid=1 block=32 args=buf:1:zeros,buf:32:zeros
extern "C" __global__ void token(volatile unsigned* turn, unsigned* out) {
    while (*turn != 31 - threadIdx.x) {}
    out[threadIdx.x] = *turn;
    *turn = *turn + 1;
}

// Lanes leave two or all three of the nested loops by a goto in the innermost one.
//@ launch: grid=1 block=64 args=buf:64:zeros
extern "C" __global__ void goto_out(unsigned* out) {
    unsigned i = threadIdx.x, n = 0;
    for (unsigned a = 0; a < 6; ++a) {
        for (unsigned b = 0; b < 6; ++b) {
            for (unsigned c = 0; c < 6; ++c) {
                ++n;
                if (a * 36 + b * 6 + c == 3 * i) goto done;
                if ((a + b + c + i) % 13 == 12) goto outer;
            }
        }
    outer:
        n += 1000;
    }
done:
    out[i] = n;
}
