// NVRTC has size_t and ptrdiff_t; the rest is here.
#pragma once

#ifndef NULL
#define NULL 0
#endif
#ifndef offsetof
#define offsetof(type, member) __INTADDR__(&((type*)0)->member)
#endif
