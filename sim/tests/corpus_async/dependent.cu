// Two dependent grids: before griddepcontrol.wait, the second one must not access what the first one writes.
#include "async.cuh"

extern "C" __global__ void first(const u32* in, u32* middle, u32* out, int n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    grid_launch();
    middle[i] = in[i] * 3;
}

template <int BUG> DEVICE void second(const u32* in, u32* middle, u32* out, int n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    u32 own = in[i], early = 0;
    if (BUG == 1) early = middle[i]; // second 1: race
    if (BUG == 2) middle[i] = 0; // second 2: race
    if (BUG != 3) grid_wait();
    out[i] = own + middle[i ^ 1] + early; // second 3: race
}
#define SECOND(bug)                                                                                                         \
    extern "C" __global__ void second_##bug(const u32* in, u32* middle, u32* out, int n) {                                  \
        second<bug>(in, middle, out, n);                                                                                    \
    }
SECOND(0)
SECOND(1)
SECOND(2)
SECOND(3)
