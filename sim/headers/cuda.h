// The driver's types that a kernel can have in its parameters.
#pragma once
#include <stdint.h>

typedef unsigned long long CUdeviceptr;
typedef struct CUstream_st* CUstream;

// A tensor map, opaque: 128 bytes, aligned to 64 (PTX ISA, chapter Tensors).
typedef struct CUtensorMap_st {
    alignas(64) unsigned long long opaque[16];
} CUtensorMap;
