// What Rust's standard library for glibc calls and musl does not have. musl's file offsets always have 64 bits, so the
// functions with 64 in their names are those without; the structs are equal on x86-64. Linked into the module of the
// musl wheel by tools/packaging/sim_wheel.sh.
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define HIDDEN __attribute__((visibility("hidden")))

// The standard library asks whether glibc has a certain version.
HIDDEN const char *gnu_get_libc_version(void) { return "2.28"; }

HIDDEN int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open(path, flags, mode);
}

HIDDEN int openat64(int folder, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return openat(folder, path, flags, mode);
}

HIDDEN int stat64(const char *path, struct stat *to) { return stat(path, to); }
HIDDEN int lstat64(const char *path, struct stat *to) { return lstat(path, to); }
HIDDEN int fstat64(int file, struct stat *to) { return fstat(file, to); }
HIDDEN off_t lseek64(int file, off_t offset, int from) { return lseek(file, offset, from); }
HIDDEN struct dirent *readdir64(DIR *folder) { return readdir(folder); }
HIDDEN void *mmap64(void *at, size_t size, int access, int flags, int file, off_t offset) {
    return mmap(at, size, access, flags, file, offset);
}
