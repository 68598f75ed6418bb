#define PY_SSIZE_T_CLEAN
#include "undelta.h"

#include "held.h"

#include <stdbool.h>
#include <stdlib.h>

static PyObject *malformed(void)
{
    PyErr_SetString(PyExc_ValueError, "malformed delta");
    return NULL;
}

/* ---- zstd, which is Python's: `decompress` takes a frame, and gives the bytes in it ------------- */

static PyObject *decompressed(PyObject *decompress, PyObject *frame, size_t size)
{
    PyObject *content = PyObject_CallFunctionObjArgs(decompress, frame, NULL);
    if (content != NULL && (!PyBytes_Check(content) || (size_t)PyBytes_Size(content) != size)) {
        Py_DECREF(content);
        return malformed();
    }
    return content;
}

/* A frame says how much memory it takes. */
static PyObject *decompressed_sequences(PyObject *decompress, PyObject *frame, size_t most)
{
    Py_buffer buffer;
    struct delta_input blocks;
    uint64_t size;
    if (PyObject_GetBuffer(frame, &buffer, PyBUF_SIMPLE) != 0) {
        return NULL;
    }
    const bool good = zstd_blocks(input_of(&buffer), &blocks, &size) && size <= most;
    PyBuffer_Release(&buffer);
    return good ? decompressed(decompress, frame, (size_t)size) : malformed();
}

/* The literals, behind their context. */
static PyObject *decompressed_literals(PyObject *decompress, struct delta_input literals,
                                       struct delta_input copies, const struct delta_bases *bases,
                                       size_t most, size_t *context)
{
    struct delta_input blocks;
    uint64_t size;
    if (!zstd_blocks(literals, &blocks, &size) || size > most ||
        !delta_context(copies, (size_t)size, bases, NULL, context)) {
        return malformed();
    }
    const Py_ssize_t frame_bytes = (Py_ssize_t)delta_frame_bytes(blocks, *context);
    PyObject *frame = PyBytes_FromStringAndSize(NULL, frame_bytes), *content = NULL;
    if (frame != NULL) {
        delta_frame(copies, blocks, (size_t)size, bases, *context,
                    (uint8_t *)PyBytes_AsString(frame));
        content = decompressed(decompress, frame, *context + (size_t)size);
        Py_DECREF(frame);
    }
    return content;
}

/* ---- decoding ------------------------------------------------------------------------------- */

enum { SEQUENCES_ZSTD = 1, LITERALS_ZSTD = 2 };

struct delta {
    PyObject *sequences, *decompress;
    Py_buffer literals;
    int packed;
    Py_ssize_t raw_bytes;
};

static PyObject *applied(struct delta_input copies, struct delta_input literals,
                         const struct delta_bases *bases, size_t size)
{
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (result == NULL) {
        return NULL;
    }
    const struct delta_output raw = {(uint8_t *)PyBytes_AsString(result), size};
    bool done;
    Py_BEGIN_ALLOW_THREADS
    done = delta_apply(copies, literals, bases, raw);
    Py_END_ALLOW_THREADS
    if (!done) {
        Py_DECREF(result);
        return malformed();
    }
    return result;
}

static PyObject *decode_copies(const struct delta *delta, struct delta_input copies,
                               const struct delta_bases *bases)
{
    struct delta_input literals = input_of(&delta->literals);
    const size_t size = (size_t)delta->raw_bytes;
    if (!(delta->packed & LITERALS_ZSTD)) {
        return applied(copies, literals, bases, size);
    }
    size_t context = 0;
    PyObject *content =
        decompressed_literals(delta->decompress, literals, copies, bases, size, &context);
    if (content == NULL) {
        return NULL;
    }
    literals.bytes = (const uint8_t *)PyBytes_AsString(content) + context;
    literals.size = (size_t)PyBytes_Size(content) - context;
    PyObject *result = applied(copies, literals, bases, size);
    Py_DECREF(content);
    return result;
}

static PyObject *decode_sequences(const struct delta *delta, PyObject *plain,
                                  const struct delta_bases *bases)
{
    Py_buffer sequences;
    if (PyObject_GetBuffer(plain, &sequences, PyBUF_SIMPLE) != 0) {
        return NULL;
    }
    PyObject *result = NULL;
    size_t count;
    struct delta_copy *copies = malloc(((size_t)sequences.len / 3 + 1) * sizeof *copies);
    if (copies == NULL) {
        PyErr_NoMemory();
    } else if (!delta_copies(input_of(&sequences), bases->size, copies, &count)) {
        malformed();
    } else {
        const struct delta_input bytes = {(const uint8_t *)copies, count * sizeof *copies};
        result = decode_copies(delta, bytes, bases);
    }
    free(copies);
    PyBuffer_Release(&sequences);
    return result;
}

static PyObject *decode(const struct delta *delta, const struct delta_bases *bases)
{
    if (!(delta->packed & SEQUENCES_ZSTD)) {
        return decode_sequences(delta, delta->sequences, bases);
    }
    PyObject *plain = decompressed_sequences(delta->decompress, delta->sequences,
                                             delta_sequences_bound((size_t)delta->raw_bytes));
    PyObject *result = plain == NULL ? NULL : decode_sequences(delta, plain, bases);
    Py_XDECREF(plain);
    return result;
}

static PyObject *delta_decode(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    struct delta delta;
    struct held_bases held;
    PyObject *bases, *result = NULL;
    if (!PyArg_ParseTuple(arguments, "Oy*iOnO:delta_decode", &delta.sequences, &delta.literals,
                          &delta.packed, &bases, &delta.raw_bytes, &delta.decompress)) {
        return NULL;
    }
    if (delta.raw_bytes < 0 || delta.raw_bytes > DELTA_BYTES_MAX) {
        malformed();
    } else if (hold_bases(bases, &held)) {
        result = decode(&delta, &held.bases);
        release_bases(&held);
    }
    PyBuffer_Release(&delta.literals);
    return result;
}

/* ---- the functions -------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"delta_decode", delta_decode, METH_VARARGS,
     "delta_decode(sequences, literals, packed, bases, raw_bytes, decompress, /)\n--\n\n"
     "The `raw_bytes` bytes that they make of the bases, at most 4. `packed`: 1 if the sequences are\n"
     "a zstd frame, plus 2 if the literals are, with their context as its dictionary. `decompress`\n"
     "gives the bytes in a frame that has none. ValueError if anything of it is malformed, and what\n"
     "`decompress` raises."},
    {NULL, NULL, 0, NULL},
};

int undelta_add(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
