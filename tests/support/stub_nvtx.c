/* A profiling tool for NVTX 3, as a library that a program opens: it writes each range to the file that the variable
   STUB_NVTX_OUT names. The numbers are those of NVIDIA's header nvtxTypes.h. With -DFAILS it does not start.

   Lines:  domain NAME
           category NUMBER NAME
           push THREAD NUMBER-OF-THE-CATEGORY NAME
           pop THREAD
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

struct attributes {
    uint16_t version, size;
    uint32_t category;
    int32_t color_type;
    uint32_t color;
    int32_t payload_type, reserved;
    uint64_t payload;
    int32_t message_type;
    const char *message;
};

struct callbacks {
    size_t struct_size;
    int (*module_table)(int module, void ***table[], unsigned *size);
};

static FILE *out;
static int domain;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static long thread(void) { return syscall(SYS_gettid); }

static void *create_domain(const char *name) {
    fprintf(out, "domain %s\n", name);
    return &domain;
}

static void name_category(void *of, uint32_t number, const char *name) {
    if (of == &domain) fprintf(out, "category %u %s\n", number, name);
}

static int push(void *of, const struct attributes *a) {
    if (of != &domain || a->version != 3 || a->size != 48 || a->message_type != 1) abort();
    pthread_mutex_lock(&lock);
    fprintf(out, "push %ld %u %s\n", thread(), a->category, a->message);
    pthread_mutex_unlock(&lock);
    return 0;
}

static int pop(void *of) {
    if (of != &domain) abort();
    pthread_mutex_lock(&lock);
    fprintf(out, "pop %ld\n", thread());
    fflush(out);
    pthread_mutex_unlock(&lock);
    return 0;
}

int InitializeInjectionNvtx2(const void *(*export_table)(uint32_t)) {
#ifdef FAILS
    return 0;
#endif
    const struct callbacks *callbacks = export_table(1);
    void ***table;
    unsigned size;
    if (!callbacks || !callbacks->module_table(5, (void *)&table, &size) || size != 16) return 0;
    out = fopen(getenv("STUB_NVTX_OUT"), "w");
    if (!out) return 0;
    *table[4] = (void *)push;
    *table[5] = (void *)pop;
    *table[8] = (void *)name_category;
    *table[12] = (void *)create_domain;
    return 1;
}
