// Padding, so that no line number of this header equals a marked line of the file that includes it.
__device__ __forceinline__ void put_from_header(float* out, unsigned at) {
    out[at] = 1;
}
