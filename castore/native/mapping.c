/* castore._native.Mapping: a read-only view of a file that keeps no descriptor open. */

#define _GNU_SOURCE
#include "mapping.h"

#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MAP_POPULATE
#define MAP_POPULATE 0
#endif

typedef struct {
    PyObject_HEAD
    char *address; /* NULL: closed */
    size_t size;
    Py_ssize_t exports;
    struct guarded_region *region; /* NULL when nothing is mapped */
    bool was_damaged;              /* when it was closed */
} Mapping;

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* What to map, and what it came to. */
struct request {
    int descriptor;   /* -1: open `path`, and close it again */
    const char *path;
    long long offset, length; /* length -1: up to the end of the file */
    bool populate;
    char *address;
    size_t size;
    const char *refusal; /* why the request makes no sense, when errno is 0 */
};

static int map_descriptor(struct request *request, int descriptor)
{
    struct stat status;
    if (fstat(descriptor, &status) != 0) {
        return -1;
    }
    if (!S_ISREG(status.st_mode)) {
        errno = S_ISDIR(status.st_mode) ? EISDIR : ENODEV;
        return -1;
    }
    errno = 0;
    if (request->offset > status.st_size) {
        request->refusal = "the mapping would start past the end of the file";
        return -1;
    }
    const long long available = status.st_size - request->offset;
    if (request->length > available) {
        request->refusal = "the mapping would reach past the end of the file";
        return -1;
    }
    const long long size = request->length < 0 ? available : request->length;
    if (size > PY_SSIZE_T_MAX) {
        errno = EOVERFLOW; /* a large file on a 32-bit machine */
        return -1;
    }
    request->size = (size_t)size;
    if (size == 0) {
        request->address = ""; /* mmap refuses what Python calls an empty buffer */
        return 0;
    }
    const int flags = MAP_SHARED | (request->populate ? MAP_POPULATE : 0);
    void *address = mmap(NULL, request->size, PROT_READ, flags, descriptor, request->offset);
    if (address == MAP_FAILED) {
        return -1;
    }
    request->address = address;
    return 0;
}

static int map_file(struct request *request)
{
    if (request->descriptor >= 0) {
        return map_descriptor(request, request->descriptor);
    }
    int descriptor = open(request->path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        return -1;
    }
    int result = map_descriptor(request, descriptor);
    int saved_errno = errno;
    close(descriptor);
    errno = saved_errno;
    return result;
}

static PyObject *mapping_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"file", "length", "offset", "populate", NULL};
    struct request request = {.descriptor = -1, .length = -1};
    PyObject *file, *path = NULL;
    int populate = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|L$Lp:Mapping", names, &file,
                                     &request.length, &request.offset, &populate)) {
        return NULL;
    }
    if (request.length < -1 || request.offset < 0 || request.offset % (long long)page_bytes()) {
        PyErr_SetString(PyExc_ValueError, "length must not be negative (-1: up to the end), and "
                                          "offset must be a multiple of the page size");
        return NULL;
    }
    if (PyLong_Check(file)) {
        request.descriptor = PyObject_AsFileDescriptor(file);
        if (request.descriptor < 0) {
            return NULL;
        }
    } else {
        if (!PyUnicode_FSConverter(file, &path)) {
            return NULL;
        }
        request.path = PyBytes_AsString(path);
    }
    request.populate = populate;

    if (guard_install() != 0) {
        Py_XDECREF(path);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Mapping *self = (Mapping *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL) {
        Py_XDECREF(path);
        return NULL;
    }
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = map_file(&request);
    Py_END_ALLOW_THREADS
    if (result == 0) {
        self->address = request.address;
        self->size = request.size;
        if (request.size != 0) {
            self->region = guard_watch(self->address, self->size);
            result = self->region == NULL ? -1 : 0;
        }
    }
    if (result != 0) {
        if (errno == 0) {
            PyErr_SetString(PyExc_ValueError, request.refusal);
        } else {
            PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path == NULL ? NULL : file);
        }
        Py_CLEAR(self);
    }
    Py_XDECREF(path);
    return (PyObject *)self;
}

