#define PY_SSIZE_T_CLEAN
#include "held.h"

struct delta_input input_of(const Py_buffer *buffer)
{
    return (struct delta_input){buffer->buf, (size_t)buffer->len};
}

bool hold_bases(PyObject *sequence, struct held_bases *held)
{
    const Py_ssize_t count = PySequence_Size(sequence);
    held->bases = (struct delta_bases){0};
    bool good = count >= 0 && count <= DELTA_BASES_MAX;
    for (Py_ssize_t i = 0; good && i < count; i++) {
        PyObject *base = PySequence_GetItem(sequence, i);
        Py_buffer *buffer = &held->buffers[i];
        good = base != NULL && PyObject_GetBuffer(base, buffer, PyBUF_SIMPLE) == 0;
        Py_XDECREF(base);
        if (good && !delta_add_base(&held->bases, input_of(buffer))) {
            PyBuffer_Release(buffer);
            good = false;
        }
    }
    if (!good) {
        release_bases(held);
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "a delta has at most 4 bases, of 2**28 bytes in all");
        }
    }
    return good;
}

void release_bases(struct held_bases *held)
{
    for (size_t i = 0; i < held->bases.count; i++) {
        PyBuffer_Release(&held->buffers[i]);
    }
}
