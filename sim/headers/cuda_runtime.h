// What nvcc includes before every file: NVRTC has most of it built in.
#pragma once
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
