/* Records what a process does to the files below a folder, for lost_writes.py: loaded by LD_PRELOAD,
 * with RECORD_ROOT and RECORD_LOG in the environment. Each call is made and written down under one
 * lock, so the log has the order in which things happened. Only calls that succeeded are in it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *root;
static size_t root_bytes;
static int log_fd = -1;

/* What is behind the functions below, which can't be called from here: they are these. */
#define CALL(number, ...) syscall(number, __VA_ARGS__)

__attribute__((constructor)) static void begin(void) {
    root = getenv("RECORD_ROOT");
    const char *log = getenv("RECORD_LOG");
    if (root != NULL && log != NULL) {
        root_bytes = strlen(root);
        log_fd = (int)CALL(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
}

static int below_root(const char *path) {
    return log_fd >= 0 && strncmp(path, root, root_bytes) == 0 &&
           (path[root_bytes] == '/' || path[root_bytes] == 0);
}

/* The file's path if it is below the root. */
static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) {
        return 0;
    }
    path[length] = 0;
    return below_root(path);
}

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 ? (uint64_t)found.st_ino : 0;
}

static off_t size_of(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 ? found.st_size : 0;
}

static void all_of(const void *data, size_t bytes) {
    const char *at = data;
    while (bytes > 0) {
        const long written = CALL(SYS_write, log_fd, at, bytes);
        if (written <= 0) {
            abort();
        }
        at += written;
        bytes -= (size_t)written;
    }
}

static void note(char what, uint64_t inode, uint64_t number, const void *a, size_t a_bytes,
                 const void *b, size_t b_bytes) {
    const int before = errno;
    const uint64_t head[5] = {(uint64_t)what, inode, number, a_bytes, b_bytes};
    all_of(head, sizeof head);
    all_of(a, a_bytes);
    all_of(b, b_bytes);
    errno = before;
}

static int opened(int folder, const char *path, int flags, mode_t mode) {
    pthread_mutex_lock(&lock);
    const int there = (flags & O_CREAT) == 0 || faccessat(folder, path, F_OK, 0) == 0;
    const int fd = (int)CALL(SYS_openat, folder, path, flags, mode);
    char real[PATH_MAX];
    if (fd >= 0 && path_of(fd, real)) {
        if (!there) {
            note('C', inode_of(fd), 0, real, strlen(real), NULL, 0);
        } else if (flags & O_TRUNC) {
            note('T', inode_of(fd), 0, NULL, 0, NULL, 0);
        }
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN(name)                                       \
    int name(const char *path, int flags, ...) {         \
        va_list rest;                                    \
        va_start(rest, flags);                           \
        const mode_t mode = va_arg(rest, mode_t);        \
        va_end(rest);                                    \
        return opened(AT_FDCWD, path, flags, mode);      \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                        \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest;                                       \
        va_start(rest, flags);                              \
        const mode_t mode = va_arg(rest, mode_t);           \
        va_end(rest);                                       \
        return opened(folder, path, flags, mode);           \
    }
OPENAT(openat)
OPENAT(openat64)

static ssize_t written(int fd, const struct iovec *parts, int count, off_t offset) {
    char path[PATH_MAX];
    pthread_mutex_lock(&lock);
    const ssize_t done = offset >= 0 ? CALL(SYS_pwritev, fd, parts, count, offset, 0)
                                     : CALL(SYS_writev, fd, parts, count);
    if (done > 0 && path_of(fd, path)) {
        char *data = malloc((size_t)done);
        size_t have = 0;
        for (int i = 0; i < count && have < (size_t)done; i++) {
            const size_t rest = (size_t)done - have;
            const size_t bytes = parts[i].iov_len < rest ? parts[i].iov_len : rest;
            memcpy(data + have, parts[i].iov_base, bytes);
            have += bytes;
        }
        const int flags = fcntl(fd, F_GETFL);
        /* Of a file that is open to append, the place before the call says nothing, nor does
         * `offset`: it was written at the end. */
        const off_t begin = flags & O_APPEND ? size_of(fd) - done
                            : offset >= 0    ? offset
                                             : lseek(fd, 0, SEEK_CUR) - done;
        note(flags & O_DSYNC ? 'D' : 'W', inode_of(fd), (uint64_t)begin, data, have, NULL, 0);
        free(data);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

#include "all_writes.h"

static int synced(int fd, long number) {
    char path[PATH_MAX];
    pthread_mutex_lock(&lock);
    const int done = (int)CALL(number, fd);
    if (done == 0 && path_of(fd, path)) {
        note('S', inode_of(fd), 0, path, strlen(path), NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static int resized(int fd, off_t size) {
    char path[PATH_MAX];
    pthread_mutex_lock(&lock);
    const int done = (int)CALL(SYS_ftruncate, fd, size);
    if (done == 0 && path_of(fd, path)) {
        note('T', inode_of(fd), (uint64_t)size, NULL, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate(int fd, off_t size) { return resized(fd, size); }
int ftruncate64(int fd, off64_t size) { return resized(fd, size); }

static int named(char what, long number, const char *a, const char *b) {
    pthread_mutex_lock(&lock);
    const int done = (int)(b != NULL ? CALL(number, a, b) : CALL(number, a));
    if (done == 0 && (below_root(a) || (b != NULL && below_root(b)))) {
        note(what, 0, 0, a, strlen(a), b, b == NULL ? 0 : strlen(b));
    }
    pthread_mutex_unlock(&lock);
    return done;
}

int rename(const char *a, const char *b) { return named('N', SYS_rename, a, b); }
int link(const char *a, const char *b) { return named('L', SYS_link, a, b); }

/* By which Python 3.14 links. Not of other folders than the process's. */
int linkat(int a_folder, const char *a, int b_folder, const char *b, int flags) {
    return a_folder == AT_FDCWD && b_folder == AT_FDCWD
               ? named('L', SYS_link, a, b)
               : (int)CALL(SYS_linkat, a_folder, a, b_folder, b, flags);
}

int unlink(const char *path) { return named('U', SYS_unlink, path, NULL); }
int rmdir(const char *path) { return named('U', SYS_rmdir, path, NULL); }

int mkdir(const char *path, mode_t mode) {
    pthread_mutex_lock(&lock);
    const int done = (int)CALL(SYS_mkdir, path, mode);
    if (done == 0 && below_root(path)) {
        note('M', 0, 0, path, strlen(path), NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
