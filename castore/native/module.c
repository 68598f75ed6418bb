/* castore._native: Python's door to the chunker's kernel, the entropy gate, mappings, what
   is similar, write-back, and small files. Everything that takes long lets go of the GIL. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "endelta.h"
#include "entropy.h"
#include "gil.h"
#include "kernel.h"
#include "mapping.h"
#include "similarity.h"
#include "smallfiles.h"
#include "undelta.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* One for the process: every variant cuts alike, so it only matters to tests and benches. */
static const struct gear_variant *variant;

/* ---- cutting -------------------------------------------------------------------------------- */

enum {
    /* Cut with the GIL, in 10 us. What is larger may be mapped, and its pages not be there yet. */
    QUICK_BYTES_MAX = 64 << 10,
};

struct cut_arguments {
    Py_buffer buffer;
    size_t start, until;
    int final;
    struct chunk_sizes sizes;
};

/* On success the buffer is held, and the caller releases it. */
static bool parse_cut(PyObject *arguments, const char *format, struct cut_arguments *parsed)
{
    Py_ssize_t start, min, norm, max, until = PY_SSIZE_T_MAX;
    if (!PyArg_ParseTuple(arguments, format, &parsed->buffer, &start, &parsed->final, &min, &norm,
                          &max, &until)) {
        return false;
    }
    const char *refusal = NULL;
    if (start < 0 || start > parsed->buffer.len) {
        refusal = "start must lie in the buffer";
    } else if (min < GEAR_MIN_BYTES_MIN || min > norm || norm > max || max > GEAR_MAX_BYTES_MAX) {
        refusal = "chunk sizes must be 704 <= min <= norm <= max <= 2**30";
    } else if ((min | norm | max) % GEAR_ROW) {
        refusal = "chunk sizes must be multiples of 64";
    }
    if (refusal != NULL) {
        PyErr_SetString(PyExc_ValueError, refusal);
        PyBuffer_Release(&parsed->buffer);
        return false;
    }
    parsed->start = (size_t)start;
    parsed->until = until < 0 ? 0 : (size_t)until;
    parsed->sizes = (struct chunk_sizes){(size_t)min, (size_t)norm, (size_t)max};
    return true;
}

static PyObject *next_cut(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    struct cut_arguments given;
    if (!parse_cut(arguments, "y*npnnn:next_cut", &given)) {
        return NULL;
    }
    const size_t size = (size_t)given.buffer.len;
    PyThreadState *state = let_go_of_gil(size - given.start > QUICK_BYTES_MAX);
    const size_t cut =
        gear_next_cut(variant, given.buffer.buf, size, given.start, given.final, &given.sizes);
    take_gil_back(state);
    PyBuffer_Release(&given.buffer);
    return PyLong_FromSsize_t(cut == GEAR_UNDECIDED ? -1 : (Py_ssize_t)cut);
}

