/* Small files, many in one call: they are looked at, read or written while other threads have the
   GIL, which each of several calls for each file would else let go of and wait for again. What they
   are called, and what becomes of one that can't be written or read, is for Python to say
   (castore/system/outfolder.py, statuses.py, and castore/stream/sourcefile.py). */

#define _GNU_SOURCE
#include "smallfiles.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL
#define FILES_MAX 4096

struct new_file {
    const char *draft, *leaf; /* names in the folder */
    Py_buffer raw;
    int mode;
    bool has_time;
    long long mtime_ns;
};

static int write_all(int fd, const char *at, size_t left)
{
    while (left > 0) {
        ssize_t written = write(fd, at, left);
        if (written < 0) {
            if (errno == EINTR) {
                continue;
            }
            return errno;
        }
        at += written;
        left -= (size_t)written;
    }
    return 0;
}

static int set_time(int fd, long long ns)
{
    long long s = ns / NS_PER_S, rest = ns % NS_PER_S;
    if (rest < 0) { /* before 1970 */
        rest += NS_PER_S;
        s--;
    }
    struct timespec time = {.tv_sec = (time_t)s, .tv_nsec = (long)rest};
    return futimens(fd, (struct timespec[]){time, time}) == 0 ? 0 : errno;
}

static int fill(int fd, const struct new_file *file)
{
    int error = write_all(fd, file->raw.buf, (size_t)file->raw.len);
    /* A file system that has no permission bits takes the bytes nevertheless. */
    if (error == 0 && fchmod(fd, (mode_t)file->mode) != 0 && errno != EPERM && errno != EACCES) {
        error = errno;
    }
    return error == 0 && file->has_time ? set_time(fd, file->mtime_ns) : error;
}

/* 0 once the file is in its place, whole; else nothing is left of it. Unless it is to replace what
   has the name, that stays, but for a file that comes while this one is written. */
static int write_file(int folder, const struct new_file *file, bool replace)
{
    struct stat taken;
    if (!replace && fstatat(folder, file->leaf, &taken, AT_SYMLINK_NOFOLLOW) == 0) {
        return EEXIST;
    }
    int fd = openat(folder, file->draft, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        return errno;
    }
    int error = fill(fd, file);
    /* A network's file system may say only now that there is no room. */
    if (close(fd) != 0 && error == 0 && errno != EINTR) {
        error = errno;
    }
    if (error == 0 && renameat(folder, file->draft, folder, file->leaf) != 0) {
        error = errno;
    }
    if (error != 0) {
        unlinkat(folder, file->draft, 0);
    }
    return error;
}

/* The buffer is held on success. */
static bool parse_file(PyObject *item, struct new_file *file)
{
    PyObject *time;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "each file is a tuple");
        return false;
    }
    if (!PyArg_ParseTuple(item, "yyy*iO:file", &file->draft, &file->leaf, &file->raw, &file->mode,
                          &time)) {
        return false;
    }
    file->has_time = time != Py_None;
    file->mtime_ns = file->has_time ? PyLong_AsLongLong(time) : 0;
    if (PyErr_Occurred()) {
        PyBuffer_Release(&file->raw);
        return false;
    }
    return true;
}

