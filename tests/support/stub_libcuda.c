// A driver library that computes nothing: it has the calls of CUDA 12.0 that reel makes, and no newer ones. "GPU memory"
// is host memory, copies are done at once, and launches do nothing. It refuses code that a driver of VERSION (a CUDA
// version times 1000) cannot load. Compile it with -DVERSION=12040; -DINCOMPLETE leaves a call out.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, UNSUPPORTED_PTX_VERSION = 222 };
#define CALL __attribute__((visibility("default"))) int
typedef uint64_t Address;
typedef void* Handle;

// Any handle that is not null.
static int make(Handle* handle) {
    static char count[1 << 20];
    static int next;
    *handle = &count[++next % sizeof count];
    return SUCCESS;
}

CALL cuInit(unsigned flags) { return SUCCESS; }
CALL cuDriverGetVersion(int* version) { *version = VERSION; return SUCCESS; }
CALL cuGetErrorName(int error, const char** name) {
    *name = error == INVALID_IMAGE ? "CUDA_ERROR_INVALID_IMAGE" : "CUDA_ERROR_UNSUPPORTED_PTX_VERSION";
    return SUCCESS;
}
CALL cuGetErrorString(int error, const char** text) { *text = "refused by the stub"; return SUCCESS; }

CALL cuDeviceGetCount(int* count) { *count = 1; return SUCCESS; }
CALL cuDeviceGet(int* device, int ordinal) { *device = ordinal; return SUCCESS; }
#ifndef NAME
#define NAME "stub GPU"
#endif
CALL cuDeviceGetName(char* name, int bytes, int device) { strncpy(name, NAME, bytes); return SUCCESS; }
CALL cuDeviceGetUuid(void* id, int device) { memset(id, 7, 16); return SUCCESS; }
CALL cuDeviceGetPCIBusId(char* id, int bytes, int device) { strncpy(id, "0000:00:00.0", bytes); return SUCCESS; }
CALL cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = (size_t)8 << 30; return SUCCESS; }
// The attributes of an H100 that reel asks for, by their numbers in cuda.h.
CALL cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;       // MAX_THREADS_PER_BLOCK, MAX_BLOCK_DIM_X and _Y
    case 4: *value = 64; break;                         // MAX_BLOCK_DIM_Z
    case 5: *value = 0x7fffffff; break;                 // MAX_GRID_DIM_X
    case 6: case 7: *value = 65535; break;              // MAX_GRID_DIM_Y and _Z
    case 12: *value = 65536; break;                     // MAX_REGISTERS_PER_BLOCK
    case 16: *value = 132; break;                       // MULTIPROCESSOR_COUNT
    case 75: *value = 9; break;                         // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = 0; break;                         // COMPUTE_CAPABILITY_MINOR
    case 97: *value = 232448; break;                    // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    default: *value = 0;
    }
    return SUCCESS;
}

CALL cuDevicePrimaryCtxRetain(Handle* context, int device) { return make(context); }
CALL cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
CALL cuCtxSetCurrent(Handle context) { return SUCCESS; }

static int reserve(Address* at, size_t bytes) {
    void* memory = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *at = (Address)memory;
    return memory == MAP_FAILED ? OUT_OF_MEMORY : SUCCESS;
}

