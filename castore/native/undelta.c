#define PY_SSIZE_T_CLEAN
#include "undelta.h"

#include "delta.h"

#include <stdbool.h>
#include <stdlib.h>

static struct delta_input input_of(const Py_buffer *buffer)
{
    return (struct delta_input){buffer->buf, (size_t)buffer->len};
}

static PyObject *malformed(void)
{
    PyErr_SetString(PyExc_ValueError, "malformed delta");
    return NULL;
}

/* The bases of a delta, held until they are released. */
struct held_bases {
    Py_buffer buffers[DELTA_BASES_MAX];
    struct delta_bases bases;
};

static void release_bases(struct held_bases *held)
{
    for (size_t i = 0; i < held->bases.count; i++) {
        PyBuffer_Release(&held->buffers[i]);
    }
}

/* On success the caller releases them. */
static bool hold_bases(PyObject *sequence, struct held_bases *held)
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
            malformed();
        }
    }
    return good;
}

static PyObject *delta_copies_(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer sequences;
    struct held_bases held;
    PyObject *bases, *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*O:delta_copies", &sequences, &bases)) {
        return NULL;
    }
    if (hold_bases(bases, &held)) {
        size_t count;
        struct delta_copy *copies = malloc(((size_t)sequences.len / 3 + 1) * sizeof *copies);
        if (copies == NULL) {
            PyErr_NoMemory();
        } else if (!delta_copies(input_of(&sequences), held.bases.size, copies, &count)) {
            malformed();
        } else {
            result = PyBytes_FromStringAndSize((const char *)copies,
                                               (Py_ssize_t)(count * sizeof *copies));
        }
        free(copies);
        release_bases(&held);
    }
    PyBuffer_Release(&sequences);
    return result;
}

static PyObject *delta_apply_(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer copies, literals;
    struct held_bases held;
    PyObject *bases, *result = NULL;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "y*y*On:delta_apply", &copies, &literals, &bases, &size)) {
        return NULL;
    }
    if (size < 0 || size > DELTA_BYTES_MAX) {
        malformed();
    } else if (hold_bases(bases, &held)) {
        result = PyBytes_FromStringAndSize(NULL, size);
        if (result != NULL) {
            const struct delta_output raw = {(uint8_t *)PyBytes_AsString(result), (size_t)size};
            bool done;
            Py_BEGIN_ALLOW_THREADS
            done = delta_apply(input_of(&copies), input_of(&literals), &held.bases, raw);
            Py_END_ALLOW_THREADS
            if (!done) {
                Py_CLEAR(result);
                malformed();
            }
        }
        release_bases(&held);
    }
    PyBuffer_Release(&copies);
    PyBuffer_Release(&literals);
    return result;
}

static PyObject *delta_context_(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer copies;
    struct held_bases held;
    PyObject *bases, *result = NULL;
    Py_ssize_t literals;
    if (!PyArg_ParseTuple(arguments, "y*nO:delta_context", &copies, &literals, &bases)) {
        return NULL;
    }
    if (literals < 0) {
        malformed();
    } else if (hold_bases(bases, &held)) {
        const struct delta_input input = input_of(&copies);
        size_t size = 0;
        if (!delta_context(input, (size_t)literals, &held.bases, NULL, &size)) {
            malformed();
        } else if ((result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size)) != NULL) {
            delta_context(input, (size_t)literals, &held.bases,
                          (uint8_t *)PyBytes_AsString(result), &size);
        }
        release_bases(&held);
    }
    PyBuffer_Release(&copies);
    return result;
}

static PyObject *frame_of(struct delta_input copies, struct delta_input literals,
                          const struct delta_bases *bases, size_t most)
{
    struct delta_input blocks;
    uint64_t content;
    size_t context = 0;
    if (!zstd_blocks(literals, &blocks, &content) || content > most ||
        !delta_context(copies, (size_t)content, bases, NULL, &context)) {
        return malformed();
    }
    const size_t size = delta_frame_bytes(blocks, context);
    PyObject *frame = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (frame == NULL) {
        return NULL;
    }
    delta_frame(copies, blocks, (size_t)content, bases, context,
                (uint8_t *)PyBytes_AsString(frame));
    return Py_BuildValue("Nnn", frame, (Py_ssize_t)context, (Py_ssize_t)content);
}

static PyObject *delta_frame_(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer copies, literals;
    struct held_bases held;
    PyObject *bases, *result = NULL;
    Py_ssize_t most;
    if (!PyArg_ParseTuple(arguments, "y*y*On:delta_frame", &copies, &literals, &bases, &most)) {
        return NULL;
    }
    if (most < 0 || most > DELTA_BYTES_MAX) {
        malformed();
    } else if (hold_bases(bases, &held)) {
        result = frame_of(input_of(&copies), input_of(&literals), &held.bases, (size_t)most);
        release_bases(&held);
    }
    PyBuffer_Release(&copies);
    PyBuffer_Release(&literals);
    return result;
}

/* ---- the functions -------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"delta_copies", delta_copies_, METH_VARARGS,
     "delta_copies(sequences, bases, /)\n--\n\n"
     "The sequences of a delta of these bases, at most 4, as the functions below take them.\n"
     "ValueError if they are malformed."},
    {"delta_apply", delta_apply_, METH_VARARGS,
     "delta_apply(copies, literals, bases, raw_bytes, /)\n--\n\n"
     "What they make of the bases; ValueError unless that is `raw_bytes` bytes."},
    {"delta_context", delta_context_, METH_VARARGS,
     "delta_context(copies, literals_bytes, bases, /)\n--\n\n"
     "The bytes of the bases that literals stand in for; ValueError if it is malformed."},
    {"delta_frame", delta_frame_, METH_VARARGS,
     "delta_frame(copies, literals, bases, literals_bytes_max, /)\n--\n\n"
     "Of literals that are a zstd frame with their context as its dictionary: a frame that needs\n"
     "none and decodes to the context and then the literals, and how many bytes each of these has.\n"
     "ValueError if it is malformed, or of more literals."},
    {NULL, NULL, 0, NULL},
};

int undelta_add(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
