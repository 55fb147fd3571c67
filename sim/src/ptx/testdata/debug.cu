// Compiled by `nvcc -ptx -G -arch=sm_80 debug.cu -o debug.ptx`; .debug_info and .debug_abbrev are shortened there.
__device__ int twice(int x) { return x * 2; }
__global__ void k(int* p) {
  int local[2] = {1, p[0]};
  if (p[1] > 3) p[threadIdx.x] = twice(local[p[2]]);
}
