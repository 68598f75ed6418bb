/* All ways to write to a descriptor, led to one: `written(fd, parts, count, at)`, which whoever
 * includes this has defined; `at` is -1 where the descriptor's own place counts. For shims that are
 * preloaded (failing_calls.c, lost_writes.c). */

static ssize_t one_written(int fd, const void *data, size_t bytes, off_t at) {
    const struct iovec part = {(void *)data, bytes};
    return written(fd, &part, 1, at);
}

ssize_t write(int fd, const void *data, size_t bytes) { return one_written(fd, data, bytes, -1); }
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) {
    return one_written(fd, data, bytes, at);
}
ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) {
    return one_written(fd, data, bytes, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return written(fd, parts, count, -1);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    return written(fd, parts, count, at);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    return written(fd, parts, count, at);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    return flags ? (errno = ENOTSUP, -1) : written(fd, parts, count, at);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags) {
    return flags ? (errno = ENOTSUP, -1) : written(fd, parts, count, at);
}