static PyObject *list_of(const int *errors, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *error = PyLong_FromLong(errors[i]);
        if (error == NULL || PyList_SetItem(list, i, error) != 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *write_files(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int folder, replace = 0;
    PyObject *given, *list = NULL;
    if (!PyArg_ParseTuple(arguments, "iO!|p:write_files", &folder, &PyTuple_Type, &given,
                          &replace)) {
        return NULL;
    }
    /* The tuple, and the tuples in it, which nobody can change, keep the names. */
    const Py_ssize_t count = PyTuple_Size(given);
    if (count > FILES_MAX) {
        PyErr_Format(PyExc_ValueError, "at most %d files", FILES_MAX);
        return NULL;
    }
    Py_ssize_t parsed = 0;
    struct new_file *files = calloc((size_t)count + 1, sizeof *files);
    int *errors = calloc((size_t)count + 1, sizeof *errors);
    if (files == NULL || errors == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    for (; parsed < count; parsed++) {
        if (!parse_file(PyTuple_GetItem(given, parsed), &files[parsed])) {
            goto end;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++) {
        errors[i] = write_file(folder, &files[i], replace);
    }
    Py_END_ALLOW_THREADS
    list = list_of(errors, count);
end:
    while (parsed > 0) {
        PyBuffer_Release(&files[--parsed].raw);
    }
    free(files);
    free(errors);
    return list;
}

/* ---- reading, and looking at them ------------------------------------------------------------ */

struct found_file {
    const char *path;
    char *raw; /* NULL if it was not read */
    struct stat status;
    bool told; /* whether there is anything to tell of it */
};

/* One for each path, to be filled, and freed; NULL with an exception set. The tuple keeps the
   paths. */
static struct found_file *files_of(PyObject *paths)
{
    const Py_ssize_t count = PyTuple_Size(paths);
    if (count > FILES_MAX) {
        PyErr_Format(PyExc_ValueError, "at most %d files", FILES_MAX);
        return NULL;
    }
    struct found_file *files = calloc((size_t)count + 1, sizeof *files);
    if (files == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        char *path;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(paths, i), &path, NULL) != 0) {
            free(files); /* it is no bytes, or has a NUL */
            return NULL;
        }
        files[i].path = path;
    }
    return files;
}

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

#ifdef __APPLE__
#define MTIME st_mtimespec
#define CTIME st_ctimespec
#else
#define MTIME st_mtim
#define CTIME st_ctim
#endif

static bool fits_ns(struct timespec time)
{
    return time.tv_sec > INT64_MIN / NS_PER_S && time.tv_sec < INT64_MAX / NS_PER_S;
}

static long long in_ns(struct timespec time)
{
    return (long long)time.tv_sec * NS_PER_S + time.tv_nsec;
}

/* All bytes of the regular file, of one moment; NULL for what is none, or larger, or changed meanwhile. */
static char *read_whole(int fd, size_t bytes_max, struct stat *status)
{
    if (fstat(fd, status) != 0 || !S_ISREG(status->st_mode) || status->st_size < 0 ||
        (uintmax_t)status->st_size > bytes_max || !fits_ns(status->MTIME) ||
        !fits_ns(status->CTIME)) {
        return NULL;
    }
    const size_t size = (size_t)status->st_size;
    char *raw = malloc(size + 1);
    struct stat after;
    if (raw == NULL || pread(fd, raw, size + 1, 0) != (ssize_t)size || fstat(fd, &after) != 0 ||
        after.st_size != status->st_size || !same_time(after.MTIME, status->MTIME) ||
        !same_time(after.CTIME, status->CTIME)) {
        free(raw);
        return NULL;
    }
    return raw;
}

static void read_file(int folder, struct found_file *file, size_t bytes_max)
{
    /* What was a file when it was listed, and is a pipe now, is not waited for. */
    int fd = openat(folder, file->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd >= 0) {
        file->raw = read_whole(fd, bytes_max, &file->status);
        file->told = file->raw != NULL;
        close(fd);
    }
}

static PyObject *tuple_of_status(const struct stat *status, const char *raw)
{
    const unsigned int mode = (unsigned int)status->st_mode;
    const long long size = (long long)status->st_size, mtime = in_ns(status->MTIME),
                    ctime = in_ns(status->CTIME);
    const unsigned long long device = (unsigned long long)status->st_dev,
                             inode = (unsigned long long)status->st_ino;
    return raw == NULL ? Py_BuildValue("(ILKKLL)", mode, size, device, inode, mtime, ctime)
                       : Py_BuildValue("(y#ILKKLL)", raw, (Py_ssize_t)size, mode, size, device,
                                       inode, mtime, ctime);
}

static PyObject *list_of_found(const struct found_file *files, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *item = files[i].told ? tuple_of_status(&files[i].status, files[i].raw)
                                       : Py_NewRef(Py_None);
        if (item == NULL || PyList_SetItem(list, i, item) != 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *read_files(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *paths;
    Py_ssize_t bytes_max;
    int folder = AT_FDCWD;
    if (!PyArg_ParseTuple(arguments, "O!n|i:read_files", &PyTuple_Type, &paths, &bytes_max,
                          &folder)) {
        return NULL;
    }
    if (bytes_max < 0) {
        PyErr_SetString(PyExc_ValueError, "files have no negative size");
        return NULL;
    }
    const Py_ssize_t count = PyTuple_Size(paths);
    struct found_file *files = files_of(paths);
    if (files == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++) {
        read_file(folder, &files[i], (size_t)bytes_max);
    }
    Py_END_ALLOW_THREADS
    PyObject *list = list_of_found(files, count);
    for (Py_ssize_t i = 0; i < count; i++) {
        free(files[i].raw);
    }
    free(files);
    return list;
}

static PyObject *stat_files(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *paths;
    if (!PyArg_ParseTuple(arguments, "O!:stat_files", &PyTuple_Type, &paths)) {
        return NULL;
    }
    const Py_ssize_t count = PyTuple_Size(paths);
    struct found_file *files = files_of(paths);
    if (files == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++) {
        struct stat *status = &files[i].status;
        files[i].told = lstat(files[i].path, status) == 0 && fits_ns(status->MTIME) &&
                        fits_ns(status->CTIME);
    }
    Py_END_ALLOW_THREADS
    PyObject *list = list_of_found(files, count);
    free(files);
    return list;
}

static PyMethodDef functions[] = {
    {"stat_files", stat_files, METH_VARARGS,
     "stat_files(paths, /)\n--\n\n"
     "Of each (mode, size, device, inode, mtime_ns, ctime_ns), not of what a symlink leads to; None\n"
     "of what can't be looked at, or has a time that 64 bits do not hold. Raises TypeError,\n"
     "ValueError."},
    {"read_files", read_files, METH_VARARGS,
     "read_files(paths, bytes_max, folder=..., /)\n--\n\n"
     "Read small regular files whole: of each (bytes, mode, size, device, inode, mtime_ns,\n"
     "ctime_ns), as it was when it was opened; None for what is none or a symlink, has more than\n"
     "`bytes_max` bytes, was changed meanwhile, or can't be read. Paths are from the open folder, or\n"
     "the current one. Raises TypeError, ValueError."},
    {"write_files", write_files, METH_VARARGS,
     "write_files(folder, files, replace=False, /)\n--\n\n"
     "Write new files, each whole or not at all, in the open folder `folder`: of each (draft, name,\n"
     "buffer, mode, mtime_ns or None) the bytes go to a file of the name `draft`, which must not be\n"
     "there, and which then gets the name. For each the error number of what went wrong, or 0;\n"
     "EEXIST, unless it is to `replace` that, where there is something of the name, which stays; a\n"
     "file that comes meanwhile is replaced. Both names are bytes. Raises TypeError, ValueError,\n"
     "OverflowError."},
    {NULL, NULL, 0, NULL},
};

int smallfiles_add(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
