#define PY_SSIZE_T_CLEAN
#include "similarity.h"

#include "anchors.h"
#include "delta.h"

#include <stdlib.h>

/* ---- anchors -------------------------------------------------------------------------------- */

static int put_anchor(PyObject *found, const struct anchor *anchor)
{
    PyObject *hash = PyLong_FromUnsignedLongLong(anchor->hash);
    PyObject *position = PyLong_FromSize_t(anchor->position);
    int result = -1;
    if (hash != NULL && position != NULL) {
        result = PyDict_SetItem(found, hash, position);
    }
    Py_XDECREF(hash);
    Py_XDECREF(position);
    return result;
}

static PyObject *anchors(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer buffer;
    if (!PyArg_ParseTuple(arguments, "y*:anchors", &buffer)) {
        return NULL;
    }
    struct anchor some[512];
    PyObject *found = PyDict_New();
    size_t begin = 0, size = (size_t)buffer.len;
    while (found != NULL && begin < size) {
        size_t count;
        Py_BEGIN_ALLOW_THREADS
        count = find_anchors(buffer.buf, size, &begin, some, sizeof some / sizeof *some);
        Py_END_ALLOW_THREADS
        for (size_t i = 0; i < count; i++) {
            if (put_anchor(found, &some[i]) != 0) {
                Py_CLEAR(found);
                break;
            }
        }
    }
    PyBuffer_Release(&buffer);
    return found;
}

/* ---- deltas --------------------------------------------------------------------------------- */

static struct delta_input input_of(const Py_buffer *buffer)
{
    return (struct delta_input){buffer->buf, (size_t)buffer->len};
}

static PyObject *bytes_of(struct delta_output output)
{
    return PyBytes_FromStringAndSize((const char *)output.bytes, (Py_ssize_t)output.size);
}

static PyObject *malformed(void)
{
    PyErr_SetString(PyExc_ValueError, "malformed delta");
    return NULL;
}

static PyObject *delta_encode_(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer raw, base;
    if (!PyArg_ParseTuple(arguments, "y*y*:delta_encode", &raw, &base)) {
        return NULL;
    }
    PyObject *result = NULL;
    struct delta_output sequences = {NULL, 0}, literals = {NULL, 0};
    if (raw.len > DELTA_BYTES_MAX || base.len > DELTA_BYTES_MAX) {
        PyErr_SetString(PyExc_ValueError, "a delta is of at most 2**28 bytes");
    } else {
        /* Memory that isn't touched costs nothing. */
        sequences.bytes = malloc(delta_sequences_bound((size_t)raw.len));
        literals.bytes = malloc((size_t)raw.len + 1);
        bool done = sequences.bytes != NULL && literals.bytes != NULL;
        if (done) {
            Py_BEGIN_ALLOW_THREADS
            done = delta_encode(input_of(&base), input_of(&raw), &sequences, &literals);
            Py_END_ALLOW_THREADS
        }
        result = done ? Py_BuildValue("NN", bytes_of(sequences), bytes_of(literals))
                      : PyErr_NoMemory();
    }
    free(sequences.bytes);
    free(literals.bytes);
    PyBuffer_Release(&raw);
    PyBuffer_Release(&base);
    return result;
}

static PyObject *delta_apply_(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer sequences, literals, base;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "y*y*y*n:delta_apply", &sequences, &literals, &base, &size)) {
        return NULL;
    }
    PyObject *result = NULL;
    if (size < 0 || size > DELTA_BYTES_MAX) {
        malformed();
    } else {
        result = PyBytes_FromStringAndSize(NULL, size);
    }
    if (result != NULL) {
        struct delta_output raw = {(uint8_t *)PyBytes_AsString(result), (size_t)size};
        bool done;
        Py_BEGIN_ALLOW_THREADS
        done = delta_apply(input_of(&sequences), input_of(&literals), input_of(&base), &raw);
        Py_END_ALLOW_THREADS
        if (!done) {
            Py_CLEAR(result);
            malformed();
        }
    }
    PyBuffer_Release(&sequences);
    PyBuffer_Release(&literals);
    PyBuffer_Release(&base);
    return result;
}

static PyObject *delta_context_(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer sequences, base;
    Py_ssize_t literals;
    if (!PyArg_ParseTuple(arguments, "y*ny*:delta_context", &sequences, &literals, &base)) {
        return NULL;
    }
    PyObject *result = NULL;
    struct delta_output context = {malloc(DELTA_CONTEXT_MAX), 0};
    if (context.bytes == NULL) {
        PyErr_NoMemory();
    } else if (literals < 0 || !delta_context(input_of(&sequences), (size_t)literals,
                                              input_of(&base), &context)) {
        malformed();
    } else {
        result = bytes_of(context);
    }
    free(context.bytes);
    PyBuffer_Release(&sequences);
    PyBuffer_Release(&base);
    return result;
}

/* ---- the functions -------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"anchors", anchors, METH_VARARGS,
     "anchors(buffer, /)\n--\n\n"
     "The hashes of the buffer's anchors, each with the last position where it is."},
    {"delta_encode", delta_encode_, METH_VARARGS,
     "delta_encode(raw, base, /)\n--\n\n"
     "The sequences and the literals that make `raw` of `base`."},
    {"delta_apply", delta_apply_, METH_VARARGS,
     "delta_apply(sequences, literals, base, raw_bytes, /)\n--\n\n"
     "What they make of `base`; ValueError unless it is well-formed, and of `raw_bytes` bytes."},
    {"delta_context", delta_context_, METH_VARARGS,
     "delta_context(sequences, literals_bytes, base, /)\n--\n\n"
     "The bytes of `base` that literals stand in for; ValueError if it is malformed."},
    {NULL, NULL, 0, NULL},
};

int similarity_add(PyObject *module)
{
    anchors_prepare();
    return PyModule_AddFunctions(module, functions);
}