CALL cuMemGetInfo_v2(size_t* unused, size_t* all) { *unused = (size_t)7 << 30; *all = (size_t)8 << 30; return SUCCESS; }
CALL cuMemAlloc_v2(Address* at, size_t bytes) { return reserve(at, bytes); }
CALL cuMemFree_v2(Address at) { return SUCCESS; }
CALL cuMemHostAlloc(void** at, size_t bytes, unsigned flags) { *at = malloc(bytes); return *at ? SUCCESS : OUT_OF_MEMORY; }
CALL cuMemFreeHost(void* at) { free(at); return SUCCESS; }
CALL cuMemGetAllocationGranularity(size_t* bytes, const void* kind, int option) { *bytes = 2 << 20; return SUCCESS; }
CALL cuMemAddressReserve(Address* at, size_t bytes, size_t alignment, Address near, unsigned long long flags) {
    return reserve(at, bytes);
}
CALL cuMemAddressFree(Address at, size_t bytes) { munmap((void*)at, bytes); return SUCCESS; }
CALL cuMemCreate(unsigned long long* handle, size_t bytes, const void* kind, unsigned long long flags) {
    *handle = 1;
    return SUCCESS;
}
CALL cuMemRelease(unsigned long long handle) { return SUCCESS; }
CALL cuMemMap(Address at, size_t bytes, size_t offset, unsigned long long handle, unsigned long long flags) {
    return SUCCESS;
}
CALL cuMemSetAccess(Address at, size_t bytes, const void* access, size_t count) { return SUCCESS; }
CALL cuMemUnmap(Address at, size_t bytes) { return SUCCESS; }
CALL cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, Handle stream) {
    memcpy((void*)to, from, bytes);
    return SUCCESS;
}
CALL cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, Handle stream) {
    memcpy(to, (void*)from, bytes);
    return SUCCESS;
}
CALL cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Handle stream) {
    memcpy((void*)to, (void*)from, bytes);
    return SUCCESS;
}
CALL cuMemsetD8Async(Address at, unsigned char byte, size_t bytes, Handle stream) {
    memset((void*)at, byte, bytes);
    return SUCCESS;
}

CALL cuStreamCreate(Handle* stream, unsigned flags) { return make(stream); }
CALL cuStreamDestroy_v2(Handle stream) { return SUCCESS; }
CALL cuStreamSynchronize(Handle stream) { return SUCCESS; }
CALL cuProfilerStart(void) { return SUCCESS; }
CALL cuProfilerStop(void) { return SUCCESS; }
CALL cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) { return SUCCESS; }
CALL cuEventCreate(Handle* event, unsigned flags) { return make(event); }
CALL cuEventDestroy_v2(Handle event) { return SUCCESS; }
CALL cuEventRecord(Handle event, Handle stream) { return SUCCESS; }
CALL cuEventSynchronize(Handle event) { return SUCCESS; }
CALL cuEventQuery(Handle event) { return SUCCESS; }
CALL cuEventElapsedTime(float* milliseconds, Handle start, Handle end) { *milliseconds = 1; return SUCCESS; }

CALL cuModuleLoadData(Handle* module, const void* image) {
    const unsigned char* bytes = image;
    if (memcmp(bytes, "\x7f" "ELF", 4) == 0) {
        if (VERSION < 13000 && bytes[7] >= 0x41) return INVALID_IMAGE;
    } else {
        const char* version = strstr(image, ".version ");
        int newest = VERSION < 13000 ? 80 + VERSION % 1000 / 10 : 90;
        if (!version || 10 * (version[9] - '0') + (version[11] - '0') > newest) return UNSUPPORTED_PTX_VERSION;
    }
    return make(module);
}
CALL cuModuleUnload(Handle module) { return SUCCESS; }
CALL cuModuleGetFunction(Handle* function, Handle module, const char* name) { return make(function); }
// MAX_THREADS_PER_BLOCK is 0, NUM_REGS is 4.
CALL cuFuncGetAttribute(int* value, int attribute, Handle function) {
    *value = attribute == 0 ? 1024 : attribute == 4 ? 32 : 0;
    return SUCCESS;
}
CALL cuFuncSetAttribute(Handle function, int attribute, int value) { return SUCCESS; }
CALL cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Handle function, int threads, size_t shared) {
    *blocks = 2;
    return SUCCESS;
}
CALL cuOccupancyMaxActiveClusters(int* clusters, Handle function, const void* config) { *clusters = 16; return SUCCESS; }
CALL cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* at, const void* dims, const void* strides,
                            const void* box, const void* steps, int interleave, int swizzle, int l2, int fill) {
    return SUCCESS;
}
#ifndef INCOMPLETE
CALL cuLaunchKernelEx(const void* config, Handle function, void** params, void** extra) { return SUCCESS; }
#endif

CALL cuStreamBeginCapture_v2(Handle stream, int mode) { return SUCCESS; }
CALL cuStreamEndCapture(Handle stream, Handle* graph) { return make(graph); }
CALL cuGraphInstantiateWithFlags(Handle* ready, Handle graph, unsigned long long flags) { return make(ready); }
CALL cuGraphDestroy(Handle graph) { return SUCCESS; }
CALL cuGraphLaunch(Handle ready, Handle stream) { return SUCCESS; }
CALL cuGraphExecDestroy(Handle ready) { return SUCCESS; }
