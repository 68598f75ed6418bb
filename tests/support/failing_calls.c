/* Makes the calls on files below a folder fail, one at a time, for test_failing_calls.py: loaded by
 * LD_PRELOAD, with FAIL_ROOT in the environment. `fail_at(n, code)` has the n-th such call from now
 * on fail with `code`, and with `lasting` every one after it; `calls_made()` says how many there
 * were. A call that fails has done nothing, but a write, which has done half. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *root;
static long made, wanted;
static int wanted_code, wanted_lasting, wanted_opens;

__attribute__((constructor)) static void begin(void) { root = getenv("FAIL_ROOT"); }

void fail_at(long n, int code, int lasting, int opens_only) {
    pthread_mutex_lock(&lock);
    made = 0;
    wanted = n;
    wanted_code = code;
    wanted_lasting = lasting;
    wanted_opens = opens_only;
    pthread_mutex_unlock(&lock);
}

long calls_made(void) { return made; }

static int below_root(const char *path) {
    return root != NULL && strncmp(path, root, strlen(root)) == 0;
}

static int is_ours(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return length >= 0 && below_root(path);
}

static int fails(int opens) {
    if (wanted_opens && !opens) {
        return 0;
    }
    pthread_mutex_lock(&lock);
    made++;
    const int now = wanted > 0 && (wanted_lasting ? made >= wanted : made == wanted);
    pthread_mutex_unlock(&lock);
    if (now) {
        errno = wanted_code;
    }
    return now;
}

#define OPEN(name)                                                          \
    int name(const char *path, int flags, ...) {                            \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        const mode_t mode = va_arg(rest, mode_t);                           \
        va_end(rest);                                                       \
        if (below_root(path) && fails(1)) {                                 \
            return -1;                                                      \
        }                                                                   \
        return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);       \
    }
OPEN(open)
OPEN(open64)

static ssize_t written(int fd, const struct iovec *parts, int count, off_t at) {
    if (is_ours(fd) && fails(0)) {
        const int code = errno;
        const size_t half = parts[0].iov_len / 2;
        if (half > 0) {
            if (at < 0) {
                syscall(SYS_write, fd, parts[0].iov_base, half);
            } else {
                syscall(SYS_pwrite64, fd, parts[0].iov_base, half, at);
            }
        }
        errno = code;
        return -1;
    }
    return at < 0 ? syscall(SYS_writev, fd, parts, count)
                  : syscall(SYS_pwritev, fd, parts, count, at, 0);
}

#include "all_writes.h"

static ssize_t was_read(int fd, void *data, size_t bytes, off_t at) {
    if (is_ours(fd) && fails(0)) {
        return -1;
    }
    return at < 0 ? syscall(SYS_read, fd, data, bytes) : syscall(SYS_pread64, fd, data, bytes, at);
}

ssize_t read(int fd, void *data, size_t bytes) { return was_read(fd, data, bytes, -1); }
ssize_t pread(int fd, void *data, size_t bytes, off_t at) { return was_read(fd, data, bytes, at); }
ssize_t pread64(int fd, void *data, size_t bytes, off64_t at) {
    return was_read(fd, data, bytes, at);
}

#define ON_FD(name, number)                                 \
    int name(int fd) {                                      \
        return is_ours(fd) && fails(0) ? -1 : (int)syscall(number, fd); \
    }
ON_FD(fsync, SYS_fsync)
ON_FD(fdatasync, SYS_fdatasync)

static int resized(int fd, off_t size) {
    return is_ours(fd) && fails(0) ? -1 : (int)syscall(SYS_ftruncate, fd, size);
}
int ftruncate(int fd, off_t size) { return resized(fd, size); }
int ftruncate64(int fd, off64_t size) { return resized(fd, size); }

static void *mapped(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    if (fd >= 0 && is_ours(fd) && fails(0)) {
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, at, bytes, protection, flags, fd, offset);
}
void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    return mapped(at, bytes, protection, flags, fd, offset);
}
void *mmap64(void *at, size_t bytes, int protection, int flags, int fd, off64_t offset) {
    return mapped(at, bytes, protection, flags, fd, offset);
}

int mkdir(const char *path, mode_t mode) {
    return below_root(path) && fails(0) ? -1 : (int)syscall(SYS_mkdir, path, mode);
}
int rename(const char *a, const char *b) {
    return below_root(a) && fails(0) ? -1 : (int)syscall(SYS_rename, a, b);
}
int link(const char *a, const char *b) {
    return below_root(a) && fails(0) ? -1 : (int)syscall(SYS_link, a, b);
}
int unlink(const char *path) {
    return below_root(path) && fails(0) ? -1 : (int)syscall(SYS_unlink, path);
}
