// printf is built in; a kernel can print nothing else.
#pragma once
#include <stddef.h>