static void unmap(Mapping *self)
{
    char *address = self->address;
    self->address = NULL;
    if (address == NULL || self->size == 0) {
        return;
    }
    if (self->region != NULL) {
        self->was_damaged = guard_damaged(self->region);
        guard_release(self->region);
        self->region = NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    munmap(address, self->size);
    Py_END_ALLOW_THREADS
}

static void mapping_dealloc(Mapping *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    unmap(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static bool is_closed(const Mapping *self)
{
    if (self->address == NULL) {
        PyErr_SetString(PyExc_ValueError, "the mapping is closed");
    }
    return self->address == NULL;
}

static int mapping_getbuffer(Mapping *self, Py_buffer *view, int flags)
{
    if (is_closed(self)) {
        view->obj = NULL;
        return -1;
    }
    int result = PyBuffer_FillInfo(view, (PyObject *)self, self->address, (Py_ssize_t)self->size,
                                   1, flags);
    self->exports += result == 0;
    return result;
}

static void mapping_releasebuffer(Mapping *self, Py_buffer *Py_UNUSED(view))
{
    self->exports--;
}

static Py_ssize_t mapping_length(Mapping *self)
{
    return is_closed(self) ? -1 : (Py_ssize_t)self->size;
}

static PyObject *mapping_close(Mapping *self, PyObject *Py_UNUSED(none))
{
    if (self->exports > 0) {
        PyErr_SetString(PyExc_BufferError, "the mapping is in use: release its memoryviews first");
        return NULL;
    }
    unmap(self);
    Py_RETURN_NONE;
}

static PyObject *mapping_damaged(Mapping *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->region == NULL ? self->was_damaged : guard_damaged(self->region));
}

/* Of [offset, offset + length), clamped to the mapping, the pages that lie wholly inside, where the
   end of the mapping is the end of a page. */
static PyObject *mapping_advise_dontneed(Mapping *self, PyObject *arguments)
{
    Py_ssize_t offset, length;
    if (!PyArg_ParseTuple(arguments, "nn", &offset, &length) || is_closed(self)) {
        return NULL;
    }
    if (offset < 0 || length < 0) {
        PyErr_SetString(PyExc_ValueError, "offset and length must not be negative");
        return NULL;
    }
    const size_t page = page_bytes(), size = self->size;
    size_t begin = (size_t)offset < size ? (size_t)offset : size;
    size_t end = (size_t)length < size - begin ? begin + (size_t)length : size;
    begin = (begin + page - 1) / page * page;
    end = end == size ? end : end / page * page;
    if (begin < end) {
        int result;
        char *address = self->address;
        self->exports++; /* nobody closes it meanwhile */
        Py_BEGIN_ALLOW_THREADS
        result = madvise(address + begin, end - begin, MADV_DONTNEED);
        Py_END_ALLOW_THREADS
        self->exports--;
        if (result != 0) {
            return PyErr_SetFromErrno(PyExc_OSError);
        }
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"close", (PyCFunction)mapping_close, METH_NOARGS,
     "close($self, /)\n--\n\nUnmap. BufferError while a memoryview of it is alive."},
    {"advise_dontneed", (PyCFunction)mapping_advise_dontneed, METH_VARARGS,
     "advise_dontneed($self, offset, length, /)\n--\n\n"
     "Let go of the whole pages within the range: they are read again when next touched."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"damaged", (getter)mapping_damaged, NULL,
     "Whether some of it could not be read (the file was truncated, or the disk failed), and has "
     "read as zeros since.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Mapping(file, length=-1, *, offset=0, populate=False)\n--\n\n"
                "A read-only shared mapping of a file, as a buffer. `file` is a path, or a\n"
                "descriptor, which stays the caller's and may be closed at once. Offset (a\n"
                "multiple of the page size) and length in bytes; -1 is up to the end of the\n"
                "file. Pages that can't be read don't kill the process with SIGBUS: they read\n"
                "as zeros, and `damaged` is true from then on."},
    {Py_tp_new, mapping_new},
    {Py_tp_dealloc, mapping_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {Py_bf_getbuffer, mapping_getbuffer},
    {Py_bf_releasebuffer, mapping_releasebuffer},
    {Py_sq_length, mapping_length},
    {0, NULL},
};

PyType_Spec mapping_spec = {
    .name = "castore._native.Mapping",
    .basicsize = sizeof(Mapping),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};
