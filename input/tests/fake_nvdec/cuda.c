// Stands in for libcuda.so.1 in the tests of video decoding: memory of the GPU is host memory. Has the functions that
// FFmpeg looks up; those that the tests do not use do nothing. Declarations follow the CUDA driver API 12.

#include <stdlib.h>
#include <string.h>

typedef struct {
    size_t src_x, src_y;
    int src_type;
    const void *src_host;
    unsigned long long src_device;
    void *src_array;
    size_t src_pitch, dst_x, dst_y;
    int dst_type;
    void *dst_host;
    unsigned long long dst_device;
    void *dst_array;
    size_t dst_pitch, width, height;
} Copy;

#define UNUSED(F) \
    F(cuInit) F(cuDeviceGetCount) F(cuDeviceGetName) F(cuDeviceComputeCapability) F(cuCtxSetLimit) \
    F(cuCtxPushCurrent_v2) F(cuCtxDestroy_v2) F(cuMemAllocPitch_v2) F(cuMemAllocManaged) F(cuMemsetD8Async) \
    F(cuMemcpy) F(cuMemcpyAsync) F(cuMemcpyHtoD_v2) F(cuMemcpyHtoDAsync_v2) F(cuMemcpyDtoH_v2) \
    F(cuMemcpyDtoHAsync_v2) F(cuMemcpyDtoD_v2) F(cuMemcpyDtoDAsync_v2) F(cuGetErrorName) F(cuGetErrorString) \
    F(cuCtxGetDevice) F(cuDevicePrimaryCtxRetain) F(cuDevicePrimaryCtxRelease) F(cuDevicePrimaryCtxSetFlags) \
    F(cuDevicePrimaryCtxGetState) F(cuDevicePrimaryCtxReset) F(cuStreamCreate) F(cuStreamQuery) \
    F(cuStreamSynchronize) F(cuStreamDestroy_v2) F(cuStreamAddCallback) F(cuEventCreate) F(cuEventDestroy_v2) \
    F(cuEventSynchronize) F(cuEventQuery) F(cuEventRecord) F(cuLaunchKernel) F(cuLinkCreate) F(cuLinkAddData) \
    F(cuLinkComplete) F(cuLinkDestroy) F(cuModuleLoadData) F(cuModuleUnload) F(cuModuleGetFunction) \
    F(cuModuleGetGlobal) F(cuTexObjectCreate) F(cuTexObjectDestroy) F(cuGLGetDevices_v2) \
    F(cuGraphicsGLRegisterImage) F(cuGraphicsUnregisterResource) F(cuGraphicsMapResources) \
    F(cuGraphicsUnmapResources) F(cuGraphicsSubResourceGetMappedArray) F(cuGraphicsResourceGetMappedPointer_v2) \
    F(cuArray3DCreate_v2) F(cuArrayDestroy)
#define DEFINE(name) int name(void) { return 0; }
UNUSED(DEFINE)

int cuDeviceGet(int *device, int index) {
    *device = index;
    return index == 0 ? 0 : 101;
}

int cuCtxCreate_v2(void **context, unsigned flags, int device) {
    *context = (void *)1;
    return 0;
}

int cuCtxPopCurrent_v2(void **context) {
    *context = (void *)1;
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = 256;
    return 0;
}

int cuMemAlloc_v2(unsigned long long *memory, size_t bytes) {
    *memory = (unsigned long long)malloc(bytes);
    return 0;
}

int cuMemFree_v2(unsigned long long memory) {
    free((void *)memory);
    return 0;
}

int cuMemcpy2D_v2(const Copy *c) {
    const char *from = c->src_type == 1 ? c->src_host : (const char *)c->src_device;
    char *to = c->dst_type == 1 ? c->dst_host : (char *)c->dst_device;
    if (getenv("FAKE_FAILED_COPIES"))
        return 700;
    for (size_t y = 0; y < c->height; y++)
        memcpy(to + (c->dst_y + y) * c->dst_pitch + c->dst_x,
               from + (c->src_y + y) * c->src_pitch + c->src_x, c->width);
    return 0;
}

int cuMemcpy2DAsync_v2(const Copy *copy, void *stream) {
    return cuMemcpy2D_v2(copy);
}
