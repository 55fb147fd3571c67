// One instruction in four accesses global or shared memory. Blocks have 256 threads.
extern "C" __global__ void scalar(const float* x, float* y, unsigned mask) {
    __shared__ float s[256];
    unsigned t = threadIdx.x, i = blockIdx.x * 256 + t;
    float sum = 0;
#pragma unroll 1
    for (unsigned k = 0; k < 16; ++k) {
        float v = x[(i + 256 * k) & mask];
        s[t] = v;
        __syncthreads();
        float w = s[t ^ 33] - s[t ^ 2];
        sum = sum * 0.5f + v * w;
        sum = sum > 100.0f ? sum - w : sum + 1.0f;
        __syncthreads();
        y[i] = sum;
    }
}