static PyObject *list_of_cuts(const size_t *cuts, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *cut = PyLong_FromSize_t(cuts[i]);
        if (cut == NULL || PyList_SetItem(list, (Py_ssize_t)i, cut) != 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *cut_all(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    struct cut_arguments given;
    if (!parse_cut(arguments, "y*npnnn|n:cut_all", &given)) {
        return NULL;
    }
    const size_t size = (size_t)given.buffer.len;
    PyObject *list = NULL;
    /* Room for the most cuts there can be: memory that isn't touched costs nothing. */
    size_t *cuts = malloc(((size - given.start) / given.sizes.min + 1) * sizeof *cuts);
    if (cuts == NULL) {
        PyErr_NoMemory();
    } else {
        size_t count = 0;
        PyThreadState *state = let_go_of_gil(size - given.start > QUICK_BYTES_MAX);
        for (size_t start = given.start; start < given.until; count++) {
            start = gear_next_cut(variant, given.buffer.buf, size, start, given.final,
                                  &given.sizes);
            if (start == GEAR_UNDECIDED) {
                break;
            }
            cuts[count] = start;
        }
        take_gil_back(state);
        list = list_of_cuts(cuts, count);
        free(cuts);
    }
    PyBuffer_Release(&given.buffer);
    return list;
}

/* ---- variants ------------------------------------------------------------------------------- */

static const struct gear_variant *fastest_variant(const char *name)
{
    for (size_t i = 0; i < gear_variant_count; i++) {
        if ((name == NULL || strcmp(gear_variants[i].name, name) == 0) &&
            gear_variant_runs(&gear_variants[i])) {
            return &gear_variants[i];
        }
    }
    return NULL;
}

static PyObject *variants(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    PyObject *list = PyList_New(0), *names = NULL;
    for (size_t i = 0; list != NULL && i < gear_variant_count; i++) {
        if (gear_variant_runs(&gear_variants[i])) {
            PyObject *name = PyUnicode_FromString(gear_variants[i].name);
            if (name == NULL || PyList_Append(list, name) != 0) {
                Py_CLEAR(list);
            }
            Py_XDECREF(name);
        }
    }
    if (list != NULL) {
        names = PyList_AsTuple(list);
        Py_DECREF(list);
    }
    return names;
}

static PyObject *current_variant(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyUnicode_FromString(variant->name);
}

static PyObject *select_variant(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    const char *name;
    if (!PyArg_ParseTuple(arguments, "s:select_variant", &name)) {
        return NULL;
    }
    const struct gear_variant *found = fastest_variant(name);
    if (found == NULL) {
        return PyErr_Format(PyExc_ValueError, "this CPU has no variant named '%s'", name);
    }
    variant = found;
    Py_RETURN_NONE;
}

/* ---- the entropy gate, and write-back ------------------------------------------------------- */

static PyObject *is_incompressible(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer buffer;
    if (!PyArg_ParseTuple(arguments, "y*:is_incompressible", &buffer)) {
        return NULL;
    }
    bool high = entropy_is_high(buffer.buf, (size_t)buffer.len);
    PyBuffer_Release(&buffer);
    return PyBool_FromLong(high);
}

static PyObject *start_writeback(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int descriptor;
    long long offset, length;
    if (!PyArg_ParseTuple(arguments, "iLL:start_writeback", &descriptor, &offset, &length)) {
        return NULL;
    }
    if (offset < 0 || length < 0) {
        PyErr_SetString(PyExc_ValueError, "offset and length must not be negative");
        return NULL;
    }
#ifdef SYNC_FILE_RANGE_WRITE
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = sync_file_range(descriptor, offset, length, SYNC_FILE_RANGE_WRITE);
    Py_END_ALLOW_THREADS
    if (result != 0 && errno != ENOSYS) { /* a hint: a kernel that lacks it loses nothing else */
        return PyErr_SetFromErrno(PyExc_OSError);
    }
#endif
    Py_RETURN_NONE;
}

/* ---- the module ----------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"next_cut", next_cut, METH_VARARGS,
     "next_cut(buffer, start, final, min, norm, max, /)\n--\n\n"
     "The end of the chunk that starts at `start`, or -1: nothing is left, or the input goes on\n"
     "(not `final`) and fewer than max + 256 bytes of it are there."},
    {"cut_all", cut_all, METH_VARARGS,
     "cut_all(buffer, start, final, min, norm, max, until=sys.maxsize, /)\n--\n\n"
     "The ends of the chunks that start at `start` and at each other's ends, as long as they can\n"
     "be decided and start before `until`."},
    {"variants", variants, METH_NOARGS,
     "variants()\n--\n\nThe kernels that this CPU runs, fastest first. All cut alike."},
    {"variant", current_variant, METH_NOARGS, "variant()\n--\n\nThe kernel in use."},
    {"select_variant", select_variant, METH_VARARGS,
     "select_variant(name, /)\n--\n\nUse that kernel from now on, in the whole process: for tests."},
    {"is_incompressible", is_incompressible, METH_VARARGS,
     "is_incompressible(buffer, /)\n--\n\n"
     "Whether 16 samples of 256 bytes have an order-0 entropy above 7.93 bits a byte. False for\n"
     "fewer than 4,096 bytes."},
    {"start_writeback", start_writeback, METH_VARARGS,
     "start_writeback(fd, offset, length, /)\n--\n\n"
     "Have the kernel start writing these dirty bytes to the disk. A hint, without durability."},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
    variant = fastest_variant(NULL);
    entropy_prepare();
    if (similarity_add(module) != 0 || endelta_add(module) != 0 ||
        undelta_add(module) != 0 || smallfiles_add(module) != 0) {
        return -1;
    }
    PyObject *mapping = PyType_FromSpec(&mapping_spec);
    if (mapping == NULL) {
        return -1;
    }
    int result = PyObject_SetAttrString(mapping, "guarded", Py_True);
    result = result == 0 ? PyModule_AddObjectRef(module, "Mapping", mapping) : result;
    Py_DECREF(mapping);
    return result;
}

/* No Py_mod_gil: the regions' free list (guard.c), a mapping's count of exports (mapping.c) and the
   choice of the kernel rely on the GIL, which a free-threaded Python turns on again for us. */
static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "castore._native",
    .m_doc = "The parts of castore that are in C. castore.stream.chunker and castore.system.mapping fall back "
             "to Python without it.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
