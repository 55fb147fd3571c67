// A stand-in for NVIDIA's management library (libnvidia-ml.so.1) with one GPU at PCI bus id 0000:00:00.0, whose values
// are constants. NO_DRIVER: nvmlInit_v2 fails. LACKS_VALUES: the library has no function that reads a value.
// REFUSES_VALUES: each such function fails.
#include <string.h>

#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define DRIVER_NOT_LOADED 9
#ifdef REFUSES_VALUES
#define STATUS NOT_SUPPORTED
#else
#define STATUS 0
#endif

static int gpu;

int nvmlInit_v2(void) {
#ifdef NO_DRIVER
    return DRIVER_NOT_LOADED;
#else
    return 0;
#endif
}

int nvmlShutdown(void) { return 0; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    strncpy(version, "580.00", length);
    return 0;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) {
    if (strcmp(id, "0000:00:00.0") != 0) return NOT_FOUND;
    *device = &gpu;
    return 0;
}

#ifndef LACKS_VALUES
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    strncpy(uuid, "GPU-12345678-stub", length);
    return STATUS;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) { return *milliwatts = 612500, STATUS; }

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    static unsigned long long energy = 1000000;
    return *millijoules = energy += 500, STATUS;
}

int nvmlDeviceGetClockInfo(void *device, int clock, unsigned *megahertz) {
    return *megahertz = clock == 1 ? 1755 : 2619, STATUS;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) { return *celsius = 61, STATUS; }

int nvmlDeviceGetUtilizationRates(void *device, unsigned percent[2]) { return percent[0] = 97, percent[1] = 40, STATUS; }

// The version, then total, reserved, free and used bytes.
int nvmlDeviceGetMemoryInfo_v2(void *device, unsigned long long values[5]) {
    return values[1] = 80000000000, values[3] = 77000000000, values[4] = 3000000000, STATUS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    return *reasons = 0x4 | 0x40, STATUS;
}
#endif
